# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner evaluate palazzi`: the tables and figures of Palazzi et al. 2018, measured here.

"End-to-end 6-DoF Object Pose Estimation through Differentiable Rasterization": table 1 (what each
refinement makes of the encoder's poses), table 2 and figure 6 (resolutions, time, steps), beside
the paper's own figures, and vehicles from elsewhere. What each block does is in palazzi_blocks.py
(the pipeline) and palazzi_bench.py (the refinements alone).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import pose_refiner_ros
from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS, PER_CLUSTER, Collection, Vehicle
from pose_refiner_ros.encoder.inference import PoseEncoder
from pose_refiner_ros.encoder.network import Encoder
from pose_refiner_ros.evaluation import palazzi_bench as bench
from pose_refiner_ros.evaluation import palazzi_blocks as blocks
from pose_refiner_ros.evaluation.palazzi_tables import KINDS, markdown
from pose_refiner_ros.evaluation.palazzi_views import RIGHT_CLASSES, draw_views, look, mixed
from pose_refiner_ros.evaluation.report import (
    Counts,
    EvaluationError,
    Progress,
    Target,
    machine,
    now,
    silent,
    targets,
    write_json,
    write_pages,
)
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.mesh import load_mesh
from pose_refiner_ros.objects.model import ObjectModel


@dataclass(frozen=True)
class PalazziCounts(Counts):
    """How much of everything: views of table 1 by row, of the other blocks, and repeats.

    true_vehicles: how many vehicles have their own mesh prepared (seconds each, once per machine).
    """

    views: int = 240
    gradient: int = 240
    true_vehicles: int = 45
    true_views: int = 180
    true_gradient: int = 180
    table2: int = 36
    speed: int = 30
    repeats: int = 20
    foreign: int = 40

    def at_most(self, views: int) -> PalazziCounts:
        """With no more views of test vehicles than that in any row."""
        changed = {name: min(n, views) for name, n in asdict(self).items() if name != "foreign"}
        return PalazziCounts(**(changed | {"foreign": self.foreign, "views": views}))


FULL = PalazziCounts()
QUICK = PalazziCounts(
    views=24, gradient=3, true_vehicles=3, true_views=6, true_gradient=3, table2=3, speed=2,
    repeats=2, foreign=2,
)  # fmt: skip

TARGETS: tuple[Target, ...] = (
    ("class accuracy", "table1.medoid.encoder.accuracy", 0.95, True, 0.89),
    ("encoder MVE, degrees", "table1.medoid.encoder.mve_deg", 5.7, False, 5.7),
    ("refined MVE, degrees", "table1.medoid.solver.mve_deg", 3.0, False, 4.5),
    ("refined Acc π/6", "table1.medoid.solver.acc_pi_6", 0.97, True, 0.90),
    ("refined mIoU", "table1.medoid.solver.miou", 0.85, True, 0.72),
    ("refined MVE, true mesh, degrees", "table1.true_mesh.solver.mve_deg", 0.5, False, None),
    ("refined mIoU, true mesh", "table1.true_mesh.solver.miou", 0.97, True, None),
    ("solver faster than 30 soft rasteriser steps at 128×128, times",
     "speed.medoid.speedup_solver_over_30_soft_steps_at_128", 100.0, True, None),
)  # fmt: skip


def recorded_collection(record: dict[str, Any]) -> tuple[int, int]:
    """Vehicles per cluster and seed of the procedural collection that an encoder was trained on,
    the usual ones where its record does not say."""
    data = record.get("data", {})
    models = data.get("models", {}).values()
    return max(models, default=PER_CLUSTER), data.get("seed", 0)


def check_collection(collection: Collection, record: dict[str, Any]) -> None:
    """Raises EvaluationError unless the encoder was trained on this collection's training split: on
    another one, vehicles that it was trained on could be among those to test on."""
    data = record.get("data")
    if not data:
        return
    if data.get("source") != collection.source:
        raise EvaluationError(
            f"the encoder was trained on another collection ({data.get('source')}) than the one to "
            f"test on ({collection.source}); give the same"
        )
    training = collection.split("train")
    models = {c: sum(v.cluster == c for v in training) for c in CLUSTERS}
    if data.get("training_models", models) != models:
        raise EvaluationError(
            f"the encoder was trained on {data['training_models']} models and the collection's "
            f"training split has {models}: it is not the same"
        )


def load_foreign(folder: Path) -> list[Vehicle]:
    """The vehicles of a folder with vehicles.yaml: a list `vehicles` of name, class, file; meshes
    in metres, x forward, y left, z up, origin on the ground below the box centre."""
    path = Path(folder) / "vehicles.yaml"
    if not path.is_file():
        raise EvaluationError(f"{path} does not exist; it lists the vehicles (name, class, file)")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))["vehicles"]
        named = [(str(e["name"]), str(e["class"]), str(e["file"])) for e in entries]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: it must have a list `vehicles` of entries with name, class and file ({error})"
        ) from error
    if not named:
        raise EvaluationError(f"{path} lists no vehicles")
    known = {*CLUSTERS, *RIGHT_CLASSES}
    for name, kind, _ in named:
        if kind not in known:
            raise EvaluationError(
                f"{path}: class of {name} is {kind!r}; use {', '.join(sorted(known))}"
            )
    meshes = (load_mesh(path.parent / file, "m") for _, _, file in named)
    return [Vehicle(name, kind, mesh) for (name, kind, _), mesh in zip(named, meshes, strict=True)]


