# SPDX-License-Identifier: Apache-2.0
"""The node and a depth camera over DDS: what comes on `depth` and `points` is used, and what cannot
be is said once."""

import array
import time

import cv2
import numpy as np
import pytest
from node_bench import REAL_NODE, ROOT, TIMEOUT, values_of
from ros_messages import MUG, camera_info, header, image, write_library
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.rendering.scene import render_scene

pytestmark = pytest.mark.ros
SIZE = (240, 320)
CAMERA = Camera(np.reshape(camera_info(SIZE).k, (3, 3)), SIZE)
SEDAN = 1
AHEAD = np.array([[0.8, -0.6, 0, -0.5], [0, 0, -1, 0.5], [0.6, 0.8, 0, 9], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def library_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vehicles")
    (folder / "sedan.obj").symlink_to(ROOT / "pose_refiner_ros" / "data" / "sedan.obj")
    return write_library(folder, "objects:\n  sedan: {mesh: sedan.obj, unit: m, label: 1}\n")


@pytest.fixture(scope="module")
def client(start_nodes, library_file):
    client = start_nodes(
        REAL_NODE,
        device="cpu",
        objects_file=library_file,
        use_last_pose=False,
    )
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    for name, kind in (("depth", Image), ("points", PointCloud2)):
        client.publishers[name] = client.node.create_publisher(kind, name, 10)
    client.wait_connected("camera_info", "masks")
    return client


@pytest.fixture(scope="module")
def scene(library_file):
    """A car, and millimetres where it is."""
    mesh = ObjectLibrary.load(library_file)["sedan"].mesh
    drawn = render_scene([mesh], AHEAD[None], CAMERA, labels=[SEDAN])
    metres = np.where(np.isfinite(drawn.depth), drawn.depth, 0.0)
    return drawn.labels.astype(np.uint16), (1000 * metres).round().astype(np.uint16)


@pytest.fixture
def ask(client, scene):
    """ask(depth=millimetres) or ask(points=(N, 3)): the variance of the car's distance, m²."""
    labels, _ = scene

    def ask(depth=None, points=None):
        stamp = client.next_stamp(1000)  # what came before is too old
        if depth is not None:
            deliver(client, "depth", image(depth, "16UC1", stamp=stamp))
        if points is not None:
            deliver(client, "points", cloud(points, stamp))
        answer = client.ask(
            stamp=stamp,
            with_image=False,
            mask=image(labels, "mono16", stamp=stamp),
            info=camera_info(SIZE, stamp=stamp),
        )
        (detection,) = answer.detections
        return detection.results[0].pose.covariance.reshape(6, 6)[2, 2]

    return ask


def deliver(client, name, message):
    """Publish until the node has got it: the first best-effort messages may be lost."""

    def received():
        return int(values_of(client.status("poses"))[f"{name} received"])

    before, deadline = received(), time.monotonic() + TIMEOUT
    while received() == before:
        assert time.monotonic() < deadline, f"no {name} is received"
        client.publishers[name].publish(message)


def cloud(points, stamp):
    """In the camera's frame."""
    return PointCloud2(
        header=header(stamp),
        height=1,
        width=len(points),
        fields=[
            PointField(name=axis, offset=4 * i, datatype=PointField.FLOAT32, count=1)
            for i, axis in enumerate("xyz")
        ],
        point_step=12,
        row_step=12 * len(points),
        data=array.array("B", points.astype("<f4").tobytes()),
    )


def points_of(depth):
    rows, columns = np.nonzero(depth)
    rays = CAMERA.rays(np.stack([columns, rows], axis=-1).astype(float))
    return (rays / rays[:, 2:] * depth[rows, columns][:, None] / 1000.0)[::16]


def test_depth_and_points_make_the_distance_surer(client, scene, ask):
    _, depth = scene
    masks_alone = ask()
    assert ask(points=points_of(depth)) < 0.6 * masks_alone
    assert ask(depth=depth) < masks_alone  # at 8 m it is known to 13 cm
    assert "not used" not in client.process.log


def test_depth_of_another_size_gives_one_warning(client, scene, ask):
    _, depth = scene
    for _ in range(3):
        ask(depth=depth[::2, ::2])
    text = "depth not used: it is 160x120 and the camera 320x240"
    assert client.process.log.count(text) == 1
    (line,) = [line for line in client.process.lines if text in line]
    assert "WARN" in line and line.endswith("register it to the colour camera")


def test_depth_by_compressed_transport_and_of_another_frame(start_node):
    client = start_node(depth_transport="compressedDepth", label_names=["1:mug"])
    topic = "depth/compressedDepth"
    client.publishers["depth"] = client.node.create_publisher(CompressedImage, topic, 10)
    client.wait_connected("camera_info", "masks")
    for _ in range(2):
        stamp = client.next_stamp()
        packed = bytes(12) + cv2.imencode(".png", np.ones((120, 160), np.uint16))[1].tobytes()
        message = CompressedImage(
            header=header(stamp, "depth_frame"),
            format="16UC1; compressedDepth",
            data=array.array("B", packed),
        )
        deliver(client, "depth", message)
        assert len(client.ask(MUG, stamp=stamp).detections) == 1
    assert client.process.log.count("depth is in frame 'depth_frame', the masks in") == 1


def test_without_depth_nothing_of_it_is_subscribed(start_node):
    client = start_node(depth="never")
    client.wait_connected()
    topics = [f"{client.node.get_namespace()}/{name}" for name in ("depth", "points")]
    assert [client.node.count_subscribers(topic) for topic in topics] == [0, 0]
    assert client.node.count_subscribers(f"{client.node.get_namespace()}/masks") == 1
