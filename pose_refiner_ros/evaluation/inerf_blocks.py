# SPDX-License-Identifier: Apache-2.0
"""What `evaluate inerf` measures of the fast method; inerf_adam_blocks.py has what Adam does."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from pose_refiner_ros.evaluation.inerf_protocol import (
    Run,
    errors,
    errors_of,
    listed,
    perturbed,
    right,
)
from pose_refiner_ros.evaluation.inerf_tools import RAYS, SAMPLING, Tools, refine
from pose_refiner_ros.fields.orbit import view_of
from pose_refiner_ros.fields.picture import picture_over
from pose_refiner_ros.geometry.pose import rotated
from pose_refiner_ros.scene_localiser import lost_because

BASIN = (10.0, 20.0, 40.0, 60.0)  # degrees
# Strengths of a change of light: gains of channels, and what is added to them.
GAINS, BIAS = (0.7, 1.3), 0.05


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
        **tools.summary(runs),
        "rays": RAYS,
        "sampling": SAMPLING,
        "median_iterations": float(np.median([one.iterations for one in found])),
        "median_sigma_deg": float(np.median(sigma)),
        "wrong": wrong,
        "before": listed(before),
        "after": listed(after),
    }


def basin(tools: Tools) -> dict[str, Any]:
    """How far off starts may be: cameras turned by exactly so much about random axes, and moved as
    in the protocol. Of each angle how many are found, how many are not and are said to be lost, and
    how many are wrong although they are not said to be."""
    count, rows = tools.counts.adam_starts, []
    views = range(min(tools.counts.adam_views, len(tools.protocol.images)))
    for angle in tools.each("Basin", BASIN):
        runs = []
        for view in views:
            rng = np.random.default_rng((tools.seed, view, 4, round(angle)))
            starts = [tools.protocol.start(view, rng, angle, exactly=True) for _ in range(count)]
            runs += [tools.refine(view, [start]) for start in starts]
        is_right = right(errors_of(runs))
        lost = np.array([bool(lost_because(run.result)) for run in runs])
        rows.append(
            {
                "degrees": angle,
                **tools.summary(runs),
                "right": int(is_right.sum()),
                "right_but_lost": int((is_right & lost).sum()),
                "wrong_and_lost": int((~is_right & lost).sum()),
                "wrong_and_not_lost": int((~is_right & ~lost).sum()),
            }
        )
    return {"rows": rows}


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
        **tools.summary([tools.refine(*trial) for trial in tools.each("±180°", trials)]),
        "hypotheses": count,
    }


def relit(image: np.ndarray, rng: np.random.Generator, colour: bool) -> np.ndarray:
    """A photo of another exposure; colour: of another white balance and black level as well."""
    gain = rng.uniform(*GAINS, 3 if colour else 1)
    bias = rng.uniform(-BIAS, BIAS, 3) if colour else 0.0
    return np.clip(image * gain + bias, 0.0, 1.0).astype(np.float32)


def light(tools: Tools) -> dict[str, Any]:
    """Photos in another light than the field's: what the nuisance of exposure is for.

    The whole photo changes, what is behind an object as well, and is clipped at white as a
    camera's is. Adam's colour-difference loss is the paper's answer.
    """
    protocol, counts = tools.protocol, tools.counts
    lights = {"as_trained": protocol.images}
    for kind, colour in (("exposure", False), ("white_balance", True)):
        rng = np.random.default_rng((tools.seed, 2))
        lights[kind] = [relit(image, rng, colour) for image in protocol.images]
    fast = {
        "fast": lambda view, start, image: tools.refine(view, [start], image),
        "fast_no_exposure": lambda view, start, image: tools.refine(view, [start], image, False),
    }
    adam = {
        "adam_rgb": lambda view, start, image: tools.descend(view, start, image=image),
        "adam_uv": lambda view, start, image: tools.descend(view, start, image=image, loss="uv"),
    }
    trials = [(fast, *trial) for trial in protocol.trials(counts.views, counts.light_starts)]
    trials += [(adam, *trial) for trial in protocol.spread(counts.light_adam_runs)]
    tools.refine(0, [protocol.starts[0, 0]], exposure=False)
    runs: dict[str, dict[str, list[Run]]] = {kind: defaultdict(list) for kind in lights}
    for kind, (methods, view, start) in tools.each("Light", product(lights, trials)):
        for row, method in methods.items():
            runs[kind][row].append(method(view, start, lights[kind][view]))
    table = {
        kind: {row: tools.summary(own) for row, own in rows.items()} for kind, rows in runs.items()
    }
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
        starts = [protocol.start(view, rng) for _ in range(size)]
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
