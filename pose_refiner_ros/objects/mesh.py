# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes in metres, loaded from files whose unit is stated, cleaned and checked."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

log = logging.getLogger(__name__)

METRES_PER_UNIT = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254, "ft": 0.3048}
PLAUSIBLE_DIAMETER = (0.002, 50.0)  # metres; outside it the unit is probably wrong


class MeshError(ValueError):
    """A mesh file that cannot be used, with the reason and what to do."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in its object's frame.

    vertices: (V, 3) float64, metres: a mesh may lie far from its frame's origin, and becomes
    float32 about its middle (`MeshBatch`). faces: (F, 3) int32, counter-clockwise seen from
    outside.
    Both are read-only, so that a mesh can be shared and its derived values kept.
    """

    vertices: np.ndarray
    faces: np.ndarray

    def __post_init__(self):
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(self.faces, dtype=np.int32)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) == 0:
            raise MeshError(f"vertices must have shape (V, 3), not {vertices.shape}")
        if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
            raise MeshError(f"faces must have shape (F, 3), not {faces.shape}")
        if not np.isfinite(vertices).all():
            raise MeshError(
                f"{(~np.isfinite(vertices)).any(axis=1).sum()} vertices are NaN or infinite"
            )
        if faces.min() < 0 or faces.max() >= len(vertices):
            raise MeshError(
                f"faces name vertices {faces.min()} to {faces.max()}, but there are {len(vertices)}"
            )
        for name, array in (("vertices", vertices), ("faces", faces)):
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @cached_property
    def content_hash(self) -> str:
        """32 hex digits that change whenever a vertex or a face does."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(np.array([len(self.vertices), len(self.faces)], dtype="<i8").tobytes())
        digest.update(self.vertices.astype("<f8", copy=False).tobytes())
        digest.update(self.faces.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def used_vertices(self) -> np.ndarray:
        """(U,) indices of the vertices that faces use."""
        used = np.zeros(len(self.vertices), bool)
        used[self.faces] = True
        return np.nonzero(used)[0]

    @cached_property
    def bounds(self) -> np.ndarray:
        """(2, 3) float64: least and greatest x, y, z of the vertices that faces use."""
        used = self.vertices[self.used_vertices]
        return np.array([used.min(axis=0), used.max(axis=0)], dtype=np.float64)

    @property
    def box_corners(self) -> np.ndarray:
        """(8, 3) float64 of the box around the mesh."""
        return np.stack(np.meshgrid(*self.bounds.T, indexing="ij"), -1).reshape(-1, 3)

    @cached_property
    def diameter(self) -> float:
        """Largest distance between two vertices, metres."""
        return _largest_distance(self.vertices[self.used_vertices])

    @cached_property
    def watertight(self) -> bool:
        """Whether each edge belongs to two faces, which run along it in opposite directions."""
        start, end = self.faces[:, [0, 1, 2]].ravel(), self.faces[:, [1, 2, 0]].ravel()
        forward = np.sort(start.astype(np.int64) * len(self.vertices) + end)
        backward = np.sort(end.astype(np.int64) * len(self.vertices) + start)
        return np.array_equal(forward, backward) and bool((np.diff(forward) > 0).all())

    def transformed(self, target_from_mesh: np.ndarray) -> Mesh:
        """The mesh after a rigid (4, 4) transform."""
        target_from_mesh = np.asarray(target_from_mesh, dtype=np.float64)
        vertices = self.vertices @ target_from_mesh[:3, :3].T + target_from_mesh[:3, 3]
        return Mesh(vertices, self.faces)


def load_mesh(
    path: str | Path,
    unit: str,
    scale: float = 1.0,
    warn: Callable[[str], None] = log.warning,
) -> Mesh:
    """Read a mesh file (obj, stl, ply, off, glb, gltf, dae ...) and return it in metres.

    A file with several parts becomes one mesh, each part placed by its node. `unit` is the file's
    (m, cm, mm, in, ft); `scale` multiplies on top of it. `warn` hears of what looks wrong but may
    be meant.
    """
    path = Path(path)
    if unit not in METRES_PER_UNIT:
        raise MeshError(f"unit {unit!r} is not known: use one of {', '.join(METRES_PER_UNIT)}")
    if not (np.isfinite(scale) and scale > 0):
        raise MeshError(f"scale must be a positive number, not {scale!r}")
    vertices, faces = _read(path)
    vertices, faces = clean(vertices * (METRES_PER_UNIT[unit] * scale), faces)
    if len(faces) == 0:
        raise MeshError(f"{path}: every face is degenerate (no area); the mesh has no surface")
    mesh = Mesh(vertices, faces)
    _check_size(path, mesh.diameter, unit, scale, warn)
    if is_flat(mesh):
        triangles = "1 triangle" if len(faces) == 1 else f"{len(faces)} triangles in one plane"
        warn(f"{path}: only {triangles}: seen from the edge there is no outline")
    return mesh


def is_flat(mesh: Mesh) -> bool:
    """Whether all of a mesh lies in one plane."""
    points = mesh.vertices[mesh.used_vertices]
    points -= points.mean(axis=0)
    thickness = np.linalg.svd(points.T @ points, compute_uv=False)[2] ** 0.5
    return bool(thickness <= 1e-5 * mesh.diameter * len(points) ** 0.5)


def clean(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weld equal vertices, drop faces that are degenerate or doubled, make the winding consistent.

    Equal means nearer than about a millionth of the mesh's extent: vertices that were split for
    texture coordinates or normals, and the triangle soup of STL files.
    """
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces, np.int64)
    used = np.zeros(len(vertices), bool)
    used[faces] = True
    extent = float(np.ptp(vertices[used], axis=0).max())
    cells = np.round((vertices - vertices.min(axis=0)) / max(extent * 1e-6, 1e-300)).astype(
        np.int64
    )
    first, vertex_of = _unique_rows(cells)
    vertices, faces = vertices[first], vertex_of[faces]

    distinct, _ = _unique_rows(np.sort(faces, axis=1))
    faces = faces[np.sort(distinct)]
    double_area = np.linalg.norm(np.cross(*_side_vectors(vertices, faces)), axis=1)
    faces = faces[double_area > 1e-12 * extent**2]
    if len(faces) == 0:
        return vertices, faces

    faces = orient(vertices, faces)
    used, faces = np.unique(faces, return_inverse=True)
    return vertices[used], faces.reshape(-1, 3)


