# SPDX-License-Identifier: Apache-2.0
"""Which earlier frames of an object are worth keeping, and when it is taken to have moved."""

from __future__ import annotations

import numpy as np

from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.refinement.sighting import Sighting

# A share of the distance. From nearer by, a sighting repeats the errors of the one before: the same
# segmentation network makes the same mistake.
NEW_PLACE = 0.1
CONTRADICTIONS = 3  # in a row: the object has moved, and not the one mask was bad
PAUSE = 1.0  # seconds that an object that has moved is left to its own frames
OLDEST = 10.0  # seconds: odometry drifts
MOST = 16  # that are held


class SightingMemory:
    """Sightings of one object from places that differ, told in a frame in which it may stand still.

    All poses are fixed_from_...: (4, 4) in that frame; stamps are seconds.
    """

    def __init__(self) -> None:
        self._held: list[tuple[float, Sighting]] = []
        self._contradictions = 0
        self._rests_until = -np.inf

    def earlier(self, stamp: float, fixed_from_camera: np.ndarray, most: int) -> list[Sighting]:
        """Those to join with a frame, at most so many, told in its camera; oldest first."""
        if stamp < self._rests_until or most < 1:
            return []
        self._held = [one for one in self._held if stamp - one[0] <= OLDEST]
        eye, camera_from_fixed = fixed_from_camera[:3, 3], inverse(fixed_from_camera)
        found = [one for _, one in self._held if _is_elsewhere(eye, one)][-most:]
        return [one.told_in(camera_from_fixed) for one in found]

    def add(self, stamp: float, sighting: Sighting) -> None:
        """Of a frame, told in the fixed frame."""
        if stamp < self._rests_until:
            return
        if sighting.contradicts:
            self._contradictions += 1
            if self._contradictions >= CONTRADICTIONS:
                self._held, self._contradictions = [], 0
                self._rests_until = stamp + PAUSE
            return
        self._contradictions = 0
        if all(_is_elsewhere(sighting.eye, one) for _, one in self._held):
            self._held = [*self._held[1 - MOST :], (stamp, sighting)]


def _is_elsewhere(eye: np.ndarray, sighting: Sighting) -> bool:
    """Whether a camera at (3,) of the fixed frame sees the object from another place."""
    distance = np.linalg.norm(sighting.eye - sighting.middle)
    return bool(np.linalg.norm(eye - sighting.eye) > NEW_PLACE * distance)
