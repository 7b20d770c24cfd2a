# SPDX-License-Identifier: Apache-2.0
"""Reading any folder in the layout of the BOP benchmark, and writing its results file.

DATASET/SPLIT/SCENE/ holds rgb/ or gray/, depth/, mask_visib/, mask/, scene_camera.json,
scene_gt.json and scene_gt_info.json; DATASET/models/ the meshes. Only scene_camera.json and one
of the image or mask folders are needed. Files are in millimetres, everything here in metres.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import rigid

MASK_FOLDERS = {"visib": "mask_visib", "full": "mask"}
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class BopError(ValueError):
    """A data set that cannot be read; the message says which file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class BopInstance:
    """One object in one image.

    Attributes:
        index: its place in scene_gt, and in the names of its masks.
        obj_id: None where nothing says which object it is (no scene_gt).
        camera_from_object: (4, 4), metres, None where unknown.
        visible_fraction: share of its silhouette that is visible, None where unknown.
    """

    index: int
    obj_id: int | None
    camera_from_object: np.ndarray | None = None
    visible_fraction: float | None = None


@dataclass(frozen=True, eq=False)
class BopImage:
    """One image of a scene. Pixels are read when asked for.

    Attributes:
        scene: the scene's folder.
        intrinsics: (3, 3), pixels.
        depth_scale: millimetres per unit of the depth image.
        instances: the objects in it, in the order of scene_gt; without one, of the masks.
        has_ground_truth: whether scene_gt has this image.
    """

    scene: Path
    scene_id: int
    im_id: int
    intrinsics: np.ndarray
    depth_scale: float
    instances: tuple[BopInstance, ...]
    has_ground_truth: bool

    def __str__(self) -> str:
        return f"scene {self.scene_id} image {self.im_id}"

    @cached_property
    def camera(self) -> Camera:
        """Camera with the size of the image file, which is more reliable than camera.json."""
        try:
            return Camera.from_calibration(self._size, self.intrinsics)
        except CameraError as error:
            raise BopError(
                f"{self.scene / 'scene_camera.json'}, image {self.im_id}: {error}"
            ) from error

    @cached_property
    def rgb_path(self) -> Path | None:
        """The colour or grey image, or None."""
        return self._file("rgb") or self._file("gray")

    @cached_property
    def depth_path(self) -> Path | None:
        return self._file("depth")

    def rgb(self) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB, grey images with three equal channels; None if there is none."""
        if self.rgb_path is None:
            return None
        image = _read_image(self.rgb_path, cv2.IMREAD_COLOR)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def depth(self) -> np.ndarray | None:
        """(H, W) float32 metres, 0 where unknown; None if there is no depth image."""
        if self.depth_path is None:
            return None
        raw = _read_image(self.depth_path, cv2.IMREAD_UNCHANGED)
        return raw.astype(np.float32) * np.float32(self.depth_scale * 1e-3)

    def mask_path(self, instance: BopInstance, kind: str = "visib") -> Path | None:
        """File of an instance's mask, None if missing. kind: visib | full."""
        if kind not in MASK_FOLDERS:
            raise ValueError(f"kind of mask must be {' or '.join(MASK_FOLDERS)}, got {kind!r}")
        return self._file(MASK_FOLDERS[kind], f"_{instance.index:06d}")

    def mask(self, instance: BopInstance, kind: str = "visib") -> np.ndarray | None:
        """(H, W) bool, None if the file is missing. kind: visib (what is seen) | full."""
        path = self.mask_path(instance, kind)
        if path is None:
            return None
        mask = _read_image(path, cv2.IMREAD_UNCHANGED)
        if mask.ndim == 3:
            mask = mask[..., :3].max(-1)  # a colour picture of a mask; alpha says nothing
        try:
            self.camera.check_image(mask, "mask")
        except CameraError as error:
            raise BopError(f"{path}: {error}") from error
        return mask > 0

    @cached_property
    def _size(self) -> tuple[int, int]:
        masks = [self.mask_path(i, kind) for i in self.instances for kind in MASK_FOLDERS]
        for path in (self.rgb_path, self.depth_path, *masks):
            if path is not None:
                return _read_image(path, cv2.IMREAD_UNCHANGED).shape[:2]
        size = _size_of_dataset(self.scene.parent.parent)
        if size is None:
            raise BopError(
                f"{self.scene}: image {self.im_id} has neither picture nor mask, and the data "
                "set's camera.json has no width and height"
            )
        return size

    def _file(self, folder: str, ending: str = "") -> Path | None:
        for suffix in _IMAGE_SUFFIXES:
            path = self.scene / folder / f"{self.im_id:06d}{ending}{suffix}"
            if path.exists():
                return path
        return None


