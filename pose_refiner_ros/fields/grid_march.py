# SPDX-License-Identifier: Apache-2.0
"""Warp kernels that follow rays through a sparse grid, and back for the derivative."""

# No postponed annotations here: Warp evaluates them, and they name types made in functions.
from functools import lru_cache
from typing import Any

import warp as wp

from .grid_kernels import COEFFICIENTS, OPAQUE, grid_functions


@lru_cache
def march_kernels(degree: int, contracted: bool = False) -> dict[str, Any]:
    """query, march and march_back for grids of a degree."""
    grid = grid_functions(degree, contracted)
    Arrays, Row = grid.Arrays, grid.Row
    basis, basis_gradient, enter, place = grid.basis, grid.basis_gradient, grid.enter, grid.place
    span_of, begin, onward, jump = grid.span, grid.begin, grid.onward, grid.jump
    outward, row, colour, look = grid.outward, grid.row, grid.colour, grid.look
    count = COEFFICIENTS[degree]

    @wp.kernel(module="unique", enable_backward=False)
    def query(
        grid: Arrays,
        points: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        out: wp.array(dtype=wp.vec4),
        first: int,
    ):
        i = first + wp.tid()
        x = place(grid, enter(grid, points[i]))
        inside = True
        for a in range(3):
            if not (x[a] >= 0.0 and x[a] < float(grid.links.shape[a] - 1)):
                inside = False
        if inside:
            v = row(grid, x)
            c = colour(v, basis(directions[i]))
            out[i] = wp.vec4(c[0], c[1], c[2], wp.max(v[0], 0.0))

    @wp.kernel(module="unique", enable_backward=False)
    def march(
        grid: Arrays,
        origins: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        step: float,
        colours: wp.array(dtype=wp.vec3),
        opacity_depth: wp.array(dtype=wp.vec2),
        first: int,
    ):
        i = first + wp.tid()
        o = enter(grid, origins[i])
        d = directions[i]
        b = basis(d)
        span = span_of(grid, o, d)
        length = step * grid.voxel
        left = float(1.0)
        depth = float(0.0)
        sum = wp.vec3()
        t = begin(grid, o, d, span, step, 0.5)
        while t < span[1]:
            x = place(grid, o + t * d)
            free = jump(grid, x)
            if free == 0.0:
                v = row(grid, x)
                if v[0] > 0.0:
                    w = left * (1.0 - wp.exp(-v[0] * length))
                    sum += w * colour(v, b)
                    if wp.static(contracted):
                        depth += w / t  # the little that is seen of infinity must not count
                    else:
                        depth += w * t
                    left -= w
                    if left < OPAQUE:
                        break
            t = onward(grid, o, d, t, free, step, 0.5)
        colours[i] = sum
        opacity = 1.0 - left
        if opacity > 0.0:
            if wp.static(contracted):
                depth = opacity * opacity / depth
            depth = depth / opacity * grid.voxel
        opacity_depth[i] = wp.vec2(opacity, depth)

    @wp.kernel(module="unique", enable_backward=False)
    def march_back(
        grid: Arrays,
        origins: wp.array(dtype=wp.vec3),
        directions: wp.array(dtype=wp.vec3),
        step: float,
        known: wp.array(dtype=wp.vec4),
        pull: wp.array(dtype=wp.vec4),
        by_origin: wp.array(dtype=wp.vec3),
        by_direction: wp.array(dtype=wp.vec3),
        first: int,
    ):
        i = first + wp.tid()
        o = enter(grid, origins[i])
        d = directions[i]
        b = basis(d)
        span = span_of(grid, o, d)
        length = step * grid.voxel
        total = wp.vec3(known[i][0], known[i][1], known[i][2])
        g = wp.vec3(pull[i][0], pull[i][1], pull[i][2])
        behind = pull[i][3] * (1.0 - known[i][3])
        left = float(1.0)
        sum = wp.vec3()
        weighed = Row()
        to_origin = wp.vec3()
        to_direction = wp.vec3()
        t = begin(grid, o, d, span, step, 0.5)
        while t < span[1]:
            x = place(grid, o + t * d)
            free = jump(grid, x)
            if free == 0.0:
                v, dx, dy, dz = look(grid, x, b)
                if v[3] > 0.0:
                    w = left * (1.0 - wp.exp(-v[3] * length))
                    c = wp.vec3(v[0], v[1], v[2])
                    sum += w * c
                    left -= w
                    by_density = length * (wp.dot(g, left * c - (total - sum)) + behind)
                    pulled = wp.vec4(w * g[0], w * g[1], w * g[2], by_density)
                    along = wp.vec3(wp.dot(pulled, dx), wp.dot(pulled, dy), wp.dot(pulled, dz))
                    along = outward(grid, o + t * d, along)
                    to_origin += along
                    to_direction += t * along
                    if wp.static(degree > 0):
                        weighed += w * row(grid, x)
                    if left < OPAQUE:
                        break
            t = onward(grid, o, d, t, free, step, 0.5)
        if wp.static(degree > 0):
            gradient = basis_gradient(d)
            for k in range(1, wp.static(count)):
                strength = float(0.0)
                for channel in range(3):
                    strength += g[channel] * weighed[1 + 3 * k + channel]
                for a in range(3):
                    to_direction[a] = to_direction[a] + strength * gradient[k, a]
        by_origin[i] = to_origin / grid.voxel
        by_direction[i] = to_direction

    return {"query": query, "march": march, "march_back": march_back}
