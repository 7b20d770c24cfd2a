# SPDX-License-Identifier: Apache-2.0
"""What terms and solver pass to each other: poses to look at, and the normal equations there.

Every camera sees an object in axes of its own. With R the rotation of `camera_from_reference`, the
twist that the solver applies along the reference's axes, (v, w) about the object, is (R v, R w)
along the camera's: without a lever arm, since both are about the same point. So with
B = diag(R, R) what a camera says of a pose is H = B^T H_c B, g = B^T g_c, and it adds up over
cameras and over kinds of evidence.
"""

from __future__ import annotations

import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.struct
class PoseBatch:
    """Poses (B) to be looked at: reference_from_object about the object's pivot."""

    active: wp.array(dtype=wp.int32)  # 0: leave it alone
    rotation: wp.array(dtype=wp.mat33)
    translation: wp.array(dtype=wp.vec3)


@wp.struct
class NormalEquations:
    """Of a batch of poses (B), along the reference's axes."""

    hessian: wp.array(dtype=wp.spatial_matrix)
    gradient: wp.array(dtype=wp.spatial_vector)
    cost: wp.array(dtype=wp.float32)
    weight: wp.array(dtype=wp.float32)  # sum of the residuals' weights


def allocate(struct, count: int, device, **shapes: tuple[int, ...]):
    """A Warp struct with arrays of so many zeros, but for those whose shapes are given."""
    made = struct()
    for name, variable in struct.vars.items():
        shape = shapes.get(name, count)
        setattr(made, name, wp.zeros(shape, dtype=variable.type.dtype, device=device))
    return made


@wp.func
def vector_in_reference(camera_from_reference: wp.mat33, g: wp.spatial_vector):
    """B^T g of a gradient along a camera's axes."""
    reference_from_camera = wp.transpose(camera_from_reference)
    v = reference_from_camera * wp.vec3(g[0], g[1], g[2])
    w = reference_from_camera * wp.vec3(g[3], g[4], g[5])
    return wp.spatial_vector(v[0], v[1], v[2], w[0], w[1], w[2])


@wp.func
def add_normal_equations(
    out: NormalEquations,
    pose: int,
    camera_from_reference: wp.mat33,
    hessian: wp.spatial_matrix,
    gradient: wp.spatial_vector,
    cost: float,
    weight: float,
):
    """Add what a camera says of a pose, along its axes."""
    R = camera_from_reference
    turned = wp.spatial_matrix()
    for block in range(4):  # vv, vw, wv, ww
        row = 3 * (block / 2)
        column = 3 * (block % 2)
        part = wp.mat33()
        for a in range(3):
            for b in range(3):
                part[a, b] = hessian[row + a, column + b]
        part = wp.transpose(R) * part * R
        for a in range(3):
            for b in range(3):
                turned[row + a, column + b] = part[a, b]
    wp.atomic_add(out.hessian, pose, turned)
    wp.atomic_add(out.gradient, pose, vector_in_reference(R, gradient))
    wp.atomic_add(out.cost, pose, cost)
    wp.atomic_add(out.weight, pose, weight)


@wp.kernel
def clear(poses: PoseBatch, equations: NormalEquations):
    """Zero the equations of the active poses."""
    i = wp.tid()
    if poses.active[i] == 0:
        return
    equations.hessian[i] = wp.spatial_matrix()
    equations.gradient[i] = wp.spatial_vector()
    equations.cost[i] = 0.0
    equations.weight[i] = 0.0


@wp.kernel
def add_all(poses: PoseBatch, equations: NormalEquations, out: NormalEquations):
    """Add the equations of the active poses to others."""
    i = wp.tid()
    if poses.active[i] == 0:
        return
    out.hessian[i] = out.hessian[i] + equations.hessian[i]
    out.gradient[i] = out.gradient[i] + equations.gradient[i]
    out.cost[i] = out.cost[i] + equations.cost[i]
    out.weight[i] = out.weight[i] + equations.weight[i]
