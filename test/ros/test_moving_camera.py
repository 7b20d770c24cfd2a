# SPDX-License-Identifier: Apache-2.0
"""A camera that moves in a frame that stands still: objects are followed through its motion."""

import numpy as np
import pytest
from ros_messages import camera_info, header, image
from shapes import box, ell, model, pose, silhouette, turned

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.ros import parameters
from pose_refiner_ros.ros.bad_input import TransformError
from pose_refiner_ros.ros.camera_motion import CameraJump, CameraMotion
from pose_refiner_ros.ros.frame_assembler import FrameMessages
from pose_refiner_ros.ros.frame_processor import FrameProcessor

SECOND = 10**9
START = 1000 * SECOND
SIZE = (240, 320)
CAMERA = Camera(np.reshape(camera_info(SIZE).k, (3, 3)), SIZE)
LIBRARY = ObjectLibrary([model("ell", ell()), model("box", box(0.1, 0.15, 0.3))])
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.8))  # in the fixed frame
ASIDE = pose((0.0, -0.1, 0.0), (0.1, 0.0, 0.01))  # from frame to frame


class Transforms:
    """odom_from_camera by stamp, as a TransformLookup gives it."""

    def __init__(self):
        self.at = {}

    def matrix(self, target, source, stamp, timeout=0.1):
        assert (target, source) == ("odom", "camera")
        key = stamp.sec * SECOND + stamp.nanosec
        if key not in self.at:
            raise TransformError("there is no transform from 'camera' to 'odom'")
        return self.at[key]


class Bench:
    def __init__(self, pipeline, **values):
        self.processor = FrameProcessor(pipeline, LIBRARY)
        self.transforms = self.processor.transforms = Transforms()
        self.parameters = parameters.defaults()
        self.parameters.label_names = ["1:ell", "2:ell", "3:box"]
        self.parameters.fixed_frame, self.parameters.still_objects = "odom", []
        vars(self.parameters).update(values)
        self.reports, self.frame, self.where = [], -1, np.eye(4)

    def next(self, objects, step=ASIDE, known=True):
        """The answer to one more frame, a tenth of a second later; objects: label -> pose in
        odom; step: how the camera has moved."""
        self.frame += 1
        self.where = self.where @ step if self.frame else self.where
        stamp = START + self.frame * SECOND // 10
        if known:
            self.transforms.at[stamp] = self.where
        masks = np.zeros(SIZE, np.uint16)
        for label, at in objects.items():
            mesh = LIBRARY["box" if label == 3 else "ell"].mesh
            masks[silhouette(mesh, inverse(self.where) @ at, CAMERA) > 0] = label
        where = {"stamp": stamp, "frame_id": "camera"}
        messages = FrameMessages(stamp, image(masks, "mono16", **where), camera_info(SIZE, **where))
        return self.processor.process(messages, self.parameters, False, self.reports.append)


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(LIBRARY, device="cpu")


def frames_of(answer):
    return [one.frames for one in answer.poses]


def test_what_stands_still_gathers_evidence_and_is_known_better(pipeline):
    bench = Bench(pipeline)
    answers = [bench.next({1: TRUTH}) for _ in range(8)]
    counts = [frames_of(one)[0] for one in answers]
    assert counts[0] == 1 and counts[-1] == 5 and counts == sorted(counts)
    first, last = (np.trace(one.poses[0].covariance[:3, :3]) for one in (answers[0], answers[-1]))
    assert last < 0.4 * first
    truth = inverse(bench.where) @ TRUTH
    np.testing.assert_allclose(answers[-1].poses[0].camera_from_object, truth, atol=4e-3)
    assert not bench.reports


def test_a_camera_that_stands_gathers_none(pipeline):
    bench = Bench(pipeline)
    for _ in range(4):
        answer = bench.next({1: TRUTH}, step=np.eye(4))
    (track,) = bench.processor._tracker.tracks.values()
    assert len(track.memory._held) == 1 and frames_of(answer) == [1]


def test_what_moves_keeps_the_pose_of_its_frame(pipeline):
    bench, alone = Bench(pipeline), Bench(pipeline, fixed_frame="")
    for n in range(12):
        objects = {
            1: turned(TRUTH, (0, 0, 0), (-0.012 * n, 0.0, 0.0)),
            3: turned(TRUTH, (0.3, 0, 0), (0.0, 0.25, 0.1)),
        }
        moving, still = bench.next(objects).poses
        by_itself, _ = alone.next(objects).poses
        np.testing.assert_allclose(
            moving.camera_from_object, by_itself.camera_from_object, atol=2e-3
        )
        assert moving.frames == 1
    assert still.frames == 5


def test_ids_stay_through_a_turn_that_would_exchange_them(pipeline):
    """Between two frames the camera turns so far that one object is seen where the other was."""
    left, right = (turned(TRUTH, (0, 0, 0), (x, 0.0, 0.1)) for x in (-0.15, 0.15))
    turn = pose((0.0, 0.33, 0.0), (0.0, 0.0, 0.0))
    kept = {}
    for fixed_frame in ("odom", ""):
        bench = Bench(pipeline, fixed_frame=fixed_frame)
        before = bench.next({1: left, 2: right}).ids
        after = bench.next({1: left, 2: right}, step=turn).ids
        kept[fixed_frame] = before == after
    assert kept == {"odom": True, "": False}


