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

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_refiner_ros.baselines.photometric_descent import DescentResult, PhotometricDescent
from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.evaluation.report import Tick
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.grid import GridField
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
FINE_DEG = 0.5  # what the fast method's median is to stay below
BATCHES = (512, 1024, 2048)
RAYS = 1024
SAMPLING = "interest_region"
RECORD_EVERY = 5
WHITE = (1.0, 1.0, 1.0)
NAME = "object"
# Strengths of a change of light: gains of channels, and what is added to them.
GAINS, BIAS = (0.7, 1.3), 0.05


class InerfError(ValueError):
    """Something that cannot be evaluated, with the reason and what to do."""


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

        Raises InerfError where what is behind the object is unknown.
        """
        images = posed.images.astype(np.float32) / 255.0
        background = WHITE
        if posed.alpha is not None:
            alpha = posed.alpha[..., None].astype(np.float32) / 255.0
            images = images * alpha + (1.0 - alpha)
        elif field.background is not None:
            background = tuple(float(c) for c in field.background)
        else:
            raise InerfError(
                "the test photos have no alpha and the field no background: nothing says what is "
                "behind the object"
            )
        if posed.weight is not None:
            raise InerfError(
                "parts of the test photos are unknown (undistorted, or hidden); the protocol "
                "compares whole photos"
            )
        cameras = [Camera(K, posed.size) for K in posed.intrinsics]
        drawn = [
            [perturbed(truth, rng) for _ in range(starts)]
            for truth, rng in zip(
                posed.camera_from_object,
                (np.random.default_rng((seed, i)) for i in range(len(posed))),
                strict=True,
            )
        ]
        return cls(images, background, cameras, posed.camera_from_object, np.array(drawn))

    def trials(self, views: int, starts: int) -> list[tuple[int, np.ndarray]]:
        """Number of the photo and pose to start from, of the first views and starts."""
        return [
            (view, start)
            for view in range(min(views, len(self.images)))
            for start in self.starts[view, :starts]
        ]


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
    turned, moved = pose_errors(estimates.reshape(-1, 4, 4), truths.reshape(-1, 4, 4))
    shape = estimates.shape[:-2]
    between = np.linalg.norm(_position(estimates) - _position(truths), axis=-1)
    return {
        "rotation_deg": np.degrees(turned).reshape(shape),
        "translation_m": between,
        "origin_m": moved.reshape(shape),
    }


def _position(camera_from_object: np.ndarray) -> np.ndarray:
    """(..., 3) of the camera in the object's frame."""
    R, t = camera_from_object[..., :3, :3], camera_from_object[..., :3, 3]
    return -np.einsum("...ji,...j->...i", R, t)


