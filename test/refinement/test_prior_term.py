# SPDX-License-Identifier: Apache-2.0
"""Priors as a term: cost, derivatives, and what the solver makes of them."""

import numpy as np
import pytest
import warp as wp
from scipy.spatial.transform import Rotation
from shapes import angle_deg, pose, random_rotation, random_turn, turned

from pose_refiner_ros.refinement.prior_term import PosePrior, PriorTerm
from pose_refiner_ros.refinement.solver import Level, Reason, Solver

wp.config.quiet = True


def random_pose(rng: np.random.Generator) -> np.ndarray:
    result = pose(translation=rng.normal(size=3) + np.array([0, 0, 6]))
    result[:3, :3] = random_rotation(rng)
    return result


def random_information(rng: np.random.Generator) -> np.ndarray:
    root = rng.normal(size=(6, 6)) * np.array([3, 3, 1, 8, 8, 8])
    return root.T @ root + np.eye(6)


def random_prior(rng: np.random.Generator) -> PosePrior:
    return PosePrior(random_pose(rng), random_information(rng))


def accumulated(priors, poses):
    """Cost (B,), gradient (B, 6), Hessian (B, 6, 6) as the kernel has them."""
    term, solver = PriorTerm(len(priors)), Solver(len(priors))
    term.load(priors)
    solver.load(np.stack(poses), np.ones(len(poses)))
    solver._begin.launch()
    term.accumulate(solver.state)
    state = solver.state
    return (
        state.trial_cost.numpy().astype(np.float64),
        state.trial_gradient.numpy().astype(np.float64),
        state.trial_hessian.numpy().astype(np.float64),
    )


def perturbed(camera_from_object: np.ndarray, twist: np.ndarray) -> np.ndarray:
    result = camera_from_object.copy()
    result[:3, :3] = Rotation.from_rotvec(twist[3:]).as_matrix() @ result[:3, :3]
    result[:3, 3] += twist[:3]
    return result


@pytest.mark.parametrize("angle", [0.0, 1e-3, 0.09, 0.11, 0.8, 2.0, 3.0])
def test_derivatives_against_finite_differences(angle):
    """Of the same cost in float64."""
    rng = np.random.default_rng(int(100 * angle))
    priors = [random_prior(rng) for _ in range(6)]
    poses = [
        turned(p.camera_from_object, random_turn(rng, angle), rng.normal(size=3)) for p in priors
    ]
    cost, gradient, hessian = accumulated(priors, poses)
    step = 1e-5
    for i, (prior, at) in enumerate(zip(priors, poses, strict=True)):
        assert cost[i] == pytest.approx(prior.cost(at), rel=2e-4, abs=1e-4)
        moved = [[perturbed(at, sign * step * unit) for sign in (1, -1)] for unit in np.eye(6)]
        expected = [(prior.cost(a) - prior.cost(b)) / (2 * step) for a, b in moved]
        away = np.array([(prior.twist_to(a) - prior.twist_to(b)) / (2 * step) for a, b in moved]).T
        size = np.abs(gradient[i]).max() + 1e-3
        np.testing.assert_allclose(gradient[i] / size, np.array(expected) / size, atol=1e-3)
        # Gauss-Newton: the residual's derivative twice
        newton = away.T @ prior.information @ away
        size = np.abs(newton).max()
        np.testing.assert_allclose(hessian[i] / size, newton / size, atol=1e-3)


def test_a_pose_at_its_mean_costs_nothing():
    rng = np.random.default_rng(0)
    prior = random_prior(rng)
    cost, gradient, _ = accumulated([prior], [prior.camera_from_object])
    assert abs(cost[0]) < 1e-6 and np.abs(gradient).max() < 1e-2
    assert prior.cost(prior.camera_from_object) == 0.0
    twist = np.array([0.1, -0.2, 0.3, 0.2, 0.1, -0.4])
    moved = perturbed(prior.camera_from_object, twist)
    np.testing.assert_allclose(prior.twist_to(moved), twist, atol=1e-12)
    assert prior.cost(moved) == pytest.approx(0.5 * twist @ prior.information @ twist)


def test_no_prior_and_no_information_add_nothing():
    rng = np.random.default_rng(1)
    empty = PosePrior(random_pose(rng), np.zeros((6, 6)))
    for parts in accumulated([None, empty], [random_pose(rng), random_pose(rng)]):
        assert not parts.any()


def test_a_smaller_batch_forgets_the_larger_one():
    rng = np.random.default_rng(2)
    term, solver = PriorTerm(4), Solver(4)
    term.load([random_prior(rng) for _ in range(4)])
    term.load([None, None])
    solver.load(np.stack([random_pose(rng) for _ in range(2)]), np.ones(2))
    solver._begin.launch()
    term.accumulate(solver.state)
    assert not solver.state.trial_cost.numpy().any()


class Weight:
    """Evidence without an opinion: the solver stops where there is none at all."""

    level = 0

    def set_level(self, index):
        pass

    def accumulate(self, state):
        state.trial_weight.numpy()[:] += 1.0

    def fit(self, state):
        return None


def test_priors_alone_lead_to_their_means():
    rng = np.random.default_rng(3)
    priors = [random_prior(rng) for _ in range(8)]
    starts = [
        turned(p.camera_from_object, random_turn(rng, 1.2), 0.4 * rng.normal(size=3))
        for p in priors
    ]
    term, solver = PriorTerm(8), Solver(8)
    term.load(priors)
    solver.load(np.stack(starts), np.full(8, 4.0))
    solver.run([Weight(), term], (Level(0, 60, 1e-3),))
    result = solver.result()
    assert (result["reason"] == Reason.CONVERGED).all()
    for found, prior in zip(result["camera_from_object"], priors, strict=True):
        assert angle_deg(found, prior.camera_from_object) < 0.1
        np.testing.assert_allclose(found[:3, 3], prior.camera_from_object[:3, 3], atol=2e-3)


def test_an_object_of_which_nothing_is_seen_is_not_moved_by_its_prior():
    rng = np.random.default_rng(4)
    prior, start = random_prior(rng), random_pose(rng)
    term, solver = PriorTerm(1), Solver(1)
    term.load([prior])
    solver.load(start[None], np.ones(1))
    solver.run([term], (Level(0, 20, 1e-3),))
    result = solver.result()
    assert result["reason"][0] == Reason.NO_EVIDENCE
    np.testing.assert_allclose(result["camera_from_object"][0], start, atol=1e-5)


def test_turned_axes_change_no_cost():
    rng = np.random.default_rng(5)
    prior, at, R = random_prior(rng), random_pose(rng), random_rotation(rng)
    transform = np.eye(4)
    transform[:3, :3] = R
    there = prior.turned(R)
    np.testing.assert_allclose(
        there.camera_from_object, transform @ prior.camera_from_object, atol=1e-12
    )
    assert there.cost(transform @ at) == pytest.approx(prior.cost(at), rel=1e-9)
    back = there.turned(R.T)
    np.testing.assert_allclose(back.information, prior.information, atol=1e-9)
