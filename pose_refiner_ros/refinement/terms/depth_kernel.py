# SPDX-License-Identifier: Apache-2.0
"""Warp kernel of the depth term: measured points and distance grids in, normal equations out."""

from __future__ import annotations

import warp as wp

from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_normal_equations,
    vector_in_reference,
)

wp.set_module_options({"enable_backward": False})

# Points are grouped by the part of the object that they are on, twelve around it times four along:
# residuals within one are taken as correlated when the covariance is estimated.
SECTORS = wp.constant(48)
SETTLING = wp.constant(4)  # every how manyth point tells the offset at first
AGREES = wp.constant(0.25)  # weight of a point that is as far off as the cutoff


@wp.struct
class DepthPoints:
    """Poses (B), which observations (N) each is seen in, points (P) of these, and grids of signed
    distances (M) of the objects."""

    values: wp.array(dtype=wp.float32)  # of all grids
    grid_first: wp.array(dtype=wp.int32)  # (M,) where in `values` a grid begins
    nodes: wp.array(dtype=wp.vec3i)  # (M,)
    origin: wp.array(dtype=wp.vec3)  # (M,) of node (0, 0, 0), from the pivot
    voxel: wp.array(dtype=wp.float32)  # (M,)

    points: wp.array(dtype=wp.vec4)  # axes of the observation's crop, and sigma, metres
    point_first: wp.array(dtype=wp.int32)  # (N + 1,) where the points of an observation begin
    offset_sigma: wp.array(dtype=wp.float32)  # (N,) of what all its distances are off by, metres
    rotation: wp.array(dtype=wp.mat33)  # (N,) camera_from_reference
    translation: wp.array(dtype=wp.vec3)

    grid: wp.array(dtype=wp.int32)  # (B,) of the object
    shape_sigma: wp.array(dtype=wp.float32)  # (B,) of its surface, metres
    reach: wp.array(dtype=wp.float32)  # (B,) metres: residuals that may be real at the coarse scale
    first: wp.array(dtype=wp.int32)  # (B + 1,) where the rows of a pose begin in `observation`
    observation: wp.array(dtype=wp.int32)
    # by row as well
    alike: wp.array(dtype=wp.float32)  # of how many points the noise is one
    unit: wp.array(dtype=wp.float32)  # of the cost: what the noise of an outline costs there
    # (B,) over all observations: points, those that agree, sums of their robust weights and of
    # weight times (r / sigma)^2
    measures: wp.array(dtype=wp.vec4)
    sectors: wp.array2d(dtype=wp.spatial_vector)  # (B, SECTORS) gradient by part of the object


@wp.func
def distance_and_normal(batch: DepthPoints, grid: int, x: wp.vec3):
    """Signed distance at a point of the object (from its pivot) and its derivative, trilinear; far
    outside the grid, to the grid's nearest point and from there on."""
    nodes = batch.nodes[grid]
    inverse = 1.0 / batch.voxel[grid]
    place = inverse * (x - batch.origin[grid])
    inside = wp.vec3()
    for a in range(3):
        inside[a] = wp.clamp(place[a], 0.0, float(nodes[a] - 1) - 1.0e-3)
    ix = int(inside[0])
    iy = int(inside[1])
    iz = int(inside[2])
    fx = inside[0] - float(ix)
    fy = inside[1] - float(iy)
    fz = inside[2] - float(iz)
    along_x = nodes[1] * nodes[2]
    at = batch.grid_first[grid] + ix * along_x + iy * nodes[2] + iz
    v000 = batch.values[at]
    v001 = batch.values[at + 1]
    v010 = batch.values[at + nodes[2]]
    v011 = batch.values[at + nodes[2] + 1]
    v100 = batch.values[at + along_x]
    v101 = batch.values[at + along_x + 1]
    v110 = batch.values[at + along_x + nodes[2]]
    v111 = batch.values[at + along_x + nodes[2] + 1]
    x00 = v000 + fx * (v100 - v000)
    x01 = v001 + fx * (v101 - v001)
    x10 = v010 + fx * (v110 - v010)
    x11 = v011 + fx * (v111 - v011)
    low = x00 + fy * (x10 - x00)
    high = x01 + fy * (x11 - x01)
    by_y = (1.0 - fz) * (x10 - x00) + fz * (x11 - x01)
    by_x = (1.0 - fy) * ((1.0 - fz) * (v100 - v000) + fz * (v101 - v001)) + fy * (
        (1.0 - fz) * (v110 - v010) + fz * (v111 - v011)
    )
    normal = inverse * wp.vec3(by_x, by_y, high - low)
    distance = low + fz * (high - low)
    beyond = (place - inside) * batch.voxel[grid]
    outside = wp.length(beyond)
    if outside > 0.0:
        normal = beyond / outside
        distance += outside
    return wp.vec4(normal[0], normal[1], normal[2], distance)


