# SPDX-License-Identifier: Apache-2.0
"""Where an object can lie that is seen inside given masks, and where to look for it.

The visual hull (Laurentini, "The Visual Hull Concept for Silhouette-Based Image Understanding",
1994) is what no mask rules out. Here: the cells of a coarse grid that lie, with some slack, inside
nearly all masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.views import OPAQUE, PosedImages

VIEWS = 40  # more views than this change the hull little; they are spread over the source
CELLS = 40  # per axis of the box
INSIDE = 0.95  # share of the views in sight that must agree: a few masks may be bad
_GAP = 2  # pixels between masks that touch


@dataclass(frozen=True, eq=False)
class VisualHull:
    """Cells of a box that the masks allow.

    Attributes:
        centres: (M, 3) metres, object frame; empty if masks and poses contradict each other.
        cell: (3,) metres, size of a cell.
        views: (K,) the pictures that were looked at.
        coverage: (K,) share of each one's mask that the hull explains: where poses are right all
            of it, as the object is part of the hull. NaN where the mask is empty.
    """

    centres: np.ndarray
    cell: np.ndarray
    views: np.ndarray
    coverage: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """(2, 3) metres: the box around it."""
        half = self.cell / 2
        return np.stack((self.centres.min(0) - half, self.centres.max(0) + half))


def visual_hull(posed: PosedImages, bounds: np.ndarray) -> VisualHull:
    """Of what alpha shows, inside bounds (2, 3). Pixels without weight rule nothing out."""
    views = spread_views(posed, VIEWS)
    cell, points = cells_of(bounds)
    grown = [_grown_mask(posed, i, bounds.mean(0), np.linalg.norm(cell) / 2) for i in views]

    seen, inside = np.zeros(len(points), np.int32), np.zeros(len(points), np.int32)
    for i, (possible, _) in zip(views, grown, strict=True):
        pixels, valid = project(posed, i, points)
        seen += valid | _is_whole(posed, i)
        inside[valid] += possible[pixels[valid, 1], pixels[valid, 0]]
    # A point that few pictures tell of would be kept for want of evidence.
    left = points[(inside >= INSIDE * seen) & (seen >= max(1, len(views) // 4))]

    coverage = np.full(len(views), np.nan)
    for n, (i, (_, radius)) in enumerate(zip(views, grown, strict=True)):
        mask = posed.alpha[i] >= OPAQUE
        if mask.any():
            drawn = np.zeros(posed.size, np.uint8)
            pixels, valid = project(posed, i, left)
            drawn[pixels[valid, 1], pixels[valid, 0]] = 1
            coverage[n] = _dilated(drawn, radius)[mask].mean()
    return VisualHull(left, cell, views, coverage)


def spread_views(posed: PosedImages, count: int) -> np.ndarray:
    """(K,) numbers of at most so many pictures, from the first to the last."""
    count = min(count, len(posed))
    return np.unique(np.linspace(0, len(posed) - 1, count).round().astype(int))


def cells_of(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3,) metres, the size of the CELLS ** 3 cells of a box (2, 3), and their centres (M, 3) in
    C order."""
    cell = (bounds[1] - bounds[0]) / CELLS
    axes = [bounds[0, i] + (np.arange(CELLS) + 0.5) * cell[i] for i in range(3)]
    return cell, np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def times_seen(posed: PosedImages, views: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(M,) int: in how many of those pictures points (M, 3) lie."""
    return sum(project(posed, i, points)[1].astype(int) for i in views)


def project(posed: PosedImages, i: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest pixels (M, 2) int (x, y) of points (M, 3) in picture i, and which lie in it (M,)."""
    T, (height, width) = posed.camera_from_object[i], posed.size
    p = (points @ T[:3, :3].T + T[:3, 3]) @ posed.intrinsics[i].T
    in_front = p[:, 2] > 0
    uv = p[:, :2] / np.where(in_front, p[:, 2], 1.0)[:, None]
    valid = in_front & (uv > -0.5).all(-1) & (uv < (width - 0.5, height - 0.5)).all(-1)
    return np.where(valid[:, None], np.rint(uv), 0).astype(np.intp), valid


def nearest_point(origins: np.ndarray, directions: np.ndarray) -> np.ndarray | None:
    """(3,) nearest to all lines (N, 3), (N, 3) unit, in least squares; None if parallel."""
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    A = across.mean(0)
    # The smallest eigenvalue is the mean squared sine of the angle to the common direction.
    if np.linalg.eigvalsh(A)[0] < np.sin(np.radians(0.5)) ** 2:
        return None
    return np.linalg.solve(A, np.einsum("nij,nj->i", across, origins) / len(origins))


def box_around_masks(posed: PosedImages) -> np.ndarray | None:
    """(2, 3) cube in which the object of the masks lies, roughly; None if views are parallel.

    About the point nearest to the rays through the masks' centres, wide enough for the mask that
    reaches farthest from it.
    """
    origins, rays, reach = posed.camera_positions, [], []
    for i in range(len(posed)):
        v, u = np.nonzero(posed.alpha[i] >= OPAQUE)
        if len(u):
            corners = np.array([(u.mean(), v.mean()), (u.min(), v.min()), (u.max(), v.max())])
            rays.append((i, _rays(posed, i, corners)))
    if not rays:
        return None
    chosen = [i for i, _ in rays]
    centre = nearest_point(origins[chosen], np.stack([r[0] for _, r in rays]))
    if centre is None:
        return None
    for i, (_, *corners) in rays:
        to_centre = centre - origins[i]
        reach += [np.linalg.norm(to_centre - c * (c @ to_centre)) for c in corners]
    return np.stack((centre - 1.5 * max(reach), centre + 1.5 * max(reach)))


def box_before_cameras(posed: PosedImages) -> np.ndarray | None:
    """(2, 3) cube about what the cameras look at that reaches to them; None if they are parallel.

    Its centre is the point nearest to all viewing axes.
    """
    origins, axes = posed.camera_positions, posed.camera_from_object[:, 2, :3]
    centre = nearest_point(origins, axes)
    if centre is None:
        return None
    half = np.median(np.linalg.norm(origins - centre, axis=-1))
    return np.stack((centre - half, centre + half))


def _rays(posed: PosedImages, i: int, pixels: np.ndarray) -> np.ndarray:
    """(M, 3) unit directions in the object's frame of pixels (M, 2)."""
    rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(posed.intrinsics[i]).T
    rays = rays @ posed.camera_from_object[i, :3, :3]
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def _is_whole(posed: PosedImages, i: int) -> bool:
    """Whether picture i shows the object whole: its mask stays clear of the edge and of pixels
    that say nothing. Then the object is not where this picture does not look."""
    unknown = np.ones((posed.size[0] + 2, posed.size[1] + 2), np.uint8)
    unknown[1:-1, 1:-1] = 0 if posed.weight is None else ~posed.weight[i]
    near = _dilated(unknown, _GAP)[1:-1, 1:-1] > 0
    return not (near & (posed.alpha[i] >= OPAQUE)).any()


def _grown_mask(
    posed: PosedImages, i: int, centre: np.ndarray, radius: float
) -> tuple[np.ndarray, int]:
    """(H, W) uint8, 1 where a cell of that radius can touch the object; the radius in pixels."""
    T = posed.camera_from_object[i]
    depth = max(T[2, :3] @ centre + T[2, 3], 10.0 * radius)
    pixels = int(np.ceil(1.2 * posed.intrinsics[i, 0, 0] * radius / depth))
    grown = _dilated((posed.alpha[i] >= OPAQUE).astype(np.uint8), pixels)
    if posed.weight is not None and not _is_whole(posed, i):
        grown |= ~posed.weight[i]
    return grown, pixels


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    return cv2.dilate(mask, np.ones((2 * radius + 1, 2 * radius + 1), np.uint8))
