# SPDX-License-Identifier: Apache-2.0
"""What a label image says of one object, and what it does not say."""

import numpy as np
import pytest
from shapes import box, pinhole_camera, pose, random_rotation, silhouette

from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.refinement.observation import (
    MIN_PIXELS,
    ObservationError,
    observe_image,
    observe_mask,
)
from pose_refiner_ros.refinement.signed_distance import SCALE_SIZES

CAMERA = pinhole_camera(256)


def rectangle(size: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def test_other_instances_and_the_photo_border_are_unknown():
    masks = np.zeros((256, 256), np.uint16)
    masks[100:160, 0:50] = 700
    masks[120:140, 50:90] = 300
    seen = observe_mask(masks, 700, CAMERA)
    x0, y0 = seen.crop.origin
    assert seen.area == 60 * 50
    unknown = seen.unknown.astype(bool)
    assert unknown[130 - y0, 60 - x0]  # the other instance
    assert unknown[130 - y0, -1 - x0]  # left of the photo
    assert not unknown[90 - y0, 20 - x0]  # background
    assert not (unknown & (seen.mask > 0)).any()


def test_an_object_alone_has_no_unknown_pixels():
    masks = rectangle(256, 100, 110, 160, 150)
    seen = observe_mask(masks, 1, CAMERA)
    assert seen.unknown is None
    assert seen.least_cost < 0
    masks[0:20, 0:20] = 2  # far away
    assert observe_mask(masks, 1, CAMERA).unknown is None


@pytest.mark.parametrize(
    "kind", [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint64, ">u2"]
)
def test_any_kind_of_whole_numbers_will_do(kind):
    masks = rectangle(256, 100, 110, 160, 150).astype(kind) * 3
    seen = observe_mask(masks, 3, CAMERA)
    assert seen.area == 60 * 40
    strided = np.zeros((256, 512), kind)
    strided[:, ::2] = masks
    assert observe_mask(strided[:, ::2], 3, CAMERA).area == 60 * 40
    assert observe_mask(np.asfortranarray(masks), 3, CAMERA).area == 60 * 40
    with pytest.raises(ObservationError, match="no pixel"):
        observe_mask(masks, 2**40, CAMERA)  # more than the image can hold


def test_masks_that_say_nothing_are_refused():
    empty = np.zeros((256, 256), np.uint8)
    with pytest.raises(ObservationError, match="label 4 has no pixel"):
        observe_mask(empty, 4, CAMERA)
    one = empty.copy()
    one[3, 5] = 1
    with pytest.raises(ObservationError, match=f"1 pixels, fewer than {MIN_PIXELS}"):
        observe_mask(one, 1, CAMERA)
    halves = np.ones((256, 256), np.uint8)
    halves[:, 128:] = 2
    with pytest.raises(
        ObservationError, match=r"label 1 and label 2 and the photo's end .* no outline"
    ):
        observe_mask(halves, 1, CAMERA)


@pytest.mark.parametrize("lens", ["none", "equidistant"])
def test_a_mask_around_the_whole_photo_is_background(lens):
    camera = Camera(CAMERA.intrinsics, CAMERA.size, lens, np.zeros(4 if lens != "none" else 0))
    masks = rectangle(256, 100, 110, 160, 150) * 3
    alone = observe_mask(masks, 3, camera)
    everywhere = np.where(masks == 3, masks, 14)
    holed = everywhere.copy()
    holed[20:90, 50:200] = 0
    for wrong in (everywhere, holed, np.full_like(masks, 14)):
        with pytest.raises(ObservationError, match=r"label 14 touches .* \(256x256\)"):
            observe_mask(wrong, 14, camera)
    # nor does it hide anything of the others
    for crowded in (everywhere, holed):
        seen = observe_mask(crowded, 3, camera)
        assert seen.unknown is None
        np.testing.assert_array_equal(seen.distances[-1], alone.distances[-1])


def test_a_mask_too_thin_for_the_crop_is_refused():
    size = 1000
    camera = pinhole_camera(size, 900.0)
    frame = np.zeros((size, size), np.uint8)
    frame[[1, -2], 1:-1] = 1
    frame[1:-1, [1, -2]] = 1
    line = np.zeros((size, size), np.uint8)
    line[100:900, 500] = 1
    specks = np.zeros((size, size), np.uint8)
    specks[1::37, 1::37] = 1
    thin = np.zeros((size, size), np.uint8)
    along = np.arange(100, 201)
    thin[along, along + 1] = 1  # no pixel is covered at half the resolution
    for masks in (frame, line, specks, thin):
        with np.errstate(all="raise"), pytest.raises(ObservationError, match="too thin"):
            observe_mask(masks, 1, camera)
    line[100:900, 495:505] = 1
    assert observe_mask(line, 1, camera).area > 100


@pytest.mark.parametrize("lens", ["none", "equidistant"])
def test_a_large_object_is_looked_at_in_a_smaller_crop(lens):
    coefficients = np.zeros(4 if lens == "equidistant" else 0)
    camera = Camera(
        np.array([[900.0, 0, 499.5], [0, 900.0, 499.5], [0, 0, 1]]),
        (1000, 1000),
        lens,
        coefficients,
    )
    y, x = np.mgrid[:1000, :1000] - 499.5
    masks = (np.hypot(x, y) < 300.0).astype(np.uint8)
    seen = observe_mask(masks, 1, camera)
    crop = seen.crop
    assert crop.size == SCALE_SIZES[-1] and crop.scale < 0.5
    # a fisheye's picture of a disc is wider in the plane
    radius = 300.0 if lens == "none" else 900.0 * np.tan(300.0 / 900.0)
    assert seen.area == pytest.approx(np.pi * (radius * crop.scale) ** 2, rel=0.01)


def test_the_outline_of_the_truth_lies_on_the_border_of_its_mask():
    mesh, truth = box(), pose((0.5, 0.7, 0.2), (0.02, 0.01, 0.55))
    masks = silhouette(mesh, truth, CAMERA)
    seen = observe_mask(masks, 1, CAMERA)
    fx, fy, cx, cy = seen.crop.pinhole
    drawn = silhouette(mesh, truth, Camera(
        np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), seen.distances[-1].shape
    ))  # fmt: skip
    np.testing.assert_array_equal(drawn, seen.mask)


