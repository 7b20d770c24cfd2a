# SPDX-License-Identifier: Apache-2.0
"""Masks as a segmentation network draws them: the border wrong by about a pixel.

Two models that bracket what is seen in practice. `move_border` errs alike over a stretch of the
border, as an upsampled mask does; `flip_border` errs in every border pixel for itself.
"""

from __future__ import annotations

import cv2
import numpy as np

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def move_border(
    mask: np.ndarray, rng: np.random.Generator, sigma: float = 1.0, correlation: float = 4.0
) -> np.ndarray:
    """The mask (H, W) uint8 0/1 with its border moved in and out by smooth noise.

    sigma: standard deviation of the displacement, pixels. correlation: distance in pixels over
    which the correlation of displacements falls to 1/e (that of a normal distribution's shape).
    """
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return mask.copy()
    # only the surroundings of the object matter; the field is smooth where they end
    reach = int(np.ceil(5.0 * sigma)) + 1
    rows = slice(max(y - reach, 0), y + height + reach)
    columns = slice(max(x - reach, 0), x + width + reach)
    part = np.ascontiguousarray(mask[rows, columns])
    inside = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outside = cv2.distanceTransform(1 - part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance = np.where(part > 0, 0.5 - inside, outside - 0.5)
    # white noise smoothed with a kernel of standard deviation s has correlation exp(-d^2 / 4 s^2)
    blur = max(0.5 * correlation, 1e-3)
    edge = int(np.ceil(4.0 * blur))
    field = rng.normal(size=(part.shape[0] + 2 * edge, part.shape[1] + 2 * edge))
    field = cv2.GaussianBlur(field, (0, 0), blur)[edge:-edge, edge:-edge]
    impulse = np.zeros((8 * edge + 1, 8 * edge + 1))
    impulse[4 * edge, 4 * edge] = 1.0
    field *= sigma / np.sqrt((cv2.GaussianBlur(impulse, (0, 0), blur) ** 2).sum())
    result = mask.copy()
    result[rows, columns] = distance < field
    return result


def flip_border(mask: np.ndarray, rng: np.random.Generator, probability: float = 0.5) -> np.ndarray:
    """The mask (H, W) uint8 0/1 with each pixel on either side of its border flipped by chance."""
    border = cv2.dilate(mask, _CROSS) - cv2.erode(mask, _CROSS, borderType=cv2.BORDER_REPLICATE)
    return mask ^ (border & (rng.random(mask.shape) < probability))
