# SPDX-License-Identifier: Apache-2.0
"""The node's output as serialized messages, made without ROS."""

import numpy as np

from pose_refiner_ros.ros import compat
from pose_refiner_ros.ros.message_types import typestore

POSES = "vision_msgs/msg/Detection3DArray"
TRANSFORMS = "tf2_msgs/msg/TFMessage"
IMAGE = "sensor_msgs/msg/Image"


def serialize_poses(header, poses, library, ids):
    """A Detection3DArray of ObjectPoses. header: anything with stamp and frame_id; ids: {label:
    int}. The pose is that of the object's origin, the box is centred on the object."""
    detections = []
    for pose in poses:
        model = library[pose.name]
        camera_from_box = pose.camera_from_object.copy()
        camera_from_box[:3, 3] += camera_from_box[:3, :3] @ model.box_center
        hypothesis = _make(
            "vision_msgs/msg/ObjectHypothesisWithPose",
            hypothesis=_make(
                "vision_msgs/msg/ObjectHypothesis", class_id=pose.name, score=float(pose.score)
            ),
            pose=_make(
                "geometry_msgs/msg/PoseWithCovariance",
                pose=_pose(pose.camera_from_object),
                covariance=np.asarray(pose.covariance, np.float64).ravel(),
            ),
        )
        box = _make(
            "vision_msgs/msg/BoundingBox3D",
            center=_pose(camera_from_box),
            size=_vector("geometry_msgs/msg/Vector3", model.box_size),
        )
        detections.append(
            _make(
                "vision_msgs/msg/Detection3D",
                header=_header(header),
                results=[hypothesis],
                bbox=box,
                id=str(ids[pose.label]),
            )
        )
    message = _make(POSES, header=_header(header), detections=detections)
    return typestore().serialize_cdr(message, POSES)


def serialize_transforms(header, frames):
    """A TFMessage. frames: {child frame: camera_from_object (4, 4)}."""
    transforms = [
        _make(
            "geometry_msgs/msg/TransformStamped",
            header=_header(header),
            child_frame_id=name,
            transform=_make(
                "geometry_msgs/msg/Transform",
                translation=_vector("geometry_msgs/msg/Vector3", pose[:3, 3]),
                rotation=_quaternion(pose),
            ),
        )
        for name, pose in frames.items()
    ]
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


def _vector(message_type, values):
    x, y, z = (float(value) for value in values)
    return _make(message_type, x=x, y=y, z=z)


def _quaternion(matrix):
    x, y, z, w = compat.quaternion_from_matrix(matrix[:3, :3])
    return _make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _pose(matrix):
    return _make(
        "geometry_msgs/msg/Pose",
        position=_vector("geometry_msgs/msg/Point", matrix[:3, 3]),
        orientation=_quaternion(matrix),
    )
