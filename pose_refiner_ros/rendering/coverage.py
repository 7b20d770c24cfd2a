# SPDX-License-Identifier: Apache-2.0
"""Warp kernels that fill silhouettes: which points of a raster a mesh covers, a bit each.

One block of threads owns one pose and its image; its lanes share the vertices and the faces.
"""

from __future__ import annotations

import warp as wp

from .mesh_batch import MeshArrays

wp.set_module_options({"enable_backward": False})

FARTHEST = wp.constant(1.0e30)  # a depth that nothing has
ALL_BITS = wp.constant(wp.uint32(0xFFFFFFFF))

# Points per pixel of the finest rasters, to the right and downwards. More to the right than
# downwards, since a row costs time and a bit hardly any.
ACROSS = wp.constant(4)
DOWN = wp.constant(2)


@wp.struct
class Scratch:
    """Working memory of a batch; coverage is all zero between launches."""

    projected: wp.array2d(dtype=wp.vec3)  # (B, V) u, v, depth
    facing: wp.array2d(dtype=wp.uint8)  # (B, F)
    coverage: wp.array3d(dtype=wp.uint32)  # (B, rows, columns / 32), lowest bit first


def coverage_shape(count: int, size: int, finest: bool = True) -> tuple[int, int, int]:
    """Shape of `Scratch.coverage` for that many poses and pictures of size x size pixels; finest:
    with the points of the finest raster, else one per pixel."""
    across, down = (int(ACROSS), int(DOWN)) if finest else (1, 1)
    return (count, down * size, (across * size + 31) // 32)


@wp.struct
class Raster:
    """Points at which coverage is noted; (i, j) lies at pixel ((i, j) - shift) / per_pixel."""

    columns: int
    rows: int
    per_pixel: wp.vec2
    shift: wp.vec2


@wp.func
def raster_of(size: int, across: int, down: int, grain: int):
    """The raster of a picture of size x size pixels: across x down points per pixel, the first of
    them at its centre, or one in the middle of grain x grain pixels."""
    raster = Raster()
    raster.columns = size * across / grain
    raster.rows = size * down / grain
    raster.per_pixel = wp.vec2(float(across) / float(grain), float(down) / float(grain))
    shift = 0.5 / float(grain) - 0.5
    raster.shift = wp.vec2(shift, shift)
    return raster


@wp.func
def to_raster(u: float, v: float, raster: Raster):
    return wp.vec2(
        u * raster.per_pixel[0] + raster.shift[0], v * raster.per_pixel[1] + raster.shift[1]
    )


@wp.func
def fill_row(pose: int, y: int, x0: int, x1: int, coverage: wp.array3d(dtype=wp.uint32)):
    """Set the points x0 to x1 of a row."""
    first = x0 >> 5
    last = x1 >> 5
    head = ALL_BITS << wp.uint32(x0 & 31)
    tail = ALL_BITS >> wp.uint32(31 - (x1 & 31))
    if first == last:
        wp.atomic_or(coverage, pose, y, first, head & tail)
    else:
        wp.atomic_or(coverage, pose, y, first, head)
        for word in range(first + 1, last):
            coverage[pose, y, word] = ALL_BITS
        wp.atomic_or(coverage, pose, y, last, tail)


@wp.func
def fill_triangle(
    p: wp.vec2,
    q: wp.vec2,
    r: wp.vec2,
    pose: int,
    raster: Raster,
    coverage: wp.array3d(dtype=wp.uint32),
):
    """Set every point of the raster that lies in the triangle, borders included."""
    limit = float(raster.columns - 1)
    last_row = float(raster.rows - 1)
    # a, b, c from top to bottom
    a = p
    b = q
    c = r
    if b[1] < a[1]:
        a = q
        b = p
    if c[1] < a[1]:
        c = b
        b = a
        a = r
    elif c[1] < b[1]:
        c = b
        b = r
    # clamped from both sides: a coordinate that no integer holds must not become one
    y0 = int(wp.ceil(wp.clamp(a[1], 0.0, last_row)))
    y1 = int(wp.floor(wp.clamp(c[1], -1.0, last_row)))
    if a[1] <= last_row and y0 <= y1:
        x_min = wp.min(a[0], wp.min(b[0], c[0]))
        x_max = wp.max(a[0], wp.max(b[0], c[0]))
        if x_max >= 0.0 and x_min <= limit:
            # edges flatter than this span no row in between, but may lie on one
            slope_ac = (c[0] - a[0]) / wp.max(c[1] - a[1], 1.0e-6)
            slope_ab = (b[0] - a[0]) / wp.max(b[1] - a[1], 1.0e-6)
            slope_bc = (c[0] - b[0]) / wp.max(c[1] - b[1], 1.0e-6)
            for y in range(y0, y1 + 1):
                row = float(y)
                one = a[0] + slope_ac * (row - a[1])
                other = b[0] + slope_bc * (row - b[1])
                if row < b[1]:
                    other = a[0] + slope_ab * (row - a[1])
                left = wp.max(wp.min(one, other), wp.max(x_min, 0.0))
                right = wp.min(wp.max(one, other), wp.min(x_max, limit))
                x0 = int(wp.ceil(left))
                x1 = int(wp.floor(right))
                if x0 <= x1:
                    fill_row(pose, y, x0, x1, coverage)


@wp.func
def to_pixel(p: wp.vec3, camera: wp.vec4):
    return wp.vec2(camera[0] * p[0] / p[2] + camera[2], camera[1] * p[1] / p[2] + camera[3])


@wp.func
def cut_at(a: wp.vec3, b: wp.vec3, near: float):
    """The point of the segment a-b with depth ``near``, exactly so, since it is divided by."""
    share = (near - a[2]) / (b[2] - a[2])
    return wp.vec3(a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, near)


@wp.func
def fill_clipped_triangle(
    a: wp.vec3,
    b: wp.vec3,
    c: wp.vec3,
    near: float,
    camera: wp.vec4,
    pose: int,
    raster: Raster,
    coverage: wp.array3d(dtype=wp.uint32),
):
    """Fill the part in front of the near plane of a triangle given in camera coordinates."""
    # turn the corners so that a is the odd one out: alone in front, or alone behind
    front_a = a[2] >= near
    front_b = b[2] >= near
    front_c = c[2] >= near
    p = a
    q = b
    r = c
    if front_b != front_a and front_b != front_c:
        p = b
        q = c
        r = a
    elif front_c != front_a and front_c != front_b:
        p = c
        q = a
        r = b
    pq = to_pixel(cut_at(p, q, near), camera)
    pr = to_pixel(cut_at(p, r, near), camera)
    if p[2] >= near:
        fill_triangle(to_pixel(p, camera), pq, pr, pose, raster, coverage)
    else:
        q2 = to_pixel(q, camera)
        r2 = to_pixel(r, camera)
        fill_triangle(pq, q2, r2, pose, raster, coverage)
        fill_triangle(pq, r2, pr, pose, raster, coverage)


@wp.func
def near_plane(R: wp.mat33, t: wp.vec3, near: float):
    """``near``, or a depth that nothing reaches where the pose holds NaN or infinity or lies so far
    off that pixel coordinates overflow: of such an object nothing is seen."""
    result = FARTHEST
    if wp.ddot(R, R) < 10.0 and wp.length(t) < 1.0e6:
        result = near
    return result


@wp.func
def project_vertices(
    meshes: MeshArrays,
    mesh: int,
    pose: int,
    lane: int,
    R: wp.mat33,
    t: wp.vec3,
    z_near: float,
    camera: wp.vec4,
    scratch: Scratch,
):
    """Project a pose's vertices; returns their box (x_min, y_min, x_max, y_max)."""
    first_vertex = meshes.first_vertex[mesh]
    vertex_count = meshes.first_vertex[mesh + 1] - first_vertex
    x_min = float(1.0e9)
    y_min = float(1.0e9)
    x_max = float(-1.0e9)
    y_max = float(-1.0e9)
    for i in range(lane, vertex_count, wp.block_dim()):
        p = R * meshes.vertices[first_vertex + i] + t
        u = float(0.0)
        v = float(0.0)
        z = float(-1.0)
        if p[2] >= z_near and p[2] < FARTHEST:
            z = p[2]
            inverse = 1.0 / p[2]
            u = camera[0] * p[0] * inverse + camera[2]
            v = camera[1] * p[1] * inverse + camera[3]
            x_min = wp.min(x_min, u)
            x_max = wp.max(x_max, u)
            y_min = wp.min(y_min, v)
            y_max = wp.max(y_max, v)
        else:
            # part of the object is behind the near plane: it may cover anything
            x_min = -1.0e9
            y_min = -1.0e9
            x_max = 1.0e9
            y_max = 1.0e9
        scratch.projected[pose, i] = wp.vec3(u, v, z)
    return wp.vec4(
        wp.tile_min(wp.tile(x_min))[0],
        wp.tile_min(wp.tile(y_min))[0],
        wp.tile_max(wp.tile(x_max))[0],
        wp.tile_max(wp.tile(y_max))[0],
    )


@wp.func
def fill_faces(
    meshes: MeshArrays,
    mesh: int,
    pose: int,
    lane: int,
    R: wp.mat33,
    t: wp.vec3,
    z_near: float,
    camera: wp.vec4,
    box: wp.vec4,
    raster: Raster,
    scratch: Scratch,
):
    """Fill the coverage of a projected pose. Notes which faces look at the camera, and returns how
    many were drawn."""
    first_vertex = meshes.first_vertex[mesh]
    first_face = meshes.first_face[mesh]
    face_count = meshes.first_face[mesh + 1] - first_face
    cull = meshes.closed[mesh]
    if box[0] < -1.0e8:
        cull = 0  # the near plane cuts the mesh open: its inside shows
    center = -(wp.transpose(R) * t)  # camera position in object coordinates
    drawn = int(0)
    for i in range(lane, face_count, wp.block_dim()):
        plane = meshes.planes[first_face + i]
        front = plane[0] * center[0] + plane[1] * center[1] + plane[2] * center[2] > plane[3]
        if front:
            scratch.facing[pose, i] = wp.uint8(1)
        else:
            scratch.facing[pose, i] = wp.uint8(0)
        if front or cull == 0:
            face = meshes.faces[first_face + i]
            a = scratch.projected[pose, face[0]]
            b = scratch.projected[pose, face[1]]
            c = scratch.projected[pose, face[2]]
            behind = int(0)
            if a[2] < z_near:
                behind += 1
            if b[2] < z_near:
                behind += 1
            if c[2] < z_near:
                behind += 1
            if behind == 0:
                fill_triangle(
                    to_raster(a[0], a[1], raster),
                    to_raster(b[0], b[1], raster),
                    to_raster(c[0], c[1], raster),
                    pose,
                    raster,
                    scratch.coverage,
                )
            elif behind < 3:
                fill_clipped_triangle(
                    R * meshes.vertices[first_vertex + face[0]] + t,
                    R * meshes.vertices[first_vertex + face[1]] + t,
                    R * meshes.vertices[first_vertex + face[2]] + t,
                    z_near,
                    wp.vec4(
                        camera[0] * raster.per_pixel[0],
                        camera[1] * raster.per_pixel[1],
                        camera[2] * raster.per_pixel[0] + raster.shift[0],
                        camera[3] * raster.per_pixel[1] + raster.shift[1],
                    ),
                    pose,
                    raster,
                    scratch.coverage,
                )
            drawn += 1
    return wp.tile_sum(wp.tile(drawn))[0]


@wp.kernel
def draw_silhouettes(
    meshes: MeshArrays,
    mesh_of_pose: wp.array(dtype=wp.int32),
    rotation: wp.array(dtype=wp.mat33),
    translation: wp.array(dtype=wp.vec3),
    near: float,
    camera: wp.array(dtype=wp.vec4),
    size: int,
    scratch: Scratch,
):
    """Only the coverage images: for codebooks and tests."""
    pose, lane = wp.tid()
    mesh = mesh_of_pose[pose]
    R = rotation[pose]
    t = translation[pose]
    z_near = near_plane(R, t, near)
    box = project_vertices(meshes, mesh, pose, lane, R, t, z_near, camera[pose], scratch)
    raster = raster_of(size, 1, 1, 1)
    fill_faces(meshes, mesh, pose, lane, R, t, z_near, camera[pose], box, raster, scratch)
