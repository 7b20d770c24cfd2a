# SPDX-License-Identifier: Apache-2.0
"""ROS messages to the core's types and back: stamps, cameras, poses.

Message types are imported where one is made: reading works without ROS, on what rosbags gives.
"""

import re
from dataclasses import replace

import numpy as np

from pose_refiner_ros.frame import likely_alternatives
from pose_refiner_ros.geometry.camera import Camera, CameraError
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
    position = np.array([pose.position.x, pose.position.y, pose.position.z])
    quaternion = pose.orientation
    quaternion = np.array([quaternion.x, quaternion.y, quaternion.z, quaternion.w])
    if not np.isfinite(position).all():
        raise ValueError(f"position {position.tolist()}")
    if not abs(np.linalg.norm(quaternion) - 1) < 0.01:
        raise ValueError(f"orientation {quaternion.tolist()} is no unit quaternion")
    matrix = np.eye(4)
    matrix[:3, :3] = compat.matrix_from_quaternion(*quaternion)
    matrix[:3, 3] = position
    return matrix


def pose_from_matrix(matrix):
    from geometry_msgs.msg import Pose

    pose = Pose()
    set_vector(pose.position, matrix[:3, 3])
    set_quaternion(pose.orientation, matrix[:3, :3])
    return pose


def set_vector(message, values):
    """Fill x, y, z. rclpy silently corrupts numpy scalars in float fields: hence float()."""
    message.x, message.y, message.z = (float(value) for value in values)


def set_quaternion(message, rotation):
    message.x, message.y, message.z, message.w = compat.quaternion_from_matrix(rotation)


def rotate_covariance(covariance, rotation):
    """A 6x6 covariance (translation, rotation) in axes turned by `rotation`."""
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = rotation
    return turn @ covariance @ turn.T


def poses_in_frame(frame_from_camera, poses):
    """ObjectPoses that lie in another frame than the camera's, their covariances along its axes."""
    return [
        replace(
            pose,
            camera_from_object=frame_from_camera @ pose.camera_from_object,
            covariance=rotate_covariance(pose.covariance, frame_from_camera[:3, :3]),
            alternatives=poses_in_frame(frame_from_camera, pose.alternatives),
        )
        for pose in poses
    ]


def detection_from_pose(result, model, track_id, header, with_alternatives=False):
    """A Detection3D of an ObjectPose: results[0] is the pose of the object's origin, the box is
    centred on the object."""
    from vision_msgs.msg import Detection3D

    detection = Detection3D(header=header, id=str(track_id))
    detection.results.append(
        _hypothesis(result.name, result.score, result.camera_from_object, result.covariance)
    )
    if with_alternatives:
        for other in likely_alternatives(result):
            detection.results.append(
                _hypothesis(other.name, other.score, other.camera_from_object, other.covariance)
            )
    camera_from_box = np.array(result.camera_from_object, dtype=np.float64)
    camera_from_box[:3, 3] += camera_from_box[:3, :3] @ model.box_center
    detection.bbox.center = pose_from_matrix(camera_from_box)
    set_vector(detection.bbox.size, model.box_size)
    return detection


def _hypothesis(name, score, matrix, covariance):
    from vision_msgs.msg import ObjectHypothesisWithPose

    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = name
    hypothesis.hypothesis.score = float(score)
    hypothesis.pose.pose = pose_from_matrix(matrix)
    hypothesis.pose.covariance = np.asarray(covariance, dtype=np.float64).ravel()
    return hypothesis


def frame_name(prefix, name, track_id):
    """The TF frame of an object: `<prefix><class>_<id>` with legal characters only."""
    return prefix + re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}_{track_id}")
