# SPDX-License-Identifier: Apache-2.0
"""What the silhouette kernel must compute, in plain numpy and float64: slow, one pose at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

UNKNOWN = 1e8
REACH = 0.5
FINEST = np.array([4, 2])  # points per pixel, across and down, where edges are looked at closely


def clipped(triangle: np.ndarray, near: float) -> list[np.ndarray]:
    """Triangles (3, 3) of the part of a triangle (3, 3) at depths of at least near."""
    polygon = []
    for p, q in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
        if p[2] >= near:
            polygon.append(p)
        if (p[2] >= near) != (q[2] >= near):
            polygon.append(p + (q - p) * (near - p[2]) / (q[2] - p[2]))
    return [np.array([polygon[0], *pair]) for pair in pairwise(polygon[1:])]


def project(points: np.ndarray, pinhole: np.ndarray) -> np.ndarray:
    return points[..., :2] / points[..., 2:] * pinhole[:2] + pinhole[2:]


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def inside_triangle(pixels: np.ndarray, corner: np.ndarray, slack: float) -> np.ndarray:
    """Whether points (..., 2) lie in a triangle (3, 2) that is larger by slack on every side."""
    a, b, c = corner
    area = cross(b - a, c - a)
    if area == 0.0:
        return np.zeros(pixels.shape[:-1], bool)
    result = np.ones(pixels.shape[:-1], bool)
    for p, q in ((a, b), (b, c), (c, a)):
        side = cross(q - p, pixels - p) * np.sign(area) / np.linalg.norm(q - p)
        result &= side >= -slack
    # a sliver's corners reach far beyond it when its sides are moved outwards
    low, high = corner.min(axis=0) - abs(slack), corner.max(axis=0) + abs(slack)
    return result & ((pixels >= low) & (pixels <= high)).all(axis=-1)


def coverage(mesh, pose, pinhole, size, near=1e-3, slack=0.0) -> np.ndarray:
    """Which of size x size (or columns, rows) points with whole coordinates the mesh covers."""
    columns, rows = np.broadcast_to(size, 2)
    points = mesh.vertices.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    pixels = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).astype(float)
    covered = np.zeros((rows, columns), bool)
    for face in mesh.faces:
        for triangle in clipped(points[face], near):
            covered |= inside_triangle(pixels, project(triangle, pinhole), slack)
    return covered


@dataclass
class TwinResult:
    hessian: np.ndarray
    gradient: np.ndarray
    cost: float
    area: float
    overlap: float
    square: float
    length: float
    unknown: float
    weight: float
    slope: float


def linearize(mesh, picture, pose, near=1e-3, spacing=1.0, grain=1) -> TwinResult:
    """One pose against one picture (see refinement/terms/linearize.py)."""
    psi, pinhole, pixel = picture.psi.astype(np.float64), picture.pinhole, picture.pixel
    size = psi.shape[0]
    # points of the raster per pixel, and where the first of them lies
    per_pixel, shift = (FINEST, 0.0) if grain == 1 else (np.full(2, 1.0 / grain), 0.5 / grain - 0.5)
    raster_pinhole = np.append(pinhole[:2] * per_pixel, pinhole[2:] * per_pixel + shift)
    raster = coverage(mesh, pose, raster_pinhole, (size * per_pixel).astype(int), near)
    covered = raster[:: FINEST[1], :: FINEST[0]] if grain == 1 else raster
    out = TwinResult(np.zeros((6, 6)), np.zeros(6), *np.zeros(8))

    corner = psi[::grain, ::grain], psi[grain - 1 :: grain, grain - 1 :: grain]
    middle = (corner[0] + corner[1]) / 2
    known = covered & (middle < 1e4)
    square = (grain * pixel) ** 2
    out.cost = middle[known].sum() * square
    out.area = known.sum() * square
    out.overlap = (middle[known] < 0).sum() * square

    points = mesh.vertices.astype(np.float64) @ pose[:3, :3].T + pose[:3, 3]
    corners = points[mesh.faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    front = np.einsum("fi,fi->f", normal, corners[:, 0]) < 0.0
    owners: dict[tuple[int, int], list[int]] = {}
    for index, face in enumerate(mesh.faces):
        for i, j in ((0, 1), (1, 2), (2, 0)):
            owners.setdefault(tuple(sorted((int(face[i]), int(face[j])))), []).append(index)
    for edge, faces in owners.items():
        if len(faces) == 2 and front[faces[0]] == front[faces[1]]:
            continue
        p, q = points[edge[0]], points[edge[1]]
        if p[2] < near and q[2] < near:
            continue
        if p[2] < near:
            p = p + (q - p) * (near - p[2]) / (q[2] - p[2])
        if q[2] < near:
            q = q + (p - q) * (near - q[2]) / (p[2] - q[2])
        a, b = project(p, pinhole), project(q, pinhole)
        if (np.maximum(a, b) < -size / 2).any() or (np.minimum(a, b) > 1.5 * size).any():
            continue
        length = np.linalg.norm(b - a)
        count = int(length / spacing) + 1
        n = np.array([b[1] - a[1], a[0] - b[0]]) / max(length, 1e-9)
        sides = [n, -n]
        if len(faces) == 2:
            # the front face lies on one side of the edge
            seen = faces[0] if front[faces[0]] else faces[1]
            third = next(v for v in mesh.faces[seen] if v not in edge)
            sides = [_away_from(points[third], p, q, n)]
        for k in range(count):
            s = (k + 0.5) / count
            at = a + s * (b - a)
            where = at * per_pixel + shift
            outer = [m for m in sides if _beside(raster, where, m / per_pixel) != 1]
            if len(outer) != 1:
                continue
            if len(faces) != 2 and _beside(raster, where, -outer[0] / per_pixel) != 1:
                continue
            m = outer[0]
            step = length / count * pixel
            value = _sample(psi, at, picture.bounds)
            out.length += step
            if value == UNKNOWN:
                out.unknown += step
                continue
            depth = 1.0 / ((1 - s) / p[2] + s / q[2])
            point = np.append((at - pinhole[2:]) / pinhole[:2], 1.0) * depth
            row = _normal_motion(point, pose[:3, 3], m, pinhole, pixel)
            robust = max(1 - abs(value) / picture.scale, 1e-3)
            out.gradient += step * value * row
            out.hessian += step * robust * np.outer(row, row)
            out.weight += step * robust
            out.square += step * value**2 / robust
            beyond = _sample(psi, at + REACH * m / pixel, picture.bounds)
            before = _sample(psi, at - REACH * m / pixel, picture.bounds)
            out.slope += step * (
                robust if UNKNOWN in (beyond, before) else (beyond - before) / (2 * REACH)
            )
    return out


def _away_from(third: np.ndarray, p: np.ndarray, q: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Of n and -n (2,) the side of the edge p-q on which the picture of a third point is not.

    Told in space, since the third point may lie behind the camera: the plane through the eye and
    the edge parts the points that project to either side.
    """
    plane = np.cross(p, q)  # its x, y point to the right-hand side of q - p in the picture
    side = np.sign(plane @ third)
    to_side = plane[:2] / np.linalg.norm(plane[:2])  # where plane @ (u, v, 1) grows
    return -side * np.sign(to_side @ n) * n


