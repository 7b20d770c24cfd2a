# SPDX-License-Identifier: Apache-2.0
"""An object as it was seen at one instant, kept for frames to come: while it stands still, and the
motion of the camera is known, it is evidence of the same pose as what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_refiner_ros.geometry.pose import about, in_axes, twist_between
from pose_refiner_ros.objects.symmetry import Symmetries

from .observation import Observation

MOVED = 12.0  # mean squared error of six parameters: twice what noise alone makes


@dataclass(frozen=True, eq=False)
class Sighting:
    """What was seen of an object at one instant, and its pose by that alone.

    observations: of one camera, or of several. reference_from_object: (4, 4); covariance: (6, 6),
    twist order, the reference's axes, about the object's origin.
    """

    observations: tuple[Observation, ...]
    reference_from_object: np.ndarray
    covariance: np.ndarray

    def told_in(self, other_from_reference: np.ndarray) -> Sighting:
        """The same in another reference, by where that one lies (4, 4)."""
        return Sighting(
            tuple(one.told_in(other_from_reference) for one in self.observations),
            other_from_reference @ self.reference_from_object,
            in_axes(other_from_reference[:3, :3], self.covariance),
        )

    @property
    def eye(self) -> np.ndarray:
        """(3,) where the first camera was, in the reference."""
        return self.observations[0].eye


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
