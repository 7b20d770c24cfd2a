# SPDX-License-Identifier: Apache-2.0
"""A camera in a scene, from its photos alone."""

import numpy as np
import pytest
from painted import features_of, painted_room, photo, tiled
from scipy.spatial.transform import Rotation
from shapes import angle_deg, random_turn, shift_between, turned

from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.refinement.observation import ObservationError
from pose_refiner_ros.refinement.search import WRONG_COLOURS
from pose_refiner_ros.scene_localiser import (
    LocalisationError,
    SceneLocaliser,
    SceneTracker,
    _about_camera,
)
from pose_refiner_ros.settings import Settings

CAMERA = Camera(np.array([[110.0, 0, 79.5], [0, 110.0, 59.5], [0, 0, 1]]), (120, 160))
ROOM = painted_room()


def stand(x=0.3, y=-0.2, z=0.1, heading=0.4) -> np.ndarray:
    """scene_from_camera, optical axes, of a camera that looks level."""
    pose = np.eye(4)
    forward = np.array([np.cos(heading), np.sin(heading), 0.0])
    down = np.array([0.0, 0.0, -1.0])
    pose[:3, :3] = np.stack([np.cross(down, forward), down, forward], axis=1)
    pose[:3, 3] = (x, y, z)
    return pose


def seen_from(scene_from_camera: np.ndarray) -> np.ndarray:
    return photo(ROOM, np.linalg.inv(scene_from_camera), CAMERA)[0]


@pytest.fixture(scope="module")
def localiser():
    return SceneLocaliser(ROOM, Settings(photo_rays=512))


@pytest.mark.parametrize("seed", range(4))
def test_camera_is_found_from_nearby(localiser, seed):
    rng = np.random.default_rng(seed)
    truth = stand(*rng.uniform(-0.4, 0.4, 3), rng.uniform(-3, 3))
    start = turned(truth, random_turn(rng, np.radians(20.0)), 0.15 * rng.uniform(-1, 1, 3))
    found = localiser.locate(seen_from(truth), CAMERA, [start])
    assert found.lost == "" and found.photo_rms < 0.05
    assert angle_deg(found.scene_from_camera, truth) < 0.5
    assert shift_between(found.scene_from_camera, truth) < 0.02
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()


def test_far_off_is_lost_and_said_to_be(localiser):
    truth = stand()
    found = localiser.locate(seen_from(truth), CAMERA, [stand(heading=0.4 + np.pi)])
    assert "colours are off by" in found.lost and found.photo_rms > 0.1


def test_photo_that_shows_nothing_of_the_scene(localiser):
    found = localiser.locate(seen_from(stand()), CAMERA, [stand(x=60.0)])
    assert "of its photo only" in found.lost


def test_tracker_follows_and_finds_again(localiser):
    first = stand(heading=0.1)
    tracker = SceneTracker(localiser, first)
    path = [stand(0.02 * i, 0.01 * i, 0.0, 0.03 * i) for i in range(5)]
    for truth in path:
        found = tracker.follow(seen_from(truth), CAMERA)
        assert not found.lost
        assert shift_between(found.scene_from_camera, truth) < 0.02
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    assert tracker.follow(noise, CAMERA).lost
    found = tracker.follow(seen_from(path[-1]), CAMERA)
    assert not found.lost and shift_between(found.scene_from_camera, path[-1]) < 0.02
    elsewhere = stand(-0.5, 0.4, 0.0, 2.6)
    assert tracker.follow(seen_from(elsewhere), CAMERA).lost
    tracker.begin_at(stand(-0.45, 0.35, 0.0, 2.5))
    found = tracker.follow(seen_from(elsewhere), CAMERA)
    assert not found.lost and shift_between(found.scene_from_camera, elsewhere) < 0.02


def test_tracker_that_is_told_nonsense_finds_it_where_it_was(localiser):
    tracker = SceneTracker(localiser)
    assert not follow_from(tracker, stand(), stand(heading=0.45)).lost
    found = follow_from(tracker, stand(heading=0.4 + np.pi), stand())
    assert not found.lost and shift_between(found.scene_from_camera, stand()) < 0.02
    alone = follow_from(SceneTracker(localiser), stand(heading=0.4 + np.pi), stand())
    assert "colours are off by" in alone.lost


