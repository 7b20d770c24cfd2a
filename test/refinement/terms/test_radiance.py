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
from pose_refiner_ros.geometry.pose import inverse, rigid
from pose_refiner_ros.refinement.colours import ColourImage, chosen_rays
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch, allocate
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.solver import Level, Solver
from pose_refiner_ros.refinement.terms.radiance import (
    BIAS_SIGMA,
    GAIN_SIGMA,
    ROBUST,
    STEP,
    RadianceTerm,
    correlation,
)
from pose_refiner_ros.refinement.terms.radiance_kernel import COLOUR_OF_PIXEL
from pose_refiner_ros.rendering.radiance import mat46, trace_kernel

SIZE = 64
FINE_STEP = 0.1
WHITE = np.ones(3)
POSE = view_from((1.0, 0.4, 0.5))
SECOND_CAMERA = rigid(  # reference_from_camera
    torch.linalg.matrix_exp(se3.hat(torch.tensor([0.3, -0.8, 0.4]).double())).numpy(),
    (0.4, -0.3, 0.2),
)


@pytest.fixture(scope="module", params=[0, 1], ids=["degree0", "degree1"])
def grid(request):
    # thin enough that no ray ends early, since where it does moves with the pose
    return as_grid(AnalyticField(density=4.0), degree=request.param)


def pinhole4() -> np.ndarray:
    K = pinhole(SIZE)
    return np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])


class Whole(ColourImage):
    """All of it is compared, also what is far from the object."""

    @property
    def box(self):
        return 0, 0, *self.size[::-1]


def photo_of(field, pose, opacity=False) -> ColourImage:
    origins, directions = camera_rays(pinhole(SIZE), pose, image_pixels((SIZE, SIZE)))
    seen = field.render(origins.float(), directions.float(), STEP)
    colour = seen.over(WHITE).reshape(SIZE, SIZE, 3).numpy()
    mask = seen.opacity.reshape(SIZE, SIZE).numpy() if opacity else None
    return Whole(colour, mask, None, pinhole4(), WHITE)


def directions_of(field) -> np.ndarray:
    """(R, 3) through all pixels of a photo."""
    pixels = image_pixels((SIZE, SIZE)).numpy()
    return chosen_rays(photo_of(field, POSE), pixels).directions.numpy()


def moved(pose: np.ndarray, twist: np.ndarray) -> np.ndarray:
    """R' = exp(w) R, t' = t + v, as the solver moves poses."""
    return se3.perturb(torch.as_tensor(pose), torch.as_tensor(twist)).numpy()


def traced(grid, poses: np.ndarray, directions: np.ndarray, step: float = STEP, camera=None):
    """Colours (B, R, 4) and Jacobians (B, R, 4, 6), in a camera_from_reference (4, 4)."""
    count, rays = len(poses), len(directions)
    colours = wp.zeros((count, rays), dtype=wp.vec4, device="cpu")
    jacobians = wp.zeros((count, rays), dtype=mat46, device="cpu")
    camera = np.eye(4) if camera is None else camera
    wp.launch(
        trace_kernel(grid.degree),
        count * rays,
        [
            grid.arrays,
            wp.array(np.ones(count, np.int32), dtype=wp.int32),
            wp.array(poses[:, :3, :3].astype(np.float32), dtype=wp.mat33),
            wp.array(poses[:, :3, 3].astype(np.float32), dtype=wp.vec3),
            wp.mat33(*camera[:3, :3].ravel().tolist()),
            wp.vec3(*camera[:3, 3].tolist()),
            0,
            rays,
            wp.array(directions.astype(np.float32), dtype=wp.vec3),
            step,
            colours,
            jacobians,
            0,
        ],
        device="cpu",
    )
    return colours.numpy(), jacobians.numpy()


def test_traced_colours_are_those_that_the_field_renders(grid):
    directions = chosen_rays(
        photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()
    ).directions.numpy()
    colours, _ = traced(grid, POSE[None], directions)
    origins, along = camera_rays(pinhole(SIZE), POSE, image_pixels((SIZE, SIZE)))
    seen = grid.render(origins.float(), along.float(), STEP)
    expected = torch.cat([seen.colour, seen.opacity[:, None]], -1).numpy()
    assert expected[:, 3].max() > 0.8
    np.testing.assert_allclose(colours[0], expected, atol=2e-4)


