# SPDX-License-Identifier: Apache-2.0
"""Depths and points on their way to the pipeline: paired by stamp, moved by TF, found in a bag."""

from collections import Counter

import cv2
import numpy as np
import pytest
from ros_messages import MUG, camera_info, header, image, masks, write_library
from rosbags.rosbag2 import Writer
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CompressedImage, PointCloud2, PointField
from stub_node import StubPipeline
from test_bag import CAMERA, INFO, contents, info_message, mask_message, true_pose
from test_bag import header as bag_header

from pose_refiner_ros.datasets.vehicles import DATA, VEHICLES, make_vehicle
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.geometry.pose import inverse, rigid
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.ros import frame_assembler, parameters
from pose_refiner_ros.ros.bad_input import TransformError
from pose_refiner_ros.ros.bag import TRANSFORMS, BagOptions, run_bag
from pose_refiner_ros.ros.bag_messages import IMAGE
from pose_refiner_ros.ros.bag_topics import find_topics
from pose_refiner_ros.ros.conversions import transform_from_matrix
from pose_refiner_ros.ros.frame_assembler import FrameAssembler, FrameMessages, SyncOptions
from pose_refiner_ros.ros.frame_processor import FrameProcessor
from pose_refiner_ros.ros.message_types import typestore

MS = 1_000_000
SECOND = 1000 * MS
START = 1000 * SECOND
SIZE = (120, 160)
CLOUD = "sensor_msgs/msg/PointCloud2"

# ---- pairing ----


class Pairing:
    """An assembler that knows the camera; stamps in milliseconds after some start."""

    def __init__(self, **options):
        self.skipped = Counter()
        self.assembler = FrameAssembler(on_skip=lambda reason: self.skipped.update([reason]))
        self.assembler.options = SyncOptions(**options)
        self.add("camera_info", 0)

    def add(self, name, ms, size=100):
        self.assembler.add(name, START + ms * MS, f"{name} {ms}", size)

    def masks(self, ms, now=0.0):
        self.assembler.add_masks(START + ms * MS, f"masks {ms}", 100, now)

    def take(self, now=0.0):
        return self.assembler.take(now)


def test_depth_is_paired_by_its_stamp():
    pairing = Pairing(sync_slop=0.01, depth_expected=True)
    for ms in (0, 28, 33, 66):
        pairing.add("depth", ms)
    pairing.masks(33)
    assert (pairing.take().depth, pairing.take()) == ("depth 33", None)
    pairing.masks(60)
    frame = pairing.take()
    assert frame.depth == "depth 66" and frame.problem == ""


@pytest.mark.parametrize("expected, answered_at_once", [(True, False), (False, True)])
def test_masks_wait_for_depth_only_while_it_is_expected(expected, answered_at_once):
    pairing = Pairing(depth_expected=expected, sync_timeout=0.2)
    pairing.masks(33, now=5.0)
    assert (pairing.take(5.1) is not None) == answered_at_once
    if expected:
        assert pairing.assembler.wait_seconds(5.1) == pytest.approx(0.1)
        pairing.add("depth", 33)
        assert pairing.take(5.1).depth == "depth 33"


def test_depth_that_does_not_come_is_waited_for_until_the_timeout():
    pairing = Pairing(depth_expected=True, sync_timeout=0.2)
    pairing.add("depth", 0)
    pairing.masks(33, now=5.0)
    assert pairing.take(5.19) is None
    frame = pairing.take(5.21)
    assert frame.masks == "masks 33" and frame.depth is None
    assert "(the nearest is -0.033 s from it)" in frame.problem
    assert pairing.skipped == {}


def test_depth_is_not_waited_for_once_a_later_one_is_there():
    pairing = Pairing(depth_expected=True)
    pairing.add("depth", 500)
    pairing.masks(33)
    frame = pairing.take()
    assert frame.depth is None
    assert frame.problem.startswith("no depth has the stamp of the masks")
    assert "(the nearest is +0.467 s from it)" in frame.problem
    assert pairing.assembler.counts.nearest["depth"] == pytest.approx(0.467)


@pytest.mark.parametrize("every, least", [(1, 300), (2, 295), (3, 280), (6, 280), (15, 280)])
def test_a_slower_depth_camera_does_not_slow_the_masks(every, least):
    """Masks at 30 Hz, each looked at as soon as it is there; depth with every so manyth of them."""
    pairing = Pairing(depth_expected=True)
    answered = with_depth = 0
    for i in range(300):
        ms = round(1000 * i / 30)
        pairing.masks(ms, now=ms / 1000)
        if i % every == 0:
            pairing.add("depth", ms)
        while (frame := pairing.take(ms / 1000)) is not None:
            answered += 1
            with_depth += frame.depth is not None
    assert answered >= least and with_depth >= 0.9 * 300 / every - 2


