# SPDX-License-Identifier: Apache-2.0
"""Warp kernels of the radiance term: rendered rays and observed ones in, normal equations out.

One kernel adds up all rays of a pose (on CUDA its lanes share them). Where gain and bias of the
image are unknown, others find them first, and take from the matrix what they would explain.
"""

from __future__ import annotations

import warp as wp

from pose_refiner_ros.rendering.radiance import mat46

from ..colours import DIFFERENT, Rays
from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_normal_equations,
    vector_in_reference,
)

wp.set_module_options({"enable_backward": False})

# The difference of colour that counts as one pixel of an outline counts in the silhouette term:
# what a textured picture changes by from pixel to pixel.
COLOUR_OF_PIXEL = 0.1
UNIT = wp.constant(1.0 / COLOUR_OF_PIXEL**2)  # of the cost

LEAST_GAIN, MOST_GAIN = wp.constant(0.3), wp.constant(3.0)

vec6 = wp.types.vector(length=6, dtype=wp.float32)
vec15 = wp.types.vector(length=15, dtype=wp.float32)
vec18 = wp.types.vector(length=18, dtype=wp.float32)


@wp.func
def composite(colour: wp.vec4, background: wp.vec3):
    """A premultiplied colour in front of a background."""
    left = 1.0 - colour[3]
    return wp.vec3(
        colour[0] + left * background[0],
        colour[1] + left * background[1],
        colour[2] + left * background[2],
    )


@wp.func
def grey(colour: wp.vec3):
    return (colour[0] + colour[1] + colour[2]) / 3.0


@wp.func
def bias_weight(colour: wp.vec4, opacity: float):
    """How much of a bias a pixel gets: all, or, where a mask has made what is behind the object
    black, the object's share."""
    if opacity > 0.0:
        return colour[3]
    return 1.0


@wp.func
def residual_of(
    colour: wp.vec4,
    seen: wp.vec4,
    background: wp.vec3,
    gain: wp.vec3,
    bias: wp.vec3,
    opacity: float,
):
    """(red, green, blue, opacity) of what is rendered minus what was observed."""
    rgb = wp.cw_mul(gain, composite(colour, background)) + bias_weight(colour, opacity) * bias
    return wp.vec4(
        rgb[0] - seen[0], rgb[1] - seen[1], rgb[2] - seen[2], opacity * (colour[3] - seen[3])
    )


@wp.func
def fair(ratio: float):
    """Fair's function ratio - log(1 + ratio), by its series where that would cancel."""
    value = ratio - wp.log(1.0 + ratio)
    if ratio < 0.1:
        value = ratio * ratio * (0.5 - ratio * (1.0 / 3.0 - ratio * (0.25 - 0.2 * ratio)))
    return value


@wp.kernel
def sum_for_exposure(
    active: wp.array(dtype=wp.int32),
    pose_first: int,
    row_offset: int,
    rays: Rays,
    robust: float,
    colours: wp.array2d(dtype=wp.vec4),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    sums: wp.array2d(dtype=wp.float32),
    lanes: int,
):
    """Sums of weighted regressions observed = gain * rendered + bias, five for each channel."""
    block, lane = wp.tid()
    pose = pose_first + block
    if active[pose] == 0:
        return
    i = pose + row_offset
    total = vec15()
    for ray in range(lane, rays.weight.shape[0], lanes):
        colour = colours[pose, ray]
        seen = rays.observed[ray]
        r = residual_of(colour, seen, rays.background, gain[i], bias[i], rays.opacity)
        w = rays.weight[ray] / (1.0 + wp.length(r) / robust)
        rgb = composite(colour, rays.background)
        one = bias_weight(colour, rays.opacity)
        for k in range(3):
            total[5 * k] = total[5 * k] + w * one * one
            total[5 * k + 1] = total[5 * k + 1] + w * one * rgb[k]
            total[5 * k + 2] = total[5 * k + 2] + w * rgb[k] * rgb[k]
            total[5 * k + 3] = total[5 * k + 3] + w * one * seen[k]
            total[5 * k + 4] = total[5 * k + 4] + w * rgb[k] * seen[k]
    for k in range(15):
        wp.atomic_add(sums, i, k, total[k])


