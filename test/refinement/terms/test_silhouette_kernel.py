# SPDX-License-Identifier: Apache-2.0
"""The silhouette kernel against a slow numpy twin, exact integrals and finite differences."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import silhouette_twin as twin
from linearize import Picture, linearize
from scipy.spatial import ConvexHull
from shapes import box, cylinder, ell, plate, pose, random_poses, turned

from pose_refiner_ros.geometry.pose import about_point, skew
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

SIZE = 72
PINHOLE = np.array([110.0, 104.0, 37.3, 34.8])
SHAPES = {"ell": ell(), "box": box(), "cylinder": cylinder(sections=14), "plate": plate()}
FIELDS = ("hessian", "gradient", "cost", "weight", "measures", "sectors")


def waves(size: int = SIZE) -> np.ndarray:
    """A psi without symmetry, negative in the middle."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return 0.1 * np.hypot(x - 33, 1.2 * (y - 36)) - 1.8 + 0.8 * np.sin(x / 5) * np.cos(y / 7)


# --- linearisation against the twin -------------------------------------------------------------


def assert_same(result, row: int, expected, tolerance: float = 1e-4) -> None:
    """A ten-thousandth: a single sample that fell to the other side would cost a thousandth."""
    largest = np.abs(expected.gradient).max()
    np.testing.assert_allclose(result.gradient[row], expected.gradient, atol=tolerance * largest)
    largest = np.abs(expected.hessian).max()
    np.testing.assert_allclose(result.hessian[row], expected.hessian, atol=tolerance * largest)
    measures = [expected.area, expected.overlap, expected.square, expected.length]
    measures += [expected.unknown, expected.weight, expected.slope]
    np.testing.assert_allclose(result.measures[row], measures, rtol=tolerance, atol=1e-3)
    np.testing.assert_allclose(result.cost[row], expected.cost, rtol=tolerance, atol=1e-2)
    np.testing.assert_allclose(result.weight[row], expected.weight, rtol=tolerance)


@pytest.mark.parametrize("grain", [1, 2])
@pytest.mark.parametrize("name", SHAPES)
def test_the_linearisation_is_that_of_the_twin(name, grain):
    picture = Picture(waves(), PINHOLE, scale=4.0, pixel=1.5)
    poses = random_poses(3, seed=grain)
    result = linearize([SHAPES[name]], [picture], poses, spacing=1.5, grain=grain)
    for row, camera_from_object in enumerate(poses):
        expected = twin.linearize(SHAPES[name], picture, camera_from_object, 1e-3, 1.5, grain)
        assert expected.length > 50 and expected.area > 100  # something to compare
        assert_same(result, row, expected)


@pytest.mark.parametrize("name", ["box", "plate"])
def test_the_linearisation_through_the_near_plane_is_that_of_the_twin(name):
    picture = Picture(waves(), PINHOLE, scale=4.0)
    poses = np.stack([
        pose((0.3, 1.2, 0.2), (0.01, 0.02, 0.12)),
        pose((1.4, 0.2, 0.5), (-0.02, 0.06, 0.1)),
    ])  # fmt: skip
    mesh = box(0.3, 0.1, 0.1) if name == "box" else SHAPES[name]
    depth = mesh.vertices @ poses[0, 2, :3] + poses[0, 2, 3]
    assert depth.min() < 0.03 < depth.max()
    result = linearize([mesh], [picture], poses, near=0.03, spacing=1.5)
    for row, camera_from_object in enumerate(poses):
        expected = twin.linearize(mesh, picture, camera_from_object, 0.03, 1.5)
        assert_same(result, row, expected, tolerance=1e-3)


