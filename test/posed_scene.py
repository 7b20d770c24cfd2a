# SPDX-License-Identifier: Apache-2.0
"""Three balls seen by cameras around them, and writers of the four layouts of posed pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera

# x, y, z, radius in metres; colours RGB
BALLS = np.array([(0.1, 0.0, 0.05, 0.12), (-0.15, 0.08, 0.0, 0.1), (0.0, -0.16, -0.1, 0.08)])
COLOURS = np.array([(230, 40, 30), (20, 200, 60), (50, 60, 220)], np.uint8)
SIZE = (60, 80)
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def pinhole(size: tuple[int, int] = SIZE, focal: float = 100.0) -> Camera:
    """A camera whose principal point is the middle of the picture."""
    height, width = size
    K = [[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]
    return Camera(np.array(K), size)


def orbit(count: int = 16, distance: float = 1.1) -> np.ndarray:
    """(N, 4, 4) camera_from_object of cameras all around that look near the origin."""
    poses = []
    for i in range(count):
        azimuth, height = 2.4 * i, -0.8 + 1.6 * (i + 0.5) / count
        level = np.sqrt(1 - height**2)
        eye = distance * np.array([level * np.cos(azimuth), level * np.sin(azimuth), height])
        forward = np.array([0.01, -0.02, 0.0]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, np.cross(forward, right), forward))
        pose[:3, 3] = -pose[:3, :3] @ eye
        poses.append(pose)
    return np.stack(poses)


def render(camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 RGB, (H, W) int index of the ball, -1 for none; through the lens."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.nan_to_num(camera.rays(np.stack((u, v), -1).astype(float)))
    nearest = np.full(camera.size, np.inf)
    index = np.full(camera.size, -1)
    for i, (*centre, radius) in enumerate(BALLS):
        centre = pose[:3, :3] @ centre + pose[:3, 3]
        along = rays @ centre
        inside = radius**2 - (centre @ centre - along**2)
        depth = along - np.sqrt(np.maximum(inside, 0))
        hit = (inside > 0) & (along > 0) & (depth < nearest)
        nearest[hit], index[hit] = depth[hit], i
    image = np.zeros((*camera.size, 3), np.uint8)
    image[index >= 0] = COLOURS[index[index >= 0]]
    return image, index


def write_png(path: Path, image: np.ndarray, alpha: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = image[..., ::-1]
    assert cv2.imwrite(str(path), bgr if alpha is None else np.dstack((bgr, alpha)))


def write_nerf_synthetic(
    folder: Path, poses: np.ndarray, unit: float = 1.0, split: str = "train"
) -> Path:
    """RGBA pictures; `unit` metres per unit of the file."""
    camera, frames = pinhole(), []
    for i, pose in enumerate(poses):
        image, index = render(camera, pose)
        write_png(folder / split / f"r_{i}.png", image, np.uint8(255) * (index >= 0))
        frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": opengl(pose, unit)})
    angle = 2 * np.arctan(camera.width / 2 / camera.fx)
    write_json(folder / f"transforms_{split}.json", camera_angle_x=angle, frames=frames)
    return folder


def write_split_scene(folder: Path, count: int, every: int) -> Path:
    """RGBA pictures all around; each so many is for testing."""
    poses = orbit(count)
    test = np.arange(count) % every == 0
    write_nerf_synthetic(folder, poses[test], split="test")
    return write_nerf_synthetic(folder, poses[~test])


def write_unposed(folder: Path, poses: np.ndarray, camera: Camera | None = None) -> None:
    """RGBA pictures photo_00.png, photo_01.png, ... alone."""
    camera = camera or pinhole()
    for i, pose in enumerate(poses):
        image, index = render(camera, pose)
        write_png(folder / f"photo_{i:02d}.png", image, np.uint8(255) * (index >= 0))


def write_instant_ngp(
    folder: Path, poses: np.ndarray, camera: Camera | None = None, masks: str = "", **values
) -> Path:
    """masks: where the object is, in files of that folder; `values` are added to the file."""
    camera, frames = camera or pinhole(), []
    for i, pose in enumerate(poses):
        image, index = render(camera, pose)
        write_png(folder / "images" / f"{i:03d}.png", image)
        frame = {"file_path": f"images/{i:03d}.png", "transform_matrix": opengl(pose)}
        if masks:
            frame["mask_path"] = f"{masks}/{i:03d}.png"
            write_png(folder / frame["mask_path"], np.uint8(255) * (index >= 0)[..., None])
        frames.insert(0, frame)  # not sorted
    intrinsics = {
        "fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx + 0.5, "cy": camera.cy + 0.5,
        "w": camera.width, "h": camera.height,
    }  # fmt: skip
    write_json(folder / "transforms.json", frames=frames, **(intrinsics | values))
    return folder


def write_llff(folder: Path, poses: np.ndarray, pictures: str = "images", reduce: int = 1) -> Path:
    """Depths 0.7 to 1.5; poses_bounds says the size of pictures `reduce` times larger."""
    camera, rows = pinhole(), []
    for i, pose in enumerate(poses):
        write_png(folder / pictures / f"{i:03d}.png", render(camera, pose)[0])
        right, down, forward, position = np.linalg.inv(pose)[:3].T
        hwf = reduce * np.array([camera.height, camera.width, camera.fx])
        matrix = np.stack((down, right, -forward, position, hwf), -1)
        rows.append([*matrix.ravel(), 0.7, 1.5])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def write_bop_balls(folder: Path, poses: np.ndarray, info: bool = True) -> Path:
    """Returns the scene. Object 5 is the first two balls, object 6 the third."""
    scene, camera = folder / "test" / "000002", pinhole()
    cameras, truth = {}, {}
    for i, pose in enumerate(poses):
        image, index = render(camera, pose)
        write_png(scene / "rgb" / f"{i:06d}.png", image)
        entry = {"cam_R_m2c": pose[:3, :3].ravel().tolist(), "cam_t_m2c": list(1e3 * pose[:3, 3])}
        truth[i] = [{"obj_id": 5, **entry}, {"obj_id": 6, **entry}]
        for number, mask in enumerate((index == 0, index == 2)):
            mask = mask | (index == 1) if number == 0 else mask
            path = scene / "mask_visib" / f"{i:06d}_{number:06d}.png"
            write_png(path, np.uint8(255) * mask[..., None])
        cameras[i] = {"cam_K": camera.intrinsics.ravel().tolist(), "depth_scale": 1.0}
    for name, content in (("scene_camera", cameras), ("scene_gt", truth)):
        (scene / f"{name}.json").write_text(json.dumps(content))
    if info:
        low = 1e3 * (BALLS[:2, :3] - BALLS[:2, 3:]).min(0)
        size = 1e3 * (BALLS[:2, :3] + BALLS[:2, 3:]).max(0) - low
        box = {f"min_{a}": x for a, x in zip("xyz", low, strict=True)}
        box |= {f"size_{a}": x for a, x in zip("xyz", size, strict=True)}
        write_json(folder / "models" / "models_info.json", **{"5": box})
    return scene


def opengl(pose: np.ndarray, unit: float = 1.0) -> list[list[float]]:
    """transform_matrix: world from camera with x right, y up, z backwards."""
    matrix = np.linalg.inv(pose) @ OPENGL
    matrix[:3, 3] /= unit
    return matrix.tolist()


def write_json(path: Path, **content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
