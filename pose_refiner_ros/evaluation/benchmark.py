# SPDX-License-Identifier: Apache-2.0
"""The `bench` command: how fast and how exact refinement is on this machine.

Truth is a silhouette drawn from the full mesh; the refiner gets what the library would give it. The
plain workload that every time is set against (OpenCV's distance transform of a 256x256 crop, a
hundred times) is measured in the same run.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.evaluation.report import Columns, lines_of
from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point, rotated, rotation_angle
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import choose_device
from pose_refiner_ros.refinement.covariance import pose_covariance
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_mask
from pose_refiner_ros.refinement.refiner import OUTLINE, Refiner
from pose_refiner_ros.refinement.solver import Level
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

FACES = 6000  # of the mesh of the main figures
MAX_ROTATION_DEG = 30.0
MAX_DISTANCE_SHARE = 0.10
RATIO = ("/ reference", "ratio", "{:.3f}")
RESULTS = (  # columns: head, key, how it is written
    ("ms", "median_ms", "{:.2f}"),
    RATIO,
    ("median deg", "median_rotation_error_deg", "{:.3f}"),
    ("under 5 deg", "share_under_5deg", "{:.1%}"),
)
TIMES = (("ms", "ms", "{:.2f}"), ("ms each", "each", "{:.2f}"), RATIO)


@dataclass(frozen=True, eq=False)
class Trial:
    """True and start pose (4, 4) of an object, and the label image (H, W) it is seen in."""

    truth: np.ndarray
    start: np.ndarray
    masks: np.ndarray
    camera: Camera


def benchmark_mesh(faces: int) -> Mesh:
    """A sedan whose faces are cut until it has at least so many: the shape stays the same."""
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    vertices, triangles = np.array(mesh.vertices), np.array(mesh.faces)
    while len(triangles) < faces:
        vertices, triangles = _cut_longest(vertices, triangles, faces - len(triangles))
    return Mesh(vertices.astype(np.float32), triangles.astype(np.int32))


def _cut_longest(vertices: np.ndarray, faces: np.ndarray, count: int):
    """Cut up to `count` / 2 of the longest edges in the middle, with the faces beside them."""
    half = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    edges, index = np.unique(np.sort(half, axis=1), axis=0, return_inverse=True)
    length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    of_face = index.reshape(-1, 3)
    longest = length[of_face].argmax(axis=1)
    cut_edge = of_face[np.arange(len(faces)), longest]
    chosen = np.zeros(len(edges), bool)
    chosen[np.argsort(-length)[: max(count // 2, 1)]] = True
    # an edge is cut only where it is the longest of all its faces, so no T-junction is left
    beside = np.bincount(index, minlength=len(edges))  # faces
    as_longest = np.bincount(cut_edge, minlength=len(edges))
    chosen &= beside == as_longest
    if not chosen.any():
        chosen[length.argmax()] = True
        chosen &= beside == as_longest
    middle = np.full(len(edges), -1)
    middle[chosen] = len(vertices) + np.arange(chosen.sum())
    vertices = np.concatenate([vertices, vertices[edges[chosen]].mean(axis=1)])
    cut = middle[cut_edge]
    keep = faces[cut < 0]
    rolled = np.take_along_axis(faces, (longest[:, None] + np.arange(3)) % 3, axis=1)[cut >= 0]
    new = cut[cut >= 0]
    first = np.column_stack([rolled[:, 0], new, rolled[:, 2]])
    second = np.column_stack([new, rolled[:, 1], rolled[:, 2]])
    return vertices, np.concatenate([keep, first, second])


def make_trials(
    mesh: Mesh,
    count: int,
    seed: int = 0,
    crop: int = 256,
    max_rotation_deg: float = MAX_ROTATION_DEG,
    max_distance_share: float = MAX_DISTANCE_SHARE,
) -> list[Trial]:
    """Random views of a mesh from slightly above, whose crops are about `crop` pixels.

    Starts are turned by up to the given angle about a random axis, are up to the given share too
    near or too far, and up to 0.2 m (of a vehicle) beside.
    """
    rng = np.random.default_rng(seed)
    size = 2 * crop
    focal = 1.25 * crop
    camera = Camera(
        np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]]), (size, size)
    )
    azimuth = rng.uniform(0, 2 * np.pi, count)
    elevation = rng.uniform(0.05, 0.6, count)
    level = np.cos(elevation)
    direction = np.stack([np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(elevation)], 1)
    truth = np.tile(np.eye(4), (count, 1, 1))
    truth[:, :3, :3] = look_at(direction)
    center = mesh.bounds.mean(axis=0)
    scale = mesh.diameter / 5.2  # distances and shifts below are those for a car
    truth[:, 2, 3] = rng.uniform(6.0, 9.0, count) * scale
    truth[:, :3, 3] += rng.uniform(-0.4, 0.4, (count, 3)) * scale
    truth[:, :3, 3] -= truth[:, :3, :3] @ center
    pinhole = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    batch = MeshBatch([mesh])
    trials = []
    for pose in truth:
        masks = draw(batch, [0], pose[None], pinhole, size)[0]
        axis = rng.normal(size=3)
        axis *= np.radians(rng.uniform(0, max_rotation_deg)) / np.linalg.norm(axis)
        middle = pose[:3, :3] @ center + pose[:3, 3]
        start = rotated(pose, axis)
        share = 1.0 + rng.uniform(-max_distance_share, max_distance_share)
        moved = middle * share + rng.uniform(-0.2, 0.2, 3) * scale
        start[:3, 3] = moved - start[:3, :3] @ center
        trials.append(Trial(pose, start, masks, camera))
    return trials


def vehicle_model(faces: int = FACES) -> ObjectModel:
    mesh = benchmark_mesh(faces)
    return ObjectModel("sedan", mesh, simplify_for_silhouette(mesh))


def reference_ms(repeats: int = 20) -> float:
    """Milliseconds of a hundred distance transforms of a 256x256 crop, on one core."""
    image = np.ones((256, 256), np.uint8)
    cv2.ellipse(image, (128, 128), (90, 60), 30, 0, 360, 0, -1)

    def work() -> None:
        for _ in range(100):
            cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_5)

    return median_ms(work, repeats)


def median_ms(work: Callable[[], Any], repeats: int) -> float:
    times = []
    work()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def single(model: ObjectModel, refiner: Refiner, trials: Iterable[Trial]) -> dict[str, float]:
    """One object at a time, from the label image to the pose: the distance transform, the
    refinement, its judgement."""
    rows = []
    for trial in trials:
        start = time.perf_counter()
        seen = observe_mask(trial.masks, 1, trial.camera)
        found = refiner.refine([[seen]], [[Hypothesis(model.name, trial.start)]])[0][0]
        ms = 1e3 * (time.perf_counter() - start)
        pose = found.reference_from_object
        angle = np.degrees(rotation_angle(trial.truth[:3, :3].T @ pose[:3, :3]))
        shift = np.linalg.norm(pose[:3, 3] - trial.truth[:3, 3])
        rows.append((ms, angle, shift, seen.crop.size, found.iterations))
    times, errors, shifts, crops, iterations = np.transpose(rows)
    return {
        "trials": len(errors),
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.quantile(times, 0.95)),
        "median_rotation_error_deg": float(np.median(errors)),
        "p95_rotation_error_deg": float(np.quantile(errors, 0.95)),
        "share_under_5deg": float((errors < 5.0).mean()),
        "median_translation_error_mm": 1e3 * float(np.median(shifts)),
        "median_iterations": float(np.median(iterations)),
        "median_crop_px": float(np.median(crops)),
    }


def load(
    refiner: Refiner, hypotheses: Sequence[Hypothesis], observations: Sequence[Observation]
) -> None:
    """Hand a batch to a refiner's terms and solver: one observation of each hypothesis."""
    for term in refiner.terms:
        term.observe(observations)
        term.load(hypotheses, list(enumerate(observations)))
    models = [refiner.models[one.object] for one in hypotheses]
    poses = np.array([one.reference_from_object for one in hypotheses])
    middles = np.array([model.box_center for model in models])  # what poses turn about
    refiner.solver.load(about_point(poses, middles), np.array([model.diameter for model in models]))