@wp.kernel
def solve_exposure(
    active: wp.array(dtype=wp.int32),
    pose_first: int,
    row_offset: int,
    sums: wp.array2d(dtype=wp.float32),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    inverse: wp.array2d(dtype=wp.vec3),
):
    """Gain and bias of each channel, and the inverse of their normal equations (a, b, c of a
    symmetric 2x2)."""
    pose = pose_first + wp.tid()
    if active[pose] == 0:
        return
    i = pose + row_offset
    g = wp.vec3()
    b = wp.vec3()
    for k in range(3):
        one = sums[i, 5 * k] + prior[1]
        x = sums[i, 5 * k + 1]
        xx = sums[i, 5 * k + 2] + prior[0]
        y = sums[i, 5 * k + 3]
        xy = sums[i, 5 * k + 4] + prior[0]
        determinant = wp.max(xx * one - x * x, 1.0e-12)
        g[k] = (one * xy - x * y) / determinant
        inverse[i, k] = wp.vec3(one, -x, xx) / determinant
        if g[k] < LEAST_GAIN or g[k] > MOST_GAIN:  # no light makes a negative, or all of nothing
            g[k] = wp.clamp(g[k], LEAST_GAIN, MOST_GAIN)
            inverse[i, k] = wp.vec3(0.0, 0.0, 1.0 / one)
        b[k] = (y - g[k] * x) / one
    gain[i] = g
    bias[i] = b


@wp.func
def is_object(seen: wp.vec4, ground: wp.vec3, rays: Rays):
    """Whether a pixel, observed or rendered, shows more than the ground behind the object."""
    off = wp.vec3(seen[0], seen[1], seen[2]) - ground
    return wp.max(wp.abs(off)) > DIFFERENT or (rays.opacity > 0.0 and seen[3] > 0.5)


@wp.func
def jacobian_row(J: mat46, channel: int, gain: wp.vec3, bias: wp.vec3, rays: Rays):
    """Of a residual by the pose."""
    row = wp.spatial_vector()
    for a in range(6):
        if channel < 3:
            row[a] = gain[channel] * (J[channel, a] - rays.background[channel] * J[3, a])
            if rays.opacity > 0.0:
                row[a] = row[a] + bias[channel] * J[3, a]
        else:
            row[a] = rays.opacity * J[3, a]
    return row


