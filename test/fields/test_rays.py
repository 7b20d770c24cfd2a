# SPDX-License-Identifier: Apache-2.0
"""Rays go through their pixels and cross boxes where they do."""

import numpy as np
import torch
from analytic_field import pinhole, view_from

from pose_refiner_ros.fields.rays import camera_rays, cross_box, image_pixels


def test_rays_go_through_their_pixels():
    K, pose = pinhole(20), view_from((1.0, 0.4, 0.3))
    pixels = torch.tensor([[0.0, 0.0], [19.0, 3.0], [7.25, 11.5]])
    origins, directions = camera_rays(K, pose, pixels)

    assert torch.allclose(directions.norm(dim=1), torch.ones(3, dtype=torch.float64))
    points = (origins + 1.7 * directions).numpy() @ pose[:3, :3].T + pose[:3, 3]
    seen = points @ K.T
    assert np.allclose(seen[:, :2] / seen[:, 2:], pixels, atol=1e-9)
    assert np.allclose(origins.numpy() @ pose[:3, :3].T + pose[:3, 3], 0.0, atol=1e-12)


def test_cameras_and_poses_broadcast():
    poses = np.stack([view_from((1, 0, 0)), view_from((0, 1, 0.2), distance=3.0)])
    K = np.stack([pinhole(20), pinhole(10)])
    pixels = torch.rand(2, 5, 2) * 10
    origins, directions = camera_rays(K, poses, pixels)
    for i in range(2):
        alone = camera_rays(K[i], poses[i], pixels[i])
        assert torch.allclose(origins[i], alone[0]) and torch.allclose(directions[i], alone[1])


def test_pixels_are_x_and_y_row_by_row():
    assert image_pixels((2, 3)).tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


def test_a_box_is_crossed_where_it_lies():
    box = torch.tensor([[-1.0, -2.0, -1.0], [1.0, 2.0, 3.0]])
    origins = torch.tensor([[0.0, 0.0, -5.0], [0.0, 0.0, 0.0], [0.0, 5.0, -5.0], [0.0, 0.0, 9.0]])
    directions = torch.tensor([[0.0, 0.0, 1.0]] * 4)
    near, far = cross_box(origins, directions, box)
    assert near[:2].tolist() == [4.0, 0.0] and far[:2].tolist() == [8.0, 3.0]
    assert (near[2:] == far[2:]).all()  # beside the box; behind the camera
