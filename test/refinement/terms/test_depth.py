# SPDX-License-Identifier: Apache-2.0
"""Measured points as a term: cost, derivatives, what counts and what does not."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from shapes import box, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.geometry.pose import about_point, rigid, rotation_angle
from pose_refiner_ros.objects.surface import ranges_to_surface
from pose_refiner_ros.refinement.depth_points import MOST_POINTS
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch, allocate
from pose_refiner_ros.refinement.observation import Observation, observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.terms.depth import SCALES, DepthTerm

CAMERA = pinhole_camera(320, 400.0)
ELL, BOX = model("ell", ell()), model("box", box())
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))
STEPS = np.diag([1e-4] * 3 + [1e-3] * 3)


def seen(truth=TRUTH, thing=ELL, sigma=0.002, offset=0.005, noise=0.0) -> Observation:
    """Its mask, and a point on every pixel of a lattice in it."""
    masks = silhouette(thing.mesh, truth, CAMERA)
    rows, columns = np.nonzero(masks)
    chosen = (rows % 8 == 0) & (columns % 8 == 0)
    rays = CAMERA.rays(np.stack([columns, rows], axis=-1)[chosen].astype(float))
    ranges = ranges_to_surface(thing, truth[None], rays)[0]
    met = np.isfinite(ranges)
    ranges = ranges[met] + np.random.default_rng(0).normal(0.0, noise, met.sum())
    points = np.column_stack([rays[met] * ranges[:, None], np.full(met.sum(), sigma)])
    return observe_mask(masks, 1, CAMERA).with_points(
        points.astype(np.float32)[:MOST_POINTS], offset
    )


class Look:
    """What the term says of poses of one object seen so."""

    def __init__(self, observations, thing=ELL):
        self.thing, self.observations = thing, observations
        self.term = DepthTerm({thing.name: thing}, {thing.name: thing.box_center}, 4)
        self.term.observe(observations)

    def at(self, pose: np.ndarray, scale: int = 1):
        """cost, gradient (6,), hessian (6, 6), fit."""
        rows = [(0, one) for one in self.observations]
        self.term.load([Hypothesis(self.thing.name, pose)], rows)
        poses, out = (allocate(struct, 1, "cpu") for struct in (PoseBatch, NormalEquations))
        middle = about_point(pose, self.thing.box_center)
        poses.active.numpy()[:] = 1
        poses.rotation.numpy()[0] = middle[:3, :3]
        poses.translation.numpy()[0] = middle[:3, 3]
        for _ in range(6):  # the offset settles
            for name in NormalEquations.vars:
                getattr(out, name).zero_()
            self.term.linearize(poses, scale, out)
        values = (getattr(out, name).numpy()[0] for name in ("cost", "gradient", "hessian"))
        return *(np.float64(value) for value in values), self.term.fit()


def stepped(pose: np.ndarray, twist: np.ndarray, thing=ELL) -> np.ndarray:
    middle = turned(about_point(pose, thing.box_center), twist[3:], twist[:3])
    return about_point(middle, -thing.box_center)


@pytest.mark.parametrize("scale", range(len(SCALES)))
@pytest.mark.parametrize("offset", [1e-6, 0.005], ids=["exact", "offset"])
def test_the_gradient_is_the_finite_difference(scale, offset):
    look = Look([seen(thing=BOX, offset=offset)], BOX)
    start = turned(TRUTH, (0.02, -0.015, 0.02), (0.002, -0.002, 0.003))
    _, gradient, _, _ = look.at(start, scale)
    for axis, step in enumerate(STEPS):
        ahead, behind = (look.at(stepped(start, sign * step, BOX), scale)[0] for sign in (1, -1))
        expected = (ahead - behind) / (2.0 * step[axis])
        assert gradient[axis] == pytest.approx(expected, abs=0.06 * np.abs(gradient[:3]).max())


def test_the_truth_costs_next_to_nothing_and_all_agree():
    cost, gradient, hessian, fit = Look([seen()]).at(TRUTH)
    worse, _, _, other = Look([seen()]).at(turned(TRUTH, (0.2, 0, 0), (0.01, 0, 0)))
    assert cost < 0.02 * worse
    assert fit.covered[0] > 0.97 > other.covered[0] and fit.rms[0] < 0.3 < other.rms[0]
    assert np.linalg.eigvalsh(hessian).min() > 0.0
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-4)


def test_an_offset_of_all_distances_explains_a_shift_along_the_rays():
    """So along them a pose is known no better than the offset, whatever the number of points."""
    ray = TRUTH[:3, 3] / np.linalg.norm(TRUTH[:3, 3])
    information = {}
    for offset in (1e-6, 0.005):
        _, _, hessian, _ = Look([seen(offset=offset)]).at(TRUTH)
        information[offset] = ray @ hessian[:3, :3] @ ray
    unit = information[1e-6] / 256  # roughly, of a point
    assert information[0.005] < 0.1 * information[1e-6] and unit > 0.0


def test_what_lies_behind_the_object_does_not_pull():
    """Points of a wall seen through glass, or at a wrong mask's border."""
    real = seen()
    behind = real.points.copy()
    behind[:, :3] *= 1.6
    _, gradient, hessian, fit = Look([real.with_points(behind, 0.005)]).at(TRUTH)
    assert fit.covered[0] == 0.0
    assert np.abs(hessian).max() < 1e-2 * np.abs(Look([real]).at(TRUTH)[2]).max()
    assert np.isfinite(gradient).all()


