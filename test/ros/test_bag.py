# SPDX-License-Identifier: Apache-2.0
"""The bag command: topics found, poses written beside what was there, nothing half done."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from typer.testing import CliRunner

from pose_refiner_ros.datasets.vehicles import DATA, VEHICLES, make_vehicle
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.ros import bag_messages
from pose_refiner_ros.ros.bag import BagOptions, output_topics, run_bag
from pose_refiner_ros.ros.bag_messages import IMAGE, serialize_image
from pose_refiner_ros.ros.bag_topics import BagError, BagTopics, find_topics
from pose_refiner_ros.ros.conversions import matrix_from_pose
from pose_refiner_ros.ros.message_types import VISION_MSGS, typestore
from pose_refiner_ros.ros.recording import BagRecorder

CAMERA = Camera(np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]), (240, 320))
INFO = "sensor_msgs/msg/CameraInfo"
FRAMES = 4


def header(frame):
    stamp = SimpleNamespace(sec=100, nanosec=frame * 100_000_000)
    return SimpleNamespace(stamp=stamp, frame_id="camera")


def info_message(frame):
    make = typestore().types
    stamp = make["builtin_interfaces/msg/Time"](sec=100, nanosec=frame * 100_000_000)
    message = make[INFO](
        header=make["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
        height=240,
        width=320,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=CAMERA.intrinsics.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([CAMERA.intrinsics, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=make["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
    )
    return typestore().serialize_cdr(message, INFO)


def mask_message(frame, labels):
    """The label image as 16UC1."""
    make = typestore().types
    stamp = make["builtin_interfaces/msg/Time"](sec=100, nanosec=frame * 100_000_000)
    message = make[IMAGE](
        header=make["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
        height=240,
        width=320,
        encoding="16UC1",
        is_bigendian=0,
        step=640,
        data=labels.astype("<u2").view(np.uint8).ravel(),
    )
    return typestore().serialize_cdr(message, IMAGE)


def true_pose(frame):
    """A vehicle that turns, seen a little from above."""
    heading = 0.7 + 0.03 * frame
    cos, sin = np.cos(heading), np.sin(heading)
    camera_from_upright = np.array([[0, -1, 0], [0.2, 0, -0.98], [0.98, 0, 0.2]])
    pose = np.eye(4)
    pose[:3, :3] = camera_from_upright @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    u, _, v = np.linalg.svd(pose[:3, :3])
    pose[:3, :3] = u @ v
    pose[:3, 3] = 0.3, 0.6, 9.0
    return pose


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "objects.yaml"
    path.write_text(f"objects:\n  sedan:\n    mesh: {DATA / 'sedan.obj'}\n    unit: m\n")
    return path


@pytest.fixture(scope="module")
def pictures():
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    return [render_scene([mesh], true_pose(i)[None], CAMERA) for i in range(FRAMES)]


def write_bag(path, pictures, storage=StoragePlugin.MCAP, more=()):
    """Images at once, masks 60 ms later, and a topic that is nobody's business."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        types = {
            "/cam/image": IMAGE,
            "/cam/camera_info": INFO,
            "/cam/masks": IMAGE,
            "/chatter": "std_msgs/msg/String",
            **dict.fromkeys(more, IMAGE),
        }
        topics = {
            topic: writer.add_connection(topic, kind, typestore=typestore())
            for topic, kind in types.items()
        }
        text = typestore().types["std_msgs/msg/String"](data="hello")
        for i, picture in enumerate(pictures):
            now = 100_000_000_000 + i * 100_000_000
            writer.write(topics["/cam/image"], now, serialize_image(header(i), picture.rgb))
            writer.write(topics["/cam/camera_info"], now + 1, info_message(i))
            raw = typestore().serialize_cdr(text, "std_msgs/msg/String")
            writer.write(topics["/chatter"], now + 2, raw)
            masks = mask_message(i, picture.labels)
            writer.write(topics["/cam/masks"], now + 60_000_000, masks)
    return path


