# SPDX-License-Identifier: Apache-2.0
"""The JSON of frames that NeRF-synthetic, instant-ngp and nerfstudio share.

`transform_matrix` is world-from-camera, camera axes x right, y up, z backwards (OpenGL's). Pixel
centres lie at half pixels there, at whole pixels here: half a pixel is taken off the principal
point. Intrinsics stand beside the frames or in each of them: fl_x, fl_y, cx, cy, w, h, or
camera_angle_x (radians). Lenses: camera_model PINHOLE, OPENCV (k1 k2 k3 p1 p2) or OPENCV_FISHEYE
(k1 k2 k3 k4); pictures are undistorted to a pinhole with the same intrinsics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.posed_images.reading import (
    PICTURE_SUFFIXES,
    mask_beside,
    picture_scale,
    read_mask,
    read_picture,
    rigid,
)
from pose_refiner_ros.datasets.posed_images.undistort import undistort, undistortion_map
from pose_refiner_ros.datasets.posed_images.views import (
    PosedImages,
    PosedImagesError,
    View,
    stack,
)
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import inverse

OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE")
_POLYNOMIALS = ("OPENCV", "RADIAL", "SIMPLE_RADIAL")
_FISHEYE = "OPENCV_FISHEYE"
_NAMED = 3  # pictures in a warning


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture as the file describes it.

    Attributes:
        name: file_path as written.
        picture: where it lies, or should.
        mask: file that shows the object in white, or None.
        camera_from_world: (4, 4), OpenCV axes, units of the file.
        values: intrinsics: the file's, overridden by the frame's own.
    """

    name: str
    picture: Path
    mask: Path | None
    camera_from_world: np.ndarray
    values: Mapping[str, Any]


