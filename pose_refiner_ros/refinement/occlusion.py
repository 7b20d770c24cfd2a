# SPDX-License-Identifier: Apache-2.0
"""Who stands in front, where the masks of two objects meet: their poses tell.

Another object's mask may hide more of an object, so its pixels say nothing of it, and an outline
that runs along them counts for nothing. If the other one stands farther away, though, it hides
nothing: there its mask is background, and the outline is the object's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.surface import ranges_to_surface

NEAR_PX = 4  # how far from a border its pixels are looked at, photo pixels
SAMPLES = 24  # of a border
LEAST_SAMPLES = 4  # that meet both objects
MARGIN = 0.02  # of the distance: how exactly one image tells it
AGREE = 0.75  # of the samples must say the same
MEETING = 0.75  # of a border must have both masks at either side
_TOUCHING = np.ones((3, 3), np.uint8)


def labels_behind(
    masks: np.ndarray, camera: Camera, found: Mapping[int, tuple[ObjectModel, np.ndarray]]
) -> dict[int, frozenset[int]]:
    """Of each label the labels beside it that stand farther away; those that have any.

    masks: (H, W) labels; found: label -> object and camera_from_object (4, 4).
    """
    farther: dict[int, set[int]] = {}
    for a, b, pixels_a, pixels_b in _borders(masks, sorted(found)):
        distance_a, distance_b = (
            _distances(*found[label], camera, pixels)
            for label, pixels in ((a, pixels_a), (b, pixels_b))
        )
        met = np.isfinite(distance_a) & np.isfinite(distance_b)
        if np.count_nonzero(met) < LEAST_SAMPLES:
            continue
        beyond = (distance_b[met] - distance_a[met]) / distance_a[met]
        if (beyond > MARGIN).mean() > AGREE:
            farther.setdefault(a, set()).add(b)
        elif (beyond < -MARGIN).mean() > AGREE:
            farther.setdefault(b, set()).add(a)
    return {label: frozenset(labels) for label, labels in farther.items()}


def _distances(model: ObjectModel, pose: np.ndarray, camera: Camera, pixels) -> np.ndarray:
    """(N,) metres along the rays of pixels (N, 2) to an object's surface, infinite beside it."""
    rays = np.nan_to_num(camera.rays(pixels.astype(np.float64)))
    return ranges_to_surface(model, pose[None], rays)[0]


def _borders(masks: np.ndarray, labels: Sequence[int]):
    """Pairs of labels whose masks meet, with pixels (N, 2) of either side, x and y, in pairs that
    lie side by side."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR_PX + 1,) * 2)
    for number, a in enumerate(labels):
        own = (masks == a).view(np.uint8)
        x, y, width, height = cv2.boundingRect(own)
        if width == 0:
            continue
        rows = slice(max(y - NEAR_PX, 0), y + height + NEAR_PX)
        columns = slice(max(x - NEAR_PX, 0), x + width + NEAR_PX)
        window, own = masks[rows, columns], np.ascontiguousarray(own[rows, columns])
        ring = cv2.dilate(own, kernel) - own
        for b in np.intersect1d(np.unique(window[ring > 0]), labels[number + 1 :]):
            other = (window == b).view(np.uint8)
            beside = other & ring
            # where a strip of neither lies between, the masks do not agree on where the border is
            touching = cv2.countNonZero(other & cv2.dilate(own, _TOUCHING))
            if touching * NEAR_PX < MEETING * cv2.countNonZero(beside):
                continue
            of_a = np.argwhere(own & cv2.dilate(other, kernel))[:, ::-1]
            of_b = np.argwhere(beside)[:, ::-1]
            chosen = of_b[np.linspace(0, len(of_b) - 1, min(SAMPLES, len(of_b))).astype(int)]
            apart = ((chosen[:, None] - of_a[None]) ** 2).sum(axis=2)
            corner = np.array([columns.start, rows.start])
            yield a, int(b), of_a[apart.argmin(axis=1)] + corner, chosen + corner
