# SPDX-License-Identifier: Apache-2.0
"""What palazzi.json holds, as Markdown for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pose_refiner_ros.evaluation.report import (
    Columns,
    cells,
    heads,
    lines_of,
    origin,
    table,
    target_table,
)

ROW_NAMES = {
    "encoder": "encoder",
    "gradient_pose": "+ 30 gradient steps, pose",
    "gradient_encoder": "+ 30 gradient steps, encoder's weights",
    "solver": "+ solver",
    "solver_no_prior": "+ solver, outline alone (no prior of the category)",
    "encoder_euler_cosine": "encoder with the paper's head (cosines of Euler angles)",
}
COLUMNS = (  # head, key of a summary, how it is written
    ("n", "n", "{:.0f}"),
    ("accuracy", "accuracy", "{:.3f}"),
    ("mIoU", "miou", "{:.3f}"),
    ("MVE °", "mve_deg", "{:.2f}"),
    ("Acc π/6", "acc_pi_6", "{:.3f}"),
    ("translation m", "median_translation_error_m", "{:.3f}"),
    ("ms / object", "ms_per_object", "{:.1f}"),
)
PAPER = {  # the paper's own figures
    "encoder": {"accuracy": 0.89, "mve_deg": 5.7},
    "refined": {"miou": 0.72, "mve_deg": 4.5, "acc_pi_6": 0.90},
}
KINDS = {"medoid": "medoids", "true_mesh": "true meshes"}


def markdown(report: dict[str, Any]) -> str:
    """All tables, and the plots beside them."""
    parts = [
        "# Palazzi et al. 2018, measured here",
        _header(report),
        "## Targets",
        target_table(report),
        "## Table 1",
        "Class accuracy, mean IoU, median viewpoint error (eq. 6), share of views below π/6, "
        "median error of the translation, and time of the whole pipeline for one object. The class "
        "is the encoder's in every row. `n`: views.",
        "With the medoid of the class that the encoder gave:",
        table1(report, "medoid"),
        "With the vehicle's own mesh:",
        table1(report, "true_mesh"),
        "## Time of a refinement alone",
        speed_table(report),
        "## Table 2: resolutions",
        "Both begin at the encoder's likeliest pose. A gain is the difference of mean IoU, of the "
        "median viewpoint error, or of the median translation error to that start; positive is "
        "better. `translation`: what is left of its error. With medoids the solver holds to the "
        "encoder's opinion (the prior of the category); the soft rasteriser, as in the paper, has "
        "nothing of the kind.",
        *(part for kind, name in KINDS.items() for part in (f"With {name}:", table2(report, kind))),
        "## Figures",
        "![IoU by resolution](palazzi_6a_iou.png)",
        "![Time of a picture by resolution](palazzi_6b_time.png)",
        "![Viewpoint error by number of steps](palazzi_6c_steps.png)",
        "## Vehicles from elsewhere",
        vehicles_table(report),
    ]
    return "\n\n".join(parts) + "\n"


def table1(report: dict[str, Any], block: str) -> str:
    paper = [(f"paper, {name}", figures) for name, figures in PAPER.items()]
    found = report["table1"][block]
    rows = [(name, found[row]) for row, name in ROW_NAMES.items() if row in found]
    return table(lines_of(["row"], COLUMNS, [*(paper if block == "medoid" else ()), *rows]))


def speed_table(report: dict[str, Any]) -> str:
    names = {
        "evidence_ms": "evidence (signed distances), ms",
        "encoder_ms": "encoder, ms",
        "solver_ms": "solver, ms",
        "solver_first_call_ms": "solver, first call after other work, ms",
        "gradient_pose_ms": "30 soft rasteriser steps at 128×128, pose, ms",
        "gradient_encoder_ms": "the same, encoder's weights, ms",
        "solver_one_hypothesis_ms": "solver, one hypothesis, ms",
        "gradient_pose_one_hypothesis_ms": "30 steps, pose, one hypothesis, ms",
        "speedup_solver_over_30_soft_steps_at_128": "solver faster than 30 steps, times",
        "speedup_one_hypothesis": "one hypothesis each: faster, times",
        "speedup_all_hypotheses_over_steps_of_one": "solver of all, steps of one hypothesis: "
        "faster, times",
    }
    lines = [["median of one object", *KINDS.values()]]
    lines += [
        [name, *(f"{report['speed'][kind][key]:.1f}" for kind in KINDS)]
        for key, name in names.items()
    ]
    speed = report["speed"]["medoid"]
    triangles = ", ".join(map(str, speed["soft_rasterizer_triangles"]))
    return (
        f"{table(lines)}\n\n{speed['n']} objects, the same for all lines of a column, one at a "
        "time. Both refine the same hypotheses of the encoder (one, or two where the second has a "
        "weight of 0.02 or more) with the same mesh. What takes milliseconds is called five times "
        "in a row, as 30 steps are 30 calls in a row; the first of them, with caches full of other "
        "work, is shown beside it. The "
        f"soft rasteriser draws {triangles} triangles of the medoids."
    )


def table2(report: dict[str, Any], kind: str) -> str:
    data = report["table2"][kind]
    columns = (
        ("IoU gain", "iou_gain", "{:+.3f}"),
        ("viewpoint gain °", "viewpoint_gain_deg", "{:+.2f}"),
        ("translation gain m", "translation_gain_m", "{:+.3f}"),
        ("translation m", "median_translation_error_m", "{:.3f}"),
    )
    methods = {"soft_rasterizer": "soft", "solver": "solver"}
    lines = [["resolution", *_side_by_side_heads(methods, columns)]]
    for resolution in data["solver"]:
        figures = {method: data[method][resolution] for method in methods}
        lines.append([resolution, *_side_by_side(figures, methods, columns)])
    start = data["start"]
    return (
        f"{table(lines)}\n\nStart: mean IoU {start['miou']:.3f}, MVE {start['mve_deg']:.2f}°, "
        f"translation {start['median_translation_error_m']:.3f} m; {start['n']} views."
    )


def vehicles_table(report: dict[str, Any]) -> str:
    data = report["vehicles"]
    if data is None:
        return "Not run: no folder was given (`--vehicles`)."
    keys = ("miou", "mve_deg", "acc_pi_6")
    columns = [column for column in COLUMNS if column[1] in keys]
    kinds = {"encoder": "encoder", "medoid": "medoid", "true_mesh": "true mesh"}
    lines = [["vehicle", "class", "called", "accuracy", *_side_by_side_heads(kinds, columns)]]
    for name, entry in [*data["per_vehicle"].items(), ("all", data["total"])]:
        called = ", ".join(f"{k} {v}" for k, v in entry.get("named", {}).items())
        accuracy = f"{entry['medoid']['accuracy']:.3f}"
        figures = _side_by_side(entry, kinds, columns)
        lines.append([name, entry.get("class", ""), called, accuracy, *figures])
    return (
        f"{table(lines)}\n\n{data['views_each']} views each; {data['rule']}. `encoder`: its pose, "
        "drawn with the medoid; `medoid` and `true mesh`: refined by the solver with that mesh."
    )


def _side_by_side_heads(parts: dict[str, str], columns: Columns) -> list[str]:
    return [f"{name}: {head}" for name in parts.values() for head in heads(columns)]


def _side_by_side(figures: dict[str, Any], parts: Iterable[str], columns: Columns) -> list[str]:
    return [cell for part in parts for cell in cells(figures[part], columns)]


def summary_lines(report: dict[str, Any]) -> list[list[str]]:
    """Table 1 with medoids, short, for a terminal."""
    return lines_of(["row"], COLUMNS, report["table1"]["medoid"].items())


def _header(report: dict[str, Any]) -> str:
    collection = report["collection"]
    models = ", ".join(f"{n} {c}" for c, n in collection["test_models"].items())
    steps = report["encoder"]["record"].get("steps", "?")
    return (
        f"{origin(report, 'palazzi')} Test models: {models} "
        f"({collection['source']}). Views by the paper's camera, 256×256, clean masks. Encoder of "
        f"{steps} training steps.{_about_paper_head(report)}"
    )


def _about_paper_head(report: dict[str, Any]) -> str:
    """What must be known to compare the paper's head with the default one."""
    other = report.get("encoder_euler_cosine")
    if other is None:
        return ""
    settings, record = other["settings"], other["record"]
    return (
        f" The one with the paper's head had {record.get('steps', '?')} steps and sees the "
        f"{'whole photo' if settings['window'] == 'image' else 'crop'} at {settings['size']} "
        "pixels a side."
    )
