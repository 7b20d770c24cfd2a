# SPDX-License-Identifier: Apache-2.0
"""Errors of estimated poses against true ones, as the literature and the BOP benchmark define them.

Poses are camera_from_object, (4, 4) or (N, 4, 4), metres. Points are an object's vertices, (V, 3),
metres, object frame. Every function takes one pair of poses or N pairs (the truth may be one for
all) and returns a number or (N,).

MSSD and MSPD: Hodan et al., BOP Challenge 2020 (ECCV Workshops 2020), section 2.2. ADD and ADD-S:
Hinterstoisser et al., ACCV 2012.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import ConvexHull, KDTree, QhullError

from pose_refiner_ros.geometry.pose import inverse, rotation_angle
from pose_refiner_ros.objects.symmetry import Symmetries

if TYPE_CHECKING:
    from pose_refiner_ros.geometry.camera import Camera

# BOP turns about a continuous axis so finely that no vertex moves by more than 1 % of the diameter.
BOP_STEPS = int(np.ceil(np.pi / 0.01))


def pose_errors(
    estimate: np.ndarray, truth: np.ndarray, symmetries: Symmetries | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation error in radians and translation error in metres, least over the symmetries.

    Both belong to the one equivalent of the estimate that is turned least from the truth, found
    in closed form for continuous axes.
    """
    estimate, truth = _pairs(estimate, truth)
    nearest = (symmetries or Symmetries()).closest_equivalent(estimate, truth)
    relative = np.swapaxes(truth[..., :3, :3], -1, -2) @ nearest[..., :3, :3]
    shift = np.linalg.norm(nearest[..., :3, 3] - truth[..., :3, 3], axis=-1)
    return rotation_angle(relative), shift


def add(estimate: np.ndarray, truth: np.ndarray, points: np.ndarray) -> np.ndarray:
    """ADD: mean distance of a point in one pose to the same point in the other, metres."""
    return _each(
        lambda a, b: np.linalg.norm(_move(a, points) - _move(b, points), axis=1).mean(),
        estimate, truth,
    )  # fmt: skip


def add_s(estimate: np.ndarray, truth: np.ndarray, points: np.ndarray | KDTree) -> np.ndarray:
    """ADD-S (ADI): mean distance of a true point to the nearest estimated one, metres.

    Give a KDTree of the points to build it only once.
    """
    tree = points if isinstance(points, KDTree) else KDTree(points)
    # Distances are the same in the estimated object's frame, where the tree is.
    return _each(
        lambda a, b: tree.query(_move(inverse(a) @ b, tree.data))[0].mean(), estimate, truth
    )


def mssd(
    estimate: np.ndarray,
    truth: np.ndarray,
    points: np.ndarray,
    symmetries: Symmetries | None = None,
) -> np.ndarray:
    """Maximum symmetry-aware surface distance, metres: min over symmetries of max over points."""
    # The distance is a convex function of the point, so its maximum lies on the convex hull.
    points = _hull(np.asarray(points, np.float64))
    transforms = (symmetries or Symmetries()).transforms(BOP_STEPS)

    def one(a: np.ndarray, b: np.ndarray) -> float:
        def largest(transform: np.ndarray, some: np.ndarray) -> float:
            difference = _move(a, some) - _move(b @ transform, some)
            return np.sqrt((difference**2).sum(1).max())

        return _min_max(largest, transforms, points)

    return _each(one, estimate, truth)


def mspd(
    estimate: np.ndarray,
    truth: np.ndarray,
    points: np.ndarray,
    camera: Camera,
    symmetries: Symmetries | None = None,
) -> np.ndarray:
    """Maximum symmetry-aware projection distance, pixels of the camera's image.

    Infinite where a point of either pose has no image (it lies behind the camera). BOP's recall
    then scales pixels by image width / 640, which is left to the caller.
    """
    points = np.asarray(points, np.float64)
    transforms = (symmetries or Symmetries()).transforms(BOP_STEPS)

    def one(a: np.ndarray, b: np.ndarray) -> float:
        def largest(transform: np.ndarray, some: np.ndarray) -> float:
            difference = camera.project(_move(a, some)) - camera.project(_move(b @ transform, some))
            longest = np.sqrt((difference**2).sum(1).max())
            return longest if np.isfinite(longest) else np.inf

        return _min_max(largest, transforms, points)

    return _each(one, estimate, truth)


def iou(a: np.ndarray, b: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of masks (..., H, W), in [0, 1]; 0 where both are empty.

    known: (..., H, W) bool, pixels that count; None for all.
    """
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if known is not None:
        a, b = a & known, b & known
    union = (a | b).sum((-2, -1))
    return (a & b).sum((-2, -1)) / np.maximum(union, 1)


def _min_max(
    largest: Callable[[np.ndarray, np.ndarray], float], transforms: np.ndarray, points: np.ndarray
) -> float:
    """Min over transforms of largest(transform, points), exact without trying all of them.

    The maximum over a few points bounds that over all from below, so most transforms need no
    more.
    """
    few = points[:: max(1, len(points) // 64)]
    bounds = np.array([largest(transform, few) for transform in transforms])
    best = np.inf
    for i in bounds.argsort():
        if bounds[i] >= best:
            break
        best = min(best, largest(transforms[i], points))
    return best


def _hull(points: np.ndarray) -> np.ndarray:
    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError):  # flat or few points
        return points


def _move(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ transform[:3, :3].T + transform[:3, 3]


def _pairs(estimate: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimate, truth = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    for name, pose in (("estimate", estimate), ("truth", truth)):
        if pose.ndim not in (2, 3) or pose.shape[-2:] != (4, 4):
            raise ValueError(f"{name} must be poses (4, 4) or (N, 4, 4), got {pose.shape}")
    return tuple(np.broadcast_arrays(estimate, truth))


def _each(function: Callable, estimate: np.ndarray, truth: np.ndarray) -> np.ndarray:
    estimate, truth = _pairs(estimate, truth)
    if estimate.ndim == 2:
        return function(estimate, truth)
    return np.array([function(a, b) for a, b in zip(estimate, truth, strict=True)], np.float64)
