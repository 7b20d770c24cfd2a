# SPDX-License-Identifier: Apache-2.0
"""The node over DDS, in a process of its own, with a pipeline that answers at once."""

import array
import importlib.util
import signal
import time

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import stamp_of, values_of
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from ros_messages import BOX, MUG, camera_info, detections, header, masks, picture
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from stub_node import SLOW
from visualization_msgs.msg import Marker

pytestmark = pytest.mark.ros
NAMES = ("1:mug", "2:box", f"{SLOW}:mug")


INPUTS = ("image", "camera_info", "masks", "detections", "initial_poses")


@pytest.fixture(scope="module")
def shared_client(start_nodes):
    return start_nodes(label_names=NAMES)


@pytest.fixture
def client(shared_client):
    """Of a node that is active, connected and knows nothing of the test before."""
    shared_client.begin(*INPUTS)
    yield shared_client
    shared_client.restore_parameters()


def test_a_frame_is_answered(client):
    answer = client.ask(MUG, BOX)
    assert answer.header.frame_id == "camera_optical_frame"
    assert [d.results[0].hypothesis.class_id for d in answer.detections] == ["mug", "box"]
    for detection in answer.detections:
        assert detection.header == answer.header
        assert 0 < detection.results[0].hypothesis.score <= 1
        covariance = np.reshape(detection.results[0].pose.covariance, (6, 6))
        assert (np.linalg.eigvalsh(covariance) > 0).all()
        assert detection.bbox.size.x == pytest.approx(0.1)
        # The origin of the box's mesh is at its bottom.
        origin, center = detection.results[0].pose.pose.position, detection.bbox.center.position
        assert center.z - origin.z == pytest.approx(0.05)
    ids = [d.id for d in answer.detections]
    assert len(set(ids)) == 2
    assert [d.id for d in client.ask(MUG, BOX).detections] == ids
    assert client.ask().detections == []  # empty scenes are answered, too


def test_transforms_and_markers(client):
    answer = client.ask(MUG, BOX)
    stamp = stamp_of(answer)
    frames = {f"{d.results[0].hypothesis.class_id}_{d.id}" for d in answer.detections}

    def transforms():
        return [
            t
            for message in list(client.transforms)
            for t in message.transforms
            if stamp_of(t) == stamp
        ]

    client.wait_until(lambda: len(transforms()) == 2, "transforms")
    assert {t.child_frame_id for t in transforms()} == frames
    assert {t.header.frame_id for t in transforms()} == {"camera_optical_frame"}
    client.wait_until(lambda: client.markers, "markers")
    assert [m.action for m in client.markers[-1].markers] == [Marker.ADD, Marker.ADD]
    client.ask(MUG)
    client.wait_until(
        lambda: Marker.DELETE in [m.action for m in client.markers[-1].markers],
        "the marker of the box to be deleted",
    )


def test_masks_without_images_are_answered(client):
    answer = client.ask(MUG, with_image=False)
    assert len(answer.detections) == 1


def test_header_is_that_of_the_image(client):
    stamp = client.next_stamp()
    mask = masks(MUG, stamp=stamp + 4_000_000, frame_id="segmenter")
    client.send(MUG, stamp=stamp, mask=mask)
    assert client.answer(stamp).header.frame_id == "camera_optical_frame"


def test_overlay_only_while_someone_looks(client):
    client.ask(MUG)
    for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT):
        client.watch_overlay(reliability)
    client.wait_until(lambda: client.ask(MUG) and len(client.overlays) >= 2, "the overlay")
    overlay = client.overlays[-1]
    assert (overlay.height, overlay.width, overlay.encoding) == (120, 160, "rgb8")
    assert len(set(bytes(overlay.data))) > 1  # something is drawn on the gray picture


def test_detections_name_the_labels(client):
    client.ask(MUG)
    stamp = client.next_stamp()
    client.publishers["detections"].publish(detections({5: "cup"}, stamp=stamp))
    answer = client.ask(5, stamp=stamp)
    assert answer.detections[0].results[0].hypothesis.class_id == "mug"
    # They are waited for once they are published.
    stamp = client.send(6)
    time.sleep(0.05)
    client.publishers["detections"].publish(detections({6: "box"}, stamp=stamp))
    answer = client.answer(stamp)
    assert answer.detections[0].results[0].hypothesis.class_id == "box"


def test_parameters_that_change_while_running(client):
    assert len(client.ask(MUG).detections) == 1
    client.set("min_score", 0.95)
    assert client.ask(MUG).detections == []
    client.set("min_score", 0.0)
    client.set("publish_qualities", ["poor"])
    assert client.ask(MUG).detections == []
    client.set("publish_qualities", ["good"])
    client.set("tf_prefix", "left/")
    stamp = client.send(MUG)
    client.wait_until(
        lambda: any(
            t.child_frame_id.startswith("left/mug_")
            for message in list(client.transforms)
            for t in message.transforms
            if stamp_of(t) == stamp
        ),
        "the prefixed frame",
    )
    assert "min_score" in client.set_parameter("min_score", 2.0)
    assert "read-only" in client.set_parameter("autostart", False)