def contents(path):
    """{topic: [(stamp, data)]} and {topic: [messages]}."""
    raw, messages = {}, {}
    with AnyReader([path]) as reader:
        for connection, stamp, data in reader.messages():
            raw.setdefault(connection.topic, []).append((stamp, bytes(data)))
            message = reader.deserialize(data, connection.msgtype)
            messages.setdefault(connection.topic, []).append(message)
    return raw, messages


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_poses_are_written_beside_the_original_topics(tmp_path, pictures, library, storage):
    source = write_bag(tmp_path / "in", pictures, storage)
    done = []
    summary = run_bag(
        source, tmp_path / "out", BagOptions(library), lambda now, total: done.append((now, total))
    )
    assert (summary.masks, summary.frames, summary.poses) == (FRAMES, FRAMES, FRAMES)
    assert done[-1] == (4 * FRAMES, 4 * FRAMES)

    before, _ = contents(source)
    after, messages = contents(tmp_path / "out")
    assert {topic: after[topic] for topic in before} == before
    assert set(after) - set(before) == {"/object_poses", "/tf", "/pose_refiner/overlay"}
    for i, message in enumerate(messages["/object_poses"]):
        assert message.header.stamp.nanosec == i * 100_000_000
        assert message.header.frame_id == "camera"
        (detection,) = message.detections
        (hypothesis,) = detection.results
        assert hypothesis.hypothesis.class_id == "sedan"
        rotation, shift = pose_errors(matrix_from_pose(hypothesis.pose.pose), true_pose(i))
        assert np.degrees(rotation) < 3 and shift < 0.1
        assert np.all(np.diag(hypothesis.pose.covariance.reshape(6, 6)) > 0)
        assert detection.bbox.size.x == pytest.approx(4.70, abs=0.01)
    ids = {message.detections[0].id for message in messages["/object_poses"]}
    assert len(ids) == 1  # one vehicle
    (transform,) = messages["/tf"][0].transforms
    assert transform.child_frame_id == f"sedan_{ids.pop()}"
    assert messages["/pose_refiner/overlay"][0].data.size == 240 * 320 * 3
    # nothing temporary stays
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_a_single_file_is_a_bag_too(tmp_path, pictures, library):
    source = write_bag(tmp_path / "in", pictures[:1])
    (file,) = source.glob("*.mcap")
    summary = run_bag(file, tmp_path / "out", BagOptions(library, overlay=False))
    assert summary.poses == 1
    assert "/pose_refiner/overlay" not in contents(tmp_path / "out")[0]


def test_a_second_run_gets_names_of_its_own(tmp_path, pictures, library):
    source = write_bag(tmp_path / "in", pictures[:1])
    run_bag(source, tmp_path / "once", BagOptions(library))
    summary = run_bag(tmp_path / "once", tmp_path / "twice", BagOptions(library))
    assert summary.written["object_poses"] == "/refined/object_poses"
    raw, messages = contents(tmp_path / "twice")
    assert len(raw["/object_poses"]) == len(raw["/refined/object_poses"]) == 1
    frames = {t.child_frame_id for m in messages["/tf"] for t in m.transforms}
    assert frames == {"sedan_1", "refined_sedan_1"}


def test_bad_masks_are_counted_and_the_rest_answered(tmp_path, pictures, library):
    other = pictures[1]._replace(labels=np.zeros((240, 320), np.int32))
    source = write_bag(tmp_path / "in", [pictures[0], other, pictures[2]])
    summary = run_bag(source, tmp_path / "out", BagOptions(library))
    assert (summary.frames, summary.poses) == (3, 2)


