# SPDX-License-Identifier: Apache-2.0
"""How well a pose is known."""

from __future__ import annotations

import numpy as np

# Where the outline says nothing about a direction, the pose is as uncertain as if it were drawn at
# random: the standard deviation of an angle uniform on the circle, and for translations as many
# diameters of the object.
PRIOR_SIGMA = np.pi / np.sqrt(3.0)
# A mask of whole pixels is never better known than this: variance of its border (pixels squared)
# times the length over which errors are alike (pixels).
MIN_NOISE = 0.1


def pose_covariance(
    hessian: np.ndarray, sectors: np.ndarray, diameter: np.ndarray
) -> np.ndarray:
    """Covariances (B, 6, 6), twist order (v, w), of poses at the minimum of the outline cost.

    hessian: (B, 6, 6) Gauss-Newton matrices; sectors: (B, S, 6) the gradient's parts by direction
    as seen from the object; diameter: (B,) metres.

    The sandwich H^-1 (sum G G^T) H^-1 with residuals alike within a sector (a clustered estimate
    of the gradient's variance, as in White 1980) is reduced to one noise level per pose, which is
    far steadier: s^2 = tr(H^-1 sum G G^T) / 6, corrected for the six fitted parameters. Then
    cov = (H / s^2 + prior)^-1, so a direction that no outline fixes (the axis of a bottle) gets the
    prior's variance and not an absurd one.
    """
    count = len(hessian)
    scale = np.ones((count, 6))
    scale[:, :3] = np.asarray(diameter, np.float64)[:, None]
    H = np.asarray(hessian, np.float64) * scale[:, :, None] * scale[:, None, :]
    G = np.asarray(sectors, np.float64) * scale[:, None, :]
    H = 0.5 * (H + np.swapaxes(H, 1, 2))
    values, vectors = np.linalg.eigh(H)
    top = np.maximum(values[:, -1:], 1e-12)
    seen = values > 1e-4 * top  # directions that the outline fixes
    projected = np.einsum("bsi,bij->bsj", G, vectors)
    energy = (projected**2).sum(axis=1)  # (B, 6)
    used = (np.abs(G).sum(axis=2) > 0).sum(axis=1)
    parameters = np.maximum(seen.sum(axis=1), 1)
    noise = np.where(seen, energy / np.maximum(values, 1e-12), 0.0).sum(axis=1) / parameters
    noise *= used / np.maximum(used - parameters, 1)
    noise = np.maximum(noise, MIN_NOISE)
    variance = 1.0 / (np.maximum(values, 0.0) / noise[:, None] + PRIOR_SIGMA**-2)
    covariance = np.einsum("bij,bj,bkj->bik", vectors, variance, vectors)
    return covariance * scale[:, :, None] * scale[:, None, :]
