# SPDX-License-Identifier: Apache-2.0
"""Where a camera is in a scene that has a radiance field, from its photos alone (iNeRF, 2021).

The refinement needs a start: where the camera was a moment ago, or where someone says it is, near
enough that it would see much the same part of the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.frame import WRONG_COLOURS, colours_differ, transform_problem
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.photometric import colour_difference
from pose_refiner_ros.refinement.photo_evidence import whole_photo

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField
    from pose_refiner_ros.refinement.field_refiner import FieldSettings

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
    """Finds cameras in one scene. settings: rays, their sampling, exposure.

    Raises LocalisationError for a field that is no grid. Kernels compile at the first use.
    """

    def __init__(
        self, field: GridField, settings: FieldSettings | None = None, device: str = "cpu"
    ) -> None:
        from pose_refiner_ros.refinement.field_refiner import FieldRefiner

        if field.kind != "grid":
            raise LocalisationError(
                f"a scene's field of kind {field.kind!r} is too slow for a robot: train it with "
                "`pose-refiner field train --kind grid`"
            )
        self.field = field
        self._refiner = FieldRefiner({NAME: field}, settings, device, capacity=16)

    def locate(
        self,
        image: np.ndarray,
        camera: Camera,
        starts: Sequence[np.ndarray],
        tracked: bool = False,
    ) -> CameraPose:
        """The best pose that is reached from the starts, scene_from_camera (4, 4) each.

        image: (H, W, 3) uint8 RGB; tracked: the starts are those of the photo before, so that a few
        iterations will do. Raises LocalisationError without a start or for one that is no pose,
        CameraError and EvidenceError for a photo that is of no use.
        """
        if not len(starts):
            raise LocalisationError("there is no start pose to find the camera from")
        photo = whole_photo(image, camera, None)
        hypotheses = [np.linalg.inv(checked_pose(pose)) for pose in starts]
        (found,) = self._refiner.refine([photo], [NAME], [hypotheses], 1, tracked)
        best = found[0]
        rms, in_view = colour_difference(self.field, photo, best)
        lost = ""
        if not np.isfinite(best.camera_from_object).all() or in_view < IN_VIEW:
            lost = f"it would see the scene in {in_view:.0%} of its photo only"
        elif colours_differ(rms):
            lost = f"the colours are off by {rms:.2f}, at most {WRONG_COLOURS:g} in a right pose"
        pose = np.linalg.inv(best.camera_from_object)
        return CameraPose(pose, _about_camera(best.camera_from_object, best.covariance), rms, lost)


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


def checked_pose(pose: np.ndarray) -> np.ndarray:
    """A rigid transform (4, 4) float64. Raises LocalisationError."""
    pose = np.asarray(pose, np.float64)
    problem = transform_problem(pose)
    if problem:
        raise LocalisationError(f"a start pose cannot be used: {problem}")
    return pose


def _about_camera(camera_from_scene: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """(6, 6) of the camera's pose along the scene's axes, from that of the scene's pose along the
    camera's. With R' = exp(w) R and t' = t + v the camera, at c = -Rᵀt, moves by -Rᵀ(v + t x w) and
    turns by -Rᵀw."""
    scene_from_camera = camera_from_scene[:3, :3].T
    x, y, z = camera_from_scene[:3, 3]
    move = np.zeros((6, 6))
    move[:3, :3] = move[3:, 3:] = -scene_from_camera
    move[:3, 3:] = -scene_from_camera @ [[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]
    return move @ covariance @ move.T
