# SPDX-License-Identifier: Apache-2.0
"""Pictures of vehicles as a data set in BOP's layout, for `pose-refiner bop` and other programs.

    DIR/vehicles.json                what was rendered; obj_id -> name and cluster
    DIR/camera.json
    DIR/models/                      obj_000001.ply ... (mm), models_info.json, names.json
    DIR/SPLIT/000000/                rgb, mask, mask_visib, scene_gt.json, scene_camera.json,
                                     scene_gt_info.json

An image shows one vehicle; 1,000 images make a scene.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

from .collection import Collection, CollectionError, Vehicle
from .pictures import render_picture
from .views import PaperCamera, RobotCamera, resized_pinhole, silhouettes

MARKER = "vehicles.json"  # a folder that has it was written by this module, and may be replaced
IMAGES_PER_SCENE = 1000
MAX_SIZE = 4096
CAMERA = PaperCamera()


class RenderError(CollectionError):
    """A data set that cannot be written, with the reason and what to do."""


@dataclass(frozen=True)
class RenderOptions:
    """split: train | val | test; count: of images; size: pixels; seed: of which vehicles, cameras,
    paint and backgrounds; overwrite: replace a data set that was written before."""

    split: str = "train"
    count: int = 100
    size: int = 256
    seed: int = 0
    overwrite: bool = False


def render_bop(
    folder: str | Path,
    collection: Collection,
    options: RenderOptions = RenderOptions(),
    camera: PaperCamera | RobotCamera = CAMERA,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Renders pictures of a split's vehicles, the classes in equal shares, into a folder.

    camera: of the views; its pictures have the size that the options say. The folder is written
    beside itself and renamed at the end, so it is whole or not there. Returns the number of
    vehicles in it.

    Raises:
        RenderError: the folder has something else in it, a number makes no sense, or the split has
            no vehicle.
    """
    folder = Path(folder).expanduser()
    check_folder(folder, options)
    camera = replace(camera, size=options.size)
    rng = np.random.default_rng(options.seed)
    vehicles = _draw_vehicles(collection, options, rng)
    views = camera.sample(options.count, rng)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        ids = {v.name: i for i, v in enumerate(collection.vehicles, start=1)}
        shown = sorted({v.name: v for v in vehicles}.values(), key=lambda v: ids[v.name])
        _write_models(partial / "models", shown, ids)
        visible = _visible_fractions(shown, vehicles, views, camera.size)
        _write_images(partial / options.split, vehicles, views, visible, ids, options, progress)
        fx, fy, cx, cy = map(float, views.pinhole[0])
        size = {"width": camera.size, "height": camera.size}
        _write_json(
            partial / "camera.json",
            {"cx": cx, "cy": cy, "depth_scale": 1.0, "fx": fx, "fy": fy, **size},
        )
        content = {
            "source": collection.source,
            "options": asdict(options),
            "camera": {"kind": type(camera).__name__, **asdict(camera)},
            "vehicles": {ids[v.name]: {"name": v.name, "cluster": v.cluster} for v in shown},
        }
        _write_json(partial / MARKER, content)
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(shown)


