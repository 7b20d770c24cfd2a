# SPDX-License-Identifier: Apache-2.0
"""Which objects in two cameras are the same: by their class, and by where they are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.objects.model import ObjectModel

APART = 1.0  # diameters: rays through the middles of one object's masks pass nearer than that
FARTHEST = 1e6


def same_objects(
    first: Frame,
    other: Frame,
    library: Mapping[str, ObjectModel],
    followed: tuple[Mapping[int, Hashable], Mapping[int, Hashable]] = ({}, {}),
) -> dict[int, int]:
    """Label in the other frame -> label in the first, of the objects that both see.

    The only one of its class in both is the same, if that is possible at all; where there are
    several, those are whose rays through the middles of their masks pass nearest. followed: label
    -> which object of earlier frames it looks like, in either; what looks like different ones is
    not the same. Both frames have names for their labels, and `reference_from_camera` (None: the
    reference).
    """
    found = {}
    for name in {name for name in first.labels.values() if name in library}:
        here, there = (
            [label for label, one in frame.labels.items() if one == name]
            for frame in (first, other)
        )
        rays = [_ray(first, label) for label in here], [_ray(other, label) for label in there]
        cost = np.array([[_apart(a, b) for b in rays[1]] for a in rays[0]]).reshape(
            len(here), len(there)
        )
        for i, own in enumerate(followed[0].get(label) for label in here):
            for j, its in enumerate(followed[1].get(label) for label in there):
                if own is not None and its is not None:
                    cost[i, j] = 0.0 if own == its else np.inf
        gate = APART * library[name].diameter
        for i, j in zip(*linear_sum_assignment(np.minimum(cost, FARTHEST)), strict=True):
            if cost[i, j] < gate:
                found[there[j]] = here[i]
    return found


def _ray(frame: Frame, label: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Origin and unit direction in the reference; None without a pixel."""
    rows, columns = np.nonzero(np.asarray(frame.masks) == label)
    if not len(rows):
        return None
    direction = frame.camera.rays(np.array([columns.mean(), rows.mean()]))
    if not np.isfinite(direction).all():
        return None
    if frame.reference_from_camera is None:
        return np.zeros(3), direction
    return frame.reference_from_camera[:3, 3], frame.reference_from_camera[:3, :3] @ direction


def _apart(a, b) -> float:
    """Least distance of two rays, metres."""
    if a is None or b is None:
        return np.inf
    between = b[0] - a[0]
    along = np.stack([a[1], -b[1]], axis=1)
    lengths = np.linalg.lstsq(along, between, rcond=None)[0]
    lengths = np.maximum(lengths, 0.0)
    return float(np.linalg.norm(between - along @ lengths))
