# SPDX-License-Identifier: Apache-2.0
"""Stable ids from frame to frame, although masks are renumbered in each.

Per frame: `begin_frame` matches what is seen to the tracks, by class and by where each track should
be now; the pipeline refines, starting from the tracks' poses; `weigh` says which of several poses
that fit is to be believed, and `end_frame` stores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point, inverse, rotated, twist_between
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.tracking.belief import rivals, weigh
from pose_refiner_ros.tracking.sighting_memory import SightingMemory

SMOOTHING = 0.5  # weight of the newest velocity in the running mean
JUMP = np.pi / 4  # radians from one pose to the next: a correction of the estimate, not a motion
LONGEST_STEP = 0.5  # seconds that a motion is believed to go on without a pose that confirms it
SETTLED = 0.9  # belief in a pose found in full view, from which it needs no more fresh searches
FAR = 1e6  # cost of a pair that may not be matched


@dataclass(frozen=True)
class Observation:
    """An object in the image: its label in the masks, its class, where its mask lies."""

    label: int
    name: str  # of the object in the library
    center_px: tuple[float, float]  # (x, y) centroid of the mask
    size_px: float  # diagonal of the mask's box: the object's diameter as it appears
    caller_id: int | None = None  # an id that the caller keeps stable itself; used as it is
    camera: str = ""  # in whose pixels that is; of several, the first, the reference, is ""


@dataclass(eq=False)
class Track:
    """An object that is followed."""

    name: str
    id: int  # unique within the class
    stamp: float  # seconds, when it was seen last
    center_px: np.ndarray  # (2,)
    size_px: float
    velocity_px: np.ndarray = field(default_factory=lambda: np.zeros(2))  # per second
    pose: np.ndarray | None = None  # last refined camera_from_object (4, 4)
    pose_stamp: float = 0.0
    belief: float = 1.0  # in that pose
    searched: float = (
        -np.inf
    )  # seconds, when its pose was last searched for without the track's help
    settled: bool = False  # that search, with the object in full view, agreed with the track
    rivals: list[tuple[np.ndarray, float]] = field(default_factory=list)  # other poses, beliefs
    velocity: np.ndarray | None = None  # (6,) m/s and rad/s, camera axes, about the middle
    middle: np.ndarray = field(default_factory=lambda: np.zeros(3))  # of the object, its frame
    memory: SightingMemory = field(default_factory=SightingMemory)
    camera: str = ""  # in whose pixels it is followed

    def predicted_center(self, stamp: float) -> np.ndarray:
        """(2,) pixels where its mask should be, moving as it did."""
        return self.center_px + self.velocity_px * (stamp - self.stamp)

    def predicted_pose(self, stamp: float) -> np.ndarray | None:
        """camera_from_object (4, 4) where it should be, or None before it had a pose."""
        return None if self.pose is None else self._moved_on(self.pose, stamp)

    def known(self, stamp: float) -> list[tuple[np.ndarray, float]]:
        """All poses still held possible, moved on to this frame, and the belief in each; the one
        believed in most first."""
        if self.pose is None:
            return []
        poses = [(self.pose, self.belief), *self.rivals]
        return [(self._moved_on(pose, stamp), belief) for pose, belief in poses]

    def initial_poses(self, stamp: float) -> list[np.ndarray]:
        """Hypotheses for this frame, likeliest first."""
        return [pose for pose, _ in self.known(stamp)]

    def camera_moved(self, camera_from_before: np.ndarray, camera: Camera) -> None:
        """See it from where the camera is now: what is left of its motion is its own."""
        ray = np.append(camera.rays(self.center_px), 0.0)  # far away, where no pose is known
        if self.pose is not None:
            ray = np.append(about_point(self.pose, self.middle)[:3, 3], 1.0)
            self.pose = camera_from_before @ self.pose
        self.rivals = [(camera_from_before @ pose, belief) for pose, belief in self.rivals]
        if self.velocity is not None:
            self.velocity = np.kron(np.eye(2), camera_from_before[:3, :3]) @ self.velocity
        if self.camera:
            return  # its pixels are another camera's
        before, now = ray[:3], (camera_from_before @ ray)[:3]
        shift = camera.project(now) - camera.project(before)
        if np.isfinite(shift).all():
            self.center_px = self.center_px + shift
            self.size_px *= float(np.linalg.norm(before) / np.linalg.norm(now))

    def _moved_on(self, pose: np.ndarray, stamp: float) -> np.ndarray:
        if self.velocity is None:
            return pose
        step = self.velocity * min(stamp - self.pose_stamp, LONGEST_STEP)
        moved = rotated(about_point(pose, self.middle), step[3:])
        moved[:3, 3] += step[:3]
        behind = not self.camera and moved[2, 3] <= 0  # of another camera that may well be in view
        return pose if behind else about_point(moved, -self.middle)


class IdentityTracker:
    """Follows objects through the frames of one camera.

    library: gives the symmetries; without it a symmetric object may turn to an equivalent pose from
    one frame to the next. lost_after: seconds unseen until a track ends. reuse_after: seconds until
    another object may get its id. gate: how far, in apparent diameters, an object may be from where
    it was expected; another one for each second that it was not seen.
    """

    def __init__(
        self,
        library: Mapping[str, ObjectModel] | None = None,
        lost_after: float = 1.0,
        reuse_after: float = 60.0,
        gate: float = 0.75,
        settle_every: float = 0.3,
        look_again_after: float = 3.0,
    ):
        self.library = library or {}
        self.lost_after, self.reuse_after, self.gate = lost_after, reuse_after, gate
        self.settle_every, self.look_again_after = settle_every, look_again_after
        self.reset()

    def reset(self) -> None:
        """Forget all tracks and ids."""
        self.tracks: dict[tuple[str, int], Track] = {}
        self._stamp = -np.inf
        self._cameras: Mapping[str, tuple[Camera, np.ndarray]] = {}
        self._current: dict[int, Track] = {}  # label -> track, of the frame in work
        self._last_used: dict[tuple[str, int], float] = {}  # ended (class, id) -> stamp

    def camera_moved(self, camera_from_before: np.ndarray, camera: Camera) -> None:
        """The camera is not where it was in the frame before: (4, 4), how that one lies now."""
        for track in self.tracks.values():
            track.camera_moved(camera_from_before, camera)

    def forget_sightings(self) -> None:
        """What was seen before is no evidence any more: the frame that stood still did not."""
        for track in self.tracks.values():
            track.memory = SightingMemory()

    def seen_before(
        self,
        stamp: float,
        observations: Iterable[Observation],
        cameras: Mapping[str, tuple[Camera, np.ndarray]],
    ) -> dict[int, Track]:
        """The track that each observation of one camera looks like, by label, before a frame
        begins; cameras: see `begin_frame`."""
        self._cameras = cameras
        found = {}
        for name, seen in _by_class(observations).items():
            tracks = [track for track in self.tracks.values() if track.name == name]
            for observation, track in self._match(seen, tracks, stamp):
                if track is not None:
                    found[observation.label] = track
        return found

    def begin_frame(
        self,
        stamp: float,
        observations: Iterable[Observation],
        cameras: Mapping[str, tuple[Camera, np.ndarray]] | None = None,
    ) -> dict[int, Track]:
        """The track of each observation, by label; new ones where none fits.

        stamp: of the image, seconds. One that jumps back (a bag that starts again) resets all.
        cameras: of several, each with its reference_from_camera (4, 4): an object keeps its track
        where it passes from the view of one into that of another.
        """
        if stamp < self._stamp:
            self.reset()
        self._stamp, self._cameras = stamp, cameras or {}
        self._end_lost(stamp)
        self._current = {}
        unnumbered = []
        for observation in observations:
            if observation.caller_id is None:
                unnumbered.append(observation)
                continue
            key = (observation.name, observation.caller_id)
            self._assign(observation, self.tracks.get(key), stamp, observation.caller_id)
        for name, seen in _by_class(unnumbered).items():
            taken = set(map(id, self._current.values()))
            tracks = [t for t in self.tracks.values() if t.name == name and id(t) not in taken]
            for observation, track in self._match(seen, tracks, stamp):
                self._assign(observation, track, stamp)
        return dict(self._current)

    def end(self, track: Track) -> None:
        """Follow this object no longer, before a frame begins."""
        self.tracks.pop((track.name, track.id), None)

    def due_for_search(self) -> int | None:
        """The label of this frame, if any, whose pose should be searched for afresh.

        A track that began with a wrong pose would confirm it for ever: one track per frame is
        looked at with fresh eyes, those not settled first, settled ones once in a while.
        """
        due = [
            (track.settled, track.searched, label)
            for label, track in self._current.items()
            if track.pose is not None
            and self._stamp - track.searched
            > (self.look_again_after if track.settled else self.settle_every)
        ]
        return min(due)[2] if due else None

    def weigh(
        self, label: int, found: Sequence[tuple[np.ndarray, float]], searched: bool, in_view: bool
    ) -> np.ndarray:
        """Beliefs (N,) in the poses (4, 4) found for a label, given with the frame's own beliefs,
        after all frames of its track. The best but one are followed as rivals of the pose that
        `end_frame` gets. searched: they were looked for afresh; in_view: little was hidden."""
        track = self._current[label]
        model = self.library.get(track.name)
        symmetries = model.symmetries if model is not None else Symmetries()
        beliefs = weigh(found, track.known(self._stamp), symmetries)
        best = int(beliefs.argmax())
        if searched or track.pose is None:
            track.searched = self._stamp
            # by what this frame alone says: a track must not confirm itself
            track.settled = in_view and found[best][1] > SETTLED
        (_, track.belief), *track.rivals = rivals(found, beliefs, symmetries)
        return beliefs

    def end_frame(self, poses: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Store the refined camera_from_object (4, 4) by label; give back the poses to publish.

        A symmetric object's pose is exchanged for the equivalent one nearest to the track's, so
        that it does not flip. Leave out poses that should not be followed.
        """
        result = {}
        for label, pose in poses.items():
            track = self._current[label]
            pose = np.array(pose, dtype=np.float64)
            expected = track.predicted_pose(self._stamp)
            model = self.library.get(track.name)
            if expected is not None and model is not None:
                pose = model.symmetries.closest_equivalent(pose, expected)
            _update_pose(track, pose, self._stamp)
            result[label] = pose
        return result

    def _match(
        self, seen: list[Observation], tracks: list[Track], stamp: float
    ) -> list[tuple[Observation, Track | None]]:
        """Each observation with its track or None: least sum of distances, within the gates."""
        cost = np.full((len(seen), len(tracks)), FAR)
        for i, observation in enumerate(seen):
            for j, track in enumerate(tracks):
                cost[i, j] = self._cost(observation, track, stamp)
        track_of = {
            i: tracks[j]
            for i, j in zip(*linear_sum_assignment(cost), strict=True)
            if cost[i, j] < FAR
        }
        return [(observation, track_of.get(i)) for i, observation in enumerate(seen)]

    def _cost(self, observation: Observation, track: Track, stamp: float) -> float:
        """How little an observation looks like a track; FAR where it cannot be that."""
        expected = self._expected(track, observation.camera, stamp)
        if expected is None:
            return FAR
        center, size_px = expected
        size = max(observation.size_px, size_px, 1.0)
        away = np.linalg.norm(center - observation.center_px) / size
        if not away <= self.gate + (stamp - track.stamp):
            return FAR
        growth = abs(np.log(max(observation.size_px, 1.0) / max(size_px, 1.0)))
        return float(away + 0.5 * growth)

    def _expected(self, track: Track, camera: str, stamp: float) -> tuple[np.ndarray, float] | None:
        """Where a camera should see the track's mask, (2,) pixels, and how large; None if nobody
        knows. Between cameras that follows from the pose."""
        if camera == track.camera and not (camera and track.pose is not None):
            return track.predicted_center(stamp), track.size_px
        model, pose = self.library.get(track.name), track.predicted_pose(stamp)
        if model is None or pose is None or camera not in self._cameras:
            return None
        lens, reference_from_camera = self._cameras[camera]
        middle = about_point(inverse(reference_from_camera) @ pose, track.middle)[:3, 3]
        distance = max(float(np.linalg.norm(middle)), 1e-6)
        return lens.project(middle), float(lens.intrinsics[0, 0]) * model.diameter / distance

    def _assign(
        self,
        observation: Observation,
        track: Track | None,
        stamp: float,
        caller_id: int | None = None,
    ) -> None:
        center = np.array(observation.center_px, dtype=np.float64)
        if track is None:
            number = self._free_id(observation.name, stamp) if caller_id is None else caller_id
            track = Track(observation.name, number, stamp, center, observation.size_px)
            track.camera = observation.camera
            if observation.name in self.library:
                track.middle = self.library[observation.name].box_center
            self.tracks[(track.name, track.id)] = track
        elif stamp > track.stamp:
            moved = (center - track.center_px) / (stamp - track.stamp)
            track.velocity_px = track.velocity_px + SMOOTHING * (moved - track.velocity_px)
            track.center_px, track.size_px, track.stamp = center, observation.size_px, stamp
            if track.camera != observation.camera:
                track.camera, track.velocity_px = observation.camera, np.zeros(2)
        self._current[observation.label] = track

    def _end_lost(self, stamp: float) -> None:
        for key, track in list(self.tracks.items()):
            if stamp - track.stamp > self.lost_after:
                del self.tracks[key]
                self._last_used[key] = track.stamp
        self._last_used = {
            key: last for key, last in self._last_used.items() if stamp - last <= self.reuse_after
        }

    def _free_id(self, name: str, stamp: float) -> int:
        number = 1
        while (name, number) in self.tracks or (name, number) in self._last_used:
            number += 1
        return number


