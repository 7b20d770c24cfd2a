# SPDX-License-Identifier: Apache-2.0
"""The silhouette kernel launched by hand, with as many lanes per pose as a test wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import warp as wp

from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch
from pose_refiner_ros.refinement.terms.silhouette_kernel import (
    SECTORS,
    Silhouettes,
    linearize_silhouette,
    vec7,
)
from pose_refiner_ros.rendering.coverage import Scratch, coverage_shape
from pose_refiner_ros.rendering.mesh_batch import MeshBatch


@dataclass
class Picture:
    """What one object is compared with: psi (S, S), its scale, the pinhole (fx, fy, cx, cy)."""

    psi: np.ndarray
    pinhole: np.ndarray
    scale: float = 1e6
    pixel: float = 1.0
    bounds: tuple[float, float, float, float] = (-1e6, -1e6, 1e6, 1e6)
    camera_from_reference: np.ndarray | None = None


@dataclass
class Result:
    """The total's equations, the term's own and how the outline lies."""

    hessian: np.ndarray
    gradient: np.ndarray
    cost: np.ndarray
    weight: np.ndarray
    measures: np.ndarray
    sectors: np.ndarray
    coverage: np.ndarray
    own: dict[str, np.ndarray]


def array(values, dtype):
    return wp.array(np.ascontiguousarray(values), dtype=dtype)


def equations(count: int, fill: float) -> NormalEquations:
    out = NormalEquations()
    out.hessian = array(np.full((count, 6, 6), fill, np.float32), wp.spatial_matrix)
    out.gradient = array(np.full((count, 6), fill, np.float32), wp.spatial_vector)
    out.cost = array(np.full(count, fill, np.float32), wp.float32)
    out.weight = array(np.full(count, fill, np.float32), wp.float32)
    return out


def linearize(
    meshes: list,
    pictures: list[Picture],
    poses: np.ndarray,
    mesh_of_pose=None,
    pictures_of_pose=None,
    active=None,
    near: float = 1e-3,
    spacing: float = 1.0,
    grain: int = 1,
    lanes: int = 1,
    size: int | None = None,
    fill: float = 0.0,
    pivots: np.ndarray | None = None,
) -> Result:
    """Launch once. poses: of the pivots (M, 3) of the meshes, their origins if not given;
    pictures_of_pose: those that each pose is seen in (lists, or a number each);
    `fill` is what the outputs hold before."""
    poses = np.asarray(poses, np.float32)
    count = len(poses)
    batch = MeshBatch(meshes, pivots=np.zeros((len(meshes), 3)) if pivots is None else pivots)
    size = size or max(p.psi.shape[0] for p in pictures)
    seen_in = [[0]] * count if pictures_of_pose is None else pictures_of_pose
    seen_in = [np.atleast_1d(numbers) for numbers in seen_in]

    rows = Silhouettes()
    distance = np.zeros((len(pictures), size, size), np.float32)
    for row, picture in zip(distance, pictures, strict=True):
        side = picture.psi.shape[0]
        row[:side, :side] = picture.psi
    rows.distance = array(distance, wp.float32)
    rows.scale = array(np.array([p.scale for p in pictures], np.float32), wp.float32)
    rows.size = array(np.array([p.psi.shape[0] for p in pictures], np.int32), wp.int32)
    rows.pinhole = array(np.array([p.pinhole for p in pictures], np.float32), wp.vec4)
    rows.image_bounds = array(np.array([p.bounds for p in pictures], np.float32), wp.vec4)
    rows.pixel = array(np.array([p.pixel for p in pictures], np.float32), wp.float32)

    zeros = np.zeros(count, np.int32)
    rows.mesh = array(zeros if mesh_of_pose is None else np.int32(mesh_of_pose), wp.int32)
    rows.near = array(np.broadcast_to(np.float32(near), count), wp.float32)
    rows.first = array(np.cumsum([0, *map(len, seen_in)]).astype(np.int32), wp.int32)
    rows.observation = array(np.concatenate(seen_in).astype(np.int32), wp.int32)
    cameras = [p.camera_from_reference for p in pictures]
    cameras = np.array([np.eye(4) if one is None else one for one in cameras], np.float32)
    rows.rotation = array(cameras[:, :3, :3], wp.mat33)
    rows.translation = array(cameras[:, :3, 3], wp.vec3)

    batch_of_poses = PoseBatch()
    batch_of_poses.active = array(zeros + 1 if active is None else np.int32(active), wp.int32)
    batch_of_poses.rotation = array(poses[:, :3, :3], wp.mat33)
    batch_of_poses.translation = array(poses[:, :3, 3], wp.vec3)

    scratch = Scratch()
    scratch.projected = wp.empty((count, batch.max_vertices), dtype=wp.vec3)
    scratch.facing = wp.empty((count, batch.max_faces), dtype=wp.uint8)
    scratch.coverage = wp.zeros(coverage_shape(count, size), dtype=wp.uint32)

    own, total = equations(count, fill), equations(count, fill)
    rows.measures = array(np.full((count, 7), fill, np.float32), vec7)
    rows.sectors = array(np.full((count, SECTORS, 6), fill, np.float32), wp.spatial_vector)

    wp.launch(
        linearize_silhouette,
        dim=(count, lanes),
        inputs=[
            batch.arrays,
            rows,
            batch_of_poses,
            float(spacing),
            grain,
            0,
            1,
            scratch,
            own,
            total,
        ],
        block_dim=lanes,
    )
    return Result(
        total.hessian.numpy(),
        total.gradient.numpy(),
        total.cost.numpy(),
        total.weight.numpy(),
        rows.measures.numpy(),
        rows.sectors.numpy(),
        scratch.coverage.numpy(),
        {name: getattr(own, name).numpy() for name in NormalEquations.vars},
    )
