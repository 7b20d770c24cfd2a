# SPDX-License-Identifier: Apache-2.0
"""What a ROS installation provides and the wheels from PyPI lack, or what changed its name.

message_filters is not used even where it is installed: its ApproximateTimeSynchronizer calls back
while it holds its lock, never fires with a slop of 0, knows no optional inputs and bounds messages,
not bytes. `frame_assembler.py` pairs messages instead. sensor_msgs_py reads point clouds, which the
node does not take yet.
"""

import functools
import importlib
import importlib.util

import numpy as np
from scipy.spatial.transform import Rotation

__all__ = [
    "convert_color",
    "matrix_from_quaternion",
    "quaternion_from_matrix",
    "ros_cv_bridge",
    "transform_broadcaster",
    "transform_buffer",
]


def quaternion_from_matrix(rotation):
    """(x, y, z, w) floats of a rotation (3, 3)."""
    return tuple(Rotation.from_matrix(rotation).as_quat(canonical=True).tolist())


def matrix_from_quaternion(x, y, z, w):
    """Rotation (3, 3) of a quaternion."""
    return Rotation.from_quat((x, y, z, w)).as_matrix()


def transform_broadcaster(node):
    """An object with `sendTransform(list of TransformStamped)`."""
    if importlib.util.find_spec("tf2_ros"):
        from tf2_ros import TransformBroadcaster

        return TransformBroadcaster(node)
    return _TransformPublisher(node)


class _TransformPublisher:
    """Publishes on /tf what tf2_ros.TransformBroadcaster would, with the same QoS."""

    def __init__(self, node):
        from tf2_msgs.msg import TFMessage

        self._message_type = TFMessage
        self._publisher = node.create_publisher(TFMessage, "/tf", 100)

    def sendTransform(self, transforms):  # the name in tf2_ros
        self._publisher.publish(self._message_type(transforms=transforms))


def transform_buffer(node):
    """A tf2 buffer that listens to /tf, or None where tf2_ros is not installed."""
    if not importlib.util.find_spec("tf2_ros"):
        return None
    from tf2_ros import Buffer, TransformListener

    buffer = Buffer(node=node)
    buffer.listener = TransformListener(buffer, node)  # kept alive together
    return buffer


@functools.lru_cache(maxsize=1)
def ros_cv_bridge():
    """The cv_bridge of a ROS installation, or None.

    PyPI has an unrelated `cv-bridge` that corrupts 16-bit images; it is no ament package, by which
    it is told apart. A cv_bridge built for NumPy 1 raises when NumPy 2 is installed.
    """
    try:
        from ament_index_python.packages import get_package_prefix

        get_package_prefix("cv_bridge")
        return importlib.import_module("cv_bridge").CvBridge()
    except Exception:  # not there, not ROS's, or broken: all the same to us
        return None


def convert_color(message, rows):
    """RGB picture of an image message in one of the less usual encodings (Bayer, YUV, 16 bits).

    `rows` is its data without padding at the ends of rows, (height, bytes of a row) uint8. Raises
    an exception if the encoding is not known.
    """
    bridge = ros_cv_bridge()
    if bridge is not None:
        return bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
    from rosbags.image import message_to_cvimage

    return message_to_cvimage(_PlainImage(message, rows), "rgb8")


class _PlainImage:
    """An image as rosbags-image reads it: it takes no notice of `step`."""

    def __init__(self, message, rows):
        self.height, self.width = message.height, message.width
        self.encoding = message.encoding
        self.is_bigendian = bool(message.is_bigendian)
        self.data = np.ascontiguousarray(rows)
