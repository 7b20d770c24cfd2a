# SPDX-License-Identifier: Apache-2.0
"""The layout of COLMAP: cameras, images and points3D, each .bin or .txt.

They lie in the folder, in sparse/0 or in sparse; the photos in images/, or beside the files. Poses
are camera-from-world, camera axes x right, y down, z forward; pixel centres lie at half pixels, as
in transforms files. Photos are sorted by name, every 8th is for testing, a folder masks/ beside
images/ shows the object in white. Photos that are not there are left out with a warning, as those
of transforms files.

Bounds: with masks the cube that they need, else the box of most points, else the cube about the
point the cameras look at. Near and far are those of the points that each photo sees.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from pose_refiner_ros.datasets.posed_images.hull import box_around_masks, box_before_cameras
from pose_refiner_ros.datasets.posed_images.matched_points import near_and_far
from pose_refiner_ros.datasets.posed_images.reading import split_indices
from pose_refiner_ros.datasets.posed_images.transforms import Frame, load_frames, present_frames
from pose_refiner_ros.datasets.posed_images.views import PosedImages, PosedImagesError
from pose_refiner_ros.geometry.pose import rigid

# Name and parameters, as the transforms layout calls them, by COLMAP's number of the model.
_MODELS = {
    0: ("SIMPLE_PINHOLE", "f cx cy"),
    1: ("PINHOLE", "fl_x fl_y cx cy"),
    2: ("SIMPLE_RADIAL", "f cx cy k1"),
    3: ("RADIAL", "f cx cy k1 k2"),
    4: ("OPENCV", "fl_x fl_y cx cy k1 k2 p1 p2"),
    5: ("OPENCV_FISHEYE", "fl_x fl_y cx cy k1 k2 k3 k4"),
    8: ("SIMPLE_RADIAL_FISHEYE", "f cx cy k1"),
    9: ("RADIAL_FISHEYE", "f cx cy k1 k2"),
}
_NUMBERS = {name: number for number, (name, _) in _MODELS.items()}
_LEAST = 8  # points that tell where a scene is
_BOX = (2.0, 98.0)  # percentiles of positions


@dataclass(frozen=True, eq=False)
class SparseModel:
    """What structure from motion has found, in its own unit and frame.

    Attributes:
        names: of the photos, relative to their folder, sorted.
        values: of each photo, intrinsics and lens as a transforms file has them.
        camera_from_world: (N, 4, 4) float64, OpenCV axes.
        points: (M, 3) float64.
        errors: (M,) float64, pixels: mean reprojection error of each point.
        seen: of each photo, (K,) int rows of the points that it sees.
    """

    names: list[str]
    values: list[dict[str, Any]]
    camera_from_world: np.ndarray
    points: np.ndarray
    errors: np.ndarray
    seen: list[np.ndarray]

    def depths(self, i: int) -> np.ndarray:
        """(K,) along the z axis of photo i, of the points that it sees."""
        T = self.camera_from_world[i]
        return self.points[self.seen[i]] @ T[2, :3] + T[2, 3]

    def near_far(self) -> np.ndarray | None:
        """(N, 2) along the cameras' z (`near_and_far`)."""
        depths = [self.depths(i) for i in range(len(self.names))]
        return near_and_far([own[own > 0.0] for own in depths])


def model_folder(source: Path) -> Path | None:
    """Where below a folder a model of COLMAP lies; None where there is none."""
    for folder in (source, source / "sparse" / "0", source / "sparse"):
        if any((folder / f"cameras{end}").is_file() for end in (".bin", ".txt")):
            return folder
    return None


def load(folder: Path, split: str, factor: int, warn: Callable[[str], None]) -> PosedImages:
    """The pictures of a split, in the model's unit. Bounds are not yet tightened.

    Args:
        folder: that of cameras.bin or cameras.txt.

    Raises:
        PosedImagesError: a file is missing or unusable, or nothing says where the object is.
    """
    model = read_model(folder)
    pictures = _picture_folder(folder, model.names)
    frames = [
        Frame(name, pictures / name, None, pose, values)
        for name, pose, values in zip(
            model.names, model.camera_from_world, model.values, strict=True
        )
    ]
    near_far = model.near_far()
    present = present_frames(frames, folder, warn)
    chosen = [present[i] for i in split_indices(len(present), split, folder)]
    posed = load_frames(chosen, factor)
    if near_far is not None:
        posed.near_far = near_far[[model.names.index(frame.name) for frame in chosen]]
    posed.bounds = _bounds(model, posed, folder)
    return posed


def read_model(folder: Path) -> SparseModel:
    """What the files of a model say; without points3D there are no points.

    Raises:
        PosedImagesError: a file is missing, cut short, or of a lens that is not known.
    """
    cameras = {row[0]: _values(*row[1:], folder) for row in _rows(folder, "cameras")}
    images = sorted(_rows(folder, "images"), key=lambda row: row[0])
    if not images:
        raise PosedImagesError(f"{folder}: the model has no images")
    points = _rows(folder, "points3D") if _file(folder, "points3D") else []
    row_of = {number: row for row, (number, _, _) in enumerate(points)}
    try:
        values = [cameras[camera] for _, camera, *_ in images]
    except KeyError as error:
        raise PosedImagesError(
            f"{folder}: images name camera {error}, which is not there"
        ) from None
    seen = [
        np.unique([row_of[p] for p in ids.tolist() if p in row_of]).astype(np.intp)
        for *_, ids in images
    ]
    return SparseModel(
        names=[name for name, *_ in images],
        values=values,
        camera_from_world=np.stack([_pose(q, t, folder, name) for name, _, q, t, _ in images]),
        points=np.array([xyz for _, xyz, _ in points], np.float64).reshape(-1, 3),
        errors=np.array([error for *_, error in points], np.float64),
        seen=seen,
    )