# --- images and cameras -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image, error, words",
    [
        (np.zeros((256, 257, 3), np.uint8), CameraError, "257"),
        (np.zeros((256, 256), np.uint8), ObservationError, "RGB"),
        (np.full((256, 256, 3), np.nan, np.float32), ObservationError, "NaN"),
    ],
    ids=["size", "grey", "nan"],
)
def test_photos_that_are_none_are_named(image, error, words):
    with pytest.raises(error, match=words):
        observe_image(image, CAMERA, (1.0, 1.0, 1.0))


def test_a_mask_without_a_photo_has_no_colours():
    seen = observe_mask(rectangle(256, 100, 110, 160, 150), 1, CAMERA)
    assert seen.colours is None
    with pytest.raises(CameraError, match="no image"):
        seen.with_image(None)
    with pytest.raises(CameraError, match="20x10"):
        seen.with_image(np.zeros((10, 20, 3), np.uint8))


def test_an_image_is_cut_where_the_mask_is():
    masks = rectangle(256, 100, 110, 160, 150)
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)
    seen = observe_mask(masks, 1, CAMERA).with_image(image)
    x0, y0 = seen.crop.origin
    assert seen.rgb.shape == (*seen.mask.shape, 3) and seen.rgb.dtype == np.uint8
    np.testing.assert_array_equal(seen.rgb[130 - y0, 120 - x0], [120, 130, 7])
    inside = seen.mask == 1
    np.testing.assert_allclose(seen.colours.colour[inside], seen.rgb[inside] / 255.0, atol=1e-6)
    assert not seen.colours.colour[~inside].any()  # black beyond the mask
    np.testing.assert_array_equal(seen.colours.opacity, seen.mask)
    assert seen.with_image(255 - image) is seen  # it has one already


def test_colours_of_what_may_be_hidden_say_nothing():
    masks = rectangle(256, 100, 110, 160, 150)
    masks[:, 150:170] *= 0
    masks[100:160, 150:170] = 2
    seen = observe_mask(masks, 1, CAMERA).with_image(np.full((256, 256, 3), 90, np.uint8))
    np.testing.assert_array_equal(seen.colours.weight, 1 - seen.unknown)
    assert (seen.colours.weight == 0).any()


def test_the_window_is_where_the_camera_is():
    """crop_from_reference takes a point of the reference to the pixel where the camera sees it."""
    rng = np.random.default_rng(0)
    reference_from_camera = rigid(random_rotation(rng), rng.normal(size=3))
    masks = rectangle(256, 100, 110, 160, 150)
    for lens in ("none", "equidistant"):
        camera = Camera(CAMERA.intrinsics, CAMERA.size, lens, np.zeros(4 if lens != "none" else 0))
        for where in (None, reference_from_camera):
            seen = observe_mask(masks, 1, camera, reference_from_camera=where)
            place = np.eye(4) if where is None else where
            in_camera = np.array([0.02, -0.01, 0.9])
            point = place[:3, :3] @ in_camera + place[:3, 3]
            in_crop = seen.crop_from_reference[:3, :3] @ point + seen.crop_from_reference[:3, 3]
            np.testing.assert_allclose(in_crop, seen.crop_from_camera @ in_camera, atol=1e-12)
            np.testing.assert_allclose(seen.eye, place[:3, 3])
    image = observe_image(
        np.zeros((256, 256, 3)), CAMERA, reference_from_camera=reference_from_camera
    )
    np.testing.assert_allclose(
        image.crop_from_reference @ reference_from_camera, np.eye(4), atol=1e-12
    )
    np.testing.assert_array_equal(image.eye, reference_from_camera[:3, 3])
    assert image.distances == () and image.colours.size == (256, 256)
