# SPDX-License-Identifier: Apache-2.0
"""Refinement by gradient descent: poses get better, nobody harms anybody, networks stay."""

import copy

import numpy as np
import pytest
import torch
from shapes import angle_deg, ell, pose, random_rotation, random_turn, turned
from torch import nn

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.baselines.gradient_descent import (
    GradientDescentError,
    alignment_error,
    refine_encoder,
    refine_pose,
)
from pose_refiner_ros.baselines.soft_rasterizer import SoftRasterizer
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

SIZE = 64
PINHOLE = np.array([120.0, 120.0, 31.5, 31.5])
MESH = ell()


@pytest.fixture(scope="module")
def rasterizer() -> SoftRasterizer:
    return SoftRasterizer([MESH], (SIZE, SIZE))


def masks_of(poses: np.ndarray) -> np.ndarray:
    return draw(MeshBatch([MESH]), np.zeros(len(poses), int), poses, PINHOLE, SIZE)


def problem(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True poses, poses 8 degrees and some percent off, and the masks of the true ones."""
    rng = np.random.default_rng(seed)
    truth = np.stack([pose(translation=(0.01, 0.02, 0.6)) for _ in range(count)])
    for one in truth:
        one[:3, :3] = random_rotation(rng)
    start = np.stack([
        turned(one, random_turn(rng, np.radians(8.0)), rng.normal(size=3) * (0.008, 0.008, 0.02))
        for one in truth
    ])  # fmt: skip
    return truth, start, masks_of(truth)


def overlap(poses: np.ndarray, masks: np.ndarray) -> np.ndarray:
    drawn = masks_of(poses)
    return (drawn & masks).sum(axis=(1, 2)) / (drawn | masks).sum(axis=(1, 2))


def test_poses_are_recovered(rasterizer):
    truth, start, masks = problem(8)
    result = refine_pose(rasterizer, masks, start, PINHOLE)
    found = result.camera_from_object.numpy()

    assert found.dtype == np.float64
    assert result.losses.shape == (31, 8) and result.poses.shape == (31, 8, 4, 4)
    np.testing.assert_allclose(result.poses[0], start, atol=1e-12)
    np.testing.assert_allclose(
        found[:, :3, :3] @ found[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (8, 1, 1)),
        atol=1e-9,
    )  # fmt: skip
    angles = [angle_deg(a, b) for a, b in zip(found, truth, strict=True)]
    assert np.median(angles) < 3.0
    assert overlap(start, masks).mean() < 0.8
    assert overlap(found, masks).mean() > 0.92
    # the best of the way, not the last
    at = result.losses.argmin(dim=0)
    for i in range(8):
        np.testing.assert_array_equal(found[i], result.poses[at[i], i].numpy())


def test_no_object_reaches_another(rasterizer):
    _, start, masks = problem(4)
    start[1] = np.nan
    start[2, 2, 3] = -1.0  # behind the camera
    masks[3] = 0
    together = refine_pose(rasterizer, masks, start, PINHOLE, steps=8)
    alone = refine_pose(rasterizer, masks[:1], start[:1], PINHOLE, steps=8)
    np.testing.assert_allclose(
        together.camera_from_object[0], alone.camera_from_object[0], atol=1e-6
    )
    for i in (1, 2, 3):  # nothing to go by: the pose it had
        np.testing.assert_array_equal(together.camera_from_object[i], start[i])
    assert together.losses[:, 1].isinf().all() and together.losses[:, 2:].isfinite().all()


def test_unknown_pixels_do_not_pull(rasterizer):
    truth, start, masks = problem(3, seed=1)
    covered = masks.copy()
    covered[:, :, SIZE // 2 :] = 0  # the right half of the window is hidden
    weight = np.ones(masks.shape)
    weight[:, :, SIZE // 2 :] = 0
    a = refine_pose(rasterizer, covered, start, PINHOLE, weight=weight, steps=10)
    b = refine_pose(rasterizer, masks, start, PINHOLE, weight=weight, steps=10)
    np.testing.assert_array_equal(a.camera_from_object, b.camera_from_object)
    at_truth = refine_pose(rasterizer, covered, truth, PINHOLE, weight=weight, steps=0)
    misled = refine_pose(rasterizer, covered, truth, PINHOLE, steps=0)
    assert (at_truth.losses < misled.losses).all()
    np.testing.assert_allclose(at_truth.camera_from_object, truth, atol=1e-12)


def test_callers_without_gradients_may_refine(rasterizer):
    _, start, masks = problem(1)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        result = refine_pose(rasterizer, masks, start, torch.tensor(PINHOLE), steps=2)
    assert result.losses[-1] < result.losses[0]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 64)])
def test_the_error_of_equal_pictures_is_zero(size):
    target = torch.zeros(2, *size)
    target[0] = 1.0
    error = alignment_error(1e3 * target, target)
    torch.testing.assert_close(error, torch.zeros(2))
    assert alignment_error(1e3 * target.flip(0), target)[0] > 0


class SmallEncoder(nn.Module):
    """Features to a twist that moves a fixed pose."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 6))

    def forward(self, features):
        return 0.1 * self.layers(features)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SmallEncoder()


def test_an_encoder_learns_one_object_and_is_left_as_it_was(rasterizer, encoder):
    truth, start, masks = problem(1, seed=2)
    features, start = torch.randn(1, 16), torch.tensor(start).float()
    before = copy.deepcopy(encoder.state_dict())

    def pose_of(network):
        return se3.perturb(start, network(features))

    result = refine_encoder(pose_of, encoder, rasterizer, masks, PINHOLE, rate=2e-3)
    assert result.losses.shape == (31, 1) and result.camera_from_object.shape == (1, 4, 4)
    assert result.losses.min() < 0.5 * result.losses[0]
    found, given = result.camera_from_object.numpy(), result.poses[0].numpy()
    assert overlap(found, masks)[0] > overlap(given, masks)[0] + 0.05

    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    again = refine_encoder(pose_of, encoder, rasterizer, masks, PINHOLE, rate=2e-3)
    torch.testing.assert_close(again.losses, result.losses)


def test_a_network_that_says_nan_ends_with_its_first_pose(rasterizer, encoder):
    _, start, masks = problem(1)
    start = torch.tensor(start).float()

    def pose_of(network):
        pose = se3.perturb(start, network(torch.ones(1, 16)))
        return pose if first.pop(0) else pose * torch.nan

    first = [True] + [False] * 5
    result = refine_encoder(pose_of, encoder, rasterizer, masks, PINHOLE, steps=5)
    torch.testing.assert_close(result.camera_from_object, result.poses[0])
    assert result.losses[1:].isinf().all()


def test_a_pose_that_no_weight_can_move_is_named(rasterizer, encoder):
    _, start, masks = problem(1)
    with pytest.raises(GradientDescentError, match="does not depend"):
        refine_encoder(lambda n: torch.tensor(start), encoder, rasterizer, masks, PINHOLE)
    with pytest.raises(GradientDescentError, match="no weights"):
        refine_encoder(lambda n: torch.tensor(start), nn.ReLU(), rasterizer, masks, PINHOLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros((1, 32, 32))}, "target has shape"),
        ({"target": np.full((1, SIZE, SIZE), 255)}, "divided by 255"),
        ({"target": np.full((1, SIZE, SIZE), np.nan)}, "give 0 to 1"),
        ({"weight": np.ones((1, SIZE))}, "weight has shape"),
        ({"camera_from_object": np.eye(4)}, "camera_from_object has shape"),
        ({"steps": -1}, "0 or more steps"),
        ({"rate": 0.0}, "rate above 0"),
        ({"pinhole": np.ones(3)}, "pinhole has shape"),
    ],
)
def test_what_cannot_be_refined_is_named(rasterizer, change, message):
    _, start, masks = problem(1)
    arguments = {"target": masks, "camera_from_object": start, "pinhole": PINHOLE} | change
    with pytest.raises(ValueError, match=message):
        refine_pose(rasterizer, **arguments)
