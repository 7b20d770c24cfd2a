# SPDX-License-Identifier: Apache-2.0
"""Meshes made of radiance fields."""

from __future__ import annotations

import numpy as np
import pytest
from painted import DENSITY, painted_block

from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.objects.field_mesh import field_mesh, light_that_reaches
from pose_refiner_ros.objects.mesh import MeshError

HALF = np.array([0.1, 0.07, 0.05])


def test_mesh_of_a_block_is_the_block():
    reports = []
    mesh = field_mesh(painted_block(HALF, centre=(0.3, 0.0, -0.2)), reports.append)
    # density begins half a voxel outside, and rays along a side pass through a lot of it
    box = [[0.195, -0.075, -0.255], [0.405, 0.075, -0.145]]
    np.testing.assert_allclose(mesh.bounds, box, atol=0.002)
    assert mesh.watertight
    assert reports == []


def test_sponge_inside_and_dirt_outside_change_nothing():
    whole = painted_block(HALF)
    values = whole.values.copy()
    index = np.argwhere(whole.links)
    depth = (HALF - abs(whole.origin + whole.voxel * index)).min(axis=1)
    values[1:][depth > 0.025, 0] *= np.random.default_rng(0).random((depth > 0.025).sum())
    values[1:][(index == 0).all(axis=1), 0] = DENSITY
    dirty = GridField(whole.links, values, whole.origin, whole.voxel)
    assert field_mesh(whole).bounds == pytest.approx(field_mesh(dirty).bounds, abs=0.003)


def test_thinner_density_makes_no_smaller_mesh():
    thin = painted_block(HALF)
    thin.values[:, 0] *= 0.3
    block = field_mesh(painted_block(HALF))
    assert field_mesh(thin).bounds == pytest.approx(block.bounds, abs=0.005)


def test_field_that_is_fog():
    fog = painted_block(HALF)
    fog.values[:, 0] *= 0.001
    with pytest.raises(MeshError, match="empty or transparent"):
        field_mesh(fog)


def test_light_comes_from_the_freest_direction():
    wall = np.zeros((9, 9, 9), np.float32)
    wall[4] = 2.0
    reached = light_that_reaches(wall)
    assert reached[3].min() == reached[5].min() == 1.0  # from its own side
    np.testing.assert_allclose(reached[4], np.exp(-1.0), rtol=1e-6)  # through half the wall
    wall[:] = 2.0
    assert light_that_reaches(wall)[4, 4, 4] == pytest.approx(np.exp(-9.0), rel=1e-5)