def test_unknown_pixels_and_the_photo_border_carry_no_weight():
    psi = waves()
    psi[:, :30] = twin.UNKNOWN
    bounds = (-1e6, -1e6, 1e6, 50.0)
    picture = Picture(psi, PINHOLE, scale=4.0, bounds=bounds)
    camera_from_object = pose((0.5, 0.4, 0.1), (0, 0.01, 0.45))
    result = linearize([ell()], [picture], camera_from_object[None])
    expected = twin.linearize(ell(), picture, camera_from_object)
    assert 0.2 * expected.length < expected.unknown < 0.8 * expected.length
    assert_same(result, 0, expected)
    psi[:, :28] = 0.9e8  # whatever stands there
    again = linearize([ell()], [replace(picture, psi=psi)], camera_from_object[None])
    np.testing.assert_array_equal(again.gradient, result.gradient)
    np.testing.assert_array_equal(again.cost, result.cost)


def test_the_sectors_add_up_to_the_gradient():
    result = linearize([ell()], [Picture(waves(), PINHOLE)], random_poses(4, seed=3))
    np.testing.assert_allclose(result.sectors.sum(axis=1), result.gradient, rtol=1e-4, atol=1e-2)
    assert ((result.sectors != 0).any(axis=2).sum(axis=1) > 20).all()


def test_the_hessian_is_symmetric_and_positive_semi_definite():
    result = linearize([ell(), plate()], [Picture(waves(), PINHOLE)], random_poses(8, seed=4),
                       mesh_of_pose=[0, 1] * 4)  # fmt: skip
    for hessian in result.hessian.astype(np.float64):
        largest = np.abs(hessian).max()
        np.testing.assert_allclose(hessian, hessian.T, atol=1e-6 * largest)
        assert np.linalg.eigvalsh(0.5 * (hessian + hessian.T)).min() > -1e-6 * largest


def test_a_body_of_revolution_gives_no_information_about_its_axis():
    camera_from_object = pose((1.1, 0.0, 0.0), (0, 0, 0.6))
    result = linearize([cylinder(sections=128)], [Picture(waves(), PINHOLE)],
                       camera_from_object[None])  # fmt: skip
    axis = np.concatenate([np.zeros(3), camera_from_object[:3, 2]])
    across = np.concatenate([np.zeros(3), camera_from_object[:3, 1]])
    hessian = result.hessian[0].astype(np.float64)
    assert axis @ hessian @ axis < 1e-3 * (across @ hessian @ across)


# --- derivatives --------------------------------------------------------------------------------


def polygon_integral(corners: np.ndarray, slope: np.ndarray, offset: float) -> float:
    """Exact integral of slope . (x, y) + offset over a convex polygon (N, 2)."""
    corners = corners[ConvexHull(corners).vertices]
    total = 0.0
    for b, c in pairwise(corners[1:]):
        area = abs(twin.cross(b - corners[0], c - corners[0])) / 2
        total += area * (slope @ (corners[0] + b + c) / 3 + offset)
    return total


def numeric_gradient(cost, camera_from_object, shift: float, turn: float) -> np.ndarray:
    """Central differences of cost(pose), each twist taken on the left about the origin."""
    gradient = np.zeros(6)
    for k in range(6):
        step = np.zeros(6)
        step[k] = shift if k < 3 else turn
        plus = cost(turned(camera_from_object, step[3:], step[:3]))
        minus = cost(turned(camera_from_object, -step[3:], -step[:3]))
        gradient[k] = (plus - minus) / (2 * step[k])
    return gradient


@pytest.mark.parametrize("seed", range(8))
def test_the_gradient_is_the_derivative_of_the_exact_cost(seed):
    """A convex object's silhouette is a polygon, and the integral of an affine psi over it is
    exact in float64. Bilinear interpolation of an affine psi is exact too and the outline's
    integrand is smooth, so that only the midpoint rule (squares of a pixel over the outline's
    size) and float32 are left: a thousandth."""
    size = 192
    y, x = np.mgrid[:size, :size].astype(np.float32)
    slope, offset = np.array([0.31, -0.17]), -12.0
    psi = (slope[0] * x + slope[1] * y + offset).astype(np.float32)
    pinhole = np.array([220.0, 200.0, 94.0, 98.0])
    mesh, camera_from_object = box(), random_poses(1, seed)[0]

    def cost(at: np.ndarray) -> float:
        points = mesh.vertices.astype(np.float64) @ at[:3, :3].T + at[:3, 3]
        return polygon_integral(twin.project(points, pinhole), slope, offset)

    result = linearize([mesh], [Picture(psi, pinhole)], camera_from_object[None], spacing=0.5)
    expected = numeric_gradient(cost, camera_from_object, 1e-6, 1e-5)
    for part in (slice(0, 3), slice(3, 6)):
        largest = np.abs(expected[part]).max()
        np.testing.assert_allclose(result.gradient[0][part], expected[part], atol=2e-3 * largest)
    # the drawn cost counts whole pixels: off by a part of psi along the border
    assert result.cost[0] == pytest.approx(cost(camera_from_object), rel=0.02)


