# SPDX-License-Identifier: Apache-2.0
"""Where up and the origin are: by a marker, by the ground, or by how cameras were held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel
from pose_refiner_ros.geometry.pose import inverse, rigid

# Up in the axes of a camera (x right, y down) by how its photo is shown (EXIF's orientation).
_UP = {
    1: (0, -1, 0), 2: (0, -1, 0), 3: (0, 1, 0), 4: (0, 1, 0),
    5: (-1, 0, 0), 6: (-1, 0, 0), 7: (1, 0, 0), 8: (1, 0, 0),
}  # fmt: skip
_TRIALS = 1000
_THICK = 0.01  # of the points' spread, half the thickness of a plane
_LEAST = 0.2  # share of the points that make a ground
_TILT = 40.0  # degrees between a ground's normal and up as cameras were held
_ROUND = 0.05  # least mean square of the sines between the cameras' horizontals


def up_of_cameras(model: SparseModel, turns: Sequence[int]) -> np.ndarray:
    """(3,) unit: what is perpendicular to the horizontal of all photos, as people hold cameras;
    where all look the same way, the mean of what is up in them.

    turns: EXIF's orientation of each photo of the model.
    """
    R = model.camera_from_world[:, :3, :3]
    ups = np.array([_UP.get(turn, _UP[1]) for turn in turns], np.float64)
    level = np.cross((0.0, 0.0, 1.0), ups)
    ups, level = (np.einsum("nji,nj->ni", R, axes) for axes in (ups, level))
    mean = ups.mean(axis=0)
    values, vectors = np.linalg.eigh(level.T @ level / len(level))
    up = vectors[:, 0] * np.sign(vectors[:, 0] @ mean) if values[1] > _ROUND else mean
    return up / max(np.linalg.norm(up), 1e-12)


def ground_plane(
    points: np.ndarray, up: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """The plane on which most points (M, 3) lie of those that are level within some 40 degrees.

    Returns:
        Its normal (3,), on the side of up, and which points lie on it (M,) bool. None where a
        fifth of the points do not lie on one.
    """
    if len(points) < 10:
        return None
    generator = np.random.default_rng(seed)
    spread = np.median(np.linalg.norm(points - np.median(points, axis=0), axis=1))
    best, on = None, np.zeros(len(points), bool)
    for _ in range(_TRIALS):
        a, b, c = points[generator.choice(len(points), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        length = np.linalg.norm(normal)
        if length == 0.0 or abs(normal @ up) < np.cos(np.radians(_TILT)) * length:
            continue
        near = abs((points - a) @ (normal / length)) < _THICK * spread
        if near.sum() > on.sum():
            best, on = normal / length, near
    if best is None or on.mean() < _LEAST:
        return None
    middle = points[on].mean(axis=0)
    normal = np.linalg.svd(points[on] - middle, full_matrices=False)[2][2]
    normal *= np.sign(normal @ up)
    return normal, abs((points - middle) @ normal) < _THICK * spread


def upright_from_model(
    model: SparseModel, turns: Sequence[int], marker: np.ndarray | None, scene: bool
) -> tuple[np.ndarray, str]:
    """(4, 4) from the model's frame to one whose z axis is up, and by what, for people.

    Args:
        marker: (4, 3) corners, clockwise seen from before: z points out of it, the origin is its
            centre.
        scene: the ground is the plane on which most points lie. Else, for an object, up is as
            cameras were held, and the origin the middle of its points.
    """
    if marker is not None:
        x, y = marker[1] - marker[0], marker[0] - marker[3]
        return _frame(np.cross(x, y), x, marker.mean(axis=0)), "the marker"
    up, how, points = up_of_cameras(model, turns), "how the camera was held", model.points
    ground = ground_plane(points, up) if scene else None
    if ground is not None:
        up, on = ground
        points, how = points[on], "the plane on which most points lie"
    right = model.camera_from_world[0, 0, :3]
    if abs(right @ up) > 0.7:
        right = model.camera_from_world[0, 1, :3]
    origin = np.median(points, axis=0)
    if ground is not None:
        origin += up * (up @ (points.mean(axis=0) - origin))
    return _frame(up, right, origin), how


def moved(model: SparseModel, new_from_old: np.ndarray, scale: float = 1.0) -> SparseModel:
    """The model in another frame, and then in a unit of which the old one is `scale`."""
    camera_from_new = model.camera_from_world @ inverse(new_from_old)
    camera_from_new[:, :3, 3] *= scale
    R, t = new_from_old[:3, :3], new_from_old[:3, 3]
    points = scale * (model.points @ R.T + t)
    return replace(model, camera_from_world=camera_from_new, points=points)


def _frame(z: np.ndarray, x: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(4, 4) to the frame with that z axis and origin, and x as near as may be."""
    z = z / np.linalg.norm(z)
    x = x - z * (z @ x)
    x = x / np.linalg.norm(x)
    R = np.stack((x, np.cross(z, x), z))
    return rigid(R, -R @ origin)