def test_where_no_depth_is_kept_that_is_said():
    pairing = Pairing(depth_expected=True, sync_timeout=0.2)
    pairing.masks(33, now=0.0)
    assert "no depth has the stamp of the masks:" in pairing.take(0.3).problem


def test_depth_that_nobody_expects_is_no_problem_when_it_is_missing():
    pairing = Pairing(depth_expected=False)
    pairing.add("depth", 500)
    pairing.masks(33)
    frame = pairing.take()
    assert frame.depth is None and frame.problem == ""


def test_a_problem_is_over_once_depth_matches_again():
    pairing = Pairing(depth_expected=True)
    pairing.add("depth", 100)
    pairing.masks(33)
    assert pairing.take().problem
    pairing.masks(100)
    frame = pairing.take()
    assert frame.depth == "depth 100" and frame.problem == ""
    assert "depth" not in pairing.assembler.counts.nearest


@pytest.mark.parametrize(
    "kept, stamp, found", [([0], 90, 0), ([0], 110, None), ([200], 110, 200), ([0, 80], 60, 80)]
)
def test_points_are_used_within_their_age(kept, stamp, found):
    pairing = Pairing(points_max_age=0.1)
    for ms in kept:
        pairing.add("points", ms)
    pairing.masks(stamp)
    frame = pairing.take()  # never waits for them
    assert frame.points == (None if found is None else f"points {found}")
    assert frame.problem == ""


@pytest.mark.parametrize("name", ["depth", "points"])
def test_bursts_of_depths_and_points_keep_memory_bounded(name):
    pairing = Pairing(buffer_size=60, buffer_megabytes=8)
    for ms in range(100):
        pairing.add(name, ms, size=2**20)
    assert len(pairing.assembler._buffers[name]) == 8
    pairing.assembler.clear()
    assert len(pairing.assembler._buffers[name]) == 0


def test_masks_that_wait_for_depth_in_a_full_buffer_say_so():
    pairing = Pairing(depth_expected=True, buffer_size=2)
    for ms in (0, 33, 66):
        pairing.masks(ms)
        assert pairing.take() is None
    assert pairing.skipped == {frame_assembler.WAITING_FOR_DEPTH: 1}


# ---- to the pipeline ----


class Bench:
    """A processor whose pipeline keeps the frames that it got."""

    def __init__(self, library):
        pipeline = StubPipeline(library, None)
        self.frames, self.reports = [], []
        answer = pipeline.process
        pipeline.process = lambda frame, report, follow: (
            self.frames.append(frame) or answer(frame, report, follow)
        )
        self.processor = FrameProcessor(pipeline, library)
        self.parameters = parameters.defaults()
        self.parameters.label_names = ["1:mug"]

    def frame(self, **parts):
        """What the pipeline gets of masks with a mug and these messages."""
        messages = FrameMessages(
            SECOND, masks(MUG, stamp=SECOND), camera_info(stamp=SECOND), **parts
        )
        answer = self.processor.process(messages, self.parameters, False, self.reports.append)
        assert len(answer.poses) == 1
        return self.frames[-1]


@pytest.fixture
def bench(tmp_path):
    return Bench(ObjectLibrary.load(write_library(tmp_path)))


class Transforms:
    """One transform, and what was asked for."""

    def __init__(self, matrix):
        self.asked, self._matrix = [], matrix

    def matrix(self, target_frame, source_frame, stamp, timeout=0.1):
        self.asked.append((target_frame, source_frame, stamp))
        if isinstance(self._matrix, Exception):
            raise self._matrix
        return self._matrix


POINTS = np.array([[0, 0, 2], [0.5, -1, 3], [4, 5, 6]], np.float32)


def cloud(points=POINTS, stamp=SECOND, frame_id="camera_optical_frame"):
    return PointCloud2(
        header=header(stamp, frame_id),
        height=1,
        width=len(points),
        fields=[
            PointField(name=axis, offset=4 * i, datatype=PointField.FLOAT32, count=1)
            for i, axis in enumerate("xyz")
        ],
        point_step=12,
        row_step=12 * len(points),
        data=points.astype("<f4").tobytes(),
    )


