# SPDX-License-Identifier: Apache-2.0
"""All objects of a frame in one common frame, and virtual cameras that look at it.

The paper's scene (Palazzi et al. 2018, Fig. 4b and Fig. 7). Axes of the scene follow REP-103: x
forward, y left, z up, metres, the ground at z = 0. From a ground plane, the origin lies on the
ground under the camera and x runs along the optical axis; a TF frame brings its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pose_refiner_ros.frame import Report, log_warning, pose_problem
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid

if TYPE_CHECKING:
    from pose_refiner_ros.frame import ObjectPose

VIEWS = ("birds_eye", "chase", "camera", "custom")
CHASE_PITCH = math.radians(30.0)
BIRDS_EYE_FOV = math.radians(25.0)  # narrow, so that distances are nearly to scale
CHASE_FOV = math.radians(40.0)
MARGIN = 0.06  # of the picture, free on each side of what is framed
_SMALLEST = 1e-6  # metres, or without unit: what is smaller counts as zero


class SceneError(ValueError):
    """A ground plane, a frame or a view that cannot be used; the message says what to do."""


@dataclass(frozen=True, eq=False)
class GroundPlane:
    """The ground as the camera sees it: the points p with normal @ p + height = 0.

    Attributes:
        normal: (3,) unit vector, camera axes, upwards.
        height: of the camera above the ground, metres, positive.

    Raises:
        SceneError: for anything that is no such plane.
    """

    normal: np.ndarray
    height: float

    def __post_init__(self) -> None:
        normal = _numbers(self.normal, (3,), "the ground's normal")
        length = np.linalg.norm(normal)
        if length < _SMALLEST:
            raise SceneError("the ground's normal is zero: give the direction that points up")
        if not np.isfinite(self.height):
            raise SceneError(f"the camera's height is {self.height}: give metres above the ground")
        if self.height < _SMALLEST:
            raise SceneError(
                f"the camera's height is {self.height:g} m: it must be above the ground"
            )
        object.__setattr__(self, "normal", normal / length)
        object.__setattr__(self, "height", float(self.height))

    @classmethod
    def from_height_and_pitch(cls, height: float, pitch: float, roll: float = 0.0) -> GroundPlane:
        """The plane under a camera of known mounting.

        Args:
            height: metres above the ground.
            pitch: radians by which the optical axis points below the horizon, within a right angle.
            roll: radians by which the camera leans to its right, about the optical axis.
        """
        for name, angle, limit in (("pitch", pitch, 0.5 * math.pi), ("roll", roll, math.pi)):
            if not abs(angle) <= limit + 1e-9:  # not NaN either
                raise SceneError(
                    f"the camera's {name} is {angle:g} rad ({math.degrees(angle):g} degrees): it "
                    f"must lie within ±{math.degrees(limit):g} degrees"
                )
        level = math.cos(pitch)
        up = (-level * math.sin(roll), -level * math.cos(roll), -math.sin(pitch))
        return cls(np.array(up), height)

    @classmethod
    def from_plane(cls, normal: Sequence[float], offset: float) -> GroundPlane:
        """The plane normal @ p + offset = 0 in camera axes, metres; either sign, any length."""
        normal = _numbers(normal, (3,), "the ground's normal")
        length = np.linalg.norm(normal)
        if length < _SMALLEST or not np.isfinite(offset):
            raise SceneError(
                f"{_text(normal)} {offset:g} is no plane: give a b c d of a x + b y + c z + d = 0 "
                "in camera axes, with a b c not all zero"
            )
        if abs(offset) / length < _SMALLEST:
            raise SceneError(
                "the ground plane goes through the camera (d = 0): it must lie below it; give "
                "a b c d in camera axes (x right, y down, z forward), metres"
            )
        # The camera is above the ground, whichever way the normal was meant.
        return cls(math.copysign(1.0, offset) * normal, abs(offset) / length)


def scene_from_camera(plane: GroundPlane) -> np.ndarray:
    """(4, 4): origin on the ground under the camera, x the way it looks, z up.

    For a camera that looks straight down, x is the top of its image."""
    up = plane.normal
    for ahead in ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0)):
        forward = np.array(ahead) - up * np.dot(up, ahead)
        length = np.linalg.norm(forward)
        if length > 1e-4:
            break
    forward /= length
    return rigid(np.stack([forward, np.cross(up, forward), up]), (0.0, 0.0, plane.height))


@dataclass(frozen=True, eq=False)
class SceneObject:
    """An object in the common frame. id: the label in the mask, or what a tracker calls it."""

    name: str
    id: int
    scene_from_object: np.ndarray  # (4, 4) float64
    quality: str = ""  # as in ObjectPose

    @property
    def position(self) -> np.ndarray:
        """(3,) of the object's origin, metres; z is its height above the ground."""
        return self.scene_from_object[:3, 3]

    @property
    def heading(self) -> float:
        """Radians from the scene's x axis to the object's, about z; left is positive."""
        return math.atan2(self.scene_from_object[1, 0], self.scene_from_object[0, 0])


