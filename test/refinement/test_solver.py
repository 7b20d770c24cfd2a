# SPDX-License-Identifier: Apache-2.0
"""The solver alone, on a problem whose answer is known: points that are to meet their places."""

import numpy as np
import pytest
from shapes import angle_deg, pose, random_rotation, random_turn, turned

from pose_refiner_ros.refinement.solver import Level, Solver
from pose_refiner_ros.refinement.terms import TermFit


def level(iterations: int, tolerance: float, scale: int = 0) -> Level:
    return Level(iterations, tolerance, {"points": scale})


LEVELS = (level(40, 1e-4),)


class PointTerm:
    """Half the squared distances of points (P, 3) from their places (B, P, 3), times 100² pixels.

    The terms' protocol, in numpy on the CPU's arrays. It writes down at which scales and of which
    poses it was asked.
    """

    finest = 0

    def __init__(self, points, places, weight=None, name="points", sees=None):
        self.points = np.asarray(points, np.float64)
        self.places = np.asarray(places, np.float64)
        self.weight = np.ones(len(self.places)) if weight is None else np.asarray(weight)
        self.name = name
        self.sees = np.ones(len(self.places), bool) if sees is None else np.asarray(sees)
        self.scales, self.asked = [], []
        self.cost = np.full(len(self.places), np.nan)

    @property
    def calls(self) -> int:
        return len(self.scales)

    def observe(self, observations):
        pass

    def load(self, poses, rows):
        pass

    def begin_level(self, poses, scale):
        pass

    def linearize(self, poses, scale, out):
        active = poses.active.numpy()[: len(self.places)] != 0
        self.scales.append(scale)
        self.asked.append(active.tolist())
        for i in np.flatnonzero(active & self.sees):
            before = out.cost.numpy()[i]
            self.add(poses, out, i)
            self.cost[i] = out.cost.numpy()[i] - before

    def add(self, poses, out, i):
        R, t = poses.rotation.numpy()[i], poses.translation.numpy()[i]
        arm = self.points @ R.T.astype(np.float64)
        residual = 100 * (arm + t - self.places[i])
        zero = np.zeros(len(arm))
        x, y, z = arm.T
        turn = np.stack([
            np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1), np.stack([y, -x, zero], 1)
        ], 1)  # fmt: skip
        jacobian = 100 * np.concatenate([np.tile(np.eye(3), (len(arm), 1, 1)), turn], axis=2)
        share = self.weight[i] / len(arm)
        out.hessian.numpy()[i] += share * np.einsum("pij,pik->jk", jacobian, jacobian)
        out.gradient.numpy()[i] += share * np.einsum("pij,pi->j", jacobian, residual)
        out.cost.numpy()[i] += share * 0.5 * (residual**2).sum()
        out.weight.numpy()[i] += self.weight[i]

    def fit(self):
        return TermFit(cost=self.cost.copy(), rms=np.sqrt(2.0 * self.cost))


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
    assert (result["reason"] == "converged").all()
    for found, expected in zip(result["reference_from_object"], truth, strict=True):
        assert angle_deg(found, expected) < 0.05
        np.testing.assert_allclose(found[:3, 3], expected[:3, 3], atol=1e-4)
    assert (result["cost"] < 1e-3).all()


def test_far_turns_are_made_in_many_short_steps():
    truth, start, term = problem(6, seed=2, angle=2.8)
    _, result = solve(start, term)
    for found, expected in zip(result["reference_from_object"], truth, strict=True):
        assert angle_deg(found, expected) < 0.05
    assert (result["iterations"] > 8).all()