@pytest.mark.parametrize(
    "pixels, encoding, scale",
    [
        (np.full(SIZE, 1500, np.uint16), "16UC1", 0.001),
        (np.full(SIZE, 1.5, np.float32), "32FC1", 1.0),
    ],
)
def test_depth_reaches_the_pipeline_with_its_scale(bench, pixels, encoding, scale):
    frame = bench.frame(depth=image(pixels, encoding, stamp=SECOND))
    np.testing.assert_array_equal(frame.depth, pixels)
    assert frame.depth_scale == scale
    assert frame.scan is None and bench.reports == []


def test_compressed_depth_reaches_it_too(bench):
    pixels = np.full(SIZE, 1500, np.uint16)
    data = bytes(12) + cv2.imencode(".png", pixels)[1].tobytes()
    message = CompressedImage(header=header(SECOND), format="16UC1; compressedDepth", data=data)
    frame = bench.frame(depth=message)
    np.testing.assert_array_equal(frame.depth, pixels)
    assert bench.reports == []


def test_a_depth_without_a_frame_is_taken_to_be_the_cameras(bench):
    message = image(np.full(SIZE, 1500, np.uint16), "16UC1", stamp=SECOND, frame_id="")
    assert bench.frame(depth=message).depth is not None
    assert bench.reports == []


@pytest.mark.parametrize(
    "message, words",
    [
        (
            image(np.ones(SIZE, np.uint16), "16UC1", stamp=SECOND, frame_id="depth_frame"),
            "depth is in frame 'depth_frame', the masks in 'camera_optical_frame': register it to "
            "the colour camera; it is not used",
        ),
        (image(np.ones(SIZE, np.uint8), "mono8", stamp=SECOND), "encoding 'mono8'"),
    ],
)
def test_a_depth_that_cannot_be_used_is_told_and_costs_no_pose(bench, message, words):
    frame = bench.frame(depth=message)
    assert frame.depth is None
    (report,) = bench.reports
    assert words in report and report.endswith("it is not used")


def test_what_the_assembler_missed_is_told(bench):
    bench.frame(problem="no depth with the stamp of the masks")
    assert bench.reports == ["no depth with the stamp of the masks"]


def test_points_of_the_camera_reach_the_pipeline_as_they_are(bench):
    bench.processor.transforms = Transforms(AssertionError("nobody needs it"))
    frame = bench.frame(points=cloud())
    np.testing.assert_array_equal(frame.scan, POINTS)
    assert bench.processor.transforms.asked == bench.reports == []
    assert frame.depth is None


def test_points_in_another_frame_are_moved(bench):
    """By the transform at their own stamp, not at that of the masks."""
    move = rigid(Rotation.from_rotvec([0.1, -0.5, 1.2]).as_matrix(), (0.3, -0.2, 0.1))
    bench.processor.transforms = transforms = Transforms(move)
    message = cloud(stamp=SECOND - 50 * MS, frame_id="lidar")
    frame = bench.frame(points=message)
    expected = [(move @ [*point, 1.0])[:3] for point in POINTS]
    np.testing.assert_allclose(frame.scan, expected, atol=1e-6)
    assert transforms.asked == [("camera_optical_frame", "lidar", message.header.stamp)]
    assert bench.reports == []


@pytest.mark.parametrize(
    "error", [TransformError("tf2_ros is not installed"), LookupError("'lidar' is not known")]
)
def test_points_without_a_transform_are_told_and_not_used(bench, error):
    bench.processor.transforms = Transforms(error)
    frame = bench.frame(points=cloud(frame_id="lidar"))
    assert frame.scan is None
    assert bench.reports == [f"points are not used: {error}"]


def test_a_bad_cloud_is_told_and_costs_no_pose(bench):
    message = cloud()
    del message.fields[2]
    assert bench.frame(points=message).scan is None
    assert bench.reports == ["points are not used: points have no field z; they have x, y"]


@pytest.mark.parametrize("depth, used", [("auto", True), ("never", False)])
def test_depth_never_ignores_both_in_silence(bench, depth, used):
    bench.parameters.depth = depth
    message = image(np.ones(SIZE, np.uint16), "16UC1", stamp=SECOND)
    frame = bench.frame(depth=message, points=cloud(), problem="" if used else "missed")
    assert (frame.depth is not None, frame.scan is not None) == (used, used)
    assert bench.processor.pipeline.settings.depth == depth
    assert bench.reports == []


# ---- bags ----

