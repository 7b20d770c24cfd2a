# SPDX-License-Identifier: Apache-2.0
"""TF: object frames out, other frames in."""

from rclpy.duration import Duration
from rclpy.time import Time

from pose_refiner_ros.ros import compat
from pose_refiner_ros.ros.bad_input import TransformError
from pose_refiner_ros.ros.conversions import (
    matrix_from_transform,
    nanoseconds,
    transform_from_matrix,
)


class ObjectFrames:
    """Broadcasts a frame per object, no frame twice with the same stamp: tf2 warns of those."""

    def __init__(self, node):
        self._broadcaster = compat.transform_broadcaster(node)
        self._last_stamps = {}  # child frame -> nanoseconds

    def send(self, header, poses):
        """poses: {child frame: 4x4 pose in the header's frame}."""
        stamp = nanoseconds(header.stamp)
        if not header.frame_id or stamp == 0:  # tf2 reads stamp 0 as "the latest"
            return
        transforms = []
        for child, matrix in poses.items():
            if self._last_stamps.get(child) == stamp:
                continue
            self._last_stamps[child] = stamp
            transforms.append(transform_from_matrix(matrix, header, child))
        self._last_stamps = {child: self._last_stamps.get(child, stamp) for child in poses}
        if transforms:
            self._broadcaster.sendTransform(transforms)


class TransformLookup:
    """Looks frames up in tf2, where tf2_ros is installed.

    It listens to /tf only once something has been asked: in Python that costs a core's worth of
    time on a robot with many joints.
    """

    def __init__(self, node):
        self._node = node
        self._buffer = None

    def start(self):
        """Listen; TransformError where tf2_ros is not installed."""
        if self._buffer is None:
            self._buffer = compat.transform_buffer(self._node)
        if self._buffer is None:
            raise TransformError("tf2_ros is not installed")

    def matrix(self, target_frame, source_frame, stamp, timeout=0.1):
        """target_from_source at a stamp as a 4x4 matrix; TransformError with the reason."""
        try:
            self.start()
            found = self._buffer.lookup_transform(
                target_frame, source_frame, Time.from_msg(stamp), Duration(seconds=timeout)
            )
        except Exception as error:  # tf2 has several, and naming them needs tf2
            raise TransformError(
                f"there is no transform from '{source_frame}' to '{target_frame}': {error}"
            ) from None
        return matrix_from_transform(found.transform)
