# SPDX-License-Identifier: Apache-2.0
"""The layout of LLFF: poses_bounds.npy beside images/, images_4/, images_8/.

Each of its N rows has 17 numbers: a 3x5 matrix, row by row, and the nearest and farthest depth.
The matrix is world-from-camera with the axes down, right, backwards, then the position, then
height, width and focal length in pixels of the full-size picture. The principal point is the
picture's middle. Pictures are taken in the order of their names; every 8th is for testing. A folder
masks/ beside images/ shows the object in white.
Nothing is centred, scaled or turned.

Bounds: the box around the cameras' frusta between near and far.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images.reading import (
    PICTURE_SUFFIXES,
    mask_beside,
    picture_scale,
    read_mask,
    read_picture,
    rigid,
    split_indices,
)
from pose_refiner_ros.datasets.posed_images.views import (
    PosedImages,
    PosedImagesError,
    View,
    stack,
)
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import inverse


def load(path: Path, split: str, factor: int) -> PosedImages:
    """The pictures of a split, in the file's unit.

    Args:
        path: poses_bounds.npy.
        factor: images_FACTOR/ is read if there is one, else images/ is made smaller.

    Raises:
        PosedImagesError: a file is missing or unusable.
    """
    rows = _rows(path)
    folder = path.parent / f"images_{factor}"
    if folder.is_dir():
        factor = 1
    else:
        folder = path.parent / "images"
    pictures = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if len(pictures) != len(rows):
        raise PosedImagesError(
            f"{path} has {len(rows)} poses, but {folder} {len(pictures)} pictures"
        )
    chosen = split_indices(len(rows), split, path)

    def views() -> Iterator[View]:
        for i in chosen:
            image, alpha = read_picture(pictures[i])
            mask = mask_beside(pictures[i])
            if mask is not None:
                alpha = read_mask(mask, image.shape[:2])
            name = f"{folder.name}/{pictures[i].name}"
            K, pose = _camera(rows[i], image.shape[:2], f"{path}, row {i} ({name})")
            yield View(name, image, alpha, None, K, pose)

    posed = stack(views(), len(chosen), factor)
    posed.near_far = rows[chosen, 15:]
    posed.bounds = _frusta_box(posed)
    return posed


def _rows(path: Path) -> np.ndarray:
    """(N, 17) float64."""
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise PosedImagesError(f"{path} is not an array that numpy can read: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind not in "fiu" or not len(rows):
        raise PosedImagesError(
            f"{path} must have one row of 17 numbers per picture, has {rows.shape} {rows.dtype}"
        )
    rows = rows.astype(np.float64)
    for i, row in enumerate(rows):
        if not np.isfinite(row).all():
            raise PosedImagesError(f"{path}, row {i} contains NaN or infinity")
        if not 0 < row[15] < row[16]:
            raise PosedImagesError(
                f"{path}, row {i}: depths must be 0 < near < far, got {row[15]:g} and {row[16]:g}"
            )
    return rows


def _camera(row: np.ndarray, size: tuple[int, int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics (3, 3) for a picture of `size` (height, width), camera_from_world (4, 4)."""
    matrix = row[:15].reshape(3, 5)
    down, right, back, position, (h, w, f) = matrix.T
    scale_x, scale_y = picture_scale((h, w), size, where)
    height, width = size
    K = np.array([[f * scale_x, 0, (width - 1) / 2], [0, f * scale_y, (height - 1) / 2], [0, 0, 1]])
    try:
        K = Camera(K, size).intrinsics
    except CameraError as error:
        raise PosedImagesError(f"{where}: {error}") from error
    pose = rigid(np.stack((right, down, -back, position), -1), where)
    return K, inverse(pose)


def _frusta_box(posed: PosedImages) -> np.ndarray:
    """(2, 3): around the corners of all frusta between near and far."""
    height, width = posed.size
    corners = np.array([[u, v, 1.0] for u in (-0.5, width - 0.5) for v in (-0.5, height - 0.5)])
    rays = corners @ np.linalg.inv(posed.intrinsics).transpose(0, 2, 1)  # (N, 4, 3), z = 1
    points = rays[:, :, None] * posed.near_far[:, None, :, None]  # (N, 4, 2, 3) camera axes
    T = posed.camera_from_object
    points = np.einsum("nji,nabj->nabi", T[:, :3, :3], points - T[:, None, None, :3, 3])
    return np.stack((points.min((0, 1, 2)), points.max((0, 1, 2))))
