# SPDX-License-Identifier: Apache-2.0
"""What the loaders share: pictures, matrices and sizes from files, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.views import PosedImagesError
from pose_refiner_ros.geometry import pose

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SPLITS = ("train", "test", "all")
_TURNED_BACK = {
    cv2.ROTATE_90_CLOCKWISE: cv2.ROTATE_90_COUNTERCLOCKWISE,
    cv2.ROTATE_90_COUNTERCLOCKWISE: cv2.ROTATE_90_CLOCKWISE,
}
TEST_EVERY = 8  # where no file says which pictures are for testing; the first is one, as in LLFF


def split_indices(count: int, split: str, source: Path) -> list[int]:
    """Which of `count` pictures belong to train | test | all, where every 8th is for testing.

    Raises:
        PosedImagesError: one picture, and not for testing; `source` is named.
    """
    if split != "test":
        check_several(count, split, source)
    test = [i % TEST_EVERY == 0 for i in range(count)]
    return [i for i in range(count) if split == "all" or test[i] == (split == "test")]


def check_several(count: int, split: str, source: Path) -> None:
    """Raises PosedImagesError for less than two pictures."""
    if count < 2:
        raise PosedImagesError(
            f"{source} has only {count} picture{'s' * (count == 0)} for split {split!r}; "
            "a field needs several, taken from several sides"
        )


def read_picture(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) uint8 RGB and (H, W) uint8 alpha, None if the file has none.

    Pixels as they are stored: the orientation noted by a camera is not applied, since the tools
    that find the poses do not apply it either.

    Raises:
        PosedImagesError: the file is missing, or not a picture of 8 or 16 bits.
    """
    pixels = _decoded(path)
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), None
    if pixels.shape[2] == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB), np.ascontiguousarray(pixels[..., 3])
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), None


def read_mask(path: Path, size: tuple[int, int], picture: Path | None = None) -> np.ndarray:
    """(H, W) uint8, 255 = object, from a mask file of 0 and 255, of 0 and 1, or in between.

    picture: that of the mask. Where its EXIF data say that it is shown turned by 90 degrees, and
    the mask was made of what is shown, the mask is turned back.

    Raises:
        PosedImagesError: missing, unreadable, or of another size than its picture.
    """
    mask = _decoded(path)
    if mask.ndim == 3:
        mask = mask[..., :3].max(-1)
    if mask.shape != tuple(size) and mask.shape == tuple(size)[::-1] and picture is not None:
        turn = shown_turned(picture)
        if turn is not None:
            mask = cv2.rotate(mask, _TURNED_BACK[turn])
    if mask.shape != tuple(size):
        raise PosedImagesError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]}, its picture "
            f"{size[1]}x{size[0]} (width x height)"
        )
    return mask * 255 if mask.max() == 1 else mask


def shown_turned(picture: Path) -> int | None:
    """By which of OpenCV's quarter turns a picture is shown, as its EXIF data ask; None if by
    none."""
    stored = _decoded(picture)
    shown = cv2.imdecode(np.fromfile(picture, np.uint8), cv2.IMREAD_COLOR)
    if stored.ndim != 3 or stored.shape[2] != 3 or shown.shape[:2] == stored.shape[:2]:
        return None
    return next((turn for turn in _TURNED_BACK if (cv2.rotate(stored, turn) == shown).all()), None)


def mask_beside(picture: Path) -> Path | None:
    """The mask of a picture in images/ or images_4/, which lies in masks/ or masks_4/ beside that
    folder under the same name; None where there is none."""
    folder = picture.parent.name
    name = folder.replace("images", "masks") if folder.startswith("images") else "masks"
    files = (picture.parent.parent / name / (picture.stem + end) for end in PICTURE_SUFFIXES)
    return next((path for path in files if path.is_file()), None)


def rigid(matrix: Any, where: str) -> np.ndarray:
    """(4, 4) float64 from a pose of 3x4 or 4x4 numbers, the rounding of the file undone.

    Raises:
        PosedImagesError: NaN, a wrong shape, or no rotation (mirrored, or scaled).
    """
    try:
        matrix = np.asarray(matrix, np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)):
        raise PosedImagesError(f"{where}: the pose must be 3x4 or 4x4 numbers")
    if not np.isfinite(matrix).all():
        raise PosedImagesError(f"{where}: the pose contains NaN or infinity")
    if len(matrix) == 4 and abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise PosedImagesError(
            f"{where}: the last row of the pose is {matrix[3].tolist()}, must be 0 0 0 1"
        )
    u, s, vt = np.linalg.svd(matrix[:3, :3])
    if abs(s - 1.0).max() > 1e-2:
        raise PosedImagesError(
            f"{where}: the pose is not a rotation and a translation, its axes are scaled by "
            f"{np.array2string(s, precision=4)}"
        )
    if np.linalg.det(u @ vt) < 0:
        raise PosedImagesError(
            f"{where}: the pose is mirrored (left-handed); one of its axes has the wrong sign"
        )
    return pose.rigid(u @ vt, matrix[:3, 3])


def picture_scale(
    said: tuple[float, float], size: tuple[int, int], where: str
) -> tuple[float, float]:
    """By how much a picture was made smaller than the size its intrinsics belong to.

    Args:
        said: (height, width) in the file of poses.
        size: (height, width) of the picture.

    Returns:
        (x, y) factors for intrinsics, at most 1.

    Raises:
        PosedImagesError: not the same size, nor a whole fraction of it up to rounding.
    """
    (height, width), (rows, columns) = said, size
    n = max(round(width / columns), 1)
    if abs(width / n - columns) < 1 and abs(height / n - rows) < 1:
        return columns / width, rows / height
    turned = (columns, rows) == (height, width)
    raise PosedImagesError(
        f"{where}: the picture is {columns}x{rows}, the file of poses says "
        f"{width:g}x{height:g} (width x height)"
        + (", turned by 90 degrees" if turned else ", and that is no whole multiple")
    )


def _decoded(path: Path) -> np.ndarray:
    """(H, W) or (H, W, 3 or 4) uint8, channels in OpenCV's order."""
    # imdecode, not imread: file names with any letters, and a broken file is told from a missing.
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise PosedImagesError(f"picture {path} is missing") from None
    except OSError as error:
        raise PosedImagesError(f"picture {path} cannot be read: {error}") from error
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if pixels is None:
        raise PosedImagesError(f"{path} is not a picture that OpenCV can read")
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257.0).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise PosedImagesError(f"{path} has pixels of {pixels.dtype}; convert it to 8 or 16 bits")
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
