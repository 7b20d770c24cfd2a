# SPDX-License-Identifier: Apache-2.0
"""Table 2 and figure 6 of Palazzi et al. 2018: the soft rasteriser and the solver side by side.

Both refine the same poses with the same meshes, and without the pipeline around them; and what time
each takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch

from pose_refiner_ros.baselines.gradient_refiner import GradientRefiner
from pose_refiner_ros.baselines.soft_rasterizer import MAX_FACES, SoftRasterizer
from pose_refiner_ros.datasets.vehicles.views import resized_pinhole, silhouettes
from pose_refiner_ros.encoder.category import category_prior
from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, ObservationError, observe_mask
from pose_refiner_ros.refinement.refiner import OUTLINE, Refiner
from pose_refiner_ros.rendering.mesh_batch import MeshBatch
from pose_refiner_ros.torch_threads import one_thread

from .benchmark import load
from .palazzi_blocks import Tools, true_model
from .palazzi_views import (
    LABEL,
    LENS,
    PIXELS,
    Attempt,
    Start,
    measure,
    paper_camera,
    summary,
)
from .report import each

RESOLUTIONS = (16, 32, 64, 128, 256)
SHORT_MS, REPEATS = 20.0, 5  # what takes less is timed by the median of so many calls


@dataclass(eq=False)
class Bench:
    """Starts of the encoder, and the meshes that they are refined with: the medoid of the class
    given, or the true ones. Both refinements begin at the encoder's likeliest pose."""

    tools: Tools
    starts: list[Start]
    true_mesh: bool

    def each(self, block: str, items: Iterable) -> Iterator:
        kind = "true meshes" if self.true_mesh else "medoids"
        return each(self.tools.progress, f"{block}, {kind}", items)

    def __post_init__(self) -> None:
        self.all, self.views = range(len(self.starts)), [start.view for start in self.starts]
        if self.true_mesh:
            vehicles = {view.vehicle.name: view.vehicle for view in self.views}
            self.models = [true_model(vehicle) for vehicle in vehicles.values()]
            self.names = [view.vehicle.name for view in self.views]  # of the model of each start
        else:
            medoids = self.tools.medoids
            self.models = list(medoids.values())
            self.names = [medoids[start.estimate.best_class].name for start in self.starts]
        number = {model.name: i for i, model in enumerate(self.models)}
        self.index = np.array([number[name] for name in self.names])

    @cached_property
    def refiner(self) -> Refiner:
        return Refiner(self.models, self.tools.device, max(len(self.starts), 8))

    @property
    def poses(self) -> np.ndarray:
        return np.stack([start.pose for start in self.starts])

    def hypothesis(self, i: int, pose: np.ndarray, seen: Observation) -> Hypothesis:
        """A pose (4, 4) of the model of a start; a medoid is held to the encoder's opinion."""
        prior = None if self.true_mesh else category_prior(seen, self.starts[i].estimate, pose)
        return Hypothesis(self.names[i], pose, prior)

    def figures(self, poses: np.ndarray) -> dict[str, Any]:
        attempts = [
            Attempt(None, self.models[i].mesh, pose)
            for i, pose in zip(self.index, poses, strict=True)
        ]
        found = summary(measure(self.views, attempts))
        keys = ("n", "miou", "mve_deg", "acc_pi_6", "median_translation_error_m")
        return {key: found[key] for key in keys}

    def by_soft_rasterizer(self, resolution: int) -> tuple[np.ndarray, dict[str, int]]:
        """Poses (N, 4, 4) after 30 steps."""
        descent = GradientRefiner(resolution, device=self.tools.device)
        found = [descent.refine_poses(*self.task(i)).camera_from_object for i in self.all]
        return torch.cat(found).cpu().numpy(), {}

    def task(self, i: int) -> tuple[Observation, ObjectModel, list[np.ndarray]]:
        """What a `GradientRefiner` needs of a start. (Crops of this camera are not turned.)"""
        start = self.starts[i]
        return start.observation, self.models[self.index[i]], [start.pose]

    def by_solver(self, resolution: int) -> tuple[np.ndarray, dict[str, int]]:
        """Poses (N, 4, 4) from crops of at most so many pixels, the coarse level half of them; and
        how many masks were too small for that, whose poses stay as they were."""
        camera, poses, seen = paper_camera(), self.poses, {}
        sizes = (max(resolution // 2, RESOLUTIONS[0]), resolution)
        for i, view in enumerate(self.views):
            with suppress(ObservationError):
                seen[i] = observe_mask(view.mask, LABEL, camera, sizes)
        results = self.refiner.refine(
            [[one] for one in seen.values()],
            [[self.hypothesis(i, poses[i], one)] for i, one in seen.items()],
            keep=1,
            restart=False,
            given=False,
        )
        for i, found in zip(seen, results, strict=True):
            if found and np.isfinite(found[0].reference_from_object).all():
                poses[i] = found[0].reference_from_object
        return poses, {"masks_too_small": len(poses) - len(seen)}


def table2(bench: Bench) -> dict[str, Any]:
    """How far each resolution brings the encoder's poses: gains are differences of mean IoU and of
    medians of the errors, positive where it is better than at the start."""
    start, shift = bench.figures(bench.poses), "median_translation_error_m"
    methods = {"soft_rasterizer": bench.by_soft_rasterizer, "solver": bench.by_solver}
    table: dict[str, Any] = {"start": start, **{method: {} for method in methods}}
    for resolution, method in bench.each("Table 2", product(RESOLUTIONS, methods)):
        poses, more = methods[method](resolution)
        found = bench.figures(poses)
        table[method][str(resolution)] = {
            **found,
            "iou_gain": found["miou"] - start["miou"],
            "viewpoint_gain_deg": start["mve_deg"] - found["mve_deg"],
            "translation_gain_m": start[shift] - found[shift],
            **more,
        }
    return table


def figure_6a(table: dict[str, Any]) -> dict[str, Any]:
    """Mean IoU by resolution, from table 2."""
    return {
        "resolutions": list(RESOLUTIONS),
        "start": table["start"]["miou"],
        **{
            method: [table[method][str(r)]["miou"] for r in RESOLUTIONS]
            for method in ("soft_rasterizer", "solver")
        },
    }


def figure_6b(bench: Bench, repeats: int) -> dict[str, Any]:
    """Milliseconds to draw one image of a medoid, by resolution: medians."""
    times = [
        _drawing_ms(bench, resolution, repeats)
        for resolution in each(bench.tools.progress, "Figure 6b", RESOLUTIONS)
    ]
    return {
        "resolutions": list(RESOLUTIONS),
        "repeats": repeats,
        "faces": [len(model.mesh.faces) for model in bench.models],
        **{name: [ms[name] for ms in times] for name in times[0]},
    }


def _drawing_ms(bench: Bench, resolution: int, repeats: int) -> dict[str, float]:
    meshes, size = [model.mesh for model in bench.models], (resolution, resolution)
    rasterizer = SoftRasterizer(meshes, size, device=bench.tools.device)
    batch = MeshBatch(meshes, bench.tools.device)
    pinhole = resized_pinhole(LENS.pinhole, PIXELS, resolution)

    def soft(i: int, gradient: bool) -> None:
        pose = torch.tensor(bench.poses[i : i + 1], dtype=torch.float32)
        pose.requires_grad_(gradient)
        image = rasterizer(pose, pinhole, int(bench.index[i]))
        if gradient:
            image.sum().backward()

    def fast(i: int) -> None:
        silhouettes(batch, bench.index[i : i + 1], bench.poses[i : i + 1], pinhole, resolution)

    def median_ms(function: Callable[[int], None]) -> float:
        function(0)
        return float(np.median([_ms(function, i % len(bench.starts)) for i in range(repeats)]))

    with one_thread():
        return {
            "soft_rasterizer_ms": median_ms(lambda i: soft(i, False)),
            "soft_rasterizer_with_gradient_ms": median_ms(lambda i: soft(i, True)),
            "fast_silhouette_ms": median_ms(fast),
        }


def figure_6c(bench: Bench) -> dict[str, Any]:
    """Median viewpoint error in degrees after 0, 1, 2, … steps.

    Of the gradient procedures the pose with the least loss so far counts, as it is what they would
    return. The solver is given so many iterations in all, half of them at the coarse level.
    """
    encoder, descent = bench.tools.encoder, GradientRefiner(device=bench.tools.device)
    of_pose, of_encoder = [], []
    for i in bench.each("Figure 6c", bench.all):
        of_pose.append(_best_so_far(descent.refine_poses(*bench.task(i))))
        # the likeliest hypothesis comes first
        of_encoder.append(_best_so_far(descent.refine_encoder(*bench.task(i)[:2], encoder)[0]))
    most = sum(level.iterations for level in OUTLINE.coarse + OUTLINE.fine)
    curves = {  # (steps + 1, N, 4, 4)
        "gradient_pose": np.concatenate(of_pose, axis=1),
        "gradient_encoder": np.concatenate(of_encoder, axis=1),
        "solver": [_solver_limited(bench, k) for k in range(most + 1)],
    }
    return {
        "n": len(bench.starts),
        **{name: [bench.figures(p)["mve_deg"] for p in poses] for name, poses in curves.items()},
    }


def _best_so_far(found) -> np.ndarray:
    """(steps + 1, N, 4, 4) of a gradient descent: the pose with the least loss up to each step."""
    least = found.losses.cummin(dim=0).indices
    which = torch.arange(least.shape[1], device=least.device)
    return found.poses[least, which].cpu().numpy()


def _solver_limited(bench: Bench, iterations: int) -> np.ndarray:
    """(N, 4, 4) after at most so many iterations, half of them at the coarse level."""
    if iterations == 0:
        return bench.poses
    refiner, left, levels = bench.refiner, iterations, []
    for level, share in zip(OUTLINE.coarse + OUTLINE.fine, (0.5, 0.75, 1.0), strict=True):
        own = min(int(np.ceil(left * share)), level.iterations)
        left -= own
        if own:
            levels.append(replace(level, iterations=own))
    seen = [start.observation for start in bench.starts]
    load(refiner, [bench.hypothesis(i, bench.starts[i].pose, seen[i]) for i in bench.all], seen)
    refiner.solver.run(refiner.terms, levels)
    middles = np.array([bench.models[i].box_center for i in bench.index])
    return about_point(refiner.solver.result()["reference_from_object"], -middles)


# Time


def speed(bench: Bench) -> dict[str, Any]:
    """Milliseconds an object of the refinements alone, one object at a time: medians.

    `solver_ms` is Refiner.refine, `gradient_pose_ms` 30 steps of the soft rasteriser at 128x128,
    with the same mesh from the same poses: the encoder's likely hypotheses, as in the pipeline,
    or (`_one_hypothesis`) the likeliest alone. `gradient_encoder_ms` is 30 steps of the weights for
    each likely hypothesis. What takes milliseconds is called several times in a row, as the 30
    steps are 30 calls in a row; `solver_first_call_ms` is the first of them, with caches full of
    other work. Speed-ups set medians against each other.
    """
    refiner, encoder, camera = bench.refiner, bench.tools.encoder, paper_camera()
    descent = GradientRefiner(device=bench.tools.device)

    def solve(i: int, count: int | None) -> None:
        seen, likely = bench.starts[i].observation, bench.starts[i].estimate.likely[:count]
        hypotheses = [bench.hypothesis(i, h.camera_from_object, seen) for h in likely]
        refiner.refine([[seen]], [hypotheses], restart=False)

    def descend(i: int, count: int | None) -> None:
        poses = [h.camera_from_object for h in bench.starts[i].estimate.likely][:count]
        descent.refine_poses(*bench.task(i)[:2], poses)

    timed = {
        "evidence_ms": lambda i: observe_mask(bench.views[i].mask, LABEL, camera),
        "encoder_ms": lambda i: encoder.estimate([bench.starts[i].observation]),
        "solver_ms": lambda i: solve(i, None),
        "solver_one_hypothesis_ms": lambda i: solve(i, 1),
        "gradient_pose_ms": lambda i: descend(i, None),
        "gradient_pose_one_hypothesis_ms": lambda i: descend(i, 1),
        "gradient_encoder_ms": lambda i: descent.refine_encoder(*bench.task(i)[:2], encoder),
    }
    times: dict[str, list[float]] = {name: [] for name in timed}
    first: list[float] = []
    for function in timed.values():
        function(0)  # what a first call sets up is not counted
    # in turn, so that all see the same machine, whatever else it does
    for i in bench.each("Time", bench.all):
        for name, function in timed.items():
            calls = [_ms(function, i)]
            if calls[0] < SHORT_MS:
                calls += [_ms(function, i) for _ in range(REPEATS - 1)]
            times[name].append(float(np.median(calls)))
            if name == "solver_ms":
                first.append(calls[0])
    found: dict[str, Any] = {"n": len(bench.starts)}
    found |= {name: float(np.median(values)) for name, values in times.items()}
    found["solver_first_call_ms"] = float(np.median(first))
    one, solver = found["gradient_pose_one_hypothesis_ms"], found["solver_ms"]
    return found | {
        "speedup_solver_over_30_soft_steps_at_128": found["gradient_pose_ms"] / solver,
        "speedup_one_hypothesis": one / found["solver_one_hypothesis_ms"],
        "speedup_all_hypotheses_over_steps_of_one": one / solver,
        "soft_rasterizer_triangles": [min(len(m.mesh.faces), MAX_FACES) for m in bench.models],
    }


def _ms(function: Callable[[int], None], item: int) -> float:
    began = time.perf_counter()
    function(item)
    return 1e3 * (time.perf_counter() - began)
