# SPDX-License-Identifier: Apache-2.0
"""The solver alone, on a problem whose answer is known: points that are to meet their places."""

import numpy as np
import pytest
from shapes import angle_deg, pose, random_rotation, random_turn, turned

from pose_refiner_ros.refinement.solver import Level, Reason, Solver

LEVELS = (Level(0, 40, 1e-4),)


class PointTerm:
    """Half the squared distances of points (P, 3) from their places (B, P, 3), times 100² pixels.

    The terms' protocol, in numpy on the CPU's arrays.
    """

    def __init__(self, points, places, weight=None):
        self.points = np.asarray(points, np.float64)
        self.places = np.asarray(places, np.float64)
        self.weight = np.ones(len(self.places)) if weight is None else np.asarray(weight)
        self.level = 0
        self.calls = 0
        self.levels = []

    def set_level(self, index):
        self.level = index
        self.levels.append(index)

    def accumulate(self, state):
        self.calls += 1
        active = state.active.numpy()
        for i in range(len(self.places)):
            if active[i]:
                self.add(state, i)

    def add(self, state, i):
        R, t = state.trial_rotation.numpy()[i], state.trial_translation.numpy()[i]
        arm = self.points @ R.T.astype(np.float64)
        residual = 100 * (arm + t - self.places[i])
        zero = np.zeros(len(arm))
        x, y, z = arm.T
        turn = np.stack([
            np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1), np.stack([y, -x, zero], 1)
        ], 1)  # fmt: skip
        jacobian = 100 * np.concatenate([np.tile(np.eye(3), (len(arm), 1, 1)), turn], axis=2)
        share = self.weight[i] / len(arm)
        state.trial_hessian.numpy()[i] += share * np.einsum("pij,pik->jk", jacobian, jacobian)
        state.trial_gradient.numpy()[i] += share * np.einsum("pij,pi->j", jacobian, residual)
        state.trial_cost.numpy()[i] += share * 0.5 * (residual**2).sum()
        state.trial_weight.numpy()[i] += self.weight[i]

    def fit(self, state):
        return state.trial_cost.numpy()[: len(self.places)].copy()


POINTS = np.array([(0.1, 0, 0), (0, 0.2, 0), (0, 0, 0.15), (-0.1, -0.1, 0.05), (0.1, 0.1, 0.1)])


def problem(count: int, seed: int, angle: float = 0.6, points=POINTS):
    """Truths, starts (B, 4, 4) and the term that pulls one to the other."""
    rng = np.random.default_rng(seed)
    truth = np.tile(np.eye(4), (count, 1, 1))
    start = truth.copy()
    for i in range(count):
        truth[i, :3, :3] = random_rotation(rng)
        truth[i, :3, 3] = rng.uniform(-0.3, 0.3, 3) + np.array([0, 0, 1])
        start[i] = turned(truth[i], random_turn(rng, angle), rng.normal(size=3) * 0.05)
    places = points @ np.swapaxes(truth[:, :3, :3], 1, 2) + truth[:, None, :3, 3]
    return truth, start, PointTerm(points, places)


def solve(start, term, levels=LEVELS, capacity=None):
    solver = Solver(capacity or len(start))
    solver.load(start, np.full(len(start), 0.3))
    solver.run([term] if not isinstance(term, list) else term, levels)
    return solver, solver.result()


def test_points_meet_their_places():
    truth, start, term = problem(6, seed=1)
    _, result = solve(start, term)
    assert (result["reason"] == Reason.CONVERGED).all()
    for found, expected in zip(result["camera_from_object"], truth, strict=True):
        assert angle_deg(found, expected) < 0.05
        np.testing.assert_allclose(found[:3, 3], expected[:3, 3], atol=1e-4)
    assert (result["cost"] < 1e-3).all()


def test_far_turns_are_made_in_many_short_steps():
    truth, start, term = problem(6, seed=2, angle=2.8)
    _, result = solve(start, term)
    for found, expected in zip(result["camera_from_object"], truth, strict=True):
        assert angle_deg(found, expected) < 0.05
    assert (result["iterations"] > 8).all()


