# SPDX-License-Identifier: Apache-2.0
"""Where a grid has nodes: at first wherever the photos allow it, later where light is stopped."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pose_refiner_ros.datasets.posed_images.hull import (
    CELLS,
    cells_of,
    nearest_point,
    spread_views,
    times_seen,
    visual_hull,
)
from pose_refiner_ros.datasets.posed_images.views import PosedImages
from pose_refiner_ros.fields.contraction import Contraction
from pose_refiner_ros.fields.field import FieldError

_NEAR = 0.1  # of the cameras' distance: nothing is that near to a camera, if no source says more
_VIEWS = 100  # more cameras than this change little of what two of them see
_SAME_WAY = 0.8  # length of the mean of viewing axes from which a scene is seen from one side
_AMONG = 0.3  # of the cube's half: the same in a scene that is seen from all around
_SLOW = 1.5  # times as far as the nearest things, density grows at full pace
_ROOM, _LEAST_ROOM = 1.1, 0.25  # of the cameras' reach, and of the nearest depth
_NEIGHBOURS = np.ones((3, 3, 3), bool)


def contraction_around(posed: PosedImages) -> Contraction:
    """Of photos that are filled to their edges: a cube with all cameras in it, about them where
    they look the same way, else about what they look at. Raises FieldError where all are at one
    place."""
    positions, axes = posed.camera_positions, posed.camera_from_object[:, 2, :3]
    middle = None if _look_the_same_way(posed) else nearest_point(positions, axes)
    if middle is None:
        middle = positions.mean(axis=0)
    half = _ROOM * abs(positions - middle).max()
    if posed.near_far is not None:  # cameras that hardly move tell depths apart as little
        half = max(half, _LEAST_ROOM * float(posed.near_far[:, 0].min()))
    if not half > 0.0:
        raise FieldError(
            "all photos were taken from one place, from which nothing tells how far things are: "
            "walk while you take them"
        )
    return Contraction(tuple(middle.tolist()), float(half))


def pixel_footprint(posed: PosedImages, contraction: Contraction | None = None) -> float:
    """Metres that a pixel sees at the distance of the box's centre, the photos' median; in a
    contracted scene, at the faces of the cube and wherever beyond."""
    if contraction is not None:
        return float(np.median(contraction.half / posed.intrinsics[:, 0, 0]))
    return float(np.median(_distances(posed) / posed.intrinsics[:, 0, 0]))


def nearest_to_cameras(posed: PosedImages, contraction: Contraction | None = None) -> float:
    """Metres from a camera within which nothing is: there a fog could show each photo to its own
    camera."""
    if posed.near_far is not None:
        return float(posed.near_far[:, 0].min())
    if contraction is not None:
        return contraction.half * (1.0 if _look_the_same_way(posed) else _AMONG)
    return float(_NEAR * np.median(_distances(posed)))


def first_nodes(
    posed: PosedImages, voxel: float, contraction: Contraction | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which nodes (X, Y, Z) bool a grid over the photos' bounds has, and where its first is (3,).

    With masks those in the visual hull; else those that two cameras see and that are not right
    before a camera. Raises FieldError where none are left.
    """
    low, high = posed.bounds
    cells = _hull_cells(posed) if posed.alpha is not None else _cells_in_view(posed, contraction)
    origin = low - voxel
    axes = [origin[a] + voxel * np.arange(np.ceil((high - low)[a] / voxel) + 3) for a in range(3)]
    indices = [
        np.floor((axis - low[a]) / (high - low)[a] * cells.shape[a]).astype(int)
        for a, axis in enumerate(axes)
    ]
    inside = [np.clip(index, 0, n - 1) for index, n in zip(indices, cells.shape, strict=True)]
    occupied = cells[np.ix_(*inside)]
    if posed.alpha is None:
        nodes = np.argwhere(occupied)
        places = origin + voxel * nodes
        if contraction is not None:
            places = contraction.expand(places)
        distance, _ = cKDTree(posed.camera_positions).query(places)
        near = nearest_to_cameras(posed, contraction)
        occupied[tuple(nodes[distance < near].T)] = False
    if not occupied.any():
        raise FieldError(
            f"no part of the box {low.round(3).tolist()} to {high.round(3).tolist()} is in view of "
            "two photos: check the poses and the unit of the source"
        )
    return occupied, origin


def pace_near_cameras(
    nodes: np.ndarray, cameras: np.ndarray, near: float, contraction: Contraction
) -> np.ndarray:
    """(N,) in [0, 1]: how fast the density of nodes (N, 3) may grow. All rays of one photo meet
    close before its camera, where a fog could show that photo and no other; so what is near learns
    slowly (Philip and Deschaintre 2023), and later than what is far. near: see
    `nearest_to_cameras`."""
    distance, _ = cKDTree(cameras).query(contraction.expand(nodes))
    return np.minimum(distance / (_SLOW * near), 1.0) ** 4


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


def _look_the_same_way(posed: PosedImages) -> bool:
    return bool(np.linalg.norm(posed.camera_from_object[:, 2, :3].mean(axis=0)) > _SAME_WAY)


def _hull_cells(posed: PosedImages) -> np.ndarray:
    hull = visual_hull(posed, posed.bounds)
    if not len(hull.centres):
        raise FieldError("no point lies inside nearly all masks: check masks and poses")
    cells = np.zeros((CELLS,) * 3, bool)
    cells[tuple(np.floor((hull.centres - posed.bounds[0]) / hull.cell).astype(int).T)] = True
    return grown(cells)


def _cells_in_view(posed: PosedImages, contraction: Contraction | None) -> np.ndarray:
    centres = cells_of(posed.bounds)[1]
    if contraction is not None:
        centres = contraction.expand(centres)
    seen = times_seen(posed, spread_views(posed, _VIEWS), centres)
    return grown((seen >= 2).reshape((CELLS,) * 3))


def _distances(posed: PosedImages) -> np.ndarray:
    """(N,) metres from each camera to the middle of the bounds; never less than 2 % of the box."""
    distance = np.linalg.norm(posed.camera_positions - posed.bounds.mean(axis=0), axis=1)
    return distance.clip(min=0.02 * np.linalg.norm(posed.bounds[1] - posed.bounds[0]))
