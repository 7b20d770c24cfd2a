# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
import types

import numpy as np
import pytest
from geometry_msgs.msg import TransformStamped
from ros_messages import header

from pose_refiner_ros.ros import compat, transforms
from pose_refiner_ros.ros.bad_input import TransformError


class Broadcaster:
    def __init__(self):
        self.sent = []

    def sendTransform(self, messages):
        self.sent.append(messages)


@pytest.fixture
def frames(monkeypatch):
    broadcaster = Broadcaster()
    monkeypatch.setattr(compat, "transform_broadcaster", lambda node: broadcaster)
    return transforms.ObjectFrames(None), broadcaster.sent


def at(x):
    matrix = np.eye(4)
    matrix[0, 3] = x
    return matrix


def test_frames_of_objects(frames):
    object_frames, sent = frames
    object_frames.send(header(stamp=5), {"mug_1": at(0.5), "box_2": at(0.7)})
    (messages,) = sent
    assert [(m.child_frame_id, m.transform.translation.x) for m in messages] == [
        ("mug_1", 0.5),
        ("box_2", 0.7),
    ]
    assert messages[0].header == header(stamp=5)
    assert messages[0].transform.rotation.w == 1.0


def test_no_frame_twice_with_the_same_stamp(frames):
    object_frames, sent = frames
    object_frames.send(header(stamp=5), {"mug_1": at(0.5)})
    object_frames.send(header(stamp=5), {"mug_1": at(0.6)})
    assert len(sent) == 1
    object_frames.send(header(stamp=6), {"mug_1": at(0.6)})
    assert len(sent) == 2


def test_unstamped_frames_are_not_sent(frames):
    object_frames, sent = frames
    object_frames.send(header(stamp=0), {"mug_1": at(0.5)})
    object_frames.send(header(stamp=9), {})
    assert sent == []


def test_lookup_without_tf2_says_so():
    if importlib.util.find_spec("tf2_ros"):
        pytest.skip("tf2_ros is installed")
    with pytest.raises(TransformError, match="tf2_ros is not installed"):
        transforms.TransformLookup(None).matrix("map", "camera", header().stamp)


def test_lookup(monkeypatch):
    def lookup_transform(target, source, stamp, timeout):
        if target != "map":
            raise RuntimeError("map does not exist")
        assert stamp.nanoseconds == 7
        found = TransformStamped()
        found.transform.translation.x = 3.0
        return found

    buffer = types.SimpleNamespace(lookup_transform=lookup_transform)
    monkeypatch.setattr(compat, "transform_buffer", lambda node: buffer)
    lookup = transforms.TransformLookup(None)
    assert lookup.matrix("map", "camera", header(stamp=7).stamp)[0, 3] == 3.0
    with pytest.raises(TransformError, match=r"from 'camera' to 'odom'.*does not exist"):
        lookup.matrix("odom", "camera", header(stamp=7).stamp)


def test_tf2_is_used_where_it_is_installed(monkeypatch):
    module = types.ModuleType("tf2_ros")
    module.TransformBroadcaster = lambda node: ("broadcaster of", node)
    module.Buffer = lambda node: types.SimpleNamespace(node=node)
    module.TransformListener = lambda buffer, node: "listener"
    module.__spec__ = importlib.util.spec_from_loader("tf2_ros", loader=None)
    monkeypatch.setitem(sys.modules, "tf2_ros", module)
    assert compat.transform_broadcaster("node") == ("broadcaster of", "node")
    assert compat.transform_buffer("node").listener == "listener"
