# SPDX-License-Identifier: Apache-2.0
"""Poses that objects may have: what is known of one, which are the same, which are worth more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.geometry.pose import about_point, rotated

if TYPE_CHECKING:
    from pose_refiner_ros.objects.model import ObjectModel

    from .terms import TermFit
    from .terms.prior import PosePrior

# Hypotheses that end this near to each other are one.
SAME_ANGLE = np.radians(8.0)
SAME_PLACE = 0.1  # diameters
SAME_DEPTH = 0.05  # of the distance, beside that


@dataclass(eq=False)
class Hypothesis:
    """A pose that an object may have, from a guess to a result.

    object: its name; reference_from_object: (4, 4) float64; prior: what was known before. Of a
    result: cost over all that was seen at the finest scale, 0 for a perfect fit; covariance
    (6, 6), twist order, the reference's axes, about the object's origin; fits: what each term says
    of it, by the terms' names; iterations; reason: why it stopped moving
    (`solver.REASONS`).
    """

    object: str
    reference_from_object: np.ndarray
    prior: PosePrior | None = None
    cost: float = np.inf
    covariance: np.ndarray | None = None
    fits: dict[str, TermFit] = field(default_factory=dict)
    iterations: int = 0
    reason: str = "running"
    index: int = field(default=0, repr=False)  # of the object, among those of a call


def same_pose(
    a: np.ndarray, b: np.ndarray, model: ObjectModel, camera_from_reference: np.ndarray
) -> bool:
    """Whether two poses (4, 4) of an object are one, as far as a camera (4, 4) can see."""
    first, second = (about_point(pose, model.box_center)[:3, 3] for pose in (a, b))
    depth = abs(camera_from_reference[2, :3] @ second + camera_from_reference[2, 3])
    if np.linalg.norm(first - second) > SAME_PLACE * model.diameter + SAME_DEPTH * depth:
        return False
    return float(model.symmetries.reduced_rotation_error(a, b)) < SAME_ANGLE


def best_distinct(
    found: Sequence[Hypothesis],
    model: ObjectModel,
    camera_from_reference: np.ndarray,
    keep: int,
    behind: float = np.inf,
) -> list[Hypothesis]:
    """Of one object's hypotheses the `keep` best that differ from each other, best first; without
    those whose cost is behind the best one's by more than a share of that.

    camera_from_reference: (4, 4) of a camera that sees it.
    """
    found = sorted((one for one in found if np.isfinite(one.cost)), key=lambda one: one.cost)
    chosen: list[Hypothesis] = []
    for one in found:
        if len(chosen) == keep or one.cost - found[0].cost > behind * abs(found[0].cost):
            break
        if not any(
            same_pose(
                one.reference_from_object,
                other.reference_from_object,
                model,
                camera_from_reference,
            )
            for other in chosen
        ):
            chosen.append(one)
    return chosen


def around(pose: np.ndarray, angle: float, point: np.ndarray) -> list[np.ndarray]:
    """The pose (4, 4) turned by an angle both ways about each axis of the reference through a point
    (3,) of the object."""
    middle = about_point(pose, point)
    return [
        about_point(rotated(middle, angle * axis), -np.asarray(point))
        for axis in np.concatenate([np.eye(3), -np.eye(3)])
    ]