def follow_from(tracker, told, truth):
    tracker.begin_at(told)
    return tracker.follow(seen_from(truth), CAMERA)


@pytest.fixture(scope="module")
def with_features():
    """Of a room with tiles, whose photos were taken in twelve directions."""
    room = tiled(painted_room())
    views = [stand(0.4 * np.cos(a), 0.4 * np.sin(a), 0.0, a) for a in np.arange(0, 6.2, 0.52)]
    room.features = features_of(room, CAMERA, np.linalg.inv(views))
    return SceneLocaliser(room, Settings(photo_rays=512))


def test_features_find_the_camera_without_a_start(with_features):
    truth = stand(0.1, 0.25, 0.05, 2.3)
    image, _ = photo(with_features.field, np.linalg.inv(truth), CAMERA)
    for starts in ([], [stand(heading=2.3 + np.pi)]):
        found = with_features.locate(image, CAMERA, starts)
        assert not found.lost
        assert angle_deg(found.scene_from_camera, truth) < 0.5
        assert shift_between(found.scene_from_camera, truth) < 0.02
    tracker = SceneTracker(with_features)
    assert not tracker.follow(image, CAMERA).lost
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    assert tracker.follow(noise, CAMERA).lost
    with pytest.raises(LocalisationError, match="too few features of the photo"):
        with_features.locate(noise, CAMERA)


def test_features_that_are_not_wanted_or_not_there(localiser, with_features):
    image = seen_from(stand())
    with pytest.raises(LocalisationError, match=r"no start pose.*train it anew"):
        localiser.locate(image, CAMERA)
    without = SceneLocaliser(with_features.field, Settings(init="views"))
    with pytest.raises(LocalisationError, match=r"no start pose.*init is 'views'"):
        without.locate(image, CAMERA)


def test_other_light(localiser):
    truth = stand()
    dark = np.rint(0.6 * seen_from(truth)).astype(np.uint8)
    found = localiser.locate(dark, CAMERA, [turned(truth, (0.05, 0.1, 0.0))])
    assert not found.lost and angle_deg(found.scene_from_camera, truth) < 0.5
    strict = SceneLocaliser(ROOM, Settings(photo_rays=512, exposure=False))
    found = strict.locate(dark, CAMERA, [truth])
    assert found.photo_rms > WRONG_COLOURS and "correlation" in found.lost


def test_covariance_is_that_of_the_camera_in_the_scene():
    rng = np.random.default_rng(1)
    camera_from_scene = np.linalg.inv(stand(0.5, -1.0, 2.0, 1.1))
    root = 1e-3 * rng.normal(size=(6, 6))
    twists = rng.normal(size=(20000, 6)) @ root.T
    moved = np.tile(camera_from_scene, (len(twists), 1, 1))
    moved[:, :3, :3] = Rotation.from_rotvec(twists[:, 3:]).as_matrix() @ moved[:, :3, :3]
    moved[:, :3, 3] += twists[:, :3]
    inverse, truth = np.linalg.inv(moved), np.linalg.inv(camera_from_scene)
    turns = Rotation.from_matrix(inverse[:, :3, :3] @ truth[:3, :3].T).as_rotvec()
    samples = np.column_stack([inverse[:, :3, 3] - truth[:3, 3], turns])
    expected = np.cov(samples.T)
    found = _about_camera(camera_from_scene, root @ root.T)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_bad_input(localiser):
    image = seen_from(stand())
    with pytest.raises(LocalisationError, match="no start pose"):
        localiser.locate(image, CAMERA, [])
    with pytest.raises(LocalisationError, match="not a rotation"):
        localiser.locate(image, CAMERA, [2.0 * np.eye(4)])
    with pytest.raises(LocalisationError, match="NaN or infinity"):
        SceneTracker(localiser, np.full((4, 4), np.nan))
    with pytest.raises(LocalisationError, match="no start pose"):
        SceneTracker(localiser).follow(image, CAMERA)
    with pytest.raises(CameraError, match="10x10"):
        localiser.locate(image[:10, :10], CAMERA, [stand()])
    with pytest.raises(ObservationError, match="NaN"):
        localiser.locate(np.full((120, 160, 3), np.nan), CAMERA, [stand()])
