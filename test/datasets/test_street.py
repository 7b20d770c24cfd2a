# SPDX-License-Identifier: Apache-2.0
"""The simulated drive: masks and poses agree, and it has what a demo needs."""

import numpy as np
import pytest

from pose_refiner_ros.datasets.street import Street
from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.rendering.scene import render_scene

CAMERA = Camera(np.array([[225.0, 0, 159.5], [0, 225, 119.5], [0, 0, 1]]), (240, 320))


@pytest.fixture(scope="module")
def street():
    return Street(CAMERA, seconds=20.0, min_mask_pixels=300, mask_noise=0.0, samples=1)


def test_masks_are_what_the_poses_say(street):
    for time in (1.0, 7.3, 15.0):
        frame = street.frame(time)
        assert frame.camera_from_objects
        assert set(np.unique(frame.masks)) - {0} == set(frame.camera_from_objects)
        for label, pose in frame.camera_from_objects.items():
            mesh = make_vehicle(VEHICLES[street.kinds[label]]).mesh
            alone = render_scene([mesh], pose[None], CAMERA).labels > 0
            inside = frame.masks == label
            assert not (inside & ~alone).any()
            # what is missing is hidden by something nearer
            assert np.all(frame.labels[alone & ~inside] != label)


def test_the_drive_has_occlusion_truncation_and_every_kind(street):
    kinds, hidden, truncated = set(), 0, 0
    for time in np.arange(0.0, 20.0, 1.0):
        frame = street.frame(time)
        for label, pose in frame.camera_from_objects.items():
            kinds.add(street.kinds[label])
            mesh = make_vehicle(VEHICLES[street.kinds[label]]).mesh
            alone = render_scene([mesh], pose[None], CAMERA).labels > 0
            hidden += (frame.masks == label).sum() < 0.95 * alone.sum()
            truncated += alone[:, [0, -1]].any()
    assert kinds == set(VEHICLES)
    assert hidden >= 3 and truncated >= 3


def test_frames_are_the_same_every_time(street):
    again = Street(CAMERA, seconds=20.0, min_mask_pixels=300, mask_noise=0.0, samples=1)
    assert np.array_equal(street.frame(3.0).rgb, again.frame(3.0).rgb)


def test_mask_noise_moves_edges_by_its_size():
    exact = Street(CAMERA, seconds=5.0, mask_noise=0.0, samples=1, min_mask_pixels=300).frame(2.0)
    noisy = Street(CAMERA, seconds=5.0, mask_noise=1.0, samples=1, min_mask_pixels=300).frame(2.0)
    changed = noisy.masks != exact.masks
    edge = np.zeros_like(changed)
    for axis in (0, 1):
        edge |= np.diff(exact.masks, axis=axis, prepend=0) != 0
    assert 0.2 * edge.sum() < changed.sum() < 3 * edge.sum()
    # a frame has its own noise
    assert set(noisy.camera_from_objects) == set(exact.camera_from_objects)


def test_the_moving_vehicle_comes_towards_us(street):
    moving = [v for v in street.vehicles if v.speed]
    assert moving
    first, later = (moving[0].world_from_object(t)[0, 3] for t in (0.0, 2.0))
    assert first - later == pytest.approx(12.0)