@dataclass(frozen=True, eq=False)
class Scene:
    """The objects of a frame, and the camera that saw them."""

    objects: Sequence[SceneObject]
    scene_from_camera: np.ndarray  # (4, 4)
    camera: Camera


def compose(
    poses: Sequence[ObjectPose],
    scene_from_camera: np.ndarray,
    ids: Mapping[int, int] | None = None,
    report: Report = log_warning,
) -> list[SceneObject]:
    """The objects in the common frame. One transform moves all of them, so how they stand to each
    other is kept.

    Args:
        poses: what has label, name, quality and camera_from_object (4, 4), as ObjectPose.
        scene_from_camera: (4, 4).
        ids: label -> id; labels that are missing stand for themselves.
        report: hears why an object is left out: no finite rigid pose, or behind the camera.

    Raises:
        SceneError: scene_from_camera is not a rigid transform.
    """
    transform = np.asarray(scene_from_camera, np.float64)
    if transform.shape != (4, 4) or not np.isfinite(transform).all():
        raise SceneError(f"scene_from_camera must be 4x4 numbers, got {transform.tolist()}")
    ids = ids or {}
    objects = []
    for pose in poses:
        camera_from_object = np.asarray(pose.camera_from_object, np.float64)
        problem = pose_problem(camera_from_object)
        if problem:
            report(pose.label, f"{pose.name} is not in the scene: {problem}")
            continue
        objects.append(
            SceneObject(
                pose.name,
                ids.get(pose.label, pose.label),
                transform @ camera_from_object,
                getattr(pose, "quality", ""),
            )
        )
    return objects


class View(NamedTuple):
    """A virtual camera and where it stands."""

    camera: Camera
    camera_from_scene: np.ndarray  # (4, 4)

    @property
    def eye(self) -> np.ndarray:
        """(3,) its position in the scene."""
        return -self.camera_from_scene[:3, :3].T @ self.camera_from_scene[:3, 3]


