# SPDX-License-Identifier: Apache-2.0
"""Lengths in photos, and where up is, with sparse models whose truth is known."""

from __future__ import annotations

import cv2
import numpy as np
import posed_scene
import pytest
import sparse_scene

from pose_refiner_ros.datasets.posed_images.hull import box_around_masks
from pose_refiner_ros.datasets.posed_images.transforms import load_frames, read_transforms
from pose_refiner_ros.structure_from_motion import StructureFromMotionError, metric_scale, upright

POINTS = np.random.default_rng(1).uniform(-0.2, 0.2, (200, 3))
ENDS = np.array([(-0.1, 0.0, 0.02), (0.1, 0.05, 0.0)])


def test_a_length_between_clicked_points():
    model = sparse_scene.sparse_model(POINTS)
    clicked = {row: sparse_scene.pixels_of(model, row, ENDS) for row in (0, 1, 2)}
    scale = metric_scale.scale_from_length(model, clicked, 0.42)
    assert scale.metres == pytest.approx(0.42 / np.linalg.norm(ENDS[0] - ENDS[1]), rel=1e-6)
    assert 0.001 < scale.relative_error < 0.1
    clicked = {row: sparse_scene.pixels_of(model, row, ENDS[:: 1 if row else -1]) for row in (0, 1)}
    with pytest.raises(StructureFromMotionError, match="do not belong together"):
        metric_scale.scale_from_length(model, clicked, 0.42)


def test_a_photo_in_which_another_place_was_clicked_is_left_out():
    model = sparse_scene.sparse_model(POINTS)
    clicked = {row: sparse_scene.pixels_of(model, row, ENDS) for row in range(5)}
    clicked[3] = clicked[3] + 25.0
    scale = metric_scale.scale_from_length(model, clicked, 0.42)
    assert scale.metres == pytest.approx(0.42 / np.linalg.norm(ENDS[0] - ENDS[1]), rel=1e-6)


def test_markers_give_scale_up_and_origin(tmp_path):
    """A tag of 0.2 units on the plane z = 0.03, lying flat."""
    model = sparse_scene.sparse_model(POINTS, 12)
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36h11)
    tag = cv2.copyMakeBorder(
        cv2.aruco.generateImageMarker(dictionary, 7, 200), *[40] * 4, cv2.BORDER_CONSTANT, value=255
    )
    from_pixel = np.array([[1e-3, 0, -0.14], [0, -1e-3, 0.14], [0, 0, 0.03], [0, 0, 1]])
    paths = []
    for row, pose in enumerate(model.camera_from_world):
        to_pixel = sparse_scene.CAMERA.intrinsics @ pose[:3] @ from_pixel
        above = -(pose[:3, :3].T @ pose[:3, 3])[2] > 0.1
        picture = np.full((240, 320), 255, np.uint8)
        if above:
            cv2.warpPerspective(tag, to_pixel, (320, 240), picture, cv2.INTER_AREA,
                                cv2.BORDER_TRANSPARENT)  # fmt: skip
        paths.append(tmp_path / f"{row}.png")
        cv2.imwrite(str(paths[-1]), picture)
    (marker,) = metric_scale.find_markers(model, paths)
    assert marker.name == "APRILTAG_36h11 7" and marker.photos >= 3
    scale = metric_scale.scale_from_markers([marker], 0.04)
    assert scale.metres == pytest.approx(0.2, rel=0.02)
    assert "APRILTAG_36h11 7 in" in str(scale) and scale.relative_error < 0.02
    frame, how = upright.upright_from_model(model, [1] * 12, marker.corners, scene=True)
    assert how == "the marker"
    np.testing.assert_allclose(frame[:3, :3], np.eye(3), atol=0.05)
    np.testing.assert_allclose(frame[:3, 3], (0, 0, -0.03), atol=0.01)


def test_no_markers_is_said():
    with pytest.raises(StructureFromMotionError, match="no AprilTag or ArUco marker is seen"):
        metric_scale.scale_from_markers([], 0.04)


def test_the_height_of_what_masks_show(tmp_path):
    folder = posed_scene.write_instant_ngp(
        tmp_path, posed_scene.orbit(20), posed_scene.pinhole((90, 120), 150.0), masks="masks"
    )
    posed = load_frames(read_transforms(folder / "transforms.json")[1])
    assert box_around_masks(posed) is not None
    balls = posed_scene.BALLS
    true = (balls[:, 2] + balls[:, 3]).max() - (balls[:, 2] - balls[:, 3]).min()
    scale = metric_scale.scale_from_height(posed, true)
    assert scale.metres == pytest.approx(1.0, rel=0.06)
    posed.alpha = None
    with pytest.raises(StructureFromMotionError, match="there are no masks"):
        metric_scale.scale_from_height(posed, true)


def test_the_ground_is_found_among_other_points():
    generator = np.random.default_rng(2)
    normal = np.array([0.2, -0.1, 1.0]) / np.linalg.norm([0.2, -0.1, 1.0])
    ground = generator.uniform(-0.5, 0.5, (150, 3))
    ground -= np.outer(ground @ normal + 0.1, normal)
    points = np.concatenate([ground, generator.uniform(-0.3, 0.3, (150, 3))])
    model = sparse_scene.sparse_model(points)
    frame, how = upright.upright_from_model(model, [1] * 8, None, scene=True)
    assert how == "the plane on which most points lie"
    assert np.degrees(np.arccos(frame[2, :3] @ normal)) < 0.5
    assert abs((ground @ frame[:3, :3].T + frame[:3, 3])[:, 2]).max() < 0.01


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_up_is_as_cameras_were_held(turn):
    """However the sensor was turned, if EXIF says so."""
    model = sparse_scene.sparse_model(POINTS)
    quarter = {1: 0, 6: -90, 3: 180, 8: 90}[turn]
    c, s = np.cos(np.radians(quarter)), np.sin(np.radians(quarter))
    model.camera_from_world[:] = (
        np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        @ model.camera_from_world
    )
    up = upright.up_of_cameras(model, [turn] * 8)
    np.testing.assert_allclose(up, (0, 0, 1), atol=1e-6)


def test_moving_a_model_leaves_its_pixels():
    model = sparse_scene.sparse_model(POINTS)
    other = upright.moved(model, posed_scene.orbit(8)[3], 2.5)
    for row in range(8):
        before = sparse_scene.pixels_of(model, row, model.points)
        np.testing.assert_allclose(
            sparse_scene.pixels_of(other, row, other.points), before, atol=1e-6
        )
    length = np.linalg.norm(other.points[0] - other.points[1])
    assert length == pytest.approx(2.5 * np.linalg.norm(POINTS[0] - POINTS[1]))
