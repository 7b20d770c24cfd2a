# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner evaluate`: the tables of the papers that this package implements."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pose_refiner_ros.cli.common import (
    ClustersOption,
    DeviceOption,
    ShapeNetOption,
    collection_of,
    console,
    counting_bar,
    errors,
    rich_table,
    start_warp,
    tell,
    user_errors,
)

app = typer.Typer(help="Measure the tables of the papers.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Measure the tables of the papers."""  # with a callback, one command is still named


@app.command()
def palazzi(
    out: Annotated[Path, typer.Option(help="Folder for palazzi.json, palazzi.md and plots.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Every block at a tiny size, to see that it runs.")
    ] = False,
    encoder: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights; if not given, the package's own.")
    ] = None,
    euler_encoder: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of the paper's pose head; likewise."),
    ] = None,
    shapenet: ShapeNetOption = None,
    clusters: ClustersOption = None,
    vehicles: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Vehicles from elsewhere: vehicles.yaml and meshes."),
    ] = None,
    objects: Annotated[
        int | None, typer.Option(min=1, help="Views of test vehicles; other rows have no more.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the views.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Tables and figures of Palazzi et al. 2018, on vehicles never trained on."""
    with user_errors():
        where = start_warp(device)
        from pose_refiner_ros import shipped
        from pose_refiner_ros.encoder.inference import PoseEncoder
        from pose_refiner_ros.encoder.weights import load_encoder
        from pose_refiner_ros.evaluation import palazzi as evaluation
        from pose_refiner_ros.evaluation.palazzi_tables import summary_lines

        loaded = PoseEncoder.load(encoder or shipped.ENCODER, where)
        euler, euler_record = load_encoder(euler_encoder or shipped.EULER_ENCODER)
        foreign = [] if vehicles is None else evaluation.load_foreign(vehicles)
        per_cluster, of_collection = evaluation.recorded_collection(loaded.record)
        collection = collection_of(shapenet, clusters, per_cluster, of_collection)
        counts = evaluation.QUICK if quick else evaluation.FULL
        if objects is not None:
            counts = counts.at_most(objects)
        with _blocks_bar() as show:
            report = evaluation.run_palazzi(
                out, collection, loaded, euler, foreign, counts, seed, where, show, euler_record
            )
    console.print(rich_table(summary_lines(report), total=False))
    _tell_missed(report)
    console.print(f"palazzi.json, palazzi.md and plots in {out}")


@app.command()
def inerf(
    out: Annotated[
        Path,
        typer.Option(help="Folder for inerf.json (of a scene inerf_NAME.json), pages and plots."),
    ],
    field: Annotated[Path, typer.Option(metavar="FILE", help="A grid: `field train`.")],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Photos that the field was trained from.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Every block at a tiny size, to see that it runs.")
    ] = False,
    mlp_field: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A network: `field train --kind mlp`; else one trained briefly. Not of scenes.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BLOCK", help="Run this block alone; others stay as in the inerf.json of OUT."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of starts and rays.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Tables and figures of iNeRF (Yen-Chen et al. 2021), on the test photos of a field.

    Photos with masks, or in front of the field's background, are of an object; those without, of a
    scene whose camera is localised.
    """
    with user_errors():
        where = start_warp(device)
        from pose_refiner_ros.evaluation import inerf as evaluation
        from pose_refiner_ros.evaluation.inerf_tables import stem_of, summary_lines
        from pose_refiner_ros.fields.field_file import load_field

        grid = load_field(field, where)
        network = None if mlp_field is None else load_field(mlp_field, where)
        with _blocks_bar() as show:
            report = evaluation.run_inerf(
                out, data, grid, network, None, seed, where, show, only or (), quick
            )
    console.print(rich_table(summary_lines(report), total=False))
    _tell_missed(report)
    failed = {name: block["failed"] for name, block in report["blocks"].items() if block["failed"]}
    for name, why in failed.items():
        tell(f"block {name} failed: {why}", "red")
    stem = stem_of(report)
    console.print(f"{stem}.json, {stem}.md and plots in {out}")
    if failed:
        raise typer.Exit(1)


@contextlib.contextmanager
def _blocks_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each block; yields what is to be told (block, done, total)."""
    with counting_bar(remaining=False) as bar:
        tasks: dict[str, int] = {}

        def show(block: str, done: int, total: int) -> None:
            if block not in tasks:
                tasks[block] = bar.add_task(block, total=total)
                if not errors.is_terminal:
                    errors.print(block, soft_wrap=True)
            bar.update(tasks[block], completed=done, total=total)

        yield show


def _tell_missed(report: dict[str, Any]) -> None:
    for target in report["targets"]:
        if not target["met"]:
            sign = "at least" if target["at_least"] else "at most"
            tell(
                f"target missed: {target['name']} is {target['ours']:.3g}, not {sign} "
                f"{target['target']:g}",
                "yellow",
            )
