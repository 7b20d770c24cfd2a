# SPDX-License-Identifier: Apache-2.0
"""An object as it was seen at one instant, kept for frames to come: while it stands still, and the
motion of the camera is known, it is evidence of the same pose as what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pose_refiner_ros.geometry.pose import about, in_axes, twist_between
from pose_refiner_ros.objects.symmetry import Symmetries

from .observation import Observation

MOVED = 12.0  # mean squared error of six parameters: twice what noise alone makes


@dataclass(frozen=True, eq=False)
class Sighting:
    """What was seen of an object at one instant, and its pose by that alone.

    observations: of one camera, or of several. reference_from_object: (4, 4); covariance: (6, 6),
    twist order, the reference's axes, about the object's origin. middle: (3,) of the object, and
    eye: (3,) of the camera whose axes the reference had, where the two were in the reference.
    contradicts: it does not agree with the earlier sightings that it was compared with.
    """

    observations: tuple[Observation, ...]
    reference_from_object: np.ndarray
    covariance: np.ndarray
    middle: np.ndarray
    eye: np.ndarray = field(default_factory=lambda: np.zeros(3))
    contradicts: bool = False

    def told_in(self, other_from_reference: np.ndarray) -> Sighting:
        """The same in another reference, by where that one lies (4, 4)."""
        rotation, translation = other_from_reference[:3, :3], other_from_reference[:3, 3]
        return replace(
            self,
            observations=tuple(one.told_in(other_from_reference) for one in self.observations),
            reference_from_object=other_from_reference @ self.reference_from_object,
            covariance=in_axes(rotation, self.covariance),
            middle=rotation @ self.middle + translation,
            eye=rotation @ self.eye + translation,
        )


def stands_still(
    reference_from_object: np.ndarray, sightings: Sequence[Sighting], symmetries: Symmetries
) -> bool:
    """Whether a pose (4, 4) by all sightings together is one that each of them alone could have
    given: then the object has not moved, nor has anything that tells where the camera was."""
    squares = []
    for one in sightings:
        own = symmetries.closest_equivalent(one.reference_from_object, reference_from_object)
        offset = own[:3, 3] - one.reference_from_object[:3, 3]
        off = twist_between(own, reference_from_object)
        squares.append(off @ np.linalg.solve(about(offset, one.covariance), off))
    return bool(np.mean(squares) < MOVED)
