# SPDX-License-Identifier: Apache-2.0
"""Signed distances to the border of a mask, at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.special import erfinv

UNKNOWN = np.float32(1.0e8)
UNKNOWN_LIMIT = np.float32(1.0e4)


# A distance that counts half, as a share of the crop's side, at each scale from coarse to fine: far
# off at first, then less and less, so that what is wrong in the mask (a missing handle, a strip of
# the table) pulls little at the end.
ROBUST_SHARE = (0.1, 0.015)


SCALE_SIZES = (128, 256)  # largest crop side at each scale, coarse to fine


def build_pyramid(
    distance: np.ndarray, hidden: bool, sizes: Sequence[int] = SCALE_SIZES
) -> list[np.ndarray]:
    """Robust signed distances psi = phi / (1 + |phi| / scale) of a crop at each of the largest
    sizes, (S / f, S / f) float32 with the least power of two f that fits, so that a small object
    starts at a resolution that still shows it.

    distance: phi (S, S) float32 with S at most the last size; hidden: whether any of it is UNKNOWN,
    which stays so. Both phi and scale (ROBUST_SHARE of S) are in pixels of the crop.
    """
    side = distance.shape[0]
    shrunk = {1: distance}
    for factor in (2, 4, 8):
        if min(sizes) * factor // 2 < side:
            half = shrunk[factor // 2]
            size = (half.shape[1] // 2, half.shape[0] // 2)
            shrunk[factor] = cv2.resize(half, size, interpolation=cv2.INTER_AREA)
    maps = []
    for size, share in zip(sizes, ROBUST_SHARE, strict=True):
        factor = 1
        while side > size * factor:
            factor *= 2
        distance = shrunk[factor]
        weight = np.abs(distance)
        weight *= 1.0 / (share * side)
        weight += 1.0
        robust = np.divide(distance, weight, out=weight)
        if hidden:
            robust[distance > UNKNOWN_LIMIT] = UNKNOWN
        maps.append(robust)
    return maps


def shrink_points(pixels: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """Pixel coordinates (..., N), centres being integers, in images shrunk by factors (..., 1)."""
    return (pixels + 0.5) / factor - 0.5


def shrink_pinhole(pinhole: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """fx, fy, cx, cy (..., 4) of images shrunk by factors (..., 1)."""
    focal, center = pinhole[..., :2] / factor, shrink_points(pinhole[..., 2:], factor)
    return np.concatenate([focal, center], axis=-1)


def signed_distance(
    mask: np.ndarray, unknown: np.ndarray | None = None, share: np.ndarray | None = None
) -> np.ndarray:
    """Distance in pixels to the border of mask (S, S) uint8 0/1, negative inside.

    Unknown pixels (S, S) 0/1, apart from the mask, may hide more of the object: they belong to
    neither side, and are marked UNKNOWN. share: (S, S) uint8, how much of each pixel the mask and
    the unknown cover, 0 to 255, where the mask was resampled: it places the border between pixels.
    S is even.
    """
    if share is None:
        share = (mask if unknown is None else mask | unknown) * np.uint8(255)
    # Near the border the blurred share tells where it runs, to a fraction of a pixel. Farther off
    # a distance transform at half the resolution will do, at a quarter of its time.
    coarse = _whole_distance(half_covered(share))
    coarse *= 2.0
    coarse += 0.4  # a coarse pixel half inside counts as inside, so the border is that far out
    distance = cv2.resize(coarse, share.shape[::-1], interpolation=cv2.INTER_LINEAR)
    x, y, width, height = cv2.boundingRect(share)
    part = np.s_[max(y - 4, 0) : y + height + 4, max(x - 4, 0) : x + width + 4]
    blurred = cv2.GaussianBlur(share[part], (5, 5), _BLUR)
    near = cv2.inRange(blurred, 10, 245)
    cv2.copyTo(cv2.LUT(blurred, _BORDER_DISTANCE), near, distance[part])
    if unknown is not None:
        distance[unknown.view(bool)] = UNKNOWN
    return distance


def half_covered(share: np.ndarray) -> np.ndarray:
    """(S / 2, S / 2) uint8 0/1, the pixels half covered at half the resolution."""
    size = (share.shape[1] // 2, share.shape[0] // 2)
    return (cv2.resize(share, size, interpolation=cv2.INTER_AREA) > 127).view(np.uint8)


def _whole_distance(region: np.ndarray) -> np.ndarray:
    """Signed distance (S, S) float32 in whole pixels to the border of a region (S, S) 0/1."""
    # one transform serves both sides: distances to the region's own border pixels
    free = 1 - region
    free += cv2.erode(region, _CROSS, borderType=cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5)
    sign = region.astype(np.float32)
    sign *= -2.0
    sign += 1.0
    distance *= sign
    distance -= 0.5
    return distance


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_BLUR = 0.7
# Blurring a straight edge makes its profile a normal distribution, whatever its direction; the
# inverse of that tells the distance of the edge from a blurred share of 0 to 255.
_BORDER_DISTANCE = (
    -_BLUR * np.sqrt(2.0) * erfinv(np.clip(np.linspace(-1.0, 1.0, 256), -0.9999, 0.9999))
).astype(np.float32)
