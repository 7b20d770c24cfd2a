# SPDX-License-Identifier: Apache-2.0
"""Priors as a term: cost, derivatives, and what the solver makes of them."""

import numpy as np
import pytest
import warp as wp
from shapes import angle_deg, pose, random_rotation, random_turn, turned

from pose_refiner_ros.geometry.pose import about_point, twist_between
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch, allocate
from pose_refiner_ros.refinement.solver import Level, Solver
from pose_refiner_ros.refinement.terms.prior import PosePrior, PriorTerm

wp.config.quiet = True
AT_ORIGIN = {"thing": np.zeros(3)}


def random_pose(rng: np.random.Generator) -> np.ndarray:
    result = pose(translation=rng.normal(size=3) + np.array([0, 0, 6]))
    result[:3, :3] = random_rotation(rng)
    return result


def random_information(rng: np.random.Generator) -> np.ndarray:
    root = rng.normal(size=(6, 6)) * np.array([3, 3, 1, 8, 8, 8])
    return root.T @ root + np.eye(6)


def random_prior(rng: np.random.Generator) -> PosePrior:
    return PosePrior(random_pose(rng), random_information(rng))


def hypotheses(priors) -> list[Hypothesis]:
    return [Hypothesis("thing", np.eye(4), prior) for prior in priors]


def cost_of(prior: PosePrior, reference_from_object: np.ndarray) -> float:
    """Half the squared Mahalanobis distance, in float64."""
    away = twist_between(prior.reference_from_object, reference_from_object)
    return 0.5 * away @ prior.information @ away


def looked_at(term, poses, active=None):
    """Cost (B,), gradient (B, 6), Hessian (B, 6, 6) and weight as the kernel has them."""
    poses = np.stack(poses)
    batch, out = (allocate(struct, len(poses), "cpu") for struct in (PoseBatch, NormalEquations))
    batch.active.numpy()[:] = 1 if active is None else active
    batch.rotation.numpy()[:] = poses[:, :3, :3]
    batch.translation.numpy()[:] = poses[:, :3, 3]
    term.linearize(batch, 0, out)
    names = ("cost", "gradient", "hessian", "weight")
    return [getattr(out, name).numpy().astype(np.float64) for name in names]


def linearized(priors, poses):
    term = PriorTerm(AT_ORIGIN, len(priors))
    term.load(hypotheses(priors), [])
    return looked_at(term, poses)


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.09, 0.11, 0.8, 2.0, 3.0])
def test_derivatives_against_finite_differences(angle):
    """Of the same cost in float64."""
    rng = np.random.default_rng(int(100 * angle))
    priors = [random_prior(rng) for _ in range(6)]
    poses = [
        turned(p.reference_from_object, random_turn(rng, angle), rng.normal(size=3)) for p in priors
    ]
    cost, gradient, hessian, _ = linearized(priors, poses)
    step = 1e-5
    for i, (prior, at) in enumerate(zip(priors, poses, strict=True)):
        assert cost[i] == pytest.approx(cost_of(prior, at), rel=2e-4, abs=1e-4)
        steps = [(step * unit, -step * unit) for unit in np.eye(6)]
        moved = [[turned(at, twist[3:], twist[:3]) for twist in both] for both in steps]
        expected = [(cost_of(prior, a) - cost_of(prior, b)) / (2 * step) for a, b in moved]
        twists = [[twist_between(prior.reference_from_object, one) for one in two] for two in moved]
        away = np.array([(a - b) / (2 * step) for a, b in twists]).T
        size = np.abs(gradient[i]).max() + 1e-3
        np.testing.assert_allclose(gradient[i] / size, np.array(expected) / size, atol=1e-3)
        # Gauss-Newton: the residual's derivative twice
        newton = away.T @ prior.information @ away
        size = np.abs(newton).max()
        np.testing.assert_allclose(hessian[i] / size, newton / size, atol=1e-3)


def test_a_pose_at_its_mean_costs_nothing():
    rng = np.random.default_rng(0)
    prior = random_prior(rng)
    cost, gradient, _, _ = linearized([prior], [prior.reference_from_object])
    assert abs(cost[0]) < 1e-6 and np.abs(gradient).max() < 1e-2
    twist = np.array([0.1, -0.2, 0.3, 0.2, 0.1, -0.4])
    moved = turned(prior.reference_from_object, twist[3:], twist[:3])
    cost, _, _, _ = linearized([prior], [moved])
    assert cost[0] == pytest.approx(0.5 * twist @ prior.information @ twist, rel=1e-4)


