# SPDX-License-Identifier: Apache-2.0
"""Algebra of rotations for Warp kernels; the twin of `pose.py`."""

from __future__ import annotations

import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.func
def exp_so3(w: wp.vec3):
    """Rotation matrix of a rotation vector (Rodrigues)."""
    angle_squared = wp.dot(w, w)
    a = float(1.0)
    b = float(0.5)
    if angle_squared > 1.0e-8:
        angle = wp.sqrt(angle_squared)
        a = wp.sin(angle) / angle
        b = (1.0 - wp.cos(angle)) / angle_squared
    hat = wp.skew(w)
    return wp.identity(n=3, dtype=wp.float32) + a * hat + b * (hat * hat)


@wp.func
def log_so3(R: wp.mat33):
    """Rotation vector of a rotation matrix, by its quaternion."""
    q = wp.quat_from_matrix(R)
    v = wp.vec3(q[0], q[1], q[2])
    w = q[3]
    if w < 0.0:
        v = -v
        w = -w
    sine = wp.length(v)
    factor = float(2.0)
    if sine > 1.0e-6:
        factor = 2.0 * wp.atan2(sine, w) / sine
    return factor * v


@wp.func
def orthonormal(m: wp.mat33):
    """Pull a matrix that drifted by rounding back to a rotation (Gram-Schmidt on rows)."""
    x = wp.normalize(wp.vec3(m[0, 0], m[0, 1], m[0, 2]))
    y = wp.vec3(m[1, 0], m[1, 1], m[1, 2])
    y = wp.normalize(y - wp.dot(x, y) * x)
    z = wp.cross(x, y)
    return wp.mat33(x[0], x[1], x[2], y[0], y[1], y[2], z[0], z[1], z[2])