def birds_eye(points: np.ndarray, size: tuple[int, int]) -> View:
    """Straight from above, the scene's x axis up in the picture, all points (N, 3) in view.

    What is framed is rounded outwards to the ground's grid, so that a video does not shake."""
    down = np.array([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    return _framed(points, down, BIRDS_EYE_FOV, size)


def chase(points: np.ndarray, heading: float, size: tuple[int, int]) -> View:
    """From behind and above, towards a heading (radians about z), all points (N, 3) in view."""
    direction = np.array(
        [
            math.cos(heading) * math.cos(CHASE_PITCH),
            math.sin(heading) * math.cos(CHASE_PITCH),
            -math.sin(CHASE_PITCH),
        ]
    )
    return _framed(points, _looking_along(direction), CHASE_FOV, size)


def look_at(
    eye: Sequence[float],
    target: Sequence[float],
    size: tuple[int, int],
    fov: float = math.radians(50.0),
) -> View:
    """From a point towards another, scene axes, metres. fov: radians across the picture's width.

    Raises:
        SceneError: the points are equal or not finite, or fov is not within 1 and 170 degrees.
    """
    eye = _numbers(eye, (3,), "the view's position")
    target = _numbers(target, (3,), "the view's target")
    if np.linalg.norm(target - eye) < _SMALLEST:
        raise SceneError(f"the view looks from {_text(eye)} at itself: give two different points")
    if not math.radians(1.0) <= fov <= math.radians(170.0):
        raise SceneError(
            f"the view's field of view is {math.degrees(fov):g} degrees: give 1 to 170"
        )
    rotation = _looking_along(target - eye)
    height, width = size
    return View(_pinhole(0.5 * width / math.tan(0.5 * fov), size), _placed(rotation, eye))


def through_camera(
    camera: Camera, scene_from_camera: np.ndarray, size: tuple[int, int] | None = None
) -> View:
    """From where the real camera is, all of its image in view; without its lens distortion."""
    height, width = size or camera.size
    scale = min(height / camera.height, width / camera.width)
    intrinsics = np.diag([camera.fx * scale, camera.fy * scale, 1.0])
    intrinsics[0, 2] = (camera.cx + 0.5 - 0.5 * camera.width) * scale + 0.5 * width - 0.5
    intrinsics[1, 2] = (camera.cy + 0.5 - 0.5 * camera.height) * scale + 0.5 * height - 0.5
    return View(Camera(intrinsics, (height, width)), np.linalg.inv(scene_from_camera))


def framed_box(points: np.ndarray) -> np.ndarray:
    """(2, 3): least and greatest x, y, z of points (N, 3), rounded outwards to the grid."""
    points = np.asarray(points, np.float64)
    low, high = points.min(0), points.max(0)
    step = grid_step(high - low)
    low[:2] = step * np.floor(low[:2] / step)
    high[:2] = step * np.ceil(high[:2] / step)
    return np.stack([low, high])


def grid_step(extent: np.ndarray) -> float:
    """Metres between the lines of a grid for a scene of that extent: 1, 2 or 5 times a power of
    ten, about six to fifteen of them."""
    wanted = max(float(np.max(extent)), 1e-3) / 6.0
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(n * power for n in (5.0, 2.0, 1.0) if n * power <= wanted * (1 + 1e-9))


def _framed(points, rotation: np.ndarray, fov: float, size: tuple[int, int]) -> View:
    """The nearest camera of that rotation that has all of the points' box in view.

    A point (x, y, z) in the camera's axes is within the picture's width if
    |x - cx| <= t (z - cz). Both sides together bound the camera's place (cx, cz) by the extremes
    of x - t z and x + t z; likewise for y."""
    low, high = framed_box(points)
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(-1, 3)
    x, y, z = (corners @ rotation.T).T
    height, width = size
    focal = 0.5 * max(size) / math.tan(0.5 * fov)
    place = np.zeros(3)
    place[2] = z.min() - 0.5
    for axis, across, side in ((0, x, width), (1, y, height)):
        t = 0.5 * (1.0 - 2.0 * MARGIN) * side / focal
        left, right = (across - t * z).max(), (across + t * z).min()
        place[axis] = 0.5 * (left + right)
        place[2] = min(place[2], (right - left) / (2.0 * t))
    return View(_pinhole(focal, size), _placed(rotation, rotation.T @ place))


def _pinhole(focal: float, size: tuple[int, int]) -> Camera:
    height, width = size
    cx, cy = 0.5 * width - 0.5, 0.5 * height - 0.5
    return Camera(np.array([[focal, 0.0, cx], [0.0, focal, cy], [0.0, 0.0, 1.0]]), size)


def _looking_along(direction: np.ndarray) -> np.ndarray:
    """(3, 3) from scene to camera axes, the horizon level; straight down, x is up."""
    forward = direction / np.linalg.norm(direction)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    if np.linalg.norm(right) < 1e-4:
        right = np.array([0.0, -1.0, 0.0])
    right = right / np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


def _placed(rotation: np.ndarray, eye: np.ndarray) -> np.ndarray:
    return rigid(rotation, -rotation @ eye)


def _numbers(values, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise SceneError(f"{what} must be {shape[0]} numbers, got {values!r}") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise SceneError(f"{what} must be {shape[0]} finite numbers, got {values!r}")
    return array


def _text(values) -> str:
    return " ".join(f"{float(value):g}" for value in values)