def test_a_camera_elsewhere_says_the_same_of_the_pose():
    reference_from_camera = pose((0.2, 1.0, -0.3), (0.5, -0.2, 0.1))
    here = Look([seen()]).at(stepped(TRUTH, np.full(6, 0.004)))
    elsewhere = replace(seen(), reference_from_camera=reference_from_camera)
    moved = reference_from_camera @ stepped(TRUTH, np.full(6, 0.004))
    there = Look([elsewhere]).at(moved)
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = reference_from_camera[:3, :3]
    assert there[0] == pytest.approx(here[0], rel=1e-3)
    scale = np.abs(here[1]).max()
    np.testing.assert_allclose(there[1], turn @ here[1], atol=2e-3 * scale)
    np.testing.assert_allclose(there[2], turn @ here[2] @ turn.T, atol=2e-3 * np.abs(here[2]).max())


def test_two_observations_add_up():
    one, other = seen(), seen(noise=0.001)
    single = [Look([each]).at(TRUTH) for each in (one, other)]
    cost, gradient, hessian, _ = Look([one, other]).at(TRUTH)
    assert cost == pytest.approx(single[0][0] + single[1][0], rel=1e-4)
    np.testing.assert_allclose(hessian, single[0][2] + single[1][2], rtol=1e-3, atol=1.0)


def test_objects_without_points_are_left_alone():
    plain = observe_mask(silhouette(BOX.mesh, TRUTH, CAMERA), 1, CAMERA)
    term = DepthTerm({"ell": ELL, "box": BOX}, {"ell": np.zeros(3), "box": np.zeros(3)}, 4)
    term.observe([plain, seen()])
    measured = seen()
    term.observe([plain, measured])
    term.load([Hypothesis("box", TRUTH), Hypothesis("ell", TRUTH)], [(0, plain), (1, measured)])
    assert term.sees.tolist() == [False, True]


def test_rough_masks_with_depth_end_nearer():
    """Half the border of the mask is off by 3 pixels: depth holds the distance."""
    masks = silhouette(ELL.mesh, TRUTH, CAMERA)
    grown = cv2.dilate(masks, np.ones((7, 7), np.uint8))
    rough = np.where(np.arange(320)[None] > 165, grown, masks).astype(np.uint8)
    start = turned(TRUTH, (0.2, -0.1, 0.15), (0.01, -0.01, 0.03))
    alone = observe_mask(rough, 1, CAMERA)
    points = seen(noise=0.001).points
    errors = {}
    for name, view in (("alone", alone), ("depth", alone.with_points(points, 0.003))):
        (found,) = Refiner([ELL]).refine([[view]], [[Hypothesis("ell", start)]], keep=1)
        best = found[0].reference_from_object
        errors[name] = abs(best[2, 3] - TRUTH[2, 3])
        turn = float(np.degrees(rotation_angle(best[:3, :3].T @ TRUTH[:3, :3])))
        assert turn < 6.0
        assert ("depth" in found[0].fits) == (name == "depth")
    assert errors["depth"] < 0.012 and errors["depth"] < 0.5 * errors["alone"]


def test_origins_far_away_change_nothing():
    far = np.array([1000.0, -500.0, 30.0])
    moved = model("far", type(ELL.mesh)(ELL.mesh.vertices + far, ELL.mesh.faces))
    near = Look([seen()]).at(TRUTH)
    there = Look([seen()], moved).at(TRUTH @ rigid(np.eye(3), -far))
    assert there[0] == pytest.approx(near[0], abs=0.05) and there[3].covered[0] > 0.97
