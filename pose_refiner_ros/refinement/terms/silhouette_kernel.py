# SPDX-License-Identifier: Apache-2.0
"""Warp kernel of the silhouette: mesh, pose and signed distances in, normal equations out.

One block of threads owns one pose and walks through four stages: project the vertices, fill the
coverage image (both in coverage.py), integrate along the visible outline, add up the covered
pixels. On the CPU a block is one thread, so a whole linearisation is a single launch; on CUDA the
lanes of a block share the faces and edges of its pose, and the reductions between the stages are
the barriers.
"""

from __future__ import annotations

import warp as wp

from pose_refiner_ros.rendering.coverage import (
    ACROSS,
    DOWN,
    Raster,
    Scratch,
    cut_at,
    fill_faces,
    near_plane,
    project_vertices,
    raster_of,
    to_pixel,
    to_raster,
)
from pose_refiner_ros.rendering.mesh_batch import MeshArrays

from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_normal_equations,
    vector_in_reference,
)

wp.set_module_options({"enable_backward": False})

# Bits of a word of the finest raster that lie at the centres of pixels, and pixels per word.
CENTRES = wp.constant(wp.uint32(0x11111111))
PIXELS = wp.constant(32 // int(ACROSS))

# Signed distances at or above this mark pixels of which nothing is known.
UNKNOWN = wp.constant(1.0e8)
UNKNOWN_LIMIT = wp.constant(1.0e4)
# The outline is cut into directions as seen from the object's origin; residuals within one are
# taken as correlated when the covariance is estimated.
SECTORS = wp.constant(48)
# Half the stretch over which the slope of psi across the outline is measured, in full-resolution
# pixels. Short, since the force on a pose changes with psi where the outline lies; a pixel and a
# half off psi is flat, the more so the smaller its scale.
REACH = wp.constant(0.5)

vec7 = wp.types.vector(length=7, dtype=wp.float32)


@wp.struct
class Silhouettes:
    """Poses (B), which observations (N) each is seen in, and how it lies on their masks at one
    resolution."""

    # (N, S, S) robust signed distance psi = phi / (1 + |phi| / scale), full-resolution pixels
    distance: wp.array3d(dtype=wp.float32)
    scale: wp.array(dtype=wp.float32)  # (N,) distance that counts half, full-resolution pixels
    size: wp.array(dtype=wp.int32)  # (N,) used part of the S x S image
    pinhole: wp.array(dtype=wp.vec4)  # (N,) fx fy cx cy at this resolution
    image_bounds: wp.array(dtype=wp.vec4)  # (N,) x0 y0 x1 y1 of the photo, this resolution
    pixel: wp.array(dtype=wp.float32)  # (N,) side of a pixel in full-resolution pixels
    # (N,) camera_from_reference
    rotation: wp.array(dtype=wp.mat33)
    translation: wp.array(dtype=wp.vec3)

    mesh: wp.array(dtype=wp.int32)  # (B,)
    near: wp.array(dtype=wp.float32)  # (B,) near plane, metres
    first: wp.array(dtype=wp.int32)  # (B + 1,) where the rows of a pose begin in `observation`
    observation: wp.array(dtype=wp.int32)
    # (B,) over all observations: covered known area, its overlap with the mask, sum of squared
    # distance along the outline, its length, unknown part of the length, sums of the robust weight
    # and of the slope of the distance across the outline
    measures: wp.array(dtype=vec7)
    sectors: wp.array2d(dtype=wp.spatial_vector)  # (B, SECTORS) gradient by direction


@wp.func
def covered_beside(
    coverage: wp.array3d(dtype=wp.uint32), pose: int, raster: Raster, at: wp.vec2, n: wp.vec2
):
    """1 or 0 for the first point of the raster beyond an outline through `at`, in the direction of
    its unit normal n; -1 outside the image.

    The nearer that point, the fewer hidden edges close behind the outline pass for visible.
    """
    x = at[0]
    y = at[1]
    column = int(wp.floor(x + 0.5 * n[0] + 0.5))
    row = int(wp.floor(y + 0.5 * n[1] + 0.5))
    if (float(column) - x) * n[0] + (float(row) - y) * n[1] < 0.02:
        if wp.abs(n[0]) > wp.abs(n[1]):
            column += int(wp.sign(n[0]))
        else:
            row += int(wp.sign(n[1]))
    value = int(-1)
    if column >= 0 and row >= 0 and column < raster.columns and row < raster.rows:
        word = coverage[pose, row, column >> 5]
        value = int((word >> wp.uint32(column & 31)) & wp.uint32(1))
    return value


@wp.func
def distance_at(silhouettes: Silhouettes, index: int, x: float, y: float):
    """Robust signed distance at a point of the crop, or at its border's nearest point."""
    limit = float(silhouettes.size[index] - 1)
    inside_x = wp.clamp(x, 0.0, limit)
    inside_y = wp.clamp(y, 0.0, limit)
    column = wp.min(int(inside_x), silhouettes.size[index] - 2)
    row = wp.min(int(inside_y), silhouettes.size[index] - 2)
    fx = inside_x - float(column)
    fy = inside_y - float(row)
    a = silhouettes.distance[index, row, column]
    b = silhouettes.distance[index, row, column + 1]
    c = silhouettes.distance[index, row + 1, column]
    d = silhouettes.distance[index, row + 1, column + 1]
    value = (a * (1.0 - fx) + b * fx) * (1.0 - fy) + (c * (1.0 - fx) + d * fx) * fy
    if wp.max(wp.max(a, b), wp.max(c, d)) > UNKNOWN_LIMIT:
        value = UNKNOWN
    bounds = silhouettes.image_bounds[index]
    if x < bounds[0] or y < bounds[1] or x > bounds[2] or y > bounds[3]:
        value = UNKNOWN
    return value


@wp.func
def outline_integral(
    meshes: MeshArrays,
    mesh: int,
    observation: int,
    R: wp.mat33,
    t: wp.vec3,
    near: float,
    camera_from_reference: wp.mat33,
    spacing: float,
    stride: int,
    with_sectors: int,
    scratch: Scratch,
    silhouettes: Silhouettes,
    own: NormalEquations,
    pose: int,
    lane: int,
):
    """Measures of one silhouette, drawn at R, t in its camera; its normal equations are added to
    those of the pose.

    The cost is the integral over the known covered pixels of the robust signed distance psi. Its
    gradient is the outline integral of psi n.J (Reynolds' transport theorem), its Gauss-Newton
    matrix that of w (n.J)(n.J)^T with w = psi / phi = 1 - |psi| / scale.
    """
    lanes = wp.block_dim()
    z_near = near_plane(R, t, near)
    camera = silhouettes.pinhole[observation]
    size = silhouettes.size[observation]
    pixel = silhouettes.pixel[observation]
    to_pixel_scale = 1.0 / pixel
    inverse_scale = 1.0 / silhouettes.scale[observation]
    across = int(1)
    down = int(1)
    if stride == 1:
        across = ACROSS
        down = DOWN
    raster = raster_of(size, across, down, stride)

    # 1. project, 2. fill the coverage
    box = project_vertices(meshes, mesh, pose, lane, R, t, z_near, camera, scratch)
    drawn = fill_faces(meshes, mesh, pose, lane, R, t, z_near, camera, box, raster, scratch)

    # 3. integrate along the outline
    hessian = wp.spatial_matrix()
    gradient = wp.spatial_vector()
    weight_sum = float(0.0)
    square_sum = float(0.0)
    length_sum = float(0.0)
    unknown_sum = float(0.0)
    slope_sum = float(0.0)
    first_vertex = meshes.first_vertex[mesh]
    first_edge = meshes.first_edge[mesh]
    edge_count = meshes.first_edge[mesh + 1] - first_edge
    if drawn == 0:
        edge_count = 0
    for i in range(lane, edge_count, lanes):
        edge = meshes.edges[first_edge + i]
        candidate = edge[3] < 0
        away = float(1.0)  # the side of the edge where its front face is not
        if edge[3] >= 0:
            facing = scratch.facing[pose, edge[2]]
            candidate = facing != scratch.facing[pose, edge[3]]
            if facing != wp.uint8(0):
                away = -1.0
        if candidate:
            a = scratch.projected[pose, edge[0]]
            b = scratch.projected[pose, edge[1]]
            visible = True
            if a[2] < z_near or b[2] < z_near:
                if a[2] < z_near and b[2] < z_near:
                    visible = False
                else:
                    p = R * meshes.vertices[first_vertex + edge[0]] + t
                    q = R * meshes.vertices[first_vertex + edge[1]] + t
                    cut = cut_at(p, q, z_near)
                    cut_pixel = to_pixel(cut, camera)
                    if a[2] < z_near:
                        a = wp.vec3(cut_pixel[0], cut_pixel[1], z_near)
                    else:
                        b = wp.vec3(cut_pixel[0], cut_pixel[1], z_near)
            limit = float(size) + 0.5 * float(size)
            low = -0.5 * float(size)
            if (
                wp.max(a[0], b[0]) < low
                or wp.min(a[0], b[0]) > limit
                or wp.max(a[1], b[1]) < low
                or wp.min(a[1], b[1]) > limit
            ):
                visible = False
            if visible:
                dx = b[0] - a[0]
                dy = b[1] - a[1]
                length = wp.sqrt(dx * dx + dy * dy)
                samples = int(wp.min(length / spacing, 4096.0)) + 1
                step = length / float(samples)
                inverse_length = 1.0 / wp.max(length, 1.0e-9)
                nx = dy * inverse_length
                ny = -dx * inverse_length
                n = wp.normalize(wp.vec2(dy * raster.per_pixel[1], -dx * raster.per_pixel[0]))
                for k in range(samples):
                    s = (float(k) + 0.5) / float(samples)
                    x = a[0] + s * dx
                    y = a[1] + s * dy
                    at = to_raster(x, y, raster)
                    outward = float(0.0)
                    if edge[3] >= 0:
                        # the front face lies on one side, so only the other needs a look
                        if covered_beside(scratch.coverage, pose, raster, at, away * n) < 1:
                            outward = away
                    else:
                        plus = covered_beside(scratch.coverage, pose, raster, at, n)
                        minus = covered_beside(scratch.coverage, pose, raster, at, -n)
                        if plus == 1 and minus < 1:
                            outward = -1.0
                        elif minus == 1 and plus < 1:
                            outward = 1.0
                    if outward != 0.0:
                        ds = step * pixel
                        psi = distance_at(silhouettes, observation, x, y)
                        length_sum += ds
                        if psi > UNKNOWN_LIMIT:
                            unknown_sum += ds
                        else:
                            mx = outward * nx
                            my = outward * ny
                            inverse_z = (1.0 - s) / a[2] + s / b[2]
                            z = 1.0 / inverse_z
                            X = (x - camera[2]) / camera[0] * z
                            Y = (y - camera[3]) / camera[1] * z
                            # d(n.pixel)/d(point), in full-resolution pixels
                            gx = mx * camera[0] * inverse_z * pixel
                            gy = my * camera[1] * inverse_z * pixel
                            gz = -(gx * X + gy * Y) * inverse_z
                            arm = wp.vec3(X - t[0], Y - t[1], z - t[2])
                            turn = wp.cross(arm, wp.vec3(gx, gy, gz))
                            jacobian = wp.spatial_vector(gx, gy, gz, turn[0], turn[1], turn[2])
                            force = (ds * psi) * jacobian
                            robust = wp.max(1.0 - wp.abs(psi) * inverse_scale, 1.0e-3)
                            w = ds * robust
                            gradient += force
                            hessian += wp.outer(w * jacobian, jacobian)
                            weight_sum += w
                            square_sum += ds * psi * psi / robust
                            if with_sectors != 0:
                                # a rough border is near on both sides of its mean: how fast the
                                # distance really grows across it
                                out_x = REACH * mx * to_pixel_scale
                                out_y = REACH * my * to_pixel_scale
                                beyond = distance_at(silhouettes, observation, x + out_x, y + out_y)
                                before = distance_at(silhouettes, observation, x - out_x, y - out_y)
                                slope = (beyond - before) / (2.0 * REACH)
                                if beyond > UNKNOWN_LIMIT or before > UNKNOWN_LIMIT:
                                    slope = robust
                                slope_sum += ds * slope
                                # from the origin's pixel, times its depth, which may be 0
                                ox = (x - camera[2]) * t[2] - camera[0] * t[0]
                                oy = (y - camera[3]) * t[2] - camera[1] * t[1]
                                # a stand-in for the angle that grows as it does, 0 to 4
                                turned = 1.0 - ox / wp.max(wp.abs(ox) + wp.abs(oy), 1.0e-9)
                                if oy < 0.0:
                                    turned = 4.0 - turned
                                sector = wp.min(int(turned * float(SECTORS) / 4.0), SECTORS - 1)
                                force = vector_in_reference(camera_from_reference, force)
                                wp.atomic_add(silhouettes.sectors, pose, sector, force)

    hessian_sum = wp.tile_sum(wp.tile(hessian, preserve_type=True))[0]
    gradient_sum = wp.tile_sum(wp.tile(gradient, preserve_type=True))[0]
    weight_sum = wp.tile_sum(wp.tile(weight_sum))[0]
    square_sum = wp.tile_sum(wp.tile(square_sum))[0]
    length_sum = wp.tile_sum(wp.tile(length_sum))[0]
    unknown_sum = wp.tile_sum(wp.tile(unknown_sum))[0]
    slope_sum = wp.tile_sum(wp.tile(slope_sum))[0]

    # 4. add up the covered pixels, and wipe them for the next launch
    cost = float(0.0)
    area = float(0.0)
    overlap = float(0.0)
    last_row = float(raster.rows - 1)
    last_column = float(raster.columns - 1)
    top_left = to_raster(box[0], box[1], raster)
    bottom_right = to_raster(box[2], box[3], raster)
    row0 = int(wp.clamp(top_left[1] - 1.0, 0.0, last_row))
    row1 = int(wp.clamp(bottom_right[1] + 1.0, 0.0, last_row))
    column0 = int(wp.clamp(top_left[0] - 1.0, 0.0, last_column))
    column1 = int(wp.clamp(bottom_right[0] + 1.0, 0.0, last_column))
    for row in range(row0 + lane, row1 + 1, lanes):
        pixel_row = row / DOWN
        of_centres = pixel_row * DOWN == row
        for block in range(column0 >> 5, (column1 >> 5) + 1):
            word = scratch.coverage[pose, row, block]
            if word != wp.uint32(0):
                scratch.coverage[pose, row, block] = wp.uint32(0)
                if stride == 1:
                    if of_centres:
                        column = block * PIXELS
                        word &= CENTRES
                        if word == CENTRES:
                            # most words: a sum in pairs, whose parts do not wait for one another
                            a0 = silhouettes.distance[observation, pixel_row, column]
                            a1 = silhouettes.distance[observation, pixel_row, column + 1]
                            a2 = silhouettes.distance[observation, pixel_row, column + 2]
                            a3 = silhouettes.distance[observation, pixel_row, column + 3]
                            a4 = silhouettes.distance[observation, pixel_row, column + 4]
                            a5 = silhouettes.distance[observation, pixel_row, column + 5]
                            a6 = silhouettes.distance[observation, pixel_row, column + 6]
                            a7 = silhouettes.distance[observation, pixel_row, column + 7]
                            largest = wp.max(
                                wp.max(wp.max(a0, a1), wp.max(a2, a3)),
                                wp.max(wp.max(a4, a5), wp.max(a6, a7)),
                            )
                            if largest < 0.0:
                                cost += ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))
                                area += float(PIXELS)
                                overlap += float(PIXELS)
                                word = wp.uint32(0)
                        for k in range(PIXELS):
                            if (word >> wp.uint32(k * ACROSS)) & wp.uint32(1) != wp.uint32(0):
                                psi = silhouettes.distance[observation, pixel_row, column + k]
                                if psi < UNKNOWN_LIMIT:
                                    area += 1.0
                                    cost += psi
                                    if psi < 0.0:
                                        overlap += 1.0
                else:
                    for bit in range(32):
                        if (word >> wp.uint32(bit)) & wp.uint32(1) != wp.uint32(0):
                            column = (block * 32 + bit) * stride
                            # the mean of two opposite corners is the value at the stride's middle
                            psi = 0.5 * (
                                silhouettes.distance[observation, row * stride, column]
                                + silhouettes.distance[
                                    observation, row * stride + stride - 1, column + stride - 1
                                ]
                            )
                            if psi < UNKNOWN_LIMIT:
                                area += 1.0
                                cost += psi
                                if psi < 0.0:
                                    overlap += 1.0
    cost = wp.tile_sum(wp.tile(cost))[0]
    area = wp.tile_sum(wp.tile(area))[0]
    overlap = wp.tile_sum(wp.tile(overlap))[0]
    square = pixel * pixel * float(stride * stride)
    if lane == 0:
        add_normal_equations(
            own,
            pose,
            camera_from_reference,
            hessian_sum,
            gradient_sum,
            cost * square,
            weight_sum,
        )
    return vec7(
        area * square,
        overlap * square,
        square_sum,
        length_sum,
        unknown_sum,
        weight_sum,
        slope_sum,
    )


