# SPDX-License-Identifier: Apache-2.0
"""Warp kernels that fit a sparse voxel grid to photos."""

# No postponed annotations here: Warp evaluates them, and they name types made in functions.
from functools import lru_cache
from typing import Any

import warp as wp

from pose_refiner_ros.fields.grid_kernels import COEFFICIENTS, grid_functions

wp.set_module_options({"enable_backward": False, "fast_math": True})

SAMPLES = 1024  # of a ray that can be remembered for the way back
# Light that is left where a ray ends: more than when rendering, so that surfaces get thin.
ENOUGH = wp.constant(1.0e-2)


@wp.struct
class Photos:
    """Pixels of all photos one after the other, and what turns their numbers into rays."""

    rgba: wp.array(dtype=wp.vec4ub)
    ray_from_pixel: wp.array(dtype=wp.mat33)  # (x, y, 1) to direction, object frame, any length
    positions: wp.array(dtype=wp.vec3)  # of cameras, object frame, metres
    height: int
    width: int
    opacity_weight: float  # of the squared error of opacity beside that of colour; 0: see what
    background: wp.vec3  # is behind
    sparsity: float  # price of each sample, as a squared error, of the light it would stop alone
    gain: wp.array(dtype=wp.vec3)  # of each photo: from the field's colours to its own
    bias: wp.array(dtype=wp.vec3)


@wp.struct
class Fit:
    """What training keeps for the rows of a grid and for the lanes that follow rays."""

    touched: wp.array(dtype=wp.uint8)  # rows that got a gradient in this step
    largest: wp.array(dtype=float)  # share of a ray's light that a row ever stopped
    samples: wp.array2d(dtype=wp.vec4)  # lane, sample: colour and the share of light stopped
    places: wp.array2d(dtype=float)  # lane, sample: distance along the ray, in voxels
    errors: wp.array(dtype=wp.vec2)  # lane: squared error; rays
    exposure: wp.array2d(dtype=wp.vec3)  # photo: sums of xx, xo, oo, xy, oy (`_expose`)
    nodes: wp.array(dtype=wp.vec3i)  # where each row's node is
    pace: wp.array(dtype=float)  # of its density, as a share of the others'


