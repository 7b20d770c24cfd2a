# SPDX-License-Identifier: Apache-2.0
"""Crops show what the camera sees, at the pixels where their pinhole says."""

import numpy as np
import pytest

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.crop import crop_around

K = np.array([[310.0, 0, 161.7], [0, 295.0, 118.2], [0, 0, 1]])
SIZE = (240, 320)
PINHOLE = Camera(K, SIZE)
DISTORTED = {
    "plumb_bob": Camera(K, SIZE, "plumb_bob", np.array([-0.28, 0.09, 1e-3, -2e-3, 0.0])),
    "equidistant": Camera(
        np.array([[150.0, 0, 161.7], [0, 148.0, 118.2], [0, 0, 1]]),
        SIZE,
        "equidistant",
        np.array([0.02, -0.004, 1e-3, 0.0]),
    ),
}
BOXES = {
    "middle": (120.0, 80.0, 200.0, 150.0),
    "left border": (0.0, 90.0, 60.0, 160.0),
    "corner": (290.0, 200.0, 319.0, 239.0),
    "one pixel": (33.0, 44.0, 33.0, 44.0),
    "whole photo": (0.0, 0.0, 319.0, 239.0),
}


def rays_of(crop) -> np.ndarray:
    """(S, S, 3) directions of a crop's pixels in the camera's axes."""
    x, y = np.meshgrid(np.arange(crop.size), np.arange(crop.size))
    fx, fy, cx, cy = crop.pinhole
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(x.shape)], axis=-1)
    return rays @ crop.crop_from_camera


def stripes(size=SIZE) -> np.ndarray:
    """(H, W) uint8 0/1 with blobs of some pixels."""
    y, x = np.mgrid[: size[0], : size[1]]
    return ((np.sin(x / 9.0) + np.cos(y / 11.0 + x / 40.0)) > 0.4).astype(np.uint8)


@pytest.mark.parametrize("max_size", [256, 64])
@pytest.mark.parametrize("name", BOXES)
def test_a_crop_of_a_pinhole_shows_the_photo_where_its_own_pinhole_says(name, max_size):
    crop = crop_around(PINHOLE, BOXES[name], max_size)
    assert crop.size <= max_size and crop.size % 8 == 0
    np.testing.assert_array_equal(crop.crop_from_camera, np.eye(3))
    photo = stripes()
    shown = crop.cut(photo)
    assert shown.shape == (crop.size, crop.size) and shown.dtype == np.uint8
    pixels = PINHOLE.project(rays_of(crop))
    x, y = pixels[..., 0], pixels[..., 1]
    inside = (x > -0.5) & (y > -0.5) & (x < SIZE[1] - 0.5) & (y < SIZE[0] - 0.5)
    if crop.scale == 1.0:
        column, row = np.round(x).astype(int), np.round(y).astype(int)
        np.testing.assert_allclose(x, column, atol=1e-9)
        assert (shown[inside] == 255 * photo[row[inside], column[inside]]).all()
        assert not shown[~inside].any()
    else:
        # a pixel of the crop is the mean of what it covers: the photo's own mean around it
        reach = 0.5 / crop.scale
        for i, j in ((crop.size // 2, crop.size // 2), (crop.size // 3, crop.size // 2)):
            at_x, at_y = x[i, j], y[i, j]
            rows = np.abs(np.arange(SIZE[0]) - at_y) < reach
            columns = np.abs(np.arange(SIZE[1]) - at_x) < reach
            assert shown[i, j] == pytest.approx(255 * photo[np.ix_(rows, columns)].mean(), abs=64)


@pytest.mark.parametrize("max_size", [256, 64])
@pytest.mark.parametrize("name", BOXES)
def test_a_shrunk_crop_keeps_things_in_their_place(name, max_size):
    """The centroid of a square of the photo is found where the crop's pinhole puts its ray."""
    x0, y0, x1, y1 = BOXES[name]
    if x1 - x0 < 20:
        pytest.skip("nothing fits in")
    photo = np.zeros(SIZE, np.uint8)
    left, top = int(x0 + 5), int(y0 + 7)
    photo[top : top + 21, left : left + 15] = 1
    crop = crop_around(PINHOLE, BOXES[name], max_size)
    shown = crop.cut(photo).astype(float)
    x, y = np.meshgrid(np.arange(crop.size), np.arange(crop.size))
    centroid = np.array([(shown * x).sum(), (shown * y).sum()]) / shown.sum()
    ray = (np.array([left + 7.0, top + 10.0]) - K[:2, 2]) / K[[0, 1], [0, 1]]
    expected = ray * crop.pinhole[:2] + crop.pinhole[2:]
    np.testing.assert_allclose(centroid, expected, atol=0.2)
    assert shown.sum() / 255 == pytest.approx(21 * 15 * crop.scale**2, rel=0.05)


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("lens", DISTORTED)
def test_a_crop_of_a_lens_is_undistorted(lens, name):
    camera = DISTORTED[lens]
    crop = crop_around(camera, BOXES[name], 256)
    assert crop.size <= 256 and crop.size % 8 == 0
    np.testing.assert_allclose(
        crop.crop_from_camera @ crop.crop_from_camera.T, np.eye(3), atol=1e-9
    )
    pixels = camera.project(rays_of(crop))
    x, y = pixels[..., 0], pixels[..., 1]
    with np.errstate(invalid="ignore"):
        inside = (x >= -0.5) & (y >= -0.5) & (x <= SIZE[1] - 0.5) & (y <= SIZE[0] - 0.5)
        near_border = np.abs(np.stack([x, y, x - 319, y - 239])).min(axis=0) < 1.5
    outside = crop.outside()
    told_inside = np.ones(inside.shape, bool) if outside is None else outside == 0
    sure = ~near_border & np.isfinite(x)
    assert (told_inside == inside)[sure].all()
    assert not told_inside[~np.isfinite(x)].any() or (~np.isfinite(x)).mean() < 0.02

    photo = stripes().astype(np.float64)
    # the map is interpolated over cells: a tenth of the crop's pixel at most, mostly far less
    mapped_x, mapped_y = crop._map
    safe = sure & inside
    assert safe.any()
    error = np.hypot(mapped_x - x, mapped_y - y)[safe] * crop.scale
    assert error.max() < 0.1 and np.median(error) < 0.03
    shown = crop.cut(photo.astype(np.uint8))
    column, row = np.round(x[safe]).astype(int), np.round(y[safe]).astype(int)
    exact = np.hypot(x[safe] - column, y[safe] - row) < 0.1
    assert np.abs(shown[safe] - 255.0 * photo[row, column])[exact].mean() < 12


@pytest.mark.parametrize("lens", ["none", *DISTORTED])
@pytest.mark.parametrize("name", BOXES)
def test_the_box_lies_in_the_crop_with_its_margin(lens, name):
    camera = PINHOLE if lens == "none" else DISTORTED[lens]
    x0, y0, x1, y1 = BOXES[name]
    crop = crop_around(camera, BOXES[name], 256, margin=0.25)
    corners = np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1), ((x0 + x1) / 2, (y0 + y1) / 2)])
    rays = camera.rays(corners) @ crop.crop_from_camera.T
    assert (rays[:, 2] > 0).all()
    pixels = rays[:, :2] / rays[:, 2:] * crop.pinhole[:2] + crop.pinhole[2:]
    room = np.minimum(pixels, crop.size - 1 - pixels).min()
    extent = (pixels.max(axis=0) - pixels.min(axis=0)).max()
    assert room >= 0.2 * extent
    assert extent > 0.3 * crop.size or name == "one pixel"


