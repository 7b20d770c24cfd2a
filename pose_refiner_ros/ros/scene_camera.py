# SPDX-License-Identifier: Apache-2.0
"""The camera's own pose in a scene that has a radiance field: images in, a pose and a TF frame out.

Needs no masks. `process` runs in the worker thread, the callback in the executor's.
"""

import time

import numpy as np
from geometry_msgs.msg import Point, Pose, PoseWithCovarianceStamped, Quaternion
from std_msgs.msg import Header

from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.ros import images, qos
from pose_refiner_ros.ros.conversions import camera_from_info, matrix_from_pose, pose_from_matrix
from pose_refiner_ros.ros.transforms import ObjectFrames

NO_IMAGE = "no image yet"


def initial_pose(values):
    """scene_initial_pose, x y z qx qy qz qw, as a (4, 4) matrix; None where all are 0. ValueError
    for what is no pose."""
    if not any(values):
        return None
    x, y, z, qx, qy, qz, qw = values
    position, orientation = Point(x=x, y=y, z=z), Quaternion(x=qx, y=qy, z=qz, w=qw)
    return matrix_from_pose(Pose(position=position, orientation=orientation))


class SceneCamera:
    """Follows one camera through the images of a configured node."""

    def __init__(self, node, tracker, transforms):
        """tracker: a SceneTracker; transforms: a TransformLookup, for scene_tf_child."""
        self._node = node
        self._tracker = tracker
        self._transforms = transforms
        self._poses = qos.create_publisher(node, PoseWithCovarianceStamped, "~/camera_pose", 10)
        self._frames = ObjectFrames(node)
        self._asked = None  # the newest message on initialpose that was not used yet
        self._subscription = node.create_subscription(
            PoseWithCovarianceStamped, "initialpose", self._on_initialpose, 5
        )
        self.first = None  # where the camera, or scene_tf_child, is at the beginning (4, 4)
        self.last_image = None  # when one was looked at last, monotonic seconds
        self.state = NO_IMAGE  # for diagnostics; "" while all is well
        self.values = {"photos located": 0, "photos lost": 0}

    def _on_initialpose(self, message):
        self._asked = message

    def reset(self):
        """Forget where the camera was."""
        self._tracker.reset()
        self.state = NO_IMAGE

    def process(self, messages, parameters, report):
        """Locate the camera of an image and publish where it is.

        report(text) is told why it is not published. BadInput for an image that cannot be used,
        TransformError where scene_tf_child is not known.
        """
        from pose_refiner_ros.refinement.observation import ObservationError
        from pose_refiner_ros.scene_localiser import LocalisationError

        self.last_image = started = time.monotonic()
        image = images.decode_color(messages.image)
        size, header = image.shape[:2], messages.image.header
        camera = camera_from_info(
            messages.camera_info, size, parameters.image_is_rectified, "images"
        )
        frame_id = header.frame_id or messages.camera_info.header.frame_id
        child = parameters.scene_tf_child or frame_id
        camera_from_child = np.eye(4)
        if child != frame_id:
            camera_from_child = self._transforms.matrix(frame_id, child, header.stamp)
        child_from_camera = inverse(camera_from_child)
        self._tracker.first = None if self.first is None else self.first @ child_from_camera
        self._begin_where_asked(parameters.scene_field_frame, child_from_camera, report)
        found = None
        try:
            found = self._tracker.follow(image, camera)
            lost = found.lost
        except (LocalisationError, ObservationError) as error:
            lost = str(error)
        self.values["milliseconds"] = round(1e3 * (time.monotonic() - started), 1)
        if found is not None:
            self.values["colour RMS"] = round(found.photo_rms, 3)
        if lost:
            self.state = lost
            self.values["photos lost"] += 1
            if found is None and self.first is None:
                lost += "; set scene_initial_pose, or publish one on initialpose"
            report(f"the camera is lost in the scene: {lost}")
            return
        self.state = ""
        self.values["photos located"] += 1
        where = Header(stamp=header.stamp, frame_id=parameters.scene_field_frame)
        message = PoseWithCovarianceStamped(header=where)
        message.pose.pose = pose_from_matrix(found.scene_from_camera)
        message.pose.covariance = np.asarray(found.covariance, np.float64).ravel()
        self._poses.publish(message)
        if parameters.publish_tf and not child:
            report(
                "image and camera_info have an empty frame_id: there is no TF of the camera; set "
                "frame_id in the camera driver, or scene_tf_child"
            )
        elif parameters.publish_tf:
            self._frames.send(where, {child: found.scene_from_camera @ camera_from_child})

    def _begin_where_asked(self, scene_frame, child_from_camera, report):
        message, self._asked = self._asked, None
        if message is None:
            return
        try:
            scene_from_child = matrix_from_pose(message.pose.pose)
            frame_id = message.header.frame_id
            if frame_id not in ("", scene_frame):
                scene_from_frame = self._transforms.matrix(
                    scene_frame, frame_id, message.header.stamp
                )
                scene_from_child = scene_from_frame @ scene_from_child
        except (ValueError, LookupError) as error:
            report(f"the pose on initialpose is ignored: {error}")
            return
        self._tracker.begin_at(scene_from_child @ child_from_camera)

    def destroy(self):
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_lifecycle_publisher(self._poses)