@wp.kernel
def add_residuals(
    poses: PoseBatch,
    out: NormalEquations,
    pose_first: int,
    row_offset: int,
    camera_from_reference: wp.mat33,
    rays: Rays,
    robust: float,
    colours: wp.array2d(dtype=wp.vec4),
    jacobians: wp.array2d(dtype=mat46),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    coupling: wp.array2d(dtype=wp.spatial_vector),
    with_coupling: int,
    measures: wp.array(dtype=vec6),
    sectors: wp.array2d(dtype=wp.spatial_vector),
    patterns: wp.array2d(dtype=vec6),
    with_tiles: int,
    lanes: int,
):
    """Cost, gradient and Gauss-Newton matrix of all rays of a pose, and, with_tiles, what is told
    of each tile."""
    block, lane = wp.tid()
    pose = pose_first + block
    if poses.active[pose] == 0:
        return
    i = pose + row_offset
    R = camera_from_reference
    H = wp.spatial_matrix()
    g = wp.spatial_vector()
    cost = float(0.0)
    weight = float(0.0)
    on_object = float(0.0)
    square = float(0.0)
    masked = float(0.0)
    covered = float(0.0)
    covered_weight = float(0.0)
    covered_square = float(0.0)
    by_gain = vec18()
    by_bias = vec18()
    for ray in range(lane, rays.weight.shape[0], lanes):
        known = rays.weight[ray]
        if known == 0.0:
            continue
        colour = colours[pose, ray]
        r = residual_of(colour, rays.observed[ray], rays.background, gain[i], bias[i], rays.opacity)
        size = wp.length(r)
        ratio = size / robust
        w = known / (1.0 + ratio)
        cost += known * robust * robust * fair(ratio)
        weight += w
        rgb_square = (r[0] * r[0] + r[1] * r[1] + r[2] * r[2]) / 3.0
        if rays.observed[ray][3] > 0.5:
            masked += 1.0
            if colour[3] > 0.5:  # of the colours alone, not of where the object ends
                covered += 1.0
                v = 1.0 / (1.0 + wp.sqrt(rgb_square) / robust)
                covered_weight += v
                covered_square += v * rgb_square
                if with_tiles == 1:
                    seen = rays.observed[ray]
                    x = grey(composite(colour, rays.background))
                    y = grey(wp.vec3(seen[0], seen[1], seen[2]))
                    pattern = vec6(1.0, x, y, x * x, y * y, x * y)
                    wp.atomic_add(patterns, pose, rays.tile[ray], pattern)
        behind = composite(colour, rays.background)
        drawn = wp.vec4(behind[0], behind[1], behind[2], colour[3])
        ground = rays.background
        if rays.opacity == 0.0:  # in the photo it is in the photo's light
            ground = wp.cw_mul(gain[i], ground) + bias[i]
        if is_object(rays.observed[ray], ground, rays) or is_object(drawn, rays.background, rays):
            on_object += w
            square += w * rgb_square
        if colour[3] == 0.0:
            continue  # nothing there that could move
        J = jacobians[pose, ray]
        here = wp.spatial_vector()
        for channel in range(4):
            row = jacobian_row(J, channel, gain[i], bias[i], rays)
            here += (w * r[channel]) * row
            for a in range(6):
                for b in range(a, 6):
                    H[a, b] = H[a, b] + w * row[a] * row[b]
        # Along the residual the robust function bends less than its weight says.
        along = here / wp.max(w * size, 1.0e-12)
        less = w * ratio / (1.0 + ratio)
        for a in range(6):
            for b in range(a, 6):
                H[a, b] = H[a, b] - less * along[a] * along[b]
        if with_coupling == 1:
            left = 1.0 - colour[3]
            share = bias_weight(colour, rays.opacity)
            for channel in range(3):
                row = w * jacobian_row(J, channel, gain[i], bias[i], rays)
                row -= (less * r[channel] / wp.max(size, 1.0e-12)) * along
                x = colour[channel] + left * rays.background[channel]
                for a in range(6):
                    by_gain[6 * channel + a] = by_gain[6 * channel + a] + row[a] * x
                    by_bias[6 * channel + a] = by_bias[6 * channel + a] + row[a] * share
        g += here
        if with_tiles == 1:
            wp.atomic_add(
                sectors,
                pose,
                rays.tile[ray],
                vector_in_reference(R, UNIT * here),
            )
    for a in range(6):
        for b in range(a):
            H[a, b] = H[b, a]
    add_normal_equations(out, pose, R, UNIT * H, UNIT * g, UNIT * cost, weight)
    wp.atomic_add(
        measures, pose, vec6(square, on_object, masked, covered, covered_weight, covered_square)
    )
    if with_coupling == 1:
        for channel in range(3):
            one = wp.spatial_vector()
            other = wp.spatial_vector()
            for a in range(6):
                one[a] = by_gain[6 * channel + a]
                other[a] = by_bias[6 * channel + a]
            wp.atomic_add(coupling, i, 2 * channel, vector_in_reference(R, one))
            wp.atomic_add(coupling, i, 2 * channel + 1, vector_in_reference(R, other))


@wp.kernel
def eliminate_exposure(
    poses: PoseBatch,
    out: NormalEquations,
    pose_first: int,
    row_offset: int,
    coupling: wp.array2d(dtype=wp.spatial_vector),
    inverse: wp.array2d(dtype=wp.vec3),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
):
    """Take from the normal equations what a change of exposure would explain as well (Schur)."""
    pose = pose_first + wp.tid()
    if poses.active[pose] == 0:
        return
    i = pose + row_offset
    taken = wp.spatial_matrix()
    cost = float(0.0)
    for k in range(3):
        u = coupling[i, 2 * k]
        v = coupling[i, 2 * k + 1]
        q = inverse[i, k]
        taken += q[0] * wp.outer(u, u) + q[1] * (wp.outer(u, v) + wp.outer(v, u))
        taken += q[2] * wp.outer(v, v)
        away = gain[i][k] - 1.0
        cost += 0.5 * (prior[0] * away * away + prior[1] * bias[i][k] * bias[i][k])
    out.hessian[pose] = out.hessian[pose] - UNIT * taken
    out.cost[pose] = out.cost[pose] + UNIT * cost


@wp.kernel
def clear_fit(
    poses: PoseBatch,
    measures: wp.array(dtype=vec6),
    sectors: wp.array2d(dtype=wp.spatial_vector),
    patterns: wp.array2d(dtype=vec6),
):
    """Zero what poses are told of beside their normal equations."""
    i = wp.tid()
    if poses.active[i] == 0:
        return
    measures[i] = vec6()
    for k in range(sectors.shape[1]):
        sectors[i, k] = wp.spatial_vector()
        patterns[i, k] = vec6()
