# SPDX-License-Identifier: Apache-2.0
"""Noise of masks has the size that is asked for and leaves the rest alone."""

import cv2
import numpy as np
import pytest

from pose_refiner_ros.evaluation.mask_noise import flip_border, move_border


def disc(size: int = 160, radius: float = 60.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (np.hypot(x, y) < radius).astype(np.uint8)


def radii(mask: np.ndarray, count: int = 360) -> np.ndarray:
    """Where the mask ends in each direction from its middle."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None]
    reach = np.linspace(40, 78, 400)[None]
    middle = (mask.shape[0] - 1) / 2
    x = (middle + reach * np.cos(turn)).astype(np.float32)
    y = (middle + reach * np.sin(turn)).astype(np.float32)
    inside = cv2.remap(mask * np.uint8(255), x, y, cv2.INTER_LINEAR) > 127
    return 40 + inside.sum(axis=1) * (38 / 399)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_the_border_moves_by_the_stated_deviation(sigma):
    rng = np.random.default_rng(1)
    moved = np.array([radii(move_border(disc(), rng, sigma, 6.0)) for _ in range(20)])
    # a mask of whole pixels is itself off by a uniform deviation of up to half a pixel
    expected = np.hypot(sigma, 1 / 12**0.5)
    assert moved.std() == pytest.approx(expected, rel=0.12)
    assert moved.mean() == pytest.approx(60.0, abs=0.15)


@pytest.mark.parametrize("correlation", [4.0, 12.0])
def test_displacements_are_alike_over_the_stated_distance(correlation):
    rng = np.random.default_rng(2)
    moved = np.array([radii(move_border(disc(), rng, 1.5, correlation)) for _ in range(40)]) - 60.0
    apart = round(correlation / 60.0 / (2 * np.pi) * 360)
    alike = (moved * np.roll(moved, apart, axis=1)).mean() / (moved**2).mean()
    assert alike == pytest.approx(np.exp(-1), abs=0.12)
    far = (moved * np.roll(moved, 90, axis=1)).mean() / (moved**2).mean()
    assert abs(far) < 0.12


def test_only_border_pixels_are_flipped_and_half_of_them():
    rng = np.random.default_rng(3)
    mask = disc()
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = (cv2.dilate(mask, cross) - cv2.erode(mask, cross)).astype(bool)
    shares = []
    for _ in range(20):
        flipped = flip_border(mask, rng) != mask
        assert not flipped[~border].any()
        shares.append(flipped[border].mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)
    assert (flip_border(mask, rng, 0.0) == mask).all()


@pytest.mark.parametrize("noise", [move_border, flip_border])
def test_masks_stay_masks(noise):
    rng = np.random.default_rng(4)
    empty = np.zeros((30, 40), np.uint8)
    assert not noise(empty, rng).any()
    full = np.ones((30, 40), np.uint8)
    assert noise(full, rng).mean() > 0.8
    corner = empty.copy()
    corner[:10, :10] = 1
    before = corner.copy()
    for mask in (noise(corner, rng), noise(full, rng)):
        assert mask.shape == (30, 40) and mask.dtype == np.uint8 and mask.max() <= 1
    assert (corner == before).all()
