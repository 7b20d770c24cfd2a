# SPDX-License-Identifier: Apache-2.0
"""Symmetry groups, equivalent poses, and the nearest of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pose_refiner_ros.objects.symmetry import (
    MAX_DISCRETE,
    Axis,
    Symmetries,
    SymmetryError,
    axis_angle,
    rotation_angle,
)

X, Y, Z = Axis((1, 0, 0)), Axis((0, 1, 0)), Axis((0, 0, 1))
SHIFTED = Axis((0, 0.6, 0.8), (0.1, -0.2, 0.05))
GROUPS = {
    "none": Symmetries(),
    "half turn": Symmetries([Z.turn(np.pi)]),
    "box": Symmetries([Z.turn(np.pi), X.turn(np.pi)]),
    "cube": Symmetries([Z.turn(np.pi / 2), X.turn(np.pi / 2)]),
    "bottle": Symmetries(axes=(Z,)),
    "can": Symmetries([X.turn(np.pi)], (Z,)),
    "off centre": Symmetries(axes=(SHIFTED,)),
    "ball": Symmetries(axes=(Z, X)),
}


def random_pose(seed):
    rng = np.random.default_rng(seed)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = rng.normal(size=3)
    return pose


@pytest.mark.parametrize(
    ("generators", "size"),
    [
        ([], 1),
        ([Z.turn(np.pi)], 2),
        ([Z.turn(2 * np.pi / 5)], 5),
        ([Z.turn(2 * np.pi / 3), X.turn(np.pi)], 6),
        ([Z.turn(np.pi / 2), X.turn(np.pi / 2)], 24),
        ([Z.turn(2 * np.pi / 100)], 100),
    ],
)
def test_group_is_closed(generators, size):
    group = Symmetries(generators).discrete
    assert group.shape == (size, 4, 4)
    np.testing.assert_array_equal(group[0], np.eye(4))
    products = (group[:, None] @ group[None]).reshape(-1, 4, 4)
    distance = np.abs(products[:, None] - group[None]).max(axis=(2, 3)).min(axis=1)
    assert distance.max() < 1e-9


def test_rounded_matrices_as_in_bop_still_close():
    third = np.round(Z.turn(2 * np.pi / 3), 4)
    assert len(Symmetries([third]).discrete) == 3


def test_angle_that_does_not_divide_a_turn_is_an_error():
    with pytest.raises(SymmetryError, match=f"more than {MAX_DISCRETE}"):
        Symmetries([Z.turn(1.0)])


def test_axes_that_do_not_meet_are_an_error():
    other = Axis((0, 0, 1), (0.1, 0, 0))
    with pytest.raises(SymmetryError, match="shift"):
        Symmetries([Z.turn(np.pi), other.turn(np.pi)])
    with pytest.raises(SymmetryError, match="do not meet"):
        Symmetries(axes=(Z, other))
    with pytest.raises(SymmetryError, match="do not meet"):
        Symmetries(axes=(Z, Axis((1, 0, 0), (0, 0.1, 0))))


def test_discrete_symmetry_that_moves_the_axis_is_an_error():
    with pytest.raises(SymmetryError, match="moves the continuous axis"):
        Symmetries([X.turn(np.pi / 2)], (Z,))


def test_redundant_entries_are_folded():
    assert len(Symmetries([Z.turn(np.pi / 2)], (Z,)).discrete) == 1
    assert len(GROUPS["can"].discrete) == 2
    assert len(Symmetries(axes=(Z, Axis((0, 0, -2)))).axes) == 1
    assert len(Symmetries([X.turn(np.pi)], (X, Y, Z)).axes) == 2


@pytest.mark.parametrize("name", GROUPS)
def test_first_equivalent_pose_is_the_pose_itself(name):
    pose = random_pose(3)
    poses = pose @ GROUPS[name].transforms(steps=8)
    np.testing.assert_allclose(poses[0], pose)
    assert GROUPS[name].any == (len(poses) > 1)


@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(GROUPS)))
def test_closest_equivalent_beats_every_sample(seed, name):
    """The closed form against a fine sampling of the symmetries."""
    group = GROUPS[name]
    pose, reference = random_pose(seed), random_pose(seed + 1)
    closest = group.closest_equivalent(pose, reference)

    def angle(poses):
        return rotation_angle(reference[:3, :3].T @ poses[..., :3, :3])

    sampled = angle(pose @ group.transforms(steps=90))
    assert angle(closest) <= sampled.min() + 1e-9
    assert angle(closest) >= sampled.min() - np.radians(4 if name != "ball" else 180)
    # It is one of the equivalent poses: the symmetry that leads to it is one of the group's.
    symmetry = np.linalg.inv(pose) @ closest
    if not group.axes:
        assert np.abs(group.discrete - symmetry).max(axis=(1, 2)).min() < 1e-9
    else:
        center = np.append(group.axes[0].offset, 1)
        np.testing.assert_allclose(symmetry @ center, center, atol=1e-9)
        if len(group.axes) == 1:
            moved = symmetry[:3, :3] @ group.axes[0].direction
            assert abs(moved @ group.axes[0].direction) == pytest.approx(1)


def test_closest_equivalent_takes_batches():
    group = GROUPS["can"]
    poses = np.stack([random_pose(i) for i in range(6)]).reshape(2, 3, 4, 4)
    reference = random_pose(9)
    batch = group.closest_equivalent(poses, reference)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(
                batch[i, j], group.closest_equivalent(poses[i, j], reference), atol=1e-12
            )


@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(GROUPS)))
def test_equivalent_poses_have_no_rotation_error(seed, name):
    group = GROUPS[name]
    pose = random_pose(seed)
    others = pose @ group.transforms(steps=7)
    assert np.abs(group.reduced_rotation_error(others, pose)).max() < 1e-6


def test_rotation_error_across_the_axis_is_kept():
    pose = np.eye(4)
    tilted = X.turn(0.1) @ Z.turn(2.0)
    assert GROUPS["bottle"].reduced_rotation_error(tilted, pose) == pytest.approx(0.1)
    assert GROUPS["none"].reduced_rotation_error(X.turn(0.1), pose) == pytest.approx(0.1)


@given(angle=st.floats(0, np.pi), axis=st.sampled_from([0, 1, 2]))
def test_rotation_angle(angle, axis):
    assert rotation_angle(axis_angle(np.eye(3)[axis], angle)) == pytest.approx(angle, abs=1e-9)


def test_sphere_samples_are_spread_evenly():
    rotations = GROUPS["ball"].transforms(60)[:, :3, :3]
    away = rotation_angle(
        np.swapaxes(rotations, 1, 2) @ Rotation.random(random_state=0).as_matrix()
    )
    # The share of all rotations within an angle a of any one is (a - sin a) / pi.
    for a in (0.8, 1.5, 2.5):
        assert (away < a).mean() == pytest.approx((a - np.sin(a)) / np.pi, abs=0.02)


def test_bop_is_in_millimetres():
    entry = {
        "symmetries_discrete": [[-1, 0, 0, 40, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]],
        "symmetries_continuous": [{"axis": [0, 0, 1], "offset": [20, 0, 0]}],
    }
    symmetries = Symmetries.from_bop(entry)
    assert symmetries.axes[0].offset == (0.02, 0.0, 0.0)
    assert len(symmetries.discrete) == 1  # the half turn is about the same axis
    del entry["symmetries_continuous"]
    assert Symmetries.from_bop(entry).discrete[1, 0, 3] == pytest.approx(0.04)
    assert not Symmetries.from_bop({}).any


@pytest.mark.parametrize(
    ("config", "discrete", "axes"),
    [
        (None, 1, 0),
        ([], 1, 0),
        ({"axis": "z", "order": 2}, 2, 0),
        ({"axis": "z", "order": "continuous"}, 1, 1),
        ([{"axis": "z", "order": 4}, {"axis": [1, 0, 0], "order": 2}], 8, 0),
        ({"discrete": [{"axis": "y", "order": 3}]}, 3, 0),
        ({"discrete": [np.diag([-1, -1, 1, 1]).tolist()]}, 2, 0),
        ({"continuous": ["z"], "discrete": [{"axis": "x", "order": 2}]}, 2, 1),
        ({"continuous": [{"axis": [0, 0, 1], "offset": [0, 0.1, 0]}]}, 1, 1),
    ],
)
def test_library_forms(config, discrete, axes):
    symmetries = Symmetries.from_config(config)
    assert (len(symmetries.discrete), len(symmetries.axes)) == (discrete, axes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"axis": "w", "order": 2}, "'w' is not x, y, z"),
        ({"axis": "z"}, "order must be"),
        ({"axis": "z", "order": 1}, "from 2 to"),
        ({"axis": "z", "order": 2.5}, "order must be"),
        ({"axis": "z", "oder": 2}, "unknown key 'oder'"),
        ({"order": 2}, "has no 'axis'"),
        ({"axis": [0, 0, 0], "order": 2}, "no direction"),
        ({"axis": [0, 1], "order": 2}, "three numbers"),
        ({"discrete": 3}, "must be a list"),
        ({"discrete": [[1, 2, 3]]}, "16 numbers"),
        ({"discrete": [np.diag([2, 1, 1, 1]).tolist()]}, "not a rotation"),
        ({"discrete": [np.diag([-1, 1, 1, 1]).tolist()]}, "mirror"),
        ({"discrete": [np.full((4, 4), np.nan).tolist()]}, "16 numbers"),
        ("z", "must be a list"),
    ],
)
def test_bad_library_forms(config, message):
    with pytest.raises(SymmetryError, match=message):
        Symmetries.from_config(config)