def orient(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces with the same winding as their neighbours; closed components wound outward.

    Of the two windings an open component can have, it gets the one that turns less area round.
    Neighbours are faces that share an edge which no third face uses.
    """
    count = len(faces)
    _, edge_of, uses = edges_of(faces)
    # The two uses (half edges) of each edge that has exactly two.
    order = np.argsort(edge_of, kind="stable")
    pairs = order[uses[edge_of[order]] == 2].reshape(-1, 2)
    starts = faces.ravel()  # the half edge 3 f + k runs from corner k of face f to the next
    face_a, face_b = pairs[:, 0] // 3, pairs[:, 1] // 3
    same_direction = starts[pairs[:, 0]] == starts[pairs[:, 1]]  # so one of the two is wrong

    # Two nodes for each face, as it is and turned; an edge joins the states that fit. Each
    # component appears twice, as it would be with its first face kept, and turned.
    node_b = face_b + count * same_direction
    turned_b = face_b + count * ~same_direction
    rows = np.concatenate([face_a, face_a + count])
    columns = np.concatenate([node_b, turned_b])
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (2 * count, 2 * count))
    _, label = connected_components(graph, directed=False)
    kept_label, turned_label = label[:count], label[count:]

    area = np.linalg.norm(np.cross(*_side_vectors(vertices, faces)), axis=1)
    area_kept = np.bincount(kept_label, area, minlength=label.max() + 1)
    component = np.minimum(kept_label, turned_label)
    other = np.maximum(kept_label, turned_label)
    keep_majority = area_kept[component] >= area_kept[other]
    chosen = np.where(keep_majority, component, other)
    turn = (kept_label != chosen) & (kept_label != turned_label)  # equal labels: a Moebius strip
    faces = np.where(turn[:, None], faces[:, ::-1], faces)

    # A component is closed where each of its edges is used exactly twice within it.
    component_of_use = np.repeat(component, 3)
    _, use_group, group_size = np.unique(
        np.stack([edge_of, component_of_use]), axis=1, return_inverse=True, return_counts=True
    )
    open_use = group_size[use_group.reshape(-1)] != 2
    is_open = np.bincount(component_of_use, open_use, minlength=label.max() + 1) > 0
    centred = vertices - vertices.mean(axis=0)
    six_volumes = np.einsum(
        "ij,ij->i", centred[faces[:, 0]], np.cross(centred[faces[:, 1]], centred[faces[:, 2]])
    )
    volume = np.bincount(component, six_volumes, minlength=label.max() + 1)
    inside_out = ~is_open[component] & (volume[component] < 0)
    return np.where(inside_out[:, None], faces[:, ::-1], faces)


def edges_of(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Undirected edges (E, 2), the edge of each half edge (3F,), and the uses of each edge (E,)."""
    half_edges = np.stack([faces.ravel(), faces[:, [1, 2, 0]].ravel()], axis=1).astype(np.int64)
    half_edges.sort(axis=1)
    base = int(half_edges.max(initial=0)) + 1
    key, edge_of, uses = np.unique(
        half_edges[:, 0] * base + half_edges[:, 1], return_inverse=True, return_counts=True
    )
    return np.stack([key // base, key % base], axis=1), edge_of.reshape(-1), uses


def _side_vectors(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two edge vectors of each face; their cross product is twice its area along its normal."""
    corner = vertices[faces[:, 0]]
    return vertices[faces[:, 1]] - corner, vertices[faces[:, 2]] - corner


def _unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index of each distinct row of whole numbers (N, 3), and which of them each row is."""
    if rows.max(initial=0) < 2**21:  # three numbers fit in one, which sorts many times faster
        rows = (rows[:, 0] << 42) | (rows[:, 1] << 21) | rows[:, 2]
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, which.reshape(-1)


def _largest_distance(points: np.ndarray) -> float:
    """Exact largest distance between two of the points (N, 3).

    A point too near to the middle is no end of it. Both ends lie on the hull. Its points are
    divided into small clusters, whose distances bound those of their points: few pairs of clusters
    are left to compare.
    """
    radius = np.linalg.norm(points - 0.5 * (points.min(axis=0) + points.max(axis=0)), axis=1)
    one_end = points[radius.argmax()]
    least = np.linalg.norm(points - one_end, axis=1).max()
    points = points[radius >= least * (1.0 - 1e-9) - radius.max()]
    try:
        points = points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # flat or fewer than four points: no 3-D hull
        points = np.unique(points, axis=0)
    clusters = [points]
    while max(map(len, clusters)) > 32:
        clusters = [half for cluster in clusters for half in _halves(cluster)]
    center = np.array([cluster.mean(axis=0) for cluster in clusters])
    radius = np.array(
        [
            np.linalg.norm(cluster - c, axis=1).max()
            for cluster, c in zip(clusters, center, strict=True)
        ]
    )
    bound = cdist(center, center) + radius[:, None] + radius
    first, second = np.triu_indices(len(clusters))
    order = np.argsort(-bound[first, second])
    largest = 0.0
    for i, j in zip(first[order], second[order], strict=True):
        if bound[i, j] <= largest:
            break
        largest = max(largest, float(cdist(clusters[i], clusters[j]).max()))
    return largest


def _halves(points: np.ndarray) -> tuple[np.ndarray, ...]:
    """The points on either side of the median along their widest extent; few stay together."""
    if len(points) <= 32:
        return (points,)
    order = np.argsort(points[:, np.ptp(points, axis=0).argmax()])
    middle = len(points) // 2
    return points[order[:middle]], points[order[middle:]]


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and faces (F, 3) of all the file's parts, in the file's unit."""
    import trimesh  # imported here: it takes a quarter of a second

    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise MeshError(f"mesh file {path} {kind}")
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in trimesh.available_formats():
        hint = " (install pycollada to read it)" if suffix == "dae" else ""
        raise MeshError(
            f"{path}: no reader for '.{suffix}' files{hint}; export it as obj, stl, ply or glb"
        )
    if path.stat().st_size == 0:
        raise MeshError(f"{path}: the file is empty")
    try:
        scene = trimesh.load(str(path), force="scene", process=False, skip_materials=True)
    except Exception as error:  # the readers raise anything: struct.error, KeyError, IndexError
        raise MeshError(f"{path}: not a readable {suffix} file ({_reason(error)})") from error

    vertices, faces, offset = [], [], 0
    for node in scene.graph.nodes_geometry:
        scene_from_part, name = scene.graph[node]
        part = scene.geometry[name]
        if len(getattr(part, "faces", ())) == 0:  # point clouds and lines
            continue
        points = np.asarray(part.vertices, np.float64)
        corners = np.asarray(part.faces, np.int64)
        if corners.min() < 0 or corners.max() >= len(points):
            raise MeshError(
                f"{path}: a face names vertex {corners.max()}, but there are only {len(points)}; "
                "the file is damaged"
            )
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        if bad:
            raise MeshError(f"{path}: {bad} of {len(points)} vertices are NaN or infinite")
        vertices.append(points @ scene_from_part[:3, :3].T + scene_from_part[:3, 3])
        faces.append(corners + offset)
        offset += len(points)
    if not faces:
        raise MeshError(
            f"{path}: the file has no faces (a point cloud?); a triangle mesh is needed"
        )
    return np.concatenate(vertices), np.concatenate(faces)


def _check_size(
    path: Path, diameter: float, unit: str, scale: float, warn: Callable[[str], None]
) -> None:
    least, most = PLAUSIBLE_DIAMETER
    if least <= diameter <= most:
        return
    in_file = diameter / (METRES_PER_UNIT[unit] * scale)
    # Of the other units that give a sensible size, the one that people use most.
    likely = [
        other
        for other in ("mm", "m", "cm", "in", "ft")
        if other != unit and least <= in_file * METRES_PER_UNIT[other] * scale <= most
    ]
    advice = f"; if the file is in {likely[0]}, say 'unit: {likely[0]}'" if likely else ""
    warn(
        f"{path}: {diameter:.4g} m across with unit {unit} and scale {scale:g}, "
        f"which no ordinary object is{advice}"
    )


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
