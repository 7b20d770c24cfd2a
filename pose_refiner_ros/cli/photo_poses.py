# SPDX-License-Identifier: Apache-2.0
"""What `pose-refiner field train` does with photos alone: their poses first (pycolmap)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pose_refiner_ros.cli.common import console, counting_bar, errors, tell

Matching = Literal["auto", "exhaustive", "sequential"]
ScaleFrom = Literal["tag", "length", "height"]


def are_photos_alone(source: Path) -> bool:
    """Whether a source says no poses."""
    from pose_refiner_ros.datasets.posed_images import has_layout

    return source.exists() and not has_layout(source)


def poses_beside(out: Path) -> Path:
    """Where poses are written, by the field's file."""
    return out.with_name(f"{out.stem}_transforms.json")


def find_poses(
    source: Path, poses: Path, known, matching: Matching, scale: float, resume: bool
) -> Path:
    """The file of poses of photos alone: the one that is there, to resume, or a new one."""
    from pose_refiner_ros.cli.single_image import InputError
    from pose_refiner_ros.structure_from_motion import find_photo_poses

    if scale != 1.0 and known is not None:
        raise InputError("--scale and --scale-from exclude each other")
    if resume and poses.is_file():
        return poses
    with counting_bar(remaining=False) as bar:
        task = bar.add_task("Reading photos", total=None)
        told = set()

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if not errors.is_terminal and done == total and what not in told:
                told.add(what)
                errors.print(f"{what}: {done}/{total}", soft_wrap=True)

        lines = find_photo_poses(
            source, poses, known, matching, progress,
            lambda text: tell(f"warning: {text}", "yellow"),
        )  # fmt: skip
    for line in lines:
        console.print(line, soft_wrap=True)
    return poses


def known_size(
    scale_from: ScaleFrom | None, tag_size: float | None, points: list[str],
    length: float | None, height: float | None,
):  # fmt: skip
    """What options say is known in metres; None where they say nothing."""
    from pose_refiner_ros.cli.single_image import InputError
    from pose_refiner_ros.structure_from_motion.photos_to_poses import KnownSize

    given = {"--tag-size": tag_size, "--length": length, "--height": height}
    wanted = {"tag": "--tag-size", "length": "--length", "height": "--height"}.get(scale_from or "")
    extra = [name for name, value in given.items() if value is not None and name != wanted]
    if extra or (points and scale_from != "length"):
        raise InputError(f"{', '.join(extra) or '--points'} does not go with this --scale-from")
    if wanted is None:
        return None
    if given[wanted] is None:
        raise InputError(f"--scale-from {scale_from} needs {wanted}, in metres")
    return KnownSize(tag_size, height, length, dict(_clicked(text) for text in points))


def _clicked(text: str):
    """Name of a photo and pixels (2, 2), from photo.jpg:x,y;x,y."""
    import numpy as np

    from pose_refiner_ros.cli.single_image import InputError

    name, _, places = text.rpartition(":")
    try:
        pixels = np.array([[float(n) for n in part.split(",")] for part in places.split(";")])
    except ValueError:
        pixels = np.zeros(0)
    if not name or pixels.shape != (2, 2) or not np.isfinite(pixels).all():
        raise InputError(f"--points {text!r}: give two points in a photo, as photo.jpg:10,20;30,40")
    return name, pixels
