# SPDX-License-Identifier: Apache-2.0
"""What `evaluate inerf` measures of the paper's refinement by Adam, alone and beside the fast."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from pose_refiner_ros.evaluation.inerf_protocol import (
    RIGHT_DEG,
    RIGHT_M,
    Run,
    errors,
    errors_of,
    listed,
    right,
    shares,
)
from pose_refiner_ros.evaluation.inerf_tools import RAYS, SAMPLING, Tools
from pose_refiner_ros.fields.field import RadianceField

LEVELS = {  # how exact, degrees and metres; the second is what the fast method's median is to be
    "5deg_5cm": (RIGHT_DEG, RIGHT_M),
    "half_degree_5cm": (0.5, RIGHT_M),
}
BATCHES = (512, 1024, 2048)


def errors_on_the_way(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """(N, T) of Adam, after each recorded step."""
    history = np.stack([run.result.history[:, 0] for run in runs])
    return errors(history, np.array([run.truth for run in runs])[:, None])


def descent_row(
    tools: Tools, runs: Sequence[Run], rays: int, sampling: str = SAMPLING
) -> dict[str, Any]:
    """A row of a table and the curves of Fig. 6a, of Adam."""
    found, at_step = errors_on_the_way(runs), runs[0].result.at_step
    return {
        **tools.summary(runs),
        "steps": int(at_step[-1]),
        "at_step": at_step.tolist(),
        "curves": {n: [round(float(x), 4) for x in share] for n, share in shares(found).items()},
        "after": listed({name: values[:, -1] for name, values in found.items()}),
        "rays": rays,
        "sampling": sampling,
    }


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
    is_right, row = right(ours), descent_row(tools, descents, RAYS)
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


def figure_6(
    tools: Tools, samplings: Sequence[str], known: dict[str, Any] | None
) -> dict[str, Any]:
    """Adam on the grid: samplings by three sizes of a batch of rays.

    known: the row of what `speed` has run already.
    """
    rows = {cell: [] for cell in product(samplings, BATCHES)}
    todo = [cell for cell in rows if known is None or cell != (SAMPLING, RAYS)]
    trials = tools.protocol.trials(tools.counts.adam_views, tools.counts.adam_starts)
    for cell, (view, start) in tools.each("Figure 6", product(todo, trials)):
        rows[cell].append(tools.descend(view, start, None, *cell))
    cells = {}
    for (sampling, rays), runs in rows.items():
        row = dict(descent_row(tools, runs, rays, sampling) if runs else known)
        row.pop("after")
        cells[f"{sampling}_{rays}"] = row
    mean = {
        sampling: float(np.mean([cells[f"{sampling}_{rays}"]["share_both"] for rays in BATCHES]))
        for sampling in samplings
    }
    found = {"cells": cells, "mean_share_both": mean}
    if {"random", "interest_region"} <= mean.keys():
        found["region_minus_random"] = mean["interest_region"] - mean["random"]
    return found


def adam_mlp(tools: Tools, field: RadianceField, rays: int) -> dict[str, Any]:
    """Adam in a network, on the first starts of all views."""
    trials = tools.protocol.spread(tools.counts.mlp_runs)
    tools.descend(*trials[0], 1, rays=rays, field=field)
    steps = tools.counts.mlp_steps
    runs = [
        tools.descend(*trial, steps, rays=rays, field=field)
        for trial in tools.each("Adam in a network", trials)
    ]
    return descent_row(tools, runs, rays)
