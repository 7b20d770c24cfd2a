# SPDX-License-Identifier: Apache-2.0
"""The appearance term: rendered once, moved over a blurred photo."""

from __future__ import annotations

import numpy as np
import pytest
from analytic_field import AnalyticField, as_grid
from test_radiance import (
    POSE,
    SECOND_CAMERA,
    SIZE,
    TURN,
    WHITE,
    Whole,
    moved,
    photo_of,
    rotation_away,
)

from pose_refiner_ros.geometry.pose import inverse, rotation_angle
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch, allocate
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.solver import Level, Solver
from pose_refiner_ros.refinement.terms.appearance import SCALES, AppearanceTerm

AT_ORIGIN = np.zeros(3)


@pytest.fixture(scope="module")
def grid():
    return as_grid(AnalyticField(density=4.0), degree=1)


def term_of(grid, photos, exposure=False, cameras=(None, None), capacity=4) -> AppearanceTerm:
    """Of one object, seen in these photos by cameras at reference_from_camera."""
    term = AppearanceTerm({"thing": grid}, {"thing": AT_ORIGIN}, capacity, exposure)
    seen = [
        Observation(1, whole_image=photo, reference_from_camera=camera)
        for photo, camera in zip(photos, cameras, strict=False)
    ]
    term.observe(seen)
    term.load([Hypothesis("thing", POSE, index=0)], [(0, one) for one in seen])
    return term


class Look:
    """What a term says of a pose, as it was rendered at another."""

    def __init__(self, term, rendered_at, scale=0):
        self.term, self.scale = term, scale
        self.batch = allocate(PoseBatch, 1, "cpu")
        self.out = allocate(NormalEquations, 1, "cpu")
        self.batch.active.numpy()[:] = 1
        self._place(rendered_at)
        term.begin_level(self.batch, scale)

    def _place(self, pose):
        self.batch.rotation.numpy()[0] = pose[:3, :3]
        self.batch.translation.numpy()[0] = pose[:3, 3]

    def at(self, pose):
        """Cost, gradient (6,) and matrix (6, 6)."""
        self._place(pose)
        for name in NormalEquations.vars:
            getattr(self.out, name).zero_()
        self.term.linearize(self.batch, self.scale, self.out)
        return (
            float(self.out.cost.numpy()[0]),
            self.out.gradient.numpy()[0].copy(),
            self.out.hessian.numpy()[0].copy(),
        )


@pytest.mark.parametrize("scale", range(len(SCALES)))
@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_the_gradient_is_that_of_the_cost(grid, scale, opacity, exposure):
    look = Look(term_of(grid, [photo_of(grid, POSE, opacity)], exposure), POSE, scale)
    pose = moved(POSE, TURN)
    value, gradient, hessian = look.at(pose)
    assert value > look.at(POSE)[0]
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-4, atol=1e-3 * np.abs(hessian).max())
    assert np.linalg.eigvalsh(hessian).min() > 0.0
    size = 2e-3
    for axis in range(6):
        step = np.eye(6)[axis] * size
        ends = [look.at(moved(pose, sign * step))[0] for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * size)
        assert gradient[axis] == pytest.approx(expected, rel=0.1, abs=0.06 * abs(gradient).max())


def test_cameras_add_up(grid):
    """Each along its own axes, B' H B along those of the reference."""
    there = inverse(SECOND_CAMERA) @ POSE
    there[:2, 3] = 0.0  # so that it is in the picture
    reference_from_second = POSE @ np.linalg.inv(there)
    photos = [photo_of(grid, POSE), photo_of(grid, there)]
    pose, second = moved(POSE, TURN), inverse(reference_from_second)
    each = [
        Look(term_of(grid, photos[:1]), POSE).at(pose),
        Look(term_of(grid, photos[1:]), there).at(second @ pose),
    ]
    B = np.zeros((6, 6))
    B[:3, :3] = B[3:, 3:] = second[:3, :3]
    assert rotation_away(B[:3, :3]) > 0.5
    both = Look(term_of(grid, photos, cameras=(None, reference_from_second)), POSE)
    cost, gradient, hessian = both.at(pose)
    assert cost == pytest.approx(each[0][0] + each[1][0], rel=1e-3)
    for found, k, expected in (
        (gradient, 1, each[0][1] + B.T @ each[1][1]),
        (hessian, 2, each[0][2] + B.T @ each[1][2] @ B),
    ):
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max(), err_msg=k)


def aligned(grid, photo, start, levels, exposure=False):
    term, solver = term_of(grid, [photo], exposure), Solver(4)
    solver.load(start[None], np.array([1.0]))
    solver.run([term], levels)
    found = solver.result()["reference_from_object"][0]
    turn = np.degrees(float(rotation_angle(found[:3, :3].T @ POSE[:3, :3])))
    return turn, np.linalg.norm(found[:3, 3] - POSE[:3, 3])