def shares(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of errors (N, ...): shares below 5°, below 5 cm, and below both, over the first axis."""
    turned, moved = found["rotation_deg"] < RIGHT_DEG, found["translation_m"] < RIGHT_M
    return {
        "share_5deg": turned.mean(axis=0),
        "share_5cm": moved.mean(axis=0),
        "share_both": (turned & moved).mean(axis=0),
    }


def summary(
    estimates: Sequence[np.ndarray], truths: Sequence[np.ndarray], seconds: Sequence[float]
) -> dict[str, Any]:
    """What a table says of N refined poses."""
    found = errors(np.array(estimates), np.array(truths))
    right_origin = (found["rotation_deg"] < RIGHT_DEG) & (found["origin_m"] < RIGHT_M)
    return {
        "n": len(seconds),
        **{name: float(share) for name, share in shares(found).items()},
        "share_both_origin": float(right_origin.mean()),
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

    def __post_init__(self) -> None:
        self._refiners: dict[tuple[bool, int], Refiner] = {}

    def refiner(self, exposure: bool = False, capacity: int = 64) -> Refiner:
        """The fast method; made once for each setting.

        Raises InerfError where the field is no grid.
        """
        if not isinstance(self.field, GridField):
            raise InerfError(
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
    ) -> tuple[list[Hypothesis], float]:
        """Results, best first, and seconds, with all that is done for a new photo."""
        refiner = self.refiner(exposure)
        begun = time.perf_counter()
        (found,) = refine(refiner, [self.observe(view, image)], [starts])
        return found, time.perf_counter() - begun

    def observe(self, view: int, image: np.ndarray | None = None) -> Observation:
        """A test photo, or another image (H, W, 3) that its camera took."""
        protocol = self.protocol
        image = protocol.images[view] if image is None else image
        return observe_image(image, protocol.cameras[view], protocol.background)

    def descend(
        self,
        view: int,
        start: np.ndarray,
        steps: int,
        sampling: str = SAMPLING,
        rays: int = RAYS,
        image=None,
        loss: str = "rgb",
        field: RadianceField | None = None,
    ) -> DescentResult:
        """The paper's refinement of one pose."""
        protocol = self.protocol
        descent = PhotometricDescent(
            field or self.field, sampling, rays, loss, protocol.background, seed=self.seed
        )
        image = protocol.images[view] if image is None else image
        return descent.run(
            image, protocol.cameras[view].intrinsics.copy(), start[None], steps, RECORD_EVERY
        )

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


def fast(tools: Tools, views: int, starts: int, tick: Tick) -> dict[str, Any]:
    """The fast method on all trials, one pose at a time."""
    protocol, found, seconds = tools.protocol, [], []
    trials = protocol.trials(views, starts)
    for view, start in trials:
        refined, taken = tools.refine(view, [start])
        found.append(refined[0])
        seconds.append(taken)
        tick()
    truths = [protocol.truths[view] for view, _ in trials]
    estimates = [one.reference_from_object for one in found]
    after = errors(np.array(estimates), np.array(truths))
    sigma = [np.degrees(np.sqrt(np.trace(one.covariance[3:, 3:]))) for one in found]
    wrong = [
        {"view": view, "start": i % starts, "rms": round(float(one.fits["radiance"].rms), 4)}
        for i, ((view, _), one) in enumerate(zip(trials, found, strict=True))
        if after["rotation_deg"][i] >= RIGHT_DEG or after["translation_m"][i] >= RIGHT_M
    ]
    return {
        **summary(estimates, truths, seconds),
        "rays": RAYS,
        "sampling": SAMPLING,
        "median_iterations": float(np.median([one.iterations for one in found])),
        "median_sigma_deg": float(np.median(sigma)),
        "wrong": wrong,
        "before": listed(errors(np.array([start for _, start in trials]), np.array(truths))),
        "after": listed(after),
    }


@dataclass(eq=False)
class Descents:
    """Runs of the paper's refinement on the way: truths (N, 4, 4) and results."""

    truths: list[np.ndarray]
    results: list[DescentResult]

    @property
    def errors(self) -> dict[str, np.ndarray]:
        """(N, T) after each recorded step."""
        history = np.stack([result.history[:, 0] for result in self.results])
        return errors(history, np.array(self.truths)[:, None])

    def row(self) -> dict[str, Any]:
        """A row of a table and the curves of Fig. 6a."""
        last = [result.camera_from_object[0] for result in self.results]
        seconds = [float(result.seconds[-1]) for result in self.results]
        found = self.errors
        curves = {
            name: [round(float(x), 4) for x in share] for name, share in shares(found).items()
        }
        return {
            **summary(last, self.truths, seconds),
            "steps": int(self.results[0].at_step[-1]),
            "at_step": self.results[0].at_step.tolist(),
            "curves": curves,
            "after": listed({name: values[:, -1] for name, values in found.items()}),
        }


def examples(tools: Tools, count: int, tick: Tick) -> list[tuple[list[np.ndarray], list[float]]]:
    """Of some photos the start that is turned most: images (H, W, 3) of the photo, of the start
    and of the fast method's result, the latter two half over the photo; and their errors."""
    protocol, found = tools.protocol, []
    for view in range(count):
        before = errors(protocol.starts[view], protocol.truths[view])["rotation_deg"]
        start = protocol.starts[view, before.argmax()]
        result = tools.refine(view, [start])[0][0].reference_from_object
        camera, photo = protocol.cameras[view], protocol.images[view]
        K = camera.intrinsics.copy()
        drawn = [
            picture_over(tools.field, K, pose, camera.size, protocol.background)
            for pose in (start, result)
        ]
        after = errors(result, protocol.truths[view])["rotation_deg"]
        both = [0.5 * photo + 0.5 * image for image in drawn]
        found.append(([photo, *both], [float(before.max()), float(after)]))
        tick()
    return found


def speed(
    tools: Tools, views: int, starts: int, steps: int, tick: Tick
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both methods on the same trials of the same field, in turn; and the row of Adam on the grid.

    The time of a run to an accuracy: for the fast method always its whole time. For Adam until the
    first recorded step from which on both errors stay below; for `own`, what the fast method ended
    at in that run, until the first step at which both are as small (errors that small come and go
    with each batch of rays).
    """
    protocol = tools.protocol
    runs = Descents([], [])
    fast_poses, fast_seconds = [], []
    for view, start in protocol.trials(views, starts):
        refined, taken = tools.refine(view, [start])
        fast_poses.append(refined[0].reference_from_object)
        fast_seconds.append(taken)
        runs.truths.append(protocol.truths[view])
        runs.results.append(tools.descend(view, start, steps))
        tick()
    seconds = np.stack([result.seconds for result in runs.results])
    ours, adam = errors(np.array(fast_poses), np.array(runs.truths)), runs.errors
    took = np.array(fast_seconds)
    row = runs.row()
    right = (ours["rotation_deg"] < RIGHT_DEG) & (ours["translation_m"] < RIGHT_M)
    per_right = [
        float(total / n) if n else None
        for total, n in (
            (took.sum(), int(right.sum())),
            (seconds[:, -1].sum(), round(row["share_both"] * row["n"])),
        )
    ]
    levels = {}
    for name, degrees, metres in (
        ("5deg_5cm", RIGHT_DEG, RIGHT_M),
        ("half_degree_5cm", FINE_DEG, RIGHT_M),
        ("own", ours["rotation_deg"], ours["translation_m"]),
    ):
        own = name == "own"
        limits = [np.broadcast_to(limit, len(took)) for limit in (degrees, metres)]
        reached = (adam["rotation_deg"] <= limits[0][:, None]) & (
            adam["translation_m"] <= limits[1][:, None]
        )
        by_fast = right if own else _below(ours, degrees, metres)
        levels[name] = _level(reached, seconds, took, by_fast, stays=not own)
    report = {
        "n": len(took),
        "steps": steps,
        "fast_seconds_per_pose": float(took.mean()),
        "adam_seconds_per_pose": float(seconds[:, -1].mean()),
        "adam_ms_per_step": float(1e3 * seconds[:, -1].mean() / max(steps, 1)),
        "fast_share_both": float(right.mean()),
        "fast_seconds_per_right_pose": per_right[0],
        "adam_seconds_per_right_pose": per_right[1],
        "times_per_right_pose": per_right[1] / per_right[0] if all(per_right) else None,
        "levels": levels,
    }
    return report, {**row, "rays": RAYS, "sampling": SAMPLING}


def _below(found: dict[str, np.ndarray], degrees: float, metres: float) -> np.ndarray:
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
    some = bool(both.any())
    ratio = when[both] / fast_seconds[both]
    # a run that Adam never finishes takes it longer than any other
    all_runs = np.where(by_adam, when, np.inf)[by_fast] / fast_seconds[by_fast]
    typical = float(np.median(all_runs)) if len(all_runs) else np.inf
    return {
        "fast_reaches": int(by_fast.sum()),
        "adam_reaches": int(by_adam.sum()),
        "both": int(both.sum()),
        "adam_seconds": float(np.median(when[both])) if some else None,
        "fast_seconds": float(np.median(fast_seconds[both])) if some else None,
        "times": float(np.median(ratio)) if some else None,
        "times_with_never": typical if np.isfinite(typical) else None,
    }


def figure_6a(
    tools: Tools, views: int, starts: int, steps: int, known: dict[str, Any] | None, tick: Tick
) -> dict[str, Any]:
    """Adam on the grid: three samplings by three sizes of a batch of rays.

    known: the row of what `speed` has run already.
    """
    cells = {}
    for sampling in SAMPLINGS:
        for rays in BATCHES:
            name = f"{sampling}_{rays}"
            if known is not None and (sampling, rays) == (SAMPLING, RAYS):
                cells[name] = {name: known[name] for name in known if name != "after"}
                continue
            runs = Descents([], [])
            for view, start in tools.protocol.trials(views, starts):
                runs.truths.append(tools.protocol.truths[view])
                runs.results.append(tools.descend(view, start, steps, sampling, rays))
                tick()
            row = runs.row()
            row.pop("after")
            cells[name] = {**row, "rays": rays, "sampling": sampling}
    mean = {
        sampling: float(np.mean([cells[f"{sampling}_{rays}"]["share_both"] for rays in BATCHES]))
        for sampling in SAMPLINGS
    }
    gain = mean["interest_region"] - mean["random"]
    return {"cells": cells, "mean_share_both": mean, "region_minus_random": gain}


def adam_mlp(
    tools: Tools, field: RadianceField, runs: int, steps: int, rays: int, tick: Tick
) -> dict[str, Any]:
    """Adam in a network, on the first starts of all views."""
    protocol = tools.protocol
    trials = _spread(protocol, runs)
    done = Descents([], [])
    tools.descend(*trials[0], 1, SAMPLING, rays, field=field)
    for view, start in trials:
        done.truths.append(protocol.truths[view])
        done.results.append(tools.descend(view, start, steps, SAMPLING, rays, field=field))
        tick()
    return {**done.row(), "rays": rays, "sampling": SAMPLING}


def _spread(protocol: Protocol, runs: int) -> list[tuple[int, np.ndarray]]:
    """The first start of each view, then the second, and so on."""
    views, starts = protocol.starts.shape[:2]
    every = [(view, protocol.starts[view, i]) for i in range(starts) for view in range(views)]
    return every[:runs]


def half_turn(
    tools: Tools, views: int, starts: int, hypotheses: int, up, tick: Tick
) -> dict[str, Any]:
    """Any direction about the up axis: the start is turned about it by up to ±180°, and moved as in
    the protocol; hypotheses go evenly around from there."""
    protocol, found, truths, seconds = tools.protocol, [], [], []
    for view in range(min(views, len(protocol.images))):
        rng = np.random.default_rng((tools.seed, view, 1))
        for _ in range(starts):
            truth = protocol.truths[view]
            start = perturbed(truth, rng, 0.0)
            first = rng.uniform(-np.pi, np.pi)
            refined, taken = tools.refine(view, list(_around(start, up, first, hypotheses)))
            found.append(refined[0].reference_from_object)
            truths.append(truth)
            seconds.append(taken)
            tick()
    return {**summary(found, truths, seconds), "hypotheses": hypotheses}


def _around(start: np.ndarray, up, first: float, count: int) -> Iterator[np.ndarray]:
    for i in range(count):
        angle = first + 2.0 * np.pi * i / count
        yield start @ rotated(np.eye(4), np.asarray(up, np.float64) * angle)


def relit(image: np.ndarray, rng: np.random.Generator, colour: bool) -> np.ndarray:
    """A photo of another exposure; colour: of another white balance and black level as well."""
    gain = rng.uniform(*GAINS, 3 if colour else 1)
    bias = rng.uniform(-BIAS, BIAS, 3) if colour else 0.0
    return np.clip(image * gain + bias, 0.0, 1.0).astype(np.float32)


def light(tools: Tools, views: int, starts: int, runs: int, steps: int, tick: Tick) -> dict:
    """Photos in another light than the field's: what the nuisance of exposure is for.

    The whole photo changes, what is behind the object as well, and is clipped at white as a
    camera's is. runs: of Adam, whose colour-difference loss is the paper's answer.
    """
    protocol, table = tools.protocol, {}
    kinds = {"as_trained": None, "exposure": False, "white_balance": True}
    tools.refine(0, [protocol.starts[0, 0]], exposure=True)
    for kind, colour in kinds.items():
        rng = np.random.default_rng((tools.seed, 2))
        images = [
            image if colour is None else relit(image, rng, colour) for image in protocol.images
        ]
        rows: dict[str, tuple[list, list, list]] = {}

        def note(row: str, pose, view: int, seconds: float, rows=rows) -> None:
            parts = rows.setdefault(row, ([], [], []))
            for part, value in zip(parts, (pose, protocol.truths[view], seconds), strict=True):
                part.append(value)

        for view, start in protocol.trials(views, starts):
            for row, exposure in (("fast", False), ("fast_exposure", True)):
                refined, taken = tools.refine(view, [start], images[view], exposure)
                note(row, refined[0].reference_from_object, view, taken)
            tick()
        for view, start in _spread(protocol, runs):
            for row, loss in (("adam_rgb", "rgb"), ("adam_uv", "uv")):
                result = tools.descend(view, start, steps, image=images[view], loss=loss)
                note(row, result.camera_from_object[0], view, float(result.seconds[-1]))
            tick()
        table[kind] = {row: summary(*parts) for row, parts in rows.items()}
    return {"gains": list(GAINS), "bias": BIAS, "steps": steps, "rows": table}


def batch(tools: Tools, sizes: Sequence[int], repeats: int, tick: Tick) -> dict[str, Any]:
    """Seconds for several hypotheses of one photo, the best two of which are followed to the end;
    and for as many photos with a start each, all of which are."""
    protocol, refiner = tools.protocol, tools.refiner(capacity=max(64, *sizes))
    every = _spread(protocol, protocol.starts.shape[0] * protocol.starts.shape[1])
    lines = []
    for size in sizes:
        hypotheses, photos = [], []
        warm_ups = 0 if tools.device == "cpu" else 1  # what CUDA does the first time is not timed
        for i in range(-warm_ups, repeats):
            view = max(i, 0) % len(protocol.images)
            rng = np.random.default_rng((tools.seed, view, 3))
            starts = [perturbed(protocol.truths[view], rng) for _ in range(size)]
            own = [every[(max(i, 0) + k) % len(every)] for k in range(size)]
            for times, given in (
                (hypotheses, [(view, starts)]),
                (photos, [(v, [s]) for v, s in own]),
            ):
                begun = time.perf_counter()
                refine(refiner, [tools.observe(v) for v, _ in given], [s for _, s in given])
                times.append(time.perf_counter() - begun)
            if i >= 0:
                tick()
        lines.append(
            {
                "size": size,
                "one_photo_seconds": float(np.median(hypotheses[warm_ups:])),
                "photos_seconds_each": float(np.median(photos[warm_ups:])) / size,
            }
        )
    return {"repeats": repeats, "rows": lines}
