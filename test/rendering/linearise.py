# SPDX-License-Identifier: Apache-2.0
"""The linearisation kernel launched by hand, with as many lanes per pose as a test wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import warp as wp

from pose_refiner_ros.rendering.coverage import Scratch, coverage_shape
from pose_refiner_ros.rendering.mesh_batch import MeshBatch
from pose_refiner_ros.rendering.silhouette import (
    SECTORS,
    Evidence,
    Linearisation,
    linearise_silhouette,
    vec7,
)


@dataclass
class Picture:
    """What one object is compared with: psi (S, S), its scale, the pinhole (fx, fy, cx, cy)."""

    psi: np.ndarray
    pinhole: np.ndarray
    scale: float = 1e6
    pixel: float = 1.0
    bounds: tuple[float, float, float, float] = (-1e6, -1e6, 1e6, 1e6)


@dataclass
class Result:
    hessian: np.ndarray
    gradient: np.ndarray
    cost: np.ndarray
    weight: np.ndarray
    measures: np.ndarray
    sectors: np.ndarray
    coverage: np.ndarray


def linearise(
    meshes: list,
    pictures: list[Picture],
    poses: np.ndarray,
    mesh_of_pose=None,
    picture_of_pose=None,
    active=None,
    near: float = 1e-3,
    spacing: float = 1.0,
    grain: int = 1,
    lanes: int = 1,
    size: int | None = None,
    fill: float = 0.0,
) -> Result:
    """Launch once; `fill` is what the outputs hold before."""
    poses = np.asarray(poses, np.float32)
    count = len(poses)
    batch = MeshBatch(meshes)
    size = size or max(p.psi.shape[0] for p in pictures)

    def array(values, dtype):
        return wp.array(np.ascontiguousarray(values), dtype=dtype)

    evidence = Evidence()
    distance = np.zeros((len(pictures), size, size), np.float32)
    for row, picture in zip(distance, pictures, strict=True):
        side = picture.psi.shape[0]
        row[:side, :side] = picture.psi
    evidence.distance = array(distance, wp.float32)
    evidence.scale = array(np.array([p.scale for p in pictures], np.float32), wp.float32)
    evidence.size = array(np.array([p.psi.shape[0] for p in pictures], np.int32), wp.int32)
    evidence.camera = array(np.array([p.pinhole for p in pictures], np.float32), wp.vec4)
    evidence.image_bounds = array(np.array([p.bounds for p in pictures], np.float32), wp.vec4)
    evidence.pixel = array(np.array([p.pixel for p in pictures], np.float32), wp.float32)

    scratch = Scratch()
    scratch.projected = wp.empty((count, batch.max_vertices), dtype=wp.vec3)
    scratch.facing = wp.empty((count, batch.max_faces), dtype=wp.uint8)
    scratch.coverage = wp.zeros(coverage_shape(count, size), dtype=wp.uint32)

    out = Linearisation()
    out.hessian = array(np.full((count, 6, 6), fill, np.float32), wp.spatial_matrix)
    out.gradient = array(np.full((count, 6), fill, np.float32), wp.spatial_vector)
    out.cost = array(np.full(count, fill, np.float32), wp.float32)
    out.weight = array(np.full(count, fill, np.float32), wp.float32)
    out.measures = array(np.full((count, 7), fill, np.float32), vec7)
    out.sectors = array(np.full((count, SECTORS, 6), fill, np.float32), wp.spatial_vector)

    zeros = np.zeros(count, np.int32)
    wp.launch(
        linearise_silhouette,
        dim=(count, lanes),
        inputs=[
            batch.arrays,
            evidence,
            array(zeros if mesh_of_pose is None else np.int32(mesh_of_pose), wp.int32),
            array(zeros if picture_of_pose is None else np.int32(picture_of_pose), wp.int32),
            array(zeros + 1 if active is None else np.int32(active), wp.int32),
            array(poses[:, :3, :3], wp.mat33),
            array(poses[:, :3, 3], wp.vec3),
            array(np.broadcast_to(np.float32(near), count), wp.float32),
            float(spacing),
            grain,
            0,
            1,
            scratch,
            out,
        ],
        block_dim=lanes,
    )
    return Result(
        out.hessian.numpy(),
        out.gradient.numpy(),
        out.cost.numpy(),
        out.weight.numpy(),
        out.measures.numpy(),
        out.sectors.numpy(),
        scratch.coverage.numpy(),
    )
