# SPDX-License-Identifier: Apache-2.0
"""Rotations and rigid transforms as Lie groups, batched over any leading dimensions.

All functions take and return torch tensors (float32 or float64), are differentiable, and are
accurate near the identity and near a half turn. A twist is (v, w): translation first, metres and
radians. Notation follows T. Barfoot, State Estimation for Robotics (2017), chapter 7, whose
translation part of a twist also comes first.

A wrong shape raises ValueError.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Below this squared angle the closed forms lose digits (or divide by zero) and a series is used.
_SMALL = 0.25
_TERMS = 8  # the first term left out is below 1e-19 of the first at the switch


def hat(w: Tensor) -> Tensor:
    """Skew-symmetric matrix of a vector, `hat(a) @ b == cross(a, b)`. (..., 3) -> (..., 3, 3)."""
    _check(w, (3,), "a vector")
    x, y, z = w.unbind(-1)
    zero = torch.zeros_like(x)
    rows = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1)
    return rows.reshape(*w.shape[:-1], 3, 3)


def exp_so3(w: Tensor) -> Tensor:
    """Rotation by |w| radians about w (Rodrigues' formula). (..., 3) -> (..., 3, 3)."""
    K = hat(w)
    a, b = _sine(_squared(w)), _cosine(_squared(w))
    return _eye(K) + a[..., None, None] * K + b[..., None, None] * (K @ K)


def log_so3(R: Tensor) -> Tensor:
    """Rotation vector, length in [0, pi] radians. (..., 3, 3) -> (..., 3).

    Goes through the quaternion computed from its largest component, which keeps all digits at a
    half turn, where the antisymmetric part of R vanishes. At exactly pi either sign of the axis is
    right; one is returned.
    """
    _check(R, (3, 3), "a rotation")
    q = _quaternion(R)
    real, imaginary = q[..., 0], q[..., 1:]
    sign = torch.where(real < 0, -1.0, 1.0).to(q)
    real, imaginary = real * sign, imaginary * sign[..., None]
    squared = _squared(imaginary)
    tiny = squared < 1e-12  # angle under 2e-6: two terms of atan(x)/x are exact here
    norm = torch.where(tiny, torch.ones_like(squared), squared).sqrt()
    nonzero_real = torch.where(tiny, real, torch.ones_like(real))
    near = (2.0 / nonzero_real) * (1.0 - squared / (3.0 * nonzero_real**2))
    far = 2.0 * torch.atan2(norm, real) / norm
    return torch.where(tiny, near, far)[..., None] * imaginary


def exp_se3(twist: Tensor) -> Tensor:
    """Rigid transform of a twist (v, w), translation J(w) v. (..., 6) -> (..., 4, 4).

    This is the group's exponential. The solver's update is `perturb`, which is simpler.
    """
    _check(twist, (6,), "a twist")
    v, w = twist[..., :3], twist[..., 3:]
    return _transform(exp_so3(w), (left_jacobian_so3(w) @ v[..., None])[..., 0])


def log_se3(T: Tensor) -> Tensor:
    """Twist (v, w) of a rigid transform, |w| <= pi. (..., 4, 4) -> (..., 6)."""
    _check(T, (4, 4), "a transform")
    w = log_so3(T[..., :3, :3])
    v = (_left_jacobian_so3_inverse(w) @ T[..., :3, 3:])[..., 0]
    return torch.cat((v, w), -1)


def left_jacobian_so3(w: Tensor) -> Tensor:
    """J with `exp_so3(w + d) ~ exp_so3(J d) exp_so3(w)`. (..., 3) -> (..., 3, 3)."""
    K = hat(w)
    squared = _squared(w)
    b, c = _cosine(squared), _third(squared)
    return _eye(K) + b[..., None, None] * K + c[..., None, None] * (K @ K)


def left_jacobian_se3(twist: Tensor) -> Tensor:
    """J with `exp_se3(x + d) ~ exp_se3(J d) exp_se3(x)`. (..., 6) -> (..., 6, 6).

    [[J(w), Q(v, w)], [0, J(w)]] with Barfoot's closed form of Q.
    """
    _check(twist, (6,), "a twist")
    v, w = twist[..., :3], twist[..., 3:]
    V, W = hat(v), hat(w)
    squared = _squared(w)
    c, d, e = (f(squared)[..., None, None] for f in (_third, _fourth, _fifth))
    WV, VW = W @ V, V @ W
    WVW = WV @ W
    Q = 0.5 * V + c * (WV + VW + WVW) + d * (W @ WV + VW @ W - 3.0 * WVW) + e * (WVW @ W + W @ WVW)
    J = left_jacobian_so3(w)
    return _blocks(J, Q)


def adjoint(T: Tensor) -> Tensor:
    """Ad with `T exp_se3(x) T^-1 == exp_se3(Ad x)`: [[R, hat(t) R], [0, R]]. -> (..., 6, 6)."""
    _check(T, (4, 4), "a transform")
    R = T[..., :3, :3]
    return _blocks(R, hat(T[..., :3, 3]) @ R)


def inverse(T: Tensor) -> Tensor:
    """Inverse of a rigid transform, without a general matrix inverse. (..., 4, 4)."""
    _check(T, (4, 4), "a transform")
    transposed = T[..., :3, :3].transpose(-1, -2)
    return _transform(transposed, -(transposed @ T[..., :3, 3:])[..., 0])


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
    return _transform(R, t)


def rotation_angle(R: Tensor) -> Tensor:
    """Angle of a rotation in [0, pi] radians. (..., 3, 3) -> (...).

    From sine and cosine both: the arc cosine of the trace alone has no digits near 0 and pi.
    """
    _check(R, (3, 3), "a rotation")
    twice_sine = torch.linalg.vector_norm(_vee(R), dim=-1)
    twice_cosine = R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1.0
    return torch.atan2(twice_sine, twice_cosine)


def random_rotation(
    *shape: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rotations drawn uniformly from SO(3). -> (*shape, 3, 3)."""
    q = torch.randn(*shape, 4, generator=generator, dtype=torch.float64, device=device)
    w, x, y, z = (q / torch.linalg.vector_norm(q, dim=-1, keepdim=True)).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(*shape, 3, 3).to(dtype)


def _sine(squared: Tensor) -> Tensor:
    """sin(x) / x as a function of x^2."""
    small, x = _split(squared)
    return torch.where(small, _series(squared, 1), torch.sin(x) / x)


def _cosine(squared: Tensor) -> Tensor:
    """(1 - cos x) / x^2."""
    small, x = _split(squared)
    half = torch.sin(0.5 * x) / x
    return torch.where(small, _series(squared, 2), 2.0 * half * half)


def _third(squared: Tensor) -> Tensor:
    """(x - sin x) / x^3."""
    small, x = _split(squared)
    return torch.where(small, _series(squared, 3), (x - torch.sin(x)) / x**3)


def _fourth(squared: Tensor) -> Tensor:
    """(x^2 + 2 cos x - 2) / (2 x^4)."""
    small, x = _split(squared, 4.0)
    closed = (x * x + 2.0 * torch.cos(x) - 2.0) / (2.0 * x**4)
    return torch.where(small, _series(squared, 4, terms=12), closed)


def _fifth(squared: Tensor) -> Tensor:
    """(2 x - 3 sin x + x cos x) / (2 x^5)."""
    small, x = _split(squared, 4.0)
    closed = (2.0 * x - 3.0 * torch.sin(x) + x * torch.cos(x)) / (2.0 * x**5)
    coefficients = [(-1) ** k * (k + 1) / math.factorial(2 * k + 5) for k in range(12)]
    return torch.where(small, _polynomial(squared, coefficients), closed)


def _left_jacobian_so3_inverse(w: Tensor) -> Tensor:
    """I - K/2 + (1 - (x/2) cot(x/2)) / x^2 K^2, for |w| < 2 pi."""
    K = hat(w)
    squared = _squared(w)
    small, x = _split(squared)
    closed = (1.0 - 0.5 * x / torch.tan(0.5 * x)) / (x * x)
    series = _polynomial(
        squared,
        [1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000,
         1 / 74724249600],
    )  # fmt: skip
    c = torch.where(small, series, closed)
    return _eye(K) - 0.5 * K + c[..., None, None] * (K @ K)


def _split(squared: Tensor, limit: float = _SMALL) -> tuple[Tensor, Tensor]:
    """Where the series is used, and an angle that is safe to divide by and to differentiate."""
    small = squared < limit
    return small, torch.where(small, torch.ones_like(squared), squared).sqrt()


def _series(squared: Tensor, first: int, terms: int = _TERMS) -> Tensor:
    """sum_k (-x^2)^k / (2k + first)!, the tail of sine or cosine."""
    return _polynomial(squared, [(-1) ** k / math.factorial(2 * k + first) for k in range(terms)])


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


def _quaternion(R: Tensor) -> Tensor:
    """Unit quaternion (w, x, y, z), computed from its largest component. -> (..., 4)."""
    trace = R.diagonal(dim1=-2, dim2=-1).sum(-1)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    # Four times the squared components; the largest is at least 1. The clamp only touches those
    # that are not chosen, and keeps their square root differentiable.
    fourfold = torch.cat((1.0 + trace[..., None], 1.0 - trace[..., None] + 2.0 * diagonal), -1)
    choice = fourfold.detach().argmax(-1)
    scale = 0.5 / fourfold.clamp(min=0.5).sqrt()
    wx, wy, wz = _vee(R).unbind(-1)
    xy, xz = R[..., 0, 1] + R[..., 1, 0], R[..., 0, 2] + R[..., 2, 0]
    yz = R[..., 1, 2] + R[..., 2, 1]
    ww, xx, yy, zz = fourfold.unbind(-1)
    rows = torch.stack(
        (ww, wx, wy, wz, wx, xx, xy, xz, wy, xy, yy, yz, wz, xz, yz, zz), -1
    ).reshape(*R.shape[:-2], 4, 4)
    rows = rows * scale[..., None]
    return rows.gather(-2, choice[..., None, None].expand(*choice.shape, 1, 4))[..., 0, :]


def _vee(R: Tensor) -> Tensor:
    """(R32 - R23, R13 - R31, R21 - R12): twice the sine of the angle times the axis."""
    return torch.stack(
        (
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ),
        -1,
    )


def _squared(w: Tensor) -> Tensor:
    return (w * w).sum(-1)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)


def _transform(R: Tensor, t: Tensor) -> Tensor:
    top = torch.cat((R, t[..., None]), -1)
    bottom = torch.zeros_like(top[..., :1, :])
    bottom[..., 3] = 1.0
    return torch.cat((top, bottom), -2)


def _blocks(diagonal: Tensor, upper: Tensor) -> Tensor:
    top = torch.cat((diagonal, upper), -1)
    bottom = torch.cat((torch.zeros_like(diagonal), diagonal), -1)
    return torch.cat((top, bottom), -2)


def _check(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(x.shape[-len(shape) :]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{what} has shape (..., {expected}), got {tuple(x.shape)}")
