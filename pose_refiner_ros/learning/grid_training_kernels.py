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
    opacity_weight: float  # of the squared error of opacity beside that of colour; 0: see the sky
    sparsity: float  # price of each sample, as a squared error, of the light it would stop alone
    sky: wp.array2d(dtype=wp.vec3)  # colour behind the grid by latitude and longitude
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
    sky: wp.array2d(dtype=wp.vec3)  # gradient of the sky's colours
    exposure: wp.array2d(dtype=wp.vec3)  # photo: sums of xx, xo, oo, xy, oy (`solve_exposure`)
    nodes: wp.array(dtype=wp.vec3i)  # where each row's node is


@wp.struct
class SkyPlace:
    """Four texels and their shares."""

    low: int
    high: int
    left: int
    right: int
    down: float
    across: float


@wp.func
def sky_place(sky: wp.array2d(dtype=wp.vec3), d: wp.vec3):
    rows = sky.shape[0]
    columns = sky.shape[1]
    v = wp.acos(wp.clamp(d[2], -1.0, 1.0)) / wp.PI * float(rows) - 0.5
    u = (wp.atan2(d[1], d[0]) / (2.0 * wp.PI) + 1.0) * float(columns) - 0.5
    row = int(wp.floor(v))
    column = int(wp.floor(u))
    place = SkyPlace()
    place.down = v - float(row)
    place.across = u - float(column)
    place.low = wp.clamp(row, 0, rows - 1)
    place.high = wp.clamp(row + 1, 0, rows - 1)
    place.left = column % columns
    place.right = (column + 1) % columns
    return place


@wp.func
def sky_colour(sky: wp.array2d(dtype=wp.vec3), p: SkyPlace):
    low = (1.0 - p.across) * sky[p.low, p.left] + p.across * sky[p.low, p.right]
    high = (1.0 - p.across) * sky[p.high, p.left] + p.across * sky[p.high, p.right]
    return (1.0 - p.down) * low + p.down * high


@wp.func
def add_to_sky(gradient: wp.array2d(dtype=wp.vec3), p: SkyPlace, g: wp.vec3):
    wp.atomic_add(gradient, p.low, p.left, (1.0 - p.down) * (1.0 - p.across) * g)
    wp.atomic_add(gradient, p.low, p.right, (1.0 - p.down) * p.across * g)
    wp.atomic_add(gradient, p.high, p.left, p.down * (1.0 - p.across) * g)
    wp.atomic_add(gradient, p.high, p.right, p.down * p.across * g)


@wp.kernel
def sky_adam(
    sky: wp.array2d(dtype=wp.vec3),
    gradient: wp.array2d(dtype=wp.vec3),
    mean: wp.array2d(dtype=wp.vec3),
    square: wp.array2d(dtype=wp.vec3),
    rate: float,
):
    i, j = wp.tid()
    g = gradient[i, j]
    gradient[i, j] = wp.vec3()
    if wp.length_sq(g) > 0.0:
        mean[i, j] = 0.9 * mean[i, j] + 0.1 * g
        square[i, j] = 0.99 * square[i, j] + 0.01 * wp.cw_mul(g, g)
        colour = sky[i, j]
        for k in range(3):
            colour[k] = colour[k] - rate * mean[i, j][k] / (wp.sqrt(square[i, j][k]) + 1.0e-8)
        sky[i, j] = colour


@lru_cache
def training_kernels(degree: int) -> dict[str, Any]:
    """follow, adam and resample for grids of a degree."""
    grid = grid_functions(degree)
    Arrays, Row = grid.Arrays, grid.Row
    basis, clip, jump, row, colour = grid.basis, grid.clip, grid.jump, grid.row, grid.colour
    first_sample, next_sample = grid.first_sample, grid.next_sample
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
            o = (photos.positions[view] - grid.origin) / grid.voxel
            b = basis(d)
            span = clip(grid, o, d)
            # samples lie anywhere, so that no place between them is left out
            random = wp.rand_init(seed, r)
            offset = wp.randf(random)
            left = float(1.0)
            sum = wp.vec3()
            used = int(0)
            n = first_sample(span, step, offset)
            t = (float(n) + offset) * step
            while t < span[1] and used < SAMPLES:
                x = o + t * d
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
                n = next_sample(n, free, step)
                t = (float(n) + offset) * step

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
            sky = wp.vec3()
            if photos.opacity_weight == 0.0:
                place = sky_place(photos.sky, d)
                sky = sky_colour(photos.sky, place)
                seen_there = sum + left * sky
                solid = 1.0
            off = wp.cw_mul(gain, seen_there) + solid * bias - wanted
            e = wp.cw_mul(gain, off)  # the derivative by the field's colour
            shown = off - wp.vec3(e_opacity, e_opacity, e_opacity)  # in front of white
            if photos.opacity_weight == 0.0:
                add_to_sky(fit.sky, sky_place(photos.sky, d), left * e)
                shown = off
                behind = -wp.dot(e, sky)
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
                x = o + fit.places[lane, i] * d
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
                    near = wp.where(jx == 1, fx, 1.0 - fx) * wp.where(jy == 1, fy, 1.0 - fy)
                    near *= wp.where(jz == 1, fz, 1.0 - fz)
                    node = grid.links[ix + jx, iy + jy, iz + jz]
                    wp.atomic_add(gradient, node, near * g)
                    fit.touched[node] = wp.uint8(1)
                    if watch != 0:
                        wp.atomic_max(fit.largest, node, w * near)
        fit.errors[lane] = fit.errors[lane] + errors

    @wp.kernel(module="unique", enable_backward=False)
    def adam(
        values: wp.array(dtype=Row),
        gradient: wp.array(dtype=Row),
        mean: wp.array(dtype=Row),
        square: wp.array(dtype=Row),
        touched: wp.array(dtype=wp.uint8),
        places: wp.array(dtype=wp.vec3i),
        links: wp.array3d(dtype=wp.int32),
        rates: Row,
        smooth: float,
        scale: Row,
        turn: int,
        first: int,
    ):
        # Only rows that rays met: the others keep their momentum for when they are met again.
        # Every fourth is drawn to its neighbours by a share `smooth`, less where they differ by
        # more than `scale`: what the photos agree on is stronger, their noise is not.
        i = first + wp.tid()
        if touched[i] == wp.uint8(0):
            return
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
            value[k] = value[k] - rates[k] * m[k] / (wp.sqrt(s[k]) + 1.0e-8)
        if smooth > 0.0 and (i + turn) % 4 == 0:
            p = places[i]
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
                value += (4.0 * smooth / beside) * drawn
        values[i] = value

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

    return {"follow": follow, "adam": adam, "resample": resample}
