# SPDX-License-Identifier: Apache-2.0
"""Ids must stay with their objects however the masks are numbered."""

from __future__ import annotations

import numpy as np
import pytest

from pose_refiner_ros.geometry.pose import rotation_angle
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Axis, Symmetries, axis_angle
from pose_refiner_ros.tracking.identity import IdentityTracker, Observation, observe

TRIANGLE = Mesh(np.eye(3), [[0, 1, 2]])


def seen(label, x, y=100.0, name="car", size=60.0, caller_id=None):
    return Observation(label, name, (x, y), size, caller_id)


def pose_at(x, z=5.0, turn=0.0, axis=(0.0, 0.0, 1.0)):
    pose = np.eye(4)
    pose[:3, :3] = axis_angle(np.array(axis), turn)
    pose[:3, 3] = (x, 0, z)
    return pose


def ids(tracks):
    return {label: track.id for label, track in tracks.items()}


def test_ids_survive_masks_that_are_renumbered_in_each_frame():
    tracker = IdentityTracker()
    rng = np.random.default_rng(0)
    start, speed = np.array([50.0, 200.0, 400.0]), np.array([90.0, -60.0, 10.0])
    id_of = None
    for frame in range(30):
        x = start + speed * frame / 10
        labels = rng.permutation([1, 2, 3])
        tracks = tracker.begin_frame(
            frame / 10,
            [seen(int(label), x[i], y=100 + 130 * i) for i, label in enumerate(labels)],
        )
        now = [tracks[int(label)].id for label in labels]
        id_of = id_of or now
        assert now == id_of
    assert sorted(id_of) == [1, 2, 3]


def test_objects_that_cross_keep_their_ids():
    """Their velocities tell them apart when they meet."""
    tracker = IdentityTracker()
    for frame in range(21):
        x = 100 + 20 * frame  # left to right; the other comes the other way
        tracks = tracker.begin_frame(
            frame / 10, [seen(1 + frame % 2, x), seen(2 - frame % 2, 500 - x, y=110)]
        )
        if frame == 0:
            first, second = tracks[1].id, tracks[2].id
        assert tracks[1 + frame % 2].id == first
        assert tracks[2 - frame % 2].id == second


def test_classes_are_numbered_separately_and_never_mixed():
    tracker = IdentityTracker()
    tracks = tracker.begin_frame(0.0, [seen(1, 100), seen(2, 110, name="cup")])
    assert ids(tracks) == {1: 1, 2: 1}
    tracks = tracker.begin_frame(0.1, [seen(1, 110, name="cup"), seen(2, 100)])
    assert (tracks[1].name, tracks[2].name) == ("cup", "car")


def test_new_object_takes_a_new_id():
    tracker = IdentityTracker()
    tracker.begin_frame(0.0, [seen(1, 100)])
    tracks = tracker.begin_frame(0.1, [seen(1, 500), seen(2, 102)])
    assert ids(tracks) == {1: 2, 2: 1}


def test_short_gap_keeps_the_id_and_long_one_does_not():
    tracker = IdentityTracker(lost_after=1.0)
    tracker.begin_frame(0.0, [seen(1, 100)])
    tracker.begin_frame(0.5, [])
    assert ids(tracker.begin_frame(0.9, [seen(7, 105)])) == {7: 1}
    assert ids(tracker.begin_frame(2.5, [seen(7, 105)])) == {7: 2}
    assert len(tracker.tracks) == 1


def test_ids_are_reused_only_after_a_while():
    tracker = IdentityTracker(lost_after=1.0, reuse_after=10.0)
    tracker.begin_frame(0.0, [seen(1, 100)])
    assert ids(tracker.begin_frame(5.0, [seen(1, 100)])) == {1: 2}
    assert ids(tracker.begin_frame(20.0, [seen(1, 100)])) == {1: 1}


def test_stamp_that_jumps_back_resets():
    tracker = IdentityTracker()
    tracker.begin_frame(10.0, [seen(1, 100)])
    tracker.end_frame({1: pose_at(0)})
    tracker.begin_frame(10.1, [seen(1, 300)])
    tracks = tracker.begin_frame(3.0, [seen(1, 100)])
    assert ids(tracks) == {1: 1}
    assert tracks[1].pose is None


