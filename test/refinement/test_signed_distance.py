# SPDX-License-Identifier: Apache-2.0
"""Signed distances to a mask's border, and their pyramids."""

import cv2
import numpy as np
import pytest

from pose_refiner_ros.refinement.signed_distance import (
    ROBUST_SHARE,
    SCALE_SIZES,
    UNKNOWN,
    UNKNOWN_LIMIT,
    build_pyramid,
    shrink_pinhole,
    shrink_points,
    signed_distance,
)


def disc(size: int, radius: float, center=None) -> tuple[np.ndarray, np.ndarray]:
    """A mask (S, S) and the exact signed distance (S, S) to its border."""
    center = ((size - 1) / 2, (size - 1) / 2) if center is None else center
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(x - center[0], y - center[1]) - radius
    return (distance < 0).astype(np.uint8), distance


def rectangle(size: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


@pytest.mark.parametrize("radius", [25.1, 39.8, 40.3])
def test_distances_to_a_disc(radius):
    mask, exact = disc(128, radius)
    error = signed_distance(mask) - exact
    # the border of a mask of whole pixels lies on neither side of where it was
    for low, high, bias, spread in ((-1, 1, 0.1, 0.2), (-3, 3, 0.2, 0.5), (-20, 20, 0.6, 0.5)):
        band = (exact > low) & (exact < high)
        assert abs(error[band].mean()) < bias
        assert error[band].std() < spread
    assert np.abs(error[np.abs(exact) < 1]).max() < 0.5
    assert np.abs(error[np.abs(exact) < 20]).max() < 2.0


def test_distances_to_a_straight_edge_grow_by_one_per_pixel():
    mask = rectangle(64, 20, 0, 64, 64)
    row = signed_distance(mask)[32]
    exact = 19.5 - np.arange(64)
    np.testing.assert_allclose(row[17:23], exact[17:23], atol=0.5)
    np.testing.assert_allclose(row[4:60], exact[4:60], atol=1.1)
    assert (np.diff(row[4:60]) < 0.0).all()


def test_a_resampled_border_lies_between_pixels():
    """The share of a pixel that is covered says where the border runs inside it."""
    fine, _ = disc(1024, 320.0)
    share = cv2.resize(fine * np.uint8(255), (128, 128), interpolation=cv2.INTER_AREA)
    _, exact = disc(128, 40.0)
    mask = (share > 127).astype(np.uint8)
    error = signed_distance(mask, None, share) - exact
    near = np.abs(exact) < 1.0
    assert np.abs(error[near]).max() < 0.2
    rough = signed_distance(mask) - exact
    assert np.abs(rough[near]).mean() > 2 * np.abs(error[near]).mean()


def test_unknown_pixels_belong_to_neither_side():
    mask = rectangle(64, 16, 16, 48, 48)
    unknown = rectangle(64, 40, 10, 64, 54) & ~mask & 1
    distance = signed_distance(mask, unknown)
    assert (distance[unknown == 1] == UNKNOWN).all()
    known = unknown == 0
    assert (np.abs(distance[known]) < 100).all()
    # next to the unknown the mask is deep inside: the border may lie anywhere beyond
    assert distance[32, 44] < -10
    assert distance[32, 20] == pytest.approx(-4, abs=1)


# --- pyramids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [40, 64, 136, 200, 256])
def test_maps_see_the_same_at_other_resolutions(side):
    mask, exact = disc(side, 0.3 * side)
    camera = np.array([300.0, 310.0, 0.4 * side, 0.6 * side])
    bounds = np.array([-5.0, -6.0, 300.0, 301.0])
    maps = build_pyramid(signed_distance(mask), False)
    assert len(maps) == len(SCALE_SIZES)
    for one, largest, share in zip(maps, SCALE_SIZES, ROBUST_SHARE, strict=True):
        size = one.shape[0]
        pixel = side // size
        assert size <= largest and size * pixel == side
        assert one.flags.c_contiguous and one.dtype == np.float32
        # the same ray falls on the same place
        x = (np.arange(size) + 0.5) * pixel - 0.5
        ray = (x - camera[2]) / camera[0]
        fx, _, cx, _ = shrink_pinhole(camera, pixel)
        np.testing.assert_allclose(ray * fx + cx, np.arange(size), atol=1e-9)
        np.testing.assert_allclose((shrink_points(bounds, pixel) + 0.5) * pixel - 0.5, bounds)
        # robust distances, in pixels of the crop
        column, scale = int(0.78 * size), share * side
        at = exact[side // 2, int(x[column])]
        assert one[size // 2, column] == pytest.approx(at / (1 + abs(at) / scale), abs=1.5)
        assert np.abs(one).max() < scale
    assert len(maps[-1]) == side


def test_a_coarse_pixel_with_an_unknown_part_is_unknown():
    mask = rectangle(256, 60, 60, 180, 180)
    unknown = rectangle(256, 181, 61, 182, 140)  # one column, one row off the coarse grid
    maps = build_pyramid(signed_distance(mask, unknown), True)
    coarse, fine = maps
    assert (fine[unknown == 1] == UNKNOWN).all()
    assert (coarse[31:70, 90] == UNKNOWN).all()
    for one, share in zip(maps, ROBUST_SHARE, strict=True):
        assert np.abs(one[one < UNKNOWN_LIMIT]).max() < share * 256
