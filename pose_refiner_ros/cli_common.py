# SPDX-License-Identifier: Apache-2.0
"""What the commands have in common: where they print, how errors end them, the device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

console = Console()
errors = Console(stderr=True)
WRONG_INPUT = 2


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DeviceOption = Annotated[
    Device, typer.Option(help="Where to compute; auto takes CUDA if it is there.")
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
    errors.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def is_for_users(error: ValueError) -> bool:
    return type(error).__module__.startswith("pose_refiner_ros.")


def start_warp(device: Device) -> None:
    """Starts Warp on a device.

    Raises:
        InputError: the device is not there.
    """
    from pose_refiner_ros.warp_start import start_warp_quietly

    start_warp_quietly()
    from pose_refiner_ros.pipeline import choose_device
    from pose_refiner_ros.single_image import InputError

    try:
        choose_device(device.value)
    except ValueError as error:
        raise InputError(str(error)) from error


def write_picture(path: Path, rgb) -> None:
    import cv2

    from pose_refiner_ros.datasets.bop import write_atomically
    from pose_refiner_ros.single_image import InputError

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
