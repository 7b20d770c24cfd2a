# SPDX-License-Identifier: Apache-2.0
"""The heads: poses from numbers, errors of poses, losses."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.encoder.inference import hypothesis_covariances
from pose_refiner_ros.encoder.pose_heads import (
    ContinuousHead,
    EulerCosineHead,
    PoseHypotheses,
    camera_from_ray,
)

SIZE = 64
# windows that look straight ahead, to the side, far into a corner, and with pixels not square
PINHOLES = torch.tensor(
    [[90.0, 90, 31.5, 31.5], [120, 120, -80, 40], [40, 40, 90, -60], [70, 110, 10, 50]],
    dtype=torch.float64,
)


def poses(count: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    result = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    result[:, :3, :3] = se3.random_rotation(count, generator=generator, dtype=torch.float64)
    result[:, :2, 3] = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    result[:, 2, 3] = 4.0 + 4.0 * torch.rand(count, generator=generator, dtype=torch.float64)
    return result


def as_hypotheses(pose: torch.Tensor, count: int = 2) -> PoseHypotheses:
    pose = pose[:, None].expand(-1, count, -1, -1)
    zero = torch.zeros(len(pose), count, 6, dtype=pose.dtype)
    return PoseHypotheses(pose, zero[..., 0], zero)


def answering(head, raw: torch.Tensor):
    """The head with these numbers (B, N) as what its linear layer says; features are indices."""

    def say(pinhole):
        with torch.no_grad():
            head.linear.weight.copy_(raw.T)
            head.linear.bias.zero_()
            return head(torch.eye(len(raw)), pinhole, SIZE)

    return say


def said(columns, place, seed=0):
    """Raw numbers (B, 2 * 16) of the continuous head, both hypotheses alike."""
    count = len(columns)
    one = torch.cat([torch.zeros(count, 1), columns, place, torch.zeros(count, 6)], 1)
    return one.repeat(1, 2)


# --- the window's ray ---------------------------------------------------------------------------


def test_the_optical_axis_is_turned_to_the_windows_middle():
    turn, centre, half = camera_from_ray(PINHOLES, SIZE)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), eye.expand(4, 3, 3))
    middle = (31.5 - PINHOLES[:, 2:]) / PINHOLES[:, :2]
    torch.testing.assert_close(centre, middle)
    torch.testing.assert_close(half, 32.0 / PINHOLES[:, :2])
    ray = torch.cat([middle, torch.ones(4, 1, dtype=torch.float64)], 1)
    ray = ray / ray.norm(dim=1, keepdim=True)
    torch.testing.assert_close(turn[:, :, 2], ray)
    # the least such rotation: its axis is at right angles to the optical axis, its angle theirs
    vector = Rotation.from_matrix(turn.numpy()).as_rotvec()
    np.testing.assert_allclose(vector[:, 2], 0.0, atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(vector, axis=1), np.arccos(ray[:, 2].numpy()), atol=1e-7
    )


# --- the continuous head ------------------------------------------------------------------------


def test_any_pose_can_be_said():
    truth = poses().float()
    pinhole = PINHOLES.float()
    turn, centre, half = camera_from_ray(pinhole, SIZE)
    columns = (turn.transpose(1, 2) @ truth[:, :3, :3])[:, :, :2]
    columns = 3.0 * columns.transpose(1, 2).reshape(4, 6)  # of any length
    xy = (truth[:, :2, 3] / truth[:, 2:3, 3] - centre) / half
    depth = (truth[:, 2:3, 3] * half.mean(1, keepdim=True)).log()
    head = ContinuousHead(4)
    found = answering(head, said(columns, torch.cat([xy, depth], 1)))(pinhole)
    assert found.camera_from_object.shape == (4, 2, 4, 4)
    assert found.logits.shape == (4, 2) and found.log_sigma.shape == (4, 2, 6)
    for k in range(2):
        torch.testing.assert_close(found.camera_from_object[:, k], truth, atol=2e-5, rtol=1e-5)


def test_whatever_the_numbers_the_poses_are_rigid_and_in_front():
    torch.manual_seed(0)
    head = ContinuousHead(16)
    found = head(50.0 * torch.randn(200, 16), PINHOLES[:1].float().expand(200, 4), SIZE)
    R = found.camera_from_object[..., :3, :3]
    torch.testing.assert_close(
        R @ R.transpose(2, 3), torch.eye(3).expand(200, 2, 3, 3), atol=1e-4, rtol=0
    )
    assert (torch.linalg.det(R) > 0.99).all()
    assert (found.camera_from_object[..., 2, 3] > 0).all()
    assert found.camera_from_object.isfinite().all()
    assert (found.log_sigma >= -7).all() and (found.log_sigma <= 2).all()
    torch.testing.assert_close(
        found.camera_from_object[..., 3, :], torch.tensor([0.0, 0, 0, 1]).expand(200, 2, 4)
    )


def test_the_same_window_seen_aside_is_the_same_object_turned():
    """Another principal point: the camera looks at the same window in another direction."""
    torch.manual_seed(1)
    straight = torch.tensor([[90.0, 90, 31.5, 31.5]])
    aside = torch.tensor([[90.0, 90, -60.0, 80.0]])
    raw = said(torch.randn(1, 6), torch.tensor([[0.0, 0.0, 1.4]]))
    say = answering(ContinuousHead(1), raw)
    a = say(straight).camera_from_object[0, 0]
    b = say(aside).camera_from_object[0, 0]
    turn = camera_from_ray(aside, SIZE)[0][0]
    torch.testing.assert_close(b[:3, :3], turn @ a[:3, :3], atol=1e-6, rtol=0)
    direction = turn @ (a[:3, 3] / a[:3, 3].norm())
    torch.testing.assert_close(b[:3, 3] / b[:3, 3].norm(), direction, atol=1e-6, rtol=0)
    # as many window widths away, and so as large in the window
    assert b[2, 3] == pytest.approx(float(a[2, 3]), rel=1e-5)


def test_a_finer_window_of_the_same_view_says_the_same():
    raw = said(torch.randn(1, 6), torch.tensor([[0.3, -0.2, 1.4]]))
    say = answering(ContinuousHead(1), raw)
    wide = say(torch.tensor([[90.0, 90, 20.0, 41.0]])).camera_from_object
    # twice the focal length: half the window's width, so twice the distance
    long = say(torch.tensor([[180.0, 180, 8.5, 50.5]])).camera_from_object
    assert long[0, 0, 2, 3] == pytest.approx(2.0 * float(wide[0, 0, 2, 3]), rel=1e-5)


# --- errors -------------------------------------------------------------------------------------


def test_the_truth_has_no_error():
    truth = poses()
    errors = ContinuousHead.errors(as_hypotheses(truth), truth, PINHOLES, SIZE)
    assert errors.shape == (4, 2, 6)
    torch.testing.assert_close(errors, torch.zeros_like(errors), atol=1e-12, rtol=0)


def test_errors_are_what_was_changed():
    """Offsets in half windows, log distance, rotation vector along the ray's axes."""
    truth = poses()
    turn, _, half = camera_from_ray(PINHOLES, SIZE)
    generator = torch.Generator().manual_seed(3)
    change = 0.4 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    moved = truth.clone()
    z = truth[:, 2][:, 3] * change[:, 2].exp()
    xy = truth[:, :2, 3] / truth[:, 2:3, 3] + change[:, :2] * half
    moved[:, :2, 3], moved[:, 2, 3] = xy * z[:, None], z
    in_ray = se3.exp_so3(change[:, 3:])
    moved[:, :3, :3] = turn @ in_ray @ turn.transpose(1, 2) @ truth[:, :3, :3]
    errors = ContinuousHead.errors(as_hypotheses(moved), truth, PINHOLES, SIZE)
    torch.testing.assert_close(errors, change[:, None].expand(-1, 2, -1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("angle", [1e-4, 1.0, 3.0, 3.14])
def test_large_turns_are_told_in_full(angle):
    truth = poses()
    axis = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)
    moved = truth.clone()
    moved[:, :3, :3] = se3.exp_so3(angle * axis) @ truth[:, :3, :3]
    errors = ContinuousHead.errors(as_hypotheses(moved), truth, PINHOLES, SIZE)
    torch.testing.assert_close(
        errors[..., 3:].norm(dim=-1), torch.full((4, 2), angle, dtype=torch.float64), rtol=1e-6,
        atol=1e-9,
    )  # fmt: skip


def test_covariances_follow_the_errors():
    """The linear map from errors to twists, held against finite differences of `errors`."""
    truth = poses()
    step = 1e-6
    derivative = torch.zeros(4, 6, 6, dtype=torch.float64)  # d errors / d twist
    for i in range(6):
        for sign in (1.0, -1.0):
            twist = torch.zeros(6, dtype=torch.float64)
            twist[i] = sign * step
            moved = se3.perturb(truth, twist.expand(4, 6))
            errors = ContinuousHead.errors(as_hypotheses(moved), truth, PINHOLES, SIZE)
            derivative[:, :, i] += sign * errors[:, 0] / (2 * step)
    log_sigma = torch.tensor([-3.0, -3.5, -2.0, -1.0, -2.5, -0.5], dtype=torch.float64)
    jacobian = torch.linalg.inv(derivative)
    expected = jacobian @ torch.diag(2 * (2 * log_sigma).exp()) @ jacobian.transpose(1, 2)
    hypotheses = as_hypotheses(truth)
    hypotheses.log_sigma = log_sigma.expand(4, 2, 6)
    found = hypothesis_covariances(hypotheses, PINHOLES, SIZE)
    torch.testing.assert_close(found[:, 1], expected, rtol=1e-6, atol=1e-9)


def test_a_loss_is_least_at_the_truth():
    truth, pinhole = poses().float(), PINHOLES.float()
    head = ContinuousHead(8)
    exact = head.loss(as_hypotheses(truth), truth, pinhole, SIZE)
    assert exact["place"] < 1e-5 and exact["rotation"] < 1e-3
    moved = se3.perturb(truth, torch.tensor([0.2, 0, 0, 0, 0.3, 0]).expand(4, 6))
    worse = head.loss(as_hypotheses(moved), truth, pinhole, SIZE)
    # Frobenius norm of a difference by an angle: sqrt(8) sin(angle / 2)
    facing = head.facing(truth).sum(1).mean()
    assert worse["rotation"] == pytest.approx(8**0.5 * np.sin(0.15) * float(facing), rel=1e-3)
    assert worse["place"] > 0.01 and worse["sigma"] > exact["sigma"]


def test_sigmas_alone_learn_from_the_size_of_errors():
    truth, pinhole = poses().float(), PINHOLES.float()
    moved = se3.perturb(truth, torch.full((4, 6), 0.1)).requires_grad_()
    found = as_hypotheses(moved)
    found.log_sigma = found.log_sigma.float().requires_grad_()
    ContinuousHead(8).loss(found, truth, pinhole, SIZE)["sigma"].backward()
    assert found.log_sigma.grad.abs().sum() > 0
    assert moved.grad is None or not moved.grad.any()


def test_gradients_stay_finite_at_the_truth():
    truth, pinhole = poses().float(), PINHOLES.float()
    found = as_hypotheses(truth.clone())
    found.camera_from_object = found.camera_from_object.clone().requires_grad_()
    sum(ContinuousHead(8).loss(found, truth, pinhole, SIZE).values()).backward()
    assert found.camera_from_object.grad.isfinite().all()


def seen_from(azimuth: float) -> torch.Tensor:
    """(4, 4) an object 8 m ahead; azimuth 0 shows its front."""
    camera_from_object = torch.eye(4)
    # object x forward, y left, z up; camera z forward, x right, y down
    base = torch.tensor([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]])
    turn = se3.exp_so3(torch.tensor([0.0, 0.0, -float(azimuth)]))
    camera_from_object[:3, :3] = base @ turn
    camera_from_object[2, 3] = 8.0
    return camera_from_object


