# SPDX-License-Identifier: Apache-2.0
"""A small BOP data set that tests write themselves: a wedge and an L, with exact masks."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import trimesh

from pose_refiner_ros.geometry.camera import Camera


def bop_truth() -> dict[int, np.ndarray]:
    """obj_id -> camera_from_object (4, 4) in the first image of `bop_folder`."""
    poses = {}
    wedge, ell = ((0.5, 0.7, 0.2), (-0.1, 0.02, 0.6)), ((2, 0.4, -1), (0.1, 0, 0.7))
    for obj_id, (turn, t) in ((1, wedge), (4, ell)):
        poses[obj_id] = np.eye(4)
        poses[obj_id][:3, :3] = cv2.Rodrigues(np.array(turn))[0]
        poses[obj_id][:3, 3] = t
    return poses


def block_meshes() -> dict[int, trimesh.Trimesh]:
    """obj_id -> mesh in metres: a wedge, and an L of two boxes."""
    wedge = trimesh.convex.convex_hull(
        np.array([(0, 0, 0), (1, 0, 0), (0, 0.5, 0), (0, 0, 0.8), (0.3, 0.5, 0.2)]) * 0.12
    )
    upright = trimesh.creation.box((0.04, 0.05, 0.14))
    foot = trimesh.creation.box((0.1, 0.05, 0.03)).apply_translation((0.07, 0, -0.055))
    return {1: wedge, 4: trimesh.util.concatenate([upright, foot])}


def draw_silhouette(mesh: trimesh.Trimesh, pose: np.ndarray, camera: Camera) -> np.ndarray:
    """(H, W) uint8, 255 inside, slowly and without a z-buffer."""
    mask = np.zeros(camera.size, np.uint8)
    pixels = camera.project(mesh.vertices @ pose[:3, :3].T + pose[:3, 3])
    for face in mesh.faces:
        cv2.fillConvexPoly(mask, np.round(pixels[face] * 16).astype(np.int32), 255, shift=4)
    return mask


def write_bop(folder: Path) -> Path:
    camera = Camera(np.array([[400, 0, 159.5], [0, 400, 119.5], [0, 0, 1.0]]), (240, 320))
    meshes = block_meshes()
    (folder / "models").mkdir(parents=True)
    for obj_id, mesh in meshes.items():
        in_mm = mesh.copy().apply_scale(1000.0)
        in_mm.export(folder / "models" / f"obj_{obj_id:06d}.ply", encoding="ascii")
    (folder / "models" / "names.json").write_text('{"1": "wedge", "4": "ell"}')
    (folder / "models" / "models_info.json").write_text("{}")
    (folder / "camera.json").write_text(
        json.dumps({"fx": 400, "fy": 400, "cx": 159.5, "cy": 119.5, "width": 320, "height": 240})
    )
    for scene_id, im_ids in ((3, (0, 7)), (8, (2,))):
        scene = folder / "test" / f"{scene_id:06d}"
        for name in ("rgb", "mask", "mask_visib"):
            (scene / name).mkdir(parents=True)
        truth, info, cameras = {}, {}, {}
        for im_id in im_ids:
            cameras[im_id] = {"cam_K": camera.intrinsics.ravel().tolist(), "depth_scale": 0.1}
            rgb = np.full((*camera.size, 3), 90, np.uint8)
            truth[im_id], info[im_id] = [], []
            for index, (obj_id, pose) in enumerate(bop_truth().items()):
                pose[0, 3] += 0.005 * im_id
                mask = draw_silhouette(meshes[obj_id], pose, camera)
                rgb[mask > 0] = (200, 120, 60) if obj_id == 1 else (60, 120, 200)
                for name in ("mask", "mask_visib"):
                    cv2.imwrite(str(scene / name / f"{im_id:06d}_{index:06d}.png"), mask)
                truth[im_id].append({
                    "cam_R_m2c": pose[:3, :3].ravel().tolist(),
                    "cam_t_m2c": (1000 * pose[:3, 3]).tolist(),
                    "obj_id": obj_id,
                })  # fmt: skip
                info[im_id].append({"visib_fract": 1.0})
            cv2.imwrite(str(scene / "rgb" / f"{im_id:06d}.png"), rgb[..., ::-1])
        (scene / "scene_camera.json").write_text(json.dumps(cameras))
        if scene_id != 8:
            (scene / "scene_gt.json").write_text(json.dumps(truth))
            (scene / "scene_gt_info.json").write_text(json.dumps(info))
    return folder
