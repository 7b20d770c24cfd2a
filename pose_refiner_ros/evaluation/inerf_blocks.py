# SPDX-License-Identifier: Apache-2.0
"""What `evaluate inerf` measures: poses of test photos, refined in a radiance field.

Protocol of section V-A of the paper: the true pose, turned by up to 40° about a random axis and
moved by up to 0.2 along each, is refined again; RGB alone, in front of white, no mask. As in the
authors' code the camera is turned about the model's origin and moved along the model's axes. The
error of the translation is the distance between the cameras' positions in the model's frame, since
the paper's poses are those of cameras; that of the model's origin in the camera's frame, the
measure of object poses, is noted beside it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from pose_refiner_ros.baselines.photometric_descent import DescentResult, PhotometricDescent
from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.evaluation.report import Counts, EvaluationError, Progress, each
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.orbit import view_of
from pose_refiner_ros.fields.picture import picture_over
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse, rotated
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_image
from pose_refiner_ros.refinement.ray_sampling import SAMPLINGS
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.scene_localiser import field_model
from pose_refiner_ros.settings import Settings

TURN = 40.0  # degrees
SHIFT = 0.2  # metres
RIGHT_DEG, RIGHT_M = 5.0, 0.05
LEVELS = {  # how exact, degrees and metres; the second is what the fast method's median is to be
    "5deg_5cm": (RIGHT_DEG, RIGHT_M),
    "half_degree_5cm": (0.5, RIGHT_M),
}
BATCHES = (512, 1024, 2048)
RAYS = 1024
SAMPLING = "interest_region"
RECORD_EVERY = 5
WHITE = (1.0, 1.0, 1.0)
NAME = "object"
# Strengths of a change of light: gains of channels, and what is added to them.
GAINS, BIAS = (0.7, 1.3), 0.05


@dataclass(frozen=True)
class InerfCounts(Counts):
    """How much of everything. Photos and starts of each, and steps of Adam.

    adam_views, adam_starts: of the runs that both methods do, and of each cell of Fig. 6a.
    mlp_training: steps, where no network is given. table1: photos of Table I, by what they are
    made smaller, and the training of its fields.
    """

    views: int = 8
    starts: int = 10
    adam_views: int = 5
    adam_starts: int = 5
    steps: int = 300
    mlp_runs: int = 8
    mlp_steps: int = 300
    mlp_training: int = 1000
    half_turn_starts: int = 5
    hypotheses: int = 12
    light_starts: int = 2
    light_adam_runs: int = 5
    batch_repeats: int = 5
    most_at_once: int = 100
    table1_photos: int = 100
    table1_factor: int = 2
    table1_steps: int = 300
    table1_rays: int = 16384


@dataclass(eq=False)
class Protocol:
    """Test photos, their true poses, and poses to start from.

    images: (N, H, W, 3) float32 RGB in [0, 1], in front of `background`; truths: (N, 4, 4); starts:
    (N, S, 4, 4); all poses are camera_from_object.
    """

    images: np.ndarray
    background: tuple[float, float, float]
    cameras: list[Camera]
    truths: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, posed: PosedImages, field: RadianceField, starts: int, seed: int) -> Protocol:
        """From test photos. The starts of a view are the same, however many there are of others.

        Raises EvaluationError where what is behind the object is unknown.
        """
        images = posed.images.astype(np.float32) / 255.0
        background = WHITE
        if posed.alpha is not None:
            alpha = posed.alpha[..., None].astype(np.float32) / 255.0
            images = images * alpha + (1.0 - alpha)
        elif field.background is not None:
            background = tuple(float(c) for c in field.background)
        else:
            raise EvaluationError(
                "the test photos have no alpha and the field no background: nothing says what is "
                "behind the object"
            )
        if posed.weight is not None:
            raise EvaluationError(
                "parts of the test photos are unknown (undistorted, or hidden); the protocol "
                "compares whole photos"
            )
        cameras = [Camera(K, posed.size) for K in posed.intrinsics]
        drawn = []
        for i, truth in enumerate(posed.camera_from_object):
            rng = np.random.default_rng((seed, i))
            drawn.append([perturbed(truth, rng) for _ in range(starts)])
        return cls(images, background, cameras, posed.camera_from_object, np.array(drawn))

    def trials(self, views: int, starts: int) -> list[tuple[int, np.ndarray]]:
        """Number of the photo and pose to start from, of the first views and starts."""
        return [(v, start) for v, own in enumerate(self.starts[:views]) for start in own[:starts]]

    def spread(self, runs: int | None = None) -> list[tuple[int, np.ndarray]]:
        """As `trials`, of so many, or of all: the first start of each view, then the second, …"""
        by_start = np.swapaxes(self.starts, 0, 1)
        return [(v, start) for own in by_start for v, start in enumerate(own)][:runs]


def perturbed(
    truth: np.ndarray, rng: np.random.Generator, degrees: float = TURN, shift: float = SHIFT
) -> np.ndarray:
    """camera_from_object (4, 4) with the camera turned about the model's origin by up to `degrees`
    about a random axis, then moved by up to `shift` metres along each of the model's axes."""
    axis = rng.normal(size=3)
    angle = np.radians(rng.uniform(-degrees, degrees))
    motion = rotated(np.eye(4), axis / np.linalg.norm(axis) * angle)
    motion[:3, 3] = rng.uniform(-shift, shift, 3)
    return truth @ inverse(motion)


