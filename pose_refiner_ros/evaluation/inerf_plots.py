# SPDX-License-Identifier: Apache-2.0
"""Figures 6a and 9 of iNeRF, and share of right poses by time, of what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pose_refiner_ros.evaluation.inerf_blocks import RIGHT_DEG, RIGHT_M
from pose_refiner_ros.evaluation.inerf_tables import METHODS
from pose_refiner_ros.evaluation.plotting import new_figure, png

COLORS = {
    "random": "#777777",
    "interest_point": "#c2571a",
    "interest_region": "#1f6fb2",
    "adam_grid": "#c2571a",
    "adam_mlp": "#7a4ea3",
    "fast": "#1f6fb2",
}
STYLES = {512: ":", 1024: "-", 2048: "--"}
SMALLEST = {"rotation_deg": 1e-2, "translation_m": 1e-3}
LARGEST = {"rotation_deg": 100.0, "translation_m": 10.0}


def plots(report: dict[str, Any]) -> dict[str, bytes]:
    """File name -> PNG, of the blocks that have run."""
    found = {}
    methods = report["methods"]
    if "figure_6a" in report:
        found["inerf_6a_steps.png"] = _steps(report["figure_6a"]["cells"])
    if "speed" in report and "adam_grid" in methods:
        found["inerf_time.png"] = _time(report)
    if "fast" in methods:
        found["inerf_9_errors.png"] = _errors(methods)
    return found


def pictures(examples: Sequence[tuple[list[np.ndarray], list[float]]]) -> bytes:
    """Photos, starts and results, a column each."""
    figure = new_figure(2.6 * len(examples), 8.0)
    for column, (shown, (before, after)) in enumerate(examples):
        titles = ("photo", f"start, {before:.0f}° off", f"result, {after:.2f}° off")
        for row, (picture, title) in enumerate(zip(shown, titles, strict=True)):
            axes = figure.add_subplot(3, len(examples), row * len(examples) + column + 1)
            axes.imshow(np.clip(picture, 0.0, 1.0))
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return png(figure)


def _steps(cells: dict[str, Any]) -> bytes:
    figure = new_figure(11.5, 4.4)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for axes, key, what in (
        (left, "share_5deg", "rotation under 5°"),
        (middle, "share_5cm", "translation under 5 cm"),
        (right, "share_both", "both"),
    ):
        for cell in cells.values():
            axes.plot(
                cell["at_step"], cell["curves"][key], STYLES[cell["rays"]],
                color=COLORS[cell["sampling"]], linewidth=1.3,
                label=f"{cell['sampling'].replace('_', ' ')}, {cell['rays']}",
            )  # fmt: skip
        axes.set_title(what)
        axes.set_xlabel("steps of Adam")
        axes.set_ylim(0.0, 1.0)
        axes.grid(alpha=0.3)
    left.set_ylabel("share of poses")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="sampling, rays")
    figure.suptitle("Fig. 6a: share of poses by steps, sampling and batch of rays, on the grid")
    return png(figure)


def _time(report: dict[str, Any]) -> bytes:
    """Share under both by seconds, of each method."""
    figure = new_figure(6.8, 4.2)
    axes = figure.subplots()
    methods, speed = report["methods"], report["speed"]
    axes.plot(
        [speed["fast_seconds_per_pose"]], [speed["fast_share_both"]], "o", color=COLORS["fast"],
        label=METHODS["fast"],
    )  # fmt: skip
    for name in ("adam_grid", "adam_mlp"):
        if name in methods:
            row = methods[name]
            share = np.array(row["at_step"]) / max(row["steps"], 1)
            seconds = share * row["seconds_per_pose"]
            axes.plot(
                seconds[1:],
                row["curves"]["share_both"][1:],
                color=COLORS[name],
                label=METHODS[name],
            )
    axes.set_xscale("log")
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("seconds per pose")
    axes.set_ylabel("share under 5° and 5 cm")
    axes.grid(alpha=0.3)
    axes.set_title("Share of right poses by time")
    axes.legend(fontsize=8)
    return png(figure)


def _errors(methods: dict[str, Any]) -> bytes:
    """Fig. 9: histograms of errors before and after, on a logarithmic axis."""
    figure = new_figure(10.0, 4.2)
    for axes, key, what, limit in zip(
        figure.subplots(1, 2),
        ("rotation_deg", "translation_m"),
        ("rotation error, degrees", "translation error, metres"),
        (RIGHT_DEG, RIGHT_M),
        strict=True,
    ):
        low, high = SMALLEST[key], LARGEST[key]
        bins = np.geomspace(low, high, 41)
        drawn = {"before": (methods["fast"]["before"], "#bbbbbb")}
        drawn["fast, after"] = (methods["fast"]["after"], COLORS["fast"])
        if "adam_grid" in methods:
            drawn["Adam on the grid, after"] = (methods["adam_grid"]["after"], COLORS["adam_grid"])
        for name, (errors, color) in drawn.items():
            values = np.clip(errors[key], low, high * 0.999)
            weights = np.full(len(values), 1.0 / len(values))
            axes.hist(values, bins, weights=weights, color=color, alpha=0.65, label=name)
        axes.axvline(limit, color="black", linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlabel(what)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of poses")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle("Fig. 9: errors before and after")
    return png(figure)