LEVELS = [Level(8, 1e-3, {"appearance": scale}, 0.0) for scale in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
FAR = moved(POSE, np.array([0.05, -0.04, 0.1, 0.25, -0.2, 0.2]))  # 20 degrees


@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
def test_levels_that_render_anew_lead_to_the_pose(grid, opacity):
    turn, shift = aligned(grid, photo_of(grid, POSE, opacity), FAR, LEVELS)
    assert turn < 0.7 and shift < 0.02


def test_a_photo_in_another_light_leads_there_as_well(grid):
    photo = photo_of(grid, POSE, opacity=True)
    share = photo.opacity[..., None]
    colour = 0.6 * (photo.colour - (1.0 - share)) + 0.1 * share  # what is behind it is black
    darker = Whole(colour.astype(np.float32), photo.opacity, None, photo.pinhole, np.zeros(3))
    turn, shift = aligned(grid, darker, FAR, LEVELS, exposure=True)
    assert turn < 0.7 and shift < 0.02


def test_what_leaves_the_photo_costs_what_is_left_does_on_average(grid):
    """So that no pose gains by looking away."""
    photo = photo_of(grid, POSE)
    look = Look(term_of(grid, [photo]), POSE)
    aside = look.at(moved(POSE, np.array([1.2, 0, 0, 0, 0, 0])))[0]
    away = look.at(moved(POSE, np.array([100.0, 0, 0, 0, 0, 0])))[0]
    behind = look.at(moved(POSE, np.array([0, 0, -100.0, 0, 0, 0])))[0]
    # nothing is left: no weight, so the solver takes no such step
    assert away == 0.0 and behind == 0.0 and not look.out.weight.numpy().any()
    assert aside > 5 * look.at(POSE)[0]


def test_pixels_without_weight_say_nothing(grid):
    photo, weight = photo_of(grid, POSE), np.ones((SIZE, SIZE), np.float32)
    weight[:, : SIZE // 2] = 0.0
    costs = []
    for value in (0.0, 1.0):
        spoiled = photo.colour.copy()
        spoiled[:, : SIZE // 2] = value
        half = Whole(spoiled, None, weight, photo.pinhole, WHITE)
        costs.append(Look(term_of(grid, [half]), POSE, 2).at(moved(POSE, TURN))[0])
    assert costs[0] > 0.0 and costs[0] == pytest.approx(costs[1], rel=1e-4)


def test_objects_and_poses_of_one_batch_do_not_mix(grid):
    grids = {"thing": grid, "other": as_grid(AnalyticField(density=4.0), degree=0)}
    photos = {name: photo_of(one, POSE) for name, one in grids.items()}
    term = AppearanceTerm(grids, dict.fromkeys(grids, AT_ORIGIN), 5)
    seen = {name: Observation(i, whole_image=one) for i, (name, one) in enumerate(photos.items())}
    poses = [POSE, moved(POSE, TURN), moved(POSE, -TURN), POSE]
    names = ["thing", "thing", "other", "nothing"]
    term.observe(list(seen.values()))
    term.load(
        [
            Hypothesis(n, at, index=["thing", "other", "nothing"].index(n))
            for n, at in zip(names, poses, strict=True)
        ],
        [(i, seen.get(name, seen["thing"])) for i, name in enumerate(names)],
    )
    assert term.sees.tolist() == [True, True, True, False]
    batch, out = (allocate(struct, 4, "cpu") for struct in (PoseBatch, NormalEquations))
    batch.active.numpy()[:] = 1
    batch.rotation.numpy()[:] = np.stack(poses)[:, :3, :3]
    batch.translation.numpy()[:] = np.stack(poses)[:, :3, 3]
    term.begin_level(batch, 1)
    term.linearize(batch, 1, out)
    for i, name in enumerate(names[:3]):
        own = AppearanceTerm({name: grids[name]}, {name: AT_ORIGIN}, 1)
        own.observe([seen[name]])
        own.load([Hypothesis(name, poses[i], index=0)], [(0, seen[name])])
        cost, gradient, _ = Look(own, poses[i], 1).at(poses[i])
        assert out.cost.numpy()[i] == pytest.approx(cost, rel=1e-4)
        np.testing.assert_allclose(
            out.gradient.numpy()[i], gradient, atol=1e-3 * abs(gradient).max()
        )
    assert not out.cost.numpy()[3]


def test_nowhere_is_no_evidence(grid):
    pose = POSE.copy()
    pose[0, 3] = np.nan
    look = Look(term_of(grid, [photo_of(grid, POSE)]), pose)
    look.at(pose)
    assert look.out.weight.numpy()[0] == 0.0