def test_poses_stay_rigid():
    _, start, term = problem(4, seed=3, angle=2.0)
    _, result = solve(start, term)
    for found in result["reference_from_object"]:
        np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-5)
        assert np.linalg.det(found[:3, :3]) > 0.99
        np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_the_cost_never_rises_whatever_the_number_of_iterations():
    _, start, _ = problem(5, seed=4, angle=2.5)
    before = np.full(5, np.inf)
    for iterations in range(1, 25):
        _, result = solve(start, problem(5, seed=4, angle=2.5)[2], (level(iterations, 1e-4),))
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
        def add(self, poses, out, i):
            super().add(poses, out, i)
            if i == 2 and self.calls == 1:
                self.at_start = out.gradient.numpy()[i].copy()
            elif i == 2:  # every way leads uphill
                out.cost.numpy()[i] = 1e9
                out.gradient.numpy()[i] = -10 * self.at_start

    term = Walled(term.points, term.places, term.weight)
    _, result = solve(start, term)
    assert result["reason"].tolist() == ["converged", "no_evidence", "stalled"]
    for i in (1, 2):  # what could not be bettered stays where it was
        np.testing.assert_allclose(result["reference_from_object"][i], start[i], atol=1e-5)
    term = Walled(term.points, term.places, term.weight)
    _, result = solve(start, term, (level(2, 1e-4),))
    assert result["reason"].tolist() == [
        "max_iterations",
        "no_evidence",
        "max_iterations",
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
        def add(self, poses, out, i):
            super().add(poses, out, i)
            if i == 1 or (i == 2 and self.calls > 1):
                out.cost.numpy()[i] = bad
                out.gradient.numpy()[i] = bad
                out.hessian.numpy()[i] = bad

    _, result = solve(start, Broken(term.points, term.places))
    for i in (0, 3):
        np.testing.assert_array_equal(
            result["reference_from_object"][i], alone["reference_from_object"][i]
        )
    for i in (1, 2):
        assert result["reason"][i] != "converged"
        np.testing.assert_allclose(result["reference_from_object"][i], start[i], atol=1e-5)


def test_a_direction_without_evidence_stays_where_it_is():
    """Points on a line say nothing about turns about it."""
    line = np.outer(np.linspace(-0.2, 0.2, 7), [0.6, 0.0, 0.8])
    truth, start, term = problem(3, seed=9, angle=0.0, points=line)
    # turned about the line, and a little off
    off = np.array([turned(p, p[:3, :3] @ [0.6, 0, 0.8] * 1.0, (0.01, 0, 0.02)) for p in start])
    _, result = solve(off, term)
    assert (result["reason"] == "converged").all()
    for found, was in zip(result["reference_from_object"], off, strict=True):
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
    there = PointTerm(POINTS, (POINTS + np.array([0.04, 0, 1]))[None], [3.0], "others")
    _, result = solve(start, [here, there], (Level(40, 1e-4, {"points": 0, "others": 0}),))
    np.testing.assert_allclose(result["reference_from_object"][0, :3, 3], [0.03, 0, 1], atol=1e-4)


def test_levels_are_run_from_coarse_to_fine():
    _, start, term = problem(2, seed=10)
    _, result = solve(start, term, (level(3, 0.5, 0), level(8, 0.1, 1), level(8, 1e-4, 2)))
    assert term.scales == sorted(term.scales) and set(term.scales) == {0, 1, 2}
    assert (result["reason"] == "converged").all()


def test_evaluation_looks_without_moving():
    _, start, term = problem(3, seed=11)
    term.finest = 2
    solver = Solver(3)
    solver.load(start, np.full(3, 0.3))
    fit = solver.evaluate([term])["points"]
    assert term.scales == [2]
    residual = start[:, :3, :3] @ POINTS.T + start[:, :3, 3:] - np.swapaxes(term.places, 1, 2)
    np.testing.assert_allclose(fit.cost, 0.5 * 1e4 * (residual**2).sum(axis=(1, 2)) / 5, rtol=1e-4)
    result = solver.result()
    np.testing.assert_allclose(result["reference_from_object"], start, atol=1e-6)
    assert (result["reason"] == "running").all() and not result["iterations"].any()


def test_evaluation_after_a_run_that_settled_needs_no_second_look():
    _, start, term = problem(3, seed=12)
    term.finest = 2
    solver, result = solve(start, term, (level(40, 1e-3, 2),))
    calls = term.calls
    np.testing.assert_allclose(solver.evaluate([term])["points"].cost, result["cost"], rtol=1e-5)
    assert term.calls == calls
    solver, _ = solve(start, term, (level(40, 1e-3, 1),))
    calls = term.calls
    solver.evaluate([term])  # another scale than the last level's
    assert term.calls == calls + 1 and term.asked[-1] == [True] * 3


def test_evaluation_looks_again_at_those_alone_whose_last_trial_was_rejected():
    _, start, term = problem(3, seed=6)

    class Walled(PointTerm):
        walls = True

        def add(self, poses, out, i):
            super().add(poses, out, i)
            if i == 1 and self.calls == 1:
                self.at_start = out.gradient.numpy()[i].copy()
            elif i == 1 and self.walls:
                out.cost.numpy()[i] = 1e9
                out.gradient.numpy()[i] = -10 * self.at_start

    term = Walled(term.points, term.places)
    solver, result = solve(start, term)
    assert result["reason"].tolist() == ["converged", "stalled", "converged"]
    calls, term.walls = term.calls, False
    fit = solver.evaluate([term])["points"]
    assert term.calls == calls + 1 and term.asked[-1] == [False, True, False]
    np.testing.assert_allclose(fit.cost, result["cost"], rtol=1e-4, atol=1e-6)
    for name, values in solver.result().items():  # a look moves nothing
        np.testing.assert_array_equal(values, result[name], err_msg=name)


def test_a_term_that_took_no_part_is_asked_by_the_evaluation():
    _, start, term = problem(2, seed=15)
    other = PointTerm(term.points, term.places + 0.01, name="others")
    solver, _ = solve(start, [term, other])
    assert other.calls == 0
    fits = solver.evaluate([term, other])
    assert other.asked == [[True, True]] and set(fits) == {"points", "others"}
    assert (fits["others"].cost > fits["points"].cost).all()


# --- levels and what terms see ------------------------------------------------------------------


def test_poses_of_which_a_level_has_seen_nothing_pass_through_it():
    """Term a sees the first pose, term b the second, neither the third."""
    _, start, term = problem(3, seed=16)
    a = PointTerm(POINTS, term.places, name="a", sees=[True, False, False])
    b = PointTerm(POINTS, term.places, name="b", sees=[False, True, False])
    by_a, by_b = Level(40, 1e-4, {"a": 0}), Level(40, 1e-4, {"b": 0})
    _, first = solve(start, [a, b], (by_a,))
    _, both = solve(start, [a, b], (by_a, by_b))
    _, second = solve(start, [a, b], (by_b,))
    assert both["reason"][:2].tolist() == ["converged"] * 2
    assert (both["iterations"][:2] > 1).all()
    for name in both:  # to the bit what its own level has made of it
        np.testing.assert_array_equal(both[name][0], first[name][0], err_msg=name)
    # a level that is not the first begins with less damping
    ends = [one["reference_from_object"][1] for one in (both, second)]
    np.testing.assert_allclose(*ends, atol=1e-5)
    for result, untouched in ((first, (1, 2)), (second, (0, 2)), (both, (2,))):
        for i in untouched:
            expected = start[i].astype(np.float32)
            np.testing.assert_array_equal(result["reference_from_object"][i], expected)
            assert result["iterations"][i] == 0 and result["reason"][i] == "running"
    assert not any(asked[1] or asked[2] for asked in a.asked)
    assert not any(asked[0] or asked[2] for asked in b.asked)


def test_what_a_term_saw_before_another_moved_the_pose_is_seen_anew():
    _, start, term = problem(2, seed=19)
    a = PointTerm(POINTS, term.places, name="a")
    b = PointTerm(POINTS, term.places + 0.05, name="b")
    solver, result = solve(start, [a, b], (Level(40, 1e-4, {"a": 0}), Level(40, 1e-4, {"b": 0})))
    fits = solver.evaluate([a, b])
    at_b = result["reference_from_object"]
    residual = at_b[:, :3, :3] @ POINTS.T + at_b[:, :3, 3:] - np.swapaxes(term.places, 1, 2)
    expected = 0.5 * 1e4 * (residual**2).sum(axis=(1, 2)) / 5
    assert (expected > 10).all() and (fits["b"].cost < 0.1).all()
    np.testing.assert_allclose(fits["a"].cost, expected, rtol=1e-3)


def test_a_level_in_which_no_term_sees_anything_is_left_out():
    _, start, term = problem(2, seed=17)
    blind = PointTerm(POINTS, term.places, name="blind", sees=[False, False])
    unseen = Level(40, 1e-4, {"blind": 0})
    _, result = solve(start, [term, blind], (unseen, *LEVELS, unseen))
    _, alone = solve(start, PointTerm(POINTS, term.places))
    for name in result:
        np.testing.assert_array_equal(result[name], alone[name], err_msg=name)
    assert blind.calls == 0


def test_in_a_level_of_several_terms_each_pose_has_what_sees_it():
    """Of the first pose both terms have an opinion, of the others one each."""
    start = np.tile(pose(translation=(0, 0, 1.0)), (3, 1, 1))
    places = np.tile(POINTS + np.array([0, 0, 1]), (3, 1, 1))
    here = PointTerm(POINTS, places, name="here", sees=[True, True, False])
    there = PointTerm(
        POINTS, places + np.array([0.04, 0, 0]), name="there", sees=[True, False, True]
    )
    solver, result = solve(start, [here, there], (Level(40, 1e-4, {"here": 0, "there": 0}),))
    x = result["reference_from_object"][:, 0, 3]
    np.testing.assert_allclose(x, [0.02, 0.0, 0.04], atol=1e-4)
    fits = solver.evaluate([here, there])
    assert fits["here"].cost[0] == pytest.approx(fits["there"].cost[0], rel=0.05)
    assert fits["here"].cost[1] < 1e-3 and fits["there"].cost[2] < 1e-3


def test_how_far_a_step_reaches_is_told_from_the_camera_and_not_the_origin():
    """Far moves are made in many steps, as many wherever the reference's origin is."""
    truth, start, term = problem(3, seed=18)
    start[:, :3, 3] += [[1.0, 0.5, 2.0], [-1.0, 0.3, 1.0], [0.2, 2.0, 3.0]]
    _, here = solve(start, term)
    away = np.array([30.0, -20.0, 10.0])
    moved = start.copy()
    moved[:, :3, 3] += away
    solver = Solver(3)
    solver.load(moved, np.full(3, 0.3), np.tile(away, (3, 1)))
    solver.run([PointTerm(POINTS, term.places + away)], (level(40, 1e-2),))
    _, here = solve(start, term, (level(40, 1e-2),))
    result = solver.result()
    np.testing.assert_array_equal(result["iterations"], here["iterations"])
    assert (result["iterations"] > 5).all()
    for found, expected in zip(result["reference_from_object"], truth, strict=True):
        np.testing.assert_allclose(found[:3, 3] - away, expected[:3, 3], atol=1e-3)
    # from an eye as far off as the origin steps are longer: the object seems to be far away
    solver.load(moved, np.full(3, 0.3))
    solver.run([PointTerm(POINTS, term.places + away)], (level(40, 1e-2),))
    assert (solver.result()["iterations"] < here["iterations"]).all()


# --- batches ------------------------------------------------------------------------------------


def test_a_solver_is_used_again_for_fewer_poses():
    _, start, term = problem(6, seed=13)
    solver, _ = solve(start, term)
    fewer = PointTerm(term.points, term.places[2:4])
    solver.load(start[2:4], np.full(2, 0.3))
    solver.run([fewer], LEVELS)
    _, alone = solve(start[2:4], PointTerm(term.points, term.places[2:4]))
    np.testing.assert_array_equal(
        solver.result()["reference_from_object"], alone["reference_from_object"]
    )
    assert len(solver.result()["cost"]) == 2


def test_more_poses_than_it_holds_are_refused():
    with pytest.raises(ValueError, match="3 poses for a solver of capacity 2"):
        Solver(2).load(np.tile(np.eye(4), (3, 1, 1)), np.ones(3))


def test_after_a_rejected_step_a_shorter_one_is_tried_from_the_same_place():
    _, start, term = problem(1, seed=14, angle=0.1)
    seen = []

    class Picky(PointTerm):
        def add(self, poses, out, i):
            super().add(poses, out, i)
            seen.append(pose())
            seen[-1][:3, :3] = poses.rotation.numpy()[i]
            seen[-1][:3, 3] = poses.translation.numpy()[i]
            if self.calls == 1:
                self.at_start = out.gradient.numpy()[i].copy()
            elif self.calls in (2, 3, 4):
                out.cost.numpy()[i] = 1e9
                out.gradient.numpy()[i] = -10 * self.at_start

    solve(start, Picky(term.points, term.places))
    np.testing.assert_allclose(seen[0], start[0], atol=1e-6)
    placed = np.array([POINTS @ trial[:3, :3].T + trial[:3, 3] for trial in seen[:5]])
    motion = np.linalg.norm(placed[1:] - placed[0], axis=2).mean(axis=1)
    assert motion[0] > motion[1] > motion[2] > motion[3] > 0
    assert motion[3] < 0.7 * motion[0]