@dataclass(frozen=True)
class BopEstimate:
    """A row of a results file. camera_from_object: (4, 4), metres; time: seconds for the image,
    -1 if not measured."""

    scene_id: int
    im_id: int
    obj_id: int
    score: float
    camera_from_object: np.ndarray
    time: float = -1.0


class BopDataset:
    """The images of one split, in the order of scene and image number.

    Args:
        path: the data set's folder.
        split: name of the folder of scenes, such as test or train_pbr.
        targets: restrict to the images of the split's test_targets_bop19.json if there is one;
            big data sets evaluate on a part of their images.

    Raises:
        BopError: the layout is not BOP's; later, when images are iterated, a file is malformed.
    """

    def __init__(self, path: str | Path, split: str = "test", targets: bool = True):
        self.path = Path(path)
        self.split = split
        if not self.path.is_dir():
            raise BopError(f"data set {self.path} is not a folder")
        folder = self.path / split
        self.scenes = sorted(
            (p for p in folder.glob("*") if p.name.isdecimal() and p.is_dir()),
            key=lambda p: int(p.name),
        )
        if not self.scenes:
            splits = sorted({p.parent.parent.name for p in self.path.glob("*/*/scene_camera.json")})
            raise BopError(
                f"{folder} has no scenes (folders with numbers for names)"
                + (f"; this data set has the splits {', '.join(splits)}" if splits else "")
            )
        self._targets = self._read_targets() if targets and split == "test" else None

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def models_path(self) -> Path:
        """Folder of the meshes, for ObjectLibrary.load.

        Raises:
            BopError: there is none.
        """
        for name in ("models", "models_eval", "models_cad", "models_reconst"):
            if any((self.path / name).glob("obj_*.ply")):
                return self.path / name
        raise BopError(
            f"{self.path} has no models/ folder with obj_*.ply; get the 'models' archive"
        )

    def __iter__(self) -> Iterator[BopImage]:
        for scene in self.scenes:
            yield from self._images(scene)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _images(self, scene: Path) -> Iterator[BopImage]:
        cameras = _read_json(scene / "scene_camera.json")
        truth = _read_json(scene / "scene_gt.json", missing_is={})
        info = _read_json(scene / "scene_gt_info.json", missing_is={})
        scene_id = int(scene.name)
        for key in sorted(cameras, key=_number):
            im_id = _number(key)
            if self._targets is not None and (scene_id, im_id) not in self._targets:
                continue
            where = f"{scene / 'scene_camera.json'}, image {im_id}"
            intrinsics = _array(cameras[key], "cam_K", 9, where).reshape(3, 3)
            if key in truth:
                instances = _instances(
                    truth[key], info.get(key), f"{scene / 'scene_gt.json'}, {key}"
                )
            else:
                instances = _instances_from_masks(scene, im_id)
            yield BopImage(
                scene, scene_id, im_id, intrinsics, float(cameras[key].get("depth_scale", 1.0)),
                instances, key in truth,
            )  # fmt: skip

    def _read_targets(self) -> set[tuple[int, int]] | None:
        path = self.path / "test_targets_bop19.json"
        if not path.exists():
            return None
        try:
            return {(int(t["scene_id"]), int(t["im_id"])) for t in json.loads(path.read_text())}
        except (ValueError, TypeError, KeyError) as error:
            raise BopError(f"{path} is not a list of targets with scene_id and im_id") from error


