# SPDX-License-Identifier: Apache-2.0
"""A frame's messages to poses, without DDS and with a pipeline that answers at once."""

from dataclasses import replace

import numpy as np
import pytest
from ros_messages import (
    BOX,
    MUG,
    camera_info,
    detections,
    header,
    image,
    initial_poses,
    masks,
    picture,
    write_library,
)
from stub_node import WEAK, StubPipeline

from pose_refiner_ros.frame import FrameError, ObjectPose
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.pipeline import Settings
from pose_refiner_ros.ros import conversions, parameters
from pose_refiner_ros.ros.bad_input import BadInput, TransformError
from pose_refiner_ros.ros.frame_assembler import FrameMessages
from pose_refiner_ros.ros.frame_processor import FrameProcessor, _moved_to

SECOND = 10**9


class Bench:
    def __init__(self, library):
        self.pipeline = StubPipeline(library, None)
        self.frames = []
        process = self.pipeline.process
        self.pipeline.process = lambda frame, report, follow: (
            self.frames.append(frame) or process(frame, report, follow)
        )
        self.processor = FrameProcessor(self.pipeline, library)
        self.parameters = parameters.defaults()
        self.parameters.label_names = ["1:mug", "2:box", f"{WEAK}:mug"]
        self.reports = []

    def process(self, *labels, stamp=SECOND, with_image=False, **parts):
        messages = FrameMessages(
            stamp,
            parts.pop("mask", None) or masks(*labels, stamp=stamp),
            parts.pop("info", None) or camera_info(stamp=stamp),
            **parts,
        )
        return self.processor.process(messages, self.parameters, with_image, self.reports.append)


@pytest.fixture
def bench(tmp_path_factory):
    return Bench(ObjectLibrary.load(write_library(tmp_path_factory.mktemp("objects"))))


def test_answer(bench):
    answer = bench.process(MUG, BOX)
    assert [pose.name for pose in answer.poses] == ["mug", "box"]
    assert answer.objects == 2
    assert answer.header == header(stamp=SECOND)
    assert answer.reasons == bench.reports == []
    assert bench.frames[0].camera.size == bench.frames[0].masks.shape


