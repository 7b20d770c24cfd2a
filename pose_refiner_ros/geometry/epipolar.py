# SPDX-License-Identifier: Apache-2.0
"""What two photos with known cameras say of a point that is seen in both."""

from __future__ import annotations

import numpy as np

from .pose import skew

_ANGLE = np.radians(1.0)  # between rays, from which they tell a depth


def rays_through(pixels: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(N, 3) along z = 1, camera axes, of pixels (N, 2)."""
    return np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(intrinsics).T


def epipolar_distance(
    rays: np.ndarray, other_rays: np.ndarray, other_from_one: np.ndarray, other_intrinsics
) -> np.ndarray:
    """(N,) pixels of the other photo, between its points and the lines on which the first photo's
    put them. rays, other_rays: (N, 3), of `rays_through`; other_from_one: (4, 4)."""
    R, t = other_from_one[:3, :3], other_from_one[:3, 3]
    lines = rays @ (np.linalg.inv(other_intrinsics).T @ skew(t) @ R).T
    pixels = other_rays @ np.asarray(other_intrinsics).T
    across = np.linalg.norm(lines[:, :2], axis=1)
    return abs(np.einsum("ni,ni->n", lines, pixels)) / np.maximum(across, 1e-12)


def depths_of_both(
    rays: np.ndarray, other_rays: np.ndarray, other_from_one: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) along both cameras' z of where two rays pass each other; NaN where they are parallel."""
    a = rays @ other_from_one[:3, :3].T
    b, t = other_rays, other_from_one[:3, 3]
    aa, bb, ab = (np.einsum("ni,ni->n", *two) for two in ((a, a), (b, b), (a, b)))
    sine = 1.0 - ab**2 / (aa * bb)
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = ab**2 - aa * bb
        z = (bb * (a @ t) - ab * (b @ t)) / determinant
        other_z = (ab * (a @ t) - aa * (b @ t)) / determinant
    known = sine > np.sin(_ANGLE) ** 2
    return np.where(known, z, np.nan), np.where(known, other_z, np.nan)
