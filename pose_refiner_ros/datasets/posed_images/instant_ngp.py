# SPDX-License-Identifier: Apache-2.0
"""The layout of instant-ngp and nerfstudio: transforms.json, or a JSON file of that kind.

Poses, intrinsics and lenses as in transforms.py, frames sorted by name. `mask_path`, or alpha,
shows the object; `near` and `far`, along the camera's z, where all frames have them.
transforms_test.json, if there is one, has the test pictures, else every 8th of
transforms.json is one. Frames whose picture is not there are left out with a warning, as people
delete those that are blurred; half of them must be there.

Bounds: with masks the cube that they need. Else with aabb_scale instant-ngp's cube, which has that
side about 0.5 after positions were multiplied by `scale` (0.33) and moved by `offset` (0.5); it is
mostly far larger than an object. Else the cube about the point the cameras look at that reaches to
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.posed_images.hull import box_around_masks, box_before_cameras
from pose_refiner_ros.datasets.posed_images.reading import split_indices
from pose_refiner_ros.datasets.posed_images.transforms import (
    Frame,
    load_frames,
    present_frames,
    read_transforms,
)
from pose_refiner_ros.datasets.posed_images.views import PosedImages, PosedImagesError


def load(path: Path, split: str, factor: int, warn: Callable[[str], None]) -> PosedImages:
    """The pictures of a split, in the file's unit. Bounds are not yet tightened.

    Raises:
        PosedImagesError: a file is missing or unusable, or nothing says where the object is.
    """
    content, frames = _sorted_frames(path, warn)
    test = path.with_name("transforms_test.json")
    if test.exists():
        frames = (frames if split != "test" else []) + (
            _sorted_frames(test, warn)[1] if split != "train" else []
        )
    else:
        frames = [frames[i] for i in split_indices(len(frames), split, path)]
    posed = load_frames(frames, factor)
    posed.near_far = _near_far(frames)
    posed.bounds = _bounds(content, posed, path)
    return posed


def _near_far(frames: Sequence[Frame]) -> np.ndarray | None:
    """(N, 2), where all frames say how near and far along the camera's z there is something."""
    try:
        values = [(float(f.values["near"]), float(f.values["far"])) for f in frames]
    except (KeyError, TypeError, ValueError):
        return None
    values = np.array(values)
    usable = np.isfinite(values).all() and (values[:, 0] > 0.0).all()
    return values if usable and (values[:, 0] < values[:, 1]).all() else None


def _sorted_frames(path: Path, warn: Callable[[str], None]) -> tuple[dict[str, Any], list[Frame]]:
    content, frames = read_transforms(path)
    return content, present_frames(sorted(frames, key=lambda frame: frame.name), path, warn)


def _bounds(content: Mapping[str, Any], posed: PosedImages, path: Path) -> np.ndarray:
    box = None if posed.alpha is None else box_around_masks(posed)
    if box is None and "aabb_scale" in content:
        return _aabb(content, path)
    if posed.alpha is None:
        box = box_before_cameras(posed)
    if box is None:
        raise PosedImagesError(
            f"{path}: nothing says where the scene is, as its cameras look in parallel or its "
            "masks are empty; add aabb_scale, scale and offset"
        )
    return box


def _aabb(content: Mapping[str, Any], path: Path) -> np.ndarray:
    """(2, 3): instant-ngp's cube."""
    try:
        side = float(content["aabb_scale"])
        scale = float(content.get("scale", 0.33))
        offset = np.broadcast_to(np.asarray(content.get("offset", 0.5), np.float64), 3)
    except (TypeError, ValueError):
        side = scale = np.nan
    if not (side > 0 and scale > 0 and np.isfinite((side, scale, *offset)).all()):
        raise PosedImagesError(
            f"{path}: aabb_scale and scale must be positive numbers, offset one or three"
        )
    return (0.5 - offset + np.array([[-side / 2], [side / 2]])) / scale
