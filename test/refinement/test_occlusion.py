# SPDX-License-Identifier: Apache-2.0
"""Who stands in front: the outline of the front one is its own, that of the other is unknown."""

import numpy as np
import pytest
from shapes import (
    angle_deg,
    box,
    ell,
    model,
    pinhole_camera,
    pose,
    shift_between,
    silhouette,
    turned,
)

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.occlusion import labels_behind

CAMERA = pinhole_camera(320, 400.0)
ELL, BOX = model("ell", ell()), model("box", box(0.3, 0.5, 0.1))
FRONT = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))
BACK = pose((0.2, 0.3, 0.1), (0.12, 0.03, 1.0))
LIBRARY = {"ell": ELL, "box": BOX}


def label_image(front, back):
    """1: the ell, which hides part of 2: the box."""
    masks = 2 * silhouette(BOX.mesh, back, CAMERA)
    masks[silhouette(ELL.mesh, front, CAMERA) > 0] = 1
    return masks


def test_the_farther_one_is_behind():
    masks = label_image(FRONT, BACK)
    found = {1: (ELL, FRONT), 2: (BOX, BACK)}
    assert labels_behind(masks, CAMERA, found) == {1: frozenset({2})}
    renamed = np.select([masks == 1, masks == 2], [7, 3])  # whatever the labels are called
    assert labels_behind(renamed, CAMERA, {7: found[1], 3: found[2]}) == {7: frozenset({3})}


@pytest.mark.parametrize("shift", [(0, 0, 0.02), (0.004, -0.004, -0.02)])
def test_poses_need_not_be_exact(shift):
    found = {
        1: (ELL, turned(FRONT, (0.1, -0.05, 0.08), shift)),
        2: (BOX, turned(BACK, (-0.1, 0.05, 0.05), (0.01, 0, 0.03))),
    }
    assert labels_behind(label_image(FRONT, BACK), CAMERA, found) == {1: frozenset({2})}


def test_objects_at_one_depth_or_apart_hide_nothing_for_certain():
    level = {1: (ELL, FRONT), 2: (ELL, turned(FRONT, (0, 0, 0), (0.1, 0, 0)))}
    masks = silhouette(ELL.mesh, FRONT, CAMERA)
    beside = silhouette(ELL.mesh, level[2][1], CAMERA)
    masks[(beside > 0) & (masks == 0)] = 2
    assert labels_behind(masks, CAMERA, level) == {}
    far = np.zeros_like(masks)
    far[:40, :40], far[200:, 200:] = 1, 2
    assert labels_behind(far, CAMERA, {1: (ELL, FRONT), 2: (BOX, BACK)}) == {}
    assert labels_behind(far, CAMERA, {}) == {}


@pytest.mark.parametrize("seed", range(4))
def test_the_front_one_gets_its_whole_outline(seed):
    rng = np.random.default_rng(seed)
    front = turned(FRONT, rng.normal(size=3) * 0.3)
    masks = label_image(front, BACK)
    alone = (masks == 1).astype(np.uint8)
    start = turned(front, rng.normal(size=3) * 0.08, rng.normal(size=3) * 0.01)
    near_back = turned(BACK, rng.normal(size=3) * 0.05, rng.normal(size=3) * 0.01)
    pipeline = Pipeline(LIBRARY, device="cpu")
    names = {1: "ell", 2: "box"}
    both, other = pipeline.process(
        Frame(masks, CAMERA, names, {1: [start], 2: [near_back]}), lambda *_: None
    )
    (single,) = pipeline.process(Frame(alone, CAMERA, {1: "ell"}, {1: [start]}))
    assert both.visible_fraction == single.visible_fraction == 1.0
    assert both.quality == single.quality == "good"
    assert angle_deg(both.camera_from_object, front) < 0.4
    assert shift_between(both.camera_from_object, front) < 0.003
    assert other.visible_fraction < 0.95  # what hides it is unknown, as before
    assert shift_between(other.camera_from_object, BACK) < 0.02


def test_the_one_behind_is_told_from_the_front_one_on_a_tilted_floor():
    """The nearer middle is not the nearer border: only the surfaces where they meet count."""
    long = model("long", box(0.1, 0.1, 1.2))
    pole = pose((0.0, 0.9, 0.0), (0.0, 0.0, 1.3))  # its near end comes towards the camera
    near_end = pole[:3, :3] @ np.array([0, 0, -0.6]) + pole[:3, 3]
    small = pose((0.3, 0.2, 0.1), near_end + np.array([0.0, 0.0, 0.2]))
    assert small[2, 3] < pole[2, 3]
    masks = 2 * silhouette(box(0.4, 0.4, 0.05), small, CAMERA)
    masks[silhouette(long.mesh, pole, CAMERA) > 0] = 1
    library = {"long": long, "small": model("small", box(0.4, 0.4, 0.05))}
    found = {1: (long, pole), 2: (library["small"], small)}
    assert labels_behind(masks, CAMERA, found) == {1: frozenset({2})}
