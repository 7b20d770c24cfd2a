# SPDX-License-Identifier: Apache-2.0
"""All that the node publishes of a frame: poses, TF, markers, overlay, scene."""

from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import MarkerArray

from pose_refiner_ros.ros import images, qos
from pose_refiner_ros.ros.bad_input import TransformError
from pose_refiner_ros.ros.conversions import detection_from_pose, frame_name, poses_in_frame
from pose_refiner_ros.ros.markers import ObjectMarkers
from pose_refiner_ros.ros.transforms import ObjectFrames


class Outputs:
    """The publishers of one configured node. publish() may be called from any thread."""

    def __init__(self, node, library, transforms):
        """transforms: a TransformLookup, for the parameter target_frame."""
        self._node = node
        self._library = library
        self._transforms = transforms
        self._poses = qos.create_publisher(node, Detection3DArray, "object_poses", 10)
        self._markers = qos.create_publisher(node, MarkerArray, "~/markers", 10)
        self._overlay = qos.create_publisher(node, Image, "~/overlay", 2)
        self._scene_view = qos.create_publisher(node, Image, "~/scene_view", 2)
        self._frames = ObjectFrames(node)
        self._object_markers = ObjectMarkers(library)

    @property
    def overlay_wanted(self):
        return self._overlay.get_subscription_count() > 0

    def publish(self, answer, parameters):
        """TransformError if the poses cannot be brought into target_frame."""
        header, placed = answer.header, answer.poses
        if parameters.target_frame and parameters.target_frame != header.frame_id:
            header, placed = self._in_target_frame(answer, parameters.target_frame)
        self._poses.publish(
            Detection3DArray(
                header=header,
                detections=[
                    detection_from_pose(
                        pose,
                        self._library[pose.name],
                        answer.ids[pose.label],
                        header,
                        parameters.publish_alternatives,
                    )
                    for pose in placed
                ],
            )
        )
        if parameters.publish_tf:
            self._frames.send(
                header,
                {
                    frame_name(
                        parameters.tf_prefix, pose.name, answer.ids[pose.label]
                    ): pose.camera_from_object
                    for pose in placed
                },
            )
        if self._markers.get_subscription_count():
            self._markers.publish(
                self._object_markers.update(
                    header,
                    {pose.label: (pose.name, pose.camera_from_object) for pose in placed},
                    answer.ids,
                    parameters.marker_meshes,
                    parameters.marker_opacity,
                )
            )

    def publish_overlay(self, answer):
        """Draw the poses on the image, if there is one and someone looks."""
        frame = answer.frame
        if frame.image is None or not self.overlay_wanted:
            return
        # Imported late, like all of the core: it takes its time.
        from pose_refiner_ros.drawing.overlay import draw_overlay

        seen = [pose for pose in answer.poses if pose.label in frame.labels]  # by this camera
        picture = draw_overlay(frame.image, frame.camera, self._library, seen)
        self._overlay.publish(images.encode_image(picture, answer.header))

    def publish_scene_view(self, answer, parameters, report):
        """Draw the objects in their common frame, if someone looks.

        report(text) hears what cannot be drawn, and why.
        """
        if not self._scene_view.get_subscription_count():
            return
        from pose_refiner_ros.drawing.scene_view import draw_scene
        from pose_refiner_ros.scene import Scene, SceneError, compose, look_at

        def note(label, text):
            report(f"~/scene_view: label {label}: {text}")

        size = (parameters.scene_height, parameters.scene_width)
        try:
            scene_from_camera = self._scene_from_camera(answer.header, parameters)
            view = parameters.scene_view
            if view == "custom":
                view = look_at(parameters.scene_eye, parameters.scene_target, size)
        except TransformError as error:
            report(
                f"~/scene_view: {error}; publish that transform, or leave scene.frame empty to use "
                "scene.camera_height and scene.camera_pitch"
            )
            return
        except SceneError as error:
            report(f"~/scene_view: {error} (scene.eye, scene.target)")
            return
        objects = compose(answer.poses, scene_from_camera, answer.ids, note)
        scene = Scene(objects, scene_from_camera, answer.frame.camera)
        picture = draw_scene(scene, self._library, view, size)
        self._scene_view.publish(images.encode_image(picture, answer.header))

    def _scene_from_camera(self, header, parameters):
        """(4, 4), from TF or from how the camera is mounted."""
        from pose_refiner_ros.scene import GroundPlane, scene_from_camera

        if parameters.scene_frame:
            return self._transforms.matrix(parameters.scene_frame, header.frame_id, header.stamp)
        return scene_from_camera(
            GroundPlane.from_height_and_pitch(
                parameters.scene_camera_height,
                parameters.scene_camera_pitch,
                parameters.scene_camera_roll,
            )
        )

    def clear_markers(self):
        message = self._object_markers.clear()
        if self._markers.is_activated:
            self._markers.publish(message)

    def destroy(self):
        for publisher in (self._poses, self._markers, self._overlay, self._scene_view):
            self._node.destroy_lifecycle_publisher(publisher)

    def _in_target_frame(self, answer, target_frame):
        source = answer.header
        target_from_camera = self._transforms.matrix(target_frame, source.frame_id, source.stamp)
        placed = poses_in_frame(target_from_camera, answer.poses)
        return Header(stamp=source.stamp, frame_id=target_frame), placed