def stages(model: ObjectModel, refiner: Refiner, trials: list[Trial]) -> dict[str, float]:
    """Median milliseconds of each stage of one object's refinement."""
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *arguments) -> Any:
        start = time.perf_counter()
        result = work(*arguments)
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
        return result

    def judge() -> None:
        fit = refiner.solver.evaluate(refiner.terms)["silhouette"]
        pose_covariance([(fit.hessian, fit.slope, fit.sectors)], np.array([model.diameter]))
        refiner.solver.result()

    for trial in trials:
        seen = timed("crop and distances", observe_mask, trial.masks, 1, trial.camera)
        timed("upload", load, refiner, [Hypothesis(model.name, trial.start)], [seen])
        timed("coarse level", refiner.solver.run, refiner.terms, OUTLINE.coarse)
        timed("fine levels", refiner.solver.run, refiner.terms, OUTLINE.fine)
        timed("fit and covariance", judge)
    return {name: float(np.median(values)) for name, values in times.items()}


def per_iteration(refiner: Refiner, trials: list[Trial]) -> dict[str, float]:
    """Median milliseconds of one linearisation of one pose at each level."""
    seen = observe_mask(trials[0].masks, 1, trials[0].camera)
    load(refiner, [Hypothesis(next(iter(refiner.models)), trials[0].truth)], [seen])
    solver, (term,) = refiner.solver, [t for t in refiner.terms if t.name == OUTLINE.term]
    result = {}
    for scale in range(term.finest + 1):
        solver.run([term], [Level(0, 1.0, {term.name: scale})])  # sets the poses to look at
        result[f"level {scale}"] = median_ms(
            lambda scale=scale: term.linearize(solver.poses, scale, solver.trial), 200
        )
    return result


