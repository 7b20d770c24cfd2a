# SPDX-License-Identifier: Apache-2.0
"""Figures 6a and 9 of iNeRF, and share of right poses by time, of what was measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pose_refiner_ros.evaluation.inerf_protocol import RIGHT_DEG, RIGHT_M
from pose_refiner_ros.evaluation.inerf_tables import METHODS, Words, stem_of, words_of
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


def plots(report: dict[str, Any]) -> dict[str, bytes]:
    """File name -> PNG, of the blocks that have run."""
    found, stem, words = {}, stem_of(report), words_of(report)
    methods = report["methods"]
    for letter in "ab":
        if figure := report.get(f"figure_6{letter}"):
            found[f"{stem}_6{letter}_steps.png"] = _steps(letter, figure["cells"], words)
    if "speed" in report and "adam_grid" in methods:
        found[f"{stem}_time.png"] = _time(report)
    if "fast" in methods:
        found[f"{stem}_9_errors.png"] = _errors(methods, words)
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


def _steps(letter: str, cells: dict[str, Any], words: Words) -> bytes:
    figure = new_figure(11.5, 4.4)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for axes, key, what in (
        (left, "share_5deg", "rotation under 5°"),
        (middle, "share_5cm", f"translation under {words.near}"),
        (right, "share_both", "both"),
    ):
        for cell in cells.values():
            axes.plot(
                cell["at_step"], cell["curves"][key], STYLES[cell["rays"]],
                color=COLORS[cell["sampling"]], linewidth=1.3,
                label=f"{cell['sampling'].replace('_', ' ')}, {cell['rays']}",
            )  # fmt: skip
        axes.set(title=what, xlabel="steps of Adam", ylim=(0.0, 1.0))
        axes.grid(alpha=0.3)
    left.set_ylabel("share of poses")
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="sampling, rays")
    figure.suptitle(
        f"Fig. 6{letter}: share of poses by steps, sampling and batch of rays, on the grid"
    )
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
            seconds = np.array(row["at_step"]) / row["steps"] * row["seconds_per_pose"]
            share = row["curves"]["share_both"]
            axes.plot(seconds[1:], share[1:], color=COLORS[name], label=METHODS[name])
    axes.set(xscale="log", xlabel="seconds per pose")
    axes.set(ylim=(0.0, 1.02), ylabel=f"share under 5° and {words_of(report).near}")
    axes.set_title("Share of right poses by time")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def _errors(methods: dict[str, Any], words: Words) -> bytes:
    """Fig. 9: histograms of errors before and after, on a logarithmic axis."""
    figure = new_figure(10.0, 4.2)
    drawn = {"before": (methods["fast"]["before"], "#bbbbbb")}
    for name, label in (("fast", "fast, after"), ("adam_grid", "Adam on the grid, after")):
        if name in methods:
            drawn[label] = (methods[name]["after"], COLORS[name])
    shown = (  # key, what it is, where it is right, smallest and largest
        ("rotation_deg", "rotation error, degrees", RIGHT_DEG, 1e-2, 100.0),
        ("translation_m", f"translation error, {words.unit}", RIGHT_M, 1e-3, 10.0),
    )
    for axes, (key, what, limit, low, high) in zip(figure.subplots(1, 2), shown, strict=True):
        bins = np.geomspace(low, high, 41)
        for name, (errors, color) in drawn.items():
            values = np.clip(errors[key], low, high * 0.999)
            weights = np.full(len(values), 1.0 / len(values))
            axes.hist(values, bins, weights=weights, color=color, alpha=0.65, label=name)
        axes.axvline(limit, color="black", linewidth=0.8, linestyle="--")
        axes.set(xscale="log", xlabel=what)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of poses")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle("Fig. 9: errors before and after")
    return png(figure)
