# SPDX-License-Identifier: Apache-2.0
"""How far the outline of one mesh lies from that of another, measured in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pose_refiner_ros.objects.mesh import Mesh

SUBPIXELS = 3  # along each axis of a working pixel


@dataclass(frozen=True)
class OutlineError:
    """Distance between two outlines in pixels of the working resolution, over all views."""

    mean_px: float  # area between the outlines over their length
    max_px: (
        float  # largest distance from a point of either outline to the other; in steps of 1/3 px
    )


class Outlines:
    """Silhouettes of a mesh from all around, its diameter spanning `resolution` pixels.

    Seen from infinitely far away, where opposite directions give mirrored silhouettes: half of the
    sphere is enough.
    """

    def __init__(self, mesh: Mesh, resolution: int = 256, views: int = 24):
        self.subpixels_per_metre = resolution * SUBPIXELS / mesh.diameter
        self.views = []
        vertices = mesh.vertices.astype(np.float64)
        for axes in view_axes(views):
            points = vertices @ (axes.T * self.subpixels_per_metre)
            used = points[mesh.used_vertices]
            corner = np.floor(used.min(axis=0)) - 2 * SUBPIXELS
            size = np.ceil(used.max(axis=0) - corner).astype(int) + 2 * SUBPIXELS
            mask = fill_triangles(points - corner, _facing(mesh, axes), (size[1], size[0]))
            self.views.append((axes, corner, mask))

    def error_of(self, mesh: Mesh) -> OutlineError:
        """Error of another mesh that should look the same."""
        area, length, worst = 0.0, 0.0, 0.0
        for mask, other in self._pairs(mesh):
            area += cv2.countNonZero(cv2.bitwise_xor(mask, other))
            length += _perimeter(mask)
            worst = max(worst, _largest_distance(mask, other))
        # An outline runs half a subpixel outside the border pixels from which distances count.
        return OutlineError(area / length / SUBPIXELS, max(worst - 0.5, 0.0) / SUBPIXELS)

    def within(self, mesh: Mesh, mean_px: float, max_px: float, every: int = 1) -> bool:
        """Whether `error_of` is at most this, judged by every n-th view.

        Quicker than `error_of`, as it stops at the first view that breaks a limit.
        """
        length = sum(_perimeter(mask) for _, _, mask in self.views[::every])
        allowed = mean_px * SUBPIXELS * length
        reach = max_px * SUBPIXELS + 0.5
        grid = np.arange(-int(reach), int(reach) + 1)
        disc = (grid[:, None] ** 2 + grid**2 <= reach**2).astype(np.uint8)
        for mask, other in self._pairs(mesh, every):
            differs = cv2.bitwise_xor(mask, other)
            allowed -= cv2.countNonZero(differs)
            if allowed < 0:
                return False
            near = cv2.dilate(_border(mask), disc) & cv2.dilate(_border(other), disc)
            far = differs & ~near
            if far.any() and (_blots(differs) & far).any():
                return False
        return True

    def _pairs(self, mesh: Mesh, every: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The reference's silhouette and that of the mesh, view by view."""
        vertices = mesh.vertices.astype(np.float64)
        for axes, corner, mask in self.views[::every]:
            points = vertices @ (axes.T * self.subpixels_per_metre)
            yield mask, fill_triangles(points - corner, _facing(mesh, axes), mask.shape)


def view_axes(count: int) -> np.ndarray:
    """(count, 2, 3) image axes of views spread evenly over half a sphere."""
    k = np.arange(count) + 0.5
    z = 1 - k / count
    angle = k * (np.pi * (3 - np.sqrt(5)))  # the golden angle
    radius = np.sqrt(1 - z**2)
    forward = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)
    right = np.cross(forward, [0.31, 0.83, 0.46])  # in no special direction of a typical mesh
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right)], axis=1)


