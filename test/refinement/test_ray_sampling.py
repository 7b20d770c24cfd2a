# SPDX-License-Identifier: Apache-2.0
"""Which pixels are drawn: where something is, as many as asked for, none that does not count."""

import numpy as np
import pytest

from pose_refiner_ros.refinement.ray_sampling import (
    RaySamplingError,
    draw_pixels,
    interest_points,
    pixels_to_draw,
)


@pytest.fixture
def photo() -> np.ndarray:
    """(60, 80, 3): grey, with a mosaic from (20, 10) to (43, 33)."""
    image = np.full((60, 80, 3), 128, np.uint8)
    mosaic = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image[10:34, 20:44] = mosaic.repeat(3, 0).repeat(3, 1)
    return image


def near(pixels: np.ndarray, margin: int) -> np.ndarray:
    """Which are at most `margin` beside the mosaic."""
    low, high = np.array([20, 10]) - margin, np.array([43, 33]) + margin
    return ((pixels >= low) & (pixels <= high)).all(axis=1)


def test_random_pixels_are_everywhere(photo):
    pixels = draw_pixels(pixels_to_draw(photo, "random"), 2000, np.random.default_rng(0))
    assert pixels.shape == (2000, 2) and pixels.dtype == np.int64
    assert pixels.min() == 0 and pixels[:, 0].max() == 79 and pixels[:, 1].max() == 59
    assert len(np.unique(pixels, axis=0)) == 2000
    assert near(pixels, 0).mean() == pytest.approx(24 * 24 / 4800, abs=0.02)


def test_interest_points_come_first_and_random_ones_fill_up(photo):
    there = pixels_to_draw(photo, "interest_point")
    points = interest_points(photo)
    assert 20 < len(there[0]) == points.sum() < 300
    assert near(there[0], 5).mean() > 0.9

    drawn = draw_pixels(there, 5, np.random.default_rng(0))
    assert points[drawn[:, 1], drawn[:, 0]].all()
    many = draw_pixels(there, 1000, np.random.default_rng(0))
    hit = points[many[:, 1], many[:, 0]]
    assert len(many) == 1000 and hit[: points.sum()].all()
    assert near(many[points.sum() :], 0).mean() < 0.2  # the rest: from anywhere


def test_regions_are_points_grown_by_two_pixels_each_time(photo):
    y, x = np.nonzero(interest_points(photo))
    points = np.stack((x, y), -1)
    sizes = []
    for iterations in (0, 1, 3):
        region = pixels_to_draw(photo, "interest_region", iterations=iterations)[0]
        distance = np.abs(region[:, None] - points).max(axis=2).min(axis=1)
        assert distance.max() == 2 * iterations
        sizes.append(len(region))
    assert sizes[0] == len(points) < sizes[1] < sizes[2]
    there = pixels_to_draw(photo)
    drawn = draw_pixels(there, 200, np.random.default_rng(0))
    assert {*map(tuple, drawn)} <= {*map(tuple, there[0])}


def test_one_spot_alone_is_not_enough():
    image = np.zeros((60, 80, 3), np.uint8)
    image[30:36, 40:46] = 255
    assert 0 < interest_points(image).sum() < 20
    assert len(pixels_to_draw(image)[0]) == 0


@pytest.mark.parametrize("sampling", ["interest_point", "interest_region"])
def test_where_nothing_is_interesting_pixels_are_random(sampling):
    image = np.full((40, 50, 3), 0.5, np.float32)
    there = pixels_to_draw(image, sampling)
    assert len(there[0]) == 0
    assert len(np.unique(draw_pixels(there, 100, np.random.default_rng(0)), axis=0)) == 100


@pytest.mark.parametrize("sampling", ["random", "interest_point", "interest_region"])
def test_pixels_that_do_not_count_are_never_drawn(photo, sampling):
    weight = np.zeros(photo.shape[:2], np.float32)
    weight[:, :30] = 0.5
    image = photo / np.float32(255)
    image[:, 31:] = np.nan
    there = pixels_to_draw(image, sampling, weight)
    pixels = draw_pixels(there, 1500, np.random.default_rng(1))
    assert pixels[:, 0].max() == 29
    # more than there are: some twice, but still as many as asked for
    assert len(draw_pixels(there, 4000, np.random.default_rng(1))) == 4000


def test_the_same_generator_draws_the_same(photo):
    there = pixels_to_draw(photo)
    draws = [draw_pixels(there, 50, np.random.default_rng(seed)) for seed in (4, 4, 5)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_photos_of_bytes_and_of_numbers_are_the_same(photo):
    candidates = [pixels_to_draw(image)[0] for image in (photo, photo / 255.0)]
    assert np.array_equal(*candidates)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": "all"}, "sampling is 'all': give one of random, interest_point"),
        ({"iterations": -1}, "dilation is -1"),
        ({"image": np.zeros((4, 4))}, r"shape \(4, 4\); give \(H, W, 3\)"),
        ({"image": np.full((4, 4, 3), 200.0)}, "values from 200 to 200; give uint8"),
        ({"image": np.full((4, 4, 3), np.nan)}, "16 pixels of the image are NaN"),
        ({"weight": np.ones((4, 5))}, r"weight has shape \(4, 5\), the image \(60, 80\)"),
        ({"weight": np.zeros((60, 80))}, "weight is 0 everywhere"),
    ],
)
def test_what_cannot_be_sampled_is_refused(photo, change, message):
    with pytest.raises(RaySamplingError, match=message):
        pixels_to_draw(**{"image": photo, **change})