def test_poses_that_turn_about_another_point_of_the_object_cost_the_same():
    """What is known about the origin is 5 m beside the object that turns."""
    rng = np.random.default_rng(7)
    prior, pivot = random_prior(rng), np.array([3.0, -4.0, 0.5])
    term = PriorTerm({"thing": pivot}, 1)
    term.load(hypotheses([prior]), [])
    for _ in range(5):
        twist = 1e-3 * rng.normal(size=6)
        at = turned(prior.reference_from_object, twist[3:], twist[:3])
        cost, gradient, *_ = looked_at(term, [about_point(at, pivot)])
        assert cost[0] == pytest.approx(cost_of(prior, at), rel=0.02)
        size = 1e-4  # along a turn about that point
        for axis in np.eye(3):
            moved = [
                about_point(turned(about_point(at, pivot), sign * size * axis), -pivot)
                for sign in (1, -1)
            ]
            expected = (cost_of(prior, moved[0]) - cost_of(prior, moved[1])) / (2 * size)
            largest = np.abs(gradient).max()
            assert gradient[0, 3:] @ axis == pytest.approx(expected, abs=0.02 * largest)


def test_no_prior_and_no_information_add_nothing():
    rng = np.random.default_rng(1)
    empty = PosePrior(random_pose(rng), np.zeros((6, 6)))
    for parts in linearized([None, empty], [random_pose(rng), random_pose(rng)]):
        assert not parts.any()


def test_a_prior_is_no_evidence():
    """Nor does it count as a residual: the solver stops where nothing else is seen."""
    rng = np.random.default_rng(1)
    *_, weight = linearized([random_prior(rng)], [random_pose(rng)])
    assert not weight.any()


def test_a_smaller_batch_forgets_the_larger_one():
    rng = np.random.default_rng(2)
    priors, poses = [random_prior(rng) for _ in range(4)], [random_pose(rng) for _ in range(4)]
    term = PriorTerm(AT_ORIGIN, 4)
    term.load(hypotheses(priors), [])
    looked_at(term, poses)
    term.load(hypotheses([None, priors[3]]), [])
    assert term.sees.tolist() == [False, True]
    cost, *_ = looked_at(term, poses[:2])
    assert cost[0] == 0.0 and cost[1] == pytest.approx(cost_of(priors[3], poses[1]), rel=1e-3)
    np.testing.assert_array_equal(term.fit().cost, [0.0, np.float32(cost[1])])
    term.load(hypotheses([None, None]), [])
    assert not term.sees.any()
    assert not term.fit().cost.any()


def test_poses_that_are_not_active_are_left_alone():
    rng = np.random.default_rng(6)
    priors, poses = [random_prior(rng) for _ in range(3)], [random_pose(rng) for _ in range(3)]
    term = PriorTerm(AT_ORIGIN, 3)
    term.load(hypotheses(priors), [])
    whole = looked_at(term, poses)
    before = term.fit().cost
    part = looked_at(term, poses[::-1], active=[0, 1, 0])
    for found, expected in zip(part, whole, strict=True):
        np.testing.assert_array_equal(found[1], expected[1])
        assert not found[[0, 2]].any()
    np.testing.assert_array_equal(term.fit().cost, before)


class Weight:
    """Evidence without an opinion: the solver stops where there is none at all."""

    name, finest = "weight", 0

    def __init__(self, count):
        self.sees = np.ones(count, bool)

    def begin_level(self, poses, scale):
        pass

    def linearize(self, poses, scale, out):
        out.weight.numpy()[:] += 1.0

    def fit(self):
        return None


def test_priors_alone_lead_to_their_means():
    rng = np.random.default_rng(3)
    priors = [random_prior(rng) for _ in range(8)]
    starts = [
        turned(p.reference_from_object, random_turn(rng, 1.2), 0.4 * rng.normal(size=3))
        for p in priors
    ]
    term, solver = PriorTerm(AT_ORIGIN, 8), Solver(8)
    term.load(hypotheses(priors), [])
    solver.load(np.stack(starts), np.full(8, 4.0))
    solver.run([Weight(8), term], (Level(60, 1e-3, {"weight": 0, "prior": 0}),))
    result = solver.result()
    assert (result["reason"] == "converged").all()
    for found, prior in zip(result["reference_from_object"], priors, strict=True):
        assert angle_deg(found, prior.reference_from_object) < 0.1
        np.testing.assert_allclose(found[:3, 3], prior.reference_from_object[:3, 3], atol=2e-3)


def test_an_object_of_which_nothing_is_seen_is_not_moved_by_its_prior():
    rng = np.random.default_rng(4)
    prior, start = random_prior(rng), random_pose(rng)
    term, solver = PriorTerm(AT_ORIGIN, 1), Solver(1)
    term.load(hypotheses([prior]), [])
    solver.load(start[None], np.ones(1))
    solver.run([term], (Level(20, 1e-3, {"prior": 0}),))
    result = solver.result()
    assert result["reason"][0] == "no_evidence"
    np.testing.assert_allclose(result["reference_from_object"][0], start, atol=1e-5)
