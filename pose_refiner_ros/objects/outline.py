# SPDX-License-Identifier: Apache-2.0
"""How far the outline of one mesh lies from that of another, measured in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from pose_refiner_ros.objects.mesh import Mesh, edges_of

SUBPIXELS = 3  # along each axis of a working pixel


@dataclass(frozen=True)
class OutlineError:
    """Distance between two outlines in pixels of the working resolution, over all views."""

    mean_px: float  # area between the outlines over their length
    bias_px: float  # the same with a sign: how much larger the silhouette is all around
    max_px: (
        float  # largest distance from a point of either outline to the other; in steps of 1/3 px
    )


EXACT = OutlineError(mean_px=0.0, bias_px=0.0, max_px=0.0)


class Outlines:
    """Silhouettes of a mesh from all around, its diameter spanning `resolution` pixels.

    Seen from infinitely far away, where opposite directions give mirrored silhouettes: half of the
    sphere is enough.
    """

    def __init__(self, mesh: Mesh, resolution: int = 256, views: int = 24):
        self.subpixels_per_metre = resolution * SUBPIXELS / mesh.diameter
        self.views = []
        vertices, rasterizer = mesh.vertices.astype(np.float64), Rasterizer(mesh.faces)
        for axes in view_axes(views):
            points = vertices @ (axes.T * self.subpixels_per_metre)
            used = points[mesh.used_vertices]
            corner = np.floor(used.min(axis=0)) - 2 * SUBPIXELS
            size = np.ceil(used.max(axis=0) - corner).astype(int) + 2 * SUBPIXELS
            mask = rasterizer.covered(points - corner, (size[1], size[0]))
            self.views.append((axes, corner, mask))

    def error_of(self, mesh: Mesh) -> OutlineError:
        """Error of another mesh that should look the same."""
        more, less, length, worst = 0, 0, 0.0, 0.0
        for mask, other in self._pairs(mesh):
            more += cv2.countNonZero(other & ~mask)
            less += cv2.countNonZero(mask & ~other)
            length += _perimeter(mask)
            worst = max(worst, _largest_distance(mask, other))
        return OutlineError(
            mean_px=(more + less) / length / SUBPIXELS,
            bias_px=(more - less) / length / SUBPIXELS,
            # An outline runs half a subpixel outside the border pixels that distances count from.
            max_px=max(worst - 0.5, 0.0) / SUBPIXELS,
        )

    def within(self, mesh: Mesh, limit: OutlineError, every: int = 1) -> bool:
        """Whether `error_of` is at most the limit, judged by every n-th view.

        Quicker than `error_of`, as it stops at the first view that breaks the limit.
        """
        unit = SUBPIXELS * sum(_perimeter(mask) for _, _, mask in self.views[::every])
        reach = limit.max_px * SUBPIXELS + 0.5
        grid = np.arange(-int(reach), int(reach) + 1)
        disc = (grid[:, None] ** 2 + grid**2 <= reach**2).astype(np.uint8)
        more, less = 0, 0
        for mask, other in self._pairs(mesh, every):
            differs = cv2.bitwise_xor(mask, other)
            more += cv2.countNonZero(differs & other)
            less += cv2.countNonZero(differs & mask)
            if more + less > limit.mean_px * unit:
                return False
            near = cv2.dilate(_border(mask), disc) & cv2.dilate(_border(other), disc)
            far = differs & ~near
            if far.any() and (_blots(differs) & far).any():
                return False
        return abs(more - less) <= limit.bias_px * unit

    def _pairs(self, mesh: Mesh, every: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The reference's silhouette and that of the mesh, view by view."""
        vertices, rasterizer = mesh.vertices.astype(np.float64), Rasterizer(mesh.faces)
        for axes, corner, mask in self.views[::every]:
            points = vertices @ (axes.T * self.subpixels_per_metre)
            yield mask, rasterizer.covered(points - corner, mask.shape)


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


class Rasterizer:
    """Fills the triangles of one mesh, projected in any way.

    The triangles over a pixel are counted from their borders: along each row of pixels, an edge
    adds or takes away one where the row crosses it. Edges between neighbours that face the same
    way cancel: only the edges of folds and of open borders are drawn, few in a fine mesh.
    """

    def __init__(self, faces: np.ndarray):
        self.faces = faces
        self.edges, self.edge_of, _ = edges_of(faces)
        self.direction = np.where(self.edges[self.edge_of, 0] == faces.ravel(), 1.0, -1.0)

    def covered(self, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(height, width) uint8: 1 where a pixel's centre lies in a triangle; points (V, 2)."""
        return (self.total(points, size) > 0).view(np.uint8)

    def total(
        self, points: np.ndarray, size: tuple[int, int], weights: np.ndarray | None = None
    ) -> np.ndarray:
        """(height, width) sum of the weights (F,) of the triangles over each pixel; None: ones."""
        height, width = size
        a, b, c = (points[self.faces[:, k]] for k in range(3))
        turn = np.sign(
            (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
        )
        around = np.repeat(turn if weights is None else turn * weights, 3) * self.direction
        weight = np.bincount(self.edge_of, around, minlength=len(self.edges))
        drawn = np.nonzero(weight)[0]
        (x, y), (x_end, y_end) = (points[self.edges[drawn, k]].T for k in range(2))
        weight = np.where(y_end < y, weight[drawn], -weight[drawn])

        first = np.ceil(np.minimum(y, y_end)).clip(0, height).astype(np.int64)
        rows = np.ceil(np.maximum(y, y_end)).clip(0, height).astype(np.int64) - first
        edge = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - first, rows)
        slope = np.divide(x_end - x, y_end - y, out=np.zeros(len(x)), where=y_end != y)
        column = np.ceil(x[edge] + (row - y[edge]) * slope[edge]).clip(0, width).astype(np.int64)
        cells = height * (width + 1)
        change = np.bincount(row * (width + 1) + column, weight[edge], minlength=cells)
        if weights is None:
            change = change.astype(np.int16)  # half the time
        total = np.cumsum(change, dtype=change.dtype).reshape(height, width + 1)
        return np.ascontiguousarray(total[:, :width])


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