def test_newest_frame_wins_and_skips_are_counted(client):
    def counts():
        values = values_of(client.status("poses"))
        return int(values["frames answered"]), int(values["frames skipped"])

    before = counts()
    for _ in range(30):
        last = client.send(SLOW)
        time.sleep(0.02)
    client.answer(last)
    answered, skipped = (now - then for now, then in zip(counts(), before, strict=True))
    assert answered < 10
    assert answered + skipped >= 25  # best effort: a busy machine may lose some on the way


def test_diagnostics(client):
    client.ask(MUG)
    status = client.status("poses", lambda s: "rate (Hz)" in values_of(s))
    assert status.level == DiagnosticStatus.OK
    values = values_of(status)
    for key in ("rate (Hz)", "latency p50 (ms)", "latency p95 (ms)", "last error", "state"):
        assert key in values
    values = values_of(client.status("objects"))
    assert values["objects"] == "mug, box"
    assert values["device"] == "cpu"


def test_reset(client):
    client.ask(MUG)
    assert client.trigger("reset").success
    client.wait_until(
        lambda: client.markers and client.markers[-1].markers[-1].action == Marker.DELETEALL,
        "the markers to be deleted",
    )
    assert len(client.ask(MUG).detections) == 1


def test_bag_that_loops(client):
    first = client.next_stamp()
    for _ in range(2):
        for step in range(4):
            stamp = first + step * 300 * 10**6
            client.poses.clear()
            client.send(MUG, stamp=stamp)
            client.answer(stamp)
    client.process.wait_for_log("stamps jumped back")


def test_lifecycle(start_node):
    client = start_node(autostart=False)
    assert client.state() == "unconfigured"
    assert client.transition("configure")
    assert client.state() == "inactive"
    assert client.publishers["masks"].get_subscription_count() == 0
    for _ in range(2):
        assert client.transition("activate")
        client.wait_connected()
        assert len(client.ask(MUG).detections) == 1
        assert client.transition("deactivate")
        client.wait_until(
            lambda: client.publishers["masks"].get_subscription_count() == 0, "the end of work"
        )
    before = len(client.poses)
    client.send(MUG)
    time.sleep(0.3)
    assert len(client.poses) == before
    assert client.transition("cleanup")
    assert client.state() == "unconfigured"
    assert client.transition("configure") and client.transition("activate")
    client.wait_connected()
    assert len(client.ask(MUG).detections) == 1
    assert client.transition("shutdown")
    assert client.state() == "finalized"
    assert client.process.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("busy", [False, True])
def test_signals_end_it_cleanly(start_node, number, busy):
    client = start_node(label_names=NAMES)
    client.wait_connected()
    if busy:
        for _ in range(3):
            client.send(SLOW)
            time.sleep(0.05)
    started = time.monotonic()
    assert client.process.stop(number) == 0
    assert time.monotonic() - started < 5
    assert "Traceback" not in client.process.log


def test_signal_during_start(start_node):
    client = start_node()
    client.process.wait_for_log("loading objects")
    assert client.process.stop() == 0
    assert "Traceback" not in client.process.log


def test_wrong_parameter_ends_it_with_a_message(start_node):
    client = start_node(min_score=7.0)
    assert client.process.process.wait(20) == 1
    client.process.stop()
    assert "min_score" in client.process.log
    assert "Traceback" not in client.process.log


def test_bad_library_then_a_good_one(start_node, tmp_path):
    file = tmp_path / "late.yaml"
    client = start_node(objects_file=file)
    client.process.wait_for_log("late.yaml does not exist")
    assert client.state() == "unconfigured"
    status = client.status("objects")
    assert status.level == DiagnosticStatus.ERROR
    assert "late.yaml" in status.message
    file.write_text("objects: [\n")
    reply = client.trigger("reload_objects")
    assert not reply.success
    assert "late.yaml" in reply.message
    file.write_text("objects:\n  mug: {mesh: box.obj, unit: m}\n  bad: {mesh: no.obj, unit: m}\n")
    reply = client.trigger("reload_objects")
    assert reply.success
    assert "mug" in reply.message and "bad left out" in reply.message
    client.wait_connected()
    assert len(client.ask(MUG).detections) == 1
    status = client.status("objects")
    assert status.level == DiagnosticStatus.WARN
    assert "no.obj" in values_of(status)["problem with bad"]


def test_no_objects_file_gives_the_vehicles_of_the_package(start_node):
    client = start_node(objects_file="")
    client.process.wait_for_log("3 objects loaded: sedan, suv, cargo")
    assert client.status("objects").level == DiagnosticStatus.OK


def test_refinement_that_there_is_not(start_node):
    client = start_node(refinement="magic")
    assert client.process.process.wait(20) == 1
    client.process.stop()
    assert "refinement is 'magic': it must be one of: solver" in client.process.log


