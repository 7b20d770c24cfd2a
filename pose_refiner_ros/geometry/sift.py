# SPDX-License-Identifier: Apache-2.0
"""Features of photos: places that are found again in other photos (SIFT, Lowe 2004), compared as
RootSIFT (Arandjelovic and Zisserman 2012)."""

from __future__ import annotations

import cv2
import numpy as np


def sift_features(
    image: np.ndarray, mask: np.ndarray | None = None, most: int = 1000, side: int = 640
) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 2), x and y in pixels, and descriptors (N, 128) uint8 of a photo.

    image: (H, W, 3) uint8 RGB; mask: (H, W), only where it is not 0; most: the clearest are taken;
    side: pixels of the longer side, to which a larger photo is shrunk first.
    """
    size = np.array(image.shape[1::-1])
    scale = min(1.0, side / size.max())
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    mask = None if mask is None else (np.asarray(mask) != 0).astype(np.uint8)
    if scale < 1.0:
        small = tuple(int(n) for n in np.maximum(np.rint(scale * size), 1))
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
        if mask is not None:
            mask = cv2.resize(mask, small, interpolation=cv2.INTER_NEAREST)
    sift = cv2.SIFT_create(nfeatures=most, contrastThreshold=_CONTRAST)
    found, descriptors = sift.detectAndCompute(grey, mask)
    if not found:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    pixels = np.array([one.pt for one in found], np.float64)
    pixels = (pixels + 0.5) * (size / grey.shape[1::-1]) - 0.5
    return pixels.clip(0.0, size - 1.0), descriptors.astype(np.uint8)


_CONTRAST = 0.02  # half of what is usual: photos of plain things have few features


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 128) float32 of descriptors, whose products say how alike they are."""
    whole = descriptors.astype(np.float32)
    return np.sqrt(whole / np.maximum(whole.sum(axis=1, keepdims=True), 1.0))


def clear_matches(alike: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of products (N, M) of root_sift: each row's best, where the second best is
    farther by a ratio of distances (Lowe 2004)."""
    if alike.shape[1] < 2:
        return np.zeros(0, int), np.zeros(0, int)
    best = alike.argmax(axis=1)
    second, first = np.partition(alike, -2, axis=1)[:, -2:].T
    rows = np.flatnonzero(1.0 - first < ratio**2 * (1.0 - second))  # half of squared distances
    return rows, best[rows]
