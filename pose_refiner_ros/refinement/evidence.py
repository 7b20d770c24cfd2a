# SPDX-License-Identifier: Apache-2.0
"""What a mask says of one object: signed distances in a square crop, at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

UNKNOWN = np.float32(1.0e8)
UNKNOWN_LIMIT = np.float32(1.0e4)


# A distance that counts half, as a share of the crop's side, at each level from coarse to fine: far
# off at first, then less and less, so that what is wrong in the mask (a missing handle, a strip of
# the table) pulls little at the end.
ROBUST_SHARE = (0.1, 0.05, 0.025)


@dataclass(frozen=True)
class EvidenceLevel:
    """One resolution of an object's evidence.

    distance: (S, S) float32 robust signed distance psi = phi / (1 + |phi| / scale) with phi in crop
    pixels, negative inside, UNKNOWN where nothing is known; scale in crop pixels; camera: fx, fy,
    cx, cy and bounds: x0, y0, x1, y1 of the photo, in pixels of this level; pixel: side of a pixel
    of this level in crop pixels.
    """

    distance: np.ndarray
    scale: float
    camera: np.ndarray
    bounds: np.ndarray
    pixel: float


def build_pyramid(
    mask: np.ndarray,
    unknown: np.ndarray | None,
    camera: np.ndarray,
    bounds: np.ndarray,
    sizes: tuple[int, ...],
    robust_share: tuple[float, ...] = ROBUST_SHARE,
) -> list[EvidenceLevel]:
    """Signed distances of a crop at each of the given largest sizes, the last being the crop's own.

    mask, unknown: (S, S) uint8 0/1 with S at most sizes[-1]; camera: fx, fy, cx, cy and bounds:
    x0, y0, x1, y1 of the photo in crop pixels. A level is the crop shrunk by the least power of two
    that fits its size, so a small object starts at a resolution that still shows it.
    """
    side = mask.shape[0]
    distance = signed_distance(mask, unknown)
    hidden = unknown is not None and unknown.any()
    shrunk = {1: distance}
    for factor in (2, 4, 8):
        if min(sizes) * factor // 2 < side:
            half = shrunk[factor // 2]
            size = (half.shape[1] // 2, half.shape[0] // 2)
            shrunk[factor] = cv2.resize(half, size, interpolation=cv2.INTER_AREA)
    levels = []
    for size, share in zip(sizes, robust_share, strict=True):
        factor = 1
        while side > size * factor:
            factor *= 2
        scale = share * side
        level = shrunk[factor]
        weight = np.abs(level)
        weight *= 1.0 / scale
        weight += 1.0
        robust = np.divide(level, weight, out=weight)
        if hidden:
            robust[level > UNKNOWN_LIMIT] = UNKNOWN
        levels.append(
            EvidenceLevel(
                robust,
                scale,
                shrink_camera(camera, factor),
                shrink_points(bounds, factor),
                float(factor),
            )
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
    hidden = unknown is not None and unknown.any()
    region = mask | unknown if hidden else mask
    # one distance transform serves both sides: distances to the region's own border pixels
    free = 1 - region
    free += cv2.erode(region, _CROSS, borderType=cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5)
    sign = region.astype(np.float32)
    sign *= -2.0
    sign += 1.0
    distance *= sign
    distance -= 0.5
    if hidden:
        distance[unknown.view(bool)] = UNKNOWN
    return distance


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
