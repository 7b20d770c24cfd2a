# SPDX-License-Identifier: Apache-2.0
"""Which poses are the same, and which are worth more."""

import numpy as np
import pytest
from shapes import angle_deg, box, cylinder, ell, guesses, model, pose, random_rotation, turned

from pose_refiner_ros.geometry.pose import about_point, inverse, rigid
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.symmetry import Axis, Symmetries
from pose_refiner_ros.refinement.hypotheses import around, best_distinct, same_pose

ELL = model("ell", ell())
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
HERE = np.eye(4)


def test_poses_a_few_degrees_or_a_tenth_of_the_object_apart_are_one():
    assert same_pose(TRUTH, turned(TRUTH, (0.1, 0, 0)), ELL, HERE)
    assert not same_pose(TRUTH, turned(TRUTH, (0.2, 0, 0)), ELL, HERE)
    reach = 0.1 * ELL.diameter + 0.05 * 0.6
    assert same_pose(TRUTH, turned(TRUTH, (0, 0, 0), (0, 0, 0.9 * reach)), ELL, HERE)
    assert not same_pose(TRUTH, turned(TRUTH, (0, 0, 0), (0, 0, 1.2 * reach)), ELL, HERE)


def test_far_away_distances_are_less_sure_whatever_the_reference_is():
    """The depth is that along the camera's axis, wherever the camera is."""
    rng = np.random.default_rng(0)
    far = turned(TRUTH, (0, 0, 0), (0, 0, 20.0))
    other = turned(far, (0, 0, 0), (0, 0, 0.9))
    assert same_pose(far, other, ELL, HERE)
    camera_from_reference = rigid(random_rotation(rng), 50.0 * rng.normal(size=3))
    there = inverse(camera_from_reference)
    assert same_pose(there @ far, there @ other, ELL, camera_from_reference)
    near, off = turned(TRUTH, (0, 0, 0)), turned(TRUTH, (0, 0, 0), (0, 0, 0.9))
    assert not same_pose(there @ near, there @ off, ELL, camera_from_reference)


def test_what_looks_the_same_is_one():
    half = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0))]))
    assert same_pose(TRUTH, TRUTH @ half.discrete[-1], model("box", box(), symmetries=half), HERE)
    assert not same_pose(TRUTH, TRUTH @ half.discrete[-1], model("box", box()), HERE)
    can = model("can", cylinder(), symmetries=Symmetries(axes=(Axis((0, 0, 1)),)))
    assert same_pose(TRUTH, TRUTH @ pose((0, 0, 2.0), (0, 0, 0)), can, HERE)


def test_the_place_is_that_of_the_objects_middle():
    """A turn of 5 degrees about it shifts an origin 10 m away by a metre."""
    offset = np.array([10.0, -3.0, 2.0])
    far = model("far", Mesh(ell().vertices + offset, ell().faces))
    a = about_point(TRUTH, -offset)
    b = about_point(turned(TRUTH, (0.0, 0.09, 0.0)), -offset)
    assert np.linalg.norm(a[:3, 3] - b[:3, 3]) > 0.5
    assert same_pose(a, b, far, HERE)


def found(*costs_and_turns):
    results = []
    for cost, turn in costs_and_turns:
        (one,) = guesses("ell", turned(TRUTH, (0, 0, turn)))
        one.cost = cost
        results.append(one)
    return results


def test_the_best_that_differ_come_best_first():
    given = found((3.0, 0.0), (1.0, 0.05), (2.0, 1.0), (5.0, 1.02), (4.0, 2.0), (np.nan, 3.0))
    chosen = best_distinct(given, ELL, HERE, keep=9)
    assert [one.cost for one in chosen] == [1.0, 2.0, 4.0]
    assert [one.cost for one in best_distinct(given, ELL, HERE, keep=2)] == [1.0, 2.0]
    assert chosen[0] is given[1]
    assert best_distinct(found((np.inf, 0.0)), ELL, HERE, keep=1) == []
    assert best_distinct([], ELL, HERE, keep=1) == []


def test_those_far_behind_the_best_are_given_up():
    given = found((10.0, 0.0), (12.9, 1.0), (13.1, 2.0))
    assert [one.cost for one in best_distinct(given, ELL, HERE, 9, behind=0.3)] == [10.0, 12.9]
    below = found((-10.0, 0.0), (-7.1, 1.0), (-6.9, 2.0))
    assert [one.cost for one in best_distinct(below, ELL, HERE, 9, behind=0.3)] == [-10.0, -7.1]


@pytest.mark.parametrize("point", [(0.0, 0.0, 0.0), (5.0, -2.0, 1.0)])
def test_starts_around_a_pose_turn_it_about_a_point_of_the_object(point):
    starts = around(TRUTH, 0.3, np.array(point))
    assert len(starts) == 6
    for one in starts:
        assert angle_deg(one, TRUTH) == pytest.approx(np.degrees(0.3))
        np.testing.assert_allclose(
            about_point(one, point)[:3, 3], about_point(TRUTH, point)[:3, 3], atol=1e-12
        )
    apart = [angle_deg(a, b) for i, a in enumerate(starts) for b in starts[:i]]
    assert min(apart) > 20.0
