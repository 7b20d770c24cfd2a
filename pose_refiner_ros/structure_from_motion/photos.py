# SPDX-License-Identifier: Apache-2.0
"""Which photos a folder has, and what of it is none."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pose_refiner_ros.datasets.posed_images.reading import PICTURE_SUFFIXES, mask_beside

LEAST = 3  # photos
_HEIC = (".heic", ".heif", ".avif")
_VIDEO = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mts")
_FRAMES = 80  # photos with numbers one after the other, from which they are taken to be of a video
_NAMED = 5


class StructureFromMotionError(ValueError):
    """Photos of which no poses can be found; the message says why and what to do."""


@dataclass(frozen=True)
class Photos:
    """Attributes:
    paths: of the photos, in the order of the numbers in their names.
    masks: file with the mask of each; None where there are none.
    """

    paths: list[Path]
    masks: list[Path] | None


def photos_of(source: Path, warn: Callable[[str], None]) -> Photos:
    """The photos in a folder, or in images/ in it; masks lie in masks/ beside images/.

    A photo that is there twice is left out with a warning.

    Raises:
        StructureFromMotionError: no folder, a video, HEIC, too few photos, masks for some only.
    """
    if source.suffix.lower() in _VIDEO and source.is_file():
        raise StructureFromMotionError(_video_advice(source))
    if not source.is_dir():
        raise StructureFromMotionError(
            f"{source} is no folder of photos" if source.exists() else f"{source} does not exist"
        )
    folder = source / "images" if (source / "images").is_dir() else source
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] != "."]
    paths = [path for path in files if path.suffix.lower() in PICTURE_SUFFIXES]
    stems = {path.stem for path in paths}
    heic = [p for p in files if p.suffix.lower() in _HEIC and p.stem not in stems]
    if heic:
        raise StructureFromMotionError(
            f"{folder} has {len(heic)} photos as {heic[0].suffix}, such as {heic[0].name}, which "
            f"cannot be read: convert them, as by `cd {folder} && magick mogrify -format jpg "
            f"*{heic[0].suffix}`, and remove them"
        )
    videos = [path for path in files if path.suffix.lower() in _VIDEO]
    if videos and not paths:
        raise StructureFromMotionError(_video_advice(videos[0]))
    paths = _without_copies(sorted(paths, key=_in_order), warn)
    if len(paths) < LEAST:
        count = f"only {len(paths)} photo{'s' * (len(paths) > 1)}" if paths else "no photos"
        raise StructureFromMotionError(
            f"{folder} has {count} ({', '.join(PICTURE_SUFFIXES)}), and no file of poses: poses "
            "are found in 20 photos or more, from all sides, each of which shows most of what the "
            "next one shows"
        )
    masks = [mask_beside(path) for path in paths]
    without = [p.name for p, mask in zip(paths, masks, strict=True) if mask is None]
    if 0 < len(without) < len(paths):
        raise StructureFromMotionError(
            f"{len(without)} of {len(paths)} photos have no mask, such as {without[0]}: give all "
            f"one or none (looked into {paths[0].parent.parent / 'masks'})"
        )
    return Photos(paths, None if without else masks)


def pairs_to_match(paths: Sequence[Path], matching: str) -> list[tuple[int, int]]:
    """(i, j) with i < j, of photos that may show the same.

    Args:
        matching: exhaustive: all pairs. sequential: photos that follow each other, or are 16, 32,
            64, ... apart, and all pairs of some 24 key frames, which close loops. auto: sequential
            for many photos numbered as frames of a video are.
    """
    count = len(paths)
    if matching == "auto":
        matching = "sequential" if is_video(paths) else "exhaustive"
    if matching == "exhaustive":
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    apart = {*range(1, 9), *(2**n for n in range(4, count.bit_length()))}
    pairs = {(i, i + n) for n in apart for i in range(count - n)}
    keys = range(0, count, max(count // 24, 1))
    return sorted(pairs | {(i, j) for i in keys for j in keys if i < j})


def is_video(paths: Sequence[Path]) -> bool:
    """Whether names are numbered almost without gaps, and are many."""
    numbers = [re.findall(r"\d+", path.stem) for path in paths]
    if len(paths) < _FRAMES or not all(numbers):
        return False
    numbers = [int(found[-1]) for found in numbers]
    steps = sorted(b - a for a, b in itertools.pairwise(numbers))
    usual = steps[len(steps) // 2]
    return usual > 0 and sum(step == usual for step in steps) > 0.9 * len(steps)


def some_of(names: Sequence[str]) -> str:
    """The first few names, and how many there are besides."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _without_copies(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Path]:
    first, copies = {}, []
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest in first:
            copies.append(f"{path.name} (as {first[digest].name})")
        first.setdefault(digest, path)
    if copies:
        warn(f"photos that are there twice are left out: {some_of(copies)}")
    return list(first.values())


def _in_order(path: Path) -> tuple:
    """By the numbers in a name: frame 2 before frame 10."""
    parts = re.split(r"(\d+)", path.name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


def _video_advice(path: Path) -> str:
    frames = path.with_suffix("")
    return (
        f"{path} is a video: extract frames, as by `mkdir {frames} && ffmpeg -i {path} -vf fps=2 "
        f"-q:v 2 {frames}/%04d.jpg`, and give the folder {frames}"
    )