@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_is_the_derivative_of_a_finely_drawn_cost(seed):
    """The L hides parts of itself, so its silhouette is drawn, 24 times finer than the picture
    that the kernel looks at. Steps move the outline by about a pixel of the kernel's picture;
    drawing errs by about a twentieth of a fine pixel, hence a few hundredths."""
    size, finer = 64, 24
    pinhole = np.array([90.0, 90.0, 31.5, 31.5])
    fine = np.append(pinhole[:2] * finer, (pinhole[2:] + 0.5) * finer - 0.5)
    y, x = (np.mgrid[: size * finer, : size * finer] + 0.5) / finer - 0.5
    coarse_y, coarse_x = np.mgrid[:size, :size]

    def psi(x, y):
        return 0.02 * (x - 30) ** 2 + 0.03 * (y - 34) * (x - 20) / 10 - 0.1 * y

    fine_psi = psi(x, y)
    mesh, camera_from_object = ell(), random_poses(1, seed + 10)[0]
    batch = MeshBatch([mesh])

    def cost(at: np.ndarray) -> float:
        drawn = draw(batch, [0], at[None], fine, size * finer)[0].astype(bool)
        return fine_psi[drawn].sum() / finer**2

    picture = Picture(psi(coarse_x, coarse_y).astype(np.float32), pinhole)
    result = linearize([mesh], [picture], camera_from_object[None], spacing=0.25)
    expected = numeric_gradient(cost, camera_from_object, 2e-3, 2e-2)
    for part in (slice(0, 3), slice(3, 6)):
        largest = np.abs(expected[part]).max()
        np.testing.assert_allclose(result.gradient[0][part], expected[part], atol=0.04 * largest)


def test_the_hessian_is_how_the_gradient_changes_when_the_outline_lies_on_the_border():
    """psi grows by 1 per pixel across the outline of a box seen face on, so that Gauss-Newton's
    matrix is the second derivative: moving along an axis changes the gradient as it says."""
    size = 96
    pinhole = np.array([100.0, 100.0, 47.5, 47.5])
    y, x = np.mgrid[:size, :size]
    mesh = box(0.4, 0.3, 0.01)
    camera_from_object = pose(translation=(0, 0, 1.0))
    near_face = 1.0 - 0.005
    half_x, half_y = 20 / near_face, 15 / near_face
    psi = np.maximum(np.abs(x - 47.5) - half_x, np.abs(y - 47.5) - half_y).astype(np.float32)
    picture = Picture(psi, pinhole)
    at_rest = linearize([mesh], [picture], camera_from_object[None], spacing=0.5)
    for k, step in ((0, 2e-3), (1, 2e-3), (2, 4e-3)):
        shift = np.zeros(3)
        shift[k] = step
        moved = linearize([mesh], [picture], turned(camera_from_object, (0, 0, 0), shift)[None],
                          spacing=0.5)  # fmt: skip
        change = (moved.gradient[0] - at_rest.gradient[0]) / step
        assert change[k] == pytest.approx(at_rest.hessian[0, k, k], rel=0.06)