@wp.func
def compare_point(
    batch: DepthPoints,
    pose: int,
    point: int,
    offset: float,
    R: wp.mat33,
    t: wp.vec3,
    cutoff: float,
    coarse: int,
):
    """z = r / sigma of a point: its derivative J by the pose, in the camera's axes, itself, its
    robust weight, its derivative by the offset, and its cost. r is the signed distance from the
    surface of a measured point, the offset taken off, q. With n the normal there,
    dr = -n.v - (q - t) x n.w."""
    measured = batch.points[point]
    q = wp.vec3(measured[0], measured[1], measured[2])
    ray = wp.normalize(q)
    arm = q - offset * ray - t
    found = distance_and_normal(batch, batch.grid[pose], wp.transpose(R) * arm)
    shape = batch.shape_sigma[pose]
    inverse = 1.0 / wp.sqrt(measured[3] * measured[3] + shape * shape)
    limit = cutoff
    if coarse != 0:
        limit = wp.max(limit, batch.reach[pose] * inverse)
    z = found[3] * inverse
    scaled = inverse * (R * wp.vec3(found[0], found[1], found[2]))
    along = wp.dot(scaled, ray)
    share = limit * limit / (limit * limit + z * z)
    # The back of the object is not what was measured; of what is thinner than the grid can tell
    # both sides are the front.
    if along > 0.0 and wp.abs(found[3]) > batch.voxel[batch.grid[pose]]:
        share = 0.0
    turn = wp.cross(arm, scaled)
    J = -wp.spatial_vector(scaled[0], scaled[1], scaled[2], turn[0], turn[1], turn[2])
    # of Geman and McClure
    return J, wp.vec4(z, share * share, -along, 0.5 * limit * limit * (1.0 - share))


