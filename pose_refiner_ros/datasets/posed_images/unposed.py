# SPDX-License-Identifier: Apache-2.0
"""Photos of which nobody knows where their camera was, for use beside photos with poses.

A folder of pictures. A transforms.json in it, read as in transforms.py, may say the intrinsics and,
with `transform_matrix`, roughly where a camera was; each may be missing, and so may the frames.
Where it says no intrinsics the camera is the one that took the posed photos, with its lens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.reading import PICTURE_SUFFIXES
from pose_refiner_ros.datasets.posed_images.transforms import (
    Frame,
    camera_of,
    read_transforms,
    read_views,
)
from pose_refiner_ros.datasets.posed_images.views import (
    PosedImages,
    PosedImagesError,
    View,
    scaled_intrinsics,
    stack,
)
from pose_refiner_ros.geometry.camera import Camera

_FILE = "transforms.json"
_FILES_OF_SOURCE = ("transforms_train.json", _FILE)
_FOCAL = ("fl_x", "camera_angle_x")


def load_unposed(
    folder: str | Path,
    posed: PosedImages,
    source: str | Path | None = None,
    scale: float = 1.0,
    factor: int = 1,
) -> PosedImages:
    """Pictures of a folder, sorted by name, in the size of the posed photos.

    Args:
        posed: the photos with poses, already made smaller by `factor`.
        source: where those came from; its transforms file describes the camera, if there is one.
        scale: metres per unit of positions in the folder's transforms.json.
        factor: whole number by which pictures are made smaller as they are read.

    Returns:
        PosedImages where `camera_from_object` is a rough start, or NaN where nothing is known. A
        picture of another size whose intrinsics are known is made to fit; what it does not fill
        has no weight.

    Raises:
        PosedImagesError: no folder, no picture in it, one that cannot be read, or one of another
            size than the posed photos while nothing says its intrinsics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PosedImagesError(f"{folder} is no folder of photos")
    content, frames = {}, []
    if (folder / _FILE).is_file():
        content, frames = read_transforms(folder / _FILE, unposed=True)
    if not frames:
        frames = [
            Frame(path.name, path, None, np.full((4, 4), np.nan), content)
            for path in folder.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES
        ]
    if not frames:
        raise PosedImagesError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)})")
    frames.sort(key=lambda frame: frame.name)
    shared = _camera_values(source)

    def camera_for(frame: Frame, size: tuple[int, int]) -> Camera:
        if _says_focal(frame.values):
            return camera_of(frame.values, size, frame.name)
        _check_size(frame, size, posed.size, factor)
        if _says_focal(shared):
            return camera_of(shared, size, frame.name)
        return Camera(scaled_intrinsics(_common_camera(posed), (factor, factor)), size)

    views = (_fitted(view, posed.size, factor) for view in read_views(frames, camera_for))
    unposed = stack(views, len(frames), factor)
    unposed.camera_from_object[:, :3, 3] *= scale
    return replace(unposed, bounds=posed.bounds.copy())


def _camera_values(source: str | Path | None) -> Mapping[str, Any]:
    """What the transforms file of the posed photos says of their camera; {} where it has none."""
    if source is None:
        return {}
    source = Path(source)
    paths = [source / name for name in _FILES_OF_SOURCE] if source.is_dir() else [source]
    for path in paths:
        if path.is_file() and path.suffix == ".json" and path.name != "scene_camera.json":
            return read_transforms(path)[0]
    return {}


def _says_focal(values: Mapping[str, Any]) -> bool:
    return any(name in values for name in _FOCAL)


def _common_camera(posed: PosedImages) -> np.ndarray:
    K = posed.intrinsics[0]
    if abs(posed.intrinsics - K).max() > 1e-3 * K[0, 0]:
        raise PosedImagesError(
            "the photos with poses have several cameras, so nothing says which took those without: "
            f"add a {_FILE} with intrinsics to their folder"
        )
    return K


def _check_size(frame: Frame, size: tuple[int, int], wanted: tuple[int, int], factor: int) -> None:
    if (size[0] // factor, size[1] // factor) != tuple(wanted):
        smaller = f", made {factor} times smaller," if factor > 1 else ""
        raise PosedImagesError(
            f"{frame.picture} is {size[1]}x{size[0]} pixels, but the photos with poses{smaller} "
            f"are {wanted[1]}x{wanted[0]} (width x height): give photos of one camera, or add a "
            f"{_FILE} with intrinsics to the folder"
        )


def _fitted(view: View, wanted: tuple[int, int], factor: int) -> View:
    """A view that is (height, width) when it is made smaller by the factor: as large as fits into
    that, in its top left corner, the rest without weight."""
    height, width = view.image.shape[:2]
    if (height // factor, width // factor) == tuple(wanted):
        return view
    size = tuple(n * factor for n in wanted)
    ratio = min(size[0] / height, size[1] / width)
    rows, columns = (max(math.floor(n * ratio), 1) for n in (height, width))

    def placed(array: np.ndarray) -> np.ndarray:
        small = cv2.resize(array, (columns, rows), interpolation=cv2.INTER_AREA)
        whole = np.zeros((*size, *array.shape[2:]), array.dtype)
        whole[:rows, :columns] = small
        return whole

    weight = np.ones((height, width), bool) if view.weight is None else view.weight
    K = scaled_intrinsics(view.intrinsics, (columns / width, rows / height))
    alpha = None if view.alpha is None else placed(view.alpha)
    return View(
        view.name, placed(view.image), alpha, placed(weight.astype(np.uint8)) > 0, K,
        view.camera_from_object,
    )  # fmt: skip
