# SPDX-License-Identifier: Apache-2.0
"""`~/scene_view` of the node: drawn for those who look, from a mounted camera or from TF."""

from types import SimpleNamespace

import numpy as np
import pytest
from ros_messages import write_library
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.ros import outputs, parameters
from pose_refiner_ros.ros.bad_input import TransformError

MUG = 1
CAMERA = Camera([[300, 0, 159.5], [0, 300, 119.5], [0, 0, 1]], (240, 320))


@pytest.mark.ros
def test_only_while_someone_looks_and_as_the_parameters_say(start_node):
    client = start_node()
    client.wait_until(lambda: client.state() == "active", "the node")
    client.wait_connected()
    client.ask(MUG)
    pictures = []
    client.node.create_subscription(Image, "pose_refiner/scene_view", pictures.append, 5)
    client.wait_until(lambda: client.ask(MUG) and len(pictures) >= 2, "the scene")
    scene = pictures[-1]
    assert (scene.height, scene.width, scene.encoding) == (480, 640, "rgb8")
    assert len(set(bytes(scene.data[: 640 * 3 * 100]))) > 10
    assert scene.header.frame_id and scene.header.stamp.sec

    client.set("scene.width", 200)
    client.set("scene.height", 100)
    client.set("scene.view", "custom")
    client.wait_until(lambda: client.ask(MUG) and pictures[-1].width == 200, "another size")
    client.set("scene.target", [-8.0, 0.0, 5.0])  # equal to scene.eye
    client.ask(MUG)
    client.process.wait_for_log(r"~/scene_view: the view looks from -8 0 5 at itself")
    client.set("scene.view", "chase")
    client.set("scene.frame", "map")
    client.ask(MUG)
    client.ask(MUG)
    client.process.wait_for_log(r"~/scene_view: .*; publish that transform, or leave scene.frame")
    assert client.process.log.count("~/scene_view: ") == 2  # said once each, not in every frame


class Publisher:
    def __init__(self, subscribers):
        self.subscribers, self.messages = subscribers, []

    def get_subscription_count(self):
        return self.subscribers

    def publish(self, message):
        self.messages.append(message)


class Transforms:
    """map from the camera: one and a half metres up, looking along map's y axis."""

    def matrix(self, target, source, stamp):
        if target != "map":
            raise TransformError(f"there is no transform from '{source}' to '{target}'")
        assert (source, stamp.sec) == ("camera", 7)
        matrix = np.eye(4)
        matrix[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
        matrix[:3, 3] = (100.0, 200.0, 1.5)
        return matrix


@pytest.fixture
def make_output(tmp_path, monkeypatch):
    """(Outputs with a scene publisher, what draw_scene was called with, what was reported)"""
    library = ObjectLibrary.load(write_library(tmp_path))
    monkeypatch.setattr(outputs.qos, "create_publisher", lambda *_: Publisher(1))
    monkeypatch.setattr(outputs, "ObjectFrames", lambda node: None)
    calls = []

    def draw_scene(scene, library, view, size):
        calls.append((scene, view, size))
        return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr("pose_refiner_ros.drawing.scene_view.draw_scene", draw_scene)
    return outputs.Outputs(None, library, Transforms()), calls, next(iter(library))


def answer(name, z=10.0):
    pose = SimpleNamespace(label=4, name=name, quality="good", camera_from_object=np.eye(4))
    pose.camera_from_object[:3, 3] = (1.0, 1.0, z)
    header = Header(frame_id="camera")
    header.stamp.sec = 7
    return SimpleNamespace(
        header=header, poses=[pose], ids={4: 12}, frame=SimpleNamespace(camera=CAMERA)
    )


def publish(made, values, z=10.0):
    output, calls, name = made
    reports = []
    output.publish_scene_view(answer(name, z), values, reports.append)
    return calls, reports


def test_scene_from_height_and_pitch(make_output):
    values = parameters.defaults()
    values.scene_camera_height, values.scene_width = 2.0, 320
    calls, reports = publish(make_output, values)
    (scene, view, size), *_ = calls
    assert (view, size, reports) == ("birds_eye", (480, 320), [])
    (one,) = scene.objects
    assert one.id == 12 and scene.camera is CAMERA
    np.testing.assert_allclose(one.position, (10.0, -1.0, 1.0), atol=1e-9)


def test_scene_in_a_tf_frame(make_output):
    values = parameters.defaults()
    values.scene_frame = "map"
    calls, reports = publish(make_output, values)
    np.testing.assert_allclose(calls[0][0].objects[0].position, (101.0, 210.0, 0.5), atol=1e-9)
    assert reports == []
    values.scene_frame = "odom"
    calls, reports = publish(make_output, values)
    assert len(calls) == 1 and len(reports) == 1
    assert "no transform from 'camera' to 'odom'; publish that transform, or" in reports[0]


def test_an_object_behind_the_camera_is_named_and_the_scene_still_drawn(make_output):
    calls, reports = publish(make_output, parameters.defaults(), z=-3.0)
    assert calls[0][0].objects == []
    assert len(reports) == 1 and "label 4" in reports[0] and "behind the camera" in reports[0]


def test_nothing_is_drawn_for_nobody(make_output):
    make_output[0]._scene_view.subscribers = 0
    calls, reports = publish(make_output, parameters.defaults())
    assert calls == reports == []
