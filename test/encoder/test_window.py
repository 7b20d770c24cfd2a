# SPDX-License-Identifier: Apache-2.0
"""The window around a mask: what it shows, and that its camera is the right one."""

import numpy as np
import pytest

from pose_refiner_ros.encoder.window import mask_window, window_at

PINHOLE = np.array([210.0, 190.0, 61.0, 48.0])


def blob(x: int, y: int, width: int, height: int, size=(100, 120)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


def project(pinhole: np.ndarray, point: np.ndarray) -> np.ndarray:
    return pinhole[:2] * point[:2] / point[2] + pinhole[2:]


def centroid(channel: np.ndarray) -> np.ndarray:
    """(2,) x, y of a picture's weight."""
    ys, xs = np.indices(channel.shape)
    return np.array([(channel * xs).sum(), (channel * ys).sum()]) / channel.sum()


@pytest.mark.parametrize("size", [32, 64, 96])  # shrunk, and enlarged
@pytest.mark.parametrize("box", [(40, 30, 40, 26), (3, 60, 18, 33), (97, 2, 20, 9)])
def test_a_point_is_where_its_pixel_went(box, size):
    mask = blob(*box)
    window, pinhole = mask_window(mask, None, PINHOLE, size)
    assert window.shape == (2, size, size) and window.dtype == np.uint8
    # the 3D point that the middle of the mask shows
    middle = centroid(mask)
    point = np.array([*((middle - PINHOLE[2:]) / PINHOLE[:2] * 7.0), 7.0])
    np.testing.assert_allclose(project(PINHOLE, point), middle)
    weight = window[0].astype(float)
    np.testing.assert_allclose(project(pinhole, point), centroid(weight), atol=0.1)
    # the whole mask with room around it
    share = weight.sum() / 255 / size**2
    side = np.ceil(max(box[2:]) * 1.2)
    assert share == pytest.approx(box[2] * box[3] / side**2, rel=0.02)


def test_the_angle_between_two_pixels_stays():
    window = blob(20, 30, 60, 40)
    _, pinhole = mask_window(window, None, PINHOLE, 64)
    side = np.ceil(60 * 1.2)
    np.testing.assert_allclose(pinhole[:2], PINHOLE[:2] * 64 / side)


def test_what_lies_beyond_the_picture_is_unknown():
    mask = blob(0, 50, 30, 50)  # in the lower left corner
    window, _ = mask_window(mask, None, PINHOLE, 64)
    known = window[1] == 0
    assert (window[1, :, :8] == 255).all() and (window[1, -4:] == 255).all()
    assert known[8:50, 24:].all()
    assert (window[0] > 0)[window[1] == 255].sum() == 0
    inside, _ = mask_window(blob(40, 30, 30, 30), None, PINHOLE, 64)
    assert not inside[1].any()


@pytest.mark.parametrize("factor", [1, 3])
def test_unknown_pixels_and_colours_go_along(factor):
    mask, unknown = blob(40, 30, 20, 30), blob(60, 30, 6, 30)
    image = np.zeros((*mask.shape, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, mask * 90
    mask, unknown = (np.kron(m, np.ones((factor, factor), np.uint8)) for m in (mask, unknown))
    image = image.repeat(factor, 0).repeat(factor, 1)
    window, _ = mask_window(mask, unknown, PINHOLE, 36, image=image)
    assert window.shape == (5, 36, 36)
    middle = window[:, 18, 18]
    np.testing.assert_array_equal(middle, [255, 0, 200, 0, 90])
    assert window[1, 18, 30] == 255 and window[0, 18, 30] == 0
    assert window[4, 18, 30] == 0 and window[2, 18, 30] == 200


def test_a_given_square_may_lie_beside_the_picture():
    window, pinhole = window_at(blob(40, 30, 20, 30), None, PINHOLE, 32, 500, -400, 50)
    assert not window[0].any() and (window[1] == 255).all()
    assert np.isfinite(pinhole).all()


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="empty"):
        mask_window(np.zeros((40, 40), np.uint8), None, PINHOLE, 32)


def test_one_pixel_and_a_whole_picture_have_a_window():
    window, pinhole = mask_window(blob(50, 50, 1, 1), None, PINHOLE, 32)
    assert window[0].any() and np.isfinite(pinhole).all()
    window, _ = mask_window(np.ones((40, 40), np.uint8), None, PINHOLE, 32)
    assert window[0].any() and window[1].any()