def test_it_works_where_no_ros_is_installed(tmp_path, pictures, library):
    source = write_bag(tmp_path / "in", pictures[:1])
    program = """
import importlib.abc, sys
class NoRos(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        first = name.split(".")[0]
        if first in ("rclpy", "ament_index_python") or first.endswith(("_msgs", "_interfaces")):
            raise ImportError(f"{name} is ROS")
sys.meta_path.insert(0, NoRos())
from pose_refiner_ros.cli import main
sys.argv = ["pose-refiner", "bag", *sys.argv[1:]]
main()
"""
    arguments = [str(source), str(tmp_path / "out"), "--objects", str(library)]
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert result.returncode == 0, result.stderr
    assert "1 poses in 1 of 1 frames" in result.stdout


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["nowhere", "out"], "does not exist"),
        (["in", "in"], "would overwrite"),
        (["in", "taken"], "exists already"),
        (["text.mcap", "out"], "cannot be read"),
        (["text.txt", "out"], "no .mcap or .db3"),
        (["empty", "out"], "no metadata.yaml"),
        (["in", "out", "--masks", "/chatter"], "std_msgs/msg/String"),
        (["in", "out", "--masks", "/nothing"], "/cam/masks (sensor_msgs/msg/Image)"),
    ],
)
def test_errors_say_what_to_do_and_leave_nothing(tmp_path, pictures, library, arguments, text):
    from pose_refiner_ros.cli import app

    write_bag(tmp_path / "in", pictures[:1])
    (tmp_path / "text.mcap").write_text("no bag")
    (tmp_path / "text.txt").write_text("no bag")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    before = sorted(tmp_path.rglob("*"))
    source, target, *more = arguments
    result = CliRunner().invoke(
        app,
        ["bag", str(tmp_path / source), str(tmp_path / target), "--objects", str(library), *more],
    )
    assert result.exit_code == 2, result.output
    assert text in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_leaves_the_old_result(tmp_path, pictures, library):
    source = write_bag(tmp_path / "in", pictures)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()

    def interrupt(done, total):
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bag(source, tmp_path / "out", BagOptions(library, overwrite=True), interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    assert (tmp_path / "out" / "old").exists()


# ---- finding topics ----

TYPES = {
    "/cam/image_raw": IMAGE,
    "/cam/camera_info": INFO,
    "/cam/depth/image_raw": IMAGE,
    "/segmentation/masks": IMAGE,
    "/detections": "vision_msgs/msg/Detection2DArray",
    "/object_poses": "vision_msgs/msg/Detection3DArray",
}


def test_topics_are_found_by_type_and_name():
    assert find_topics(TYPES) == BagTopics(
        "/segmentation/masks", "/cam/camera_info", "/cam/image_raw", "/detections", None
    )


def test_given_topics_win_with_or_without_the_slash():
    found = find_topics(TYPES, {"image": "cam/depth/image_raw", "detections": "none"})
    assert found.image == "/cam/depth/image_raw" and found.detections is None


def test_compressed_images_beside_raw_ones_are_no_second_candidate():
    types = {**TYPES, "/cam/image_raw/compressed": "sensor_msgs/msg/CompressedImage"}
    assert find_topics(types).image == "/cam/image_raw"
    del types["/cam/image_raw"]
    assert find_topics(types).image == "/cam/image_raw/compressed"


def test_of_two_cameras_the_one_of_the_masks_is_taken():
    types = {}
    for camera in ("left", "right"):
        types |= {f"/{camera}/camera_info": INFO, f"/{camera}/image": IMAGE}
    types["/right/masks"] = IMAGE
    assert find_topics(types) == BagTopics("/right/masks", "/right/camera_info", "/right/image")


def test_what_cannot_be_told_apart_must_be_chosen():
    with pytest.raises(BagError, match=r"/a/masks, /b/masks; choose with --masks"):
        find_topics({"/a/masks": IMAGE, "/b/masks": IMAGE, "/c/camera_info": INFO})
    with pytest.raises(BagError, match=r"--image none"):
        find_topics({**TYPES, "/other/image_raw": IMAGE, "/cam/image_rect": IMAGE})
    with pytest.raises(BagError, match="no topic of the bag looks like masks"):
        find_topics({"/cam/image": IMAGE, "/cam/camera_info": INFO})


def test_output_names_must_be_free():
    options = BagOptions(Path(), namespace="mine")
    assert output_topics({}, options)["object_poses"] == "/mine/object_poses"
    assert output_topics({}, options)["tf_prefix"] == "mine_"
    taken = dict.fromkeys(
        f"{prefix}/object_poses" for prefix in ("/mine", "/refined", "/pose_refiner_offline")
    )
    with pytest.raises(BagError, match="--namespace"):
        output_topics(taken, options)


# ---- writing ----


def test_the_definitions_are_those_of_the_package_on_the_network():
    """Equal RIHS01 hashes: any ROS 2 machine takes them for its own."""
    generated = pytest.importorskip("vision_msgs.msg")
    for name in VISION_MSGS:
        kind = getattr(generated, name)
        ours = typestore().fielddefs[f"vision_msgs/msg/{name}"][1]
        assert [field for field, _ in ours] == list(kind.get_fields_and_field_types())


def test_a_recording_appears_only_when_it_is_whole(tmp_path):
    with pytest.raises(RuntimeError), BagRecorder(tmp_path / "bag") as bag:
        bag.add_topic("/chatter", "std_msgs/msg/String")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with BagRecorder(tmp_path / "bag") as bag:
        bag.add_topic("/chatter", "std_msgs/msg/String")
        assert not (tmp_path / "bag").exists()
    assert (tmp_path / "bag" / "metadata.yaml").exists()
    with pytest.raises(FileExistsError, match="exists already"):
        BagRecorder(tmp_path / "bag")


def test_a_camera_that_moves_gathers_evidence_by_the_bags_tf(tmp_path, library):
    """Its transforms come between the frames, those after a frame later than its masks."""
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    still = true_pose(0)

    def odom_from_camera(frame):
        pose = np.eye(4)
        pose[0, 3] = 1.2 * frame
        return pose

    def turned_to(frame):
        return np.linalg.inv(odom_from_camera(frame)) @ still

    pictures = [render_scene([mesh], turned_to(i - 1)[None], CAMERA) for i in range(3)]
    with Writer(tmp_path / "in", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        types = {"/masks": IMAGE, "/camera_info": INFO, "/tf": bag_messages.TRANSFORMS}
        topics = {
            topic: writer.add_connection(topic, kind, typestore=typestore())
            for topic, kind in types.items()
        }
        for i, picture in enumerate(pictures):
            now = 100_000_000_000 + i * 100_000_000
            writer.write(topics["/camera_info"], now, info_message(i))
            writer.write(topics["/masks"], now + 1, mask_message(i, picture.labels))
            for half in (-0.5, 0.5) if i == 0 else (0.5,):
                at = SimpleNamespace(
                    stamp=SimpleNamespace(
                        sec=100 if i + half >= 0 else 99,
                        nanosec=int((i + half) % 10 * 1e8) if i + half >= 0 else 950_000_000,
                    ),
                    frame_id="odom",
                )
                moved = {"camera": odom_from_camera(i + half - 1)}
                data = bag_messages.serialize_transforms(at, moved)
                writer.write(topics["/tf"], now + 50_000_000, data)
    found = {}
    for frame in ("", "odom"):
        options = BagOptions(library, fixed_frame=frame)
        summary = run_bag(tmp_path / "in", tmp_path / f"out{frame}", options)
        assert (summary.poses, sum(summary.reports.values())) == (3, 0)
        assert summary.joined == (2 if frame else 0)
        _, messages = contents(tmp_path / f"out{frame}")
        found[frame] = messages["/object_poses"][-1].detections[0].results[0].pose
    variance = {frame: one.covariance.reshape(6, 6)[2, 2] for frame, one in found.items()}
    assert variance["odom"] < 0.5 * variance[""]
    assert abs(found["odom"].pose.position.z - turned_to(1)[2, 3]) < 0.05