def test_each_hypothesis_answers_for_its_half_of_the_views():
    head = ContinuousHead(8)
    angles = np.radians([0.0, 60.0, 90.0, -90.0, 120.0, 180.0])
    facing = head.facing(torch.stack([seen_from(a) for a in angles]))
    expected = torch.tensor([[1.0, 0], [1, 0], [1, 1], [1, 1], [0, 1], [0, 1]])
    torch.testing.assert_close(facing, expected, atol=1e-5, rtol=0)
    almost = head.facing(seen_from(np.arccos(-0.1))[None])
    torch.testing.assert_close(almost, torch.tensor([[0.6, 1.0]]), atol=1e-5, rtol=0)


# --- the paper's head ---------------------------------------------------------------------------


def euler_pose(cosines, translation=(0.1, 0.2, 7.0)) -> torch.Tensor:
    raw = torch.tensor([[*np.arctanh(cosines), *translation]], dtype=torch.float32)
    pinhole = PINHOLES[:1].float()
    return answering(EulerCosineHead(1), raw)(pinhole).camera_from_object


def test_cosines_are_angles_from_zero_to_pi():
    rng = np.random.default_rng(0)
    for angles in rng.uniform(0.1, np.pi - 0.1, (20, 3)):
        pose = euler_pose(np.cos(angles))
        assert pose.shape == (1, 1, 4, 4)
        expected = Rotation.from_euler("ZYX", angles).as_matrix()
        np.testing.assert_allclose(pose[0, 0, :3, :3], expected, atol=1e-5)
        np.testing.assert_allclose(pose[0, 0, :3, 3], [0.1, 0.2, 7.0], rtol=1e-6)


