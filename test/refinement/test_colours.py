# SPDX-License-Identifier: Apache-2.0
"""Colours of a window or a whole image, and the rays that are compared."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from shapes import pinhole_camera

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.refinement.colours import TILES, chosen_rays, image_colours, lattice_rays
from pose_refiner_ros.refinement.observation import observe_mask

SIZE = 160
CAMERA = pinhole_camera(SIZE, 256.0)
WHITE = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def noisy_disc():
    """Colours of a disc of noise in front of other noise."""
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    mask = (np.hypot(x, y) < 45.0).astype(np.uint8)
    return observe_mask(mask, 1, CAMERA).with_image(image).colours


def test_no_ray_goes_to_the_border_of_a_mask(noisy_disc):
    """Pixels there show partly what is behind the object."""
    seen = noisy_disc.cropped()
    inside = seen.opacity > 0.5
    for sampling in ("random", "interest_region"):
        x, y = seen.draw(sampling, 500, np.random.default_rng(0)).T
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            beside = inside[
                (y + dy).clip(0, inside.shape[0] - 1), (x + dx).clip(0, inside.shape[1] - 1)
            ]
            assert (beside == inside[y, x]).all()
    sliver = replace(seen, mixed=np.ones(seen.size, bool))
    assert sliver.draw("random", 5, np.random.default_rng(0)).shape == (5, 2)


def picture() -> np.ndarray:
    """A dark rectangle off the middle, in front of white."""
    image = np.full((SIZE, SIZE, 3), 255, np.uint8)
    image[70:100, 30:80] = (40, 90, 160)
    return image


def test_what_differs_from_the_background_is_cut_out():
    colours = image_colours(picture(), CAMERA, WHITE)
    x0, y0, x1, y1 = colours.box
    assert x0 <= 30 - 10 and y0 <= 70 - 10 and x1 >= 80 + 10 and y1 >= 100 + 10
    assert (x1 - x0) * (y1 - y0) < 0.35 * SIZE**2
    part = colours.cropped()
    np.testing.assert_array_equal(part.colour, colours.colour[y0:y1, x0:x1])
    np.testing.assert_allclose(part.pinhole - colours.pinhole, [0, 0, -x0, -y0])
    empty = image_colours(np.full((SIZE, SIZE, 3), 255, np.uint8), CAMERA, WHITE)
    assert empty.box == (0, 0, SIZE, SIZE)
    scene = image_colours(picture(), CAMERA)  # all of it is a scene's
    assert scene.box == (0, 0, SIZE, SIZE) and (scene.opacity == 1.0).all()


def test_rays_go_through_their_pixels():
    colours = image_colours(picture(), CAMERA, WHITE).cropped()
    pixels = np.array([[3, 4], [30, 20], [colours.size[1] - 1, colours.size[0] - 1]])
    rays = chosen_rays(colours, pixels)
    fx, fy, cx, cy = colours.pinhole
    d = rays.directions.numpy()
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), 1.0, atol=1e-6)
    seen_at = np.stack([fx * d[:, 0] / d[:, 2] + cx, fy * d[:, 1] / d[:, 2] + cy], axis=1)
    np.testing.assert_allclose(seen_at, pixels, atol=1e-3)
    x, y = pixels.T
    np.testing.assert_allclose(rays.observed.numpy()[:, :3], colours.colour[y, x], atol=1e-6)
    assert (rays.weight.numpy() == 1.0).all()
    assert rays.tile.numpy().min() >= 0 and rays.tile.numpy().max() == TILES**2 - 1


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_a_lattice_shows_the_blurred_picture_evenly(sigma):
    colours = image_colours(picture(), CAMERA, WHITE)
    rays = lattice_rays(colours, 400, sigma)
    rows, columns = rays.rows, rays.columns
    assert 300 < rows * columns == len(rays.directions.numpy()) < 500
    assert rays.spacing == pytest.approx(SIZE / 20)
    blurred = colours.colour
    if sigma:
        blurred = cv2.GaussianBlur(
            blurred, (0, 0), sigma * rays.spacing, borderType=cv2.BORDER_REPLICATE
        )
    at = (rays.directions.numpy()[:, :2] / rays.directions.numpy()[:, 2:]) * colours.pinhole[:2]
    x, y = (at + colours.pinhole[2:]).astype(np.float32).T
    expected = cv2.remap(blurred, x[:, None], y[:, None], cv2.INTER_LINEAR)[:, 0]
    assert np.abs(rays.observed.numpy()[:, :3] - expected).max() < 0.02
    assert (rays.observed.numpy()[:, 3] == 1.0).all()


def test_broken_pixels_have_no_weight_and_colour_nothing():
    image = picture().astype(np.float32) / 255.0
    image[80:90, 40:50] = np.nan
    colours = image_colours(image, CAMERA, WHITE)
    assert np.isfinite(colours.colour).all()
    assert (colours.weight[80:90, 40:50] == 0).all() and colours.weight.sum() == SIZE**2 - 100
    other = image.copy()
    other[80:90, 40:50] = np.inf
    for sigma in (0.0, 1.5):
        found = [
            lattice_rays(image_colours(one, CAMERA, WHITE), 900, sigma) for one in (image, other)
        ]
        np.testing.assert_allclose(found[0].observed.numpy(), found[1].observed.numpy())
        assert np.isfinite(found[0].observed.numpy()).all()
        assert (found[0].weight.numpy() == 0).any() == (sigma == 0.0)  # the blur closes small gaps
    drawn = colours.draw("random", 3000, np.random.default_rng(0))
    assert (colours.weight[drawn[:, 1], drawn[:, 0]] > 0).all()


def test_a_distorted_photo_becomes_a_pinhole_cameras():
    lens = Camera(CAMERA.intrinsics, CAMERA.size, "plumb_bob", np.array([-0.2, 0.05, 0, 0, 0]))
    straight = image_colours(picture(), CAMERA, WHITE)
    y, x = np.mgrid[:SIZE, :SIZE]
    rays = lens.rays(np.stack([x, y], axis=-1).astype(float))
    at = CAMERA.project(rays).astype(np.float32)
    bent = cv2.remap(picture(), at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderValue=(255,) * 3)
    found = image_colours(bent, lens, WHITE)
    known = found.weight > 0
    assert known.mean() > 0.9
    assert np.abs(found.colour - straight.colour)[known].mean() < 0.005
