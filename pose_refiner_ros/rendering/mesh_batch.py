# SPDX-License-Identifier: Apache-2.0
"""Meshes of a batch in one set of Warp arrays, with the edges that can ever be an outline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import warp as wp

# An edge flatter than this (sine of the dihedral angle) is never an outline that matters.
FLAT_SINE = 1e-4


@wp.struct
class MeshArrays:
    """Arrays of all meshes, one after the other; mesh m owns [first_x[m], first_x[m + 1])."""

    vertices: wp.array(dtype=wp.vec3)
    faces: wp.array(dtype=wp.vec3i)  # indices within the mesh
    planes: wp.array(dtype=wp.vec4)  # outward normal n and offset d: n.x = d on the face
    edges: wp.array(dtype=wp.vec4i)  # vertex, vertex, face, face (-1: always a candidate)
    first_vertex: wp.array(dtype=wp.int32)
    first_face: wp.array(dtype=wp.int32)
    first_edge: wp.array(dtype=wp.int32)
    closed: wp.array(dtype=wp.int32)  # 1: back faces are never seen and need no drawing


@dataclass(frozen=True)
class OutlineEdges:
    """Edges that can lie on the outline of a mesh from some direction.

    edges: (E, 4) int32, rows (vertex, vertex, face, face), the vertices in the order in which the
    first face goes round. A second face of -1 marks an edge
    without a front/back rule (open border, more than two faces, inconsistent winding): it is tried
    from everywhere. closed: no open border, so that back faces are always hidden.
    planes: (F, 4) float32 outward unit normal and offset.
    """

    edges: np.ndarray
    planes: np.ndarray
    closed: bool


def outline_edges(vertices: np.ndarray, faces: np.ndarray) -> OutlineEdges:
    """Find the edges of a mesh (vertices (V, 3), faces (F, 3)) that can ever be its outline.

    Flat edges never are. On a closed mesh concave ones are not either: the surface rises on both
    sides of them.
    """
    vertices = np.asarray(vertices, np.float64)
    faces = np.asarray(faces, np.int64)
    corner = vertices[faces]
    normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    offsets = np.einsum("fi,fi->f", normals, corner.mean(axis=1))
    planes = np.concatenate([normals, offsets[:, None]], axis=1).astype(np.float32)

    half = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    owner = np.repeat(np.arange(len(faces)), 3)
    forward = half[:, 0] < half[:, 1]
    key = np.sort(half, axis=1)
    order = np.lexsort((key[:, 1], key[:, 0]))
    key, owner, forward = key[order], owner[order], forward[order]
    start = np.flatnonzero(np.r_[True, np.any(key[1:] != key[:-1], axis=1)])
    count = np.diff(np.r_[start, len(key)])

    pair = start[count == 2]
    consistent = forward[pair] != forward[pair + 1]
    # closed: every edge is gone along as often one way as the other, however many faces share it
    balance = np.add.reduceat(np.where(forward, 1, -1), start) if len(start) else np.zeros(0)
    closed = len(faces) > 0 and not balance.any()
    regular = pair[consistent]
    first, second = owner[regular], owner[regular + 1]
    sine = np.linalg.norm(np.cross(normals[first], normals[second]), axis=1)
    folded = np.einsum("ei,ei->e", normals[first], normals[second]) < 0.0
    keep = (sine > FLAT_SINE) | folded
    if closed:
        # height of the second face's far corner above the first face's plane
        far = vertices[faces[second].sum(axis=1) - key[regular].sum(axis=1)]
        height = np.einsum("ei,ei->e", normals[first], far) - offsets[first]
        keep &= height < 1e-9
    # in the winding order of the first face, which tells inside from outside
    wound = np.where(forward[regular][:, None], key[regular], key[regular][:, ::-1])
    regular_edges = np.column_stack([wound, first, second])[keep]

    irregular = np.concatenate([start[count != 2], pair[~consistent]])
    irregular_edges = np.column_stack(
        [key[irregular], owner[irregular], np.full(len(irregular), -1)]
    )
    edges = np.concatenate([regular_edges, irregular_edges]).astype(np.int32).reshape(-1, 4)
    return OutlineEdges(edges, planes, closed)


class MeshBatch:
    """Meshes uploaded once; kernels address them by their index.

    pivots: (M, 3), a point of each mesh that its vertices are told from in kernels, so that single
    precision suffices wherever its origin lies; the middle of its box if not given.

    Raises ValueError when the list is empty or a mesh has no faces.
    """

    def __init__(
        self, meshes: Sequence, device: str = "cpu", pivots: np.ndarray | None = None
    ) -> None:
        if not meshes:
            raise ValueError("a mesh batch needs at least one mesh")
        for index, mesh in enumerate(meshes):
            if len(mesh.faces) == 0:
                raise ValueError(f"mesh {index} of the batch has no faces")
        if pivots is None:
            pivots = np.array([mesh.bounds.mean(axis=0) for mesh in meshes])
        self.pivots = pivots
        points = [mesh.vertices - pivot for mesh, pivot in zip(meshes, pivots, strict=True)]
        outlines = [
            outline_edges(own, mesh.faces) for own, mesh in zip(points, meshes, strict=True)
        ]

        def joined(parts, dtype):
            return wp.array(np.ascontiguousarray(np.concatenate(parts)), dtype=dtype, device=device)

        def offsets(parts):
            sizes = np.cumsum([0] + [len(part) for part in parts]).astype(np.int32)
            return wp.array(sizes, dtype=wp.int32, device=device)

        vertices = [np.asarray(own, np.float32) for own in points]
        faces = [np.asarray(mesh.faces, np.int32) for mesh in meshes]
        edges = [outline.edges for outline in outlines]
        arrays = MeshArrays()
        arrays.vertices = joined(vertices, wp.vec3)
        arrays.faces = joined(faces, wp.vec3i)
        arrays.planes = joined([outline.planes for outline in outlines], wp.vec4)
        arrays.edges = joined(edges, wp.vec4i)
        arrays.first_vertex = offsets(vertices)
        arrays.first_face = offsets(faces)
        arrays.first_edge = offsets(edges)
        closed = np.array([outline.closed for outline in outlines], np.int32)
        arrays.closed = wp.array(closed, dtype=wp.int32, device=device)
        self.arrays = arrays
        self.device = device
        self.max_vertices = max(len(part) for part in vertices)
        self.max_faces = max(len(part) for part in faces)

    def __len__(self) -> int:
        return self.arrays.closed.shape[0]