@wp.kernel
def linearize_silhouette(
    meshes: MeshArrays,
    silhouettes: Silhouettes,
    poses: PoseBatch,
    spacing: float,
    stride: int,
    mesh_offset: int,
    with_sectors: int,
    scratch: Scratch,
    own: NormalEquations,
    total: NormalEquations,
):
    """Normal equations of the silhouettes of each active pose in all cameras that see it, kept in
    `own` and added to `total`."""
    pose, lane = wp.tid()
    if poses.active[pose] == 0:
        return
    if with_sectors != 0:
        for i in range(lane, SECTORS, wp.block_dim()):
            silhouettes.sectors[pose, i] = wp.spatial_vector()
    if lane == 0:
        own.hessian[pose] = wp.spatial_matrix()
        own.gradient[pose] = wp.spatial_vector()
        own.cost[pose] = 0.0
        own.weight[pose] = 0.0
    measures = vec7()
    for row in range(silhouettes.first[pose], silhouettes.first[pose + 1]):
        observation = silhouettes.observation[row]
        camera_from_reference = silhouettes.rotation[observation]
        place = camera_from_reference * poses.translation[pose]
        measures += outline_integral(
            meshes,
            silhouettes.mesh[pose] + mesh_offset,
            observation,
            camera_from_reference * poses.rotation[pose],
            place + silhouettes.translation[observation],
            silhouettes.near[pose],
            camera_from_reference,
            spacing,
            stride,
            with_sectors,
            scratch,
            silhouettes,
            own,
            pose,
            lane,
        )
    if lane == 0:
        silhouettes.measures[pose] = measures
        total.hessian[pose] += own.hessian[pose]
        total.gradient[pose] += own.gradient[pose]
        total.cost[pose] += own.cost[pose]
        total.weight[pose] += own.weight[pose]
