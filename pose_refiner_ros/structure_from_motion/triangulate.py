# SPDX-License-Identifier: Apache-2.0
"""Points from their pixels in several photos with known poses."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel
from pose_refiner_ros.datasets.posed_images.hull import nearest_point
from pose_refiner_ros.datasets.posed_images.transforms import camera_of

_OFF = 3.0  # pixels, beyond which a photo is not believed
_SPREAD = np.radians(1.0)  # between some two rays, or depth is not told


def rays_of(model: SparseModel, row: int, pixels: np.ndarray) -> np.ndarray:
    """(M, 3) unit directions in the model's axes of pixels (M, 2), the lens undone; the centre of
    the top-left pixel is (0, 0)."""
    values = model.values[row]
    camera = camera_of(values, (values["h"], values["w"]), model.names[row])
    rays = camera.rays(np.asarray(pixels, np.float64)) @ model.camera_from_world[row, :3, :3]
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def centre_of(model: SparseModel, row: int) -> np.ndarray:
    """(3,) where the camera was."""
    T = model.camera_from_world[row]
    return -T[:3, :3].T @ T[:3, 3]


def triangulate(
    model: SparseModel, seen: Mapping[int, np.ndarray]
) -> tuple[np.ndarray, float, int] | None:
    """The point nearest to the rays through pixels (2,), by the photo's row.

    Returns:
        The point (3,), how far in pixels (RMS) it is from what the photos show, and how many of
        them it was made of: those that it is off by more than a few pixels are left out. None
        where fewer than two are left, or all look from one side.
    """
    rows = np.array(list(seen))
    origins = np.stack([centre_of(model, row) for row in rows])
    rays = np.stack([rays_of(model, row, seen[row][None])[0] for row in rows])
    focal = np.array([model.values[row]["fl_x"] for row in rows])
    while len(rows) >= 2 and (rays @ rays.T).min() < np.cos(_SPREAD):
        point = nearest_point(origins, rays)
        if point is None:
            return None
        away = point - origins
        along = np.einsum("ni,ni->n", away, rays)
        across = np.linalg.norm(away - along[:, None] * rays, axis=1)
        off = np.where(along > 0, focal * across / np.maximum(along, 1e-12), np.inf)
        if off.max() <= _OFF:
            return point, float(np.sqrt(np.mean(off**2))), len(rows)
        keep = np.arange(len(rows)) != off.argmax()
        rows, origins, rays, focal = rows[keep], origins[keep], rays[keep], focal[keep]
    return None
