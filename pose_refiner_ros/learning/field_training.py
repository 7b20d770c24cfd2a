# SPDX-License-Identifier: Apache-2.0
"""From photos with known cameras to a field in a file: resumable, with pictures on the way."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pose_refiner_ros.datasets.posed_images import (
    PosedImages,
    PosedImagesError,
    load_posed_images,
)
from pose_refiner_ros.datasets.posed_images.matched_points import MatchedPoints, matched_points
from pose_refiner_ros.datasets.posed_images.unposed import load_unposed
from pose_refiner_ros.fields.field import FieldError, RadianceField
from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.orbit import write_png
from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.objects.field_mesh import simplified_surface
from pose_refiner_ros.objects.mesh import MeshError

from .field_features import field_features
from .field_photos import beside_photo, field_psnr, usual_rms, usual_view
from .grid_training import GridOptions, GridTraining, train_grid
from .self_supervision import alike, find_poses, joined
from .training_loop import Progress, Training, quiet, run

if TYPE_CHECKING:
    from pose_refiner_ros.fields.mlp import MlpSettings

    from .mlp_training import MlpOptions

CHECKPOINT = "checkpoint.pt"
FOUND = "unposed.json"  # poses that were found, beside the checkpoint
_SAVE_EVERY = 30.0  # seconds
_FEWEST_MATCHES, _AGREEING = 200, 0.7  # of neighbouring photos, that tell of poses that are wrong
_GAP = 6.0  # dB that test photos may be worse by than those of the training
_SLOW_SIDE = 100  # pixels of a picture's longer side for which an MLP on a CPU is asked


@dataclass(frozen=True)
class Source:
    """Photos: what `load_posed_images` takes beside the split.

    unposed: folder of more photos, whose poses are to be found.
    """

    path: Path
    scale: float = 1.0
    factor: int = 1
    object_id: int | None = None
    unposed: Path | None = None

    def load(self, split: str, warn: Callable[[str], None]) -> PosedImages:
        return load_posed_images(self.path, split, self.scale, self.factor, self.object_id, warn)


def training_folder(out: Path) -> Path:
    """Where the checkpoint lies while the field is trained."""
    return out.with_suffix(".training")


def train_field(
    source: Source,
    out: Path,
    options: GridOptions | MlpOptions,
    settings: MlpSettings | None = None,
    device: str = "cpu",
    resume: bool = False,
    previews: Path | None = None,
    progress: Progress = quiet,
    warn: Callable[[str], None] = lambda text: None,
    search: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> RadianceField:
    """Train a field, measure it on the source's test photos, write it to `out`.

    The kind of field is that of the options; settings: the size of an MLP. The checkpoint beside
    `out` is written twice a minute and removed when the field is. previews: a folder for a test
    photo beside the field, at each checkpoint, and for all of them at the end; where there are none
    it is a training photo. progress gets "psnr" of the training rays; warn gets what is missing but
    not needed.

    Where the source has photos without poses, they are found first, in a grid of the others
    (self_supervision.py); search then gets what is done, how much of it, and of how much.

    Raises PosedImagesError, FieldError: also where a checkpoint is there without `resume`, or is
    not there, is cut short or of another training with it.
    """
    checkpoint, found = training_folder(out) / CHECKPOINT, training_folder(out) / FOUND
    begun = resume and (checkpoint.exists() or not found.exists())
    state = _read(checkpoint, source) if begun else None
    if not resume and checkpoint.exists():
        raise FieldError(
            f"{checkpoint} is of an earlier training: go on from it with --resume, remove it, or "
            "choose another --out"
        )
    if out.is_dir():
        raise FieldError(f"{out} is a folder: give the name of a file, such as field.safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise FieldError(f"folder {out.parent} cannot be written to: choose another --out")
    warn = cache(warn)  # both splits may be of one file: what it lacks is told once
    posed, poses = source.load("train", warn), None
    if source.unposed is not None:
        posed, poses = _with_unposed(
            posed, source, options, device, found, resume, progress, search
        )
        if not poses["accepted"]:
            warn(f"no pose of {source.unposed} is good: the field is of the posed photos alone")
    test = _test_photos(source, options, device, warn)
    watched = posed if test is None else test
    training = _training(posed, options, settings, device, state)
    matched = training.matched or matched_points(posed)
    _tell_disagreement(matched, warn)
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        if time.monotonic() - saved > _SAVE_EVERY and training.done < options.steps:
            _write(checkpoint, source, training)
            if previews is not None:
                picture = beside_photo(training.field, next(iter(watched)))
                write_png(previews / f"step_{training.done:06d}.png", picture)
            saved = time.monotonic()

    figures = run(training, progress, after_step=save)
    field = training.finish({"source": _named(source), "view": usual_view(posed)})
    field.features = field_features(field, posed, matched)
    if isinstance(field, GridField):
        if field.contraction is None:
            with contextlib.suppress(MeshError):  # a fog, which whoever needs a mesh is told of
                field.surface = simplified_surface(field)
        if test is not None:
            field.record["usual_rms"] = usual_rms(field, test, options.background)
    if field.background is not None and options.background is None and posed.alpha is None:
        warn(
            f"the photos' edges are of one colour, {np.round(field.background, 2).tolist()}: taken "
            "to be of an object before it, and not of a scene"
        )
    field.record["scale"] = source.scale
    if poses is not None:
        field.record["self_supervision"] = poses
    if test is not None:
        field.record["test"] = _measured(field, test)
        gap = figures.get("psnr", 0.0) - field.record["test"]["mean_psnr"]
        if gap > _GAP:
            warn(_why_worse(gap, posed.alpha is not None))
    if previews is not None:
        split = "train" if test is None else "test"
        for i, view in enumerate(watched.subset([0]) if test is None else watched):
            write_png(previews / f"{split}_{i:03d}.png", beside_photo(field, view))
    save_field(field, out)
    for path in (checkpoint, found):
        path.unlink(missing_ok=True)
    if checkpoint.parent.is_dir() and not any(checkpoint.parent.iterdir()):
        checkpoint.parent.rmdir()
    return field


def _with_unposed(
    posed: PosedImages, source: Source, options, device: str, path: Path, resume: bool, progress,
    search,
) -> tuple[PosedImages, dict[str, Any]]:  # fmt: skip
    """All photos whose poses are known or found, and the record of what was found.

    It is written to `path`, and read from there to resume.
    """
    unposed = load_unposed(source.unposed, posed, source.path, source.scale, source.factor)
    if not isinstance(options, GridOptions):
        options = GridOptions(background=options.background, seed=options.seed)
    posed, unposed = alike(posed, unposed, options.background)
    if resume and path.exists():
        record = _read_found(path, source, unposed.names)
    else:
        found = find_poses(
            posed, unposed, lambda photos: train_grid(photos, options, device, progress),
            background=options.background, device=device, progress=search,
        )  # fmt: skip
        record = found.record()
        stored = {"source": _named(source), "found": record}
        write_atomically(path, json.dumps(stored, indent=1).encode())
    poses = {
        i: np.array(picture["camera_from_object"])
        for i, picture in enumerate(record["pictures"])
        if picture["accepted"]
    }
    return joined(posed, unposed, poses), record


def _read_found(path: Path, source: Source, names: list[str]) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        record, there = stored["found"], [p["name"] for p in stored["found"]["pictures"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldError(
            f"{path} cannot be used ({error!r}): train anew, without --resume"
        ) from None
    if stored.get("source") != _named(source) or there != names:
        raise FieldError(
            f"{path} is of other photos than {source.unposed} has now: train anew, without --resume"
        )
    return record


def _training(posed, options, settings, device, state) -> Training:
    if isinstance(options, GridOptions):
        return GridTraining(posed, options, device, state)
    from pose_refiner_ros.fields.mlp import PAPER

    from .mlp_training import MlpTraining

    return MlpTraining(posed, settings or PAPER, options, device, state)


def _test_photos(source: Source, options, device: str, warn) -> PosedImages | None:
    try:
        test = source.load("test", warn)
    except PosedImagesError as error:
        warn(f"no test photos, so the field is not measured: {error}")
        return None
    side = max(test.size)
    if not isinstance(options, GridOptions) and device == "cpu" and side > _SLOW_SIDE:
        return test.resized(math.ceil(side / _SLOW_SIDE))
    return test


def _measured(field: RadianceField, test: PosedImages) -> dict[str, Any]:
    """PSNR of test photos."""
    found = field_psnr(field, test)
    return {
        "photos": test.names,
        "size": list(test.size),
        "psnr": [round(float(p), 3) for p in found],
        "mean_psnr": round(float(found.mean()), 3),
    }


def _tell_disagreement(matched: MatchedPoints, warn) -> None:
    if matched.matches >= _FEWEST_MATCHES:
        share = matched.agreeing / matched.matches
        if share < _AGREEING:
            warn(
                f"of {matched.matches} features that neighbouring photos share only {share:.0%} "
                "lie where the poses put them, 90 % and more where they are right: check poses, "
                "intrinsics and lens, and whether things moved"
            )


def _why_worse(gap: float, masked: bool) -> str:
    why = (
        "masks that disagree, poses that are not exact, or a light that moves with the object"
        if masked
        else "too few photos for all that they show, poses that are not exact, or things that "
        "moved; if it is an object that you want, give masks"
    )
    return (
        f"photos held back are shown {gap:.0f} dB worse than those that were trained on: the usual "
        f"causes are {why}"
    )


def _named(source: Source) -> dict[str, Any]:
    unposed = None if source.unposed is None else str(source.unposed)
    return {**asdict(source), "path": str(source.path), "unposed": unposed}


def _write(checkpoint: Path, source: Source, training: Training) -> None:
    buffer = io.BytesIO()
    torch.save({"source": _named(source), "training": training.state()}, buffer)
    write_atomically(checkpoint, buffer.getvalue())


def _read(checkpoint: Path, source: Source) -> dict[str, Any]:
    if not checkpoint.exists():
        raise FieldError(f"{checkpoint} does not exist, so there is nothing to resume")
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        trained, state = stored["source"], stored["training"]
    except Exception as error:  # zip, pickle and torch have a kind each
        raise FieldError(
            f"{checkpoint} is no whole checkpoint ({type(error).__name__}): remove it and train "
            "anew, without --resume"
        ) from error
    for name, value in _named(source).items():
        if trained.get(name) != value:
            raise FieldError(
                f"{checkpoint} is of another training, with {name} {trained.get(name)}, not "
                f"{value}: give the same, or choose another --out"
            )
    return state
