# SPDX-License-Identifier: Apache-2.0
"""Cameras that a user asks for."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.orbit import check_in_view, film, orbit, pinhole, view_of


@pytest.mark.parametrize("up", [(0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (0.3, 0.2, -0.8)])
@pytest.mark.parametrize("elevation", [-30.0, 0.0, 90.0])
def test_an_orbit_looks_at_its_centre_with_up_above(up, elevation):
    centre, up = np.array([0.3, -0.2, 0.5]), np.array(up) / np.linalg.norm(up)
    poses = orbit(centre, up, 2.0, elevation, 8)
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1.0)
    assert np.allclose(poses[:, :3, :3] @ centre + poses[:, :3, 3], (0, 0, 2.0))
    above = poses[:, :3, :3] @ up
    assert np.allclose(above[:, 0], 0.0, atol=1e-9)
    assert (above[:, 1] < 1e-9).all()  # y looks down
    eyes = -np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3])
    assert np.allclose((eyes - centre) @ up, 2.0 * np.sin(np.radians(elevation)))


def test_a_camera_inside_the_box_sees_it_and_one_that_looks_away_does_not():
    field = SimpleNamespace(bounds=np.array([[-1.0, -1, -1], [1, 1, 1]]), record={})
    K = pinhole((40, 60), 40.0)
    inside = np.eye(4)
    check_in_view(field, K, inside, (40, 60))
    (outside,) = orbit(np.zeros(3), (0, 0, 1), 5.0, 20.0, 1)
    check_in_view(field, K, outside, (40, 60))
    away = np.diag([1.0, -1.0, -1.0, 1.0]) @ outside
    with pytest.raises(FieldError, match="looks past the field"):
        check_in_view(field, K, away, (40, 60))
    view = view_of(field)
    (usual,) = orbit(view["centre"], view["up"], view["distance"], 0.0, 1)
    check_in_view(field, pinhole(view["size"], view["fov_deg"]), usual, view["size"])


def test_a_film_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="stop"), film(tmp_path / "a.mp4", (16, 16), 10.0):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