def test_a_negative_angle_cannot_be_told():
    """The head's known weakness: the angle with the same cosine comes out instead."""
    angles = np.array([-0.7, 0.5, 0.4])
    pose = euler_pose(np.cos(angles))[0, 0, :3, :3].numpy()
    truth = Rotation.from_euler("ZYX", angles)
    mirrored = Rotation.from_euler("ZYX", np.abs(angles)).as_matrix()
    np.testing.assert_allclose(pose, mirrored, atol=1e-5)
    assert (Rotation.from_matrix(pose) * truth.inv()).magnitude() > 1.0


def test_the_papers_loss():
    """Equation 2: the mean of the squared differences of the 12 numbers of P = [R t]."""
    truth = torch.eye(4)[None].repeat(2, 1, 1)
    truth[:, 2, 3] = 5.0
    found = truth.clone()
    found[0, :3, 3] += torch.tensor([1.0, -2.0, 3.0])  # 14
    found[1, :3, :3] = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))  # 4 + 4
    head = EulerCosineHead(4)
    loss = head.loss(as_hypotheses(found, 1), truth, PINHOLES[:2].float(), SIZE)
    assert set(loss) == {"pose"}
    assert loss["pose"].item() == pytest.approx((14 + 8) / 24)


def test_saturated_cosines_have_gradients():
    head = EulerCosineHead(4)
    features = torch.tensor([[1e4, -1e4, 1e4, 1e4]], requires_grad=True)
    found = head(features, PINHOLES[:1].float(), SIZE)
    head.loss(found, poses(1).float(), PINHOLES[:1].float(), SIZE)["pose"].backward()
    assert features.grad.isfinite().all()
