# SPDX-License-Identifier: Apache-2.0
"""Figures of many estimates: what report.json sums up, and tables of it for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pose_refiner_ros.evaluation.report import lines_of
from pose_refiner_ros.evaluation.report import table as markdown_table

Row = dict[str, Any]

# Columns of the tables: head, key of a summary, how it is written.
COLUMNS = (
    ("n", "count", "{:.0f}"),
    ("rotation °", "median_rotation_error_deg", "{:.2f}"),
    ("shift mm", "median_translation_error_mm", "{:.1f}"),
    ("ADD(-S) mm", "median_add_mm", "{:.1f}"),
    ("MSPD px", "median_mspd_px", "{:.1f}"),
    ("<5° <5cm", "share_5deg_5cm", "{:.0%}"),
    ("<5° <2cm", "share_5deg_2cm", "{:.0%}"),
    ("of any", "share_any_5deg_2cm", "{:.0%}"),
    ("IoU before", "mean_iou_before", "{:.3f}"),
    ("IoU after", "mean_iou_after", "{:.3f}"),
    ("time ms", "median_ms", "{:.1f}"),
)
CAPTION = (
    "Medians, shares and mean IoU. ADD-S for symmetric objects, ADD for others. 'of any': one of "
    "the reported hypotheses was within 5° and 2 cm."
)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """`total`, and `per_object` in the order of obj_id."""
    ids = sorted({row["obj_id"] for row in rows if row["obj_id"] is not None})
    per_object = []
    for obj_id in ids:
        own = [row for row in rows if row["obj_id"] == obj_id]
        per_object.append({"obj_id": obj_id, "name": own[0]["name"], **summary(own)})
    return {"total": summary(rows), "per_object": per_object}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of rows, null where there is none.

    `count` is the number of estimates with ground truth, and errors are theirs. One that found no
    pose has no error to go into medians and means, but counts as a miss in every share, and under
    `failed`. `any` shares ask whether one of the reported hypotheses was right.
    """
    known = [row for row in rows if row["has_ground_truth"]]
    return {
        "count": len(known),
        "failed": sum(row["rotation_error_deg"] is None for row in known),
        "without_ground_truth": len(rows) - len(known),
        "median_rotation_error_deg": _of(np.median, known, "rotation_error_deg"),
        "mean_rotation_error_deg": _of(np.mean, known, "rotation_error_deg"),
        "median_translation_error_mm": _of(np.median, known, "translation_error_mm"),
        "mean_translation_error_mm": _of(np.mean, known, "translation_error_mm"),
        "median_add_mm": _of(np.median, known, "add_mm"),
        "median_add_s_mm": _of(np.median, known, "add_s_mm"),
        "median_mssd_mm": _of(np.median, known, "mssd_mm"),
        "median_mspd_px": _of(np.median, known, "mspd_px"),
        "share_5deg_5cm": _share(known, "", 5.0, 50.0),
        "share_5deg_2cm": _share(known, "", 5.0, 20.0),
        "share_any_5deg_2cm": _share(known, "nearest_", 5.0, 20.0),
        "mean_iou_before": _of(np.mean, rows, "iou_before"),
        "mean_iou_after": _of(np.mean, rows, "iou_after"),
        "median_ms": _of(np.median, rows, "ms"),
    }


def table(report: dict[str, Any]) -> list[list[str]]:
    """Header, one row per object, and the total, as text."""
    rows = [(entry["name"], entry) for entry in report["per_object"]]
    return lines_of(["object"], COLUMNS, [*rows, ("total", report["total"])])


def markdown(report: dict[str, Any]) -> str:
    """The table, and what was asked for."""
    asked = ", ".join(f"{key} {value}" for key, value in report["options"].items())
    return f"{markdown_table(table(report))}\n\n{CAPTION}\n\nOptions: {asked}.\n"


def _of(function, rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return float(function(values)) if values else None


def _share(rows: Sequence[Row], which: str, degrees: float, millimetres: float) -> float | None:
    rotation, translation = f"{which}rotation_error_deg", f"{which}translation_error_mm"
    hits = [
        row[rotation] is not None and row[rotation] < degrees and row[translation] < millimetres
        for row in rows
    ]
    return float(np.mean(hits)) if hits else None
