# SPDX-License-Identifier: Apache-2.0
"""Grids of signed distances against exact ones."""

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator
from shapes import box, cylinder, plate

from pose_refiner_ros.objects.distance_grid import MARGIN, distance_grid
from pose_refiner_ros.objects.mesh import Mesh


def interpolated(grid, points: np.ndarray) -> np.ndarray:
    axes = [grid.origin[a] + grid.voxel * np.arange(n) for a, n in enumerate(grid.values.shape)]
    return RegularGridInterpolator(axes, grid.values)(points)


def to_box(points: np.ndarray, size) -> np.ndarray:
    off = np.abs(points) - np.asarray(size) / 2
    return np.linalg.norm(np.maximum(off, 0.0), axis=1) + np.minimum(off.max(axis=1), 0.0)


def to_cylinder(points: np.ndarray, radius: float, height: float) -> np.ndarray:
    off = np.stack(
        [np.hypot(points[:, 0], points[:, 1]) - radius, np.abs(points[:, 2]) - height / 2]
    )
    return np.linalg.norm(np.maximum(off, 0.0), axis=0) + np.minimum(off.max(axis=0), 0.0)


@pytest.mark.parametrize(
    "mesh, exact",
    [
        (box(), lambda points: to_box(points, (0.2, 0.12, 0.08))),
        (cylinder(sections=256), lambda points: to_cylinder(points, 0.05, 0.2)),
    ],
    ids=["box", "cylinder"],
)
def test_distances_are_those_to_the_surface(mesh, exact):
    grid = distance_grid(mesh)
    low, high = mesh.bounds
    reach = 0.9 * MARGIN * (high - low).max()
    points = np.random.default_rng(0).uniform(low - reach, high + reach, (2000, 3))
    error = interpolated(grid, points) - exact(points)
    assert np.abs(error).max() < grid.voxel and np.abs(error).mean() < 0.05 * grid.voxel


def test_far_from_the_origin_and_with_a_hole():
    whole, far = box(), np.array([5000.0, -3000.0, 100.0])
    open_box = Mesh(whole.vertices + far, whole.faces[2:])  # one side is missing
    grid = distance_grid(open_box)
    points = np.array([[0.0, 0, 0], [0, 0, 0.06], [0, 0.08, 0], [0.12, 0, 0]]) + far
    assert (np.sign(interpolated(grid, points)) == [-1, 1, 1, 1]).all()


def test_a_sheet_has_no_inside():
    grid = distance_grid(plate(0.2))
    values = interpolated(grid, np.array([[0.0, 0, 0.02], [0, 0, -0.02]]))
    assert np.abs(values) == pytest.approx([0.02, 0.02], abs=1e-4)