def observe(masks: np.ndarray, names: Mapping[int, str]) -> list[Observation]:
    """The observations of a label image (H, W), for the labels that have a name."""
    observations = []
    for label, name in names.items():
        mask = (masks == label).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if width == 0:
            continue
        moments = cv2.moments(mask[y : y + height, x : x + width], binaryImage=True)
        center = (x + moments["m10"] / moments["m00"], y + moments["m01"] / moments["m00"])
        observations.append(Observation(label, name, center, float(np.hypot(width, height))))
    return observations


def _by_class(observations: Iterable[Observation]) -> dict[str, list[Observation]]:
    found: dict[str, list[Observation]] = {}
    for observation in observations:
        found.setdefault(observation.name, []).append(observation)
    return found


def _update_pose(track: Track, pose: np.ndarray, stamp: float) -> None:
    seconds = stamp - track.pose_stamp
    if track.pose is not None and seconds > 0:
        step = twist_between(*(about_point(one, track.middle) for one in (track.pose, pose)))
        moved = step / seconds
        if np.linalg.norm(step[3:]) > JUMP:
            track.velocity = None
        else:
            before = moved if track.velocity is None else track.velocity
            track.velocity = before + SMOOTHING * (moved - before)
    track.pose, track.pose_stamp = pose, stamp