def run_palazzi(
    out: Path,
    collection: Collection,
    encoder: PoseEncoder,
    euler: Encoder | None = None,
    foreign: Sequence[Vehicle] = (),
    counts: PalazziCounts = FULL,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    euler_record: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure everything; write palazzi.json, palazzi.md and the plots into a folder.

    euler: a network with the paper's head, for one row more; foreign: vehicles from elsewhere. All
    of the same seed see the same views. Raises EvaluationError.
    """
    _check_networks(collection, encoder, euler, euler_record or {})
    began = time.monotonic()
    progress("Vehicles", 0, 2)
    rng = np.random.default_rng(seed)
    test = mixed(collection.split("test"), rng)
    tools = blocks.Tools(encoder, blocks.medoid_models(collection.medoids), device, progress)
    progress("Vehicles", 1, 2)
    some = test[: counts.true_vehicles]
    views = draw_views(test, counts.views, rng)
    true_views = draw_views(some, counts.true_views, rng)
    progress("Vehicles", 2, 2)
    table1 = {
        "medoid": blocks.table1(tools, views, counts.gradient, euler, False),
        "true_mesh": blocks.table1(tools, true_views, counts.true_gradient, euler, True),
    }
    # of each of the first vehicles one view
    starts = [s for s in look(true_views[: counts.table2], encoder) if s is not None]
    if not starts:
        raise EvaluationError(
            "no view of the test vehicles shows enough of one; give more --objects"
        )
    both = {kind: bench.Bench(tools, starts, kind == "true_mesh") for kind in KINDS}
    table2 = {kind: bench.table2(own) for kind, own in both.items()}
    figures = {
        "6a": {kind: bench.figure_6a(table) for kind, table in table2.items()},
        "6b": bench.figure_6b(both["medoid"], counts.repeats),
        "6c": {kind: bench.figure_6c(own) for kind, own in both.items()},
    }
    timed = {kind: replace(own, starts=starts[: counts.speed]) for kind, own in both.items()}
    speed = {kind: bench.speed(own) for kind, own in timed.items()}
    strangers = None
    if foreign:
        shipped_tools = replace(tools, medoids=shipped_medoids())
        strangers = blocks.foreign_vehicles(shipped_tools, foreign, counts.foreign, rng)
    report = {
        "date": now(),
        "version": pose_refiner_ros.__version__,
        "minutes": (time.monotonic() - began) / 60.0,
        "machine": machine(device),
        "seed": seed,
        "counts": asdict(counts),
        "collection": {
            "source": collection.source,
            "test_models": {c: sum(v.cluster == c for v in test) for c in CLUSTERS},
            "medoids": {c: v.name for c, v in collection.medoids.items()},
        },
        "encoder": {"settings": asdict(encoder.encoder.settings), "record": encoder.record},
        "encoder_euler_cosine": None
        if euler is None
        else {"settings": asdict(euler.settings), "record": euler_record or {}},
        "targets": targets({"table1": table1, "speed": speed}, TARGETS),
        "table1": table1,
        "table2": table2,
        "figures": figures,
        "speed": speed,
        "vehicles": strangers,
    }
    from pose_refiner_ros.evaluation.palazzi_plots import plots

    write_json(Path(out) / "palazzi.json", report)
    write_pages(Path(out), "palazzi", markdown(report), plots(report))
    return report


def _check_networks(
    collection: Collection, encoder: PoseEncoder, euler: Encoder | None, euler_record: dict
) -> None:
    """Raises EvaluationError unless both know the collection's classes and were trained on it."""
    for classes, record in (
        (encoder.classes, encoder.record),
        (CLUSTERS if euler is None else euler.settings.classes, euler_record),
    ):
        if tuple(classes) != CLUSTERS:
            raise EvaluationError(
                f"the encoder knows {', '.join(classes)}; this evaluation is about "
                f"{', '.join(CLUSTERS)}"
            )
        check_collection(collection, record)


def shipped_medoids() -> dict[str, ObjectModel]:
    """Cluster -> model, of the object library that comes with the package."""
    library = ObjectLibrary.load(shipped.OBJECTS)
    return {model.category: model for model in library.values() if model.category}
