# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner vehicles`: models of vehicles, their medoids, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pose_refiner_ros.cli.common import (
    ClustersOption,
    PerClusterOption,
    ShapeNetOption,
    collection_of,
    console,
    progress_bar,
    user_errors,
)

app = typer.Typer(
    help="Models of vehicles, their medoids, and pictures of them.", no_args_is_help=True
)


@app.command()
def medoids(
    out: Annotated[
        Path | None, typer.Option(help="Folder for their meshes and an object library of them.")
    ] = None,
    shapenet: ShapeNetOption = None,
    clusters: ClustersOption = None,
    per_cluster: PerClusterOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the vehicles.")] = 0,
) -> None:
    """The vehicle that stands for each cluster: least mean HOG distance to the others."""
    with user_errors():
        from rich.table import Table

        from pose_refiner_ros.learning.vehicle_library import write_library

        collection = collection_of(shapenet, clusters, per_cluster, seed)
        with console.status("Comparing vehicles"):
            chosen = collection.medoids
        table = Table(box=None, header_style="bold")
        for column in ("cluster", "models", "medoid", "length", "width", "height", "faces"):
            table.add_column(column, justify="left" if column in ("cluster", "medoid") else "right")
        for cluster, vehicle in chosen.items():
            size = vehicle.mesh.bounds[1] - vehicle.mesh.bounds[0]
            table.add_row(
                cluster,
                str(len(collection.cluster(cluster))),
                vehicle.name,
                *(f"{side:.2f}" for side in size),
                str(len(vehicle.mesh.faces)),
            )
        if out is not None:
            write_library(out, collection)
    console.print(table)
    if out is not None:
        console.print(f"Meshes and vehicles.yaml in {out}")


@app.command()
def render(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Data set to write.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which models.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Of images.")] = 100,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Pixels of a side.")] = 256,
    view: Annotated[
        Literal["paper", "robot"],
        typer.Option(help="The paper's camera, or all kinds on robots and cars."),
    ] = "paper",
    seed: Annotated[int, typer.Option(min=0, help="Of cameras, paint and backgrounds.")] = 0,
    shapenet: ShapeNetOption = None,
    clusters: ClustersOption = None,
    per_cluster: PerClusterOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DIR.")] = False,
) -> None:
    """Render pictures, masks and poses of vehicles in BOP's layout."""
    with user_errors():
        from pose_refiner_ros.datasets.vehicles.render_bop import (
            RenderOptions,
            check_folder,
            render_bop,
        )
        from pose_refiner_ros.datasets.vehicles.views import PaperCamera, RobotCamera

        options = RenderOptions(split, count, size, seed, overwrite)
        check_folder(folder, options)
        collection = collection_of(shapenet, clusters, per_cluster)
        kind = PaperCamera if view == "paper" else RobotCamera
        with progress_bar("Rendering") as progress:
            vehicles = render_bop(folder, collection, options, kind(), progress)
    console.print(
        f"{count} images of {vehicles} vehicles in {folder}; for `pose-refiner bop` give "
        f"--split {split}",
        soft_wrap=True,
    )
