# SPDX-License-Identifier: Apache-2.0
"""Silhouette pictures of meshes, many at a time."""

from __future__ import annotations

import numpy as np
import warp as wp

from pose_refiner_ros.geometry.pose import about_point

from .coverage import Scratch, coverage_shape, draw_silhouettes
from .mesh_batch import MeshBatch

_BLOCK = 128


def draw(
    meshes: MeshBatch,
    mesh_index: np.ndarray,
    camera_from_object: np.ndarray,
    pinhole: np.ndarray,
    size: int,
    near: float = 1e-3,
) -> np.ndarray:
    """Silhouettes (B, size, size) uint8 0/1 of meshes (B,) at poses (B, 4, 4).

    pinhole: fx, fy, cx, cy, one (4,) for all or one per pose (B, 4); near: depth in metres below
    which nothing is drawn.
    """
    count = len(camera_from_object)
    device = meshes.device
    index = np.broadcast_to(np.asarray(mesh_index, np.int32), (count,))
    poses = about_point(camera_from_object, meshes.pivots[index]).astype(np.float32)
    scratch = Scratch()
    scratch.projected = wp.empty((count, meshes.max_vertices), dtype=wp.vec3, device=device)
    scratch.facing = wp.empty((count, meshes.max_faces), dtype=wp.uint8, device=device)
    shape = coverage_shape(count, size, finest=False)
    scratch.coverage = wp.zeros(shape, dtype=wp.uint32, device=device)

    def upload(values, dtype):
        return wp.array(np.ascontiguousarray(values), dtype=dtype, device=device)

    lanes = 1 if wp.get_device(device).is_cpu else _BLOCK
    wp.launch(
        draw_silhouettes,
        dim=(count, lanes),
        inputs=[
            meshes.arrays,
            upload(index, wp.int32),
            upload(poses[:, :3, :3], wp.mat33),
            upload(poses[:, :3, 3], wp.vec3),
            float(near),
            upload(np.broadcast_to(np.asarray(pinhole, np.float32), (count, 4)), wp.vec4),
            size,
            scratch,
        ],
        device=device,
        block_dim=lanes,
    )
    words = scratch.coverage.numpy()
    return np.unpackbits(words.view(np.uint8), axis=2, bitorder="little")[:, :, :size]
