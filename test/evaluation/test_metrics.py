# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.evaluation import metrics
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.symmetry import Axis, Symmetries

CAMERA = Camera([[600, 0, 320], [0, 600, 240], [0, 0, 1]], (480, 640))
QUARTERS = Symmetries([Axis((0, 0, 1)).turn(np.pi / 2)])
ROUND = Symmetries(axes=(Axis((0, 0, 1), (0.02, -0.01, 0.0)),))
SPHERE = Symmetries(axes=(Axis((0, 0, 1)), Axis((1, 0, 0))))
rng = np.random.default_rng(3)
POINTS = rng.uniform((-0.1, -0.05, -0.03), (0.1, 0.05, 0.03), (200, 3))


def random_poses(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    poses = np.tile(np.eye(4), (n, 1, 1))
    poses[:, :3, :3] = se3.random_rotation(n, generator=generator, dtype=torch.float64).numpy()
    low, high = (-0.2, -0.2, 0.8), (0.2, 0.2, 1.2)
    poses[:, :3, 3] = np.random.default_rng(seed).uniform(low, high, (n, 3))
    return poses


def perturbed(poses, scale, seed=1):
    generator = torch.Generator().manual_seed(seed)
    twist = scale * torch.randn(len(poses), 6, generator=generator, dtype=torch.float64)
    return se3.perturb(torch.from_numpy(poses), twist).numpy()


def moved(pose, points):
    return points @ pose[:3, :3].T + pose[:3, 3]


def test_pose_errors_without_symmetry():
    truth = random_poses(10)
    twist = torch.tensor([0.03, 0, 0.04, 0.2, 0.0, 0.0], dtype=torch.float64)
    estimate = se3.perturb(torch.from_numpy(truth), twist).numpy()
    rotation, translation = metrics.pose_errors(estimate, truth)
    np.testing.assert_allclose(rotation, 0.2)
    np.testing.assert_allclose(translation, 0.05)
    one = metrics.pose_errors(estimate[0], truth[0])
    assert np.ndim(one[0]) == 0 and one[0] == pytest.approx(0.2)


@pytest.mark.parametrize("symmetries", [QUARTERS, ROUND, SPHERE], ids=["four", "round", "sphere"])
def test_equivalent_poses_have_no_error(symmetries):
    truth = random_poses(5)
    for k in (1, 7, -1):
        estimate = truth @ symmetries.transforms(40)[k % len(symmetries.transforms(40))]
        rotation, translation = metrics.pose_errors(estimate, truth, symmetries)
        np.testing.assert_allclose(rotation, 0, atol=1e-9)
        np.testing.assert_allclose(translation, 0, atol=1e-9)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([QUARTERS, ROUND]))
def test_closed_form_finds_the_least_rotation(seed, symmetries):
    truth, estimate = random_poses(2, seed)
    rotation, _ = metrics.pose_errors(estimate, truth, symmetries)
    tried = [
        metrics.pose_errors(estimate @ transform, truth)[0]
        for transform in symmetries.transforms(720)
    ]
    assert rotation <= min(tried) + 1e-9
    assert rotation == pytest.approx(min(tried), abs=np.pi / 720)


def test_add_and_add_s_against_their_definitions():
    truth = random_poses(4)
    estimate = perturbed(truth, 0.05)
    by_add = metrics.add(estimate, truth, POINTS)
    by_add_s = metrics.add_s(estimate, truth, POINTS)
    for a, b, got, got_s in zip(estimate, truth, by_add, by_add_s, strict=True):
        x, y = moved(a, POINTS), moved(b, POINTS)
        assert got == pytest.approx(np.linalg.norm(x - y, axis=1).mean())
        every = np.linalg.norm(x[None] - y[:, None], axis=2)
        assert got_s == pytest.approx(every.min(1).mean())


@pytest.mark.parametrize("symmetries", [None, QUARTERS, ROUND], ids=["none", "four", "round"])
def test_mssd_and_mspd_against_their_definitions(symmetries):
    truth = random_poses(3)
    estimate = perturbed(truth, 0.3)
    transforms = [np.eye(4)] if symmetries is None else symmetries.transforms(metrics.BOP_STEPS)
    surface, projection = [], []
    for a, b in zip(estimate, truth, strict=True):
        x = moved(a, POINTS)
        surface.append(
            min(np.linalg.norm(x - moved(b @ s, POINTS), axis=1).max() for s in transforms)
        )
        u = CAMERA.project(x)
        projection.append(
            min(
                np.linalg.norm(u - CAMERA.project(moved(b @ s, POINTS)), axis=1).max()
                for s in transforms
            )
        )
    np.testing.assert_allclose(metrics.mssd(estimate, truth, POINTS, symmetries), surface)
    np.testing.assert_allclose(
        metrics.mspd(estimate, truth, POINTS, CAMERA, symmetries), projection
    )
    single = metrics.mssd(estimate[0], truth[0], POINTS, symmetries)
    assert single == pytest.approx(surface[0])


def test_mspd_of_a_pose_behind_the_camera_is_infinite():
    truth = random_poses(1)[0]
    behind = truth.copy()
    behind[2, 3] = -1
    assert metrics.mspd(behind, truth, POINTS, CAMERA, QUARTERS) == np.inf


def test_mssd_of_a_flat_object():
    flat = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]])
    truth = np.eye(4)
    turned = Axis((0, 0, 1)).turn(np.pi)
    assert metrics.mssd(turned, truth, flat) == pytest.approx(0.2)


def test_iou():
    a, b = np.zeros((2, 4, 4), bool)
    a[:2], b[1:3] = True, True
    assert metrics.iou(a, b) == pytest.approx(1 / 3)
    known = np.ones((4, 4), bool)
    known[0] = False
    assert metrics.iou(a, b, known) == pytest.approx(1 / 2)
    assert metrics.iou(a, ~a) == 0 and metrics.iou(a & ~a, a & ~a) == 0
    np.testing.assert_allclose(metrics.iou(np.stack([a, b]), b), [1 / 3, 1])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"truth must be poses .* got \(3, 3\)"):
        metrics.pose_errors(np.eye(4), np.eye(3))
