# SPDX-License-Identifier: Apache-2.0
"""A class that does not flicker, for objects that only the encoder can name.

Ids are kept within a class, so the class has to be settled before they are given. Objects are
followed here by where they are in the image alone, and what the encoder says of them is added up.
That settles the name. It does not make it certain: what a network says of frame after frame is not
independent, so for the probability all frames together count as a few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.tracking.identity import FAR, IdentityTracker, Observation, Track

MEMORY = 0.95  # of what was said before, per frame: about twenty frames count
SURE = 0.95  # no single frame is believed more than that, whatever the encoder says
FRAMES = 3.0  # all frames together are worth so many independent ones
CHANGE = 4.0  # log odds that another name must have over the one in use
DISAGREE = 0.5  # what other classes count against the match of a mask and an object
LOST_AFTER = 0.5  # seconds; later another object may be there


@dataclass
class Named:
    """An object's name by all frames so far, and the probability of that. track: the object, by
    where it is in the image alone; corrected: it had another name, which the encoder had given."""

    name: str
    probability: float
    track: Track
    corrected: bool


@dataclass(eq=False)
class _Opinion:
    """What is known of an object. told: by someone else than the encoder; logs: of the encoder's
    probabilities, summed up over `frames` frames (fewer the older they are)."""

    name: str | None = None
    told: bool = False
    logs: dict[str, float] = field(default_factory=dict)
    frames: float = 0.0

    def shares(self) -> dict[str, float]:
        """Name -> probability."""
        if self.told:
            return {self.name: 1.0}
        highest = max(self.logs.values(), default=0.0)
        share = FRAMES / max(self.frames, FRAMES)
        weights = {name: np.exp(share * (log - highest)) for name, log in self.logs.items()}
        return {name: float(weight / sum(weights.values())) for name, weight in weights.items()}


class _Follower(IdentityTracker):
    """Follows objects of any class: names may be wrong, but say something."""

    def __init__(self) -> None:
        super().__init__(lost_after=LOST_AFTER)
        self.opinions: WeakKeyDictionary[Track, _Opinion] = WeakKeyDictionary()
        self.shares: Mapping[int, Mapping[str, float]] = {}  # by label, of the frame

    def _cost(self, observation: Observation, track: Track, stamp: float) -> float:
        now, before = self.shares.get(observation.label, {}), self.opinions[track].shares()
        cost = super()._cost(observation, track, stamp)
        if now and before:
            names = {*now, *before}
            differ = 0.5 * sum(abs(now.get(n, 0.0) - before.get(n, 0.0)) for n in names)
            cost += DISAGREE * differ
        return cost if cost <= self.gate + (stamp - track.stamp) else FAR


class ClassMemory:
    """Settles the classes of the objects of one camera, frame by frame.

    memory: what earlier frames count, per frame; change: log odds that a name needs over the one in
    use.
    """

    def __init__(self, memory: float = MEMORY, change: float = CHANGE) -> None:
        self.memory, self.change = memory, change
        self._tracker = _Follower()

    def reset(self) -> None:
        """Forget all."""
        self._tracker.reset()

    def camera_moved(self, camera_from_before: np.ndarray, camera: Camera) -> None:
        """See `IdentityTracker.camera_moved`."""
        self._tracker.camera_moved(camera_from_before, camera)

    def settle(
        self,
        stamp: float,
        observations: Iterable[Observation],
        probabilities: Mapping[int, Mapping[str, float]],
    ) -> dict[int, Named]:
        """Name the observations of a frame, by label; those of which nothing is known are missing.

        Observations that have a name keep it, and are remembered by it when they have none later
        on. probabilities: the encoder's for the others: label -> name -> probability.
        """
        observations = list(observations)
        given = {one.label: one.name for one in observations}
        self._tracker.shares = {
            label: {name: 1.0} if name else probabilities.get(label, {})
            for label, name in given.items()
        }
        # followed without names: an object is to be found again whatever it was called
        tracks = self._tracker.begin_frame(stamp, [replace(one, name="") for one in observations])
        result = {}
        for label, track in tracks.items():
            opinion = self._tracker.opinions.setdefault(track, _Opinion())
            before, told = opinion.name, opinion.told
            if given[label]:
                opinion.name, opinion.told = given[label], True
                probability = 1.0
            elif told:
                probability = 1.0
            elif probabilities.get(label):
                probability = self._guess(opinion, probabilities[label])
            else:
                continue
            corrected = before is not None and before != opinion.name and not told
            result[label] = Named(opinion.name, probability, track, corrected)
        return result

    def _guess(self, opinion: _Opinion, probabilities: Mapping[str, float]) -> float:
        """Add to an opinion what the encoder says in this frame; the probability of its name."""
        logs = opinion.logs
        opinion.frames = self.memory * opinion.frames + 1.0
        for name in {*logs, *probabilities}:
            share = np.clip(probabilities.get(name, 0.0), 1.0 - SURE, SURE)
            logs[name] = self.memory * logs.get(name, 0.0) + float(np.log(share))
        best = max(logs, key=logs.__getitem__)
        if opinion.name is None or logs[best] - logs[opinion.name] > self.change:
            opinion.name = best
        return opinion.shares()[opinion.name]
