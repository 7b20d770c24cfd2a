# SPDX-License-Identifier: Apache-2.0
"""Photos with known cameras from five layouts, in one convention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images import (
    bop_views,
    colmap,
    instant_ngp,
    llff,
    nerf_synthetic,
)
from pose_refiner_ros.datasets.posed_images.agreement import check_agreement
from pose_refiner_ros.datasets.posed_images.hull import visual_hull
from pose_refiner_ros.datasets.posed_images.reading import SPLITS, check_several
from pose_refiner_ros.datasets.posed_images.views import PosedImages, PosedImagesError

__all__ = ["PosedImages", "PosedImagesError", "check_agreement", "has_layout", "load_posed_images"]

log = logging.getLogger(__name__)
_PARTS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
_LOOKED_FOR = (
    "transforms_train.json (NeRF-synthetic), transforms.json (instant-ngp, nerfstudio), "
    "poses_bounds.npy (LLFF), cameras.bin or .txt (COLMAP, also in sparse/0), scene_camera.json (a "
    "BOP scene, or folders of them)"
)
_MODELS = ("cameras.bin", "cameras.txt")
_MARGIN = 0.01  # of the hull's diagonal, on each side
_ROUNDS = 3


def load_posed_images(
    source: str | Path,
    split: str = "train",
    scale: float = 1.0,
    factor: int = 1,
    object_id: int | None = None,
    warn: Callable[[str], None] = log.warning,
) -> PosedImages:
    """Pictures and cameras of a source, whichever of the layouts it has.

    What is looked for, in this order: transforms_train.json (nerf_synthetic.py), transforms.json
    (instant_ngp.py), poses_bounds.npy (llff.py), cameras.bin or .txt in it or in sparse/0
    (colmap.py), scene_camera.json in it or in folders of it (bop_views.py). Where no file says
    which pictures are for testing, every 8th is, from the first.

    Args:
        source: a folder, or one of these files, or another JSON file like transforms.json.
        split: train | test | all.
        scale: metres per unit of the source's positions. BOP's are metres already.
        factor: whole number by which pictures are made smaller as they are read.
        object_id: of a BOP scene; may be None if it has only one object.
        warn: gets a line about pictures that are left out.

    Returns:
        PosedImages. Where there are masks the bounds are as small as the loaded ones allow,
        unless BOP's models_info.json has the box of the model.

    Raises:
        PosedImagesError: saying what is wrong with which file. Also for poses that do not agree
            with each other (check_agreement), and for less than two pictures unless for testing.
    """
    source = Path(source)
    if split not in SPLITS:
        raise PosedImagesError(f"split must be {', '.join(SPLITS[:2])} or all, got {split!r}")
    if not (np.isfinite(scale) and scale > 0):
        raise PosedImagesError(f"scale must be positive metres per unit, got {scale}")
    if factor != int(factor) or factor < 1:
        raise PosedImagesError(f"factor must be a whole number from 1, got {factor}")
    posed, final_bounds = _load(source, split, int(factor), object_id, warn)
    if split != "test":
        check_several(len(posed), split, source)
    posed.camera_from_object[:, :3, 3] *= scale
    posed.bounds = posed.bounds * scale
    if posed.near_far is not None:
        posed.near_far = posed.near_far * scale
    try:
        check_agreement(posed)
    except PosedImagesError as error:
        raise PosedImagesError(f"{source}: {error}") from error
    if posed.alpha is not None and not final_bounds:
        posed.bounds = _tightened(posed)
    return posed


def _load(
    source: Path, split: str, factor: int, object_id: int | None, warn: Callable[[str], None]
) -> tuple[PosedImages, bool]:
    """The pictures, and whether the bounds need no tightening."""
    if not source.exists():
        raise PosedImagesError(f"{source} does not exist")
    folder = source if source.is_dir() else source.parent
    wanted = None if source.is_dir() else source.name

    def has(name: str) -> bool:
        return wanted == name or (wanted is None and (folder / name).is_file())

    layouts = [name for name in (_PARTS[0], "transforms.json", "poses_bounds.npy") if has(name)]
    model = colmap.model_folder(folder) if wanted is None or wanted in _MODELS else None
    if model is not None:
        layouts.append(next(name for name in _MODELS if (model / name).is_file()))
    if len(layouts) > 1:
        warn(
            f"{source} has poses in {len(layouts)} layouts: those of {layouts[0]} are taken; for "
            f"others give the file, "
            + " or ".join(
                str((model if name in _MODELS else folder) / name) for name in layouts[1:]
            )
        )
    is_bop = has("scene_camera.json") or (
        wanted is None and any(folder.glob("*/scene_camera.json"))
    )
    if wanted in _PARTS or has(_PARTS[0]):
        posed = nerf_synthetic.load(folder, split, factor)
    elif has("transforms.json"):
        posed = instant_ngp.load(folder / "transforms.json", split, factor, warn)
    elif has("poses_bounds.npy"):
        posed = llff.load(folder / "poses_bounds.npy", split, factor)
    elif model is not None:
        posed = colmap.load(model, split, factor, warn)
    elif is_bop:
        return bop_views.load(folder, split, factor, object_id, warn)
    elif source.suffix == ".json" and wanted is not None:
        posed = instant_ngp.load(source, split, factor, warn)
    else:
        raise PosedImagesError(_unknown(source))
    if object_id is not None:
        raise PosedImagesError(f"{source}: object_id is for BOP scenes, and this is none")
    return posed, False


def has_layout(source: Path) -> bool:
    """Whether a source says poses in one of the layouts, right or wrong."""
    if not source.is_dir():
        return source.suffix == ".json" or source.name in (*_MODELS, "poses_bounds.npy")
    names = (_PARTS[0], "transforms.json", "poses_bounds.npy", "scene_camera.json")
    return (
        any((source / name).is_file() for name in names)
        or colmap.model_folder(source) is not None
        or any(source.glob("*/scene_camera.json"))
        or any(source.glob("*/*/scene_camera.json"))
    )


def _unknown(source: Path) -> str:
    splits = sorted({p.parent.parent.name for p in source.glob("*/*/scene_camera.json")})
    return f"{source}: no known layout; looked for {_LOOKED_FOR}; " + (
        f"give one of its folders of scenes: {', '.join(splits)}"
        if splits
        else "of a folder of photos `pose-refiner field train` finds the poses itself"
    )


def _tightened(posed: PosedImages) -> np.ndarray:
    """(2, 3): the box of the visual hull with some margin, found in rounds of finer cells."""
    box = posed.bounds
    for _ in range(_ROUNDS):
        hull = visual_hull(posed, box)
        if not len(hull.centres):
            break
        box = hull.box
    margin = _MARGIN * np.linalg.norm(box[1] - box[0])
    return np.stack(
        (np.maximum(box[0] - margin, posed.bounds[0]), np.minimum(box[1] + margin, posed.bounds[1]))
    )