def batch(refiner: Refiner, name: str, trials: list[Trial], objects: int, hypotheses: int):
    """Milliseconds of `objects` x `hypotheses` refinements in one batch, and of the same alone.

    Every hypothesis is followed to the end in both, so that the work is the same.
    """
    rng = np.random.default_rng(1)
    chosen = trials[:objects]
    turned = [
        [rotated(t.start, 0.1 * rng.normal(size=3)) for _ in range(hypotheses)] for t in chosen
    ]
    guesses = [[Hypothesis(name, pose) for pose in own] for own in turned]

    def observed(trial: Trial) -> list[Observation]:
        return [observe_mask(trial.masks, 1, trial.camera)]

    def together() -> None:
        refiner.refine([observed(t) for t in chosen], guesses, keep=hypotheses, restart=False)

    def alone() -> None:
        for trial, own in zip(chosen, guesses, strict=True):
            for one in own:
                refiner.refine([observed(trial)], [[one]], restart=False)

    return median_ms(together, 7), median_ms(alone, 3)


def cold_start() -> dict[str, float]:
    """Seconds of a fresh process from its start to a warmed-up pipeline, with empty caches and
    with full ones."""
    code = (
        "import time, sys; t = time.perf_counter();"
        "from pose_refiner_ros.evaluation.benchmark import vehicle_model;"
        "from pose_refiner_ros.pipeline import Pipeline;"
        "i = time.perf_counter() - t; m = vehicle_model();"
        "Pipeline({m.name: m}, device='cpu').warm_up();"
        "print(i, time.perf_counter() - t)"
    )
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        here = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "WARP_CACHE_PATH": f"{folder}/warp",
            "POSE_REFINER_CACHE": f"{folder}/pose_refiner",
        }
        for name in ("empty caches", "full caches"):
            run = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True
            )
            if run.returncode != 0:
                raise RuntimeError(f"the cold start failed: {run.stderr.strip()[-300:]}")
            imports, ready = (float(x) for x in run.stdout.split()[-2:])
            result[f"{name}: imports s"] = imports
            result[f"{name}: ready s"] = ready
    return result