def _rows(folder: Path, what: str) -> list[tuple]:
    path = _file(folder, what)
    if path is None:
        raise PosedImagesError(f"{folder / what}.bin is missing, and so is {what}.txt")
    read = {
        "cameras.bin": _cameras_binary, "images.bin": _images_binary,
        "points3D.bin": _points_binary, "cameras.txt": _cameras_text,
        "images.txt": _images_text, "points3D.txt": _points_text,
    }[path.name]  # fmt: skip
    try:
        return list(read(_Reader(path.read_bytes()) if path.suffix == ".bin" else _lines(path)))
    except OSError as error:
        raise PosedImagesError(f"{path} cannot be read: {error}") from error
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise PosedImagesError(
            f"{path} is no whole file of COLMAP ({error}): write the model again"
        ) from error


def _file(folder: Path, what: str) -> Path | None:
    paths = (folder / f"{what}.bin", folder / f"{what}.txt")
    return next((path for path in paths if path.is_file()), None)


class _Reader:
    """Little-endian numbers one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self._data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self._data.index(b"\0", self._at)
        text = self._data[self._at : end].decode()
        self._at = end + 1
        return text

    def array(self, dtype: list, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += values.nbytes
        return values


def _cameras_binary(file: _Reader) -> Iterator[tuple]:
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("iiQQ")
        if model not in _MODELS:
            raise KeyError(f"camera model {model} is not known; known are {', '.join(_NUMBERS)}")
        yield number, model, width, height, file.take("d" * len(_MODELS[model][1].split()))


def _images_binary(file: _Reader) -> Iterator[tuple]:
    for _ in range(file.take("Q")[0]):
        _, *pose, camera = file.take("I7dI")
        name = file.text()
        points = file.array([("xy", "<f8", 2), ("id", "<i8")], file.take("Q")[0])
        yield name, camera, pose[:4], pose[4:], points["id"]


def _points_binary(file: _Reader) -> Iterator[tuple]:
    for _ in range(file.take("Q")[0]):
        number, *xyz, _, _, _, error, length = file.take("Q3d3BdQ")
        file.array([("image", "<i4"), ("point", "<i4")], length)
        yield number, xyz, error


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def _cameras_text(lines: Sequence[str]) -> Iterator[tuple]:
    for number, model, width, height, *parameters in map(str.split, filter(str.strip, lines)):
        if model not in _NUMBERS:
            raise KeyError(f"camera model {model} is not known; known are {', '.join(_NUMBERS)}")
        yield int(number), _NUMBERS[model], int(width), int(height), tuple(map(float, parameters))


def _images_text(lines: Sequence[str]) -> Iterator[tuple]:
    # Every other line lists a photo's points, and is empty where it sees none.
    for first, second in zip(lines[::2], [*lines[1::2], ""], strict=False):
        _, *pose, camera, name = first.split(maxsplit=9)
        pose = list(map(float, pose))
        yield name, int(camera), pose[:4], pose[4:], np.array(second.split()[2::3], np.int64)


def _points_text(lines: Sequence[str]) -> Iterator[tuple]:
    for line in filter(str.strip, lines):
        number, *xyz, _, _, _, error = line.split()[:8]
        yield int(number), list(map(float, xyz)), float(error)


def _values(
    model: int, width: int, height: int, parameters: Sequence[float], folder: Path
) -> dict[str, Any]:
    name, keys = _MODELS[model]
    keys = keys.split()
    if len(keys) != len(parameters):
        raise PosedImagesError(
            f"{folder}: a camera of model {name} has {len(parameters)} parameters, not {len(keys)}"
        )
    values = dict(zip(keys, parameters, strict=True))
    if "f" in values:
        values["fl_x"] = values["fl_y"] = values.pop("f")
    kind = "OPENCV_FISHEYE" if "FISHEYE" in name else "PINHOLE" if "k1" not in values else "OPENCV"
    return {"camera_model": kind, "w": width, "h": height, **values}


def _pose(q: Sequence[float], t: Sequence[float], folder: Path, name: str) -> np.ndarray:
    """(4, 4) from a quaternion w, x, y, z and a translation."""
    if not np.isfinite([*q, *t]).all() or not abs(np.linalg.norm(q) - 1.0) < 1e-3:
        raise PosedImagesError(f"{folder}: the pose of {name} is no rotation and translation")
    w, x, y, z = q
    return rigid(Rotation.from_quat([x, y, z, w]).as_matrix(), np.asarray(t))


def _picture_folder(folder: Path, names: Sequence[str]) -> Path:
    """The folder in which most of the photos lie."""
    above = (folder, *list(folder.parents)[:2])
    places = [place for base in above for place in (base / "images", base)]
    found = [sum((place / name).is_file() for name in names) for place in places]
    if not max(found):
        raise PosedImagesError(
            f"{folder} is a model of COLMAP, but its photos, such as {names[0]}, are in none of "
            f"{', '.join(str(place) for place in places[::2])}: put them into one of these"
        )
    return places[found.index(max(found))]


def _bounds(model: SparseModel, posed: PosedImages, folder: Path) -> np.ndarray:
    box = None if posed.alpha is None else box_around_masks(posed)
    if box is None and len(model.points) >= _LEAST:
        low, high = np.percentile(model.points, _BOX, axis=0)
        margin = 0.1 * np.linalg.norm(high - low)
        box = np.stack((low - margin, high + margin))
    if box is None:
        box = box_before_cameras(posed)
    if box is None:
        raise PosedImagesError(
            f"{folder}: nothing says where the scene is, as its cameras look in parallel and "
            "there are no points3D"
        )
    return box