def test_a_camera_of_twice_the_resolution_sees_the_same_in_pixels_twice_as_small():
    """Lengths double; the cost is an area times a distance, the gradient the same per metre."""
    picture = Picture(waves(), PINHOLE, scale=4.0)
    y, x = np.mgrid[: 2 * SIZE, : 2 * SIZE].astype(np.float32)
    x, y = (x + 0.5) / 2 - 0.5, (y + 0.5) / 2 - 0.5

    def smooth(x, y):
        return 0.1 * (x - 30) + 0.07 * (y - 40)

    y1, x1 = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    picture = Picture(smooth(x1, y1), PINHOLE, scale=1e3)
    double = np.append(PINHOLE[:2] * 2, (PINHOLE[2:] + 0.5) * 2 - 0.5)
    doubled = Picture(2 * smooth(x, y), double, scale=2e3)
    halved = Picture(smooth(x, y), double, scale=1e3, pixel=0.5)  # in units of the large pixels
    camera_from_object = random_poses(1, seed=7)
    one = linearize([box()], [picture], camera_from_object, spacing=0.25)
    two = linearize([box()], [doubled], camera_from_object, spacing=0.25)
    same = linearize([box()], [halved], camera_from_object, spacing=0.25)
    for result, factor in ((two, 8.0), (same, 1.0)):
        largest = np.abs(one.gradient).max()
        np.testing.assert_allclose(
            result.gradient, factor * one.gradient, atol=0.01 * factor * largest
        )
        largest = np.abs(one.hessian).max()
        np.testing.assert_allclose(
            result.hessian, factor * one.hessian, atol=0.01 * factor * largest
        )
        np.testing.assert_allclose(result.cost, factor * one.cost, rtol=0.05)


# --- batches ------------------------------------------------------------------------------------


def test_a_batch_of_different_meshes_and_pictures_is_each_alone():
    meshes = [cylinder(), ell(), box()]
    pictures = [
        Picture(waves(), PINHOLE, scale=4.0),
        Picture(waves(48), PINHOLE * 0.7, scale=3.0, pixel=2.0),
    ]
    poses = random_poses(7, seed=5)
    mesh_of_pose, pictures_of_pose = [0, 1, 2, 2, 1, 0, 1], [0, 1, 1, 0, 0, 1, 1]
    together = linearize(meshes, pictures, poses, mesh_of_pose, pictures_of_pose)
    for k in range(7):
        alone = linearize(
            [meshes[mesh_of_pose[k]]], [pictures[pictures_of_pose[k]]], poses[k : k + 1]
        )
        for field in FIELDS:
            np.testing.assert_array_equal(
                getattr(together, field)[k], getattr(alone, field)[0], err_msg=field
            )
    assert not together.coverage.any()


def test_an_inactive_pose_is_not_touched_and_results_add_to_what_is_there():
    poses = random_poses(3, seed=6)
    picture = Picture(waves(), PINHOLE)
    fresh = linearize([ell()], [picture], poses)
    result = linearize([ell()], [picture], poses, active=[1, 0, 1], fill=7.0)
    for field in FIELDS:
        assert (getattr(result, field)[1] == 7.0).all(), field
    for field in ("hessian", "gradient", "cost", "weight"):
        for k in (0, 2):
            np.testing.assert_allclose(
                getattr(result, field)[k], getattr(fresh, field)[k] + 7.0, rtol=1e-5, atol=1e-2
            )
    for field in ("measures", "sectors"):  # these say how it is now
        np.testing.assert_array_equal(getattr(result, field)[0], getattr(fresh, field)[0])
    for name, values in result.own.items():  # and so do the term's own equations
        assert (values[1] == 7.0).all(), name
        np.testing.assert_array_equal(values[[0, 2]], getattr(fresh, name)[[0, 2]], err_msg=name)
    assert not result.coverage.any()


def test_poses_of_another_point_of_the_object_turn_about_it():
    """The same silhouette; a turn about the new point is one about the origin and a shift."""
    pivot, poses = np.array([0.05, -0.03, 0.08]), random_poses(4, seed=16)
    picture = Picture(waves(), PINHOLE, scale=4.0)
    origin = linearize([ell()], [picture], poses)
    about = linearize([ell()], [picture], about_point(poses, pivot), pivots=pivot[None])
    for k in range(4):
        arm = poses[k, :3, :3] @ pivot
        move = np.eye(6)  # from twists about the point to those about the origin
        move[:3, 3:] = skew(arm)
        for found, expected in (
            (about.gradient[k], move.T @ origin.gradient[k]),
            (about.hessian[k], move.T @ origin.hessian[k] @ move),
        ):
            np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(about.cost, origin.cost, rtol=1e-3)
    np.testing.assert_allclose(about.measures, origin.measures, rtol=1e-3, atol=2.0)


