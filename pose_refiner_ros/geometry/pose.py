# SPDX-License-Identifier: Apache-2.0
"""Algebra of rigid transforms in numpy float64; `pose_kernels.py` is its twin for Warp kernels.

Transforms are (4, 4) `target_from_source`, metres. A twist is (v, w), translation first; applied
on the left about the origin of the moved frame: R' = exp(w) R, t' = t + v. Covariances (6, 6) are
of such twists.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation


def rigid(rotation: np.ndarray, translation=(0.0, 0.0, 0.0)) -> np.ndarray:
    """(4, 4) of a rotation (3, 3) and a translation (3,)."""
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = translation
    return transform


def inverse(transform: np.ndarray) -> np.ndarray:
    """Of a rigid transform (4, 4), without a general inverse."""
    return rigid(transform[:3, :3].T, -(transform[:3, :3].T @ transform[:3, 3]))


def about_point(pose: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Poses (..., 4, 4) of an object told of another point (..., 3) of it instead of its origin, in
    float64: where an origin lies far from its object, single precision keeps neither."""
    pose = np.array(pose, np.float64)
    pose[..., :3, 3] += (pose[..., :3, :3] @ np.asarray(point)[..., None])[..., 0]
    return pose


def skew(v: np.ndarray) -> np.ndarray:
    """(..., 3, 3) with skew(v) @ u = v x u."""
    matrix = np.zeros((*np.shape(v)[:-1], 3, 3))
    for row, column, axis in ((2, 1, 0), (0, 2, 1), (1, 0, 2)):
        matrix[..., row, column] = v[..., axis]
        matrix[..., column, row] = -v[..., axis]
    return matrix


def rotation_angle(rotation: np.ndarray) -> np.ndarray:
    """Radians in [0, pi] of rotations (..., 3, 3); exact near both ends, where the arc cosine of
    the trace has no digits."""
    antisymmetric = rotation - np.swapaxes(rotation, -1, -2)
    twice_sine = np.linalg.norm(antisymmetric, axis=(-2, -1)) / np.sqrt(2.0)
    twice_cosine = np.trace(rotation, axis1=-2, axis2=-1) - 1.0
    return np.arctan2(twice_sine, twice_cosine)


def rotated(pose: np.ndarray, rotation_vector: np.ndarray) -> np.ndarray:
    """A pose (4, 4) turned by a rotation vector (3,) about its object's origin: R' = exp(w) R."""
    other = np.array(pose, np.float64)
    other[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix() @ pose[:3, :3]
    return other


def twist_between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(6,) the twist that takes one pose (4, 4) to another."""
    w = Rotation.from_matrix(end[:3, :3] @ start[:3, :3].T).as_rotvec()
    return np.concatenate([end[:3, 3] - start[:3, 3], w])


def in_axes(rotation: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A covariance or information matrix (..., 6, 6) along axes turned by a rotation (3, 3)."""
    both = np.zeros((6, 6))
    both[:3, :3] = both[3:, 3:] = rotation
    return both @ matrix @ both.T


def about(offset: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariances (..., 6, 6) about points that lie (..., 3) away from the old ones, same axes: a
    small turn w about the old point moves the new one by w x offset."""
    move = np.eye(6) + np.zeros(np.shape(covariance))
    move[..., :3, 3:] = -skew(offset)
    return move @ covariance @ np.swapaxes(move, -1, -2)


def information_about(offset: np.ndarray, information: np.ndarray) -> np.ndarray:
    """An information matrix (6, 6), the inverse of a covariance, about a point that lies (3,) away
    from the old one, same axes."""
    move = np.eye(6)
    move[:3, 3:] = skew(offset)
    return move.T @ information @ move


def transform_problem(pose: np.ndarray) -> str | None:
    """Why an array is no rigid transform (4, 4), or None."""
    if pose.shape != (4, 4):
        return f"it has shape {pose.shape} instead of (4, 4)"
    if not np.isfinite(pose).all():
        return "it holds NaN or infinity"
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        return "its upper left 3x3 is not a rotation"
    return None
