# SPDX-License-Identifier: Apache-2.0
"""The codebook where pictures are stretched: far off the optical axis, or with oblong pixels."""

import numpy as np
import pytest

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

SIZE = (480, 640)


@pytest.fixture(scope="module")
def pipeline():
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    return Pipeline({"sedan": ObjectModel("sedan", mesh)}, device="cpu")


@pytest.mark.parametrize(
    ("fx", "fy", "cx"),
    [(500, 500, -300), (500, 500, -500), (500, 250, 319.5), (500, 1000, 319.5)],
)
def test_the_right_pose_without_a_start(pipeline, fx, fy, cx):
    camera = Camera(np.array([[fx, 0, cx], [0, fy, 239.5], [0, 0, 1.0]]), SIZE)
    mesh = pipeline.library["sedan"].mesh
    right = 0
    azimuths = np.linspace(0.3, 6.0, 6)
    for azimuth in azimuths:
        direction = np.array([np.cos(azimuth) * 0.95, np.sin(azimuth) * 0.95, 0.3])
        truth = np.eye(4)
        truth[:3, :3] = look_at(direction[None] / np.linalg.norm(direction))[0]
        middle = np.array([10.0 * (319.5 - cx) / fx, 0.0, 10.0])
        truth[:3, 3] = middle - truth[:3, :3] @ mesh.bounds.mean(axis=0)
        pinhole = np.array([fx, fy, cx, 239.5])
        masks = draw(MeshBatch([mesh]), [0], truth[None], pinhole, SIZE[1])[0, : SIZE[0]]
        (found,) = pipeline.process(Frame(np.ascontiguousarray(masks), camera, {1: "sedan"}))
        cosine = (np.trace(found.camera_from_object[:3, :3].T @ truth[:3, :3]) - 1) / 2
        right += np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 5
    assert right == len(azimuths)


@pytest.mark.parametrize("holes", ["every ninth pixel", "every fourth row", "a fifth at random"])
def test_a_perforated_mask_fits_no_better_than_perfectly(pipeline, holes):
    camera = Camera(np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]]), SIZE)
    truth = np.eye(4)
    truth[:3, :3] = look_at(np.array([[0.6, 0.7, 0.38]]))[0]
    truth[2, 3] = 9.0
    mesh = pipeline.library["sedan"].mesh
    pinhole = np.array([500.0, 500.0, 319.5, 239.5])
    masks = draw(MeshBatch([mesh]), [0], truth[None], pinhole, SIZE[1])[0, : SIZE[0]].copy()
    if holes == "every ninth pixel":
        masks[::3, ::3] = 0
    elif holes == "every fourth row":
        masks[::4] = 0
    else:
        masks[np.random.default_rng(0).random(masks.shape) < 0.2] = 0
    (found,) = pipeline.process(Frame(masks, camera, {1: "sedan"}, {1: [truth]}))
    assert 0.0 <= found.iou <= 1.0
    assert 0.0 <= found.score <= 1.0
    assert found.cost >= 0.0