def test_ids_of_the_caller_are_used_as_they_are():
    tracker = IdentityTracker()
    assert ids(tracker.begin_frame(0.0, [seen(1, 100, caller_id=42)])) == {1: 42}
    # Far away, but the caller says that it is the same one.
    tracks = tracker.begin_frame(0.1, [seen(3, 600, caller_id=42), seen(4, 100)])
    assert ids(tracks) == {3: 42, 4: 1}


def test_same_frame_twice_is_harmless():
    tracker = IdentityTracker()
    for _ in range(2):
        tracks = tracker.begin_frame(1.0, [seen(1, 100)])
        tracker.end_frame({1: pose_at(0.1)})
    assert ids(tracks) == {1: 1}
    assert np.isfinite(tracks[1].velocity_px).all()


def test_predicted_pose_moves_and_turns_on():
    tracker = IdentityTracker()
    for frame in range(6):
        tracker.begin_frame(frame / 10, [seen(1, 100 + frame)])
        tracker.end_frame({1: pose_at(0.2 * frame, turn=0.05 * frame)})
    track = tracker.begin_frame(0.6, [seen(1, 106)])[1]
    (predicted,) = track.initial_poses(0.6)
    np.testing.assert_allclose(predicted, pose_at(1.2, turn=0.3), atol=1e-9)


def test_no_hypotheses_before_the_first_pose():
    tracker = IdentityTracker()
    assert tracker.begin_frame(0.0, [seen(1, 100)])[1].initial_poses(0.0) == []


def test_corrected_estimate_is_not_taken_for_motion():
    tracker = IdentityTracker()
    for stamp, turn in ((0.0, 0.0), (0.1, np.pi)):
        tracker.begin_frame(stamp, [seen(1, 100)])
        tracker.end_frame({1: pose_at(0, turn=turn)})
    track = tracker.begin_frame(0.2, [seen(1, 100)])[1]
    np.testing.assert_allclose(track.predicted_pose(0.2), pose_at(0, turn=np.pi))


def test_prediction_never_lies_behind_the_camera():
    tracker = IdentityTracker()
    for stamp, z in ((0.0, 3.0), (0.1, 1.0)):
        tracker.begin_frame(stamp, [seen(1, 100)])
        tracker.end_frame({1: pose_at(0, z=z)})
    track = tracker.begin_frame(0.2, [seen(1, 100)])[1]
    assert track.predicted_pose(0.2)[2, 3] == 1.0


@pytest.mark.parametrize(
    "symmetries",
    [
        Symmetries([Axis((0, 0, 1)).turn(np.pi)]),
        Symmetries(axes=(Axis((0, 0, 1)),)),
        Symmetries(axes=(Axis((0, 0, 1)), Axis((1, 0, 0)))),
    ],
    ids=["half turn", "axis", "sphere"],
)
def test_symmetric_object_does_not_flip(symmetries):
    tracker = IdentityTracker({"car": ObjectModel("car", TRIANGLE, symmetries=symmetries)})
    rng = np.random.default_rng(1)
    last = None
    for frame in range(10):
        tracker.begin_frame(frame / 10, [seen(1, 100)])
        true = pose_at(0, turn=0.02 * frame, axis=(1.0, 0.0, 0.0))
        choices = symmetries.transforms(12)
        estimate = true @ choices[rng.integers(len(choices))]
        pose = tracker.end_frame({1: estimate})[1]
        assert symmetries.reduced_rotation_error(pose, true) < 1e-6  # it still looks the same
        if last is not None:
            assert rotation_angle(last[:3, :3].T @ pose[:3, :3]) < 0.05
        last = pose


def test_observe_reads_a_label_image():
    masks = np.zeros((120, 160), np.uint16)
    masks[20:41, 30:61] = 300
    masks[100, 100] = 2
    first, second = observe(masks, {300: "car", 2: "cup", 9: "absent"})
    assert (first.label, first.name) == (300, "car")
    np.testing.assert_allclose(first.center_px, (45, 30))
    assert first.size_px == pytest.approx(np.hypot(31, 21))
    np.testing.assert_allclose(second.center_px, (100, 100))