def fill_triangles(points: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8 union of triangles with corners points (V, 2): 1 where a pixel's centre
    lies in one."""
    return (Coverage(points, faces, size).total() > 0).view(np.uint8)


class Coverage:
    """Which pixels (height, width) each triangle covers, as one run of pixels per triangle and row.

    Only runs are kept, so that sums over many small triangles cost little: each run adds where it
    starts and takes away behind its end, and the running sum gives the pixels.
    """

    def __init__(self, points: np.ndarray, faces: np.ndarray, size: tuple[int, int]):
        self.height, self.width = height, width = size
        row_of = np.ceil(points[:, 1])[faces]  # (F, 3); many faces of a fine mesh cross no row
        crossed = np.nonzero(row_of.max(axis=1) > row_of.min(axis=1))[0]
        faces = faces[crossed]
        x, y = points[:, 0][faces], points[:, 1][faces]
        order = np.argsort(y, axis=1)
        x, y = np.take_along_axis(x, order, axis=1), np.take_along_axis(y, order, axis=1)
        first = np.clip(np.ceil(y[:, 0]), 0, height).astype(np.int64)
        last = np.clip(np.ceil(y[:, 2]), 0, height).astype(np.int64)
        rows = last - first

        def inverse_slope(a, b):
            rise = y[:, b] - y[:, a]
            return np.divide(x[:, b] - x[:, a], rise, out=np.zeros(len(rise)), where=rise > 0)

        run = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(run)) - np.repeat(np.cumsum(rows) - rows - first, rows)
        long_side = x[run, 0] + (row - y[run, 0]) * inverse_slope(0, 2)[run]
        half = (row >= y[run, 1]).astype(np.int64)  # which of the two short sides the row crosses
        slopes = np.stack([inverse_slope(0, 1), inverse_slope(1, 2)], axis=1)
        short_side = x[run, half] + (row - y[run, half]) * slopes[run, half]
        left = np.ceil(np.minimum(long_side, short_side)).clip(0, width).astype(np.int64)
        right = np.ceil(np.maximum(long_side, short_side)).clip(0, width).astype(np.int64)
        self.face = crossed[run]
        self.start = row * (width + 1) + left
        self.end = row * (width + 1) + right

    def total(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(height, width) sum of the weights (F,) of the triangles over each pixel; None: ones."""
        weights = None if weights is None else weights[self.face]
        cells = self.height * (self.width + 1)
        change = np.bincount(self.start, weights, minlength=cells)
        change -= np.bincount(self.end, weights, minlength=cells)
        if weights is None:
            change = change.astype(np.int16)  # half the time
        total = np.cumsum(change, dtype=change.dtype).reshape(self.height, self.width + 1)
        return np.ascontiguousarray(total[:, : self.width])


def _facing(mesh: Mesh, axes: np.ndarray) -> np.ndarray:
    """Faces that a silhouette needs: of a closed mesh those on the near side are enough."""
    if not mesh.watertight:
        return mesh.faces
    return mesh.faces[mesh.face_normals @ np.cross(axes[0], axes[1]) > 0]


def _perimeter(mask: np.ndarray) -> float:
    """Length of the outline: a line in a random direction crosses 4/pi pixel borders per unit."""
    crossings = cv2.countNonZero(cv2.bitwise_xor(mask[:, 1:], mask[:, :-1]))
    crossings += cv2.countNonZero(cv2.bitwise_xor(mask[1:], mask[:-1]))
    return max(crossings * np.pi / 4, 1.0)


def _largest_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest distance, from either outline, of a point where two masks differ."""
    where = _blots(cv2.bitwise_xor(a, b)) > 0
    if not where.any():
        return 0.0
    largest = 0.0
    for mask in (a, b):
        if not mask.any():
            return float(np.hypot(*mask.shape))
        distance = cv2.distanceTransform(1 - _border(mask), cv2.DIST_L2, 5)
        largest = max(largest, float(distance[where].max()))
    return largest


def _blots(differs: np.ndarray) -> np.ndarray:
    """Where masks differ, without blots smaller than a working pixel.

    A crevice that narrows to nothing ends somewhere else at the least change of the mesh, and no
    mask shows it.
    """
    _, blot_of, stats, _ = cv2.connectedComponentsWithStats(differs, connectivity=8)
    large = (stats[:, cv2.CC_STAT_AREA] >= SUBPIXELS**2).astype(np.uint8)
    large[0] = 0  # where the masks agree
    return large[blot_of]


def _border(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour outside it."""
    return cv2.bitwise_xor(mask, cv2.erode(mask, np.ones((3, 3), np.uint8)))
