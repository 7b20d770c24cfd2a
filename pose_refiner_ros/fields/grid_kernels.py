# SPDX-License-Identifier: Apache-2.0
"""How Warp kernels look into a sparse voxel grid: rows of nodes, interpolation, empty space.

A node holds its density and, for each channel, a polynomial of the viewing direction. The length
of such a row depends on the polynomial's degree, so functions and kernels are made once per degree.
"""

# No postponed annotations here: Warp evaluates them, and they name types made in functions.
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import warp as wp

wp.set_module_options({"enable_backward": False, "fast_math": True})

BLOCK = 4  # nodes along each side of a block of the map of empty space
OPAQUE = wp.constant(1.0e-3)  # light that is left where a ray may end
# The basis of colour: 1, x, y, z, xy, yz, xz, x^2 - y^2, 3z^2 - 1 of the unit viewing direction.
# These are the real spherical harmonics but for factors, so that the first coefficient is the mean
# colour.
COEFFICIENTS = {0: 1, 1: 4, 2: 9}


@lru_cache
def row_type(degree: int) -> type:
    """The Warp vector of a node: density (1/m), then red, green, blue of each basis function."""
    return wp.types.vector(length=1 + 3 * COEFFICIENTS[degree], dtype=wp.float32)


@dataclass(frozen=True)
class GridFunctions:
    """What kernels of one degree call. Positions are in node units from node (0, 0, 0).

    Arrays: the struct of a grid; basis(d): values of the basis functions; clip(grid, o, d): where a
    ray enters and leaves, empty if the second is not larger; jump(grid, x): node units that are
    empty in all directions, 0 in an occupied block; first_sample(span, step, offset) and
    next_sample(n, free, step): numbers n of the samples of a ray, which lie at (n + offset) * step,
    without those that the empty space about the last one (`free`, of jump) makes needless;
    row(grid, x): the interpolated node; colour(row, basis); look(grid, x, basis): colour and
    density (vec4) with their derivative along each axis (three vec4).
    """

    Arrays: Any
    Row: Any
    basis: Any
    basis_gradient: Any
    clip: Any
    jump: Any
    first_sample: Any
    next_sample: Any
    row: Any
    colour: Any
    look: Any