@lru_cache
def training_kernels(degree: int, contracted: bool = False) -> dict[str, Any]:
    """follow, adam, smooth, move and resample for grids of a degree."""
    grid = grid_functions(degree, contracted)
    Arrays, Row = grid.Arrays, grid.Row
    basis, enter, place, row, colour = grid.basis, grid.enter, grid.place, grid.row, grid.colour
    span_of, begin, onward, jump = grid.span, grid.begin, grid.onward, grid.jump
    count = COEFFICIENTS[degree]

    @wp.kernel(module="unique", enable_backward=False)
    def follow(
        grid: Arrays,
        photos: Photos,
        fit: Fit,
        pixels: wp.array(dtype=wp.int32),
        step: float,
        seed: int,
        watch: int,
        lanes: int,
        gradient: wp.array(dtype=Row),
        first: int,
    ):
        # A lane follows its share of the rays, one after the other, forth and back. On the CPU
        # lanes are threads that add to the same gradients without locks: the few additions that
        # get lost where two threads meet at a node are less than the noise of drawing rays.
        lane = first + wp.tid()
        errors = wp.vec2()
        length = step * grid.voxel
        for r in range(lane, pixels.shape[0], lanes):
            pixel = pixels[r]
            view = pixel / (photos.height * photos.width)
            rest = pixel - view * photos.height * photos.width
            py = rest / photos.width
            px = rest - py * photos.width
            d = wp.normalize(photos.ray_from_pixel[view] * wp.vec3(float(px), float(py), 1.0))
            o = enter(grid, photos.positions[view])
            b = basis(d)
            span = span_of(grid, o, d)
            # samples lie anywhere, so that no place between them is left out
            random = wp.rand_init(seed, r)
            offset = wp.randf(random)
            left = float(1.0)
            sum = wp.vec3()
            used = int(0)
            t = begin(grid, o, d, span, step, offset)
            while t < span[1] and used < SAMPLES:
                x = place(grid, o + t * d)
                free = jump(grid, x)
                if free == 0.0:
                    v = row(grid, x)
                    if v[0] > 0.0:
                        stopped = 1.0 - wp.exp(-v[0] * length)
                        c = colour(v, b)
                        sum += left * stopped * c
                        left *= 1.0 - stopped
                        fit.samples[lane, used] = wp.vec4(c[0], c[1], c[2], stopped)
                        fit.places[lane, used] = t
                        used += 1
                        if left < ENOUGH:
                            break
                t = onward(grid, o, d, t, free, step, offset)

            seen = photos.rgba[pixel]
            alpha = float(int(seen[3])) / 255.0
            wanted = wp.vec3(float(int(seen[0])), float(int(seen[1])), float(int(seen[2])))
            wanted = wanted * (alpha / 255.0)
            gain = photos.gain[view]
            bias = photos.bias[view]
            solid = 1.0 - left
            e_opacity = solid - alpha
            behind = photos.opacity_weight * e_opacity
            seen_there = sum
            if photos.opacity_weight == 0.0:
                seen_there = sum + left * photos.background
                solid = 1.0
            off = wp.cw_mul(gain, seen_there) + solid * bias - wanted
            e = wp.cw_mul(gain, off)  # the derivative by the field's colour
            shown = off - wp.vec3(e_opacity, e_opacity, e_opacity)  # in front of white
            if photos.opacity_weight == 0.0:
                shown = off
                behind = -wp.dot(e, photos.background)
            else:
                behind += wp.dot(off, bias)
            wp.atomic_add(fit.exposure, view, 0, wp.cw_mul(seen_there, seen_there))
            wp.atomic_add(fit.exposure, view, 1, solid * seen_there)
            wp.atomic_add(fit.exposure, view, 2, wp.vec3(solid * solid, 1.0, 0.0))
            wp.atomic_add(fit.exposure, view, 3, wp.cw_mul(seen_there, wanted))
            wp.atomic_add(fit.exposure, view, 4, solid * wanted)
            errors += wp.vec2(wp.dot(shown, shown) / 3.0, 1.0)

            remaining = float(1.0)
            passed = wp.vec3()
            for i in range(used):
                q = fit.samples[lane, i]
                c = wp.vec3(q[0], q[1], q[2])
                w = remaining * q[3]
                passed += w * c
                remaining *= 1.0 - q[3]
                g = Row()
                # by density times the voxel's size, which has the same scale on all levels
                g[0] = wp.dot(e, remaining * c - (sum - passed)) + behind * left
                g[0] = step * (g[0] + photos.sparsity * (1.0 - q[3]))
                for k in range(wp.static(count)):
                    for channel in range(3):
                        g[1 + 3 * k + channel] = w * e[channel] * b[k]
                x = place(grid, o + fit.places[lane, i] * d)
                ix = int(x[0])
                iy = int(x[1])
                iz = int(x[2])
                fx = x[0] - float(ix)
                fy = x[1] - float(iy)
                fz = x[2] - float(iz)
                for corner in range(8):
                    jx = corner / 4
                    jy = (corner / 2) % 2
                    jz = corner % 2
                    share = wp.where(jx == 1, fx, 1.0 - fx) * wp.where(jy == 1, fy, 1.0 - fy)
                    share *= wp.where(jz == 1, fz, 1.0 - fz)
                    node = grid.links[ix + jx, iy + jy, iz + jz]
                    wp.atomic_add(gradient, node, share * g)
                    fit.touched[node] = wp.uint8(1)
                    if watch != 0:
                        wp.atomic_max(fit.largest, node, w * share)
        fit.errors[lane] = fit.errors[lane] + errors

    @wp.kernel(module="unique", enable_backward=False)
    def adam(
        values: wp.array(dtype=Row),
        gradient: wp.array(dtype=Row),
        mean: wp.array(dtype=Row),
        square: wp.array(dtype=Row),
        touched: wp.array(dtype=wp.uint8),
        pace: wp.array(dtype=float),
        rates: Row,
        kept: int,
        first: int,
    ):
        # Only rows that rays met: the others keep their momentum for when they are met again.
        # Of every fourth, from `kept` on, that is remembered for `smooth`; none if it is negative.
        i = first + wp.tid()
        if touched[i] == wp.uint8(0):
            return
        if kept < 0 or (i + kept) % 4 != 0:
            touched[i] = wp.uint8(0)
        g = gradient[i]
        gradient[i] = Row()
        if i == 0:  # empty space stays empty
            return
        m = 0.9 * mean[i] + 0.1 * g
        s = 0.99 * square[i] + 0.01 * wp.cw_mul(g, g)
        mean[i] = m
        square[i] = s
        value = values[i]
        for k in range(wp.static(1 + 3 * count)):
            rate = rates[k]
            if k == 0 and m[0] < 0.0:  # what is there goes as fast as anywhere
                rate *= pace[i]
            value[k] = value[k] - rate * m[k] / (wp.sqrt(s[k]) + 1.0e-8)
        values[i] = value

    @wp.kernel(module="unique", enable_backward=False)
    def smooth(
        values: wp.array(dtype=Row),
        steps: wp.array(dtype=Row),
        touched: wp.array(dtype=wp.uint8),
        places: wp.array(dtype=wp.vec3i),
        links: wp.array3d(dtype=wp.int32),
        share: float,
        scale: Row,
        first: int,
    ):
        # Steps by which rows are drawn to their neighbours, less where they differ by more than
        # `scale`: what the photos agree on is stronger than that, their noise is not.
        i = first + wp.tid()
        if i == 0 or touched[i] == wp.uint8(0):
            return
        p = places[i]
        value = values[i]
        drawn = Row()
        beside = float(0.0)
        for side in range(6):
            axis = side / 2
            q = wp.vec3i(p[0], p[1], p[2])
            q[axis] = q[axis] + 2 * (side % 2) - 1
            if q[axis] >= 0 and q[axis] < links.shape[axis]:
                j = links[q[0], q[1], q[2]]
                if j > 0:
                    beside += 1.0
                    other = values[j]
                    for k in range(wp.static(1 + 3 * count)):
                        away = other[k] - value[k]
                        far = away / scale[k]
                        drawn[k] = drawn[k] + away / (1.0 + far * far)
        if beside > 0.0:
            steps[i] = (share / beside) * drawn

    @wp.kernel(module="unique", enable_backward=False)
    def move(
        values: wp.array(dtype=Row),
        steps: wp.array(dtype=Row),
        touched: wp.array(dtype=wp.uint8),
        first: int,
    ):
        i = first + wp.tid()
        if touched[i] == wp.uint8(1):
            touched[i] = wp.uint8(0)
            values[i] = values[i] + steps[i]
            steps[i] = Row()

    @wp.kernel(module="unique", enable_backward=False)
    def resample(
        grid: Arrays, points: wp.array(dtype=wp.vec3), out: wp.array(dtype=Row), first: int
    ):
        # points in node units of the grid; beyond its last node it is as at the node
        i = first + wp.tid()
        x = points[i]
        for a in range(3):
            x[a] = wp.clamp(x[a], 0.0, float(grid.links.shape[a] - 1) - 1.0e-3)
        out[i] = row(grid, x)

    return {"follow": follow, "adam": adam, "smooth": smooth, "move": move, "resample": resample}