def test_poses_stay_rigid():
    _, start, term = problem(4, seed=3, angle=2.0)
    _, result = solve(start, term)
    for found in result["camera_from_object"]:
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.linalg.det(found[:3, :3]) > 0.99
        np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_the_cost_never_rises_whatever_the_number_of_iterations():
    _, start, _ = problem(5, seed=4, angle=2.5)
    before = np.full(5, np.inf)
    for iterations in range(1, 25):
        _, result = solve(start, problem(5, seed=4, angle=2.5)[2], (Level(0, iterations, 1e-4),))
        assert (result["cost"] <= before * (1 + 1e-5) + 1e-3).all()
        before = result["cost"]
    assert (before < 1.0).all()


def test_it_stops_when_all_have_arrived():
    _, start, term = problem(3, seed=5, angle=0.2)
    _, result = solve(start, term)
    assert term.calls < 15 and term.calls == result["iterations"].max()


def test_reasons():
    _, start, term = problem(3, seed=6)
    term.weight[1] = 0.0  # nothing seen

    class Walled(PointTerm):
        def add(self, state, i):
            super().add(state, i)
            if i == 2 and self.calls > 1:  # every way leads uphill
                state.trial_cost.numpy()[i] = 1e9
                state.trial_gradient.numpy()[i] = -10 * state.gradient.numpy()[i]

    term = Walled(term.points, term.places, term.weight)
    _, result = solve(start, term)
    assert result["reason"].tolist() == [Reason.CONVERGED, Reason.NO_EVIDENCE, Reason.STALLED]
    for i in (1, 2):  # what could not be bettered stays where it was
        np.testing.assert_allclose(result["camera_from_object"][i], start[i], atol=1e-5)
    term.calls = 0
    _, result = solve(start, term, (Level(0, 2, 1e-4),))
    assert result["reason"].tolist() == [
        Reason.MAX_ITERATIONS,
        Reason.NO_EVIDENCE,
        Reason.MAX_ITERATIONS,
    ]


