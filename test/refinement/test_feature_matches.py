# SPDX-License-Identifier: Apache-2.0
"""Poses without any start, by features of a photo that a field keeps of its own."""

from dataclasses import replace

import numpy as np
import pytest
from painted import features_of, painted_block, photo, tiled
from posed_scene import orbit
from shapes import angle_deg, pinhole_camera, shift_between, turned

from pose_refiner_ros.fields.features import FieldFeatures
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.field_file import load_field, save_field
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.refinement import feature_matches
from pose_refiner_ros.refinement.feature_matches import FeatureMatcher, is_sure

CAMERA = pinhole_camera(200, 300.0)
VIEWS = orbit(16, 0.55)


@pytest.fixture(scope="module")
def block():
    """A cube with tiles, seen in trainings from all around."""
    field = tiled(painted_block(voxel=0.005), side=5)
    field.features = features_of(field, CAMERA, VIEWS)
    return field


@pytest.fixture(scope="module")
def matcher(block):
    return FeatureMatcher(block.features)


@pytest.fixture(scope="module")
def truth():
    """Between the cameras of the training, and rolled."""
    return turned(VIEWS[5], (0.12, -0.15, 0.6), (0.01, -0.02, 0.05))


def test_points_lie_on_the_surface(block):
    features = block.features
    assert len(features.points) > 500 and features.first[-1] == len(features.points)
    assert np.median(abs(abs(features.points).max(axis=1) - 0.1)) < 0.004


def test_pose_is_found_without_a_start(block, matcher, truth):
    image, mask = photo(block, truth, CAMERA)
    found = matcher.poses(image, CAMERA, mask)
    assert is_sure(found)
    assert angle_deg(found[0].camera_from_object, truth) < 3.0
    assert shift_between(found[0].camera_from_object, truth) < 0.02


def test_a_large_photo_through_a_lens(block, matcher, truth, monkeypatch):
    monkeypatch.setattr(feature_matches, "SIDE", 120)
    K = np.array([[600.0, 0, 225.0], [0, 600.0, 165.0], [0, 0, 1]])
    straight = Camera(K, (350, 450))
    lens = Camera(K, straight.size, "plumb_bob", np.array([-0.3, 0.1, 0.0, 0.0, 0.0]))
    image, mask = photo(block, truth, straight)
    v, u = np.mgrid[:350, :450].astype(float)
    x, y = np.moveaxis(lens.undistort(np.stack([u, v], -1)), -1, 0)
    column, row = np.rint(x * 600.0 + 225.0).astype(int), np.rint(y * 600.0 + 165.0).astype(int)
    inside = row.clip(0, 349), column.clip(0, 449)
    (found,) = matcher.poses(image[inside], lens, mask[inside])
    assert angle_deg(found.camera_from_object, truth) < 3.0


def test_what_shows_nothing_of_it_has_no_pose(block, matcher, truth):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    assert matcher.poses(noise, CAMERA) == []
    assert matcher.poses(np.zeros((200, 200, 3), np.uint8), CAMERA) == []
    image, mask = photo(block, truth, CAMERA)
    assert matcher.poses(image, CAMERA, np.zeros_like(mask)) == []
    with pytest.raises(CameraError, match="10x10"):
        matcher.poses(image[:10, :10], CAMERA)


def test_two_poses_that_as_many_features_agree_on_are_both_told():
    """Print that is on two sides of an object: each of its features is found on either."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.1, 0.1, (60, 3))
    other = points + np.array([1.0, 0.0, 0.0])
    there = points + np.array([0.0, 0.0, 0.6])
    rays = there[:, :2] / there[:, 2:]
    number = np.arange(60)
    matches = [(number, number), (number, 60 + number)]
    found = feature_matches._agreeing(matches, np.concatenate([points, other]), rays, 0.005)
    assert [one.features for one in found] == [60, 60] and not is_sure(found)
    assert not is_sure([replace(found[0], features=9)]) and is_sure(found[:1])


def test_features_are_in_the_file(block, tmp_path):
    save_field(block, tmp_path / "field.safetensors")
    again = load_field(tmp_path / "field.safetensors").features
    for name in ("points", "descriptors", "first"):
        np.testing.assert_array_equal(getattr(block.features, name), getattr(again, name))
    block = block.to("cpu").scaled(2.0)
    np.testing.assert_array_equal(block.features.points, 2.0 * again.points)


@pytest.mark.parametrize(
    ("name", "array"),
    [("points", None), ("descriptors", np.zeros((3, 64), np.uint8)), ("first", np.array([0, 2]))],
)
def test_features_that_do_not_belong_together(block, name, array):
    state = block.features.state()
    state[f"features.{name}"] = array
    with pytest.raises(FieldError, match="features"):
        FieldFeatures.taken_from(state)


def test_information_is_that_of_pixels(block, matcher, truth):
    """A pixel off, half the square of that over the usual error, for each feature."""
    image, mask = photo(block, truth, CAMERA)
    (found,) = matcher.poses(image, CAMERA, mask)
    sideways = np.zeros(6)
    sideways[0] = (found.camera_from_object[2, 3] - 0.07) / CAMERA.fx  # a pixel, at its surface
    cost = 0.5 * sideways @ found.information @ sideways
    expected = 0.5 * found.features / feature_matches.SIGMA**2
    assert cost == pytest.approx(expected, rel=0.15)
    assert np.linalg.eigvalsh(found.information).min() > 0.0
    where = np.linalg.inv(VIEWS[0])
    one = found.hypothesis("block", where)
    np.testing.assert_allclose(one.reference_from_object, where @ found.camera_from_object)
    turned = where[:3, :3] @ sideways[:3]
    about = one.prior.information[:3, :3]
    assert 0.5 * turned @ about @ turned == pytest.approx(cost)
