# SPDX-License-Identifier: Apache-2.0
"""Sparse models with known truth, their files, and photos of a textured corner of a room."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import posed_scene

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel

CAMERA = posed_scene.pinhole((240, 320), 300.0)


def sparse_model(points: np.ndarray, count: int = 8) -> SparseModel:
    """All cameras of an orbit of radius 1.1, each of which sees all points (M, 3)."""
    values = {
        "camera_model": "PINHOLE", "w": 320, "h": 240, "fl_x": 300.0, "fl_y": 300.0, "cx": 160.0,
        "cy": 120.0,
    }  # fmt: skip
    names = [f"{i:03d}.png" for i in range(count)]
    seen = [np.arange(len(points))] * count
    poses = posed_scene.orbit(count)
    return SparseModel(names, [values] * count, poses, points, np.zeros(len(points)), seen)


def pixels_of(model: SparseModel, row: int, points: np.ndarray) -> np.ndarray:
    """(M, 2)"""
    T = model.camera_from_world[row]
    p = (points @ T[:3, :3].T + T[:3, 3]) @ CAMERA.intrinsics.T
    return p[:, :2] / p[:, 2:]


def quaternion(R: np.ndarray) -> np.ndarray:
    """w, x, y, z"""
    axis, _ = cv2.Rodrigues(R)
    angle = np.linalg.norm(axis)
    return np.r_[np.cos(angle / 2), axis.ravel() / angle * np.sin(angle / 2)]


def write_model(folder: Path, model: SparseModel, binary: bool) -> None:
    """cameras, images, points3D; the camera is SIMPLE_RADIAL without distortion."""
    folder.mkdir(parents=True, exist_ok=True)
    poses = [(quaternion(T[:3, :3]), T[:3, 3]) for T in model.camera_from_world]
    if not binary:
        text = "# Camera list\n1 SIMPLE_RADIAL 320 240 300 160 120 0\n"
        (folder / "cameras.txt").write_text(text)
        lines = ["# Image list"]
        for i, (q, t) in enumerate(poses):
            lines.append(" ".join(map(str, [i + 1, *q, *t, 1, model.names[i]])))
            lines.append(" ".join(f"1.0 2.0 {p}" for p in model.seen[i] + 5) + " 3.0 4.0 -1")
        (folder / "images.txt").write_text("\n".join(lines) + "\n")
        lines = [f"{i + 5} {x} {y} {z} 1 2 3 0.5 1 0" for i, (x, y, z) in enumerate(model.points)]
        (folder / "points3D.txt").write_text("\n".join(lines) + "\n")
        return
    data = struct.pack("<QiiQQ4d", 1, 1, 2, 320, 240, 300, 160, 120, 0)
    (folder / "cameras.bin").write_bytes(data)
    data = struct.pack("<Q", len(poses))
    for i, (q, t) in enumerate(poses):
        data += struct.pack("<I7dI", i + 1, *q, *t, 1) + model.names[i].encode() + b"\0"
        data += struct.pack("<Q", len(model.seen[i]))
        data += b"".join(struct.pack("<ddq", 1.0, 2.0, p + 5) for p in model.seen[i])
    (folder / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(model.points))
    for i, xyz in enumerate(model.points):
        data += struct.pack("<Q3d3BdQii", i + 5, *xyz, 1, 2, 3, 0.5, 1, 1, 0)
    (folder / "points3D.bin").write_bytes(data)


def corner_photos(folder: Path, count: int = 10) -> np.ndarray:
    """Photos of three textured walls of 1 m; returns camera_from_world (N, 4, 4)."""
    generator = np.random.default_rng(0)
    textures = []
    for _ in range(3):
        noise = generator.uniform(0, 255, (400, 400, 3)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
        textures.append(np.clip((smooth - 127.5) * 6 + 127.5, 0, 255).astype(np.uint8))
    walls = [np.eye(3)[[0, 1]], np.eye(3)[[1, 2]], np.eye(3)[[2, 0]]]
    poses = []
    for i in range(count):
        a = np.radians(20 + 50 * i / (count - 1))
        eye = 1.9 * np.array([np.cos(a), np.sin(a), 0.65 + 0.1 * (i % 3)])
        forward = np.array([0.35, 0.35, 0.3]) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1.0))
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack((right, np.cross(forward, right), forward))
        pose[:3, 3] = -pose[:3, :3] @ eye
        poses.append(pose)
        image = np.zeros((*CAMERA.size, 3), np.uint8)
        for texture, axes in zip(textures, walls, strict=True):
            to_pixel = CAMERA.intrinsics @ (np.c_[pose[:3, :3] @ axes.T / 400.0, pose[:3, 3]])
            seen = cv2.warpPerspective(texture, to_pixel, CAMERA.size[::-1])
            inside = cv2.warpPerspective(np.full((400, 400), 255, np.uint8), to_pixel,
                                         CAMERA.size[::-1])  # fmt: skip
            image[inside > 250] = seen[inside > 250]
        posed_scene.write_png(folder / f"photo_{i}.png", image)
    return np.stack(poses)