def test_each_pose_is_solved_as_if_alone():
    _, start, term = problem(5, seed=7, angle=1.5)
    _, together = solve(start, term, capacity=9)
    for i in range(5):
        alone_term = PointTerm(term.points, term.places[i : i + 1])
        _, alone = solve(start[i : i + 1], alone_term)
        for name in together:
            np.testing.assert_array_equal(together[name][i], alone[name][0], err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_term_without_an_answer_harms_no_other(bad):
    """At the start, and at every trial after it."""
    truth, start, term = problem(4, seed=8)
    _, alone = solve(start, term)

    class Broken(PointTerm):
        def add(self, state, i):
            super().add(state, i)
            if i == 1 or (i == 2 and self.calls > 1):
                state.trial_cost.numpy()[i] = bad
                state.trial_gradient.numpy()[i] = bad
                state.trial_hessian.numpy()[i] = bad

    _, result = solve(start, Broken(term.points, term.places))
    for i in (0, 3):
        np.testing.assert_array_equal(
            result["camera_from_object"][i], alone["camera_from_object"][i]
        )
    for i in (1, 2):
        assert result["reason"][i] != Reason.CONVERGED
        np.testing.assert_allclose(result["camera_from_object"][i], start[i], atol=1e-5)


def test_a_direction_without_evidence_stays_where_it_is():
    """Points on a line say nothing about turns about it."""
    line = np.outer(np.linspace(-0.2, 0.2, 7), [0.6, 0.0, 0.8])
    truth, start, term = problem(3, seed=9, angle=0.0, points=line)
    # turned about the line, and a little off
    off = np.array([turned(p, p[:3, :3] @ [0.6, 0, 0.8] * 1.0, (0.01, 0, 0.02)) for p in start])
    _, result = solve(off, term)
    assert (result["reason"] == Reason.CONVERGED).all()
    for found, was in zip(result["camera_from_object"], off, strict=True):
        assert angle_deg(found, was) < 2.0
        ends = line[[0, -1]]
        expected = ends @ truth[0, :3, :3].T  # shape only: their distance is kept
        assert np.linalg.norm(np.diff(ends @ found[:3, :3].T, axis=0)) == pytest.approx(
            np.linalg.norm(np.diff(expected, axis=0)), rel=1e-5
        )
    assert (result["cost"] < 1e-2).all()


def test_terms_add_up():
    """Two places for the same points: the answer lies between, nearer to the heavier."""
    start = pose(translation=(0, 0, 1.0))[None]
    here = PointTerm(POINTS, (POINTS + np.array([0, 0, 1]))[None], [1.0])
    there = PointTerm(POINTS, (POINTS + np.array([0.04, 0, 1]))[None], [3.0])
    _, result = solve(start, [here, there])
    np.testing.assert_allclose(result["camera_from_object"][0, :3, 3], [0.03, 0, 1], atol=1e-4)


def test_levels_are_run_from_coarse_to_fine():
    _, start, term = problem(2, seed=10)
    _, result = solve(start, term, (Level(0, 3, 0.5), Level(1, 8, 0.1), Level(2, 8, 1e-4)))
    assert term.levels == [0, 1, 2]
    assert (result["reason"] == Reason.CONVERGED).all()


def test_evaluation_looks_without_moving():
    _, start, term = problem(3, seed=11)
    solver = Solver(3)
    solver.load(start, np.full(3, 0.3))
    cost = solver.evaluate(term, 2)
    assert term.levels == [2] and term.calls == 1
    residual = start[:, :3, :3] @ POINTS.T + start[:, :3, 3:] - np.swapaxes(term.places, 1, 2)
    np.testing.assert_allclose(cost, 0.5 * 1e4 * (residual**2).sum(axis=(1, 2)) / 5, rtol=1e-4)
    np.testing.assert_allclose(solver.result()["camera_from_object"], start, atol=1e-6)


def test_evaluation_after_a_run_that_settled_needs_no_second_look():
    _, start, term = problem(3, seed=12)
    solver, result = solve(start, term, (Level(2, 40, 1e-3),))
    calls = term.calls
    np.testing.assert_allclose(solver.evaluate(term, 2), result["cost"], rtol=1e-5)
    assert term.calls == calls
    solver.evaluate(term, 1)  # another level does
    assert term.calls == calls + 1


def test_a_solver_is_used_again_for_fewer_poses():
    _, start, term = problem(6, seed=13)
    solver, _ = solve(start, term)
    fewer = PointTerm(term.points, term.places[2:4])
    solver.load(start[2:4], np.full(2, 0.3))
    solver.run([fewer], LEVELS)
    _, alone = solve(start[2:4], PointTerm(term.points, term.places[2:4]))
    np.testing.assert_array_equal(
        solver.result()["camera_from_object"], alone["camera_from_object"]
    )
    assert len(solver.result()["cost"]) == 2


def test_more_poses_than_it_holds_are_refused():
    with pytest.raises(ValueError, match="3 poses for a solver of capacity 2"):
        Solver(2).load(np.tile(np.eye(4), (3, 1, 1)), np.ones(3))


def test_after_a_rejected_step_a_shorter_one_is_tried_from_the_same_place():
    _, start, term = problem(1, seed=14, angle=0.1)
    seen = []

    class Picky(PointTerm):
        def add(self, state, i):
            super().add(state, i)
            found = np.eye(4)
            found[:3, :3] = state.trial_rotation.numpy()[i]
            found[:3, 3] = state.trial_translation.numpy()[i]
            seen.append(found)
            if self.calls in (2, 3, 4):
                state.trial_cost.numpy()[i] = 1e9
                state.trial_gradient.numpy()[i] = -10 * state.gradient.numpy()[i]

    solve(start, Picky(term.points, term.places))
    np.testing.assert_allclose(seen[0], start[0], atol=1e-6)
    placed = np.array([POINTS @ trial[:3, :3].T + trial[:3, 3] for trial in seen[:5]])
    motion = np.linalg.norm(placed[1:] - placed[0], axis=2).mean(axis=1)
    assert motion[0] > motion[1] > motion[2] > motion[3] > 0
    assert motion[3] < 0.7 * motion[0]
