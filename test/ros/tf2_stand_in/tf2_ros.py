# SPDX-License-Identifier: Apache-2.0
"""The wheels of ROS have no tf2_ros: what the node uses of it, for tests over DDS."""

import time

from geometry_msgs.msg import TransformStamped
from tf2_msgs.msg import TFMessage

from pose_refiner_ros.geometry.frame_tree import FrameTree
from pose_refiner_ros.ros.conversions import (
    matrix_from_transform,
    nanoseconds,
    transform_from_matrix,
)


class Buffer:
    def __init__(self, node):
        self.tree, self.newest = FrameTree(), 0.0

    def lookup_transform(self, target, source, when, timeout):
        """Waits for it, and takes no transform for that of a later stamp, as tf2 does."""
        deadline = time.monotonic() + timeout.nanoseconds / 1e9
        stamp = when.nanoseconds / 1e9
        while True:
            try:
                if stamp > self.newest:
                    raise LookupError("extrapolation into the future")
                matrix = self.tree.matrix(target, source, stamp)
                return transform_from_matrix(matrix, TransformStamped().header, source)
            except LookupError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)


class TransformListener:
    def __init__(self, buffer, node):
        self.buffer = buffer
        node.create_subscription(TFMessage, "/tf", self.take, 100)

    def take(self, message):
        for one in message.transforms:
            stamp = nanoseconds(one.header.stamp) / 1e9
            matrix, frames = (
                matrix_from_transform(one.transform),
                (one.header.frame_id, one.child_frame_id),
            )
            self.buffer.tree.add(*frames, stamp, matrix, False)
            self.buffer.newest = max(self.buffer.newest, stamp)


class TransformBroadcaster:
    def __init__(self, node):
        self.publisher = node.create_publisher(TFMessage, "/tf", 100)

    def sendTransform(self, transforms):
        self.publisher.publish(TFMessage(transforms=transforms))
