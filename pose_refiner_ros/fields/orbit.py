# SPDX-License-Identifier: Apache-2.0
"""Pictures and films of a radiance field from cameras that a user asks for."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from pose_refiner_ros.files.atomic import write_atomically

from .field import FieldError, RadianceField
from .picture import picture_over, render_picture
from .rays import camera_rays, cross_box, image_pixels

_FOV_DEG = 40.0


def view_of(field: RadianceField) -> dict[str, Any]:
    """`usual_view` of its training; where the record has none: z is up, the box fills a picture."""
    low, high = np.asarray(field.bounds)
    radius = 0.5 * float(np.linalg.norm(high - low))
    return {
        "centre": ((low + high) / 2.0).tolist(),
        "up": [0.0, 0.0, 1.0],
        "distance": 1.1 * radius / math.sin(math.radians(0.5 * _FOV_DEG)),
        "fov_deg": _FOV_DEG,
        "size": [400, 400],
        **field.record.get("view", {}),
    }


def pinhole(size: tuple[int, int], fov_deg: float) -> np.ndarray:
    """(3, 3) intrinsics. size: (height, width); fov_deg: from the top edge to the bottom one."""
    focal = 0.5 * size[0] / math.tan(0.5 * math.radians(fov_deg))
    return np.array([[focal, 0, 0.5 * (size[1] - 1)], [0, focal, 0.5 * (size[0] - 1)], [0, 0, 1.0]])


def orbit(
    centre: np.ndarray,
    up: np.ndarray,
    distance: float,
    elevation_deg: float,
    count: int,
    azimuth: float = 0.0,
) -> np.ndarray:
    """(N, 4, 4) camera_from_object all around a point at one height, looking at it.

    azimuth: of the first, radians about `up`, from the axis that lies flattest.
    """
    up = np.asarray(up, np.float64) / np.linalg.norm(up)
    side = np.eye(3)[np.argmin(abs(up))]
    side = side - up * (side @ up)
    side /= np.linalg.norm(side)
    elevation = math.radians(elevation_deg)
    poses = np.tile(np.eye(4), (count, 1, 1))
    angles = azimuth + 2.0 * math.pi * np.arange(count) / count
    for pose, angle in zip(poses, angles, strict=True):
        level = math.cos(angle) * side + math.sin(angle) * np.cross(up, side)
        away = math.cos(elevation) * level + math.sin(elevation) * up
        right = np.cross(up, level)  # of the picture, also straight from above
        pose[:3, :3] = np.stack((right, np.cross(right, away), -away))
        pose[:3, 3] = -pose[:3, :3] @ (np.asarray(centre) + distance * away)
    return poses


def check_in_view(
    field: RadianceField, intrinsics, camera_from_object, size: tuple[int, int]
) -> None:
    """Raises FieldError for a camera that looks past the field's box."""
    pixels = image_pixels((9, 9)) * (torch.tensor([size[1], size[0]]) - 1.0) / 8.0
    pose = torch.as_tensor(np.asarray(camera_from_object), dtype=torch.float64)
    origins, directions = camera_rays(intrinsics, pose, pixels)
    bounds = torch.as_tensor(np.asarray(field.bounds))
    near, far = cross_box(origins, directions, bounds)
    if not bool((far > near).any()):
        low, high = np.asarray(field.bounds).round(3)
        raise FieldError(
            f"the camera at {origins[0].numpy().round(3).tolist()} looks past the field, whose box "
            f"is {low.tolist()} to {high.tolist()} (metres, object frame): check the pose, which "
            "takes object to camera coordinates"
        )


def straight_picture(
    field: RadianceField, intrinsics, camera_from_object, size: tuple[int, int], background=None
) -> np.ndarray:
    """(H, W, 3) uint8 RGB in front of a colour, or (H, W, 4) RGBA with alpha where it is None."""
    if background is not None:
        drawn = picture_over(field, intrinsics, camera_from_object, size, background)
    else:
        seen = render_picture(field, intrinsics, camera_from_object, size)
        opacity = seen.opacity.cpu().numpy().reshape(*size, 1)
        colour = seen.colour.cpu().numpy().reshape(*size, 3)
        drawn = np.concatenate([colour / np.maximum(opacity, 1e-3), opacity], axis=-1)
    return np.rint(255.0 * drawn.clip(0.0, 1.0)).astype(np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """RGB or RGBA, uint8, as PNG, whole or not at all."""
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[-1] == 4 else cv2.COLOR_RGB2BGR
    _, data = cv2.imencode(".png", cv2.cvtColor(pixels, code))
    write_atomically(path, data.tobytes())


@contextlib.contextmanager
def film(path: Path, size: tuple[int, int], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """An MP4 file, whole or not at all; yields what takes its (H, W, 3) uint8 RGB pictures.

    Raises FieldError where OpenCV cannot write films.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".mp4")
    os.close(handle)
    try:
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(temporary, code, fps, (size[1], size[0]))
        if not writer.isOpened():
            raise FieldError(f"film {path}: this OpenCV cannot write MP4; write PNG pictures")
        yield lambda picture: writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        writer.release()
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
