# SPDX-License-Identifier: Apache-2.0
"""The node's output as serialized messages, made without ROS."""

import numpy as np

from pose_refiner_ros.ros.conversions import detection_from_pose, transform_from_matrix
from pose_refiner_ros.ros.message_types import typestore

POSES = "vision_msgs/msg/Detection3DArray"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
IMAGE = "sensor_msgs/msg/Image"


def serialize_poses(header, poses, library, ids):
    """A Detection3DArray of ObjectPoses. header: anything with stamp and frame_id; ids: {label:
    int}."""
    header = _header(header)
    detections = [
        detection_from_pose(pose, library[pose.name], ids[pose.label], header, make=_make)
        for pose in poses
    ]
    return typestore().serialize_cdr(_make(POSES, header=header, detections=detections), POSES)


def serialize_transforms(header, frames):
    """A TFMessage. frames: {child frame: camera_from_object (4, 4)}."""
    header = _header(header)
    transforms = [transform_from_matrix(pose, header, name, _make) for name, pose in frames.items()]
    return typestore().serialize_cdr(_make(TRANSFORMS, transforms=transforms), TRANSFORMS)


def serialize_image(header, picture):
    """An rgb8 Image of a (height, width, 3) uint8 array."""
    height, width = picture.shape[:2]
    message = _make(
        IMAGE,
        header=_header(header),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(picture).reshape(-1),
    )
    return typestore().serialize_cdr(message, IMAGE)


def _make(message_type, **fields):
    return typestore().types[message_type](**fields)


def _header(header):
    stamp = _make("builtin_interfaces/msg/Time", sec=header.stamp.sec, nanosec=header.stamp.nanosec)
    return _make("std_msgs/msg/Header", stamp=stamp, frame_id=header.frame_id)
