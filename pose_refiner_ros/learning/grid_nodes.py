# SPDX-License-Identifier: Apache-2.0
"""Where a grid has nodes: at first wherever the photos allow it, later where light is stopped."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pose_refiner_ros.datasets.posed_images.hull import (
    CELLS,
    cells_of,
    spread_views,
    times_seen,
    visual_hull,
)
from pose_refiner_ros.datasets.posed_images.views import PosedImages
from pose_refiner_ros.fields.field import FieldError

_NEAR = 0.1  # of the cameras' distance: nothing is that near to a camera, if no source says more
_VIEWS = 100  # more cameras than this change little of what two of them see
_NEIGHBOURS = np.ones((3, 3, 3), bool)


def pixel_footprint(posed: PosedImages) -> float:
    """Metres that a pixel sees at the distance of the box's centre, the photos' median."""
    return float(np.median(_distances(posed) / posed.intrinsics[:, 0, 0]))


def first_nodes(posed: PosedImages, voxel: float) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes (X, Y, Z) bool a grid over the photos' bounds has, and where its first is (3,).

    With masks those in the visual hull; else those that two cameras see and that are not right
    before a camera, where a fog could show each photo to its own camera. Raises FieldError where
    none are left.
    """
    low, high = posed.bounds
    cells = _hull_cells(posed) if posed.alpha is not None else _cells_in_view(posed)
    origin = low - voxel
    axes = [origin[a] + voxel * np.arange(np.ceil((high - low)[a] / voxel) + 3) for a in range(3)]
    indices = [
        np.floor((axis - low[a]) / (high - low)[a] * cells.shape[a]).astype(int)
        for a, axis in enumerate(axes)
    ]
    inside = [np.clip(index, 0, n - 1) for index, n in zip(indices, cells.shape, strict=True)]
    occupied = cells[np.ix_(*inside)]
    if posed.alpha is None:
        near = _NEAR * np.median(_distances(posed))
        if posed.near_far is not None:
            near = posed.near_far[:, 0].min()
        nodes = np.argwhere(occupied)
        distance, _ = cKDTree(posed.camera_positions).query(origin + voxel * nodes)
        occupied[tuple(nodes[distance < near].T)] = False
    if not occupied.any():
        raise FieldError(
            f"no part of the box {low.round(3).tolist()} to {high.round(3).tolist()} is in view of "
            "two photos: check the poses and the unit of the source"
        )
    return occupied, origin


def grown(nodes: np.ndarray) -> np.ndarray:
    """(X, Y, Z) bool with the neighbours of each."""
    return ndimage.binary_dilation(nodes, _NEIGHBOURS)


def finer_nodes(occupied: np.ndarray, ratio: float) -> np.ndarray:
    """Nodes of a grid with the same first node: those nearest to an occupied one.

    ratio: its voxel as a share of the old one.
    """
    last = np.array(occupied.shape) - 1
    nearest = [
        np.rint(np.arange(np.ceil(n / ratio - 1e-6) + 1) * ratio).clip(max=n).astype(int)
        for n in last
    ]
    return occupied[np.ix_(*nearest)]


def cropped(occupied: np.ndarray) -> tuple[slice, slice, slice]:
    """The part that has nodes, with one layer without, if there is one, on each side."""
    index = np.argwhere(occupied)
    low, high = index.min(axis=0), index.max(axis=0)
    return tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(low, high, strict=True))


def _hull_cells(posed: PosedImages) -> np.ndarray:
    hull = visual_hull(posed, posed.bounds)
    if not len(hull.centres):
        raise FieldError("no point lies inside nearly all masks: check masks and poses")
    cells = np.zeros((CELLS,) * 3, bool)
    cells[tuple(np.floor((hull.centres - posed.bounds[0]) / hull.cell).astype(int).T)] = True
    return grown(cells)


def _cells_in_view(posed: PosedImages) -> np.ndarray:
    seen = times_seen(posed, spread_views(posed, _VIEWS), cells_of(posed.bounds)[1])
    return grown((seen >= 2).reshape((CELLS,) * 3))


def _distances(posed: PosedImages) -> np.ndarray:
    """(N,) metres from each camera to the middle of the bounds; never less than 2 % of the box."""
    distance = np.linalg.norm(posed.camera_positions - posed.bounds.mean(axis=0), axis=1)
    return distance.clip(min=0.02 * np.linalg.norm(posed.bounds[1] - posed.bounds[0]))