def run_benchmark(json_path: Path | None = None, device: str = "auto", quick: bool = False) -> dict:
    """Measure everything, print tables, write JSON."""
    device = choose_device(device)
    cv2.setNumThreads(1)
    count = 100 if quick else 500
    reference = reference_ms()
    model = vehicle_model()
    refiner = Refiner([model], device)
    trials = make_trials(model.mesh, count)
    single(model, refiner, trials[:5])  # compiles
    main = single(model, refiner, trials)
    main["ratio_to_reference"] = main["median_ms"] / reference
    together, alone = batch(refiner, model.name, trials, 10, 4)
    report: dict[str, Any] = {
        "device": device,
        "mesh_faces": len(model.mesh.faces),
        "silhouette_faces": len(model.silhouette_mesh.faces),
        "reference_ms": reference,
        "single": main,
        "batch_10x4_ms": together,
        "single_40_ms": alone,
        "stages_ms": stages(model, refiner, trials[:100]),
        "iteration_ms": per_iteration(refiner, trials),
    }
    lines = [[key.replace("_", " "), f"{value:.3f}"] for key, value in main.items()]
    lines += [
        ["reference ms (100 distance transforms)", f"{reference:.2f}"],
        ["10 objects x 4 hypotheses, one batch, ms", f"{together:.1f}"],
        ["the same 40 alone, ms", f"{alone:.1f}"],
    ]
    _print(f"one object, {len(model.mesh.faces)} faces, {device}", [["", ""], *lines])
    total = sum(report["stages_ms"].values())
    lines = [[k, f"{v:.3f}", f"{v / total:.0%}"] for k, v in report["stages_ms"].items()]
    _print("where the time of one object goes", [["stage", "ms", "share"], *lines])
    lines = [[k, f"{v:.3f}", f"{v / reference:.4f}"] for k, v in report["iteration_ms"].items()]
    _print("one linearisation", [["level", "ms", "/ reference"], *lines])

    few = 20 if quick else 100
    report["by_mesh"] = rows = []
    for faces in (1000, 6000, 20000) if quick else (1000, 6000, 20000, 100000):
        for simplified in (True, False):
            mesh = benchmark_mesh(faces)
            shape = simplify_for_silhouette(mesh) if simplified else mesh
            other = ObjectModel("sedan", mesh, shape)
            one = Refiner([other], device, capacity=8)
            subset = make_trials(mesh, few)
            single(other, one, subset[:2])
            result = single(other, one, subset)
            rows.append({"faces": len(mesh.faces), "silhouette_faces": len(shape.faces), **result})
    _print_rows("by mesh size", rows, ("faces", "silhouette_faces"), RESULTS, reference)
    report["by_resolution"] = rows = []
    for crop in (64, 128, 256):
        subset = make_trials(model.mesh, few, crop=crop)
        rows.append({"crop": crop, **single(model, refiner, subset)})
    _print_rows("by crop resolution", rows, ("crop",), RESULTS, reference)
    report["by_count"] = rows = []
    for objects, hypotheses in ((1, 1), (1, 4), (1, 16), (3, 1), (10, 1), (10, 4)):
        together, _ = batch(refiner, model.name, trials, objects, hypotheses)
        rows.append({"objects": objects, "hypotheses": hypotheses, "ms": together})
    shown = [{**row, "each": row["ms"] / row["objects"] / row["hypotheses"]} for row in rows]
    title = "by objects and hypotheses, one batch"
    _print_rows(title, shown, ("objects", "hypotheses"), TIMES, reference)
    report["cold_start"] = cold_start()
    report["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [[key, f"{value:.2f}"] for key, value in report["cold_start"].items()]
    lines.append(["peak memory of this run, MiB", f"{report['peak_memory_mib']:.0f}"])
    _print("cold start and memory", [["what", "value"], *lines])
    if json_path is not None:
        write_atomically(json_path, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _print_rows(
    title: str, rows: list[dict], keys: Sequence[str], columns: Columns, reference: float
) -> None:
    """keys: of what tells the rows apart; the first column is also set against the reference."""
    ms = columns[0][1]
    shown = [
        (*(str(row[key]) for key in keys), {**row, "ratio": row[ms] / reference}) for row in rows
    ]
    _print(title, lines_of(keys, columns, shown))


def _print(title: str, lines: Sequence[Sequence[str]]) -> None:
    """A header, which may be empty, and rows."""
    from rich.console import Console
    from rich.table import Table

    header, *rows = lines
    table = Table(title=title, show_header=any(header))
    for column in header:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
