# SPDX-License-Identifier: Apache-2.0
"""Figures 6a, 6b and 6c of Palazzi et al. 2018, of what was measured here."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import LogLocator, NullLocator

from pose_refiner_ros.evaluation.plotting import new_figure, png

COLORS = {"soft": "#c2571a", "weights": "#7a4ea3", "solver": "#1f6fb2", "start": "#777777"}
HEIGHT = 4.2  # inches


def plots(report: dict[str, Any]) -> dict[str, bytes]:
    """File name -> PNG."""
    figures = report["figures"]
    return {
        "palazzi_6a_iou.png": _iou(figures["6a"]),
        "palazzi_6b_time.png": _time(figures["6b"]),
        "palazzi_6c_steps.png": _steps(figures["6c"]),
    }


def _iou(data: dict[str, Any]) -> bytes:
    figure = new_figure(8.4, HEIGHT)
    axes = figure.subplots()
    for kind, style in (("medoid", "-"), ("true_mesh", "--")):
        mesh, own = kind.replace("_", " "), data[kind]
        for key, name, color, marker in (
            ("solver", "solver", "solver", "o"),
            ("soft_rasterizer", "soft rasteriser", "soft", "s"),
        ):
            axes.plot(own["resolutions"], own[key], style, marker=marker, color=COLORS[color],
                      label=f"{name}, {mesh}")  # fmt: skip
        axes.axhline(own["start"], linestyle=style, linewidth=1, color=COLORS["start"],
                     label=f"encoder, {mesh}")  # fmt: skip
    _resolutions(axes, data["medoid"]["resolutions"])
    axes.set(ylabel="mean IoU", title="Fig. 6a: overlap after refinement, by resolution")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return png(figure)


def _time(data: dict[str, Any]) -> bytes:
    figure = new_figure(6.4, HEIGHT)
    axes = figure.subplots()
    for key, name, color, style in (
        ("soft_rasterizer_with_gradient_ms", "soft rasteriser, with gradient", "soft", "--"),
        ("soft_rasterizer_ms", "soft rasteriser", "soft", "-"),
        ("fast_silhouette_ms", "fast silhouette", "solver", "-"),
    ):
        axes.plot(data["resolutions"], data[key], style, marker="o", color=COLORS[color],
                  label=name)  # fmt: skip
    _resolutions(axes, data["resolutions"])
    axes.set(yscale="log", ylabel="ms per picture")
    axes.set_title("Fig. 6b: time to draw one vehicle, by resolution")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    return png(figure)


def _steps(data: dict[str, Any]) -> bytes:
    figure = new_figure(10.0, HEIGHT)
    left, right = figure.subplots(1, 2)
    for axes, kind in ((left, "medoid"), (right, "true_mesh")):
        for key, name, color in (
            ("gradient_pose", "gradient steps, pose", "soft"),
            ("gradient_encoder", "gradient steps, encoder's weights", "weights"),
            ("solver", "solver iterations", "solver"),
        ):
            axes.plot(data[kind][key], color=COLORS[color], label=name)
        axes.set(xlabel="steps", ylim=(0, None), title=f"with {kind.replace('_', ' ')}")
        axes.grid(alpha=0.3)
    left.set_ylabel("median viewpoint error, degrees")
    figure.suptitle("Fig. 6c: viewpoint error by number of steps")
    left.legend(fontsize=8)
    return png(figure)


def _resolutions(axes, resolutions: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(resolutions, [str(r) for r in resolutions])
    axes.set_xlabel("resolution, pixels a side")
    axes.grid(alpha=0.3)
