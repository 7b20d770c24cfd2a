# SPDX-License-Identifier: Apache-2.0
"""Small meshes for the tests of objects; nothing is cached outside the test's own folder."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from pose_refiner_ros.objects.mesh import Mesh


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def box_file(tmp_path):
    """An obj file of a box of 100 x 200 x 300 (millimetres, to make sense)."""
    path = tmp_path / "box.obj"
    trimesh.creation.box((100, 200, 300)).export(path)
    return path


def mesh_of(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(shape.vertices, shape.faces)


def subdivided(shape: trimesh.Trimesh, times: int) -> Mesh:
    for _ in range(times):
        shape = shape.subdivide()
    return mesh_of(shape)


def open_plate(cells: int = 16) -> Mesh:
    """A flat unit square of cells x cells x 2 triangles."""
    x, y = np.meshgrid(np.linspace(0, 1, cells + 1), np.linspace(0, 1, cells + 1))
    vertices = np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1)
    corner = (np.arange(cells)[:, None] * (cells + 1) + np.arange(cells)).ravel()
    lower = np.stack([corner, corner + 1, corner + cells + 2], axis=1)
    upper = np.stack([corner, corner + cells + 2, corner + cells + 1], axis=1)
    return Mesh(vertices, np.concatenate([lower, upper]))
