# SPDX-License-Identifier: Apache-2.0
"""Warp kernels of the appearance term: what an object looks like from where it was rendered, moved
over a blurred photo, in; normal equations out."""

from __future__ import annotations

import warp as wp

from ..colours import Photo, Rays
from ..normal_equations import NormalEquations, PoseBatch, add_normal_equations
from .radiance_kernel import UNIT, composite, fair, residual_of

wp.set_module_options({"enable_backward": False})

SOLID = wp.constant(0.5)  # opacity from which a ray's depth is its own
LEAST = wp.constant(0.02)  # opacity about a ray from which its depth is that of its surroundings


@wp.func
def mixed(image: wp.array2d(dtype=wp.vec4), row: int, column: int, fx: float, fy: float):
    a = image[row, column] * (1.0 - fx) + image[row, column + 1] * fx
    b = image[row + 1, column] * (1.0 - fx) + image[row + 1, column + 1] * fx
    return a * (1.0 - fy) + b * fy


@wp.kernel
def blur_lattice(
    active: wp.array(dtype=wp.int32),
    pose_first: int,
    row_offset: int,
    rows: int,
    columns: int,
    stride: int,
    radius: int,
    sigma: float,
    source: wp.array2d(dtype=wp.vec4),
    source_depth: wp.array2d(dtype=wp.float32),
    blurred: wp.array2d(dtype=wp.vec4),
    blurred_depth: wp.array2d(dtype=wp.float32),
    first: int,
):
    """A Gaussian along one direction of a lattice of rays: of premultiplied colours, and of depths
    times opacity; stride 1: along rows, `columns`: across them. Beyond the lattice its edge goes
    on."""
    item = first + wp.tid()
    pose = pose_first + item / (rows * columns)
    ray = item % (rows * columns)
    if active[pose] == 0:
        return
    i = pose + row_offset
    place = ray % columns
    last = columns - 1
    if stride > 1:
        place = ray / columns
        last = rows - 1
    colour = wp.vec4()
    depth = float(0.0)
    total = float(0.0)
    for tap in range(-radius, radius + 1):
        w = wp.exp(-0.5 * float(tap * tap) / (sigma * sigma))
        other = ray + stride * (wp.clamp(place + tap, 0, last) - place)
        total += w
        colour += w * source[i, other]
        depth += w * source_depth[i, other]
    blurred[i, ray] = colour / total
    blurred_depth[i, ray] = depth / total


@wp.kernel
def place_points(
    poses: PoseBatch,
    pose_first: int,
    row_offset: int,
    camera_from_reference: wp.mat33,
    camera_translation: wp.vec3,
    rays: Rays,
    sharp: wp.array2d(dtype=wp.vec4),
    depth: wp.array2d(dtype=wp.float32),
    blurred: wp.array2d(dtype=wp.vec4),
    blurred_depth: wp.array2d(dtype=wp.float32),
    points: wp.array2d(dtype=wp.vec3),
):
    """Where what each ray shows lies, in the object's frame: where the ray ends, or, where it goes
    past the object, as far away as what is beside it."""
    block, ray = wp.tid()
    pose = pose_first + block
    if poses.active[pose] == 0:
        return
    R = camera_from_reference * poses.rotation[pose]
    t = camera_from_reference * poses.translation[pose] + camera_translation
    d = rays.directions[ray]
    i = pose + row_offset
    far = wp.dot(t, d)
    if sharp[i, ray][3] > SOLID:
        far = depth[i, ray] / sharp[i, ray][3]
    elif blurred[i, ray][3] > LEAST:
        far = blurred_depth[i, ray] / blurred[i, ray][3]
    points[i, ray] = wp.transpose(R) * (far * d - t)


@wp.kernel
def match_exposure(
    active: wp.array(dtype=wp.int32),
    pose_first: int,
    row_offset: int,
    rays: Rays,
    colours: wp.array2d(dtype=wp.vec4),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
):
    """Gain and bias of each channel that give what is rendered the photo's mean and contrast: all
    of it, or what is inside the mask.

    Not a regression, nor of the rays that both cover: from a pose that is off, the one would make
    everything grey, and the other compare the object with what is beside it.
    """
    block = wp.tid()
    pose = pose_first + block
    if active[pose] == 0:
        return
    i = pose + row_offset
    own = float(0.0)
    its = float(0.0)
    x = wp.vec3()
    xx = wp.vec3()
    y = wp.vec3()
    yy = wp.vec3()
    for ray in range(rays.weight.shape[0]):
        if rays.weight[ray] == 0.0:
            continue
        colour = colours[i, ray]
        seen = rays.observed[ray]
        if rays.opacity == 0.0 or colour[3] > SOLID:
            c = composite(colour, rays.background)
            own += 1.0
            x += c
            xx += wp.cw_mul(c, c)
        if rays.opacity == 0.0 or seen[3] > SOLID:
            s = wp.vec3(seen[0], seen[1], seen[2])
            its += 1.0
            y += s
            yy += wp.cw_mul(s, s)
    g = wp.vec3(1.0, 1.0, 1.0)
    b = wp.vec3()
    if own > 20.0 and its > 20.0:
        x = x / own
        y = y / its
        for k in range(3):
            from_field = wp.max(xx[k] / own - x[k] * x[k], 0.0) + 1.0e-3
            from_photo = wp.max(yy[k] / its - y[k] * y[k], 0.0) + 1.0e-3
            g[k] = wp.clamp(wp.sqrt(from_photo / from_field), 0.5, 2.0)
            b[k] = y[k] - g[k] * x[k]
    gain[i] = g
    bias[i] = b


