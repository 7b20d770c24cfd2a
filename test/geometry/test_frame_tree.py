# SPDX-License-Identifier: Apache-2.0
"""Frames that hang on each other: chains both ways, motion in between, and what is not known."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pose_refiner_ros.geometry.frame_tree import HOLD_SECONDS, KEEP, FrameTree
from pose_refiner_ros.geometry.pose import inverse, rigid


def at(x=0.0, y=0.0, z=0.0, turn=(0.0, 0.0, 0.0)):
    """turn: degrees."""
    return rigid(Rotation.from_rotvec(turn, degrees=True).as_matrix(), (x, y, z))


MAST, CAMERA, LIDAR = at(1, 0, 2), at(0, 0.1, 0, (0, 90, 0)), at(0, 0, 0.5, (10, 20, -30))


@pytest.fixture
def robot():
    """A camera and a lidar on a robot: two branches, one of them of two links."""
    tree = FrameTree()
    tree.add("base", "mast", 5.0, MAST, True)
    tree.add("mast", "camera", 5.0, CAMERA, True)
    tree.add("base", "lidar", 5.0, LIDAR, True)
    return tree


@pytest.fixture
def moving():
    """A frame that goes along x and turns about z, seen at 1 and at 2 seconds."""
    tree = FrameTree()
    tree.add("base", "arm", 1.0, at(0), False)
    tree.add("base", "arm", 2.0, at(2, 4, turn=(0, 0, 90)), False)
    return tree


@pytest.mark.parametrize(
    "target, source, expected",
    [
        ("base", "mast", MAST),
        ("base", "camera", MAST @ CAMERA),
        ("camera", "base", inverse(MAST @ CAMERA)),
        ("camera", "mast", inverse(CAMERA)),
        ("camera", "lidar", inverse(MAST @ CAMERA) @ LIDAR),
        ("lidar", "camera", inverse(LIDAR) @ MAST @ CAMERA),
        ("camera", "camera", np.eye(4)),
    ],
)
@pytest.mark.parametrize("stamp", [0.0, 5.0, 1e9])
def test_static_frames_hold_at_all_times_in_both_directions(robot, target, source, expected, stamp):
    np.testing.assert_allclose(robot.matrix(target, source, stamp), expected, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_a_moving_frame_is_interpolated(moving, share):
    expected = at(2 * share, 4 * share, turn=(0, 0, 90 * share))
    np.testing.assert_allclose(moving.matrix("base", "arm", 1.0 + share), expected, atol=1e-12)
    found = moving.matrix("arm", "base", 1.0 + share)
    np.testing.assert_allclose(found, inverse(expected), atol=1e-12)


def test_transforms_may_come_in_any_order(moving):
    moving.add("base", "arm", 1.5, at(7), False)
    assert moving.matrix("base", "arm", 1.25)[0, 3] == pytest.approx(3.5)
    assert moving.matrix("base", "arm", 1.75)[0, 3] == pytest.approx(4.5)


def test_of_two_transforms_with_one_stamp_the_later_holds(moving):
    moving.add("base", "arm", 2.0, at(9), False)
    assert moving.matrix("base", "arm", 2.0)[0, 3] == 9


def test_static_and_moving_links_make_one_chain(moving):
    moving.add("arm", "hand", 0.0, at(1), True)
    expected = at(1, 2, turn=(0, 0, 45)) @ at(1)
    np.testing.assert_allclose(moving.matrix("base", "hand", 1.5), expected, atol=1e-12)


@pytest.mark.parametrize("stamp, x", [(1.0 - 0.9 * HOLD_SECONDS, 0), (2.0 + 0.9 * HOLD_SECONDS, 2)])
def test_a_moving_frame_is_held_for_a_moment(moving, stamp, x):
    assert moving.matrix("base", "arm", stamp)[0, 3] == x


@pytest.mark.parametrize("stamp, gap", [(0.75, r"\+0\.25"), (2.75, r"-0\.75")])
def test_beyond_that_the_gap_is_told(moving, stamp, gap):
    """Before or after the stamp asked for: positive means that it was seen later."""
    with pytest.raises(LookupError, match=f"'arm' was .*seen {gap} s from the stamp asked for"):
        moving.matrix("base", "arm", stamp)


@pytest.mark.parametrize("target, source", [("base", "moon"), ("moon", "base"), ("moon", "sun")])
def test_unknown_frames_are_named(robot, target, source):
    with pytest.raises(LookupError, match=f"no transform from '{source}' to '{target}'"):
        robot.matrix(target, source, 5.0)


def test_trees_that_do_not_meet_have_no_transform(robot):
    robot.add("other_base", "other_camera", 5.0, at(1), True)
    with pytest.raises(LookupError, match="no transform from 'other_camera' to 'camera'"):
        robot.matrix("camera", "other_camera", 5.0)


@pytest.mark.parametrize("frames", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_frames_that_hang_on_each_other_are_named(frames):
    tree = FrameTree()
    for child, parent in zip(frames, [*frames[1:], frames[0]], strict=True):
        tree.add(parent, child, 0.0, np.eye(4), True)
    with pytest.raises(LookupError, match=" > ".join([*frames, "a"])):
        tree.matrix("map", "a", 0.0)


@pytest.mark.parametrize("static", [True, False])
def test_a_frame_that_gets_a_new_parent_leaves_the_old_one(static):
    tree = FrameTree()
    tree.add("table", "cup", 1.0, at(1), static)
    tree.add("hand", "cup", 1.1, at(2), static)
    assert tree.matrix("hand", "cup", 1.0)[0, 3] == 2
    with pytest.raises(LookupError, match="from 'cup' to 'table'"):
        tree.matrix("table", "cup", 1.0)


def test_a_static_frame_that_is_told_anew_replaces_itself(robot):
    for stamp in (4.0, 6.0):
        robot.add("base", "lidar", stamp, at(stamp), True)
        assert robot.matrix("base", "lidar", 5.0)[0, 3] == stamp


def test_many_transforms_are_bounded_and_the_newest_kept():
    tree = FrameTree()
    for i in range(KEEP + 500):
        tree.add("base", "arm", 0.01 * i, at(i), False)
        tree.add("base", "mast", 0.01 * i, at(i), True)
    assert len(tree._links["arm"].stamps) == len(tree._links["arm"].poses) == KEEP
    assert len(tree._links["mast"].stamps) == 1
    last = KEEP + 499
    assert tree.matrix("base", "arm", 0.01 * last)[0, 3] == last
    with pytest.raises(LookupError):
        tree.matrix("base", "arm", 0.0)


def test_time_that_starts_again_forgets_what_was():
    tree = FrameTree()
    for run, place in enumerate((1.0, 2.0)):
        for stamp in (10.0, 10.5, 11.0, 11.5, 12.0):
            tree.add("odom", "camera", stamp, rigid(np.eye(3), (place, 0, 0)), False)
        assert tree.matrix("odom", "camera", 10.7)[0, 3] == place, run
