# SPDX-License-Identifier: Apache-2.0
"""Objects that stand still before a camera that moves: one pose by several frames."""

import numpy as np
import pytest
from shapes import box, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.pipeline import Pipeline

CAMERA = pinhole_camera(320, 400.0)
LIBRARY = {"ell": model("ell", ell()), "box": model("box", box(0.1, 0.15, 0.3))}
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))  # in the fixed frame
PATH = [pose((0.0, -0.3 * s, 0.0), (0.18 * s, 0.02 * s, 0.03 * s)) for s in range(4)]


def seen_from(fixed_from_camera, rng, fixed_from_object=TRUTH, **more) -> Frame:
    truth = inverse(fixed_from_camera) @ fixed_from_object
    mask = move_border((silhouette(LIBRARY["ell"].mesh, truth, CAMERA) > 0).astype(np.uint8), rng)
    start = turned(truth, 0.05 * rng.normal(size=3))
    more.setdefault("earlier", {})
    return Frame(mask, CAMERA, {1: "ell"}, {1: [start]}, tracked={1}, **more)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(LIBRARY, device="cpu")


def along_the_path(pipeline, seed, objects=(TRUTH,) * 4, still=()):
    """The last frame's pose by itself, and with those before."""
    rng, sightings = np.random.default_rng(seed), []
    for where, at in zip(PATH[:3], objects, strict=False):
        (found,) = pipeline.process(seen_from(where, rng, at))
        sightings.append(found.sighting.told_in(inverse(PATH[3]) @ where))
    now = seen_from(PATH[3], rng, objects[3], earlier={1: sightings}, still=still)
    (found,) = pipeline.process(now)
    return found


def test_earlier_frames_better_the_pose_of_what_stands_still(pipeline):
    truth, alone, together, squares = inverse(PATH[3]) @ TRUTH, [], [], []
    for seed in range(16):
        found = along_the_path(pipeline, seed)
        assert found.frames == 4
        off = found.camera_from_object[:3, 3] - truth[:3, 3]
        alone.append(np.linalg.norm(found.sighting.reference_from_object[:3, 3] - truth[:3, 3]))
        together.append(np.linalg.norm(off))
        squares.append(off @ np.linalg.solve(found.covariance[:3, :3], off))
    assert np.mean(together) < 0.5 * np.mean(alone)
    assert 0.5 < np.mean(squares) < 6.0


def test_what_has_moved_keeps_the_pose_of_its_frame(pipeline):
    moved = turned(TRUTH, (0, 0, 0), (0.02, 0.0, 0.0))
    found = along_the_path(pipeline, 0, (TRUTH, TRUTH, TRUTH, moved))
    assert found.frames == 1
    np.testing.assert_array_equal(found.camera_from_object, found.sighting.reference_from_object)
    truth = inverse(PATH[3]) @ moved
    np.testing.assert_allclose(found.camera_from_object[:3, 3], truth[:3, 3], atol=0.01)


def test_what_is_known_to_stand_still_is_not_asked(pipeline):
    moved = turned(TRUTH, (0, 0, 0), (0.005, 0.0, 0.0))
    for still, frames in ((), 1), ({1}, 4):
        found = along_the_path(pipeline, 0, (TRUTH, TRUTH, TRUTH, moved), still=still)
        assert found.frames == frames and found.sighting.contradicts == (frames == 1)


def test_what_is_known_to_stand_still_and_does_not_is_told(pipeline, caplog):
    moved = turned(TRUTH, (0, 0, 0), (0.05, 0.0, 0.0))
    found = along_the_path(pipeline, 0, (TRUTH, TRUTH, TRUTH, moved), still={1})
    assert found.frames == 1 and "said to stand still, but is not where" in caplog.text
    truth = inverse(PATH[3]) @ moved
    np.testing.assert_allclose(found.camera_from_object[:3, 3], truth[:3, 3], atol=0.01)


def test_nothing_is_kept_where_nobody_asked(pipeline):
    (found,) = pipeline.process(seen_from(PATH[0], np.random.default_rng(0), earlier=None))
    assert found.frames == 1 and found.sighting is None
