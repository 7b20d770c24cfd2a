# SPDX-License-Identifier: Apache-2.0
"""Algebra of rigid transforms, against general matrices and small steps."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from shapes import pose, random_rotation

from pose_refiner_ros.geometry.pose import (
    about,
    about_point,
    in_axes,
    information_about,
    inverse,
    rotated,
    rotation_angle,
    twist_between,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def a_pose(rng) -> np.ndarray:
    result = pose(translation=rng.normal(size=3))
    result[:3, :3] = random_rotation(rng)
    return result


def test_the_inverse_is_the_matrix_inverse(rng):
    for _ in range(20):
        one = a_pose(rng)
        np.testing.assert_allclose(inverse(one), np.linalg.inv(one), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-3, 1.0, np.pi - 1e-3, np.pi - 1e-9, np.pi])
def test_a_twist_leads_from_one_pose_to_the_other(rng, angle):
    for _ in range(20):
        start, axis, shift = a_pose(rng), rng.normal(size=3), rng.normal(size=3)
        w = angle * axis / np.linalg.norm(axis)
        end = rotated(start, w)
        end[:3, 3] += shift
        found = twist_between(start, end)
        np.testing.assert_allclose(found[:3], shift, atol=1e-12)
        assert rotation_angle(end[:3, :3] @ start[:3, :3].T) == pytest.approx(angle, abs=1e-7)
        again = Rotation.from_rotvec(found[3:]).as_matrix() @ start[:3, :3]
        np.testing.assert_allclose(again, end[:3, :3], atol=1e-7)


def test_other_axes_and_points_change_no_mahalanobis_distance(rng):
    root = rng.normal(size=(6, 6))
    information = root @ root.T + np.eye(6)
    turn, step = random_rotation(rng), rng.normal(size=6)
    turned = np.concatenate([turn @ step[:3], turn @ step[3:]])
    assert turned @ in_axes(turn, information) @ turned == pytest.approx(
        step @ information @ step, rel=1e-9
    )
    np.testing.assert_allclose(in_axes(turn.T, in_axes(turn, information)), information, atol=1e-9)
    offset = rng.normal(size=3)
    np.testing.assert_allclose(
        np.linalg.inv(about(offset, np.linalg.inv(information))),
        information_about(offset, information),
        rtol=1e-7,
        atol=1e-9,
    )


def test_a_pose_about_a_point_of_its_object(rng):
    one, point = a_pose(rng), rng.normal(size=3)
    moved = about_point(one, point)
    np.testing.assert_allclose(moved[:3, 3], (one @ [*point, 1.0])[:3])
    np.testing.assert_allclose(about_point(moved, -point), one, atol=1e-12)
