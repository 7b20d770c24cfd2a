# SPDX-License-Identifier: Apache-2.0
"""The node and two cameras over DDS: one pose by both; one stops, is told of, and returns."""

import time

import numpy as np
import pytest
from node_bench import REAL_NODE, ROOT, TF2
from ros_messages import camera_info, header, image, write_library
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.ros.conversions import transform_from_matrix

pytestmark = pytest.mark.ros
SIZE = (240, 320)
CAMERA = Camera(np.reshape(camera_info(SIZE).k, (3, 3)), SIZE)
AHEAD = np.array([[0.8, -0.6, 0, -0.5], [0, 0, -1, 0.5], [0.6, 0.8, 0, 9], [0, 0, 0, 1.0]])
ASIDE = np.array([[0.8, 0, -0.6, 5.0], [0, 1, 0, 0], [0.6, 0, 0.8, 1.5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def library_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vehicles")
    (folder / "sedan.obj").symlink_to(ROOT / "pose_refiner_ros" / "data" / "sedan.obj")
    return write_library(folder, "objects:\n  sedan: {mesh: sedan.obj, unit: m, label: 1}\n")


@pytest.fixture(scope="module")
def client(start_nodes, library_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TF2, prepend=":")
        client = start_nodes(
            REAL_NODE,
            device="cpu",
            objects_file=library_file,
            use_last_pose=False,
            cameras=["left", "right"],
        )
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    for camera in ("left", "right"):
        for name, kind in (("masks", Image), ("camera_info", CameraInfo)):
            topic = f"{camera}/{name}"
            client.publishers[topic] = client.node.create_publisher(kind, topic, 10)
    client.publishers["tf"] = client.node.create_publisher(TFMessage, "/tf", 10)
    names = ("left/masks", "right/masks", "left/camera_info", "right/camera_info")
    client.wait_until(
        lambda: all(client.publishers[name].get_subscription_count() for name in names),
        "the node to subscribe",
    )
    return client


@pytest.fixture
def ask(client, library_file):
    """ask("left", "right"): the variance of the car's distance by masks of these cameras."""
    mesh = ObjectLibrary.load(library_file)["sedan"].mesh
    poses = {"left": AHEAD, "right": inverse(ASIDE) @ AHEAD}

    def send(*cameras):
        stamp = client.next_stamp(1000)
        move = transform_from_matrix(ASIDE, header(stamp, "left"), "right")
        client.publishers["tf"].publish(TFMessage(transforms=[move]))
        for camera in reversed(cameras):  # the first one's last
            labels = render_scene([mesh], poses[camera][None], CAMERA, labels=[1]).labels
            where = {"stamp": stamp, "frame_id": camera}
            client.publishers[f"{camera}/camera_info"].publish(camera_info(SIZE, **where))
            mask = image(labels.astype(np.uint16), "mono16", **where)
            client.publishers[f"{camera}/masks"].publish(mask)

        return lambda: [one for one in client.poses if one.header == header(stamp, "left")]

    def ask(*cameras):
        answers = send(*cameras)
        client.wait_until(answers, f"an answer to {cameras}")
        (detection,) = answers()[0].detections
        return detection.results[0].pose.covariance.reshape(6, 6)[2, 2]

    def discovered():  # until then messages are lost
        answers = send("left", "right")
        time.sleep(0.3)
        return answers() and "left out" not in client.process.lines[-1]

    client.wait_until(discovered, "both cameras to be discovered")
    return ask


def test_one_pose_by_two_cameras_of_which_one_stops_and_returns(client, ask):
    both = ask("left", "right")
    time.sleep(2.5)  # the right one's masks stop: they are not waited for any more
    alone = ask("left")
    client.process.wait_for_log("camera right is left out: no masks come")
    assert both < 0.5 * alone
    assert ask("left", "right") < 0.5 * alone
