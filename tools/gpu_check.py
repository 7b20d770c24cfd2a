#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell of this package, in one run of some minutes.

On a machine with CUDA, without network, from the root of a plain checkout; where it is lent for
some minutes, the time limit stands before all:

    timeout 420 python3 tools/gpu_check.py --out gpu_check.json --bop DATASET... --photos PHOTOS

It needs of requirements/: numpy, scipy, opencv-python-headless, torch (built for CUDA), warp-lang,
trimesh, fast-simplification, networkx, safetensors, threadpoolctl, pyyaml; pytest, pytest-timeout
and hypothesis for the tests, lightning-fabric and tensorboard for the encoder. What the machine
lacks can be brought as wheels:

    python3 -m pip install --no-index --no-deps --target /tmp/site WHEELS/*.whl
    export PYTHONPATH=/tmp/site

Without a GPU, to try the script itself:

    python3 tools/gpu_check.py --device cpu --quick --budget 240

Blocks run one after the other, the most telling first, each with seconds of its own out of
--budget and in a process of its own (an illegal address spoils CUDA for the whole process). After
each one the file is written anew, so what is done stays if the run is killed; what goes wrong in a
block is written there and the next one runs. Blocks whose packages are missing are skipped and say
so. Exit code 0: all blocks passed.

    environment   device, memory, versions
    compile       every Warp module of the package, for the device
    kernels       each kind of evidence and each family of kernels, device against CPU
    bench         refinements per second by batch; memory
    record        what the pipeline answers to fixed inputs, device against CPU
    field         a radiance field trained on the device, poses refined in it
    tests         pytest -m gpu
    encoder       trained on the device for some seconds
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "test"), str(ROOT / "tools")]

Report = dict[str, Any]  # of a block: figures, and "passed"
PACKAGES = (
    "warp-lang torch numpy scipy opencv-python-headless trimesh fast-simplification "
    "lightning-fabric pytest"
)
BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
RAY_BATCHES = (1, 12, 100)
MOST_OBJECTS = 64  # of a batch; the rest are hypotheses of the same
LANES = {"terms.silhouette_kernel": 128, "rendering.coverage": 128, "terms.depth_kernel": 64}


class OutOfTime(BaseException):
    """A block's seconds are over. No Exception, so that nothing on the way takes it for one."""


def environment(options: argparse.Namespace, report: Report) -> None:
    """What this machine is."""
    report["python"], report["cpus"] = platform.python_version(), os.cpu_count()
    for name in PACKAGES.split():
        try:
            report[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            report[name] = None
    import warp as wp

    device = wp.get_device(options.device)
    report["device"] = device.name
    report["toolkit of warp"] = wp.get_cuda_toolkit_version()
    report["cuda"] = wp.get_cuda_driver_version()
    if device.is_cuda:
        report["arch"], report["memory_gib"] = device.arch, device.total_memory / 2**30
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, timeout=20)
            report["driver"] = found.stdout.strip()
        except OSError as error:
            report["driver"] = str(error)
    if report["torch"]:
        import torch

        report["cuda of torch"] = torch.version.cuda
        report["torch sees a GPU"] = torch.cuda.is_available()
    report["passed"] = not device.is_cuda or bool(report.get("torch sees a GPU"))


def compile_all(options: argparse.Namespace, report: Report) -> None:
    """Seconds that each module takes: from its source, or from Warp's cache on disk."""
    import warp as wp

    device = wp.get_device(options.device)
    modules = {}
    for path in sorted((ROOT / "pose_refiner_ros").rglob("*.py")):
        if "\n@wp.kernel" in path.read_text():
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            importlib.import_module(name)
            modules[name.removeprefix("pose_refiner_ros.")] = wp.get_module(name)
    from pose_refiner_ros.fields.grid_march import march_kernels
    from pose_refiner_ros.learning.grid_training_kernels import training_kernels
    from pose_refiner_ros.rendering.radiance import trace_kernel, view_kernel

    for degree in (1,) if options.quick else (0, 1, 2):
        made = {"trace": trace_kernel(degree), "view": view_kernel(degree)}
        made |= {**march_kernels(degree), **training_kernels(degree)}
        modules |= {f"{name}, degree {degree}": kernel.module for name, kernel in made.items()}
    seconds, failed = report.setdefault("seconds_each", {}), report.setdefault("failed", {})

    def load(name: str, module: Any) -> None:
        lanes = [lanes for end, lanes in LANES.items() if name.endswith(end)]
        block = {"block_dim": lanes[0]} if lanes and device.is_cuda else {}
        begun = time.perf_counter()
        try:
            if module.load(device, **block) is None:
                failed[name] = "it does not load"
        except Exception as error:
            failed[name] = str(error)
        seconds[name] = round(time.perf_counter() - begun, 3)

    with ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 1) - 1))) as pool:
        list(pool.map(load, modules, modules.values()))
    report["passed"] = not failed


def kernels(options: argparse.Namespace, report: Report) -> None:
    """Largest differences between device and CPU; 1 is what is just allowed."""
    from both_devices import CASES, OWN_TOLERANCE, TOLERANCE, differences

    report["tolerance"] = {"of the largest value": TOLERANCE, **OWN_TOLERANCE}
    cases = report.setdefault("cases", {})
    for name, case in CASES.items():
        try:
            apart = differences(case(options.device), case("cpu"))
            worst = max(apart, key=lambda figure: apart[figure])
            cases[name] = {"worst": worst, "of_tolerance": apart}
        except Exception:
            cases[name] = {"worst": traceback.format_exc(limit=-3), "of_tolerance": {"": 1e9}}
    report["failed"] = [n for n, c in cases.items() if not max(c["of_tolerance"].values()) <= 1.0]
    report["passed"] = len(cases) == len(CASES) and not report["failed"]


def bench(options: argparse.Namespace, report: Report) -> None:
    """Milliseconds of batches: `refine` all there is to it, `load` and `solve` the solver alone,
    every pose through all levels, without choosing among them."""
    import numpy as np
    import warp as wp
    from analytic_field import view_from
    from painted import painted_block, photo
    from shapes import pinhole_camera

    from pose_refiner_ros.evaluation.benchmark import make_trials, vehicle_model
    from pose_refiner_ros.evaluation.bop import perturbed
    from pose_refiner_ros.geometry.pose import rotated
    from pose_refiner_ros.refinement.hypotheses import Hypothesis
    from pose_refiner_ros.refinement.observation import observe_image, observe_mask
    from pose_refiner_ros.refinement.refiner import COLOURS, OUTLINE, Refiner
    from pose_refiner_ros.scene_localiser import field_model

    cuda = wp.get_device(options.device).is_cuda
    rng = np.random.default_rng(1)
    few = options.quick or not cuda
    batches, ray_batches = (BATCHES[:4], RAY_BATCHES[:2]) if few else (BATCHES, RAY_BATCHES)
    model = vehicle_model()
    trials = make_trials(model.mesh, min(max(batches), MOST_OBJECTS))
    views = [observe_mask(trial.masks, 1, trial.camera) for trial in trials]
    truths = [trial.truth for trial in trials]
    report["silhouettes"], report["rays"] = [], []
    for count in batches:
        objects = min(count, MOST_OBJECTS)
        starts = [
            [
                Hypothesis(model.name, rotated(trial.start, 0.1 * rng.normal(size=3)), index=i)
                for _ in range(count // objects)
            ]
            for i, trial in enumerate(trials[:objects])
        ]
        refiner = Refiner([model], options.device, count)
        row = measured(refiner, OUTLINE, views[:objects], starts, truths)
        report["silhouettes"].append({"poses": count, **row})
    camera = pinhole_camera(256, 400.0)
    block, truth = painted_block(voxel=0.005), view_from((1, 0.5, 0.4), 0.8)
    grey = (0.5, 0.5, 0.5)
    view = observe_image(photo(block, truth, camera, grey)[0], camera, grey)
    for count in ray_batches:
        starts = [[Hypothesis("block", perturbed(truth, 10.0, 0.01, rng)) for _ in range(count)]]
        refiner = Refiner([field_model("block", block)], options.device, max(count, 2))
        row = {"poses": count, **measured(refiner, COLOURS, [view], starts, [truth])}
        report["rays"].append(row)
    if cuda and wp.is_mempool_enabled(options.device):
        report["peak_memory_mib"] = wp.get_mempool_used_mem_high(options.device) / 2**20
    best = [row["within_5_deg"] for row in report["silhouettes"] + report["rays"]]
    report["passed"] = min(best) > 0.7


def measured(refiner, stage, views, starts, truths) -> Report:
    """Of a batch; starts: hypotheses of each of the views."""
    import numpy as np
    import warp as wp

    from pose_refiner_ros.geometry.pose import about_point, rotation_angle

    every = [one for own in starts for one in own]
    rows = [(i, views[one.index]) for i, one in enumerate(every)]
    solver, terms = refiner.solver, [term for term in refiner.terms if term.name in stage.terms]
    models = [refiner.models[one.object] for one in every]
    middles = np.array([model.box_center for model in models])
    diameters = np.array([model.diameter for model in models])

    def load() -> None:
        for term in terms:
            term.observe(views)
            term.load(every, rows)
        poses = np.array([one.reference_from_object for one in every])
        solver.load(about_point(poses, middles), diameters)
        wp.synchronize()

    def solve() -> np.ndarray:
        solver.run(terms, stage.coarse + stage.fine)
        solver.evaluate(terms)
        return solver.result()["reference_from_object"]

    times: dict[str, list[float]] = {"load_ms": [], "solve_ms": [], "refine_ms": []}
    begun = time.perf_counter()
    while len(times["solve_ms"]) < 4 or time.perf_counter() - begun < 0.5:
        for name, work in (("load_ms", load), ("solve_ms", solve)):
            start = time.perf_counter()
            poses = work()
            times[name].append(1e3 * (time.perf_counter() - start))
    begun = time.perf_counter()
    while len(times["refine_ms"]) < 3 or time.perf_counter() - begun < 0.5:
        start = time.perf_counter()
        refiner.refine([[view] for view in views], starts, len(starts[0]), restart=False)
        times["refine_ms"].append(1e3 * (time.perf_counter() - start))
    off = [
        np.degrees(rotation_angle(truths[one.index][:3, :3].T @ pose[:3, :3]))
        for one, pose in zip(every, poses, strict=True)
    ]
    result = {name: float(np.median(own[len(own) // 2 :])) for name, own in times.items()}
    result["refined_per_second"] = 1e3 * len(every) / result["refine_ms"]
    result["solved_per_second"] = 1e3 * len(every) / (result["load_ms"] + result["solve_ms"])
    result["within_5_deg"] = float(np.mean(np.array(off) < 5.0))
    device = solver.device
    if device.is_cuda and wp.is_mempool_enabled(device):
        result["memory_mib"] = wp.get_mempool_used_mem_current(device) / 2**20
    return result


def spread(values) -> dict[str, float]:
    """Of an array."""
    import numpy as np

    median, most_of_them = np.quantile(values, [0.5, 0.95])
    return {"median": float(median), "95 %": float(most_of_them), "most": float(values.max())}


def record(options: argparse.Namespace, report: Report) -> None:
    """tools/record_poses.py on both."""
    import numpy as np
    import record_poses

    sources: dict[str, Callable[[str], Any]] = {
        "drive": lambda device: record_poses.drive(6 if options.quick else 30, device)
    }
    for folder in options.bop:
        if folder.is_dir():
            sources[folder.name] = lambda device, folder=folder: record_poses.bop(folder, device)
        else:
            report[folder.name] = f"{folder} is not there"
    passed = []
    for name, rows in sources.items():
        old = {row["key"]: row for row in rows("cpu")}
        new = {row["key"]: row for row in rows(options.device)}
        both = [(a, new[k]) for k, a in old.items() if a["pose"] and new[k]["pose"]]
        apart = np.array(
            [record_poses.difference(*(np.array(row["pose"]) for row in pair)) for pair in both]
        )
        apart[:, 1] *= 1e3
        figures = report[name] = {"poses": len(both), "only one": len(old) - len(both)}
        figures["apart deg"], figures["apart mm"] = map(spread, apart.T)
        figures["qualities changed"] = sum(a["quality"] != b["quality"] for a, b in both)
        for device, place in (("cpu", 0), (options.device, 1)):
            known = [pair[place] for pair in both if "degrees" in pair[place]]
            off = np.array([(row["degrees"], 1e3 * row["metres"]) for row in known]).T
            figures[f"errors, {device}"] = {
                "deg": spread(off[0]),
                "mm": spread(off[1]),
                "ms each": float(np.median([row["ms"] for row in known])),
            }
        medians = [figures[f"errors, {d}"]["deg"]["median"] for d in ("cpu", options.device)]
        passed.append(
            figures["apart deg"]["median"] < 0.1
            and figures["qualities changed"] + figures["only one"] <= 0.05 * len(old)
            and medians[1] <= 1.1 * medians[0] + 0.05
        )
    report["passed"] = all(passed)


def field(options: argparse.Namespace, report: Report) -> None:
    """A grid trained for some seconds, its PSNR, and poses that are refined in it."""
    import numpy as np
    import posed_scene
    import record_poses

    from pose_refiner_ros.datasets.posed_images import load_posed_images
    from pose_refiner_ros.fields.field_file import save_field
    from pose_refiner_ros.learning.field_photos import field_psnr
    from pose_refiner_ros.learning.grid_training import GridOptions, GridTraining

    seconds = 6 if options.quick else options.field_seconds
    with TemporaryDirectory() as made:
        photos = options.photos or posed_scene.write_split_scene(Path(made), 40, 5)
        posed, test = (load_posed_images(photos, split) for split in ("train", "test"))
        wanted = GridOptions(steps=30, rays=4096 if options.quick else 16384)
        probe = GridTraining(posed, wanted, options.device)
        for _ in range(30):
            probe.step()
        steps = int(np.clip(seconds * 30 / probe.seconds, 60, 5000))
        training = GridTraining(posed, replace(wanted, steps=steps), options.device)
        begun = time.perf_counter()
        while training.done < steps and time.perf_counter() - begun < 1.5 * seconds:
            training.step()
        trained = training.finish()
        report["steps"], report["steps_wanted"] = training.done, steps
        report["seconds_trained"] = training.seconds
        report["steps_per_second"] = training.done / training.seconds
        report["psnr"] = float(field_psnr(trained, test).mean())
        report["passed"] = report["psnr"] > 20.0
        if test.alpha is None:
            report["poses"] = "photos without masks: no poses are refined"
            return
        file = Path(made) / "field.safetensors"
        save_field(trained, file)
        rows = list(record_poses.field(file, photos, options.device))
    for how in ("near", "tracked", "none"):
        own = [row for row in rows if row["key"].split("/")[-2] == how]
        good = [row for row in own if row.get("degrees", 180.0) < 5.0]
        report[f"under 5 deg, {how}"] = len(good) / len(own)
        report[f"ms, {how}"] = float(np.median([row["ms"] for row in own]))
    report["passed"] &= report["under 5 deg, near"] >= 0.75


def tests(options: argparse.Namespace, report: Report) -> None:
    """Those that are marked `gpu`."""
    import pytest  # noqa: F401  says that it is missing

    folders = ["test/refinement", "test/rendering"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    report["output"] = (run.stdout + run.stderr)[-4000:].splitlines()
    report["passed"] = run.returncode == 0


def encoder(options: argparse.Namespace, report: Report) -> None:
    """Generated vehicles, clean masks of others to judge it by."""
    from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS, procedural_collection
    from pose_refiner_ros.encoder.network import EncoderSettings
    from pose_refiner_ros.learning.encoder_training import TrainingOptions
    from pose_refiner_ros.learning.vehicle_training import train_on

    collection = procedural_collection(6 if options.quick else 30)
    times: list[tuple[int, float]] = []
    last: dict[str, float] = {}

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        times.append((done, time.perf_counter()))
        last.update(figures)

    steps = 60 if options.quick else options.encoder_steps
    wanted = TrainingOptions(
        steps, warm_up=min(500, steps // 5), log_every=max(steps // 20, 1), checkpoint_every=10**9,
        workers=0 if options.quick else max(1, min(8, (os.cpu_count() or 1) - 2)),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        train_on(
            collection, EncoderSettings(CLUSTERS), Path(folder), wanted, 1,
            "cpu" if options.device == "cpu" else "gpu",
            progress=progress, validation_batches=2 if options.quick else 8,
        )  # fmt: skip
    # the start, and the validation at the end, take most of a minute beside the steps
    (first, begun), (done, ended) = times[0], times[-2]
    report["steps"], report["steps_per_second"] = steps, (done - first) / (ended - begun)
    report["loss"] = {k: v for k, v in last.items() if not k.startswith("val_")}
    report |= {name: value for name, value in last.items() if name.startswith("val_")}
    report["passed"] = report["val_accuracy"] > (0.0 if options.quick else 0.6)


Block = Callable[[argparse.Namespace, Report], None]
# and the most seconds of each; all of them together may take less than their sum
BLOCKS: dict[str, tuple[Block, float]] = {
    "environment": (environment, 20),
    "compile": (compile_all, 90),
    "kernels": (kernels, 80),
    "bench": (bench, 80),
    "record": (record, 50),
    "field": (field, 70),
    "tests": (tests, 60),
    "encoder": (encoder, 120),
}


def run_block(block: Block, seconds: float, options: argparse.Namespace, report: Report) -> None:
    """Run a block for at most so long; what it found before an error stays."""
    begun = time.perf_counter()

    def over(number: int, frame: Any) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, over)
    options.left = lambda: seconds - (time.perf_counter() - begun)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
        block(options, report)
    except OutOfTime:
        report["error"], report["passed"] = f"its {seconds:.0f} s were over", False
    except ModuleNotFoundError as error:
        report["skipped"], report["passed"] = f"{error.name} is missing", False
    except Exception as error:
        report["error"], report["passed"] = f"{type(error).__name__}: {error}", False
        report["trace"] = traceback.format_exc().splitlines()[-12:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    report["seconds"] = round(time.perf_counter() - begun, 1)


def in_own_process(name: str, seconds: float, command: Sequence[str]) -> Report:
    """Report of a block."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        own = ["--only", name, "--budget", f"{seconds:.1f}", "--out", str(out)]
        try:
            code = subprocess.run(
                [sys.executable, __file__, *command, *own], timeout=seconds + 20.0
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
        if out.is_file():
            return json.loads(out.read_text())["blocks"][name]
    return {"error": f"its process ended with {code}", "passed": False, "seconds": seconds}


def write(path: Path, report: Report) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(report, indent=1, default=str) + "\n")
    part.replace(path)


def summary(name: str, report: Report) -> str:
    """A line of the table."""
    result = "skipped" if "skipped" in report else "passed" if report["passed"] else "FAILED"
    told = report.get("error") or report.get("skipped") or ""
    if name == "environment":
        told = told or f"{report.get('device')}, Warp {report.get('warp-lang')}"
    elif name in ("compile", "kernels") and report.get("failed"):
        told = told or "not good: " + ", ".join(report["failed"])
    elif name == "bench" and report.get("silhouettes"):
        fastest = max(report["silhouettes"], key=lambda row: row["solved_per_second"])
        told = told or f"{fastest['solved_per_second']:.0f} poses/s in {fastest['poses']}"
    elif name == "record" and "drive" in report:
        told = told or f"apart by {report['drive']['apart deg']['median']:.4f} deg (median)"
    elif name == "field" and "psnr" in report:
        told = told or f"{report['psnr']:.1f} dB, {report['steps_per_second']:.1f} steps/s"
    elif name == "tests" and report.get("output"):
        told = told or report["output"][-1]
    elif name == "encoder" and "val_accuracy" in report:
        told = told or f"{report['steps_per_second']:.1f} steps/s, {report['val_accuracy']:.2f}"
    return f"{name:12} {result:8} {report['seconds']:6.1f} s  {told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for a trial")
    parser.add_argument("--budget", type=float, default=360.0, help="seconds in all")
    parser.add_argument("--only", default=",".join(BLOCKS), help="blocks, with commas between")
    parser.add_argument("--quick", action="store_true", help="little of everything")
    parser.add_argument("--bop", type=Path, nargs="*", default=[], help="data sets to be recorded")
    parser.add_argument("--photos", type=Path, help="posed photos, instead of rendered ones")
    parser.add_argument("--field-seconds", type=float, default=25.0)
    parser.add_argument("--encoder-steps", type=int, default=2500)
    options = parser.parse_args(arguments)
    chosen = options.only.split(",")
    if unknown := [name for name in chosen if name not in BLOCKS]:
        parser.error(f"no block {', '.join(unknown)}: choose of {', '.join(BLOCKS)}")
    begun = time.perf_counter()
    command = sys.argv[1:] if arguments is None else list(arguments)
    report: Report = {"arguments": command, "blocks": {}}
    for name in chosen:
        own = report["blocks"][name] = {"passed": False}
        block, most = BLOCKS[name]
        left = options.budget - (time.perf_counter() - begun)
        if left < 2.0:
            own |= {"skipped": "no seconds are left of the budget", "seconds": 0.0}
        else:
            print(f"{name} ...", flush=True)
            if len(chosen) == 1:
                run_block(block, min(most, left), options, own)
            else:
                own |= in_own_process(name, min(most, left), command)
        report["seconds"] = round(time.perf_counter() - begun, 1)
        report["passed"] = all(one["passed"] for one in report["blocks"].values())
        write(options.out, report)
    if "--only" not in command or len(chosen) > 1:
        print(*(summary(name, own) for name, own in report["blocks"].items()), sep="\n")
    return 0 if report["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
