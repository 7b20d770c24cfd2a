# SPDX-License-Identifier: Apache-2.0
"""ROS messages to the core's types and back: stamps, cameras, poses.

Message types are imported where one is made: reading works without ROS, on what rosbags gives.
"""

import re
from dataclasses import replace
from importlib import import_module

import numpy as np

from pose_refiner_ros.frame import likely_alternatives
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import about_point, in_axes, rigid
from pose_refiner_ros.ros import compat
from pose_refiner_ros.ros.bad_input import BadInput


def nanoseconds(stamp):
    """A builtin_interfaces/Time as one integer."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def camera_from_info(info, size, rectified=False, what="masks"):
    """The camera of an image of `size` (height, width), from its CameraInfo. what: for messages."""
    full_size = (info.height, info.width)
    if 0 in full_size:  # some drivers leave it to the image
        full_size = size
    if rectified:
        matrix, distortion, model = np.array(info.p).reshape(3, 4)[:, :3], (), "none"
    else:
        matrix, distortion = info.k, info.d
        model = info.distortion_model or ("plumb_bob" if len(info.d) else "none")
    binning = (info.binning_x, info.binning_y)
    try:
        camera = Camera.from_calibration(full_size, matrix, distortion, model, binning, info.roi)
    except CameraError as error:
        raise BadInput("camera_info", f"camera_info: {error}") from None
    if camera.size != tuple(size):
        advice = "where images are resized, the camera's calibration must be as well"
        if what == "masks":
            advice = (
                "masks must have the size of the camera image (resize them with nearest neighbour)"
            )
        raise BadInput(
            f"{what} size",
            f"{what} are {size[1]}x{size[0]} pixels, but camera_info is for "
            f"{camera.width}x{camera.height}; {advice}",
        )
    return camera


def matrix_from_pose(pose):
    """A geometry_msgs/Pose as a 4x4 matrix; ValueError if it is none."""
    return _matrix(pose.position, pose.orientation)


def matrix_from_transform(transform):
    """A geometry_msgs/Transform as a 4x4 matrix; ValueError if it is none."""
    return _matrix(transform.translation, transform.rotation)


def _matrix(position, orientation):
    position = np.array([position.x, position.y, position.z])
    orientation = np.array([orientation.x, orientation.y, orientation.z, orientation.w])
    if not np.isfinite(position).all():
        raise ValueError(f"position {position.tolist()}")
    if not abs(np.linalg.norm(orientation) - 1) < 0.01:
        raise ValueError(f"orientation {orientation.tolist()} is no unit quaternion")
    return rigid(compat.matrix_from_quaternion(*orientation), position)


def make_message(type_name, **fields):
    """A message of rclpy; bags have a function of their own (`bag_messages.py`)."""
    package, _, name = type_name.split("/")
    return getattr(import_module(f"{package}.msg"), name)(**fields)


def vector(values, type_name="geometry_msgs/msg/Vector3", make=make_message):
    """rclpy silently corrupts numpy scalars in float fields: hence float()."""
    x, y, z = (float(value) for value in values)
    return make(type_name, x=x, y=y, z=z)


def quaternion(rotation, make=make_message):
    x, y, z, w = compat.quaternion_from_matrix(rotation)
    return make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def pose_from_matrix(matrix, make=make_message):
    return make(
        "geometry_msgs/msg/Pose",
        position=vector(matrix[:3, 3], "geometry_msgs/msg/Point", make),
        orientation=quaternion(matrix[:3, :3], make),
    )


def transform_from_matrix(matrix, header, child, make=make_message):
    """A TransformStamped."""
    transform = make(
        "geometry_msgs/msg/Transform",
        translation=vector(matrix[:3, 3], make=make),
        rotation=quaternion(matrix[:3, :3], make),
    )
    return make(
        "geometry_msgs/msg/TransformStamped",
        header=header,
        child_frame_id=child,
        transform=transform,
    )


def poses_in_frame(frame_from_camera, poses):
    """ObjectPoses that lie in another frame than the camera's, their covariances along its axes."""
    return [
        replace(
            pose,
            camera_from_object=frame_from_camera @ pose.camera_from_object,
            covariance=in_axes(frame_from_camera[:3, :3], pose.covariance),
            alternatives=poses_in_frame(frame_from_camera, pose.alternatives),
        )
        for pose in poses
    ]


def detection_from_pose(
    result, model, track_id, header, with_alternatives=False, make=make_message
):
    """A Detection3D of an ObjectPose: results[0] is the pose of the object's origin, the box is
    centred on the object."""
    shown = [result, *(likely_alternatives(result) if with_alternatives else ())]
    box = make(
        "vision_msgs/msg/BoundingBox3D",
        center=pose_from_matrix(about_point(result.camera_from_object, model.box_center), make),
        size=vector(model.box_size, make=make),
    )
    return make(
        "vision_msgs/msg/Detection3D",
        header=header,
        results=[_hypothesis(one, make) for one in shown],
        bbox=box,
        id=str(track_id),
    )


def _hypothesis(result, make):
    pose = make(
        "geometry_msgs/msg/PoseWithCovariance",
        pose=pose_from_matrix(result.camera_from_object, make),
        covariance=np.asarray(result.covariance, np.float64).ravel(),
    )
    score = float(result.score)
    named = make("vision_msgs/msg/ObjectHypothesis", class_id=result.name, score=score)
    return make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=named, pose=pose)


def frame_name(prefix, name, track_id):
    """The TF frame of an object: `<prefix><class>_<id>` with legal characters only."""
    return prefix + re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}_{track_id}")
