# SPDX-License-Identifier: Apache-2.0
"""Several cameras that see the same objects: one pose for each, in their reference."""

import numpy as np
import pytest
from shapes import angle_deg, box, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.frame import Frame, FrameError
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.pipeline import Pipeline

CAMERA = pinhole_camera(320, 400.0)
LIBRARY = {"ell": model("ell", ell()), "box": model("box", box(0.1, 0.15, 0.3))}
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))
OTHER = pose((0.2, 0.3, 0.1), (0.12, 0.06, 0.9))
# to the right of the first, turned towards the objects
RIGHT = pose((0.0, -0.6, 0.0), (0.4, 0.0, 0.1))


def frame(where, objects=None, **more) -> Frame:
    """Of a camera (4, 4); objects: label -> name, pose in the reference."""
    objects = objects or {1: ("ell", TRUTH)}
    masks = np.zeros(CAMERA.size, np.uint8)
    for label in sorted(objects, key=lambda n: -objects[n][1][2, 3]):
        name, at = objects[label]
        masks[silhouette(LIBRARY[name].mesh, inverse(where) @ at, CAMERA) > 0] = label
    names = {label: name for label, (name, _) in objects.items()}
    return Frame(masks, CAMERA, names, reference_from_camera=where, **more)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(LIBRARY, device="cpu")


def test_one_object_in_two_cameras_is_one_pose(pipeline):
    start = turned(TRUTH, (0.2, -0.1, 0.15), (0.01, -0.01, 0.03))
    frames = [frame(np.eye(4), initial_poses={1: [start]}), frame(RIGHT)]
    (found,) = pipeline.process(frames)
    assert found.label == 1 and found.quality == "good"
    assert angle_deg(found.camera_from_object, TRUTH) < 0.3
    np.testing.assert_allclose(found.camera_from_object[:3, 3], TRUTH[:3, 3], atol=1e-3)


def test_starts_of_any_camera_count_and_none_is_needed(pipeline):
    in_right = inverse(RIGHT) @ turned(TRUTH, (0.2, -0.1, 0.15), (0.01, -0.01, 0.03))
    for starts in ({1: [in_right]}, {}):
        frames = [frame(np.eye(4)), frame(RIGHT, initial_poses=starts)]
        (found,) = pipeline.process(frames)
        assert angle_deg(found.camera_from_object, TRUTH) < 0.3


def test_a_second_camera_betters_the_distance(pipeline):
    errors, sigmas, squares = {1: [], 2: []}, {1: [], 2: []}, []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        frames = [frame(np.eye(4)), frame(RIGHT)]
        for one in frames:
            one.masks = move_border(one.masks, rng, 1.0)
        frames[0].initial_poses = {1: [turned(TRUTH, 0.1 * rng.normal(size=3))]}
        for count in (1, 2):
            (found,) = pipeline.process(frames[:count])
            off = found.camera_from_object[:3, 3] - TRUTH[:3, 3]
            errors[count].append(abs(off[2]))
            sigmas[count].append(np.sqrt(found.covariance[2, 2]))
        squares.append(off @ np.linalg.solve(found.covariance[:3, :3], off))
    assert np.mean(errors[2]) < 0.8 * np.mean(errors[1])
    assert np.mean(sigmas[2]) < 0.5 * np.mean(sigmas[1])
    assert 0.5 < np.mean(squares) < 6.0


def test_who_does_not_see_an_object_says_nothing_of_it(pipeline):
    left = frame(np.eye(4), {1: ("ell", TRUTH), 2: ("box", OTHER)})
    right = frame(RIGHT, {2: ("box", OTHER)})
    told = []
    found = pipeline.process([left, right], lambda label, text: told.append(text))
    assert [one.label for one in found] == [1, 2] and not told
    assert angle_deg(found[0].camera_from_object, TRUTH) < 1.0
    alone = pipeline.process(left)
    assert found[0].visible_fraction == pytest.approx(alone[0].visible_fraction, abs=0.05)
    assert np.linalg.norm(found[1].camera_from_object[:3, 3] - OTHER[:3, 3]) < 0.002


def test_an_object_may_have_another_label_in_each(pipeline):
    """Where frames have ids, names and numbers say what is the same."""
    left = frame(np.eye(4), {1: ("ell", TRUTH), 2: ("box", OTHER)}, ids={1: 7, 2: 7})
    right = frame(RIGHT, {2: ("ell", TRUTH), 1: ("box", OTHER)}, ids={1: 7, 2: 7})
    found = pipeline.process([left, right])
    assert [(one.label, one.name) for one in found] == [(1, "ell"), (2, "box")]
    assert angle_deg(found[0].camera_from_object, TRUTH) < 0.5
    # another number is another object, though its label is taken
    right.ids = {1: 7, 2: 8}
    found = pipeline.process([left, right])
    assert [(one.label, one.name) for one in found] == [(1, "ell"), (2, "box"), (3, "ell")]


def test_all_cameras_are_elsewhere(pipeline):
    """Poses and covariances are in the reference, not in the first camera."""
    reference = pose((0.3, 1.2, -0.4), (2.0, -1.0, 0.5))
    frames = [frame(np.eye(4)), frame(RIGHT)]
    (here,) = pipeline.process(frames)
    for one in frames:
        one.reference_from_camera = reference @ one.reference_from_camera
    (there,) = pipeline.process(frames)
    expected = reference @ here.camera_from_object
    np.testing.assert_allclose(there.camera_from_object, expected, atol=2e-4)
    turn = np.kron(np.eye(2), reference[:3, :3])
    scale = np.sqrt(np.diag(here.covariance))
    apart = turn.T @ there.covariance @ turn - here.covariance
    assert np.abs(apart / np.outer(scale, scale)).max() < 0.1


def test_a_camera_with_a_bad_mask_is_left_out(pipeline):
    broken = frame(RIGHT)
    broken.masks = np.zeros_like(broken.masks)
    told = []
    (found,) = pipeline.process([frame(np.eye(4)), broken], lambda _, text: told.append(text))
    assert len(told) == 1 and "left out in frame 1: label 1 has no pixel" in told[0]
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0


@pytest.mark.parametrize("where", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_a_camera_that_is_nowhere_is_refused(pipeline, where):
    wrong = frame(np.eye(4))
    wrong.reference_from_camera = where
    with pytest.raises(FrameError, match="reference_from_camera"):
        pipeline.process([frame(np.eye(4)), wrong])


def test_no_frame_at_all(pipeline):
    with pytest.raises(FrameError, match="no frame"):
        pipeline.process([])


def test_a_camera_that_is_not_where_it_is_said_to_be_is_left_out(pipeline):
    first = frame(np.eye(4), {1: ("ell", TRUTH), 2: ("box", OTHER)})
    second = frame(RIGHT, {1: ("ell", TRUTH)})
    second.reference_from_camera = turned(RIGHT, (0.0, 0.05, 0.0), (0.05, 0.03, 0.0))
    told = []
    found = pipeline.process([first, second], lambda label, text: told.append((label, text)))
    alone = pipeline.process(first)
    (where,) = told
    assert where[0] == 1 and "cameras 1 and 2 do not agree on where ell is" in where[1]
    for one, other in zip(found, alone, strict=True):
        assert angle_deg(one.camera_from_object, other.camera_from_object) < 0.2
        assert one.quality == other.quality


def test_rough_masks_are_no_contradiction(pipeline):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        frames = [frame(np.eye(4)), frame(RIGHT)]
        for one in frames:
            one.masks = move_border(one.masks, rng, 2.0)
        told = []
        pipeline.process(frames, lambda label, text, told=told: told.append(text))
        assert not told