# --- cameras ------------------------------------------------------------------------------------


def some_cameras(count: int, seed: int) -> np.ndarray:
    """(count, 4, 4) camera_from_reference that see what lies near (0, 0, 0.5)."""
    rng = np.random.default_rng(seed)
    cameras = []
    for camera in random_poses(count, seed):
        aimed = camera[:3, 3] + 0.02 * rng.normal(size=3)
        camera[:3, 3] = aimed - camera[:3, :3] @ [0, 0, 0.5]
        cameras.append(camera)
    return np.array(cameras)


def along_reference(camera: np.ndarray) -> np.ndarray:
    """B = diag(R, R)."""
    B = np.zeros((6, 6))
    B[:3, :3] = B[3:, 3:] = camera[:3, :3]
    return B


def test_a_camera_elsewhere_sees_what_it_sees_along_the_axes_of_the_reference():
    (camera,), poses = some_cameras(1, seed=12), random_poses(4, seed=13)
    picture = Picture(waves(), PINHOLE, scale=4.0)
    there = linearize([ell()], [replace(picture, camera_from_reference=camera)], poses)
    here = linearize([ell()], [picture], camera @ poses)
    B = along_reference(camera)
    for k in range(4):
        hessian, gradient = B.T @ here.hessian[k] @ B, B.T @ here.gradient[k]
        largest = np.abs(hessian).max()
        np.testing.assert_allclose(there.hessian[k], hessian, atol=1e-4 * largest)
        largest = np.abs(gradient).max()
        np.testing.assert_allclose(there.gradient[k], gradient, atol=1e-4 * largest)
        sectors = here.sectors[k] @ B
        np.testing.assert_allclose(there.sectors[k], sectors, atol=1e-4 * np.abs(sectors).max())
    np.testing.assert_allclose(there.cost, here.cost, rtol=1e-3)
    np.testing.assert_allclose(there.measures, here.measures, rtol=1e-3, atol=2.0)


def test_cameras_add_up():
    cameras, poses = some_cameras(3, seed=14), random_poses(3, seed=15)
    pictures = [
        Picture(waves(), PINHOLE, scale=4.0, camera_from_reference=cameras[0]),
        Picture(waves(48), PINHOLE * 0.7, 3.0, 2.0, camera_from_reference=cameras[1]),
        Picture(waves().T.copy(), PINHOLE, scale=5.0, camera_from_reference=cameras[2]),
    ]
    seen_in = [[0, 1, 2], [], [2, 0]]
    together = linearize([ell(), box()], pictures, poses, [0, 0, 1], seen_in)
    for k, numbers in enumerate(seen_in):
        each = [linearize([ell(), box()], pictures, poses, [0, 0, 1], [[n]] * 3) for n in numbers]
        for field in FIELDS:
            found = getattr(together, field)[k]
            expected = sum((getattr(one, field)[k] for one in each), np.zeros(found.shape))
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=field)
        for name, values in together.own.items():
            np.testing.assert_array_equal(values[k], getattr(together, name)[k], err_msg=name)
    assert not together.coverage.any()


# --- poses that no camera sees ------------------------------------------------------------------

NAN, INF = np.nan, np.inf


def bad_poses() -> np.ndarray:
    """Poses with nothing to see, or too much."""
    good = pose((0.4, 0.5, 0.2), (0.02, 0.0, 0.5))
    poses = []
    for row in range(3):
        for column in range(4):
            for value in (NAN, INF, -INF):
                bad = good.copy()
                bad[row, column] = value
                poses.append(bad)
    for shift in (
        (0.01, 0.02, 0.0),  # the origin in the camera's plane
        (0.0, 0.0, 0.0),
        (0.01, 0.02, -5.0),  # behind
        (0.0, 0.0, 0.05),  # all around the camera
        (0.0, 0.0, 1e-30),
        (0.0, 0.0, 1e12),
        (0.0, 0.0, 1e38),
        (0.0, 1e7, 0.1),  # pixels that no integer holds
        (0.0, -1e7, 0.1),
        (1e7, 0.0, 0.1),
        (3e37, 3e37, 0.5),
        (0.0, 9e5, 0.1),
        (9e5, 9e5, 0.1),
    ):
        bad = good.copy()
        bad[:3, 3] = shift
        poses.append(bad)
    return np.array(poses)