def test_without_a_transform_each_frame_is_for_itself(pipeline):
    bench = Bench(pipeline)
    for known in (True, True, False, True):
        answer = bench.next({1: TRUTH}, known=known)
        assert len(answer.poses) == 1
        assert known or frames_of(answer) == [1]
    (told,) = bench.reports
    assert told.startswith("how the camera moves is not known: there is no transform")


def test_a_jump_is_told_and_what_was_seen_before_is_dropped(pipeline):
    bench = Bench(pipeline)
    for _ in range(4):
        bench.next({1: TRUTH})
    jump = pose((0, 0, 0), (30.0, 0.0, 0.0))
    bench.where = jump @ bench.where  # the map closes a loop: camera and objects lie elsewhere
    answer = bench.next({1: jump @ TRUTH})
    assert len(answer.poses) == 1 and frames_of(answer) == [1]
    assert "the camera jumped by 30" in bench.reports[-1] and "odom" in bench.reports[-1]
    assert frames_of(bench.next({1: jump @ TRUTH})) == [1]
    assert frames_of(bench.next({1: jump @ TRUTH})) == [2]


def test_another_camera_or_an_older_stamp_is_no_motion():
    motion, transforms = CameraMotion(), Transforms()
    stamps = [START, START + SECOND, START + SECOND // 2]
    transforms.at = dict.fromkeys(stamps, np.eye(4))
    moves = [motion.next(header(stamp, "camera"), "odom", transforms)[1] for stamp in stamps]
    assert moves[0] is None and moves[2] is None
    np.testing.assert_array_equal(moves[1], np.eye(4))


def test_faster_than_any_robot_is_a_jump():
    motion, transforms = CameraMotion(), Transforms()
    transforms.at = {START: np.eye(4), START + SECOND: pose((0, 0, 0), (100.0, 0, 0))}
    motion.next(header(START, "camera"), "odom", transforms)
    with pytest.raises(CameraJump, match=r"100\.00 m"):
        motion.next(header(START + SECOND, "camera"), "odom", transforms)


def test_a_transform_that_came_late_once_is_waited_for_again(monkeypatch):
    """One that is late by more than the wait is not waited for in vain for ever."""
    now, waits = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    class Late:
        def matrix(self, target, source, stamp, timeout):
            waits.append(timeout)
            if timeout < (0.3 if len(waits) == 3 else 0.03):
                raise TransformError("not yet")
            return np.eye(4)

    motion, known = CameraMotion(), []
    for frame in range(30):
        now[0] = 0.1 * frame
        try:
            motion.next(header(START + frame * SECOND // 10, "camera"), "odom", Late())
            known.append(frame)
        except TransformError:
            pass
    assert known[:2] == [0, 1] and known[2:] == list(range(12, 30))


def test_a_jump_behind_a_gap_is_told():
    motion, transforms = CameraMotion(), Transforms()
    transforms.at = {START: np.eye(4), START + SECOND: pose((0, 0, 0), (100.0, 0, 0))}
    motion.next(header(START, "camera"), "odom", transforms)
    with pytest.raises(TransformError):
        motion.next(header(START + SECOND // 2, "camera"), "odom", transforms)
    with pytest.raises(CameraJump):
        motion.next(header(START + SECOND, "camera"), "odom", transforms)


def test_after_a_gap_nothing_is_moved_by_what_was_before_it():
    motion, transforms = CameraMotion(), Transforms()
    transforms.at = {START + n * SECOND: pose((0, 0, 0), (n, 0, 0)) for n in (0, 2, 3)}
    moves = []
    for n in range(4):
        try:
            moves.append(motion.next(header(START + n * SECOND, "camera"), "odom", transforms)[1])
        except TransformError:
            moves.append("unknown")
    assert moves[0] is None and moves[1] == "unknown" and moves[2] is None
    np.testing.assert_allclose(moves[3][:3, 3], [-1, 0, 0])


def test_without_a_stamp_nobody_knows_where_the_camera_was():
    with pytest.raises(LookupError, match="no stamp"):
        CameraMotion().next(header(0, "camera"), "odom", Transforms())


def test_another_fixed_frame_forgets_what_was_seen_in_the_first(pipeline):
    bench = Bench(pipeline, still_objects=["ell"])
    assert frames_of([bench.next({1: TRUTH}) for _ in range(3)][-1]) == [3]
    bench.parameters.fixed_frame = "map"
    bench.transforms.matrix = lambda target, source, stamp, timeout=0.1: (
        pose((0, 0, 0.5), (0.3, 0.1, 0.0)) @ bench.transforms.at[stamp.sec * SECOND + stamp.nanosec]
    )
    assert frames_of(bench.next({1: TRUTH})) == [1]
    assert frames_of(bench.next({1: TRUTH})) == [2]


def test_a_name_of_still_objects_that_nobody_knows_is_told(pipeline):
    bench = Bench(pipeline, still_objects=["ell", "mugg"])
    answers = [bench.next({1: TRUTH}) for _ in range(3)]
    assert frames_of(answers[-1]) == [3]
    assert bench.reports[0].startswith("still_objects: 'mugg' is not in the object library")