@wp.kernel
def linearize_depth(
    batch: DepthPoints,
    poses: PoseBatch,
    stride: int,
    cutoff: float,
    coarse: int,
    with_sectors: int,
    own: NormalEquations,
    total: NormalEquations,
):
    """Normal equations of each active pose by all points that were measured of it, kept in `own`
    and added to `total`. What a change of the offset would explain as well is taken from them
    (Schur)."""
    pose, lane = wp.tid()
    if poses.active[pose] == 0:
        return
    lanes = wp.block_dim()
    if with_sectors != 0:
        for i in range(lane, SECTORS, lanes):
            batch.sectors[pose, i] = wp.spatial_vector()
    if lane == 0:
        own.hessian[pose] = wp.spatial_matrix()
        own.gradient[pose] = wp.spatial_vector()
        own.cost[pose] = 0.0
        own.weight[pose] = 0.0
    measures = wp.vec4()
    for row in range(batch.first[pose], batch.first[pose + 1]):
        seen = batch.observation[row]
        begin = batch.point_first[seen] + lane * stride
        end = batch.point_first[seen + 1]
        camera_from_reference = batch.rotation[seen]
        R = camera_from_reference * poses.rotation[pose]
        t = camera_from_reference * poses.translation[pose] + batch.translation[seen]
        hessian = wp.spatial_matrix()
        gradient = wp.spatial_vector()
        coupling = wp.spatial_vector()
        sigma = batch.offset_sigma[seen]
        prior = batch.alike[row] / (float(stride) * sigma * sigma)
        offset = float(0.0)
        for _settling in range(2):
            few = wp.vec2()
            for i in range(begin, end, SETTLING * lanes * stride):
                J, told = compare_point(batch, pose, i, offset, R, t, cutoff, coarse)
                few += told[1] * told[2] * wp.vec2(told[2], told[0])
            few = float(SETTLING) * wp.tile_sum(wp.tile(few, preserve_type=True))[0]
            offset -= (few[1] + prior * offset) / (few[0] + prior)
        by_offset = wp.vec2()  # second derivative, first
        counts = wp.vec4()  # cost, weight, points, those that agree
        square = float(0.0)
        for i in range(begin, end, lanes * stride):
            J, told = compare_point(batch, pose, i, offset, R, t, cutoff, coarse)
            z = told[0]
            w = told[1]
            c = told[2]
            for a in range(6):
                for b in range(a, 6):
                    hessian[a, b] = hessian[a, b] + w * J[a] * J[b]
            gradient += (w * z) * J
            coupling += (w * c) * J
            by_offset += wp.vec2(w * c * c, w * c * z)
            agrees = float(0.0)
            if w > AGREES:
                agrees = 1.0
            counts += wp.vec4(told[3], w, 1.0, agrees)
            square += w * z * z
        hessian = wp.tile_sum(wp.tile(hessian, preserve_type=True))[0]
        gradient = wp.tile_sum(wp.tile(gradient, preserve_type=True))[0]
        coupling = wp.tile_sum(wp.tile(coupling, preserve_type=True))[0]
        by_offset = wp.tile_sum(wp.tile(by_offset, preserve_type=True))[0]
        counts = wp.tile_sum(wp.tile(counts, preserve_type=True))[0]
        square = wp.tile_sum(wp.tile(square))[0]
        for a in range(6):
            for b in range(a):
                hessian[a, b] = hessian[b, a]
        inverse = 1.0 / (by_offset[0] + prior)
        pull_back = by_offset[1] + prior * offset
        change = -inverse * pull_back
        hessian -= inverse * wp.outer(coupling, coupling)
        gradient += change * coupling
        cost = counts[0] + 0.5 * (prior * offset * offset + change * pull_back)
        unit = float(stride) * batch.unit[row] / batch.alike[row]
        if lane == 0:
            add_normal_equations(
                own,
                pose,
                camera_from_reference,
                unit * hessian,
                unit * gradient,
                unit * cost,
                unit * counts[1],
            )
        measures += wp.vec4(counts[2], counts[3], counts[1], square)
        if with_sectors != 0:
            for i in range(begin, end, lanes * stride):
                J, told = compare_point(batch, pose, i, offset, R, t, cutoff, coarse)
                J -= (told[2] * inverse) * coupling
                pull = (unit * told[1] * (told[0] + told[2] * change)) * J
                q = batch.points[i]
                x = wp.transpose(R) * (wp.vec3(q[0], q[1], q[2]) - t)
                around = int(12.0 * (wp.atan2(x[1], x[0]) / 6.2831853 + 0.5))
                height = int(2.0 * (x[2] / wp.max(wp.length(x), 1.0e-9) + 1.0))
                sector = 4 * wp.clamp(around, 0, 11) + wp.clamp(height, 0, 3)
                wp.atomic_add(
                    batch.sectors, pose, sector, vector_in_reference(camera_from_reference, pull)
                )
    if lane == 0:
        batch.measures[pose] = measures
        total.hessian[pose] += own.hessian[pose]
        total.gradient[pose] += own.gradient[pose]
        total.cost[pose] += own.cost[pose]
        total.weight[pose] += own.weight[pose]