def write_results(path: str | Path, estimates: Iterable[BopEstimate]) -> None:
    """Writes a BOP results CSV (scene_id,im_id,obj_id,score,R,t,time), whole or not at all.

    R row by row and t in millimetres, separated by spaces, as the BOP toolkit reads them.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("scene_id", "im_id", "obj_id", "score", "R", "t", "time"))
    for e in estimates:
        pose = np.asarray(e.camera_from_object, np.float64)
        R = " ".join(repr(float(x)) for x in pose[:3, :3].ravel())
        t = " ".join(repr(float(x)) for x in 1000.0 * pose[:3, 3])
        writer.writerow((e.scene_id, e.im_id, e.obj_id, f"{e.score:.6f}", R, t, f"{e.time:.6f}"))
    write_atomically(path, lines.getvalue().encode())


def _instances(entries: Any, infos: Any, where: str) -> tuple[BopInstance, ...]:
    if not isinstance(entries, list):
        raise BopError(f"{where}: must be a list of objects, got {type(entries).__name__}")
    infos = infos if isinstance(infos, list) else []
    instances = []
    for index, entry in enumerate(entries):
        here = f"{where}, object {index}"
        if not isinstance(entry, Mapping) or not isinstance(entry.get("obj_id"), int):
            raise BopError(f"{here}: lacks a whole number 'obj_id'")
        info = infos[index] if index < len(infos) else {}
        instances.append(
            BopInstance(index, entry["obj_id"], _pose(entry, here), info.get("visib_fract"))
        )
    return tuple(instances)


def _instances_from_masks(scene: Path, im_id: int) -> tuple[BopInstance, ...]:
    """Instances of an image that scene_gt does not have: one per mask file."""
    files = [p for f in MASK_FOLDERS.values() for p in (scene / f).glob(f"{im_id:06d}_*.*")]
    numbers = {p.stem.rpartition("_")[2] for p in files}
    return tuple(BopInstance(i, None) for i in sorted(int(n) for n in numbers if n.isdecimal()))


def _pose(entry: Mapping[str, Any], where: str) -> np.ndarray | None:
    """(4, 4) camera_from_object in metres; None if the entry has no pose."""
    if "cam_R_m2c" not in entry and "cam_t_m2c" not in entry:
        return None
    R = _array(entry, "cam_R_m2c", 9, where).reshape(3, 3)
    u, s, vt = np.linalg.svd(R)
    if np.linalg.det(R) < 0 or abs(s - 1).max() > 1e-2:
        raise BopError(f"{where}: cam_R_m2c is not a rotation (singular values {s.round(4)})")
    # u @ vt undoes the rounding of the file
    return rigid(u @ vt, _array(entry, "cam_t_m2c", 3, where) * 1e-3)


def _array(entry: Any, key: str, n: int, where: str) -> np.ndarray:
    value = entry.get(key) if isinstance(entry, Mapping) else None
    try:
        array = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.size != n or not np.isfinite(array).all():
        raise BopError(f"{where}: {key!r} must be {n} numbers, got {value!r}")
    return array


def _number(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise BopError(f"image numbers must be whole numbers, got {key!r}") from None


def _read_json(path: Path, missing_is: Any = None) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing_is is not None:
            return missing_is
        raise BopError(f"{path} is missing; every scene needs it") from error
    except (OSError, ValueError) as error:
        raise BopError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise BopError(f"{path} must map image numbers to entries")
    return content


def _size_of_dataset(dataset: Path) -> tuple[int, int] | None:
    content = _read_json(dataset / "camera.json", missing_is={})
    if "width" not in content or "height" not in content:
        return None
    return int(content["height"]), int(content["width"])


def _read_image(path: Path, flags: int) -> np.ndarray:
    # imdecode, not imread: file names with any letters, and a broken file is told from a missing.
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise BopError(f"{path} cannot be read: {error}") from error
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise BopError(f"{path} is not an image that OpenCV can read")
    return image
