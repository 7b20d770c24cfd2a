# SPDX-License-Identifier: Apache-2.0
"""What a label image says of one object: signed distances in a crop, at several resolutions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.special import erfinv

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.crop import Crop, crop_around

UNKNOWN = np.float32(1.0e8)
UNKNOWN_LIMIT = np.float32(1.0e4)


# A distance that counts half, as a share of the crop's side, at each level from coarse to fine: far
# off at first, then less and less, so that what is wrong in the mask (a missing handle, a strip of
# the table) pulls little at the end.
ROBUST_SHARE = (0.1, 0.015)


MIN_PIXELS = 25  # a smaller mask says next to nothing about a pose
MARGIN = 0.3  # room around the mask for a start pose that is too near or beside it
LEVEL_SIZES = (128, 256)  # largest crop side of each level, coarse to fine


class EvidenceError(ValueError):
    """A mask from which no pose can be told; the message says why."""


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


@dataclass(frozen=True, eq=False)
class ObjectEvidence:
    """All that is seen of one object in one frame.

    mask, unknown: (S, S) uint8 0/1 of the crop; unknown pixels belong to other instances or lie
    beyond the photo, and may hide more of the object (None: there are none). levels: coarse to
    fine. photo: (S, S, 3) uint8 RGB of the crop, for encoders that look at it.
    """

    label: int
    crop: Crop
    mask: np.ndarray
    unknown: np.ndarray | None
    levels: list[EvidenceLevel]
    photo: np.ndarray | None = None

    @cached_property
    def _inside(self) -> np.ndarray:
        """(S, S) bool, the mask as the distances have it: holes of a pixel or two are closed."""
        return self.levels[-1].distance < 0.0

    @cached_property
    def area(self) -> int:
        """Pixels of the mask, in the crop."""
        return int(np.count_nonzero(self._inside))

    @cached_property
    def second_part(self) -> float:
        """Share of the mask in the largest of its parts but one: 0 where it is whole, or where what
        is unknown may join them."""
        region = self.mask if self.unknown is None else self.mask | self.unknown
        count, part_of = cv2.connectedComponents(region, connectivity=8, ltype=cv2.CV_16U)
        if count <= 2:
            return 0.0
        areas = np.sort(np.bincount(part_of[self.mask.view(bool)], minlength=count))
        return float(areas[-2] / areas.sum())

    @cached_property
    def least_cost(self) -> float:
        """The cost of a silhouette that covers exactly the mask."""
        return float(self.levels[-1].distance[self._inside].sum(dtype=np.float64))


def gather_evidence(
    masks: np.ndarray,
    label: int,
    camera: Camera,
    sizes: tuple[int, ...] = LEVEL_SIZES,
) -> ObjectEvidence:
    """Look at one label of a label image (H, W), where 0 is background, and so is to the others a
    label that touches all four borders.

    Raises EvidenceError where the mask is missing, too small, or has no outline in the photo.
    """
    own = (masks == label).view(np.uint8)
    x, y, width, height = cv2.boundingRect(own)
    if width == 0:
        raise EvidenceError(f"label {label} has no pixel in the mask")
    if (height, width) == own.shape:
        raise EvidenceError(
            f"the mask of label {label} touches all four borders of the photo ({width}x{height}): "
            "its outline is cut on every side; is it the background, or is the camera too near?"
        )
    pixels = cv2.countNonZero(own[y : y + height, x : x + width])
    if pixels < MIN_PIXELS:
        raise EvidenceError(
            f"the mask of label {label} has {pixels} pixels, fewer than {MIN_PIXELS}: too small "
            "to tell a pose from"
        )
    crop = crop_around(camera, (x, y, x + width - 1, y + height - 1), sizes[-1], MARGIN)
    share = crop.cut(own)
    hidden = _hidden_share(masks, own, crop)
    mask = (share > 127).view(np.uint8)
    unknown = None
    region_share = share
    if hidden is not None:
        region_share = cv2.add(share, hidden)
        unknown = (region_share > 127).view(np.uint8) - mask
        if not unknown.any():
            unknown = None
    covered = cv2.countNonZero(_half(region_share))
    if cv2.countNonZero(mask) < MIN_PIXELS or covered == 0:
        raise EvidenceError(
            f"the mask of label {label}, {pixels} pixels strewn over {width}x{height}, is too thin "
            "to tell a pose from"
        )
    if 4 * covered == mask.size:
        raise EvidenceError(
            f"{_covering(masks, label, crop)} cover all that is seen of its "
            "surroundings: no outline to compare with; what is no instance must have label 0"
        )
    distance = signed_distance(mask, unknown, region_share)
    levels = build_pyramid(distance, unknown is not None, crop.pinhole, crop.bounds, sizes)
    return ObjectEvidence(label, crop, mask, unknown, levels)


def _hidden_share(masks: np.ndarray, own: np.ndarray, crop: Crop) -> np.ndarray | None:
    """Share (S, S) uint8 0 to 255 of each crop pixel that other instances or the photo's end hide;
    None where they nowhere do."""
    window = crop.window(masks)
    if window is None:
        hidden = crop.cut(_others(masks, own, masks))
    else:
        others = _others(window, crop.window(own), masks)
        hidden = crop.fit(others) if cv2.countNonZero(others) else None
    outside = crop.outside()
    if outside is None:
        return hidden if hidden is not None and hidden.any() else None
    outside *= np.uint8(255)
    return outside if hidden is None else cv2.max(hidden, outside)


def _others(window: np.ndarray, own: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(h, w) uint8, 1 where other instances are in a window (h, w) of a label image."""
    others = (window != 0).view(np.uint8) - own
    if cv2.countNonZero(others):
        for label in _spanning(masks):
            others[window == label] = 0
    return others


def _spanning(masks: np.ndarray) -> list[int]:
    """Labels that touch all four borders of a label image: background, whatever they are called."""
    borders = (masks[0], masks[-1], masks[:, 0], masks[:, -1])
    if not all(border.any() for border in borders):
        return []
    at_top = np.unique(masks[0]).tolist()
    return [label for label in at_top if label and all((b == label).any() for b in borders)]


def _covering(masks: np.ndarray, label: int, crop: Crop) -> str:
    """A label and what may hide more of it, to be told: "label 2 and label 7"."""
    window = crop.window(masks)
    labels = set(np.unique(masks if window is None else window).tolist())
    others = sorted(labels - {0, label, *_spanning(masks)})
    names = [f"label {one}" for one in [label, *others[:5]]] + ["others"] * (len(others) > 5)
    if crop.outside() is not None:
        names.append("the photo's end")
    return " and ".join(names)


def build_pyramid(
    distance: np.ndarray,
    hidden: bool,
    camera: np.ndarray,
    bounds: np.ndarray,
    sizes: tuple[int, ...] = LEVEL_SIZES,
    robust_share: tuple[float, ...] = ROBUST_SHARE,
) -> list[EvidenceLevel]:
    """Signed distances of a crop at each of the given largest sizes, the last being the crop's own.

    distance: (S, S) float32 with S at most sizes[-1]; hidden: whether any of it is UNKNOWN; camera:
    fx, fy, cx, cy and bounds: x0, y0, x1, y1 of the photo in crop pixels. A level is the crop
    shrunk by the least power of two that fits its size, so a small object starts at a resolution
    that still shows it.
    """
    side = distance.shape[0]
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
    coarse = _whole_distance(_half(share))
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


def _half(share: np.ndarray) -> np.ndarray:
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
