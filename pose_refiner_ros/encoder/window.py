# SPDX-License-Identifier: Apache-2.0
"""What the encoder looks at: a small square window around one mask, and the camera of that window.

The window is a pinhole camera of its own. What the network says is relative to it, so the same
object at the same distance in window widths looks the same, whatever camera took the photo.
"""

from __future__ import annotations

import cv2
import numpy as np

WINDOW_MARGIN = 0.1  # room around the mask, share of its longer side


def mask_window(
    mask: np.ndarray,
    unknown: np.ndarray | None,
    pinhole: np.ndarray,
    size: int,
    margin: float = WINDOW_MARGIN,
    image: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The window around a mask, shrunk to size x size by area.

    mask: (H, W) uint8 0/1; unknown: (H, W) uint8 0/1, pixels that may hide more of the object;
    pinhole: (4,) fx, fy, cx, cy of these pixels; image: (H, W, 3) uint8 RGB or None. Returns
    channels (C, size, size) uint8 0 to 255: the mask, what is unknown (what lies beyond the picture
    is), and with an image its red, green and blue; and the window's pinhole (4,) float64. Raises
    ValueError for an empty mask.
    """
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        raise ValueError("the mask is empty: there is nothing to look at")
    side = int(np.ceil(max(width, height) * (1.0 + 2.0 * margin)))
    left = int(np.floor(x + (width - side) / 2.0))
    top = int(np.floor(y + (height - side) / 2.0))
    return window_at(mask, unknown, pinhole, size, left, top, side, image)


def window_at(
    mask: np.ndarray,
    unknown: np.ndarray | None,
    pinhole: np.ndarray,
    size: int,
    left: int,
    top: int,
    side: int,
    image: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """As `mask_window`, for a square of a given corner and side in whole pixels."""
    rows = slice(max(top, 0), max(min(top + side, mask.shape[0]), 0))
    columns = slice(max(left, 0), max(min(left + side, mask.shape[1]), 0))
    inside = (
        slice(rows.start - top, rows.stop - top),
        slice(columns.start - left, columns.stop - left),
    )
    window = np.zeros((side, side, 2), np.uint8)
    window[..., 1] = 255
    window[(*inside, 1)] = 0 if unknown is None else unknown[rows, columns] * np.uint8(255)
    window[(*inside, 0)] = mask[rows, columns] * np.uint8(255)
    channels = [cv2.resize(window, (size, size), interpolation=cv2.INTER_AREA)]
    if image is not None:  # apart: OpenCV shrinks at most four channels at once
        colors = np.zeros((side, side, 3), np.uint8)
        colors[inside] = image[rows, columns]
        channels.append(cv2.resize(colors, (size, size), interpolation=cv2.INTER_AREA))
    shrunk = np.concatenate(channels, axis=2)
    scale = size / side
    fx, fy, cx, cy = pinhole
    camera = np.array(
        [
            fx * scale,
            fy * scale,
            (cx - left + 0.5) * scale - 0.5,
            (cy - top + 0.5) * scale - 0.5,
        ]
    )
    return np.ascontiguousarray(shrunk.transpose(2, 0, 1)), camera
