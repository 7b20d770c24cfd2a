# SPDX-License-Identifier: Apache-2.0
"""How far points are from the surface of a mesh: a grid of signed distances, made once per mesh."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import warp as wp

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.warp_threads import launch_over

from .mesh import Mesh

wp.set_module_options({"enable_backward": False})
log = logging.getLogger(__name__)

_VERSION = 1  # of what is stored
NODES = 96  # along the longest side
MARGIN = 0.15  # around the mesh, shares of that side


@dataclass(frozen=True, eq=False)
class DistanceGrid:
    """Signed distances (X, Y, Z) float32 at nodes, metres, negative inside. Node (0, 0, 0) lies at
    `origin` (3,) of the mesh's frame; neighbours are `voxel` metres apart."""

    values: np.ndarray
    origin: np.ndarray
    voxel: float


def distance_grid(mesh: Mesh) -> DistanceGrid:
    """Of a mesh, from the cache on disk where it is there. Which side is inside is told by winding
    numbers, so meshes may have holes."""
    low, high = (np.asarray(bound, np.float64) for bound in mesh.bounds)
    longest = float((high - low).max())
    voxel = longest * (1.0 + 2.0 * MARGIN) / (NODES - 1)
    nodes = np.ceil((high - low + 2.0 * MARGIN * longest) / voxel - 1e-6).astype(int) + 1
    origin = 0.5 * (low + high) - 0.5 * voxel * (nodes - 1)
    key = cache_key(_VERSION, mesh.content_hash, NODES, MARGIN)
    stored = cached_arrays("distances", key, lambda: _build(mesh, origin, voxel, nodes))
    return DistanceGrid(stored["values"], origin, voxel)


@wp.kernel
def signed_distances(
    mesh: wp.uint64,
    voxel: float,
    columns: int,
    layers: int,
    values: wp.array(dtype=wp.float32),
    first: int,
):
    i = first + wp.tid()
    place = wp.vec3(float(i / (columns * layers)), float((i / layers) % columns), float(i % layers))
    point = voxel * place
    found = wp.mesh_query_point_sign_winding_number(mesh, point, 1.0e9)
    nearest = wp.mesh_eval_position(mesh, found.face, found.u, found.v)
    values[i] = found.sign * wp.length(point - nearest)


def _build(mesh: Mesh, origin: np.ndarray, voxel: float, nodes) -> dict[str, np.ndarray]:
    log.info("distances to a surface of %d faces are computed, once per mesh", len(mesh.faces))
    points = wp.array((mesh.vertices - origin).astype(np.float32), dtype=wp.vec3, device="cpu")
    faces = wp.array(mesh.faces.astype(np.int32).ravel(), dtype=wp.int32, device="cpu")
    surface = wp.Mesh(points, faces, support_winding_number=True)
    values = wp.zeros(int(nodes.prod()), dtype=wp.float32, device="cpu")
    inputs = [surface.id, voxel, int(nodes[1]), int(nodes[2]), values]
    launch_over(signed_distances, len(values), inputs, "cpu")
    return {"values": values.numpy().reshape(nodes)}
