# SPDX-License-Identifier: Apache-2.0
"""From a folder of photos to a file of their poses, in the layout of transforms.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel
from pose_refiner_ros.datasets.posed_images.transforms import (
    OPENCV_FROM_OPENGL,
    Frame,
    load_frames,
)
from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.structure_from_motion.metric_scale import (
    MetricScale,
    find_markers,
    scale_from_height,
    scale_from_length,
    scale_from_markers,
)
from pose_refiner_ros.structure_from_motion.photos import (
    Photos,
    StructureFromMotionError,
    photos_of,
    some_of,
)
from pose_refiner_ros.structure_from_motion.reconstruct import (
    Progress,
    Reconstruction,
    import_pycolmap,
    reconstruct,
)
from pose_refiner_ros.structure_from_motion.upright import moved, upright_from_model

_HULL_SIDE = 500  # pixels in which a visual hull is found
_CAUSE = (
    "they show too little of what the others show, are blurred, or show something else; take more "
    "photos between them, in smaller steps"
)


@dataclass(frozen=True)
class KnownSize:
    """What of the scene is known in metres. Attributes, one of which may be set:

    tag: side of the black square of AprilTags or ArUco markers in the photos.
    height: of the object that masks show.
    length: between two points.
    points: their pixels (2, 2) in two photos or more, by the photo's name.
    """

    tag: float | None = None
    height: float | None = None
    length: float | None = None
    points: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("tag", "height", "length"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < np.inf:
                raise StructureFromMotionError(f"{name} is {value} m; it must be above 0")
        if self.length is not None and len(self.points) < 2:
            raise StructureFromMotionError("a length needs its two points in two photos or more")


def find_photo_poses(
    source: str | Path,
    poses: str | Path,
    known: KnownSize | None = None,
    matching: str = "auto",
    progress: Progress = lambda what, done, total: None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[str]:
    """Finds the poses of a folder of photos and writes them in the layout of transforms.json.

    Args:
        source: folder of photos, or with images/ and perhaps masks/ in it (photos.py).
        poses: the file to write, which must not be there yet.
        known: what says how long a unit is; arbitrary units if nothing does.
        matching: auto | exhaustive | sequential.
        progress: gets what is done, how much of it, and of how much.
        warn: gets a line about photos that were left out, and what else is doubtful.

    Returns:
        Lines for people: how many photos, how long a unit is, where up is.

    Raises:
        StructureFromMotionError: there are too few photos that fit together, pycolmap is missing,
            what is known does not fit, or `poses` is there. Nothing is written then.
        PosedImagesError: a photo or mask that cannot be read.
    """
    poses, known = Path(poses), known or KnownSize()
    check_free(poses)
    photos = photos_of(Path(source), warn)
    import_pycolmap()
    found = reconstruct(photos, matching, progress)
    _warn_of_left_out(photos, found, warn)
    pictures = [photos.paths[number] for number in found.placed]
    turns = [found.turns[number] for number in found.placed]
    masked = photos.masks is not None

    model, marker = found.model, None
    scale = None
    if known.tag is not None:
        markers = find_markers(model, pictures)
        scale = scale_from_markers(markers, known.tag)
        marker = markers[0].corners
    if known.length is not None:
        scale = scale_from_length(model, _by_row(known.points, pictures), known.length)
    upright, how = upright_from_model(model, turns, marker, scene=not masked)
    model = moved(model, upright)
    frames = _frames(model, pictures, photos, found, near_far=not masked)
    if known.height is not None:
        scale = scale_from_height(_small(model, frames), known.height)
    if scale is not None:
        model = moved(model, np.eye(4), scale.metres)
        frames = _frames(model, pictures, photos, found, near_far=not masked)
    _write(poses, frames, scale, how)
    return [
        f"{len(found.placed)} of {len(photos.paths)} photos have poses, "
        f"{np.mean(model.errors):.2f} pixels off on average: {poses}",
        str(scale)
        if scale is not None
        else "units are arbitrary, as no size is known: give --scale-from tag, length or height",
        f"z is up by {how}",
        *([] if masked else [_SCENE]),
    ]


_SCENE = (
    "no masks: it will be a field of all that the photos show; for an object alone put masks, "
    "white where it is, into masks/ beside images/, under the photos' names"
)


def check_free(poses: Path) -> None:
    """Raises StructureFromMotionError where the file is there already."""
    if poses.exists():
        raise StructureFromMotionError(
            f"{poses} is there from an earlier run: train from it with `pose-refiner field train "
            f"{poses} --out …`, remove it to find poses anew, or name another with --poses"
        )


def _warn_of_left_out(photos: Photos, found: Reconstruction, warn: Callable[[str], None]) -> None:
    names = [path.name for path in photos.paths]
    elsewhere = [n for numbers in found.elsewhere for n in numbers if n not in found.placed]
    lost = sorted(set(range(len(names))) - set(found.placed) - set(elsewhere))
    if elsewhere:
        warn(
            f"{len(elsewhere)} photos fit together, but not with the other {len(found.placed)}, "
            f"and are left out: {some_of([names[i] for i in sorted(set(elsewhere))])}; they show "
            "another object, or photos between the two are missing"
        )
    if lost:
        warn(f"{len(lost)} photos have no pose: {some_of([names[i] for i in lost])}; {_CAUSE}")
    if 2 * len(found.placed) < len(names):
        warn(f"only {len(found.placed)} of {len(names)} photos have poses: a field will be poor")
    if found.mask_agreement is not None and found.mask_agreement < 0.9:
        warn(
            f"masks contradict the poses in {1 - found.mask_agreement:.0%} of the pairs of photos: "
            "the object may look the same from several sides; leave what it stands on in the masks"
        )


def _by_row(points: Mapping[str, np.ndarray], pictures: Sequence[Path]) -> dict[int, np.ndarray]:
    names = [path.name for path in pictures]
    for name in points:
        if Path(name).name not in names:
            raise StructureFromMotionError(
                f"--points: {name} is none of the photos that have poses: take another"
            )
    return {names.index(Path(name).name): pixels for name, pixels in points.items()}


def _frames(
    model: SparseModel, pictures: Sequence[Path], photos: Photos, found: Reconstruction,
    near_far: bool,
) -> list[Frame]:  # fmt: skip
    ranges = model.near_far() if near_far else None
    frames = []
    for row, picture in enumerate(pictures):
        values: dict[str, Any] = dict(model.values[row])
        if ranges is not None:
            values["near"], values["far"] = ranges[row].tolist()
        mask = None if photos.masks is None else photos.masks[found.placed[row]]
        pose = model.camera_from_world[row]
        frames.append(Frame(picture.name, picture, mask, pose, values))
    return sorted(frames, key=lambda frame: frame.name)


def _small(model: SparseModel, frames: Sequence[Frame]):
    side = max(max(values["w"], values["h"]) for values in model.values)
    return load_frames(frames, max(side // _HULL_SIDE, 1))


def _write(path: Path, frames: Sequence[Frame], scale: MetricScale | None, up: str) -> None:
    def relative(file: Path) -> str:
        return Path(os.path.relpath(file, path.parent)).as_posix()

    content = {
        "made_by": "pose-refiner field train, structure from motion",
        "unit": "arbitrary" if scale is None else f"metre; {scale}",
        "up": f"z, by {up}",
        "frames": [
            {
                "file_path": relative(frame.picture),
                **({} if frame.mask is None else {"mask_path": relative(frame.mask)}),
                "transform_matrix": (
                    inverse(frame.camera_from_world) @ OPENCV_FROM_OPENGL
                ).tolist(),
                **frame.values,
            }
            for frame in frames
        ],
    }  # fmt: skip
    write_atomically(path, json.dumps(content, indent=1).encode())
