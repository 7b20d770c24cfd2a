# SPDX-License-Identifier: Apache-2.0
"""Where a camera is in a scene that has a radiance field, from its photos alone (iNeRF, 2021).

The refinement needs a start: where the camera was a moment ago, or where someone says it is, near
enough that it would see much the same part of the scene. Where there is none, or it leads nowhere,
features of the photo are found again in the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse, skew, transform_problem
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.feature_matches import (
    FeatureMatcher,
    MatchedPose,
)
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_image
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import (
    WRONG_COLOURS,
    contradicts,
    correlation,
    restart_angle,
)
from pose_refiner_ros.settings import Settings

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

IN_VIEW = 0.5  # of a photo must be of the scene
NAME = "scene"


class LocalisationError(ValueError):
    """A scene field, start pose or photo that cannot be used, with the reason."""


@dataclass(frozen=True, eq=False)
class CameraPose:
    """Where a camera is, OpenCV axes.

    scene_from_camera (4, 4) float64; covariance (6, 6), translation first, along the scene's axes
    about the camera, as ROS has it; photo_rms: robust RMS difference of the scene's colours and the
    photo's; lost: why it should not be believed, "" where it should.
    """

    scene_from_camera: np.ndarray
    covariance: np.ndarray
    photo_rms: float
    lost: str = ""


class SceneLocaliser:
    """Finds cameras in one scene. settings: rays, their sampling, exposure, and whether features
    are used (`init`).

    Raises LocalisationError for a field that is no grid. Kernels compile at the first use, or by
    `warm_up`.
    """

    def __init__(
        self, field: GridField, settings: Settings | None = None, device: str = "cpu"
    ) -> None:
        if field.kind != "grid":
            raise LocalisationError(
                f"a scene's field of kind {field.kind!r} is too slow for a robot: train it with "
                "`pose-refiner field train --kind grid`"
            )
        self.field = field
        self.settings = settings or Settings()
        self._refiner = Refiner([field_model(NAME, field)], device, 16, settings)
        self._features = None if field.features is None else FeatureMatcher(field.features)

    def warm_up(self) -> None:
        """Compile the kernels, which no photo should have to wait for."""
        camera = Camera(np.array([[60.0, 0, 31.5], [0, 60.0, 31.5], [0, 0, 1]]), (64, 64))
        middle = np.eye(4)
        middle[:3, 3] = self.field.bounds.mean(axis=0)
        self.locate(np.zeros((64, 64, 3), np.uint8), camera, [middle])

    def locate(
        self,
        image: np.ndarray,
        camera: Camera,
        starts: Sequence[np.ndarray] = (),
        tracked: bool = False,
    ) -> CameraPose:
        """The best pose that is reached from the starts, scene_from_camera (4, 4) each; from
        features where there is none, or where that pose is doubtful.

        image: (H, W, 3) uint8 RGB; tracked: the starts are those of the photo before, so that a few
        iterations will do, and nothing else is tried. Raises LocalisationError for a start that is
        no pose, and without a start where features do not tell one; CameraError and
        ObservationError for a photo that is of no use.
        """
        seen = observe_image(image, camera)
        found: list[Hypothesis] = []
        if len(starts):
            poses = [inverse(checked_pose(pose)) for pose in starts]
            found.append(self._refined(seen, poses, tracked))
            if tracked or not is_doubtful(found[0], seen):
                return _camera_pose(found[0])
        matched, why = self._by_features(image, camera)
        if not matched and not found:
            raise LocalisationError(f"there is no start pose to find the camera from: {why}")
        if matched:
            poses = [one.camera_from_object for one in matched]
            found.append(self._refined(seen, poses, tracked=True))  # mostly near enough for that
            if is_doubtful(found[-1], seen):
                found.append(self._refined(seen, poses))
        return _camera_pose(min(found, key=lambda one: (bool(lost_because(one)), one.cost)))

    def _by_features(self, image: np.ndarray, camera: Camera) -> tuple[list[MatchedPose], str]:
        """Poses camera_from_scene, or why there is none."""
        if self.settings.init == "views":
            return [], "init is 'views', and a scene has none"
        if self._features is None:
            return [], (
                "the field has no features of its photos: train it anew with `pose-refiner field "
                "train`"
            )
        poses = self._features.poses(image, camera)
        return poses, "" if poses else "too few features of the photo are found again"

    def _refined(
        self, seen: Observation, poses: Sequence[np.ndarray], tracked: bool = False
    ) -> Hypothesis:
        """The best that is reached from poses, camera_from_scene."""
        hypotheses = [Hypothesis(NAME, pose) for pose in poses]
        (found,) = self._refiner.refine([[seen]], [hypotheses], 1, tracked)
        if not found:
            raise LocalisationError(
                "no start pose leads anywhere: none shows anything of the scene"
            )
        return found[0]


def is_doubtful(found: Hypothesis, seen: Observation) -> bool:
    """Whether something else is worth trying: it is lost, or may sit in a local minimum."""
    return bool(lost_because(found)) or restart_angle(found, [seen]) is not None


def lost_because(found: Hypothesis) -> str:
    """Why the pose of a scene's camera should not be believed, "" where it should."""
    rms, in_view = float(found.fits["radiance"].colour_rms), float(found.fits["radiance"].covered)
    if in_view < IN_VIEW:
        return f"it would see the scene in {in_view:.0%} of its photo only"
    if contradicts(found):
        return (
            f"the colours are off by {rms:.2f}, more than {WRONG_COLOURS:g}, and their pattern is "
            f"another, correlation {correlation(found):.2f}"
        )
    return ""


