# SPDX-License-Identifier: Apache-2.0
"""An object library at a glance."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Symmetries


def describe(library: ObjectLibrary) -> Table:
    """A table of the library's objects; below it what looks wrong or was left out, and why."""
    table = Table(
        title=escape(str(library.path)) if library.path else None,
        title_justify="left",
        title_style="",
        caption=_remarks(library),
        caption_justify="left",
        caption_style="",
        box=None,
        header_style="bold",
        padding=(0, 1, 0, 0),
    )
    table.add_column("object", no_wrap=True)
    table.add_column("size x y z\nm", justify="right", no_wrap=True)
    table.add_column("faces for\noutlines", justify="right", no_wrap=True)
    table.add_column("outline off\nmean, max px", justify="right", no_wrap=True)
    has_fields = any(model.field is not None for model in library.values())
    if has_fields:
        table.add_column("field\nnodes mm", justify="right", no_wrap=True)
    table.add_column("symmetries")
    table.add_column("also called")
    for name, model in library.items():
        simple = len(model.silhouette_mesh.faces)
        called = [f"label {model.label}"] if model.label is not None else []
        called += [f"BOP {model.bop_id}"] if model.bop_id is not None else []
        table.add_row(
            escape(name),
            " ".join(f"{length:.3f}" for length in model.box_size),
            f"{len(model.mesh.faces):,} → {simple:,}",
            f"{model.outline_error.mean_px:.3f}, {model.outline_error.max_px:.2f}",
            *([_describe_field(model)] * has_fields),
            describe_symmetries(model.symmetries),
            escape(", ".join([*model.aliases, *called])),
        )
    return table


def _describe_field(model: ObjectModel) -> str:
    return "" if model.field is None else f"{1000.0 * model.field.voxel:.1f}"


def _remarks(library: ObjectLibrary) -> str | None:
    lines = [
        f"[yellow]{escape(f'{name}: {text}')}[/]"
        for name, texts in library.warnings.items()
        for text in texts
    ]
    lines += [
        f"[red]{escape(f'{name} left out: {reason}')}[/]"
        for name, reason in library.problems.items()
    ]
    return "\n".join(lines) or None


def describe_symmetries(symmetries: Symmetries) -> str:
    """Such as "4 poses, turns about z"."""
    texts = []
    if len(symmetries.discrete) > 1:
        texts.append(f"{len(symmetries.discrete)} poses")
    if len(symmetries.axes) == 1:
        texts.append(f"any turn about {_axis_name(symmetries.axes[0].direction)}")
    elif symmetries.axes:
        texts.append("sphere")
    return ", ".join(texts) or "none"


def _axis_name(direction: tuple[float, float, float]) -> str:
    for name, k in (("x", 0), ("y", 1), ("z", 2)):
        if abs(direction[k]) > 1 - 1e-9:
            return name
    return "[" + ", ".join(f"{value:.3g}" for value in direction) + "]"
