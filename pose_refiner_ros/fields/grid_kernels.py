# SPDX-License-Identifier: Apache-2.0
"""How Warp kernels look into a sparse voxel grid: rows of nodes, interpolation, empty space.

A node holds its density and, for each channel, a polynomial of the viewing direction. The length
of such a row depends on the polynomial's degree, so functions and kernels are made once per degree.

The grid of a scene without an end is contracted: within a cube it is as it is, and what is beyond
one of its faces, however far, lies between that face and one as far again. With h half the cube's
side and m > h the largest coordinate by its size, on axis a,

    x_b -> x_b h / m        x_a -> sign(x_a) (2 h - h^2 / m)

as in MERF (Reiser et al. 2023), piecewise projective: nodes are then as far apart as pixels of a
camera in the cube and as their parallax tells.
"""

# No postponed annotations here: Warp evaluates them, and they name types made in functions.
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import warp as wp

wp.set_module_options({"enable_backward": False, "fast_math": True})

BLOCK = 4  # nodes along each side of a block of the map of empty space
OPAQUE = wp.constant(1.0e-3)  # light that is left where a ray may end
FARTHEST = 1000.0  # half sides of the cube that rays through a contracted grid are followed for
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
    """What kernels of one degree call. Positions x are in node units from node (0, 0, 0).

    Arrays: the struct of a grid; basis(d): values of the basis functions; enter(grid, p): a point
    of the object's frame as rays begin there, o, and place(grid, o): the same as a position;
    span(grid, o, d): where a ray, o + t d, may meet nodes, empty if the second is not larger;
    begin(grid, o, d, span, step, offset): t of its first sample; onward(grid, o, d, t, free, step,
    offset): that of the next, beyond the empty space about the last one (`free`, of jump);
    jump(grid, x): node units that are empty in all directions, 0 in an occupied block;
    outward(grid, o, g): a gradient by position as one by o; row(grid, x): the interpolated node;
    colour(row, basis); look(grid, x, basis): colour and density (vec4) with their derivative along
    each axis (three vec4).
    """

    Arrays: Any
    Row: Any
    basis: Any
    basis_gradient: Any
    enter: Any
    place: Any
    span: Any
    begin: Any
    onward: Any
    jump: Any
    outward: Any
    row: Any
    colour: Any
    look: Any


@lru_cache
def grid_functions(degree: int, contracted: bool = False) -> GridFunctions:
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
        middle: wp.vec3  # of the cube within which a contracted grid is as it is, and half its side
        half: float

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
    def largest(p: wp.vec3):
        a = int(0)
        if wp.abs(p[1]) > wp.abs(p[0]):
            a = 1
        if wp.abs(p[2]) > wp.abs(p[a]):
            a = 2
        return a

    @wp.func
    def enter(grid: Arrays, p: wp.vec3):
        if wp.static(contracted):
            return (p - grid.middle) / grid.voxel
        return (p - grid.origin) / grid.voxel

    @wp.func
    def place(grid: Arrays, o: wp.vec3):
        x = o
        if wp.static(contracted):
            h = grid.half / grid.voxel
            a = largest(o)
            m = wp.abs(o[a])
            if m > h:
                x = (h / m) * o
                x[a] = wp.sign(o[a]) * (2.0 * h - h * h / m)
            x += (grid.middle - grid.origin) / grid.voxel
        return x

    @wp.func
    def outward(grid: Arrays, o: wp.vec3, g: wp.vec3):
        w = g
        if wp.static(contracted):
            h = grid.half / grid.voxel
            a = largest(o)
            m = wp.abs(o[a])
            if m > h:
                w = (h / m) * g
                beside = wp.dot(o, g) - o[a] * g[a]
                w[a] = (h / (m * m)) * (h * g[a] - wp.sign(o[a]) * beside)
        return w

    @wp.func
    def speed(grid: Arrays, o: wp.vec3, d: wp.vec3):
        """How far a position moves while a point at o moves by d, unit."""
        v = d
        h = grid.half / grid.voxel
        a = largest(o)
        m = wp.abs(o[a])
        if m > h:
            away = wp.sign(o[a]) * d[a]
            v = (h / m) * (d - (away / m) * o)
            v[a] = (h / m) * (h / m) * d[a]
        return wp.max(wp.length(v), 1.0e-9)

    @wp.func
    def span(grid: Arrays, o: wp.vec3, d: wp.vec3):
        t0 = float(0.0)
        t1 = float(1.0e9)
        if wp.static(contracted):
            t1 = wp.static(FARTHEST) * grid.half / grid.voxel
        else:
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
        if wp.static(contracted):
            beyond = float(0.0)
            for a in range(3):
                last = float(grid.links.shape[a] - 1) - 1.0e-3
                beyond = wp.max(beyond, wp.max(1.0e-3 - x[a], x[a] - last))
            if not beyond <= 0.0:
                return wp.max(beyond, 1.0) + float(BLOCK)
        blocks = int(grid.skip[int(x[0]) / BLOCK, int(x[1]) / BLOCK, int(x[2]) / BLOCK])
        return float(BLOCK * blocks)

    @wp.func
    def begin(grid: Arrays, o: wp.vec3, d: wp.vec3, span: wp.vec2, step: float, offset: float):
        if wp.static(contracted):
            return offset * step / speed(grid, o, d)
        return (wp.ceil(span[0] / step - offset) + offset) * step

    @wp.func
    def onward(
        grid: Arrays, o: wp.vec3, d: wp.vec3, t: float, free: float, step: float, offset: float
    ):
        # a sample lies anywhere in its block
        steps = wp.max(int((free - float(BLOCK)) / step), 1)
        if wp.static(contracted):
            return t + float(steps) * step / speed(grid, o + t * d, d)
        n = int(wp.floor(t / step - offset + 0.5)) + steps
        return (float(n) + offset) * step

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
        Arrays,
        Row,
        basis,
        basis_gradient,
        enter,
        place,
        span,
        begin,
        onward,
        jump,
        outward,
        row,
        colour,
        look,
    )