def check_bad_poses() -> None:
    """Run in a process of its own: what goes wrong here writes to memory of others."""
    picture = Picture(waves(), PINHOLE, scale=4.0)
    good = random_poses(2, seed=8)
    alone = linearize([ell()], [picture], good)
    bad = bad_poses()
    for mesh in (ell(), plate()):
        # a good pose before and after each bad one
        poses = np.concatenate([np.stack([good[0], each, good[1]]) for each in bad])
        result = linearize([mesh], [picture], poses, near=0.004)
        assert not result.coverage.any()
        for field in FIELDS:
            values = getattr(result, field)
            assert np.isfinite(values).all(), field
            if mesh.faces.shape == ell().faces.shape:
                for k in range(len(bad)):
                    assert (values[3 * k] == getattr(alone, field)[0]).all(), (field, bad[k])
                    assert (values[3 * k + 2] == getattr(alone, field)[1]).all(), (field, bad[k])
        # of what holds NaN or infinity nothing is seen
        unseen = [3 * k + 1 for k in range(len(bad)) if not np.isfinite(bad[k]).all()]
        assert (result.weight[unseen] == 0).all() and (result.cost[unseen] == 0).all()
        drawn = draw(MeshBatch([mesh]), [0], poses, PINHOLE, SIZE)
        assert not drawn[unseen].any()
        assert (drawn[0] == drawn[3]).all() and (drawn[2] == drawn[-1]).all()
    print("good poses are as if alone")


def check_blocks() -> None:
    """Run in a process of its own: a setting of Warp for all that follows."""
    import warp as wp

    wp.config.enable_cpu_blocks = True
    meshes = [ell(), box(), cylinder(), plate()]
    picture = Picture(waves(), PINHOLE, scale=4.0)
    poses = random_poses(9, seed=9)
    poses[3, :3, 3] = (0.0, 0.0, 0.06)  # through the near plane
    poses[4, :3, 3] = (0.0, 0.0, -1.0)
    poses[5, 0, 0] = np.nan
    mesh_of_pose = [0, 1, 2, 3, 0, 1, 2, 3, 0]
    active = [1, 1, 1, 1, 1, 1, 1, 1, 0]
    for grain in (1, 2):
        one, many = (
            linearize(meshes, [picture], poses, mesh_of_pose, active=active, near=0.01,
                      grain=grain, lanes=lanes, fill=3.0)
            for lanes in (1, int(sys.argv[2]))
        )  # fmt: skip
        assert not many.coverage.any()
        for field in FIELDS:
            expected = getattr(one, field)
            for row in range(len(poses)):
                np.testing.assert_allclose(
                    getattr(many, field)[row],
                    expected[row],
                    atol=1e-5 * np.abs(expected[row]).max(),
                    err_msg=f"{field} of pose {row}",
                )
    print("lanes agree")


def run_alone(*arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, f"exit {run.returncode}: {run.stderr[-2000:]}"
    return run.stdout


def test_a_pose_that_no_camera_sees_harms_no_other():
    assert "good poses are as if alone" in run_alone("bad poses")


@pytest.mark.parametrize("lanes", [32, 128], ids=["one warp", "several warps"])
def test_lanes_that_share_a_pose_find_what_one_lane_finds(lanes):
    """What CUDA runs, on the CPU: the lanes of a block take turns between the barriers."""
    assert "lanes agree" in run_alone("blocks", str(lanes))


if __name__ == "__main__":
    check_blocks() if sys.argv[1] == "blocks" else check_bad_poses()
