# SPDX-License-Identifier: Apache-2.0
"""Warp kernels that render rays of a sparse grid together with their derivative by the pose, and
blur such pictures.

For a sample at distance t along a ray, w its weight, c its colour, s its density and T the light
left behind it, with d the length of a step, the derivative of the ray's colour C by where the
sample lies is (docs/inerf.md)

    dC/dx = w dc/dx + d (T c + A - C) ds/dx

with A the colour collected up to and with it. Only C is not known until the ray ends, and it is a
common factor, so that one pass collects colour, opacity and their derivatives. Of the sums of dC/dx
the part along the ray is taken away, as moving along it does not change what light arrives.
"""

# No postponed annotations here: Warp evaluates them, and they name types made in functions.
from functools import lru_cache
from typing import Any

import warp as wp

from pose_refiner_ros.fields.grid_kernels import COEFFICIENTS, OPAQUE, grid_functions

wp.set_module_options({"enable_backward": False, "fast_math": True})

mat46 = wp.types.matrix(shape=(4, 6), dtype=wp.float32)

FARTHEST = wp.constant(16)  # cameras 2 to this power of voxels away, or nowhere, see nothing


@wp.func
def is_near(x: float):
    """Whether a coordinate in voxels is one that single precision resolves; NaN and infinity are
    not. Told by the exponent's bits, as fast mathematics takes all numbers for finite."""
    exponent = (wp.cast(x, wp.int32) >> 23) & 255
    return exponent < 127 + FARTHEST


@lru_cache
def view_kernel(degree: int, contracted: bool = False) -> Any:
    """view, for grids of a degree: as `trace_kernel`, but colours (premultiplied, with opacity) and
    depths along the rays times opacity alone, in rows that begin `row_offset` after the poses."""
    functions = grid_functions(degree, contracted)
    Arrays = functions.Arrays
    basis, enter, place, span_of = functions.basis, functions.enter, functions.place, functions.span
    begin, onward, jump = functions.begin, functions.onward, functions.jump
    row, colour_of = functions.row, functions.colour

    @wp.kernel(module="unique", enable_backward=False)
    def view(
        grid: Arrays,
        active: wp.array(dtype=wp.int32),
        rotation: wp.array(dtype=wp.mat33),
        translation: wp.array(dtype=wp.vec3),
        camera_rotation: wp.mat33,
        camera_translation: wp.vec3,
        pose_first: int,
        row_offset: int,
        rays: int,
        directions: wp.array(dtype=wp.vec3),
        step: float,
        colours: wp.array2d(dtype=wp.vec4),
        depths: wp.array2d(dtype=wp.float32),
        first: int,
    ):
        item = first + wp.tid()
        pose = pose_first + item / rays
        ray = item % rays
        if active[pose] == 0:
            return
        i = pose + row_offset
        R = camera_rotation * rotation[pose]
        d = wp.transpose(R) * directions[ray]
        centre = -(wp.transpose(R) * (camera_rotation * translation[pose] + camera_translation))
        o = enter(grid, centre)
        colours[i, ray] = wp.vec4()
        depths[i, ray] = 0.0
        if not (is_near(o[0]) and is_near(o[1]) and is_near(o[2])):
            return
        b = basis(d)
        span = span_of(grid, o, d)
        length = step * grid.voxel
        left = float(1.0)
        depth = float(0.0)
        collected = wp.vec3()
        t = begin(grid, o, d, span, step, 0.5)
        while t < span[1]:
            y = o + t * d
            x = place(grid, y)
            free = jump(grid, x)
            if free == 0.0:
                v = row(grid, x)
                if v[0] > 0.0:
                    w = left * (1.0 - wp.exp(-v[0] * length))
                    left -= w
                    collected += w * colour_of(v, b)
                    if wp.static(contracted):
                        depth += w / t  # the little that is seen of infinity must not count
                    else:
                        depth += w * t
                    if left < OPAQUE:
                        break
            t = onward(grid, o, d, t, free, step, 0.5)
        colours[i, ray] = wp.vec4(collected[0], collected[1], collected[2], 1.0 - left)
        if wp.static(contracted):
            depth = (1.0 - left) * (1.0 - left) / wp.max(depth, 1.0e-12)
        depths[i, ray] = depth * grid.voxel

    return view


