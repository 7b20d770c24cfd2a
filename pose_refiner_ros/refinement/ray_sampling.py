# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a photo are compared with a field: all pixels cost too much.

Yen-Chen et al., "iNeRF: Inverting Neural Radiance Fields for Pose Estimation" (2021), on sampling
rays: of the photo alone, since points in the rendered picture would cost a whole rendering.

* `random`: any pixel. Most lie where nothing is, or where all is alike, and say nothing.
* `interest_point`: pixels of an interest point detector. They see only what stands out in the
  photo, not what stands out in the picture, and get stuck when the two are apart.
* `interest_region`: anywhere in the neighbourhood of the points, a 5x5 dilation, I times. A large I
  makes it random.

Where there are fewer interesting pixels than asked for, the rest are random ones. In a photo with
fewer than 20 points all are random: of one spot alone a pose cannot be told. The paper leaves open
which detector, and I. Here it is that of Shi and Tomasi (1994), as OpenCV has it, and I is 3, which
reaches 6 pixels from each point.
"""

from __future__ import annotations

import cv2
import numpy as np

SAMPLINGS = ("random", "interest_point", "interest_region")
ITERATIONS = 3
_FEWEST_POINTS = 20
_MOST_POINTS = 5000
_QUALITY = 0.01  # of a corner, beside the best one's


class RaySamplingError(ValueError):
    """A photo in which no rays can be sampled, with the reason."""


def pixels_to_draw(
    image: np.ndarray,
    sampling: str = "interest_region",
    weight: np.ndarray | None = None,
    iterations: int = ITERATIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 2), x and y, of one photo that are drawn first, none for random sampling or where
    it has too few points; and all (M, 2) that may be drawn.

    image: (H, W, 3) RGB, uint8 or float in [0, 1]. weight: (H, W), 0 for pixels that say nothing
    (hidden by something else, beyond the lens); those are never drawn, nor looked at. iterations:
    of the dilation, for interest regions.

    Raises RaySamplingError for NaN where the weight is not 0, or where all of it is.
    """
    if sampling not in SAMPLINGS:
        raise RaySamplingError(f"sampling is {sampling!r}: give one of {', '.join(SAMPLINGS)}")
    if iterations < 0:
        raise RaySamplingError(f"iterations of the dilation is {iterations}; give 0 or more")
    image = np.asarray(image)
    allowed = _allowed(image, weight)
    first = np.zeros_like(allowed)
    if sampling != "random":
        points = interest_points(image, allowed)
        if points.sum() >= _FEWEST_POINTS:
            first = points
            if sampling == "interest_region" and iterations > 0:
                kernel = np.ones((5, 5), np.uint8)
                first = cv2.dilate(first.astype(np.uint8), kernel, iterations=iterations) > 0
    return _pixels(first & allowed), _pixels(allowed)


def draw_pixels(
    pixels: tuple[np.ndarray, np.ndarray], count: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, 2) int64 of `pixels_to_draw`; none twice as long as there are enough."""
    first, all_of_them = pixels
    chosen = _choose(first, min(count, len(first)), rng)
    rest = _choose(all_of_them, count - len(chosen), rng)
    return np.concatenate((chosen, rest))


def interest_points(image: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """(H, W) bool, pixels at which there is a corner; only where allowed, if given."""
    if image.dtype != np.uint8:
        image = (255.0 * np.clip(np.nan_to_num(image), 0.0, 1.0)).round().astype(np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mask = None if allowed is None else allowed.astype(np.uint8)
    found = np.zeros(grey.shape, bool)
    corners = cv2.goodFeaturesToTrack(grey, _MOST_POINTS, _QUALITY, 0.0, mask=mask)
    if corners is not None:
        x, y = corners.reshape(-1, 2).astype(np.intp).T
        found[y, x] = True
    return found


def _allowed(image: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """(H, W) pixels that may be drawn, of a photo that is one."""
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise RaySamplingError(f"the image has shape {image.shape}; give (H, W, 3) RGB")
    allowed = np.ones(image.shape[:2], bool)
    if weight is not None:
        allowed = np.asarray(weight) > 0
        if allowed.shape != image.shape[:2]:
            raise RaySamplingError(
                f"the weight has shape {allowed.shape}, the image {image.shape[:2]}"
            )
        if not allowed.any():
            raise RaySamplingError("the weight is 0 everywhere: no pixel of the photo counts")
    if image.dtype != np.uint8:
        seen = image[allowed]
        if not np.isfinite(seen).all():
            bad = int((~np.isfinite(seen)).any(axis=1).sum())
            raise RaySamplingError(
                f"{bad} pixels of the image are NaN or infinite: give them the weight 0"
            )
        if seen.min() < -0.01 or seen.max() > 1.01:
            raise RaySamplingError(
                f"the image holds values from {seen.min():g} to {seen.max():g}; give uint8, or "
                "colours from 0 to 1"
            )
    return allowed


def _pixels(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.stack((x, y), -1).astype(np.int64)


def _choose(pixels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return (
        pixels[rng.choice(len(pixels), count, replace=count > len(pixels))] if count else pixels[:0]
    )
