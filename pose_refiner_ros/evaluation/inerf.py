# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner evaluate inerf`: the tables and figures of iNeRF (Yen-Chen et al. 2021), measured.

The paper's refinement by Adam and the fast one by Levenberg-Marquardt, on the same test photos of
the same field, of an object or a scene (inerf_protocol.py). What each block does is in
inerf_blocks.py and inerf_adam_blocks.py. Blocks are apart: inerf.json, or inerf_NAME.json of a
scene in a folder NAME, is written after each, and one that fails is named there and leaves the
others alone.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pose_refiner_ros
from pose_refiner_ros.datasets.posed_images import PosedImages, load_posed_images
from pose_refiner_ros.evaluation import inerf_adam_blocks as adam_blocks
from pose_refiner_ros.evaluation import inerf_blocks as blocks
from pose_refiner_ros.evaluation.inerf_protocol import InerfCounts, Protocol
from pose_refiner_ros.evaluation.inerf_scene import SceneFrame, is_scene
from pose_refiner_ros.evaluation.inerf_tables import markdown, stem_of
from pose_refiner_ros.evaluation.inerf_tools import SAMPLING, Tools
from pose_refiner_ros.evaluation.report import (
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
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.mlp import PAPER, SMALL
from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.learning.grid_training import GridOptions, train_grid
from pose_refiner_ros.learning.mlp_training import MlpOptions, train_mlp
from pose_refiner_ros.refinement.ray_sampling import SAMPLINGS

FULL = InerfCounts()
QUICK = InerfCounts(
    views=4, starts=2, adam_views=2, adam_starts=1, steps=20, mlp_runs=2, mlp_steps=4,
    mlp_training=20, half_turn_starts=1, light_starts=1, light_adam_runs=1, batch_repeats=1,
    most_at_once=4, table1_photos=16, table1_factor=8, table1_steps=30, table1_rays=2048,
)  # fmt: skip
FULL_SCENE = InerfCounts(views=5, light_adam_runs=3, table1_factor=4, table1_steps=400)
QUICK_SCENE = replace(QUICK, views=1, adam_views=1, steps=5, table1_steps=20)
MLP_RAYS = {"small": 512, "paper": 1024}
BATCH_SIZES = (1, 4, 12, 40, 100)
MOST_ON_CPU = 40
EXAMPLES = 3
# Blocks that only one of the protocols has. The camera of a scene has no up axis to be turned about
# from a far side, and a network of a size for CPUs shows no scene.
OF_OBJECTS = ("half_turn", "figure_6a", "adam_mlp", "self_supervision")
OF_SCENES = ("basin", "figure_6b", "table1")

TARGETS: tuple[Target, ...] = (
    ("fast: under 5°", "methods.fast.share_5deg", 0.95, True, 0.71),
    ("fast: under 5 cm", "methods.fast.share_5cm", 0.95, True, 0.73),
    ("fast: under both", "methods.fast.share_both", 0.95, True, None),
    ("fast: median rotation error, degrees", "methods.fast.median_rotation_error_deg", 0.5, False,
     None),
    ("fast: seconds per pose, CPU", "methods.fast.seconds_per_pose", 1.0, False, None),
    ("fast: seconds per pose, GPU", "methods.fast.seconds_per_pose", 0.03, False, None),
    ("fast: seconds per pose, 100 at once, GPU", "batch.rows.-1.photos_seconds_each", 0.03, False,
     None),
    ("faster than Adam on the same field to 5° and 5 cm, times", "speed.levels.5deg_5cm.times",
     50.0, True, None),
    ("faster than Adam to the accuracy that fast ends at, times", "speed.levels.own.times", 50.0,
     True, None),
    ("share under both of Adam: interest regions minus random", "figure_6a.region_minus_random",
     0.01, True, None),
    ("±180° about the up axis, 12 hypotheses: right", "half_turn.share_both", 0.9, True, None),
    ("grid: test PSNR, dB", "field.record.test.mean_psnr", 30.0, True, None),
    ("grid: training, seconds", "field.record.seconds", 300.0, False, None),
)  # fmt: skip
SCENE_TARGETS: tuple[Target, ...] = (
    ("fast: under 5°", "methods.fast.share_5deg", 0.95, True, 0.55),
    ("fast: under 0.05", "methods.fast.share_5cm", 0.95, True, 0.39),
    ("fast: under both", "methods.fast.share_both", 0.95, True, None),
    ("fast: under 5° and 0.05 in the field's own unit", "methods.fast.share_both_field_unit", 0.95,
     True, None),
    ("fast: seconds per pose, CPU", "methods.fast.seconds_per_pose", 0.5, False, None),
    ("grid: test PSNR, dB", "field.record.test.mean_psnr", 24.5, True, None),
    ("grid: training, seconds", "field.record.seconds", 240.0, False, None),
)  # fmt: skip


def run_inerf(
    out: Path,
    data: Path,
    field: RadianceField,
    mlp: RadianceField | None = None,
    counts: InerfCounts | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    only: Sequence[str] = (),
    quick: bool = False,
) -> dict[str, Any]:
    """Measure everything; write inerf.json, inerf.md and the plots into a folder.

    field: a grid; mlp: a network, trained here for a moment if not given. counts: those of a full
    run if not given, or with `quick` of one that only shows that all works. only: names of blocks
    to run; the others are those of the inerf.json that is there, if one is. Of a scene the files
    are called inerf_NAME, after its folder. Raises EvaluationError.
    """
    out, data = Path(out), Path(data)
    if mlp is not None and mlp.kind != "mlp":
        raise EvaluationError(f"--mlp-field is a field of kind {mlp.kind!r}; give one of kind mlp")
    scale = float(field.record.get("scale", 1.0))
    posed, scene = load_posed_images(data, "test", scale), None
    described = _described(field)
    if is_scene(posed, field):
        if mlp is not None:
            raise EvaluationError(
                "--mlp-field is for objects, and these photos are of a scene: leave it out"
            )
        scene = SceneFrame.of(data, scale)
        posed, field = scene.photos(posed), scene.field(field)
    if counts is None:
        full, tiny = (FULL, QUICK) if scene is None else (FULL_SCENE, QUICK_SCENE)
        counts = tiny if quick else full
    starts = max(counts.starts, counts.adam_starts)
    protocol = Protocol.of(posed, field, starts, seed, scene)
    tools = Tools(protocol, field, device, seed, counts, progress)
    tools.refiner()  # which says so if the field is of the wrong kind
    of = {
        "seed": seed,
        "counts": asdict(counts),
        "data": {"name": _name(data), "photos": len(posed), "size": list(posed.size)},
        "field": described,
    }
    if scene is not None:
        of["scene"] = {"origin": scene.origin.tolist(), "scale": scene.scale}
    stem = stem_of(of)
    path = out / f"{stem}.json"
    before = _read(path, of, device) if only and path.is_file() else None
    report = {
        **(before or {**of, "targets": [], "methods": {}, "blocks": {}}),
        "date": now(),
        "version": pose_refiner_ros.__version__,
        "machine": _machine(device),
    }
    todo = _blocks(out, tools, data, scale, mlp, report)
    unknown = [name for name in only if name not in todo]
    if unknown:
        raise EvaluationError(
            f"no block is called {', '.join(unknown)}; there are {', '.join(todo)}"
        )
    other = "GPU" if device == "cpu" else "CPU"
    aims = TARGETS if scene is None else SCENE_TARGETS
    aims = [aim for aim in aims if not aim[0].endswith(other)]
    progress("Kernels", 0, 1)
    tools.warm_up()
    progress("Kernels", 1, 1)
    for name, run in todo.items():
        if only and name not in only:
            continue
        begun = time.monotonic()
        failure = None
        try:
            run()
        except Exception as error:  # whatever it is, the other blocks took minutes
            failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        report["blocks"][name] = {
            "date": now(), "minutes": (time.monotonic() - begun) / 60.0, "failed": failure
        }  # fmt: skip
        report["minutes"] = sum(block["minutes"] for block in report["blocks"].values())
        report["targets"] = targets(report, aims)
        write_json(path, report)
    from pose_refiner_ros.evaluation.inerf_plots import plots

    write_pages(out, stem, markdown(report), plots(report))
    return report


def _blocks(
    out: Path,
    tools: Tools,
    data: Path,
    scale: float,
    mlp: RadianceField | None,
    report: dict[str, Any],
) -> dict[str, Callable[[], None]]:
    """Name -> what puts a block's figures into the report."""
    methods, counts, scene = report["methods"], tools.counts, tools.protocol.scene

    def photos(split: str, factor: int = 1) -> PosedImages:
        posed = load_posed_images(data, split, scale, factor)
        return posed if scene is None else scene.photos(posed)

    def speed() -> None:
        report["speed"], methods["adam_grid"] = adam_blocks.speed(tools)

    def figure_6(letter: str, samplings: Sequence[str]) -> None:
        known = methods.get("adam_grid")
        report[f"figure_6{letter}"] = adam_blocks.figure_6(tools, samplings, known)

    def batch() -> None:
        most = min(counts.most_at_once, MOST_ON_CPU if tools.device == "cpu" else math.inf)
        sizes = [size for size in BATCH_SIZES if size <= most]
        report["batch"] = blocks.batch(tools, sizes)

    def examples() -> None:
        from pose_refiner_ros.evaluation.inerf_plots import pictures

        found = blocks.examples(tools, min(EXAMPLES, len(tools.protocol.images)))
        write_atomically(out / f"{stem_of(report)}_examples.png", pictures(found))

    def adam_mlp() -> None:
        network = mlp
        if network is None:
            network = train_mlp(
                photos("train"), SMALL,
                MlpOptions(counts.mlp_training, learning_rate=2e-3, seed=tools.seed, log_every=10),
                tools.device, lambda step, total, _: tools.progress("Network", step, total),
            )  # fmt: skip
        size = "paper" if network.settings == PAPER else "small"
        found = adam_blocks.adam_mlp(tools, network, MLP_RAYS[size])
        methods["adam_mlp"] = {**found, "field": _described(network)}

    def table1() -> None:
        from pose_refiner_ros.evaluation.label_shares import label_shares

        train = photos("train", counts.table1_factor)
        train = train.subset(range(min(len(train), counts.table1_photos)))
        options = GridOptions(steps=counts.table1_steps, rays=counts.table1_rays, seed=tools.seed)
        table = label_shares(
            train, photos("test", counts.table1_factor),
            train=lambda posed: train_grid(posed, options, tools.device), seed=tools.seed,
            device=tools.device, progress=tools.progress, scene=scene is not None,
        )  # fmt: skip
        report["self_supervision" if scene is None else "table1"] = {
            "photos": len(train), "steps": options.steps, "rays": options.rays, **table
        }  # fmt: skip

    every = {
        "fast": lambda: methods.update(fast=blocks.fast(tools)),
        "basin": lambda: report.update(basin=blocks.basin(tools)),
        "speed": speed,
        "half_turn": lambda: report.update(half_turn=blocks.half_turn(tools)),
        "light": lambda: report.update(light=blocks.light(tools)),
        "batch": batch,
        "examples": examples,
        "figure_6a": lambda: figure_6("a", SAMPLINGS),
        "figure_6b": lambda: figure_6("b", [SAMPLING]),
        "adam_mlp": adam_mlp,
        "self_supervision": table1,
        "table1": table1,
    }
    others = OF_SCENES if scene is None else OF_OBJECTS
    return {name: run for name, run in every.items() if name not in others}


def _name(data: Path) -> str:
    """Of the folder of photos, or of the one that the given file is in."""
    data = data.absolute()
    return (data if data.is_dir() else data.parent).name


def _described(field: RadianceField) -> dict[str, Any]:
    settings = field.settings if isinstance(field.settings, dict) else asdict(field.settings)
    return {
        "kind": field.kind,
        "settings": _as_json(settings),
        "bounds": np.asarray(field.bounds).tolist(),
        "record": {k: v for k, v in field.record.items() if k not in ("source", "view")},
    }


def _machine(device: str) -> dict[str, Any]:
    found = {**machine(device), "threads": torch.get_num_threads()}
    if device != "cpu":
        found["gpu"] = torch.cuda.get_device_name(device)
    if hasattr(os, "getloadavg"):
        found["load_at_start"] = round(os.getloadavg()[0], 2)
    return found


def _read(path: Path, of: dict[str, Any], device: str) -> dict[str, Any]:
    """The report that is there. of: what it must agree with."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in of.items() if report[name] != _as_json(value)]
        if not all(isinstance(report[name], dict) for name in ("methods", "blocks", "machine")):
            raise TypeError("methods, blocks and machine must be JSON objects")
    except (ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} cannot be used ({error!r}): run all blocks") from error
    if other:
        raise EvaluationError(
            f"{path} is of another run, with another {', '.join(other)}: run all blocks"
        )
    if (elsewhere := report["machine"].get("device")) != device:
        raise EvaluationError(
            f"{path} was measured on {elsewhere}, not {device}: run all blocks, or give another "
            "folder"
        )
    return report


def _as_json(value: Any) -> Any:
    """Tuples as lists."""
    return json.loads(json.dumps(value))
