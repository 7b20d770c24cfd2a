# SPDX-License-Identifier: Apache-2.0
"""What a mask says of one object: signed distances in a square crop, at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

UNKNOWN = np.float32(1.0e8)


@dataclass(frozen=True)
class EvidenceLevel:
    """One resolution of an object's evidence.

    distance: (S, S) float32 signed distance in crop pixels, UNKNOWN where nothing is known;
    camera: fx, fy, cx, cy and bounds: x0, y0, x1, y1 of the photo, both in pixels of this level;
    pixel: side of a pixel of this level in crop pixels.
    """

    distance: np.ndarray
    camera: np.ndarray
    bounds: np.ndarray
    pixel: float


def build_pyramid(
    mask: np.ndarray,
    unknown: np.ndarray,
    camera: np.ndarray,
    bounds: np.ndarray,
    sizes: tuple[int, ...],
) -> list[EvidenceLevel]:
    """Signed distances of a crop at each of the given largest sizes, the last being the crop's own.

    mask, unknown: (S, S) uint8 0/1 with S at most sizes[-1]; camera: fx, fy, cx, cy and bounds:
    x0, y0, x1, y1 of the photo in crop pixels. A level is the crop shrunk by the least power of two
    that fits its size, so a small object starts at a resolution that still shows it.
    """
    distance = signed_distance(mask, unknown)
    levels = []
    for size in sizes:
        factor = 1
        while distance.shape[0] > size * factor:
            factor *= 2
        if factor == 1:
            levels.append(EvidenceLevel(distance, camera, bounds, 1.0))
            continue
        side = distance.shape[0] // factor
        shrunk = cv2.resize(distance, (side, side), interpolation=cv2.INTER_AREA)
        levels.append(
            EvidenceLevel(shrunk, shrink_camera(camera, factor), shrink_points(bounds, factor), factor)
        )
    return levels


def shrink_points(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Pixel coordinates (pixel centres are integers) in an image shrunk by a factor."""
    return (pixels + 0.5) / factor - 0.5


def shrink_camera(camera: np.ndarray, factor: float) -> np.ndarray:
    """fx, fy, cx, cy of an image shrunk by a factor."""
    return np.concatenate([camera[:2] / factor, shrink_points(camera[2:], factor)])


def signed_distance(mask: np.ndarray, unknown: np.ndarray | None = None) -> np.ndarray:
    """Distance in pixels to the border of mask (S, S) uint8 0/1, negative inside.

    Unknown pixels (S, S) 0/1 may hide more of the object: they belong to neither side, and are
    marked UNKNOWN.
    """
    region = mask
    if unknown is not None and unknown.any():
        region = mask | unknown
    else:
        unknown = None
    # one distance transform serves both sides: distances to the region's own border pixels
    border = region - cv2.erode(region, _CROSS, borderType=cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(1 - border, cv2.DIST_L2, cv2.DIST_MASK_5)
    inside = region.view(bool)
    distance = np.where(inside, -0.5 - distance, distance - 0.5).astype(np.float32)
    if unknown is not None:
        distance[unknown.view(bool)] = UNKNOWN
    return distance


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
