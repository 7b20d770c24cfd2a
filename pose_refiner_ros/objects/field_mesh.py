# SPDX-License-Identifier: Apache-2.0
"""The outer surface of a radiance field as a mesh, for objects that have no other.

Densities have no surface: where one is drawn depends on how soft the field is, and a trained field
is hollow or spongy inside, where no photo ever looked. So a point counts as inside by the light
that reaches it from the freest of 26 directions, and how little light that must be is chosen such
that the mesh's silhouettes are as large as those that the field itself renders.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pose_refiner_ros.fields.surface import FieldSurface
from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.objects.mesh import Mesh, MeshError, clean
from pose_refiner_ros.objects.outline import view_axes
from pose_refiner_ros.objects.simplify import simplify_for_silhouette

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

log = logging.getLogger(__name__)

MOST_NODES = 160  # along the longest side; outlines are compared at about that resolution
SMOOTHING = 0.5  # voxels
FLOATER = 0.01  # parts smaller than that share of the largest are dirt in the air
LEVELS = (0.02, 0.98)  # between which the share of light that is lost is chosen
HALVINGS = 8
VIEWS = 12
PICTURE = 128  # pixels a side
FOCAL = 2.0  # in widths of the picture
TOLERANCE_PX = 1.0  # of its outline, which is no sharper than the field's nodes are near
POOR_IOU = 0.9  # of its silhouettes and the field's, below: the field is fog
VERSION = 1  # of the result; raise it when the code gives another one


def field_mesh(field: GridField, warn: Callable[[str], None] = log.warning) -> Mesh:
    """A mesh whose silhouettes are those of a field, metres, the field's frame.

    `warn` hears of a field whose outline is not clear. That of its file, if it has one; else it
    takes seconds, and is kept on disk. Raises MeshError for a field without a surface.
    """
    surface = field.surface or simplified_surface(field)
    if surface.iou[0] < POOR_IOU:
        warn(
            f"the outline of its field is not clear (overlap {float(surface.iou[0]):.2f} of the "
            "mesh made of it and what the field renders): train it with masks, or give a mesh"
        )
    return Mesh(surface.vertices, surface.faces)


def simplified_surface(field: GridField) -> FieldSurface:
    """For its file: of as few triangles as its outlines allow. Raises MeshError."""
    whole = _surface_of(field)
    mesh = simplify_for_silhouette(
        Mesh(whole.vertices, whole.faces), tolerance_px=TOLERANCE_PX, warn=lambda text: None
    )
    faces = mesh.faces.astype(np.int32)
    return FieldSurface(mesh.vertices.astype(np.float32), faces, whole.iou)


def _surface_of(field: GridField) -> FieldSurface:
    digest = hashlib.blake2b(digest_size=16)
    for array in (field.links, field.values[:, 0], field.origin):
        digest.update(np.ascontiguousarray(array).tobytes())
    key = cache_key(VERSION, digest.hexdigest(), field.links.shape, field.voxel)
    stored = cached_arrays("field_mesh", key, lambda: _build(field))
    return FieldSurface(stored["vertices"], stored["faces"], np.reshape(stored["iou"], 1))


def _build(field: GridField) -> dict[str, np.ndarray]:
    from pose_refiner_ros.fields.coarser import coarser

    low, high = field.occupied_bounds
    nodes = float((high - low).max()) / field.voxel
    coarse = coarser(field.to("cpu"), max(1, int(np.ceil(nodes / MOST_NODES))))
    passed = np.maximum(coarse.values[coarse.links, 0], 0.0) * coarse.voxel
    lost = 1.0 - light_that_reaches(np.pad(passed, 2).astype(np.float32))
    lost = ndimage.gaussian_filter(lost, SMOOTHING)
    origin = coarse.origin - 2 * coarse.voxel
    views = _Views(field)
    if not views.field.any():
        raise MeshError("its field is empty or transparent: nothing is opaque from any side")
    least, most = LEVELS
    for _ in range(HALVINGS):
        level = 0.5 * (least + most)
        mesh = _surface(lost, level, origin, coarse.voxel)
        if mesh is not None and views.silhouettes(mesh).sum() > views.field.sum():
            least = level
        else:
            most = level
    mesh = _surface(lost, least, origin, coarse.voxel)
    if mesh is None:
        raise MeshError("its field has no surface: nothing in it is opaque")
    mesh = Mesh(*clean(mesh.vertices, mesh.faces))
    drawn = views.silhouettes(mesh)
    iou = np.count_nonzero(drawn & views.field) / np.count_nonzero(drawn | views.field)
    return {"vertices": mesh.vertices, "faces": mesh.faces, "iou": np.array(iou)}


def light_that_reaches(passed: np.ndarray) -> np.ndarray:
    """(X, Y, Z) in [0, 1]: of the light that comes from outside to each node, from the direction in
    which most does. passed: (X, Y, Z) optical depth of a voxel."""
    most = np.zeros_like(passed)
    directions = [d for d in itertools.product((-1, 0, 1), repeat=3) if any(d)]
    for direction in directions:
        axis = int(np.flatnonzero(direction)[0])
        forward = direction[axis] > 0
        shift = [step for i, step in enumerate(direction) if i != axis]
        layers = np.moveaxis(passed, axis, 0)[:: 1 if forward else -1]
        result = np.moveaxis(most, axis, 0)[:: 1 if forward else -1]
        half = 0.5 * np.linalg.norm(direction)  # of the way from layer to layer, voxels
        above = np.zeros_like(layers[0])
        for layer, reached in zip(layers, result, strict=True):
            np.maximum(reached, np.exp(-(above + half * layer)), out=reached)
            above = _moved(above + 2.0 * half * layer, shift)
    return most


def _moved(layer: np.ndarray, shift: list[int]) -> np.ndarray:
    """A layer (Y, Z) moved by whole nodes; zeros come in."""
    target = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(shift, layer.shape, strict=True))
    source = tuple(
        slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(shift, layer.shape, strict=True)
    )
    moved = np.zeros_like(layer)
    moved[target] = layer[source]
    return moved


def _surface(lost: np.ndarray, level: float, origin: np.ndarray, voxel: float) -> Mesh | None:
    """Where `lost` (X, Y, Z) passes a level, of the largest parts; None where it nowhere does."""
    import warp as wp
    from warp.geometry import IsoSurfaceMarchingCubes

    part, count = ndimage.label(lost > level)
    if count == 0:
        return None
    size = np.bincount(part.ravel())
    size[0] = 0
    floats = size < FLOATER * size.max()
    floats[0] = False
    kept = np.where(floats[part], 0.0, lost).astype(np.float32)
    # Warp's: nothing that runs on a robot brings another (scikit-image is for training alone)
    vertices, faces = IsoSurfaceMarchingCubes.extract(
        wp.array(kept, dtype=wp.float32, device="cpu"), level
    )
    return Mesh(vertices.numpy() * voxel + origin, faces.numpy().reshape(-1, 3))


class _Views:
    """A field from all around. field: (V, S, S) bool, where it stops half of the light."""

    def __init__(self, field: GridField) -> None:
        import torch

        from pose_refiner_ros.fields.picture import render_picture

        centre = field.occupied_bounds.mean(axis=0)
        self._focal = FOCAL * PICTURE
        middle = 0.5 * (PICTURE - 1)
        K = np.array([[self._focal, 0, middle], [0, self._focal, middle], [0, 0, 1.0]])
        self._poses = np.tile(np.eye(4), (VIEWS, 1, 1))
        # the bounding sphere fills the picture
        distance = 0.5 * field.diameter * np.sqrt(1.0 + (2.0 * FOCAL) ** 2)
        for i, axes in enumerate(view_axes(VIEWS)):
            x, y = np.asarray(axes, np.float64)[:2]
            self._poses[i, :3, :3] = np.stack([x, y, np.cross(x, y)])
            self._poses[i, :3, 3] = -self._poses[i, :3, :3] @ centre + [0.0, 0.0, distance]
        self._pinhole = np.array([self._focal, self._focal, middle, middle])
        with torch.no_grad():
            pictures = [
                render_picture(field.to("cpu"), K, pose, (PICTURE, PICTURE)).opacity
                for pose in self._poses
            ]
        self.field = torch.stack(pictures).numpy().reshape(VIEWS, PICTURE, PICTURE) > 0.5

    def silhouettes(self, mesh: Mesh) -> np.ndarray:
        """(V, S, S) bool."""
        from pose_refiner_ros.rendering.draw import draw
        from pose_refiner_ros.rendering.mesh_batch import MeshBatch

        drawn = draw(MeshBatch([mesh]), np.zeros(VIEWS), self._poses, self._pinhole, PICTURE)
        return drawn.astype(bool)
