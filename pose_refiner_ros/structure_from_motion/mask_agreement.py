# SPDX-License-Identifier: Apache-2.0
"""Which pairs of photos cannot be of one object in the poses that were found, by their masks.

Prints that are on an object twice are matched from one side to the other, and structure from motion
then turns half of the photos around. Masks know better: planes through both cameras that touch the
object touch both masks. So, seen along the line from camera to camera, both masks fill one angle.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel
from pose_refiner_ros.datasets.posed_images.views import OPAQUE

AGREE = 0.93  # overlap of the two angles over their union; 0.97 and more where poses are right
_WIDE = np.radians(160.0)  # of an angle that is too wide to say something
_EDGE = 2  # pixels


def outline(mask: np.ndarray) -> np.ndarray | None:
    """(K, 2) float64 pixels, corner of the picture at (0, 0): the convex hull of a mask (H, W)
    uint8. None where it is empty or reaches the edge, beyond which there may be more."""
    opaque = (mask >= OPAQUE).astype(np.uint8)
    edges = (opaque[:_EDGE], opaque[-_EDGE:], opaque[:, :_EDGE], opaque[:, -_EDGE:])
    if not opaque.any() or any(edge.any() for edge in edges):
        return None
    contours, _ = cv2.findContours(opaque, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return cv2.convexHull(np.concatenate(contours))[:, 0] + 0.5


def masks_agree(model: SparseModel, outlines: Sequence[np.ndarray | None]) -> np.ndarray:
    """(N, N): overlap of the angles that two masks fill, 1 = the same; 1 where that cannot be told.

    outlines: those of the model's photos. Distortion by the lens is left out.
    """
    count = len(outlines)
    rays = [
        None if corners is None else _rays(model, i, corners) for i, corners in enumerate(outlines)
    ]
    T = model.camera_from_world
    centres = -np.einsum("nji,nj->ni", T[:, :3, :3], T[:, :3, 3])
    result = np.ones((count, count))
    for i in range(count):
        for j in range(i):
            if rays[i] is not None and rays[j] is not None:
                overlap = _overlap(rays[i], rays[j], centres[j] - centres[i])
                result[i, j] = result[j, i] = overlap
    return result


def _rays(model: SparseModel, i: int, corners: np.ndarray) -> np.ndarray:
    """(K, 3) in the world's axes."""
    values = model.values[i]
    x = (corners - (values["cx"], values["cy"])) / (values["fl_x"], values["fl_y"])
    return np.c_[x, np.ones(len(x))] @ model.camera_from_world[i, :3, :3]


def _overlap(first: np.ndarray, second: np.ndarray, baseline: np.ndarray) -> float:
    length = np.linalg.norm(baseline)
    if length == 0.0:
        return 1.0
    baseline = baseline / length
    middle = first.mean(axis=0)
    middle -= baseline * (baseline @ middle)
    middle /= max(np.linalg.norm(middle), 1e-12)
    across = np.cross(baseline, middle)
    low, high = [], []
    for rays in (first, second):
        angles = np.arctan2(rays @ across, rays @ middle)
        low.append(angles.min())
        high.append(angles.max())
    if max(h - a for a, h in zip(low, high, strict=True)) > _WIDE:
        return 1.0  # one camera sees the other before the object, or nearly so
    return max(min(high) - max(low), 0.0) / max(max(high) - min(low), 1e-12)