def test_reload_while_running(start_node, tmp_path):
    library_file = tmp_path / "objects.yaml"
    client = start_node()
    client.wait_connected()
    assert len(client.ask(MUG).detections) == 1
    good = library_file.read_text()
    library_file.write_text("nonsense")
    assert not client.trigger("reload_objects").success
    assert len(client.ask(MUG).detections) == 1  # the old objects stay in use
    library_file.write_text(good.replace("label: 1", "label: 9"))
    assert client.trigger("reload_objects").success
    client.wait_connected()
    assert len(client.ask(9).detections) == 1
    assert client.ask(MUG).detections == []


def test_other_objects_by_parameter(start_node, tmp_path):
    client = start_node()
    client.wait_connected()
    other = tmp_path / "other.yaml"
    other.write_text("objects:\n  crate: {mesh: box.obj, unit: m}\n")
    client.set("objects_file", str(other))
    assert client.trigger("reload_objects").success
    client.wait_connected()
    assert client.ask(4).detections[0].results[0].hypothesis.class_id == "crate"


def test_compressed_images(client):
    client.set("image_transport", "compressed")
    client.begin("image/compressed", "masks")
    client.set("require_image", True)
    _, data = cv2.imencode(".jpg", np.full((120, 160, 3), 90, np.uint8))
    data = array.array("B", data.tobytes())

    def is_answered():
        stamp = client.next_stamp()
        message = CompressedImage(header=header(stamp=stamp), format="jpeg", data=data)
        client.publishers["image/compressed"].publish(message)
        client.send(MUG, stamp=stamp, with_image=False)
        time.sleep(0.3)
        return client.poses_at(stamp)

    client.wait_until(is_answered, "the answer to a compressed image")


def test_target_frame_without_tf2_is_refused(client):
    if importlib.util.find_spec("tf2_ros"):
        pytest.skip("tf2_ros is installed")
    client.set("target_frame", "map")
    assert client.transition("deactivate")
    assert not client.transition("activate")
    client.process.wait_for_log("tf2_ros is not installed")
    assert client.state() == "inactive"
    client.set("target_frame", "")
    assert client.transition("activate")


# ---- nothing is published: the log says why ----


@pytest.fixture
def silent(client):
    """A client of a node that loses patience soon."""
    client.set("watchdog_seconds", 0.5)
    return client


def warned(client, *words):
    status = client.status("poses", lambda s: all(word in s.message for word in words))
    assert status.level == DiagnosticStatus.WARN


def test_no_masks_topic(silent):
    with silent.without("masks"), silent.other_publisher("segmenter/masks_raw", Image, 10):
        warned(silent, "nobody publishes", "/masks", "segmenter/masks_raw")
        silent.process.wait_for_log("nobody publishes")
    assert "/scene_view" not in silent.process.log.split("published with that type")[1]


def test_masks_of_another_type(silent):
    with silent.without("masks"), silent.other_publisher("masks", String, 10):
        warned(silent, "is published as std_msgs/msg/String")


def test_no_camera_info(silent):
    with silent.without("camera_info"):
        silent.publishers["masks"].publish(masks(MUG, stamp=silent.next_stamp()))
        warned(silent, "nobody publishes", "camera_info")


def test_stamps_that_never_match(silent):
    silent.set("require_image", True)
    for _ in range(3):
        stamp = silent.next_stamp()
        silent.send(MUG, stamp=stamp, image=picture(stamp=stamp + 30_000_000))
        time.sleep(0.05)
    warned(silent, "never match", "0.0", "sync_slop")


def test_labels_without_names(silent):
    silent.ask(9)
    warned(silent, "label 9", "no name")


def test_all_under_min_score(silent):
    silent.set("min_score", 0.95)
    silent.ask(MUG)
    warned(silent, "under min_score 0.95")


def test_masks_that_stop(silent):
    silent.ask(MUG)
    warned(silent, "no masks have arrived lately")


def test_empty_scenes_are_no_silence(silent):
    for _ in range(8):
        silent.ask()
        time.sleep(0.1)
    assert silent.status("poses").level == DiagnosticStatus.OK


def test_incompatible_qos(start_node):
    name = "qos_overrides.{ns}/masks.subscription.reliability"
    client = start_node(watchdog_seconds=0.5, **{name: "reliable"})
    with client.without("masks"), client.other_publisher("masks", Image, qos_profile_sensor_data):
        client.process.wait_for_log("not received because of their reliability")
        warned(client, "best_effort", "/masks.subscription.reliability")


def test_latched_camera_info(start_node):
    name = "qos_overrides.{ns}/camera_info.subscription."
    client = start_node(
        **{f"{name}durability": "transient_local", f"{name}reliability": "reliable"}
    )
    qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    with client.without("camera_info"), client.other_publisher("camera_info", CameraInfo, qos) as p:
        p.publish(camera_info())
        client.wait_connected("masks")
        assert len(client.ask(MUG).detections) == 1