def _beside(covered: np.ndarray, at: np.ndarray, n: np.ndarray) -> int:
    """Whether the first point beyond an outline in the direction of n is covered; -1: none."""
    n = n / np.linalg.norm(n)
    pixel = np.floor(at + 0.5 * n + 0.5).astype(int)
    if (pixel - at) @ n < 0.02:
        axis = 0 if abs(n[0]) > abs(n[1]) else 1
        pixel[axis] += int(np.sign(n[axis]))
    if (pixel < 0).any() or (pixel >= covered.shape[::-1]).any():
        return -1
    return int(covered[pixel[1], pixel[0]])


def _sample(psi: np.ndarray, at: np.ndarray, bounds) -> float:
    if (at < bounds[:2]).any() or (at > bounds[2:]).any():
        return UNKNOWN
    inside = np.clip(at, 0, len(psi) - 1)
    x, y = np.minimum(inside.astype(int), len(psi) - 2)
    fx, fy = inside - (x, y)
    square = psi[y : y + 2, x : x + 2]
    if square.max() > 1e4:
        return UNKNOWN
    return float(np.array([1 - fy, fy]) @ square @ np.array([1 - fx, fx]))


def _normal_motion(point, origin, m, pinhole, pixel) -> np.ndarray:
    """(6,) motion along m, in full-resolution pixels, of a point's picture per unit of twist."""
    X, Y, Z = point
    fx, fy = pinhole[:2]
    d_pixel = np.array([[fx / Z, 0, -fx * X / Z**2], [0, fy / Z, -fy * Y / Z**2]])
    x, y, z = point - origin
    d_point = np.array([[1, 0, 0, 0, z, -y], [0, 1, 0, -z, 0, x], [0, 0, 1, y, -x, 0]])
    return pixel * (m @ d_pixel @ d_point)
