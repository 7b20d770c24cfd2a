# SPDX-License-Identifier: Apache-2.0
"""The `bop` command: poses for every target of a data set, and their errors.

A target is one object in one image with a mask. Start poses come from the codebook (nothing but
the mask is known), or from the true pose made wrong by a stated rotation and shift.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.spatial import KDTree

from pose_refiner_ros.datasets.bop import (
    BopDataset,
    BopError,
    BopEstimate,
    BopImage,
    BopInstance,
    write_results,
)
from pose_refiner_ros.drawing.overlay import draw_overlay
from pose_refiner_ros.evaluation import metrics
from pose_refiner_ros.evaluation.bop_report import markdown, summarise
from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.frame import Frame, ObjectPose
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid, rotated
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.pipeline import Pipeline, Settings
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.refinement.observation import ObservationError, observe_mask
from pose_refiner_ros.rendering.scene import render_scene

LEAST_VISIBLE = 0.1  # BOP leaves out what is hidden more than that


@dataclass(frozen=True)
class Options:
    """What the command was asked to do.

    start: codebook | perturbed. rotation_deg, translation: of the perturbation: an angle in
    degrees about a random axis, a distance in metres in a random direction, both exactly so
    large. repeats: estimates per target. masks: visib (with other instances as unknown pixels) |
    full (each object as if nothing hid it). search: whether the pipeline also searches all views:
    auto (where the start fits badly) | always | never; a codebook start is a search by itself.
    depth: auto (of images that have one) or never. overlays: most images that are drawn.
    """

    split: str = "test"
    start: str = "codebook"
    rotation_deg: float = 20.0
    translation: float = 0.1
    repeats: int = 1
    seed: int = 0
    masks: str = "visib"
    search: str = "auto"
    depth: str = "auto"
    overlays: int = 100
    device: str = "auto"


@dataclass(eq=False)
class _Target:
    """One object to estimate. candidates: the objects that it may be, one where that is known."""

    instance: BopInstance
    mask: np.ndarray
    candidates: list[ObjectModel]

    @property
    def label(self) -> int:
        return self.instance.index + 1


@dataclass(eq=False)
class _Attempt:
    """One repeat at a target: what it was seen in, the given start pose (None: codebook), what
    came out, and how long it took."""

    target: _Target
    label_image: np.ndarray
    start: np.ndarray | None
    pose: ObjectPose | None = None
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def run_bop(
    dataset: str | Path,
    out: str | Path,
    options: Options = Options(),
    progress: Callable[[int, int], None] = lambda done, total: None,
    make_pipeline: Callable[..., Pipeline] | None = None,
) -> dict[str, Any]:
    """Estimates every target and writes OUT/*.csv, report.json, report.md and overlays/.

    Returns the content of report.json: `total`, `per_object`, `objects` (a row per estimate),
    `skipped` (what could not be estimated, and why) and `options`. The same seed gives the same
    starts, whichever other targets there are.

    Args:
        progress: called with how many images are done, and of how many.

    Raises:
        BopError, ObjectLibraryError: the data set or its models cannot be read.
    """
    data = BopDataset(dataset, options.split)
    library = ObjectLibrary.load(data.models_path)
    skipped = [f"model {name} left out: {why}" for name, why in library.problems.items()]
    images = list(data)
    pipeline = (make_pipeline or _pipeline)(library, options)
    pipeline.warm_up()
    measures = {name: _Measure(model) for name, model in library.items()}
    out = Path(out)

    rows: list[dict[str, Any]] = []
    results: list[BopEstimate] = []
    progress(0, len(images))
    for done, image in enumerate(images, start=1):
        targets = list(_targets(image, library, options.masks, skipped))
        depth = _depth(image, skipped) if targets and options.depth == "auto" else None
        for repeat in range(options.repeats if targets else 0):
            attempts = _estimate(pipeline, image, depth, targets, options, repeat)
            for attempt in attempts:
                rows.append(_row(image, attempt, repeat, measures))
                if attempt.pose is not None:
                    seconds = sum(a.seconds for a in attempts)  # BOP wants that of the image
                    obj_id, pose = library[attempt.pose.name].bop_id, attempt.pose
                    of_image = image.scene_id, image.im_id, obj_id, pose.score
                    results.append(BopEstimate(*of_image, pose.camera_from_object, seconds))
            if repeat == 0 and done <= options.overlays:
                _draw(out / "overlays", image, attempts, library)
        progress(done, len(images))
    if not rows:
        raise BopError(
            f"{data.path / options.split} has nothing to estimate: "
            + ("; ".join(skipped[:3]) or "no image has an object")
        )
    report = {**summarise(rows), "objects": rows, "skipped": skipped, "options": asdict(options)}
    write_results(out / f"poserefiner_{data.name}-{options.split}.csv", results)
    write_atomically(out / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(out / "report.md", markdown(report).encode())
    return report


def perturbed(
    camera_from_object: np.ndarray,
    rotation_deg: float,
    translation: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """The pose turned about its origin by exactly that angle about a random axis, and shifted by
    exactly that many metres in a random direction. (4, 4) -> (4, 4)."""
    axis, direction = (v / np.linalg.norm(v) for v in rng.standard_normal((2, 3)))
    pose = rotated(camera_from_object, np.radians(rotation_deg) * axis)
    pose[:3, 3] += translation * direction
    return pose


def _pipeline(library: ObjectLibrary, options: Options) -> Pipeline:
    return Pipeline(
        library, Settings(search=options.search, depth=options.depth), device=options.device
    )


def _targets(
    image: BopImage, library: ObjectLibrary, masks: str, skipped: list[str]
) -> Iterator[_Target]:
    if not image.instances:
        skipped.append(f"{image}: no ground truth and no masks, so no target")
    for instance in image.instances:
        what = f"{image} object {instance.obj_id or '?'} (number {instance.index})"
        if instance.visible_fraction is not None and instance.visible_fraction < LEAST_VISIBLE:
            continue
        if instance.obj_id is None:
            candidates = list(library.values())
        else:
            model = library.by_bop_id(instance.obj_id)
            candidates = [] if model is None else [model]
        mask = image.mask(instance, masks)
        if not candidates:
            skipped.append(f"{what}: there is no usable model of it")
        elif mask is None:
            skipped.append(f"{what}: its mask is missing ({masks})")
        else:
            yield _Target(instance, mask, candidates)


def _depth(image: BopImage, skipped: list[str]) -> np.ndarray | None:
    try:
        return image.depth()
    except BopError as error:
        skipped.append(f"{image}: depth not used: {error}")
        return None


def _estimate(
    pipeline: Pipeline,
    image: BopImage,
    depth: np.ndarray | None,
    targets: list[_Target],
    options: Options,
    repeat: int,
) -> list[_Attempt]:
    """One attempt at each target of an image, in their order."""
    attempts = []
    # Visible masks share one label image, so that each hides the others; full ones overlap.
    groups = [targets] if options.masks == "visib" else [[target] for target in targets]
    for group in groups:
        label_image = _label_image(group)
        group_attempts = []
        for target in group:
            start, truth = None, target.instance.camera_from_object
            if options.start == "perturbed" and truth is not None:
                number = image.scene_id, image.im_id, target.instance.index, repeat
                rng = np.random.default_rng((options.seed, *number))
                start = perturbed(truth, options.rotation_deg, options.translation, rng)
            group_attempts.append(_Attempt(target, label_image, start))
        _process(pipeline, image, label_image, depth, group_attempts)
        attempts += group_attempts
    return attempts


def _process(
    pipeline: Pipeline,
    image: BopImage,
    label_image: np.ndarray,
    depth: np.ndarray | None,
    attempts: list[_Attempt],
) -> None:
    """Runs the pipeline on all attempts of one label image. Where it is not known which object a
    target is, every candidate is tried and the one that fits best is kept."""
    by_label = {attempt.target.label: attempt for attempt in attempts}
    for k in range(max(len(attempt.target.candidates) for attempt in attempts)):
        tried = [a for a in attempts if k < len(a.target.candidates)]
        frame = Frame(
            masks=label_image,
            camera=image.camera,
            depth=depth,
            labels={a.target.label: a.target.candidates[k].name for a in tried},
            initial_poses={a.target.label: [a.start] for a in tried if a.start is not None},
        )

        def report(label: int | None, text: str) -> None:
            for where in [label] if label in by_label else by_label:
                by_label[where].problems.append(text)

        began = time.perf_counter()
        poses = pipeline.process(frame, report)
        share = (time.perf_counter() - began) / len(tried)
        for attempt in tried:
            attempt.seconds += share
        for pose in poses:
            attempt = by_label[pose.label]
            if attempt.pose is None or pose.iou > attempt.pose.iou:
                attempt.pose = pose


def _label_image(targets: list[_Target]) -> np.ndarray:
    """(H, W) uint16: each target's label where its mask is, and one that nobody has where masks
    overlap: what belongs to either says nothing of both."""
    contested = max(target.label for target in targets) + 1
    labels = np.zeros(targets[0].mask.shape, np.uint16)
    for target in targets:
        labels[target.mask] = np.where(labels[target.mask] == 0, target.label, contested)
    return labels


class _Measure:
    """Errors of one object's poses; keeps what is costly to make."""

    def __init__(self, model: ObjectModel):
        self.model = model
        self.points = model.mesh.vertices.astype(np.float64)

    @cached_property
    def tree(self) -> KDTree:
        return KDTree(self.points)

    @cached_property
    def codebook(self) -> ViewCodebook:
        return ViewCodebook(self.model)

    def errors(self, estimate: np.ndarray, truth: np.ndarray, camera: Camera) -> dict[str, float]:
        symmetries = self.model.symmetries
        rotation, translation = metrics.pose_errors(estimate, truth, symmetries)
        add_s = metrics.add_s(estimate, truth, self.tree)
        add = add_s if symmetries.any else metrics.add(estimate, truth, self.points)
        return {
            "rotation_error_deg": float(np.degrees(rotation)),
            "translation_error_mm": 1e3 * float(translation),
            "add_mm": 1e3 * float(add),
            "add_s_mm": 1e3 * float(add_s),
            "mssd_mm": 1e3 * float(metrics.mssd(estimate, truth, self.points, symmetries)),
            "mspd_px": float(metrics.mspd(estimate, truth, self.points, camera, symmetries)),
        }

    def iou(self, pose: np.ndarray | None, camera: Camera, attempt: _Attempt) -> float | None:
        """Overlap of the pose's silhouette and the mask, over pixels that are not another's."""
        if pose is None:
            return None
        drawn = render_scene([self.model.silhouette_mesh], pose[None], camera).labels > 0
        others = (attempt.label_image != 0) & (attempt.label_image != attempt.target.label)
        return float(metrics.iou(drawn, attempt.target.mask, ~others))

    def codebook_start(self, camera: Camera, attempt: _Attempt) -> np.ndarray | None:
        """The view that the codebook likes best, (4, 4), None for a mask that tells nothing."""
        try:
            seen = observe_mask(attempt.label_image, attempt.target.label, camera)
        except ObservationError:
            return None
        found = self.codebook.match(seen, 1)
        return rigid(seen.crop.crop_from_camera.T) @ found[0] if found else None


_ERRORS = (
    "rotation_error_deg", "translation_error_mm", "add_mm", "add_s_mm", "mssd_mm", "mspd_px",
    # the nearest to the truth of all hypotheses that were reported, the result being one
    "nearest_rotation_error_deg", "nearest_translation_error_mm",
)  # fmt: skip
_FOUND = ("iou_before", "iou_after", "score", "quality", "visible_fraction")


def _row(
    image: BopImage, attempt: _Attempt, repeat: int, measures: dict[str, _Measure]
) -> dict[str, Any]:
    """What report.json says of one estimate; null where there is nothing to say."""
    pose, target, camera = attempt.pose, attempt.target, image.camera
    truth = target.instance.camera_from_object
    name = target.candidates[0].name if pose is None else pose.name
    measure = measures[name]
    model = measure.model
    is_known = pose is not None or len(target.candidates) == 1
    row: dict[str, Any] = {
        "scene_id": image.scene_id,
        "im_id": image.im_id,
        "obj_id": model.bop_id if is_known else None,
        "name": name if is_known else None,
        "instance": target.instance.index,
        "repeat": repeat,
        "has_ground_truth": truth is not None,
        **dict.fromkeys(_ERRORS),
        "hypotheses": 0,
        **dict.fromkeys(_FOUND),
        "ms": 1e3 * attempt.seconds,
        "problems": attempt.problems,
    }
    start = attempt.start
    if start is None and is_known:
        start = measure.codebook_start(camera, attempt)
    row["iou_before"] = measure.iou(start, camera, attempt)
    if pose is None:
        return row
    poses = [pose.camera_from_object, *(o.camera_from_object for o in pose.alternatives)]
    row.update(
        iou_after=measure.iou(pose.camera_from_object, camera, attempt),
        score=float(pose.score),
        quality=pose.quality,
        visible_fraction=float(pose.visible_fraction),
        hypotheses=len(poses),
    )
    if truth is not None:
        row.update(measure.errors(pose.camera_from_object, truth, camera))
        row["mspd_px"] = row["mspd_px"] if np.isfinite(row["mspd_px"]) else None
        rotations, translations = metrics.pose_errors(np.stack(poses), truth, model.symmetries)
        nearest = int(np.argmin(rotations + translations / model.diameter))
        row["nearest_rotation_error_deg"] = float(np.degrees(rotations[nearest]))
        row["nearest_translation_error_mm"] = 1e3 * float(translations[nearest])
    return row


def _draw(folder: Path, image: BopImage, attempts: list[_Attempt], library: ObjectLibrary) -> None:
    rgb = image.rgb()
    if rgb is None:  # masks only: draw on an image of them
        rgb = np.full((*image.camera.size, 3), 30, np.uint8)
        for attempt in attempts:
            rgb[attempt.target.mask] = 110
    poses = [attempt.pose for attempt in attempts if attempt.pose is not None]
    drawn = draw_overlay(rgb, image.camera, library, poses)
    data = cv2.imencode(".png", drawn[..., ::-1])[1].tobytes()
    write_atomically(folder / f"{image.scene_id:06d}_{image.im_id:06d}.png", data)