class SceneTracker:
    """Follows one camera from photo to photo.

    first: scene_from_camera (4, 4) where it starts; tried again when it was lost.
    """

    def __init__(self, localiser: SceneLocaliser, first: np.ndarray | None = None) -> None:
        self.localiser = localiser
        self.first = None if first is None else checked_pose(first)
        self._last: np.ndarray | None = None
        self._told: np.ndarray | None = None

    def reset(self) -> None:
        """Forget where it was."""
        self._last = self._told = None

    def begin_at(self, scene_from_camera: np.ndarray) -> None:
        """Look for it here first, until it is found. LocalisationError for what is no pose."""
        self._told = checked_pose(scene_from_camera)

    def follow(self, image: np.ndarray, camera: Camera) -> CameraPose:
        """Where it is now. Raises as `SceneLocaliser.locate`."""
        found = None
        if self._told is not None:
            found = self.localiser.locate(image, camera, [self._told])
        elif self._last is not None:
            found = self.localiser.locate(image, camera, [self._last], tracked=True)
        starts = [pose for pose in (self._last, self.first) if pose is not None]
        if found is None or (found.lost and starts):
            found = self.localiser.locate(image, camera, starts)
        if not found.lost:
            self._last, self._told = found.scene_from_camera, None
        return found


def field_model(name: str, field: GridField) -> ObjectModel:
    """What a radiance field alone is to the refiner: its box stands for a shape that no mask is
    compared with."""
    low, high = field.occupied_bounds
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    vertices = (low + corners * (high - low)).astype(np.float32)
    faces = np.array(
        [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
         [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]], np.int32
    )  # fmt: skip
    return ObjectModel(name, Mesh(vertices, faces), field=field)


def checked_pose(pose: np.ndarray) -> np.ndarray:
    """A rigid transform (4, 4) float64. Raises LocalisationError."""
    pose = np.asarray(pose, np.float64)
    problem = transform_problem(pose)
    if problem:
        raise LocalisationError(f"a start pose cannot be used: {problem}")
    return pose


def _camera_pose(found: Hypothesis) -> CameraPose:
    camera_from_scene = found.reference_from_object
    covariance = _about_camera(camera_from_scene, found.covariance)
    rms = float(found.fits["radiance"].colour_rms)
    return CameraPose(inverse(camera_from_scene), covariance, rms, lost_because(found))


def _about_camera(camera_from_scene: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(6, 6) of the camera's pose along the scene's axes, from that of the scene's pose along the
    camera's. With R' = exp(w) R and t' = t + v the camera, at c = -Rᵀt, moves by -Rᵀ(v + t x w) and
    turns by -Rᵀw."""
    scene_from_camera = camera_from_scene[:3, :3].T
    move = np.zeros((6, 6))
    move[:3, :3] = move[3:, 3:] = -scene_from_camera
    move[:3, 3:] = -scene_from_camera @ skew(camera_from_scene[:3, 3])
    return move @ covariance @ move.T