def test_a_camera_elsewhere_sees_the_object_where_it_is_from_there(grid):
    directions = chosen_rays(
        photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()
    ).directions.numpy()
    here = traced(grid, POSE[None], directions)
    pose = SECOND_CAMERA @ POSE
    there = traced(grid, pose[None], directions, camera=inverse(SECOND_CAMERA))
    for found, expected in zip(there, here, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_cameras_that_are_nowhere_or_too_far_off_see_nothing():
    """And read no memory beyond the grid: a start of a robot may hold anything."""
    grid = as_grid(AnalyticField(density=4.0), degree=1)
    directions = chosen_rays(
        photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()
    ).directions.numpy()
    poses = []
    for row in range(3):
        for column in range(4):
            for value in (np.nan, np.inf, -np.inf):
                poses.append(POSE.copy())
                poses[-1][row, column] = value
    for shift in ((0, 0, 1e5), (9e4, 0, 9e4), (0, 0, -1e12), (1e38, 1e38, 1e38), (0, 3e37, 1)):
        poses.append(moved(POSE, np.array([*shift, 0.0, 0.0, 0.0])))
    poses = np.stack([POSE, *poses, POSE])
    colours, jacobians = traced(grid, poses, directions)
    assert not colours[1:-1].any() and not jacobians[1:-1].any()
    (alone,), (derivative,) = traced(grid, POSE[None], directions)
    for k in (0, -1):
        np.testing.assert_array_equal(colours[k], alone)
        np.testing.assert_array_equal(jacobians[k], derivative)
    assert alone.any()


def differences(grid, axis: int, directions: np.ndarray) -> np.ndarray:
    """(R, 4) of finely sampled rays, by a step of the pose along `axis` of the twist."""
    twist = np.zeros(6)
    twist[axis] = size = 1e-3
    ends = np.stack([moved(POSE, twist), moved(POSE, -twist)])
    both, _ = traced(grid, ends, directions, FINE_STEP)
    return (both[0] - both[1]) / (2 * size)


@pytest.mark.parametrize(("step", "most"), [(FINE_STEP, 0.01), (STEP, 0.03)], ids=["fine", "used"])
def test_the_jacobian_is_the_finite_difference(grid, step, most):
    directions = chosen_rays(
        photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()
    ).directions.numpy()
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
    directions = chosen_rays(
        photo_of(grid, POSE), image_pixels((SIZE, SIZE)).numpy()
    ).directions.numpy()
    _, jacobians = traced(grid, POSE[None], directions)
    for axis in range(6):
        expected = (differences(grid, axis, directions) ** 2).sum()
        assert 0.9 < (jacobians[0, :, :, axis] ** 2).sum() / expected < 1.3, axis


PIXELS = SIZE * SIZE


def term_of(grid, photo, exposure=False, rays=PIXELS, robust=ROBUST) -> RadianceTerm:
    """Of one object, seen in one photo."""
    term = RadianceTerm(
        {"thing": grid}, {"thing": np.zeros(3)}, 2, rays, "random", exposure, robust=robust
    )
    load(term, [("thing", POSE)], [(0, Observation(1, whole_image=photo))])
    return term


def load(term, named_poses, rows) -> None:
    term.observe([seen for _, seen in rows])
    poses = [Hypothesis(name, at, index=i) for i, (name, at) in enumerate(named_poses)]
    term.load(poses, rows)


def linearized(term, poses) -> NormalEquations:
    """Of the term at poses (B, 4, 4)."""
    batch, out = (allocate(struct, len(poses), "cpu") for struct in (PoseBatch, NormalEquations))
    batch.active.numpy()[:] = 1
    batch.rotation.numpy()[:] = poses[:, :3, :3]
    batch.translation.numpy()[:] = poses[:, :3, 3]
    term.linearize(batch, term.finest, out)
    return out


class Look:
    """What a term says of a pose, again and again: gains and biases settle with their weights."""

    def __init__(self, term):
        self.term = term
        self.batch = allocate(PoseBatch, 1, "cpu")
        self.out = allocate(NormalEquations, 1, "cpu")
        self.batch.active.numpy()[:] = 1

    def at(self, pose):
        """Cost, gradient (6,) and matrix (6, 6)."""
        self.batch.rotation.numpy()[0] = pose[:3, :3]
        self.batch.translation.numpy()[0] = pose[:3, 3]
        for name in NormalEquations.vars:
            getattr(self.out, name).zero_()
        self.term.linearize(self.batch, self.term.finest, self.out)
        return (
            float(self.out.cost.numpy()[0]),
            self.out.gradient.numpy()[0].copy(),
            self.out.hessian.numpy()[0].copy(),
        )


TURN = np.array([0.01, -0.008, 0.03, 0.02, -0.03, 0.02])


@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_the_gradient_is_that_of_the_cost(grid, opacity, exposure):
    photo = photo_of(grid, POSE, opacity)
    look = Look(term_of(grid, photo, exposure))
    pose = moved(POSE, TURN)

    def cost(where):
        for _ in range(4 if exposure else 1):  # gain and bias settle with their weights
            found = look.at(where)
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
    gain, bias = np.array([0.8, 1.1, 0.9]), np.array([0.05, -0.1, 0.1])
    colour, behind = gain * photo.colour + bias, WHITE
    if masked:  # what is behind the object is black, whatever the light
        share = photo.opacity[..., None]
        colour, behind = gain * (photo.colour - (1.0 - share)) + share * bias, np.zeros(3)
    darker = Whole(colour.astype(np.float32), photo.opacity, None, photo.pinhole, behind)
    term, solver = term_of(grid, darker, exposure=True), Solver(2)
    solver.load(moved(POSE, TURN)[None], np.array([1.0]))
    solver.run([term], [Level(40, 1e-4, {"radiance": 0}, 0.0)])
    fit = solver.evaluate([term])["radiance"]
    found = solver.result()["reference_from_object"][0]
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
    costs = []
    for colour in (photo.colour, spoiled):
        half = Whole(colour, None, weight, photo.pinhole, WHITE)
        costs.append(Look(term_of(grid, half, rays=PIXELS // 2)).at(moved(POSE, TURN)))
    assert costs[0][0] > 0.0
    assert costs[0][0] == pytest.approx(costs[1][0], rel=1e-5)
    np.testing.assert_allclose(costs[0][1], costs[1][1], rtol=1e-4)


@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_the_matrix_is_that_of_the_robust_function(grid, exposure):
    """Against float64: far from the truth, where residuals are large and a weight is not enough;
    with exposure less what its gains and biases would explain as well (Schur complement)."""
    photo = photo_of(grid, POSE)
    rays = chosen_rays(photo, image_pixels((SIZE, SIZE)).numpy())
    robust = 0.05
    off = moved(POSE, 3.0 * TURN)
    _, _, found = Look(term_of(grid, photo, exposure, robust=robust)).at(off)
    colours, jacobians = (
        a[0].astype(np.float64) for a in traced(grid, off[None], rays.directions.numpy())
    )
    x, y = colours[:, :3] + (1.0 - colours[:, 3:]) * WHITE, rays.observed.numpy()[:, :3]
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
    grids = {f"degree{d}": as_grid(AnalyticField(density=4.0), degree=d) for d in (0, 1)}
    poses = np.stack([moved(POSE, TURN), moved(POSE, -TURN)])
    photos = [photo_of(grid, POSE) for grid in grids.values()]
    alone = [
        Look(term_of(grid, photo)).at(pose)
        for grid, photo, pose in zip(grids.values(), photos, poses, strict=True)
    ]
    at_origin = dict.fromkeys(grids, np.zeros(3))
    term = RadianceTerm(grids, at_origin, 2, PIXELS, "random")
    rows = [(i, Observation(i, whole_image=photo)) for i, photo in enumerate(photos)]
    load(term, list(zip(grids, poses, strict=True)), rows)
    out = linearized(term, poses)
    for i in range(2):
        assert out.cost.numpy()[i] == pytest.approx(alone[i][0], rel=1e-5)
        np.testing.assert_allclose(out.gradient.numpy()[i], alone[i][1], rtol=1e-3)


def test_what_has_no_field_or_no_photo_is_not_seen(grid):
    """Beside what has both, which is as if alone."""
    photo, pose = photo_of(grid, POSE), moved(POSE, TURN)
    alone = Look(term_of(grid, photo)).at(pose)
    pivots = dict.fromkeys(("thing", "plain"), np.zeros(3))
    term = RadianceTerm({"thing": grid}, pivots, 3, PIXELS, "random")
    seen, blind = Observation(1, whole_image=photo), Observation(2)
    named = [("plain", pose), ("thing", pose), ("thing", pose)]
    load(term, named, [(0, seen), (1, seen), (2, blind)])
    assert term.sees.tolist() == [False, True, False]
    out = linearized(term, np.stack([pose] * 3))
    assert out.cost.numpy()[1] == pytest.approx(alone[0], rel=1e-5)
    np.testing.assert_allclose(out.gradient.numpy()[1], alone[1], rtol=1e-3)
    for name in NormalEquations.vars:
        assert not getattr(out, name).numpy()[[0, 2]].any(), name
    fit = term.fit()
    assert fit.cost[1] > 0.0 and not fit.cost[[0, 2]].any()


@pytest.mark.parametrize("exposure", [False, True], ids=["known", "exposure"])
def test_cameras_add_up(grid, exposure):
    """Each along its own axes, B' H B along those of the reference."""
    in_second = inverse(SECOND_CAMERA)
    seen_there = in_second @ POSE
    there = seen_there.copy()
    there[:2, 3] = 0.0  # so that it is in the picture
    reference_from_second = POSE @ np.linalg.inv(there)
    photos = [photo_of(grid, POSE), photo_of(grid, there)]
    pose = moved(POSE, TURN)
    each = [
        Look(term_of(grid, photos[0], exposure)).at(pose),
        Look(term_of(grid, photos[1], exposure)).at(inverse(reference_from_second) @ pose),
    ]
    B = np.zeros((6, 6))
    B[:3, :3] = B[3:, 3:] = inverse(reference_from_second)[:3, :3]
    assert rotation_away(B[:3, :3]) > 0.5
    seen = [
        Observation(1, whole_image=photos[0]),
        Observation(1, whole_image=photos[1], reference_from_camera=reference_from_second),
    ]
    both = term_of(grid, photos[0], exposure)
    load(both, [("thing", pose)], [(0, one) for one in seen])
    cost, gradient, hessian = Look(both).at(pose)
    assert cost == pytest.approx(each[0][0] + each[1][0], rel=1e-3)
    expected = each[0][1] + B.T @ each[1][1]
    np.testing.assert_allclose(gradient, expected, atol=1e-3 * np.abs(expected).max())
    expected = each[0][2] + B.T @ each[1][2] @ B
    np.testing.assert_allclose(hessian, expected, atol=1e-3 * np.abs(expected).max())
    fit = both.fit()
    parts = fit.sectors[0].sum(axis=0)
    # what changes of exposure explain as well is not taken from the parts
    if not exposure:
        np.testing.assert_allclose(parts, gradient, atol=1e-3 * np.abs(gradient).max())
    assert fit.cost[0] == pytest.approx(cost, rel=1e-6)


def rotation_away(rotation: np.ndarray) -> float:
    return float(se3.rotation_angle(torch.as_tensor(rotation)))


def test_colours_are_compared_where_mask_and_field_are(grid):
    photo = photo_of(grid, POSE, opacity=True)
    term = term_of(grid, photo)
    look = Look(term)
    look.at(POSE)
    right = term.fit()
    assert right.colour_rms[0] < 0.005 and right.covered[0] > 0.99
    assert right.correlation[0] > 0.9
    beside = moved(POSE, np.array([0.3, 0.0, 0.0, 0.0, 0.0, 0.0]))
    look.at(beside)
    off = term.fit()
    assert off.colour_rms[0] > 0.05 and 0.2 < off.covered[0] < 0.9
    assert off.correlation[0] < 0.5
    look.at(moved(POSE, np.array([3.0, 0.0, 0.0, 0.0, 0.0, 0.0])))
    away = term.fit()  # no ray meets it: its colours are not right for that
    assert away.colour_rms[0] == 1.0 and away.covered[0] == 0.0


def test_correlation_is_that_within_tiles():
    """Whatever gain and bias each tile has; what has no pattern has none in common."""
    rng = np.random.default_rng(0)
    x = rng.random((3, 9, 40))  # pose, tile, ray
    y = rng.random((3, 9, 1)) + 0.5 * x
    y[1] = rng.random((9, 40))
    x[2], y[2] = 0.5, 0.7
    ones = np.ones_like(x)
    sums = np.stack([one.sum(axis=-1) for one in (ones, x, y, x * x, y * y, x * y)], axis=-1)
    same, other, flat = correlation(sums.astype(np.float32))
    assert same > 0.99 and abs(other) < 0.2 and abs(flat) < 0.01


def test_the_cost_is_counted_in_pixels(grid):
    """A difference of COLOUR_OF_PIXEL costs what a pixel's does in a silhouette, half of one."""
    photo = photo_of(grid, POSE)
    small = 0.01
    off = Whole(photo.colour + np.float32(small), None, None, photo.pinhole, WHITE)
    value, _, _ = Look(term_of(grid, off, robust=100.0)).at(POSE)
    expected = 0.5 * 3 * (small / COLOUR_OF_PIXEL) ** 2 * SIZE * SIZE
    assert value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("opacity", [False, True], ids=["rgb", "mask"])
def test_empty_ground_does_not_dilute_the_colours(grid, opacity):
    photo = photo_of(grid, POSE, opacity)
    beside = moved(POSE, np.array([0.05, 0.0, 0.0, 0.0, 0.0, 0.0]))
    found = []
    for most in (SIZE, SIZE // 2):  # pixels of the photo's side
        low = (SIZE - most) // 2
        part = slice(low, low + most), slice(low, low + most)
        cut = Whole(
            photo.colour[part],
            photo.opacity[part] if opacity else None,
            None,
            photo.pinhole - [0.0, 0.0, low, low],
            WHITE,
        )
        term = term_of(grid, cut, rays=most * most)
        Look(term).at(beside)
        found.append(term.fit().rms[0])
    assert found[0] > 0.02
    assert found[0] == pytest.approx(found[1], rel=0.25)