def check_folder(folder: str | Path, options: RenderOptions) -> None:
    """Raises RenderError if `render_bop` could not write there."""
    folder = Path(folder).expanduser()
    if options.count < 1:
        raise RenderError(f"count is {options.count}: give 1 or more images")
    if not 16 <= options.size <= MAX_SIZE:
        raise RenderError(f"size is {options.size} pixels: give 16 to {MAX_SIZE}")
    if folder.exists() and not folder.is_dir():
        raise RenderError(f"{folder} is a file: give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / MARKER).is_file():
        raise RenderError(
            f"{folder} is not empty and was not written by this command: give another folder"
        )
    if not options.overwrite:
        raise RenderError(f"{folder} has a data set already: give --overwrite to replace it")


def _draw_vehicles(
    collection: Collection, options: RenderOptions, rng: np.random.Generator
) -> list[Vehicle]:
    """One vehicle per image; clusters in turn, each cluster's vehicles in a random order."""
    members = collection.split(options.split)
    clusters = [
        [v for v in members if v.cluster == c] for c in sorted({v.cluster for v in members})
    ]
    if not clusters:
        raise RenderError(
            f"split {options.split} of {collection.source} has no vehicle: more models are needed"
        )
    orders = [rng.permutation(len(some)) for some in clusters]
    chosen = []
    for i in range(options.count):
        turn, place = i % len(clusters), i // len(clusters)
        order = orders[turn]
        chosen.append(clusters[turn][order[place % len(order)]])
    return chosen


def _visible_fractions(shown, vehicles, views, size) -> np.ndarray:
    """(N,) share of each silhouette that lies in its picture, measured on a canvas of three times
    the side."""
    batch = MeshBatch([v.mesh for v in shown])
    place = {v.name: i for i, v in enumerate(shown)}
    index = np.array([place[v.name] for v in vehicles])
    side = min(size, 256)  # enough for a share
    canvas = resized_pinhole(views.pinhole, size, side)
    canvas[:, 2:] += side
    fractions = np.empty(len(vehicles))
    for first in range(0, len(vehicles), 64):
        part = slice(first, first + 64)
        poses = views.camera_from_object[part]
        masks = silhouettes(batch, index[part], poses, canvas[part], 3 * side)
        seen = masks[:, side : 2 * side, side : 2 * side].sum((1, 2))
        fractions[part] = seen / np.maximum(masks.sum((1, 2)), 1)
    return fractions


def _write_images(folder, vehicles, views, visible, ids, options, progress) -> None:
    size = options.size
    total = len(vehicles)
    progress(0, total)
    for first in range(0, total, IMAGES_PER_SCENE):
        scene = folder / f"{first // IMAGES_PER_SCENE:06d}"
        for name in ("rgb", "mask", "mask_visib"):
            (scene / name).mkdir(parents=True)
        gt: dict[str, Any] = {}
        info: dict[str, Any] = {}
        cameras: dict[str, Any] = {}
        for i in range(first, min(first + IMAGES_PER_SCENE, total)):
            image = i - first
            pose, pinhole = views.camera_from_object[i], views.pinhole[i]
            # of its own seed: the same picture whatever else is rendered
            rng = np.random.default_rng((options.seed, i))
            rgb, mask = render_picture(vehicles[i], pose, pinhole, size, rng)
            _write_png(scene / "rgb" / f"{image:06d}.png", rgb[..., ::-1])
            for name in ("mask", "mask_visib"):  # nothing hides the vehicle
                _write_png(scene / name / f"{image:06d}_000000.png", 255 * mask.astype(np.uint8))
            fx, fy, cx, cy = map(float, pinhole)
            cameras[str(image)] = {"cam_K": [fx, 0, cx, 0, fy, cy, 0, 0, 1], "depth_scale": 1.0}
            gt[str(image)] = [
                {
                    "cam_R_m2c": pose[:3, :3].ravel().tolist(),
                    "cam_t_m2c": (1000 * pose[:3, 3]).tolist(),
                    "obj_id": ids[vehicles[i].name],
                }
            ]
            box = list(cv2.boundingRect(mask.astype(np.uint8)))
            pixels = int(mask.sum())
            info[str(image)] = [
                {
                    "bbox_obj": box,
                    "bbox_visib": box,
                    "px_count_all": round(pixels / visible[i]) if visible[i] else pixels,
                    "px_count_visib": pixels,
                    "visib_fract": float(visible[i]),
                }
            ]
            progress(i + 1, total)
        _write_json(scene / "scene_gt.json", gt)
        _write_json(scene / "scene_gt_info.json", info)
        _write_json(scene / "scene_camera.json", cameras)


def _write_models(folder: Path, vehicles: list[Vehicle], ids: dict[str, int]) -> None:
    folder.mkdir(parents=True)
    info, names = {}, {}
    for vehicle in vehicles:
        number = ids[vehicle.name]
        names[str(number)] = vehicle.name
        low, high = 1000 * vehicle.mesh.bounds
        info[str(number)] = {
            "diameter": 1000 * vehicle.mesh.diameter,
            **{f"min_{axis}": float(low[k]) for k, axis in enumerate("xyz")},
            **{f"size_{axis}": float(high[k] - low[k]) for k, axis in enumerate("xyz")},
        }
        (folder / f"obj_{number:06d}.ply").write_bytes(_ply(vehicle.mesh))
    _write_json(folder / "models_info.json", info)
    _write_json(folder / "names.json", names)


def _ply(mesh: Mesh) -> bytes:
    """The mesh in millimetres as a binary PLY file."""
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(mesh.vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(mesh.faces)}\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.faces), np.dtype([("count", "u1"), ("corner", "<i4", 3)]))
    faces["count"] = 3
    faces["corner"] = mesh.faces
    return header.encode() + (1000 * mesh.vertices).astype("<f4").tobytes() + faces.tobytes()


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise RenderError(f"{path}: OpenCV cannot encode the picture")
    path.write_bytes(data.tobytes())


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _put_in_place(partial: Path, folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o777 & ~umask)  # mkdtemp makes private folders
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