def errors(estimates: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Of poses (..., 4, 4): rotation_deg; translation_m, of the camera in the model's frame;
    origin_m, of the model's origin in the camera's frame. Arrays (...)."""
    estimates, truths = np.broadcast_arrays(estimates, truths)
    found = pose_errors(estimates.reshape(-1, 4, 4), truths.reshape(-1, 4, 4))
    turned, moved = (error.reshape(estimates.shape[:-2]) for error in found)
    between = np.linalg.norm(_position(estimates) - _position(truths), axis=-1)
    return {"rotation_deg": np.degrees(turned), "translation_m": between, "origin_m": moved}


def _position(camera_from_object: np.ndarray) -> np.ndarray:
    """(..., 3) of the camera in the object's frame."""
    R, t = camera_from_object[..., :3, :3], camera_from_object[..., :3, 3]
    return -np.einsum("...ji,...j->...i", R, t)


def right(found: dict[str, np.ndarray], moved: str = "translation_m") -> np.ndarray:
    """Which errors are below 5° and 5 cm."""
    return (found["rotation_deg"] < RIGHT_DEG) & (found[moved] < RIGHT_M)


def shares(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of errors (N, ...): shares below 5°, below 5 cm, and below both, over the first axis."""
    return {
        "share_5deg": (found["rotation_deg"] < RIGHT_DEG).mean(axis=0),
        "share_5cm": (found["translation_m"] < RIGHT_M).mean(axis=0),
        "share_both": right(found).mean(axis=0),
    }


@dataclass(eq=False)
class Run:
    """A refined pose (4, 4), how it came about, and how long it took."""

    truth: np.ndarray
    pose: np.ndarray
    seconds: float
    result: Hypothesis | DescentResult


def errors_of(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    return errors(np.array([run.pose for run in runs]), np.array([run.truth for run in runs]))


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What a table says of N refined poses."""
    found, seconds = errors_of(runs), [run.seconds for run in runs]
    return {
        "n": len(runs),
        **{name: float(share) for name, share in shares(found).items()},
        "share_both_origin": float(right(found, "origin_m").mean()),
        "median_rotation_error_deg": float(np.median(found["rotation_deg"])),
        "median_translation_error_m": float(np.median(found["translation_m"])),
        "median_origin_error_m": float(np.median(found["origin_m"])),
        "seconds_per_pose": float(np.mean(seconds)),
        "slowest_seconds": float(np.max(seconds)),
    }


def listed(found: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Errors as JSON has them."""
    return {name: [round(float(x), 5) for x in values] for name, values in found.items()}


@dataclass(eq=False)
class Tools:
    """What the blocks share. refine, descend: both methods on one photo, timed as a whole."""

    protocol: Protocol
    field: RadianceField
    device: str
    seed: int
    counts: InerfCounts
    progress: Progress
    _refiners: dict[tuple[bool, int], Refiner] = dataclasses.field(default_factory=dict)

    def each(self, block: str, trials: Iterable) -> Iterator:
        return each(self.progress, block, trials)

    def refiner(self, exposure: bool = False, capacity: int = 64) -> Refiner:
        """The fast method; made once for each setting.

        Raises EvaluationError where the field is no grid.
        """
        if not isinstance(self.field, GridField):
            raise EvaluationError(
                f"--field is a field of kind {self.field.kind!r}; the fast method needs a grid"
            )
        key = (exposure, capacity)
        if key not in self._refiners:
            settings = Settings(photo_rays=RAYS, exposure=exposure)
            models = [field_model(NAME, self.field)]
            self._refiners[key] = Refiner(models, self.device, capacity, settings, self.seed)
        return self._refiners[key]

    def refine(
        self, view: int, starts: Sequence[np.ndarray], image=None, exposure: bool = False
    ) -> Run:
        """The best of the fast method, with all that is done for a new photo."""
        refiner = self.refiner(exposure)
        begun = time.perf_counter()
        best = refine(refiner, [self.observe(view, image)], [starts])[0][0]
        seconds = time.perf_counter() - begun
        return Run(self.protocol.truths[view], best.reference_from_object, seconds, best)

    def observe(self, view: int, image: np.ndarray | None = None) -> Observation:
        """A test photo, or another image (H, W, 3) that its camera took."""
        protocol = self.protocol
        image = protocol.images[view] if image is None else image
        return observe_image(image, protocol.cameras[view], protocol.background)

    def descend(
        self,
        view: int,
        start: np.ndarray,
        steps: int | None = None,
        sampling: str = SAMPLING,
        rays: int = RAYS,
        image=None,
        loss: str = "rgb",
        field: RadianceField | None = None,
    ) -> Run:
        """The paper's refinement of one pose."""
        protocol = self.protocol
        descent = PhotometricDescent(
            field or self.field, sampling, rays, loss, protocol.background, seed=self.seed
        )
        image = protocol.images[view] if image is None else image
        K, steps = protocol.cameras[view].intrinsics.copy(), steps or self.counts.steps
        found = descent.run(image, K, start[None], steps, RECORD_EVERY)
        seconds = float(found.seconds[-1])
        return Run(protocol.truths[view], found.camera_from_object[0], seconds, found)

    def warm_up(self) -> None:
        """Compile kernels and fill caches, so that the first run takes no longer than others."""
        start = self.protocol.starts[0, 0]
        self.refine(0, [start])
        self.descend(0, start, 2)


def refine(
    refiner: Refiner, observations: Sequence[Observation], starts: Sequence[Sequence[np.ndarray]]
) -> list[list[Hypothesis]]:
    """Results of photos of the object from poses (4, 4), best first."""
    hypotheses = [[Hypothesis(NAME, start) for start in own] for own in starts]
    return refiner.refine([[seen] for seen in observations], hypotheses, keep=2, given=False)


def fast(tools: Tools) -> dict[str, Any]:
    """The fast method on all trials, one pose at a time."""
    starts = tools.counts.starts
    trials = tools.protocol.trials(tools.counts.views, starts)
    runs = [tools.refine(view, [start]) for view, start in tools.each("Fast", trials)]
    after, found = errors_of(runs), [run.result for run in runs]
    before = errors(np.array([start for _, start in trials]), np.array([r.truth for r in runs]))
    sigma = [np.degrees(np.sqrt(np.trace(one.covariance[3:, 3:]))) for one in found]
    wrong = [
        {
            "view": trials[i][0],
            "start": int(i % starts),
            "rms": round(float(found[i].fits["radiance"].rms), 4),
        }
        for i in np.flatnonzero(~right(after))
    ]
    return {
        **summary(runs),
        "rays": RAYS,
        "sampling": SAMPLING,
        "median_iterations": float(np.median([one.iterations for one in found])),
        "median_sigma_deg": float(np.median(sigma)),
        "wrong": wrong,
        "before": listed(before),
        "after": listed(after),
    }


def errors_on_the_way(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """(N, T) of Adam, after each recorded step."""
    history = np.stack([run.result.history[:, 0] for run in runs])
    return errors(history, np.array([run.truth for run in runs])[:, None])


def descent_row(runs: Sequence[Run], rays: int, sampling: str = SAMPLING) -> dict[str, Any]:
    """A row of a table and the curves of Fig. 6a, of Adam."""
    found, at_step = errors_on_the_way(runs), runs[0].result.at_step
    return {
        **summary(runs),
        "steps": int(at_step[-1]),
        "at_step": at_step.tolist(),
        "curves": {n: [round(float(x), 4) for x in share] for n, share in shares(found).items()},
        "after": listed({name: values[:, -1] for name, values in found.items()}),
        "rays": rays,
        "sampling": sampling,
    }


def examples(tools: Tools, count: int) -> list[tuple[list[np.ndarray], list[float]]]:
    """Of some photos the start that is turned most: images (H, W, 3) of the photo, of the start
    and of the fast method's result, the latter two half over the photo; and their errors."""
    protocol, found = tools.protocol, []
    for view in tools.each("Pictures", range(count)):
        before = errors(protocol.starts[view], protocol.truths[view])["rotation_deg"]
        start = protocol.starts[view, before.argmax()]
        run = tools.refine(view, [start])
        camera, photo = protocol.cameras[view], protocol.images[view]
        K = camera.intrinsics.copy()
        drawn = [
            picture_over(tools.field, K, pose, camera.size, protocol.background)
            for pose in (start, run.pose)
        ]
        after = errors(run.pose, run.truth)["rotation_deg"]
        both = [0.5 * photo + 0.5 * image for image in drawn]
        found.append(([photo, *both], [float(before.max()), float(after)]))
    return found


def speed(tools: Tools) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both methods on the same trials of the same field, in turn; and the row of Adam on the grid.

    The time of a run to an accuracy: for the fast method always its whole time. For Adam until the
    first recorded step from which on both errors stay below; for `own`, what the fast method ended
    at in that run, until the first step at which both are as small (errors that small come and go
    with each batch of rays).
    """
    counts, runs, descents = tools.counts, [], []
    trials = tools.protocol.trials(counts.adam_views, counts.adam_starts)
    for view, start in tools.each("Fast and Adam in turn", trials):
        runs.append(tools.refine(view, [start]))
        descents.append(tools.descend(view, start))
    ours, adam = errors_of(runs), errors_on_the_way(descents)
    took = np.array([run.seconds for run in runs])
    seconds = np.stack([run.result.seconds for run in descents])
    is_right, row = right(ours), descent_row(descents, RAYS)
    levels = {
        name: _level(_below(adam, *limits), seconds, took, _below(ours, *limits), stays=True)
        for name, limits in LEVELS.items()
    }
    own = _below(adam, ours["rotation_deg"][:, None], ours["translation_m"][:, None])
    levels["own"] = _level(own, seconds, took, is_right, stays=False)
    fast, slow = (
        float(total / n) if n else None
        for total, n in (
            (took.sum(), is_right.sum()),
            (seconds[:, -1].sum(), round(row["share_both"] * row["n"])),
        )
    )
    report = {
        "n": len(took),
        "steps": counts.steps,
        "fast_seconds_per_pose": float(took.mean()),
        "adam_seconds_per_pose": float(seconds[:, -1].mean()),
        "adam_ms_per_step": float(1e3 * seconds[:, -1].mean() / counts.steps),
        "fast_share_both": float(is_right.mean()),
        "fast_seconds_per_right_pose": fast,
        "adam_seconds_per_right_pose": slow,
        "times_per_right_pose": slow / fast if slow and fast else None,
        "levels": levels,
    }
    return report, row


def _below(found: dict[str, np.ndarray], degrees, metres) -> np.ndarray:
    return (found["rotation_deg"] <= degrees) & (found["translation_m"] <= metres)


def _level(
    reached: np.ndarray, seconds: np.ndarray, fast_seconds: np.ndarray, by_fast, stays: bool
) -> dict[str, Any]:
    """How long until an accuracy. reached, seconds: (N, T) of Adam; fast_seconds, by_fast: (N,).

    stays: it must be kept to the end. Times are medians over the runs in which both get there.
    """
    if stays:
        reached = np.logical_and.accumulate(reached[:, ::-1], axis=1)[:, ::-1]
    by_adam = reached.any(axis=1)
    when = np.take_along_axis(seconds, reached.argmax(axis=1)[:, None], axis=1)[:, 0]
    both = by_adam & by_fast
    # a run that Adam never finishes takes it longer than any other
    all_runs = np.where(by_adam, when, np.inf) / fast_seconds
    return {
        "fast_reaches": int(by_fast.sum()),
        "adam_reaches": int(by_adam.sum()),
        "both": int(both.sum()),
        "adam_seconds": _median(when[both]),
        "fast_seconds": _median(fast_seconds[both]),
        "times": _median(all_runs[both]),
        "times_with_never": _median(all_runs[by_fast]),
    }


def _median(values: np.ndarray) -> float | None:
    middle = np.median(values) if len(values) else np.inf
    return float(middle) if np.isfinite(middle) else None


def figure_6a(tools: Tools, known: dict[str, Any] | None) -> dict[str, Any]:
    """Adam on the grid: three samplings by three sizes of a batch of rays.

    known: the row of what `speed` has run already.
    """
    rows = {cell: [] for cell in product(SAMPLINGS, BATCHES)}
    todo = [cell for cell in rows if known is None or cell != (SAMPLING, RAYS)]
    trials = tools.protocol.trials(tools.counts.adam_views, tools.counts.adam_starts)
    for cell, (view, start) in tools.each("Figure 6a", product(todo, trials)):
        rows[cell].append(tools.descend(view, start, None, *cell))
    cells = {}
    for (sampling, rays), runs in rows.items():
        row = dict(descent_row(runs, rays, sampling) if runs else known)
        row.pop("after")
        cells[f"{sampling}_{rays}"] = row
    mean = {
        sampling: float(np.mean([cells[f"{sampling}_{rays}"]["share_both"] for rays in BATCHES]))
        for sampling in SAMPLINGS
    }
    gain = mean["interest_region"] - mean["random"]
    return {"cells": cells, "mean_share_both": mean, "region_minus_random": gain}


def adam_mlp(tools: Tools, field: RadianceField, rays: int) -> dict[str, Any]:
    """Adam in a network, on the first starts of all views."""
    trials = tools.protocol.spread(tools.counts.mlp_runs)
    tools.descend(*trials[0], 1, rays=rays, field=field)
    steps = tools.counts.mlp_steps
    runs = [
        tools.descend(*trial, steps, rays=rays, field=field)
        for trial in tools.each("Adam in a network", trials)
    ]
    return descent_row(runs, rays)


def half_turn(tools: Tools) -> dict[str, Any]:
    """Any direction about the up axis: the start is turned about it by up to ±180°, and moved as in
    the protocol; hypotheses go evenly around from there."""
    count, up, trials = tools.counts.hypotheses, view_of(tools.field)["up"], []
    for view, truth in enumerate(tools.protocol.truths[: tools.counts.views]):
        rng = np.random.default_rng((tools.seed, view, 1))
        for _ in range(tools.counts.half_turn_starts):
            start, first = perturbed(truth, rng, 0.0), rng.uniform(-np.pi, np.pi)
            angles = first + 2.0 * np.pi * np.arange(count) / count
            turns = [rotated(np.eye(4), np.multiply(up, angle)) for angle in angles]
            trials.append((view, [start @ turn for turn in turns]))
    return {
        **summary([tools.refine(*trial) for trial in tools.each("±180°", trials)]),
        "hypotheses": count,
    }


def relit(image: np.ndarray, rng: np.random.Generator, colour: bool) -> np.ndarray:
    """A photo of another exposure; colour: of another white balance and black level as well."""
    gain = rng.uniform(*GAINS, 3 if colour else 1)
    bias = rng.uniform(-BIAS, BIAS, 3) if colour else 0.0
    return np.clip(image * gain + bias, 0.0, 1.0).astype(np.float32)


def light(tools: Tools) -> dict[str, Any]:
    """Photos in another light than the field's: what the nuisance of exposure is for.

    The whole photo changes, what is behind the object as well, and is clipped at white as a
    camera's is. Adam's colour-difference loss is the paper's answer.
    """
    protocol, counts = tools.protocol, tools.counts
    lights = {"as_trained": protocol.images}
    for kind, colour in (("exposure", False), ("white_balance", True)):
        rng = np.random.default_rng((tools.seed, 2))
        lights[kind] = [relit(image, rng, colour) for image in protocol.images]
    fast = {
        "fast": lambda view, start, image: tools.refine(view, [start], image),
        "fast_exposure": lambda view, start, image: tools.refine(view, [start], image, True),
    }
    adam = {
        "adam_rgb": lambda view, start, image: tools.descend(view, start, image=image),
        "adam_uv": lambda view, start, image: tools.descend(view, start, image=image, loss="uv"),
    }
    trials = [(fast, *trial) for trial in protocol.trials(counts.views, counts.light_starts)]
    trials += [(adam, *trial) for trial in protocol.spread(counts.light_adam_runs)]
    tools.refine(0, [protocol.starts[0, 0]], exposure=True)
    runs: dict[str, dict[str, list[Run]]] = {kind: defaultdict(list) for kind in lights}
    for kind, (methods, view, start) in tools.each("Light", product(lights, trials)):
        for row, method in methods.items():
            runs[kind][row].append(method(view, start, lights[kind][view]))
    table = {kind: {row: summary(own) for row, own in rows.items()} for kind, rows in runs.items()}
    return {"gains": list(GAINS), "bias": BIAS, "steps": counts.steps, "rows": table}


def batch(tools: Tools, sizes: Sequence[int]) -> dict[str, Any]:
    """Seconds for several hypotheses of one photo, the best two of which are followed to the end;
    and for as many photos with a start each, all of which are."""
    protocol, refiner = tools.protocol, tools.refiner(capacity=max(64, *sizes))
    every, repeats = protocol.spread(), tools.counts.batch_repeats
    times: dict[int, list[list[float]]] = {size: [] for size in sizes}

    def run(size: int, i: int) -> list[float]:
        view, took = i % len(protocol.images), []
        rng = np.random.default_rng((tools.seed, view, 3))
        starts = [perturbed(protocol.truths[view], rng) for _ in range(size)]
        own = [every[(i + k) % len(every)] for k in range(size)]
        for given in ([(view, starts)], [(v, [start]) for v, start in own]):
            begun = time.perf_counter()
            refine(refiner, [tools.observe(v) for v, _ in given], [s for _, s in given])
            took.append(time.perf_counter() - begun)
        return took

    for size, i in tools.each("Batches", product(sizes, range(repeats))):
        if i == 0 and tools.device != "cpu":
            run(size, 0)  # what CUDA does the first time is not timed
        times[size].append(run(size, i))
    rows = []
    for size, took in times.items():
        one, photos = np.median(took, axis=0)
        row = {"one_photo_seconds": float(one), "photos_seconds_each": float(photos) / size}
        rows.append({"size": size, **row})
    return {"repeats": repeats, "rows": rows}
