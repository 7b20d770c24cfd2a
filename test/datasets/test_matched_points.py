# SPDX-License-Identifier: Apache-2.0
"""What photos have in common tells how far things are, and whether poses are right."""

import cv2
import numpy as np
import pytest

from pose_refiner_ros.datasets.posed_images.matched_points import matched_points
from pose_refiner_ros.datasets.posed_images.views import PosedImages

SIZE = 240, 320
K = np.array([[300.0, 0.0, 159.5], [0.0, 300.0, 119.5], [0.0, 0.0, 1.0]])
DISTANCE = 2.0  # metres of a painted wall, z = 0


def wall(seed: int = 0) -> np.ndarray:
    """(600, 600, 3): spots of many sizes."""
    rng = np.random.default_rng(seed)
    image = np.full((600, 600, 3), 128, np.uint8)
    for _ in range(1500):
        centre = tuple(int(c) for c in rng.integers(0, 600, 2))
        cv2.circle(image, centre, int(rng.integers(2, 12)), rng.integers(0, 255, 3).tolist(), -1)
    return image


def photos_of_a_wall(painted: np.ndarray, count: int = 5) -> PosedImages:
    """From places beside each other, and a little turned; the wall is 4 m wide."""
    images, poses = [], []
    metres_from_pixel = np.array([[4.0 / 600, 0, -2.0], [0, 4.0 / 600, -2.0], [0, 0, 1.0]])
    for i in range(count):
        rotation, _ = cv2.Rodrigues(np.array([0.0, 0.05 * (i - count // 2), 0.02 * i]))
        pose = np.eye(4)
        pose[:3, :3] = rotation
        pose[:3, 3] = rotation @ [-0.15 * (i - count // 2), 0.03 * i, DISTANCE]
        on_wall = K @ pose[:3][:, [0, 1, 3]] @ metres_from_pixel
        images.append(cv2.warpPerspective(painted, on_wall, SIZE[::-1]))
        poses.append(pose)
    names = [f"{i}.png" for i in range(count)]
    bounds = np.array([[-2.0, -2.0, -1.0], [2.0, 2.0, 1.0]])
    intrinsics = np.tile(K, (count, 1, 1))
    return PosedImages(names, np.stack(images), None, intrinsics, np.stack(poses), bounds)


def test_how_far_a_wall_is():
    found = matched_points(photos_of_a_wall(wall()))
    assert found.matches > 300 and found.agreeing > 0.9 * found.matches
    near, far = found.near_far.T
    assert np.all((near > 0.7 * DISTANCE) & (near < DISTANCE))
    assert np.all((far > DISTANCE) & (far < 1.6 * DISTANCE))


def test_poses_of_other_photos_do_not_agree():
    posed = photos_of_a_wall(wall())
    posed.camera_from_object = posed.camera_from_object[[2, 4, 0, 3, 1]]
    found = matched_points(posed)
    assert found.agreeing < 0.5 * found.matches


@pytest.mark.parametrize("painted", [np.full((600, 600, 3), 200, np.uint8)], ids=["plain"])
def test_what_is_plain_tells_nothing(painted):
    found = matched_points(photos_of_a_wall(painted))
    assert found.agreeing == 0 and found.near_far is None
