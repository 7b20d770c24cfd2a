# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, where they print, how errors end them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pose_refiner_ros.files.atomic import write_atomically

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
WRONG_INPUT = 2


Device = Literal["auto", "cpu", "cuda"]
Refinement = Literal["solver", "gradient_pose", "gradient_encoder"]
DeviceOption = Annotated[
    Device, typer.Option(help="Where to compute; auto takes CUDA if it is there.")
]
ObjectsOption = Annotated[
    Path | None,
    typer.Option(
        help="Object library YAML, or a BOP models/ folder; the package's sedan, suv and cargo if "
        "not given."
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Weights that name masks without a class, and guess first poses; the package's, where "
        "the library has a category that they know, if not given. none: no encoder.",
    ),
]
RefinementOption = Annotated[
    Refinement,
    typer.Option(help="solver: fast. The others are Palazzi et al.'s: seconds an object."),
]
ExposureOption = Annotated[
    bool,
    typer.Option(
        help="Objects with a field: solve for brightness and white balance of the photo too.",
    ),
]
ShapeNetOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Your copy of ShapeNetCore v2; procedural vehicles if not given."
    ),
]
ClustersOption = Annotated[
    Path | None,
    typer.Option(metavar="CSV", help="ShapeNet: which model is a sedan, suv or cargo."),
]
PerClusterOption = Annotated[
    int | None, typer.Option(min=1, help="Procedural vehicles per cluster; 400 if not given.")
]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what a user can mend into one line on stderr and exit code 2."""
    # Warnings of the library are collected and printed once, not logged as well.
    logger = logging.getLogger("pose_refiner_ros")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (ValueError, OSError) as error:
        # All errors that the package raises for wrong input are ValueErrors with a message for
        # people. Anything else of that kind is a mistake of ours and keeps its traceback.
        if isinstance(error, ValueError) and not is_for_users(error):
            raise
        if isinstance(error, OSError) and error.strerror and error.filename:
            message = f"{error.filename}: {error.strerror}"
        else:
            message = " ".join(str(error).split())
        tell(f"pose-refiner: {message}", "red")
        raise typer.Exit(WRONG_INPUT) from None
    finally:
        logger.setLevel(level)


def tell(line: str, style: str) -> None:
    """One line on stderr, whatever the width of the terminal."""
    errors.print(line, style=style, markup=False, soft_wrap=True)


def is_for_users(error: ValueError) -> bool:
    return type(error).__module__.startswith("pose_refiner_ros.")


@contextlib.contextmanager
def progress_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while something lasts; yields what is to be told (done, total)."""
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def counting_bar(remaining: bool = True) -> Progress:
    """For bars on stderr that stay, with how much of how much is done, and the time that remains
    or that has passed."""
    time = TimeRemainingColumn() if remaining else TimeElapsedColumn()
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), time)
    return Progress(*columns, console=errors, disable=not errors.is_terminal)


def start_warp(device: Device) -> str:
    """Starts Warp; returns the name that it has for a device.

    Raises:
        InputError: the device is not there.
    """
    from pose_refiner_ros.warp_start import start_warp_quietly

    start_warp_quietly()
    from pose_refiner_ros.cli.single_image import InputError
    from pose_refiner_ros.pipeline import choose_device

    try:
        return choose_device(device)
    except ValueError as error:
        raise InputError(str(error)) from error


def write_picture(path: Path, rgb) -> None:
    import cv2

    from pose_refiner_ros.cli.single_image import InputError

    suffix = path.suffix or ".png"
    try:
        done, data = cv2.imencode(suffix, rgb[..., ::-1])
    except cv2.error:
        done = False
    if not done:
        raise InputError(f"picture {path}: OpenCV cannot write {suffix} files; use .png or .jpg")
    write_atomically(path, data.tobytes())


def rich_table(lines: list[list[str]], total: bool = True) -> Table:
    """A table of a header and rows. total: the last row stands for all others."""
    header, *rows = lines
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for i, column in enumerate(header):
        head = column.replace(" ", "\n")  # two short lines, to fit 80 columns
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for i, row in enumerate(rows):
        last = total and i == len(rows) - 1
        table.add_row(*row, style="bold" if last else None)
    return table


def collection_of(
    shapenet: Path | None, clusters: Path | None, per_cluster: int | None, seed: int = 0
):
    """The vehicles that a command's options ask for; tells what was left out."""
    from pose_refiner_ros.datasets.vehicles.collection import (
        PER_CLUSTER,
        CollectionError,
        procedural_collection,
    )
    from pose_refiner_ros.warp_start import start_warp_quietly

    start_warp_quietly()
    if shapenet is None:
        if clusters is not None:
            raise CollectionError("--clusters belongs to --shapenet, which is not given")
        return procedural_collection(per_cluster or PER_CLUSTER, seed)
    from pose_refiner_ros.datasets.vehicles.shapenet import load_shapenet

    with progress_bar("Reading models") as progress:
        collection = load_shapenet(shapenet, clusters, seed, progress=progress)
    faulty = [
        f"{model}: {why}"
        for model, why in collection.skipped.items()
        if "none of the clusters" not in why
    ]
    for line in faulty[:10]:
        tell(f"warning: left out {line}", "yellow")
    others = len(collection.skipped) - len(faulty)
    if others or len(faulty) > 10:
        tell(
            f"warning: of {len(collection.skipped)} models left out, {len(faulty)} are faulty and "
            f"{others} belong to no cluster",
            "yellow",
        )
    return collection