LIDAR = rigid(
    Rotation.from_matrix([[0, -1, 0], [0, 0, -1], [1, 0, 0]]).as_matrix(), (0.1, -0.3, -0.2)
)  # in the camera's frame: x ahead, z up
BASE = rigid(Rotation.from_rotvec([0, 0, 0.4]).as_matrix(), (1, 2, 0.5))  # of the camera


def make(message_type, /, **fields):
    return typestore().types[message_type](**fields)


def stamped(frame, frame_id):
    stamp = make("builtin_interfaces/msg/Time", **vars(bag_header(frame).stamp))
    return make("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def depth_message(frame, metres, frame_id="camera"):
    """16UC1, 0 where there is nothing."""
    millimetres = np.where(np.isfinite(metres), 1000 * metres, 0).round().astype("<u2")
    height, width = metres.shape
    message = make(
        IMAGE,
        header=stamped(frame, frame_id),
        height=height,
        width=width,
        encoding="16UC1",
        is_bigendian=0,
        step=2 * width,
        data=millimetres.view(np.uint8).ravel(),
    )
    return typestore().serialize_cdr(message, IMAGE)


def lidar_message(frame, metres):
    """Every fourth pixel of a depth image as points in the lidar's frame, x y z intensity."""
    rows, columns = np.nonzero(np.isfinite(metres))
    kept = (rows % 4 == 0) & (columns % 4 == 0)
    rows, columns = rows[kept], columns[kept]
    rays = CAMERA.rays(np.stack([columns, rows], axis=-1).astype(float))
    points = rays / rays[:, 2:] * metres[rows, columns][:, None]
    lidar_from_camera = inverse(LIDAR)
    points = points @ lidar_from_camera[:3, :3].T + lidar_from_camera[:3, 3]
    data = np.column_stack([points, np.ones(len(points))]).astype("<f4")
    field = "sensor_msgs/msg/PointField"
    message = make(
        CLOUD,
        header=stamped(frame, "lidar"),
        height=1,
        width=len(points),
        fields=[
            make(field, name=name, offset=4 * i, datatype=7, count=1)
            for i, name in enumerate(("x", "y", "z", "intensity"))
        ],
        is_bigendian=False,
        point_step=16,
        row_step=16 * len(points),
        data=data.view(np.uint8).ravel(),
        is_dense=True,
    )
    return typestore().serialize_cdr(message, CLOUD)


def static_message(**frames):
    """Of a /tf_static. frames: matrices in the frame base."""
    transforms = [
        transform_from_matrix(matrix, stamped(0, "base"), name, make)
        for name, matrix in frames.items()
    ]
    return typestore().serialize_cdr(make(TRANSFORMS, transforms=transforms), TRANSFORMS)


@pytest.fixture(scope="module")
def pictures():
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    return [render_scene([mesh], true_pose(i)[None], CAMERA) for i in range(2)]


@pytest.fixture(scope="module")
def sedan(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "objects.yaml"
    path.write_text(f"objects:\n  sedan:\n    mesh: {DATA / 'sedan.obj'}\n    unit: m\n")
    return path


def write_bag(path, pictures, depth=None, points=None, static=()):
    """depth, points: topics, where there are to be some."""
    topics = {"/cam/camera_info": INFO, "/cam/masks": IMAGE, "/tf_static": TRANSFORMS}
    topics |= {depth: IMAGE} if depth else {}
    topics |= {points: CLOUD} if points else {}
    with Writer(path, version=9) as writer:
        links = {
            topic: writer.add_connection(topic, kind, typestore=typestore())
            for topic, kind in topics.items()
        }
        writer.write(links["/tf_static"], 100 * SECOND, static_message(**dict(static)))
        for i, picture in enumerate(pictures):
            now = 100 * SECOND + i * 100 * MS
            writer.write(links["/cam/camera_info"], now + 1, info_message(i))
            writer.write(links["/cam/masks"], now + 2, mask_message(i, picture.labels))
            if depth:  # after the masks, which wait for it
                writer.write(links[depth], now + 20 * MS, depth_message(i, picture.depth))
            if points:
                writer.write(links[points], now, lidar_message(i, picture.depth))
    return path


@pytest.fixture
def answers(monkeypatch):
    """What the processor answers, as it comes."""
    found, process = [], FrameProcessor.process

    def kept(self, *arguments):
        found.append(process(self, *arguments))
        return found[-1]

    monkeypatch.setattr(FrameProcessor, "process", kept)
    return found


STATIC = {"camera": BASE, "lidar": BASE @ LIDAR}


@pytest.mark.parametrize(
    "depth, points", [("/cam/depth", None), (None, "/lidar/points"), ("/cam/depth", "/lidar")]
)
def test_depth_and_points_of_a_bag_are_used(tmp_path, pictures, sedan, answers, depth, points):
    source = write_bag(tmp_path / "in", pictures, depth, points, STATIC)
    summary = run_bag(source, tmp_path / "out", BagOptions(sedan))
    assert (summary.topics.depth, summary.topics.points) == (depth, points)
    assert (summary.frames, summary.poses) == (2, 2)
    assert not summary.reports
    for i, answer in enumerate(answers):
        (pose,) = answer.poses
        assert pose.depth_agrees > 0.9
        rotation, shift = pose_errors(pose.camera_from_object, true_pose(i))
        assert np.degrees(rotation) < 3 and shift < 0.05
        if points:
            assert (answer.frame.scan[:, 2] > 5.0).all()  # in the camera's axes: ahead
    before, after = contents(source)[0], contents(tmp_path / "out")[0]
    assert {topic: after[topic] for topic in before} == before


def test_points_of_a_bag_without_their_transform_are_told(tmp_path, pictures, sedan, answers):
    source = write_bag(tmp_path / "in", pictures, points="/points", static={"camera": BASE})
    summary = run_bag(source, tmp_path / "out", BagOptions(sedan))
    assert summary.poses == 2
    told = "points are not used: there is no transform from 'lidar' to 'camera'"
    assert summary.reports == {told: 1}  # and not asked for again within a second
    assert all(answer.poses[0].depth_agrees is None for answer in answers)


def test_depth_of_another_size_is_told_and_costs_no_pose(tmp_path, pictures, sedan):
    small = [picture._replace(depth=picture.depth[::2, ::2]) for picture in pictures[:1]]
    summary = run_bag(
        write_bag(tmp_path / "in", small, "/cam/depth"), tmp_path / "out", BagOptions(sedan)
    )
    assert summary.poses == 1
    (text,) = summary.reports
    assert "160x120" in text and "register it to the colour camera" in text


CAMERA_TOPICS = {"/cam/masks": IMAGE, "/cam/color/camera_info": INFO, "/cam/color/image": IMAGE}
COMPRESSED = "sensor_msgs/msg/CompressedImage"
ALIGNED = "/cam/aligned_depth_to_color/image_raw"


@pytest.mark.parametrize(
    "more, depth, points",
    [
        ({}, None, None),
        ({"/cam/depth": IMAGE}, "/cam/depth", None),
        ({"/cam/depth/image_rect_raw": IMAGE}, None, None),  # in pixels of its own
        ({"/cam/depth/image_rect_raw": IMAGE, ALIGNED: IMAGE}, ALIGNED, None),
        ({"/cam/depth_registered/image_rect": IMAGE}, "/cam/depth_registered/image_rect", None),
        ({"/cam/depth/compressedDepth": COMPRESSED}, "/cam/depth/compressedDepth", None),
        ({f"{ALIGNED}/compressedDepth": COMPRESSED}, f"{ALIGNED}/compressedDepth", None),
        ({ALIGNED: IMAGE, f"{ALIGNED}/compressedDepth": COMPRESSED}, ALIGNED, None),
        (
            {ALIGNED: IMAGE}
            | {f"{ALIGNED}/{end}": COMPRESSED for end in ("compressed", "compressedDepth")},
            ALIGNED,
            None,
        ),
        ({"/lidar_top": CLOUD}, None, "/lidar_top"),
        ({"/lidar_left": CLOUD, "/lidar_right": CLOUD}, None, None),
        ({"/lidar/points": CLOUD, "/radar": CLOUD}, None, "/lidar/points"),
    ],
)
def test_topics_of_depth_and_points_are_found_where_only_one_will_do(more, depth, points):
    found = find_topics({**CAMERA_TOPICS, **more})
    assert (found.depth, found.points) == (depth, points)
    assert found.image == "/cam/color/image"


def test_topics_of_depth_and_points_can_be_given():
    types = {**CAMERA_TOPICS, "/left": CLOUD, "/right": CLOUD, "/z": IMAGE, "/cam/depth": IMAGE}
    given = {"depth": "z", "points": "/right"}
    found = find_topics(types, given)
    assert (found.depth, found.points) == ("/z", "/right")
    found = find_topics(types, dict.fromkeys(given, "none"))
    assert (found.depth, found.points) == (None, None)
