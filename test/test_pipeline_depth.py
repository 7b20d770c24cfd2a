# SPDX-License-Identifier: Apache-2.0
"""Depth images and scans in the pipeline: what they better, and what is told of bad ones."""

import re

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from shapes import box, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.pose import rotation_angle
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.surface import ranges_to_surface
from pose_refiner_ros.pipeline import Pipeline, Settings
from pose_refiner_ros.refinement.depth_points import points_of_depth, points_of_scan

CAMERA = pinhole_camera(320, 400.0)
ELL, BOX = model("ell", ell()), model("box", box())
LIBRARY = {"ell": ELL, "box": BOX}
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))
START = turned(TRUTH, (0.2, -0.1, 0.15), (0.01, -0.01, 0.05))
WALL = 0.9  # metres


def depth_of(thing=ELL, truth=TRUTH, noise=0.001, seed=0, camera=CAMERA) -> np.ndarray:
    """(H, W) float32 metres, a wall behind the object."""
    rows, columns = np.mgrid[: camera.height, : camera.width]
    rays = camera.rays(np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(float))
    ranges = ranges_to_surface(thing, truth[None], rays)[0]
    z = np.where(np.isfinite(ranges), ranges * rays[:, 2], WALL).reshape(camera.size)
    return (z + np.random.default_rng(seed).normal(0.0, noise, z.shape)).astype(np.float32)


def rough(mask: np.ndarray) -> np.ndarray:
    """With one half grown by 3 pixels."""
    grown = cv2.dilate(mask, np.ones((7, 7), np.uint8))
    return np.where(np.arange(mask.shape[1])[None] > 165, grown, mask).astype(np.uint8)


MASK = silhouette(ELL.mesh, TRUTH, CAMERA)


def answer(settings=None, start=START, masks=MASK, **measured):
    """The pose and what was told."""
    told = []
    pipeline = Pipeline(LIBRARY, settings, device="cpu")
    frame = Frame(masks, CAMERA, {1: "ell"}, {1: [start]} if start is not None else {}, **measured)
    found = pipeline.process(frame, lambda label, text: told.append(text))
    return found[0], told


def off(found) -> float:
    """Metres."""
    return float(np.linalg.norm(found.camera_from_object[:3, 3] - TRUTH[:3, 3]))


@pytest.mark.parametrize("start", [START, None], ids=["start", "search"])
def test_depth_betters_what_a_rough_mask_says(start):
    plain, _ = answer(start=start, masks=rough(MASK))
    found, told = answer(start=start, masks=rough(MASK), depth=depth_of())
    assert not told and found.depth_agrees > 0.8 and plain.depth_agrees is None
    assert off(found) < 0.8 * off(plain)


@pytest.mark.parametrize(
    "depth, scale",
    [
        (depth_of(), 1.0),
        (depth_of().astype(np.float64), 1.0),
        ((1e3 * depth_of()).round().astype(np.uint16), 0.001),
        ((1e4 * depth_of()).round().astype(np.uint16), 0.0001),
    ],
    ids=["float", "double", "millimetres", "tenths"],
)
def test_all_kinds_of_numbers(depth, scale):
    found, told = answer(depth=depth, depth_scale=scale)
    assert found.depth_agrees > 0.9 and not told


def test_sparse_points_are_depths_as_well():
    rays = depth_of()[::12, ::7]
    rows, columns = np.mgrid[:320:12, :320:7]
    directions = CAMERA.rays(np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(float))
    scan = directions * (rays.reshape(-1) / directions[:, 2])[:, None]
    scan = np.concatenate([scan, [[np.nan, 0, 1], [0, 0, -5]]])
    found, told = answer(scan=scan)
    assert found.depth_agrees > 0.9 and not told and off(found) < 0.004


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"depth": depth_of()[:160]}, r"320x160 and the camera 320x320 .* register it"),
        ({"depth": np.zeros((320, 320, 3), np.float32)}, r"shape \(320, 320, 3\)"),
        (
            {"depth": np.full((320, 320), np.nan, np.float32)},
            "none of the depths lies within a mask",
        ),
        ({"depth": np.zeros((320, 320), np.uint16)}, "none of the depths lies within a mask"),
        ({"depth": 1e3 * depth_of()}, r" 1000 times .*\(millimetres and metres"),
        ({"depth": 25.4 * depth_of()}, r"25 times .*\(inches"),
        ({"depth": np.full((320, 320), WALL, np.float32)}, "is it glass"),
        ({"scan": np.zeros((5, 4))}, r"points not used: they have shape \(5, 4\)"),
    ],
    ids=["size", "channels", "nan", "zero", "millimetres", "inches", "glass", "points"],
)
def test_bad_depth_is_told_and_harms_nothing(wrong, words):
    plain, _ = answer()
    found, told = answer(**wrong)
    assert len(told) == 1 and re.search(words, told[0]), told
    assert off(found) < max(1.5 * off(plain), 0.002)
    assert found.quality == plain.quality


def test_depth_can_be_switched_off():
    found, told = answer(Settings(depth="never"), depth=1e3 * depth_of())
    assert found.depth_agrees is None and not told


def test_depth_decides_between_two_distances_of_a_scaled_twin():
    """The unit of the mesh is wrong by 2.54: the mask alone cannot know."""
    small = model("ell", type(ELL.mesh)(ELL.mesh.vertices / 25.4, ELL.mesh.faces))
    told = []
    frame = Frame(MASK, CAMERA, {1: "ell"}, depth=depth_of())
    Pipeline({"ell": small}, device="cpu").process(frame, lambda label, text: told.append(text))
    assert len(told) == 1 and "25 times" in told[0] and "mesh" in told[0]


def test_a_long_object_from_near_does_not_flip():
    """From 1.5 diameters the size of its view tells another distance than its middle's."""
    camera = pinhole_camera(320, 250.0)
    long = model("ell", Mesh(ELL.mesh.vertices * np.float32([3, 1, 1]), ELL.mesh.faces))
    truth = pose(Rotation.random(random_state=46).as_rotvec(), (0, 0, 1.5 * long.diameter))
    truth[:3, 3] -= truth[:3, :3] @ long.box_center
    frame = Frame(
        silhouette(long.mesh, truth, camera),
        camera,
        {1: "ell"},
        depth=depth_of(long, truth, noise=0.0, camera=camera),
    )
    (found,) = Pipeline({"ell": long}, device="cpu").process(frame)
    turned_by = rotation_angle(truth[:3, :3].T @ found.camera_from_object[:3, :3])
    assert turned_by < np.radians(1.0)


def test_points_keep_away_from_borders_and_steps():
    depth = depth_of(noise=0.0)
    points, _ = points_of_depth(depth, MASK, 1, CAMERA)
    assert 30 < len(points) <= 256 and points.dtype == np.float32
    pixels = CAMERA.project(points[:, :3].astype(float))
    inner = cv2.erode(MASK, np.ones((3, 3), np.uint8))
    x, y = pixels.round().astype(int).T
    assert inner[y, x].all()
    np.testing.assert_allclose(points[:, 2], depth[y, x], atol=1e-4)
    holed = depth.copy()
    holed[::2] = 0.0
    assert 8 <= len(points_of_depth(holed, MASK, 1, CAMERA)[0]) <= 256


def test_points_of_a_scan_are_those_in_the_mask():
    scan = np.array([[0.02, -0.01, 0.6], [0.3, 0.0, 0.6], [0.02, -0.01, 3.0], [0.0, 9.0, 0.1]])
    points = points_of_scan(scan, MASK, 1, CAMERA)
    assert len(points) == 2 and (points[:, 3] > 0.0).all()
