# SPDX-License-Identifier: Apache-2.0
"""Fewer faces for silhouettes, with the outline measured to stay where it was.

The time of a silhouette grows with the faces, and most faces of a CAD model or a scan make no
difference to an outline at the working resolution. Parts that others hide from everywhere go
first, then faces by quadric edge collapse, to the smallest count whose outline keeps the tolerance.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import fast_simplification
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.objects.mesh import Mesh, clean
from pose_refiner_ros.objects.outline import (
    EXACT,
    OutlineError,
    Outlines,
    Rasterizer,
    view_axes,
)

log = logging.getLogger(__name__)

DEFAULT_MAX_FACES = 10_000
DEFAULT_TOLERANCE_PX = 0.5
WORKING_RESOLUTION = 256
# Shares of the tolerance that the mean error and the bias may have. They matter more than the
# largest error: an outline that is off here and there by chance averages out in a pose.
MEAN_SHARE = 0.1
BIAS_SHARE = 0.03
FEW_FACES = 32  # not worth simplifying
HUGE = 40_000  # faces; above, a first pass makes the search affordable
HIDDEN_VIEWS = 48  # directions from which a hidden part must not be seen
HIDDEN_RESOLUTION = 512  # pixels that the diameter spans there
SEEN_PIXELS = 4  # of those, about one working pixel; fewer may come from rounding
VERSION = 2  # of the result; raise it when the code gives another one: cached meshes are rebuilt

_collapse_lock = threading.Lock()  # fast_simplification keeps its mesh in a global


def simplify_for_silhouette(
    mesh: Mesh,
    max_faces: int = DEFAULT_MAX_FACES,
    tolerance_px: float = DEFAULT_TOLERANCE_PX,
    working_resolution: int = WORKING_RESOLUTION,
    warn: Callable[[str], None] = log.warning,
) -> Mesh:
    """The mesh with as few faces as its outline allows.

    Seen with its diameter spanning `working_resolution` pixels, from all around, the outline stays
    within `tolerance_px`, and much nearer on average. Where this takes more than `max_faces`, or
    the mesh is a huge one, `warn` hears of it. Kept on disk.
    """
    return simplify_and_measure(mesh, max_faces, tolerance_px, working_resolution, warn)[0]


def simplify_and_measure(
    mesh: Mesh,
    max_faces: int = DEFAULT_MAX_FACES,
    tolerance_px: float = DEFAULT_TOLERANCE_PX,
    working_resolution: int = WORKING_RESOLUTION,
    warn: Callable[[str], None] = log.warning,
) -> tuple[Mesh, OutlineError]:
    """`simplify_for_silhouette` and the error of its outline."""
    if len(mesh.faces) <= FEW_FACES:
        return mesh, EXACT

    def build() -> dict[str, np.ndarray]:
        simple, error = _simplify(mesh, tolerance_px, working_resolution)
        return {
            "vertices": simple.vertices,
            "faces": simple.faces,
            "error_px": np.array([error.mean_px, error.bias_px, error.max_px]),
        }

    key = cache_key(VERSION, mesh.content_hash, tolerance_px, working_resolution)
    arrays = cached_arrays("silhouette_mesh", key, build)
    simple = Mesh(arrays["vertices"], arrays["faces"])
    error = OutlineError(*arrays["error_px"].tolist())
    if len(mesh.faces) > HUGE:
        warn(
            f"its {len(mesh.faces):,} faces are simplified to {len(simple.faces):,}, whose outline "
            f"is off by {error.mean_px:.3f} px on average; a smaller mesh file would load faster"
        )
    if len(simple.faces) > max_faces:
        warn(
            f"its outline needs {len(simple.faces)} faces to stay within {tolerance_px:g} px "
            f"(measured: {error.max_px:.2f} px, mean {error.mean_px:.3f}), more than max_faces "
            f"{max_faces}; raise tolerance_px or simplify the mesh by hand if it is too slow"
        )
    return simple, error


def _simplify(mesh: Mesh, tolerance_px: float, resolution: int) -> tuple[Mesh, OutlineError]:
    outlines = Outlines(mesh, resolution)
    limit = OutlineError(MEAN_SHARE * tolerance_px, BIAS_SHARE * tolerance_px, tolerance_px)
    start = without_hidden_parts(mesh)
    # Collapses along an open border may cut corners, which a flat sheet's faces do not show;
    # keeping every border vertex is the second choice.
    border_choices = (False,) if start.watertight else (False, True)

    def collapsed(target_faces: int | None, every: int = 1) -> Mesh | None:
        """`start` with that many faces if its outline keeps the tolerance in every n-th view."""
        for keep_border in border_choices:
            mesh = collapse_edges(start, target_faces, keep_border)
            if len(mesh.faces) < len(start.faces) and outlines.within(mesh, limit, every):
                return mesh
        return None

    if len(start.faces) > HUGE:
        start = collapsed(HUGE) or start
    start = collapsed(None) or start
    # The smallest count by bisection over a third of the views, then checked with all of them.
    enough, too_few = len(start.faces), 4
    while enough > 1.1 * too_few:
        target = int(np.sqrt(enough * too_few))
        simple = collapsed(target, every=3)
        if simple is None:
            too_few = target + 1
        else:
            enough = min(target, len(simple.faces))
    simple = None
    while simple is None and enough < len(start.faces):
        simple = collapsed(enough)
        enough = int(1.1 * enough) + 1
    simple = simple or start
    return simple, outlines.error_of(simple)


def without_hidden_parts(mesh: Mesh) -> Mesh:
    """The mesh without connected components that add nothing to the outline from anywhere.

    Seats, engines, screws: in a CAD model often most of the faces.
    """
    part, count = _parts(mesh)
    if count == 1:
        return mesh
    scale = HIDDEN_RESOLUTION / mesh.diameter
    rasterizer = Rasterizer(mesh.faces)
    needed = np.zeros(count, bool)
    silhouettes = []
    for axes in view_axes(HIDDEN_VIEWS):
        points = mesh.vertices.astype(np.float64) @ (axes.T * scale)
        points -= points.min(axis=0)
        size = tuple(np.ceil(points.max(axis=0)).astype(int)[::-1] + 1)
        # Where the part numbers of the triangles over a pixel have no variance, one part covers
        # the pixel alone.
        triangles = rasterizer.total(points, size).astype(np.float64)
        total = rasterizer.total(points, size, part)
        squares = rasterizer.total(points, size, part.astype(np.float64) ** 2)
        alone = (triangles > 0) & (triangles * squares == total**2)
        pixels = np.bincount((total[alone] / triangles[alone]).astype(np.int64), minlength=count)
        needed |= pixels >= SEEN_PIXELS
        silhouettes.append((points, size, triangles > 0))

    # What is left hides one another: the larger ones stay.
    spare = [k for k in np.argsort(-np.bincount(part, minlength=count)) if not needed[k]]
    spare = [(k, Rasterizer(mesh.faces[part == k])) for k in spare]
    covering = Rasterizer(mesh.faces[needed[part]])
    for points, size, covered in silhouettes:
        missing = covered & (covering.covered(points, size) == 0)
        for k, rasterizer in spare:
            if np.count_nonzero(missing) < SEEN_PIXELS:
                break
            own = rasterizer.covered(points, size) > 0
            if np.count_nonzero(own & missing) >= SEEN_PIXELS:
                needed[k] = True
            if needed[k]:
                missing &= ~own
    if needed.all():
        return mesh
    used, faces = np.unique(mesh.faces[needed[part]], return_inverse=True)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3))


def _parts(mesh: Mesh) -> tuple[np.ndarray, int]:
    """The connected component of each face (F,), and their number."""
    start, end = mesh.faces.ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    size = len(mesh.vertices)
    graph = coo_matrix((np.ones(len(start), np.int8), (start, end)), (size, size))
    _, component = connected_components(graph, directed=False)
    _, part = np.unique(component[mesh.faces[:, 0]], return_inverse=True)
    return part, int(part.max()) + 1


def collapse_edges(mesh: Mesh, target_faces: int | None, keep_border: bool = False) -> Mesh:
    """Quadric edge collapse to about that many faces; None: only what changes no shape at all."""
    size, center = mesh.diameter, mesh.bounds.mean(axis=0)
    vertices = (mesh.vertices - center) / size  # the error thresholds below are absolute
    faces = np.array(mesh.faces)
    with _collapse_lock:
        if target_faces is None:
            vertices, faces = fast_simplification.simplify(
                vertices, faces, lossless=True, preserve_border=keep_border
            )
        else:
            # Low aggressiveness keeps to the order of the errors but may stop early.
            for aggressiveness in (2, 3, 5, 7):
                simple = fast_simplification.simplify(
                    vertices,
                    faces,
                    target_count=target_faces,
                    agg=aggressiveness,
                    preserve_border=keep_border,
                )
                if len(simple[1]) <= 1.05 * target_faces:
                    break
            vertices, faces = simple
    if len(faces) == 0:
        return mesh
    vertices, faces = clean(vertices * size + center, faces)
    return Mesh(vertices, faces) if len(faces) else mesh
