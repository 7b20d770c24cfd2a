# SPDX-License-Identifier: Apache-2.0
"""A camera from a file: BOP's camera.json, a ROS camera_info YAML, or six numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pose_refiner_ros.geometry.camera import Camera, CameraError

_FORMATS = (
    "known are BOP's camera.json (fx fy cx cy width height), ROS's camera_info YAML "
    "(image_width image_height camera_matrix ...), and a text file of six numbers "
    "'fx fy cx cy width height'"
)


def load_camera(path: str | Path) -> Camera:
    """Camera described by a file, or by the six numbers themselves.

    Formats, told apart by what is in the file:
        - JSON with fx, fy, cx, cy (or cam_K) and width, height, as in BOP's camera.json;
        - YAML as ROS's camera_calibration writes it, or as `ros2 topic echo --once camera_info`
          prints it, with distortion, region of interest and binning;
        - six numbers, `fx fy cx cy width height`, without distortion.

    Raises:
        CameraError: naming the file, what is wrong in it and what to do.
    """
    numbers = str(path).replace(",", " ").split()
    if len(numbers) == 6 and not Path(path).exists():
        try:
            return _from_numbers(*map(float, numbers))
        except CameraError as error:
            raise CameraError(f"camera {str(path)!r}: {error}") from error
        except ValueError:
            pass  # a file's name after all
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CameraError(f"camera file {path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CameraError(f"camera file {path} cannot be read: {error}") from error
    try:
        return _from_text(text)
    except CameraError as error:
        raise CameraError(f"camera file {path}: {error}") from error


def _from_text(text: str) -> Camera:
    words = text.replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return _from_mapping(_parse(text))
    if len(numbers) != 6:
        raise CameraError(f"holds {len(numbers)} numbers, not six; {_FORMATS}")
    return _from_numbers(*numbers)


def _parse(text: str) -> Mapping[str, Any]:
    """JSON or the first document of a YAML file."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as not_json:
        try:
            content = next(yaml.safe_load_all(text), None)
        except yaml.YAMLError as error:
            why = not_json if text.lstrip().startswith("{") else error
            raise CameraError(f"is neither JSON nor YAML ({_one_line(why)}); {_FORMATS}") from error
    if not isinstance(content, Mapping):
        raise CameraError(f"holds no calibration but {_short(content)}; {_FORMATS}")
    return content


def _from_mapping(content: Mapping[str, Any]) -> Camera:
    if "camera_matrix" in content:
        return _from_calibration_file(content)
    if "k" in content or "K" in content:
        return _from_message(content)
    if {"fx", "fy", "cx", "cy"} <= content.keys():
        intrinsics = [content[name] for name in ("fx", "fy", "cx", "cy")]
        return _from_numbers(*intrinsics, *(_get(content, n) for n in ("width", "height")))
    if "cam_K" in content:
        size = _get(content, "height"), _get(content, "width")
        return Camera.from_calibration(size, content["cam_K"])
    if any(isinstance(v, Mapping) and "cam_K" in v for v in content.values()):
        raise CameraError(
            "is a scene_camera.json of many images and without an image size; "
            "use the dataset's camera.json, or six numbers 'fx fy cx cy width height'"
        )
    raise CameraError(f"has {_short(list(content))} but no intrinsics; {_FORMATS}")


def _from_numbers(fx: Any, fy: Any, cx: Any, cy: Any, width: Any, height: Any) -> Camera:
    return Camera.from_calibration((height, width), [fx, 0, cx, 0, fy, cy, 0, 0, 1])


def _from_calibration_file(content: Mapping[str, Any]) -> Camera:
    """What camera_calibration writes and camera_info_manager reads."""
    size = _get(content, "image_height"), _get(content, "image_width")
    D = content.get("distortion_coefficients")
    model = content.get("distortion_model", "plumb_bob")
    K = content["camera_matrix"]
    return Camera.from_calibration(size, _data(K, "camera_matrix"), _data(D, "distortion"), model)


def _from_message(content: Mapping[str, Any]) -> Camera:
    """A printed sensor_msgs/CameraInfo, of ROS 2 (k, d) or ROS 1 (K, D)."""
    size = _get(content, "height"), _get(content, "width")
    return Camera.from_calibration(
        size,
        content.get("k", content.get("K")),
        content.get("d", content.get("D")),
        content.get("distortion_model", "plumb_bob"),
        (content.get("binning_x", 1), content.get("binning_y", 1)),
        content.get("roi"),
    )


def _data(matrix: Any, name: str) -> Any:
    """The numbers of a matrix, which ROS writes as rows, cols and data."""
    if isinstance(matrix, Mapping):
        return _get(matrix, "data", f"{name}.data")
    return matrix


def _get(content: Mapping[str, Any], key: str, name: str | None = None) -> Any:
    if key not in content:
        raise CameraError(f"lacks {name or key!r}; it has {_short(list(content))}")
    return content[key]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else repr(value)
    return text if len(text) < 80 else text[:77] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