@lru_cache
def grid_functions(degree: int) -> GridFunctions:
    """The functions for grids whose colours are polynomials of a degree (0 to 2)."""
    count = COEFFICIENTS[degree]
    Row = row_type(degree)
    Basis = wp.types.vector(length=count, dtype=wp.float32)
    BasisGradient = wp.types.matrix(shape=(count, 3), dtype=wp.float32)

    @wp.struct
    class Arrays:
        links: wp.array3d(dtype=wp.int32)  # row of each node; 0: the row of zeros
        skip: wp.array3d(dtype=wp.uint8)  # blocks to the nearest occupied one
        values: wp.array(dtype=Row)
        origin: wp.vec3  # of node (0, 0, 0), object frame, metres
        voxel: float  # distance of nodes, metres

    @wp.func
    def basis(d: wp.vec3):
        b = Basis()
        b[0] = 1.0
        if wp.static(degree > 0):
            b[1] = d[0]
            b[2] = d[1]
            b[3] = d[2]
        if wp.static(degree > 1):
            b[4] = d[0] * d[1]
            b[5] = d[1] * d[2]
            b[6] = d[0] * d[2]
            b[7] = d[0] * d[0] - d[1] * d[1]
            b[8] = 3.0 * d[2] * d[2] - 1.0
        return b

    @wp.func
    def basis_gradient(d: wp.vec3):
        g = BasisGradient()
        if wp.static(degree > 0):
            g[1, 0] = 1.0
            g[2, 1] = 1.0
            g[3, 2] = 1.0
        if wp.static(degree > 1):
            g[4, 0] = d[1]
            g[4, 1] = d[0]
            g[5, 1] = d[2]
            g[5, 2] = d[1]
            g[6, 0] = d[2]
            g[6, 2] = d[0]
            g[7, 0] = 2.0 * d[0]
            g[7, 1] = -2.0 * d[1]
            g[8, 2] = 6.0 * d[2]
        return g

    @wp.func
    def clip(grid: Arrays, o: wp.vec3, d: wp.vec3):
        t0 = float(0.0)
        t1 = float(1.0e9)
        for a in range(3):
            last = float(grid.links.shape[a] - 1) - 1.0e-3
            if wp.abs(d[a]) < 1.0e-9:
                if o[a] < 0.0 or o[a] > last:
                    t1 = -1.0
            else:
                one = (1.0e-3 - o[a]) / d[a]
                other = (last - o[a]) / d[a]
                t0 = wp.max(t0, wp.min(one, other))
                t1 = wp.min(t1, wp.max(one, other))
        return wp.vec2(t0, t1)

    @wp.func
    def jump(grid: Arrays, x: wp.vec3):
        blocks = int(grid.skip[int(x[0]) / BLOCK, int(x[1]) / BLOCK, int(x[2]) / BLOCK])
        return float(BLOCK * blocks)

    @wp.func
    def first_sample(span: wp.vec2, step: float, offset: float):
        return int(wp.ceil(span[0] / step - offset))

    @wp.func
    def next_sample(n: int, free: float, step: float):
        # a sample lies anywhere in its block
        return n + wp.max(int((free - float(BLOCK)) / step), 1)

    @wp.func
    def row(grid: Arrays, x: wp.vec3):
        ix = int(x[0])
        iy = int(x[1])
        iz = int(x[2])
        fx = x[0] - float(ix)
        fy = x[1] - float(iy)
        fz = x[2] - float(iz)
        gx = 1.0 - fx
        gy = 1.0 - fy
        gz = 1.0 - fz
        v = (gx * gy * gz) * grid.values[grid.links[ix, iy, iz]]
        v += (gx * gy * fz) * grid.values[grid.links[ix, iy, iz + 1]]
        v += (gx * fy * gz) * grid.values[grid.links[ix, iy + 1, iz]]
        v += (gx * fy * fz) * grid.values[grid.links[ix, iy + 1, iz + 1]]
        v += (fx * gy * gz) * grid.values[grid.links[ix + 1, iy, iz]]
        v += (fx * gy * fz) * grid.values[grid.links[ix + 1, iy, iz + 1]]
        v += (fx * fy * gz) * grid.values[grid.links[ix + 1, iy + 1, iz]]
        v += (fx * fy * fz) * grid.values[grid.links[ix + 1, iy + 1, iz + 1]]
        return v

    @wp.func
    def colour(v: Row, b: Basis):
        c = wp.vec3()
        for k in range(wp.static(count)):
            for channel in range(3):
                c[channel] = c[channel] + b[k] * v[1 + 3 * k + channel]
        return c

    @wp.func
    def node(grid: Arrays, ix: int, iy: int, iz: int, b: Basis):
        v = grid.values[grid.links[ix, iy, iz]]
        c = colour(v, b)
        return wp.vec4(c[0], c[1], c[2], v[0])

    @wp.func
    def look(grid: Arrays, x: wp.vec3, b: Basis):
        ix = int(x[0])
        iy = int(x[1])
        iz = int(x[2])
        fx = x[0] - float(ix)
        fy = x[1] - float(iy)
        fz = x[2] - float(iz)
        v000 = node(grid, ix, iy, iz, b)
        v001 = node(grid, ix, iy, iz + 1, b)
        v010 = node(grid, ix, iy + 1, iz, b)
        v011 = node(grid, ix, iy + 1, iz + 1, b)
        v100 = node(grid, ix + 1, iy, iz, b)
        v101 = node(grid, ix + 1, iy, iz + 1, b)
        v110 = node(grid, ix + 1, iy + 1, iz, b)
        v111 = node(grid, ix + 1, iy + 1, iz + 1, b)
        x00 = v000 + fx * (v100 - v000)
        x01 = v001 + fx * (v101 - v001)
        x10 = v010 + fx * (v110 - v010)
        x11 = v011 + fx * (v111 - v011)
        low = x00 + fy * (x10 - x00)
        high = x01 + fy * (x11 - x01)
        along_z = high - low
        along_y = (1.0 - fz) * (x10 - x00) + fz * (x11 - x01)
        along_x = (1.0 - fy) * ((1.0 - fz) * (v100 - v000) + fz * (v101 - v001)) + fy * (
            (1.0 - fz) * (v110 - v010) + fz * (v111 - v011)
        )
        return low + fz * along_z, along_x, along_y, along_z

    return GridFunctions(
        Arrays, Row, basis, basis_gradient, clip, jump, first_sample, next_sample, row, colour, look
    )