def read_transforms(path: Path, unposed: bool = False) -> tuple[dict[str, Any], list[Frame]]:
    """The file's own values, and its frames in the order of the file.

    unposed: frames may be missing, and the pose of any: it is NaN then.

    Raises:
        PosedImagesError: no JSON with frames, or a frame without usable pose.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PosedImagesError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise PosedImagesError(f"{path} is not readable JSON: {error}") from error
    default = [] if unposed else None
    frames = content.pop("frames", default) if isinstance(content, dict) else None
    if not isinstance(frames, list) or not (frames or unposed):
        raise PosedImagesError(f"{path} has no 'frames', a list with one entry per picture")
    return content, [_frame(path, content, i, entry, unposed) for i, entry in enumerate(frames)]


def present_frames(frames: Sequence[Frame], path: Path, warn: Callable[[str], None]) -> list[Frame]:
    """Those frames whose picture is there; warn gets a line about the others.

    Raises:
        PosedImagesError: more than half are missing; `path`, the file of poses, is named.
    """
    there = [frame for frame in frames if frame.picture.is_file()]
    missing = [frame for frame in frames if not frame.picture.is_file()]
    if len(missing) > len(there):
        raise PosedImagesError(
            f"picture {missing[0].picture} is missing, and so are {len(missing)} of the "
            f"{len(frames)} of {path}: put them there or correct file_path"
        )
    if missing:
        names = ", ".join(frame.name for frame in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        warn(
            f"{path}: {len(missing)} of {len(frames)} pictures are missing and left out: {names}"
            f"{more}; if you did not delete them, put them there or correct file_path"
        )
    return there


def load_frames(frames: Sequence[Frame], factor: int = 1) -> PosedImages:
    """Pictures of frames, undistorted, in the units of the file; bounds are NaN.

    Raises:
        PosedImagesError: a picture or mask that cannot be used, or intrinsics.
    """
    views = read_views(frames, lambda frame, size: camera_of(frame.values, size, frame.name))
    return stack(views, len(frames), factor)


def read_views(
    frames: Iterable[Frame], camera_for: Callable[[Frame, tuple[int, int]], Camera]
) -> Iterator[View]:
    """Pictures of frames with their masks, undistorted.

    camera_for: gets a frame and the size (height, width) of its picture.
    """
    map_of = lru_cache(maxsize=1)(undistortion_map)  # frames mostly share their camera
    for frame in frames:
        image, alpha = read_picture(frame.picture)
        mask = frame.mask
        if mask is None and alpha is None:
            mask = mask_beside(frame.picture)
        if mask is not None:
            alpha = read_mask(mask, image.shape[:2], frame.picture)
        camera = camera_for(frame, image.shape[:2])
        weight = None
        if camera.is_distorted:
            image, alpha, weight = undistort(image, alpha, map_of(camera))
        yield View(frame.name, image, alpha, weight, camera.intrinsics, frame.camera_from_world)


def camera_of(values: Mapping[str, Any], size: tuple[int, int], name: str) -> Camera:
    """The camera of a picture of `size` (height, width), centres of pixels at whole numbers.

    Raises:
        PosedImagesError: intrinsics are missing or do not fit the picture.
    """
    height, width = size
    w, h = _number(values, "w", name, width), _number(values, "h", name, height)
    scale_x, scale_y = picture_scale((h, w), size, name)
    fx = _focal(values, "x", w, name)
    if fx is None:
        raise PosedImagesError(f"{name}: the file of poses has neither fl_x nor camera_angle_x")
    fy = _focal(values, "y", h, name)
    fy = fx if fy is None else fy
    cx, cy = _number(values, "cx", name, w / 2), _number(values, "cy", name, h / 2)
    if not (0 <= cx <= w and 0 <= cy <= h):
        raise PosedImagesError(
            f"{name}: the principal point ({cx:g}, {cy:g}) lies outside the picture of "
            f"{w:g}x{h:g}; w and h must be those of the picture that cx and cy belong to"
        )
    K = [[fx * scale_x, 0, cx * scale_x - 0.5], [0, fy * scale_y, cy * scale_y - 0.5], [0, 0, 1]]
    try:
        return Camera(np.array(K), size, *_lens(values, name))
    except CameraError as error:
        raise PosedImagesError(f"{name}: {error}") from error


def _frame(path: Path, content: Mapping[str, Any], index: int, entry: Any, unposed: bool) -> Frame:
    name = entry.get("file_path") if isinstance(entry, Mapping) else None
    if not isinstance(name, str):
        raise PosedImagesError(f"{path}, frame {index}: lacks 'file_path', the name of a picture")
    camera_from_world = np.full((4, 4), np.nan)
    if not unposed or "transform_matrix" in entry:
        pose = rigid(entry.get("transform_matrix"), f"{path}, {name}")
        camera_from_world = inverse(pose @ OPENCV_FROM_OPENGL)
    mask = entry.get("mask_path")
    return Frame(
        name,
        _file(path.parent, name),
        _file(path.parent, mask) if isinstance(mask, str) else None,
        camera_from_world,
        {**content, **entry},
    )


def _file(folder: Path, name: str) -> Path:
    """The file of that name, with or without a suffix, or the path where it should be."""
    path = folder / name.replace("\\", "/")
    candidates = (path, *(path.with_name(path.name + suffix) for suffix in PICTURE_SUFFIXES))
    return next((c for c in candidates if c.is_file()), path)


def _number(values: Mapping[str, Any], key: str, name: str, default: float | None) -> Any:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise PosedImagesError(f"{name}: {key} must be a number, got {value!r}")
    if key in ("w", "h", "fl_x", "fl_y") and value <= 0:
        raise PosedImagesError(f"{name}: {key} is {value:g} pixels, it must be positive")
    return float(value)


def _focal(values: Mapping[str, Any], axis: str, length: float, name: str) -> float | None:
    focal = _number(values, f"fl_{axis}", name, None)
    angle = _number(values, f"camera_angle_{axis}", name, None)
    if focal is not None or angle is None:
        return focal
    if not 0 < angle < math.pi:
        raise PosedImagesError(
            f"{name}: camera_angle_{axis} is {angle:g}, it must lie between 0 and pi (radians)"
        )
    return 0.5 * length / math.tan(0.5 * angle)


def _lens(values: Mapping[str, Any], name: str) -> tuple[str, list[float]]:
    """Distortion model and coefficients as geometry.camera has them."""
    k1, k2, k3, k4, p1, p2 = (
        _number(values, key, name, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2")
    )
    fisheye = bool(values.get("is_fisheye"))
    model = values.get("camera_model") or (_FISHEYE if fisheye else "OPENCV")
    if model == _FISHEYE:
        return "equidistant", [k1, k2, k3, k4]
    if model not in _PINHOLES + _POLYNOMIALS:
        known = ", ".join((*_PINHOLES, *_POLYNOMIALS, _FISHEYE))
        raise PosedImagesError(f"{name}: camera_model {model!r} is not known; known are {known}")
    coefficients = [k1, k2, p1, p2, k3]
    if k4 or (model in _PINHOLES and any(coefficients)):
        raise PosedImagesError(
            f"{name}: camera_model {model} does not go with k1 k2 k3 k4 p1 p2 = "
            f"{k1:g} {k2:g} {k3:g} {k4:g} {p1:g} {p2:g}"
        )
    return "plumb_bob", coefficients