def test_where_a_crop_reaches_beyond_the_photo_is_told():
    inner = crop_around(PINHOLE, BOXES["middle"], 256)
    assert inner.outside() is None
    for max_size in (256, 32):
        crop = crop_around(PINHOLE, BOXES["corner"], max_size)
        outside = crop.outside()
        pixels = PINHOLE.project(rays_of(crop))
        x, y = pixels[..., 0], pixels[..., 1]
        # a crop pixel counts as outside when its centre is beyond the photo's outermost edge
        beyond = (x > SIZE[1] - 0.5) | (y > SIZE[0] - 0.5)
        disagree = outside.astype(bool) != beyond
        assert disagree.sum() <= 2 * crop.size  # at most the pixels that the edge runs through
        assert outside[-1, -1] == 1 and outside[0, 0] == 0
        last = crop.bounds[2:]
        assert not outside[: int(last[1]), : int(last[0])].any()


def test_a_fisheye_looks_behind_itself():
    """110 degrees off the axis no pinhole of the camera's own direction could see anything."""
    camera = Camera(
        np.array([[120.0, 0, 255.5], [0, 120.0, 255.5], [0, 0, 1]]), (512, 512), "equidistant",
        np.zeros(4),
    )  # fmt: skip
    ray = np.array([np.sin(np.radians(110)), 0.0, np.cos(np.radians(110))])
    x, y = camera.project(ray)
    crop = crop_around(camera, (x - 15, y - 15, x + 15, y + 15), 256)
    seen = crop.crop_from_camera @ ray
    assert seen[2] > 0.99
    middle = seen[:2] / seen[2] * crop.pinhole[:2] + crop.pinhole[2:]
    np.testing.assert_allclose(middle, (crop.size - 1) / 2, atol=3.0)


def test_a_box_outside_the_lens_model_is_refused():
    camera = Camera(K, SIZE, "plumb_bob", np.array([-1.2, 0.0, 0.0, 0.0]))
    assert not np.isfinite(camera.rays(np.array([0.0, 0.0]))).all()
    with pytest.raises(ValueError, match="distortion"):
        crop_around(camera, (0.0, 0.0, 5.0, 5.0), 256)


@pytest.mark.parametrize("camera", [PINHOLE, *DISTORTED.values()], ids=["none", *DISTORTED])
@pytest.mark.parametrize("max_size", [256, 64])
@pytest.mark.parametrize("name", [name for name in BOXES if name != "one pixel"])
def test_colours_are_cut_as_masks_are(camera, name, max_size):
    crop = crop_around(camera, BOXES[name], max_size)
    mask = stripes()
    photo = np.repeat(255 * mask[..., None], 3, axis=2)
    shown, share = crop.cut_photo(photo), crop.cut(mask)
    assert shown.shape == (crop.size, crop.size, 3) and shown.dtype == np.uint8
    # they are shrunk in other ways, which differ at borders alone
    assert np.mean(np.abs(shown[..., 1].astype(int) - share) > 64) < 0.02