@wp.kernel
def add_appearance(
    poses: PoseBatch,
    out: NormalEquations,
    pose_first: int,
    row_offset: int,
    camera_from_reference: wp.mat33,
    camera_translation: wp.vec3,
    rays: Rays,
    photo: Photo,
    robust: float,
    colours: wp.array2d(dtype=wp.vec4),
    points: wp.array2d(dtype=wp.vec3),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    lanes: int,
):
    """Cost, gradient and Gauss-Newton matrix of what was rendered, moved over the photo.

    What leaves the photo counts as what is left does on average.
    """
    block, lane = wp.tid()
    pose = pose_first + block
    if poses.active[pose] == 0:
        return
    i = pose + row_offset
    R = camera_from_reference * poses.rotation[pose]
    t = camera_from_reference * poses.translation[pose] + camera_translation
    H = wp.spatial_matrix()
    g = wp.spatial_vector()
    cost = float(0.0)
    weight = float(0.0)
    inside = float(0.0)
    total = float(0.0)
    rows = photo.colour.shape[0]
    columns = photo.colour.shape[1]
    for ray in range(lane, rays.weight.shape[0], lanes):
        if rays.weight[ray] == 0.0:
            continue
        total += 1.0
        arm = R * points[i, ray]
        q = arm + t
        if q[2] <= 1.0e-6:
            continue
        inverse_z = 1.0 / q[2]
        x = photo.pinhole[0] * q[0] * inverse_z + photo.pinhole[2]
        y = photo.pinhole[1] * q[1] * inverse_z + photo.pinhole[3]
        x = (x + 0.5) * photo.per_pixel[0] - 0.5
        y = (y + 0.5) * photo.per_pixel[1] - 0.5
        # written so that NaN is outside
        if not (x >= -0.5 and y >= -0.5 and x <= float(columns) - 0.5 and y <= float(rows) - 0.5):
            continue
        x = wp.clamp(x, 0.0, float(columns - 1))
        y = wp.clamp(y, 0.0, float(rows - 1))
        column = wp.min(int(x), columns - 2)
        row = wp.min(int(y), rows - 2)
        if photo.known[row, column] < 0.5:
            continue
        inside += 1.0
        fx = x - float(column)
        fy = y - float(row)
        seen = mixed(photo.colour, row, column, fx, fy)
        colour = colours[i, ray]
        r = residual_of(colour, seen, rays.background, gain[i], bias[i], rays.opacity)
        ratio = wp.length(r) / robust
        w = 1.0 / (1.0 + ratio)
        cost += robust * robust * fair(ratio)
        weight += w
        by_x = mixed(photo.by_x, row, column, fx, fy)
        by_y = mixed(photo.by_y, row, column, fx, fy)
        for channel in range(4):
            scale = float(1.0)
            if channel == 3:
                scale = rays.opacity
            gx = -scale * by_x[channel] * photo.pinhole[0] * inverse_z
            gy = -scale * by_y[channel] * photo.pinhole[1] * inverse_z
            gz = -(gx * q[0] + gy * q[1]) * inverse_z
            turn = wp.cross(arm, wp.vec3(gx, gy, gz))
            J = wp.spatial_vector(gx, gy, gz, turn[0], turn[1], turn[2])
            g += (w * r[channel]) * J
            for a in range(6):
                for b in range(a, 6):
                    H[a, b] = H[a, b] + w * J[a] * J[b]
    for a in range(6):
        for b in range(a):
            H[a, b] = H[b, a]
    H_sum = wp.tile_sum(wp.tile(H, preserve_type=True))[0]
    g_sum = wp.tile_sum(wp.tile(g, preserve_type=True))[0]
    cost = wp.tile_sum(wp.tile(cost))[0]
    weight = wp.tile_sum(wp.tile(weight))[0]
    inside = wp.tile_sum(wp.tile(inside))[0]
    total = wp.tile_sum(wp.tile(total))[0]
    if lane == 0:
        more = UNIT * total / wp.max(inside, 0.05 * total + 1.0e-6)
        add_normal_equations(
            out, pose, camera_from_reference, more * H_sum, more * g_sum, more * cost,
            more / UNIT * weight,
        )  # fmt: skip
