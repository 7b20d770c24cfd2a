# SPDX-License-Identifier: Apache-2.0
"""The radiance term: its Jacobian, its gradient, exposure, against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import warp as wp
from analytic_field import AnalyticField, as_grid, pinhole, view_from

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import camera_rays, image_pixels
from pose_refiner_ros.refinement.photo_evidence import PhotoEvidence, chosen_rays, lattice_rays
from pose_refiner_ros.refinement.radiance_term import (
    BIAS_SIGMA,
    COLOUR_OF_PIXEL,
    GAIN_SIGMA,
    STEP,
    ObjectRays,
    RadianceStage,
    RadianceTerm,
)
from pose_refiner_ros.refinement.solver import Level, Solver
from pose_refiner_ros.rendering.radiance import mat46, trace_kernel

SIZE = 64
FINE_STEP = 0.1
WHITE = np.ones(3)
POSE = view_from((1.0, 0.4, 0.5))


@pytest.fixture(scope="module", params=[0, 1], ids=["degree0", "degree1"])
def grid(request):
    # thin enough that no ray ends early, since where it does moves with the pose
    return as_grid(AnalyticField(density=4.0), degree=request.param)


def pinhole4() -> np.ndarray:
    K = pinhole(SIZE)
    return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])


def photo_of(field, pose, opacity=False) -> PhotoEvidence:
    origins, directions = camera_rays(pinhole(SIZE), pose, image_pixels((SIZE, SIZE)))
    seen = field.render(origins.float(), directions.float(), STEP)
    colour = seen.over(WHITE).reshape(SIZE, SIZE, 3).numpy()
    mask = seen.opacity.reshape(SIZE, SIZE).numpy() if opacity else None
    return PhotoEvidence(colour, mask, None, pinhole4(), WHITE)


def moved(pose: np.ndarray, twist: np.ndarray) -> np.ndarray:
    """R' = exp(w) R, t' = t + v, as the solver moves poses."""
    return se3.perturb(torch.as_tensor(pose), torch.as_tensor(twist)).numpy()


def traced(grid, poses: np.ndarray, directions: np.ndarray, step: float = STEP):
    """Colours (B, R, 4) and Jacobians (B, R, 4, 6)."""
    count, rays = len(poses), len(directions)
    colours = wp.zeros((count, rays), dtype=wp.vec4, device="cpu")
    jacobians = wp.zeros((count, rays), dtype=mat46, device="cpu")
    wp.launch(
        trace_kernel(grid.degree),
        count * rays,
        [
            grid.arrays,
            wp.array(np.ones(count, np.int32), dtype=wp.int32),
            wp.array(poses[:, :3, :3].astype(np.float32), dtype=wp.mat33),
            wp.array(poses[:, :3, 3].astype(np.float32), dtype=wp.vec3),
            0, rays, wp.array(directions.astype(np.float32), dtype=wp.vec3), step, colours,
            jacobians, 0,
        ],
        device="cpu",
    )  # fmt: skip
    return colours.numpy(), jacobians.numpy()


def test_traced_colours_are_those_that_the_field_renders(grid):
    directions = chosen_rays(photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()).directions
    colours, _ = traced(grid, POSE[None], directions)
    origins, along = camera_rays(pinhole(SIZE), POSE, image_pixels((SIZE, SIZE)))
    seen = grid.render(origins.float(), along.float(), STEP)
    expected = torch.cat([seen.colour, seen.opacity[:, None]], -1).numpy()
    assert expected[:, 3].max() > 0.8
    np.testing.assert_allclose(colours[0], expected, atol=2e-4)


def differences(grid, axis: int, directions: np.ndarray) -> np.ndarray:
    """(R, 4) of finely sampled rays, by a step of the pose along `axis` of the twist."""
    twist = np.zeros(6)
    twist[axis] = size = 1e-3
    ends = np.stack([moved(POSE, twist), moved(POSE, -twist)])
    both, _ = traced(grid, ends, directions, FINE_STEP)
    return (both[0] - both[1]) / (2 * size)


@pytest.mark.parametrize(("step", "most"), [(FINE_STEP, 0.01), (STEP, 0.03)], ids=["fine", "used"])
def test_the_jacobian_is_the_finite_difference(grid, step, most):
    directions = chosen_rays(photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()).directions
    colours, jacobians = traced(grid, POSE[None], directions, step)
    assert (colours[0, :, 3] > 0.1).mean() > 0.1
    for axis in range(6):
        expected = differences(grid, axis, directions)
        found = jacobians[0, :, :, axis]
        # samples that cross from cell to cell are a little off
        assert np.abs(found - expected).mean() < most * np.abs(expected).mean(), axis
        assert (found * expected).sum() == pytest.approx((expected**2).sum(), rel=1e-3), axis


def test_surfaces_are_not_stiffer_along_rays_than_they_are():
    # samples that move with the camera pass through surfaces: sharp ones seem to change by that
    soft = as_grid(AnalyticField(chequers=4.0))
    values = soft.values.copy()
    values[:, 0] = np.where(values[:, 0] > 3.0, 50.0, 0.0)
    grid = GridField(soft.links, values, soft.origin, soft.voxel)
    directions = chosen_rays(photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()).directions
    _, jacobians = traced(grid, POSE[None], directions)
    for axis in range(6):
        expected = (differences(grid, axis, directions) ** 2).sum()
        assert 0.9 < (jacobians[0, :, :, axis] ** 2).sum() / expected < 1.3, axis


def term_of(grid, photo, stage, rays, exposure=False) -> tuple[RadianceTerm, Solver]:
    term = RadianceTerm([stage], 2, SIZE * SIZE, exposure)
    opacity = 0.0 if photo.opacity is None else 1.0
    term.load([ObjectRays(lambda level: (grid, rays), photo.background, opacity, 1)])
    return term, Solver(2)


def looked_at(term, solver, pose):
    """Cost, gradient (6,) and matrix (6, 6) of the term at a pose."""
    solver.load(pose[None], np.array([1.0]))
    solver._begin.launch()
    term.set_level(0)
    term.accumulate(solver.state)
    state = solver.state
    return (
        float(state.trial_cost.numpy()[0]),
        state.trial_gradient.numpy()[0].copy(),
        state.trial_hessian.numpy()[0].copy(),
    )


TURN = np.array([0.01, -0.008, 0.03, 0.02, -0.03, 0.02])


@pytest.mark.parametrize("sigma", [0.0, 1.5], ids=["rays", "blurred"])
@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_the_gradient_is_that_of_the_cost(grid, sigma, opacity, exposure):
    photo = photo_of(grid, POSE, opacity)
    stage = RadianceStage(1.0, sigma, 1.0, 0.15)
    rays = (
        lattice_rays(photo, 900, sigma)
        if sigma
        else chosen_rays(photo, image_pixels((SIZE, SIZE)).numpy())
    )
    term, solver = term_of(grid, photo, stage, rays, exposure)
    pose = moved(POSE, TURN)

    def cost(where):
        for _ in range(4 if exposure else 1):  # gain and bias settle with their weights
            found = looked_at(term, solver, where)
        return found

    value, gradient, hessian = cost(pose)
    assert value > 0.0
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-4, atol=1e-3 * np.abs(hessian).max())
    assert np.linalg.eigvalsh(hessian).min() > 0.0
    size = 1e-3
    for axis in range(6):
        step = np.eye(6)[axis] * size
        expected = (cost(moved(pose, step))[0] - cost(moved(pose, -step))[0]) / (2 * size)
        assert gradient[axis] == pytest.approx(expected, rel=0.05, abs=0.02 * abs(gradient).max())


@pytest.mark.parametrize("masked", [False, True], ids=["ground", "mask"])
def test_gain_and_bias_are_found_and_change_no_pose(grid, masked):
    photo = photo_of(grid, POSE, masked)
    gain, bias = np.array([0.8, 1.1, 0.9]), np.array([0.05, -0.02, 0.1])
    colour, behind = gain * photo.colour + bias, WHITE
    if masked:  # what is behind the object is black, whatever the light
        share = photo.opacity[..., None]
        colour, behind = gain * (photo.colour - (1.0 - share)) + share * bias, np.zeros(3)
    darker = PhotoEvidence(colour.astype(np.float32), photo.opacity, None, photo.pinhole, behind)
    rays = chosen_rays(darker, image_pixels((SIZE, SIZE)).numpy())
    stage = RadianceStage(1.0, 0.0, 1.0, 0.15)
    term, solver = term_of(grid, darker, stage, rays, exposure=True)
    solver.load(moved(POSE, TURN)[None], np.array([1.0]))
    solver.run([term], [Level(0, 40, 1e-4, 0.0)])
    found = solver.result()["camera_from_object"][0]
    fit = solver.evaluate(term, 0, known=False)
    turn = torch.as_tensor(found[:3, :3].T @ POSE[:3, :3])
    # without the ground gain and bias are hardly told apart, and both stay nearer to none
    assert np.degrees(float(se3.rotation_angle(turn))) < (0.3 if masked else 0.1)
    assert np.linalg.norm(found[:3, 3] - POSE[:3, 3]) < 0.004
    np.testing.assert_allclose(fit.gain[0], gain, atol=0.07 if masked else 0.02)
    np.testing.assert_allclose(fit.bias[0], bias, atol=0.02)
    assert fit.rms[0] < 0.005


def test_pixels_without_weight_say_nothing(grid):
    photo = photo_of(grid, POSE)
    weight = np.ones((SIZE, SIZE), np.float32)
    weight[:, : SIZE // 2] = 0.0
    spoiled = photo.colour.copy()
    spoiled[:, : SIZE // 2] = 0.0
    pixels = image_pixels((SIZE, SIZE)).numpy()
    stage = RadianceStage(1.0, 0.0, 1.0, 0.15)
    costs = []
    for colour in (photo.colour, spoiled):
        half = PhotoEvidence(colour, None, weight, photo.pinhole, WHITE)
        term, solver = term_of(grid, half, stage, chosen_rays(half, pixels))
        costs.append(looked_at(term, solver, moved(POSE, TURN)))
    assert costs[0][0] == pytest.approx(costs[1][0], rel=1e-5)
    np.testing.assert_allclose(costs[0][1], costs[1][1], rtol=1e-4)


@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_the_matrix_is_that_of_the_robust_function(grid, exposure):
    """Against float64: far from the truth, where residuals are large and a weight is not enough;
    with exposure less what its gains and biases would explain as well (Schur complement)."""
    photo = photo_of(grid, POSE)
    rays = chosen_rays(photo, image_pixels((SIZE, SIZE)).numpy())
    robust = 0.05
    term, solver = term_of(grid, photo, RadianceStage(1.0, 0.0, 1.0, robust), rays, exposure)
    off = moved(POSE, 3.0 * TURN)
    _, _, found = looked_at(term, solver, off)
    colours, jacobians = (a[0].astype(np.float64) for a in traced(grid, off[None], rays.directions))
    x, y = colours[:, :3] + (1.0 - colours[:, 3:]) * WHITE, rays.observed[:, :3]
    gain, bias = np.ones(3), np.zeros(3)
    inverses = np.zeros((3, 2, 2))
    if exposure:
        w = 1.0 / (1.0 + np.linalg.norm(x - y, axis=1) / robust)
        prior = np.diag([GAIN_SIGMA**-2, BIAS_SIGMA**-2])
        for k in range(3):
            columns = np.stack([x[:, k], np.ones(len(x))], axis=1)
            inverses[k] = np.linalg.inv((w * columns.T) @ columns + prior)
            gain[k], bias[k] = inverses[k] @ ((w * columns.T) @ y[:, k] + prior @ [1.0, 0.0])
    r = gain * x + bias - y
    J = gain[:, None] * (jacobians[:, :3] - WHITE[:, None] * jacobians[:, 3:])
    size = np.linalg.norm(r, axis=1)
    w = 1.0 / (1.0 + size / robust)
    toward = r / np.maximum(size, 1e-12)[:, None]
    less = w - w**2  # its second derivative along the residual is the square of its weight
    bend = w[:, None, None] * np.eye(3) - np.einsum("n,nc,nd->ncd", less, toward, toward)
    expected = np.einsum("nca,ncd,ndb->ab", J, bend, J)
    for k in range(3):
        rows = np.einsum("nca,nc->na", J, bend[:, :, k])
        coupling = np.stack([rows.T @ x[:, k], rows.sum(axis=0)])
        expected -= coupling.T @ inverses[k] @ coupling
    weighted = np.einsum("n,nca,ncb->ab", w, J, J)
    unit = COLOUR_OF_PIXEL**-2
    assert not np.allclose(unit * weighted, found, rtol=0.05)
    np.testing.assert_allclose(found, unit * expected, rtol=2e-3, atol=1e-3 * np.abs(found).max())


def test_two_objects_of_one_batch_do_not_mix():
    grids = [as_grid(AnalyticField(density=4.0), degree=d) for d in (0, 1)]
    poses = np.stack([moved(POSE, TURN), moved(POSE, -TURN)])
    stage = RadianceStage(1.0, 1.5, 1.0, 0.15)
    seen, alone = [], []
    for grid, pose in zip(grids, poses, strict=True):
        photo = photo_of(grid, POSE)
        rays = lattice_rays(photo, 900, stage.sigma)
        seen.append(ObjectRays(lambda level, at=(grid, rays): at, WHITE, 0.0, 1))
        term, solver = term_of(grid, photo, stage, rays)
        alone.append(looked_at(term, solver, pose))
    term, solver = RadianceTerm([stage], 2, SIZE * SIZE), Solver(2)
    term.load(seen)
    solver.load(poses, np.ones(2))
    solver._begin.launch()
    term.set_level(0)
    term.accumulate(solver.state)
    for i in range(2):
        assert solver.state.trial_cost.numpy()[i] == pytest.approx(alone[i][0], rel=1e-5)
        np.testing.assert_allclose(solver.state.trial_gradient.numpy()[i], alone[i][1], rtol=1e-3)


def test_the_cost_is_counted_in_pixels(grid):
    """A difference of COLOUR_OF_PIXEL costs what a pixel's does in a silhouette, half of one."""
    photo = photo_of(grid, POSE)
    small = 0.01
    off = PhotoEvidence(photo.colour + np.float32(small), None, None, photo.pinhole, WHITE)
    rays = chosen_rays(off, image_pixels((SIZE, SIZE)).numpy())
    term, solver = term_of(grid, off, RadianceStage(1.0, 0.0, 1.0, 100.0), rays)
    value, _, _ = looked_at(term, solver, POSE)
    expected = 0.5 * 3 * (small / COLOUR_OF_PIXEL) ** 2 * SIZE * SIZE
    assert value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
def test_empty_ground_does_not_dilute_the_colours(grid, opacity):
    photo = photo_of(grid, POSE, opacity)
    beside = moved(POSE, np.array([0.05, 0.0, 0.0, 0.0, 0.0, 0.0]))
    pixels = image_pixels((SIZE, SIZE)).numpy()
    near = pixels[(np.abs(pixels - SIZE / 2) < SIZE / 4).all(axis=1)]
    found = []
    for chosen in (pixels, near):
        term, solver = term_of(
            grid, photo, RadianceStage(1.0, 0.0, 1.0, 0.15), chosen_rays(photo, chosen)
        )
        looked_at(term, solver, beside)
        found.append(term.fit(solver.state).rms[0])
    assert found[0] > 0.02
    assert found[0] == pytest.approx(found[1], rel=0.25)