@lru_cache
def trace_kernel(degree: int, contracted: bool = False) -> Any:
    """trace, for grids of a degree: rows are rays of poses `pose_first` on, `rays` of each, in a
    camera at camera_from_reference; poses and rays as that camera has them."""
    functions = grid_functions(degree, contracted)
    Arrays, Row = functions.Arrays, functions.Row
    basis, basis_gradient = functions.basis, functions.basis_gradient
    enter, place, span_of, jump = functions.enter, functions.place, functions.span, functions.jump
    begin, onward, outward = functions.begin, functions.onward, functions.outward
    row, look = functions.row, functions.look
    count = COEFFICIENTS[degree]

    @wp.kernel(module="unique", enable_backward=False)
    def trace(
        grid: Arrays,
        active: wp.array(dtype=wp.int32),
        rotation: wp.array(dtype=wp.mat33),
        translation: wp.array(dtype=wp.vec3),
        camera_rotation: wp.mat33,
        camera_translation: wp.vec3,
        pose_first: int,
        rays: int,
        directions: wp.array(dtype=wp.vec3),
        step: float,
        colours: wp.array2d(dtype=wp.vec4),
        jacobians: wp.array2d(dtype=mat46),
        first: int,
    ):
        item = first + wp.tid()
        pose = pose_first + item / rays
        ray = item % rays
        if active[pose] == 0:
            return
        R = camera_rotation * rotation[pose]
        d = wp.transpose(R) * directions[ray]
        centre = -(wp.transpose(R) * (camera_rotation * translation[pose] + camera_translation))
        o = enter(grid, centre)
        if not (is_near(o[0]) and is_near(o[1]) and is_near(o[2])):
            colours[pose, ray] = wp.vec4()
            jacobians[pose, ray] = mat46()
            return
        b = basis(d)
        span = span_of(grid, o, d)
        length = step * grid.voxel
        left = float(1.0)
        # sums of gradients g and of g x position: of what is known on the way, for each channel,
        # and of that to which C is a factor
        collected = wp.vec3()
        red = wp.vec3()
        green = wp.vec3()
        blue = wp.vec3()
        red_turn = wp.vec3()
        green_turn = wp.vec3()
        blue_turn = wp.vec3()
        dense = wp.vec3()
        dense_turn = wp.vec3()
        weighed = Row()
        t = begin(grid, o, d, span, step, 0.5)
        while t < span[1]:
            y = o + t * d
            x = place(grid, y)
            free = jump(grid, x)
            if free == 0.0:
                v, dx, dy, dz = look(grid, x, b)
                if v[3] > 0.0:
                    w = left * (1.0 - wp.exp(-v[3] * length))
                    left -= w
                    c = wp.vec3(v[0], v[1], v[2])
                    collected += w * c
                    q = centre + (t * grid.voxel) * d
                    by_density = length * outward(grid, y, wp.vec3(dx[3], dy[3], dz[3]))
                    pull = left * c + collected
                    g = w * outward(grid, y, wp.vec3(dx[0], dy[0], dz[0]))
                    g += pull[0] * by_density
                    red += g
                    red_turn += wp.cross(g, q)
                    g = w * outward(grid, y, wp.vec3(dx[1], dy[1], dz[1]))
                    g += pull[1] * by_density
                    green += g
                    green_turn += wp.cross(g, q)
                    g = w * outward(grid, y, wp.vec3(dx[2], dy[2], dz[2]))
                    g += pull[2] * by_density
                    blue += g
                    blue_turn += wp.cross(g, q)
                    dense += by_density
                    dense_turn += wp.cross(by_density, q)
                    if wp.static(degree > 0):
                        weighed += w * row(grid, x)
                    if left < OPAQUE:
                        break
            t = onward(grid, o, d, t, free, step, 0.5)
        colours[pose, ray] = wp.vec4(collected[0], collected[1], collected[2], 1.0 - left)
        if left == 1.0:
            jacobians[pose, ray] = mat46()
            return
        gradient = basis_gradient(d)
        J = mat46()
        for channel in range(4):
            g = left * dense
            turn = left * dense_turn
            if channel == 0:
                g = red - collected[0] * dense
                turn = red_turn - collected[0] * dense_turn
            if channel == 1:
                g = green - collected[1] * dense
                turn = green_turn - collected[1] * dense_turn
            if channel == 2:
                g = blue - collected[2] * dense
                turn = blue_turn - collected[2] * dense_turn
            if channel < 3:  # colours change with the direction from which they are seen
                by_direction = wp.vec3()
                for k in range(1, wp.static(count)):
                    for a in range(3):
                        by_direction[a] = (
                            by_direction[a] + weighed[1 + 3 * k + channel] * gradient[k, a]
                        )
                turn += wp.cross(by_direction, d) * grid.voxel
            # Samples go forward with the camera and enter surfaces in jumps; the light that arrives
            # along the ray does not change by that.
            forward = wp.dot(g, d)
            g -= forward * d
            turn -= forward * wp.cross(d, centre)
            by_v = -(R * g) / grid.voxel
            by_w = (R * turn) / grid.voxel
            for a in range(3):
                J[channel, a] = by_v[a]
                J[channel, a + 3] = by_w[a]
        jacobians[pose, ray] = J

    return trace
