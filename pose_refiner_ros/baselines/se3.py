# SPDX-License-Identifier: Apache-2.0
"""Rotations and rigid transforms as Lie groups, batched over any leading dimensions.

All functions take and return torch tensors (float32 or float64) and are differentiable. A twist is
(v, w): translation first, metres and radians. A wrong shape raises ValueError.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hat(w: Tensor) -> Tensor:
    """Skew-symmetric matrix of a vector, `hat(a) @ b == cross(a, b)`. (..., 3) -> (..., 3, 3)."""
    _check(w, (3,), "a vector")
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1)
    return rows.reshape(*w.shape[:-1], 3, 3)


def exp_so3(w: Tensor) -> Tensor:
    """Rotation by |w| radians about w. (..., 3) -> (..., 3, 3)."""
    return torch.linalg.matrix_exp(hat(w))


def exp_se3(twist: Tensor) -> Tensor:
    """Rigid transform of a twist (v, w). (..., 6) -> (..., 4, 4).

    This is the group's exponential. The solver's update is `perturb`, which is simpler.
    """
    _check(twist, (6,), "a twist")
    return torch.linalg.matrix_exp(_with_row(hat(twist[..., 3:]), twist[..., :3], 0.0))


def perturb(camera_from_object: Tensor, twist: Tensor) -> Tensor:
    """The solver's update about the object's origin: R' = exp(w) R, t' = t + v.

    Args:
        camera_from_object: (..., 4, 4).
        twist: (..., 6), (v, w) in camera axes; leading dimensions broadcast.
    """
    _check(camera_from_object, (4, 4), "a transform")
    _check(twist, (6,), "a twist")
    R = exp_so3(twist[..., 3:]) @ camera_from_object[..., :3, :3]
    t = camera_from_object[..., :3, 3] + twist[..., :3]
    return _with_row(R, t, 1.0)


def rotation_angle(R: Tensor) -> Tensor:
    """Angle of a rotation in [0, pi] radians. (..., 3, 3) -> (...).

    From sine and cosine both: the arc cosine of the trace alone has no digits near 0 and pi.
    """
    _check(R, (3, 3), "a rotation")
    twice_sine = torch.linalg.matrix_norm(R - R.mT) / 2**0.5
    twice_cosine = R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0
    return torch.atan2(twice_sine, twice_cosine)


def random_rotation(
    *shape: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rotations drawn uniformly from SO(3). -> (*shape, 3, 3)."""
    Q, R = torch.linalg.qr(torch.randn(*shape, 3, 3, generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return (Q * torch.linalg.det(Q)[..., None, None]).to(dtype)


def _with_row(matrix: Tensor, column: Tensor, last: float) -> Tensor:
    """(..., 4, 4) of (..., 3, 3) and (..., 3) above a row of zeros that ends in `last`."""
    top = torch.cat((matrix, column[..., None]), -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = last
    return torch.cat((top, bottom), -2)


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(x.shape[-len(shape) :]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{what} has shape (..., {expected}), got {tuple(x.shape)}")
