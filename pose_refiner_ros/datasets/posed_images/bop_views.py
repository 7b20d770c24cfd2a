# SPDX-License-Identifier: Apache-2.0
"""One object of BOP scenes as posed pictures: DATASET/SPLIT/SCENE or DATASET/SPLIT.

Each instance of the object that has a pose and is seen gives one view: the whole picture, alpha =
its visible mask, the visible masks of all other instances without weight, as the object may go on
behind them. Files are in millimetres, `camera_from_object` in metres. Every 8th view is for
testing.

Bounds: the model's box of models_info.json with some margin, else what the masks need.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.bop import BopDataset, BopError, BopImage, BopInstance
from pose_refiner_ros.datasets.posed_images.hull import box_around_masks
from pose_refiner_ros.datasets.posed_images.reading import split_indices
from pose_refiner_ros.datasets.posed_images.views import (
    PosedImages,
    PosedImagesError,
    View,
    stack,
)

_MODEL_FOLDERS = ("models", "models_eval", "models_cad", "models_reconst")
_MARGIN = 0.05  # of the box's diagonal, on each side
_SEEN = 0.1  # views in which less of the object is visible are left out


def load(
    source: Path, split: str, factor: int, object_id: int | None, warn: Callable[[str], None]
) -> tuple[PosedImages, bool]:
    """Views of the object in metres, and whether their bounds are those of its model.

    Args:
        source: a scene's folder, or a folder of scenes.
        object_id: may be None if the scenes have only one object.

    Raises:
        PosedImagesError: the object is not in the scenes, or a file is missing or unusable.
    """
    try:
        dataset = _dataset(source)
        images = list(dataset)
        object_id = _object_id(images, object_id, source)
        everywhere = [
            (image, instance)
            for image in images
            for instance in image.instances
            if instance.obj_id == object_id
        ]
        shots = [
            (image, instance)
            for image, instance in everywhere
            if instance.camera_from_object is not None
            and (instance.visible_fraction is None or instance.visible_fraction >= _SEEN)
        ]
        if not shots:
            raise PosedImagesError(f"{source}: object {object_id} is nowhere visible with a pose")
        if len(shots) < len(everywhere):
            warn(
                f"{source}: {len(everywhere) - len(shots)} of {len(everywhere)} views of object "
                f"{object_id} are left out, as less than {_SEEN:.0%} of it is visible there or it "
                "has no pose"
            )
        shots = [shots[i] for i in split_indices(len(shots), split, source)]
        posed = stack(_views(shots), len(shots), factor)
        if len(posed) < len(shots):
            warn(
                f"{source}: {len(shots) - len(posed)} of {len(shots)} views of object {object_id} "
                "are left out, as their masks are empty"
            )
    except BopError as error:
        raise PosedImagesError(str(error)) from error
    model_box = _model_box(dataset.path, object_id)
    box = box_around_masks(posed) if model_box is None else model_box
    if box is None:
        raise PosedImagesError(
            f"{dataset.path} has no models/models_info.json with object {object_id}, and its "
            "views are too much alike to find the object's size from the masks"
        )
    posed.bounds = box
    return posed, model_box is not None


def _dataset(source: Path) -> BopDataset:
    source = source.resolve()
    if not (source / "scene_camera.json").exists():
        return BopDataset(source.parent, source.name, targets=False)
    dataset = BopDataset(source.parent.parent, source.parent.name, targets=False)
    dataset.scenes = [scene for scene in dataset.scenes if scene.name == source.name]
    if not dataset.scenes:
        raise PosedImagesError(f"scene {source} must have a number for a name, such as 000001")
    return dataset


def _object_id(images: list[BopImage], object_id: int | None, source: Path) -> int:
    there = sorted({i.obj_id for image in images for i in image.instances if i.obj_id is not None})
    if object_id is None and len(there) == 1:
        return there[0]
    if object_id not in there:
        wanted = "no object was chosen" if object_id is None else f"object {object_id} is absent"
        listed = ", ".join(map(str, there)) or "none (no scene_gt.json)"
        raise PosedImagesError(f"{source}: {wanted}; its objects are {listed}")
    return object_id


def _views(shots: list[tuple[BopImage, BopInstance]]) -> Iterator[View]:
    for image, instance in shots:
        name = f"{image} object {instance.obj_id}"
        rgb, mask = image.rgb(), image.mask(instance)
        if rgb is None or mask is None:
            what = "picture in rgb/ or gray/" if rgb is None else "mask in mask_visib/"
            raise PosedImagesError(f"{image.scene}: {name} (index {instance.index}) has no {what}")
        if not mask.any():
            continue
        others = [image.mask(other) for other in image.instances if other is not instance]
        hidden = np.zeros(mask.shape, bool)
        for other in others:
            if other is not None:
                hidden |= other
        yield View(
            name,
            rgb,
            mask.astype(np.uint8) * 255,
            ~hidden | mask if hidden.any() else None,
            image.camera.intrinsics,
            instance.camera_from_object,
        )


def _model_box(dataset: Path, object_id: int) -> np.ndarray | None:
    """(2, 3) metres with margin, None if no models_info.json has the object."""
    for folder in _MODEL_FOLDERS:
        path = dataset / folder / "models_info.json"
        if not path.exists():
            continue
        try:
            info = json.loads(path.read_text(encoding="utf-8")).get(str(object_id))
            if info is None:
                continue
            low = np.array([float(info[f"min_{a}"]) for a in "xyz"])
            size = np.array([float(info[f"size_{a}"]) for a in "xyz"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PosedImagesError(
                f"{path}, object {object_id}: needs min_x, size_x and so on, in millimetres"
            ) from error
        margin = _MARGIN * np.linalg.norm(size)
        return np.stack((low - margin, low + size + margin)) * 1e-3
    return None
