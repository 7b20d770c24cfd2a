# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from pose_refiner_ros.baselines import se3

vectors = st.tuples(*[st.floats(-1, 1)] * 3)
angles = st.one_of(
    st.floats(0, math.pi),
    st.floats(-12, 0).map(lambda e: 10.0**e),
    st.floats(-12, 0).map(lambda e: math.pi - 10.0**e),
    st.sampled_from([0.0, 0.5, 2.0, math.pi]),
)


@st.composite
def rotation_vectors(draw):
    axis = torch.tensor(draw(vectors), dtype=torch.float64)
    if axis.norm() < 1e-3:
        axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return draw(angles) * axis / axis.norm()


@st.composite
def twists(draw):
    v = torch.tensor(draw(vectors), dtype=torch.float64)
    return torch.cat((v, draw(rotation_vectors())))


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@given(vectors, vectors)
def test_hat_is_the_cross_product(a, b):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    close(se3.hat(a) @ b, torch.linalg.cross(a, b))


@given(rotation_vectors())
def test_exp_so3_agrees_with_scipy(w):
    expected = Rotation.from_rotvec(w.numpy()).as_matrix()
    close(se3.exp_so3(w), torch.from_numpy(expected), 1e-14)


@given(rotation_vectors())
def test_rotation_angle(w):
    assert se3.rotation_angle(se3.exp_so3(w)).item() == pytest.approx(w.norm().item(), abs=1e-12)


@given(twists())
def test_exp_se3_agrees_with_scipy(x):
    generator = np.zeros((4, 4))
    generator[:3, :3], generator[:3, 3] = se3.hat(x[3:]), x[:3]
    close(se3.exp_se3(x), torch.from_numpy(expm(generator)), 1e-12)


def test_perturb_turns_about_the_objects_origin():
    T = se3.exp_se3(torch.tensor([0.1, 0.2, 1.0, 0.3, -0.2, 0.5], dtype=torch.float64))
    twist = torch.tensor([0.01, 0.02, 0.03, 0.4, 0.5, 0.6], dtype=torch.float64)
    moved = se3.perturb(T, twist)
    close(moved[:3, 3], T[:3, 3] + twist[:3])
    close(moved[:3, :3], se3.exp_so3(twist[3:]) @ T[:3, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_keep_shape_and_type(dtype):
    x = torch.randn(4, 1, 3, 6, dtype=dtype)
    T = se3.exp_se3(x)
    assert T.shape == (4, 1, 3, 4, 4) and T.dtype == dtype
    assert se3.perturb(T, x).dtype == dtype
    assert se3.perturb(T[0, 0], x).shape == T.shape
    assert se3.exp_se3(torch.zeros(0, 6)).shape == (0, 4, 4)


def test_float32_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    w = w / w.norm(dim=-1, keepdim=True)
    w = w * torch.logspace(-7, math.log10(3.1), 2000, dtype=torch.float64)[:, None]
    x = torch.cat((torch.randn(2000, 3, generator=generator, dtype=torch.float64), w), -1)
    close(se3.exp_se3(x.float()).double(), se3.exp_se3(x), 2e-6)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 0.4999, 0.5, 0.5001, 2.0, math.pi - 1e-4])
def test_gradients(size):
    x = torch.tensor([0.3, -0.2, 0.9, 0.6, 0.0, 0.8], dtype=torch.float64)
    x[3:] *= size
    x.requires_grad_()
    assert torch.autograd.gradcheck(se3.exp_se3, x)


def test_gradients_at_zero_are_finite_in_float32():
    x = torch.zeros(2, 6, requires_grad=True)
    T = se3.perturb(torch.eye(4), x) @ se3.exp_se3(x)
    (T[..., :3, 3].sum() + T[..., 2, 1].sum() + se3.rotation_angle(T[..., :3, :3]).sum()).backward()
    torch.testing.assert_close(x.grad, torch.tensor([2.0, 2, 2, 2, 0, 0]).expand(2, 6))


def test_random_rotations_are_uniform_rotations():
    generator = torch.Generator().manual_seed(1)
    R = se3.random_rotation(50, 100, generator=generator, dtype=torch.float64)
    assert R.shape == (50, 100, 3, 3)
    close(R @ R.transpose(-1, -2), torch.eye(3, dtype=torch.float64).expand_as(R))
    close(torch.linalg.det(R), torch.ones(50, 100, dtype=torch.float64))
    assert R.mean((0, 1)).abs().max() < 0.03
    # The angle of a uniform rotation has mean pi/2 + 2/pi.
    expected = math.pi / 2 + 2 / math.pi
    assert se3.rotation_angle(R).mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("f", [se3.exp_so3, se3.exp_se3, se3.rotation_angle])
def test_wrong_shapes_are_named(f):
    with pytest.raises(ValueError, match=r"shape \(\.\.\., .*got \(2, 5\)"):
        f(torch.zeros(2, 5))
