# SPDX-License-Identifier: Apache-2.0
"""How well a pose is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pose_refiner_ros.objects.symmetry import Symmetries

# Where the outline says nothing about a direction, the pose is as uncertain as if it were drawn at
# random: the standard deviation of an angle uniform on the circle, and for translations as many
# diameters of the object.
PRIOR_SIGMA = np.pi / np.sqrt(3.0)
# A mask of whole pixels is never better known than this: variance of its border (pixels squared)
# times the length over which errors are alike (pixels), as measured on masks without errors.
MIN_NOISE = 0.05
# The errors of a mask are alike over a stretch of its border that nobody states, those of a field
# over a part of the image: directions, or tiles, are grouped by each of these, as far as enough
# groups are left, and the largest estimate counts.
GROUPS = (1, 2, 3, 4, 16)
FEWEST_GROUPS = 9


def pose_covariance(evidence: Sequence[Sequence[np.ndarray]], diameter: np.ndarray) -> np.ndarray:
    """Covariances (B, 6, 6), twist order (v, w), of poses at the minimum of a cost: of outlines, of
    colours, of several kinds of evidence.

    evidence: of each kind (hessian, slope, sectors) or with least_noise as well. hessian: (B, 6, 6)
    Gauss-Newton matrices, which take the distance to the mask to grow by 1 per pixel; slope: (B,)
    how fast it really grows across the outline (a rough border is near on both sides); sectors:
    (B, S, 6) the gradient's parts by direction as seen from the object; least_noise: (B,) that the
    noise level is not below. diameter: (B,) metres.

    The sandwich H^-1 (sum G G^T) H^-1 with residuals alike within a group of directions (the
    clustered form of White 1980) is reduced to one noise level per pose and kind, which is far
    steadier: s^2 = tr(H^-1 sum G G^T) / 6, corrected for the fitted parameters. Then
    cov = (sum over kinds of slope^2 H / s^2 + prior)^-1, so a direction that nothing fixes (the
    axis of a bottle) gets the prior's variance and not an absurd one.
    """
    scale = np.ones((len(diameter), 6))
    scale[:, :3] = np.asarray(diameter, np.float64)[:, None]
    both = scale[:, :, None] * scale[:, None, :]
    parts = [_information(scale, both, *one) for one in evidence]
    values, vectors = parts[0]
    if len(parts) > 1:
        total = sum((v * d[:, None, :]) @ np.swapaxes(v, 1, 2) for d, v in parts)
        values, vectors = np.linalg.eigh(total)
    variance = 1.0 / (np.maximum(values, 0.0) + PRIOR_SIGMA**-2)
    return (vectors * variance[:, None, :]) @ np.swapaxes(vectors, 1, 2) * both


def _information(
    scale: np.ndarray,
    both: np.ndarray,
    hessian: np.ndarray,
    slope: np.ndarray,
    sectors: np.ndarray,
    least_noise: np.ndarray | float = MIN_NOISE,
) -> tuple[np.ndarray, np.ndarray]:
    """slope^2 H / s^2 of one kind of evidence, in units of the object's size: eigenvalues (B, 6)
    and eigenvectors (B, 6, 6)."""
    values, vectors = np.linalg.eigh(hessian * both)
    # directions that the evidence fixes; rounding leaves a little in those that it does not
    seen = values > np.maximum(1e-4 * values[:, -1:], 1e-9)
    parameters = seen.sum(axis=1)[:, None]
    whitened = np.where(seen, np.maximum(values, 1e-12) ** -0.5, 0.0)
    grouping, first = _grouping(sectors.shape[1])
    grouped = grouping @ sectors
    used = np.add.reduceat((grouped != 0.0).any(axis=2), first, axis=1, dtype=np.float64)
    grouped = grouped @ (scale[:, :, None] * vectors * whitened[:, None, :])
    square = np.add.reduceat((grouped * grouped).sum(axis=2), first, axis=1)
    level = square * used / (np.maximum(parameters, 1) * np.maximum(used - parameters, 1))
    noise = np.maximum(level.max(axis=1), least_noise)
    return values * (np.clip(slope, 0.3, 1.2) ** 2 / noise)[:, None], vectors


@lru_cache
def _grouping(sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, sectors) matrix whose rows add up the directions of a group, for all of GROUPS, and where
    the rows of each begin."""
    widths = [width for width in GROUPS if sectors // width >= FEWEST_GROUPS]
    rows = [np.kron(np.eye(sectors // width), np.ones(width)) for width in widths]
    return np.concatenate(rows), np.cumsum([0, *(len(part) for part in rows[:-1])])


def symmetry_covariance(symmetries: Symmetries, camera_from_object: np.ndarray) -> np.ndarray:
    """(6, 6) of a pose (4, 4), twist order: what turns about symmetry axes leave open.

    A mesh is not quite a body of revolution, so that its outline seems to tell how it is turned.
    """
    rotation = camera_from_object[:3, :3]
    axes = symmetries.axes
    directions = np.eye(3) if len(axes) == 2 else [rotation @ axis.direction for axis in axes]
    twists = np.zeros((len(directions), 6))
    for twist, direction in zip(twists, directions, strict=True):
        twist[:3] = np.cross(rotation @ axes[0].offset, direction)
        twist[3:] = direction
    return PRIOR_SIGMA**2 * twists.T @ twists