def test_ids_stay_though_labels_change(bench):
    first = bench.process(MUG, BOX)
    assert sorted(first.ids.values()) == [1, 2]
    # The same places, with the labels exchanged by a segmenter that does not track.
    bench.parameters.label_names = ["1:box", "2:mug"]
    second = bench.process(BOX, MUG, stamp=SECOND + SECOND // 10)
    assert {pose.name: second.ids[pose.label] for pose in second.poses} == {
        pose.name: first.ids[pose.label] for pose in first.poses
    }


def test_reset_starts_ids_anew(bench):
    bench.process(MUG, BOX)
    bench.processor.reset()
    assert bench.process(BOX, stamp=2 * SECOND).ids == {BOX: 1}


def test_labels_that_are_ids(bench):
    bench.parameters.labels_are_ids = True
    bench.parameters.label_names = ["31:mug", "52:mug"]
    assert bench.process(31, 52).ids == {31: 31, 52: 52}


def test_last_pose_is_a_start(bench):
    first = bench.process(MUG)
    bench.process(MUG, stamp=SECOND + SECOND // 10)
    np.testing.assert_allclose(
        bench.frames[1].initial_poses[MUG][0], first.poses[0].camera_from_object
    )
    bench.parameters.use_last_pose = False
    bench.process(MUG, stamp=SECOND + SECOND // 5)
    assert not bench.frames[2].initial_poses.get(MUG)


def test_filters(bench):
    bench.parameters.min_score = 0.5
    answer = bench.process(MUG, WEAK)
    assert [pose.label for pose in answer.poses] == [MUG]
    assert "score of 0.10" in answer.reasons[0]
    bench.parameters.publish_qualities = ["partial"]
    assert bench.process(MUG, stamp=2 * SECOND).poses == []
    assert "quality good" in bench.reports[-1]


def test_settings_reach_the_pipeline(bench):
    bench.parameters.max_hypotheses = 3
    bench.parameters.search = "never"
    bench.process(MUG)
    assert bench.pipeline.settings.hypotheses == 3
    assert bench.pipeline.settings.search == "never"


def test_settings_have_the_defaults_of_the_core(bench):
    bench.process(MUG)
    assert bench.pipeline.settings == Settings()


def test_header_is_that_of_the_image(bench):
    image_message = picture(stamp=7 * SECOND, frame_id="camera")
    answer = bench.process(MUG, image=image_message)
    assert answer.header == image_message.header
    assert answer.frame.image is None  # nobody looks at the overlay


def test_frame_id_is_taken_where_there_is_one(bench):
    mask = masks(MUG, frame_id="")
    answer = bench.process(mask=mask, info=camera_info(frame_id="camera"))
    assert answer.header.frame_id == "camera"
    answer = bench.process(mask=mask, info=camera_info(frame_id=""))
    assert len(answer.poses) == 1
    assert "empty frame_id" in answer.reasons[0]


def test_image_for_the_overlay(bench):
    answer = bench.process(MUG, image=picture(), with_image=True)
    assert answer.frame.image.shape == (120, 160, 3)


@pytest.mark.parametrize(
    "message, words",
    [
        (picture(size=(60, 80)), "the image is 80x60 pixels, masks and camera_info are 160x120"),
        (image(np.zeros((120, 160), np.float32), "32FC1"), "32FC1"),
    ],
)
def test_bad_image_costs_the_overlay_only(bench, message, words):
    answer = bench.process(MUG, image=message, with_image=True)
    assert len(answer.poses) == 1
    assert answer.frame.image is None
    assert words in bench.reports[0]


def test_initial_poses_by_label_and_by_class(bench):
    message = initial_poses(
        [(BOX, "box", (0, 0, 2)), ("", "cup", (0, 0, 3)), (99, "mug", (0, 0, 4))]
    )
    answer = bench.process(MUG, BOX, initial_poses=message)
    given = bench.frames[0].initial_poses
    assert [pose[2, 3] for pose in given[BOX]] == [2]
    assert [pose[2, 3] for pose in given[MUG]] == [3, 4]
    assert answer.reasons == []


def test_initial_pose_whose_id_belongs_to_another_class(bench):
    """Poses that are published come back as initial poses: their ids are not labels."""
    message = initial_poses([(BOX, "mug", (0, 0, 2))])
    bench.process(MUG, BOX, initial_poses=message)
    assert [pose[2, 3] for pose in bench.frames[0].initial_poses[MUG]] == [2]
    assert not bench.frames[0].initial_poses[BOX]


def test_bad_initial_poses_are_ignored(bench):
    message = initial_poses([("", "mug", (0, 0, 2)), ("", "mug", (0, 0, 3))])
    message.detections[0].results[0].pose.pose.orientation.w = 0.0
    bench.process(MUG, initial_poses=message)
    assert [pose[2, 3] for pose in bench.frames[0].initial_poses[MUG]] == [3]
    assert "no unit quaternion" in bench.reports[0]


def test_initial_poses_in_another_frame(bench):
    class Transforms:
        def matrix(self, target_frame, source_frame, stamp):
            assert (target_frame, source_frame) == ("camera_optical_frame", "base_link")
            matrix = np.eye(4)
            matrix[2, 3] = 0.5
            return matrix

    bench.processor.transforms = Transforms()
    message = initial_poses([("", "mug", (0, 0, 2))], frame_id="base_link")
    bench.process(MUG, initial_poses=message)
    assert bench.frames[0].initial_poses[MUG][0][2, 3] == 2.5

    def missing(*args):
        raise TransformError("tf2_ros is not installed")

    bench.processor.transforms.matrix = missing
    answer = bench.process(MUG, initial_poses=message, stamp=2 * SECOND)
    assert len(answer.poses) == 1
    assert "tf2_ros is not installed" in bench.reports[0]


def test_detections_are_used(bench):
    answer = bench.process(7, detections=detections({7: "cup"}))
    assert answer.poses[0].name == "mug"


def test_empty_scene(bench):
    answer = bench.process()
    assert answer.poses == [] and answer.objects == 0


@pytest.mark.parametrize(
    "parts, kind",
    [
        ({"mask": picture()}, "masks encoding"),
        ({"mask": masks(MUG, size=(60, 80))}, "masks size"),
        ({"info": camera_info(k=[0.0] * 9)}, "camera_info"),
        ({"info": camera_info(k=[float("nan")] * 9)}, "camera_info"),
    ],
)
def test_bad_input_has_a_kind_and_the_next_frame_is_answered(bench, parts, kind):
    with pytest.raises(BadInput) as error:
        bench.process(MUG, **parts)
    assert error.value.kind == kind
    assert len(bench.process(MUG).poses) == 1


def test_frame_that_the_pipeline_refuses(bench):
    def refuse(frame, report, follow=None):
        raise FrameError("the label image is odd")

    bench.pipeline.process = refuse
    with pytest.raises(BadInput, match="odd"):
        bench.process(MUG)


def test_target_frame(bench):
    """Outputs bring poses, covariances and alternatives into another frame."""
    answer = bench.process(MUG)
    turned = np.eye(4)
    turned[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    turned[:3, 3] = (1, 2, 3)
    pose = answer.poses[0]
    pose.covariance = np.diag([1.0, 2, 3, 4, 5, 6])
    pose.alternatives = [replace(pose, alternatives=[])]
    (placed,) = conversions.poses_in_frame(turned, [pose])
    np.testing.assert_allclose(placed.camera_from_object, turned @ pose.camera_from_object)
    np.testing.assert_allclose(np.diag(placed.covariance), [2, 1, 3, 5, 4, 6])
    np.testing.assert_allclose(np.diag(placed.alternatives[0].covariance), [2, 1, 3, 5, 4, 6])


def test_the_covariance_moves_with_the_origin_of_an_equivalent_pose():
    """A turn about the old origin moves the new one: compared with turns drawn at random."""
    rng = np.random.default_rng(0)
    old, new = np.eye(4), np.eye(4)
    new[:3, 3] = [0.09, -0.1, 0.02]
    spread = np.diag([1, 2, 3, 30, 40, 50]) * 1e-8
    pose = ObjectPose(1, "mug", old, spread, 0.9, "good", 0.9, 0.5, 1.0, 1.0, 5, "converged")
    moved = _moved_to(pose, new)
    twist = rng.multivariate_normal(np.zeros(6), spread, size=200_000)
    shift = twist[:, :3] + np.cross(twist[:, 3:], new[:3, 3])
    expected = np.cov(np.concatenate([shift, twist[:, 3:]], axis=1).T)
    np.testing.assert_allclose(moved.covariance, expected, atol=2e-8)
