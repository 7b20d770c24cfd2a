# SPDX-License-Identifier: Apache-2.0
"""A camera and a segmentation network that do not exist: a drive along a simulated street.

Publishes `image`, `camera_info` and, as late as a network would, `masks` and `detections`; beside
them the true poses on `ground_truth`. Ends when the drive is over.
"""

import queue
import sys
import threading
import time
from collections import deque
from types import SimpleNamespace

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    Detection3DArray,
    ObjectHypothesisWithPose,
)

from pose_refiner_ros.datasets.street import Street
from pose_refiner_ros.datasets.vehicles import LIBRARY
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.ros import compat
from pose_refiner_ros.ros.conversions import detection_from_pose, transform_from_matrix
from pose_refiner_ros.ros.images import encode_image
from pose_refiner_ros.ros.process import Process

WIDTH, HEIGHT, FOCAL = 640, 480, 450.0
WORLD_FRAME, CAMERA_FRAME = "map", "camera_optical_frame"
RENDER_AHEAD = 120  # frames; rendering may be slower than the camera for a while
LOW_ON_FRAMES = 20  # with fewer left, pictures are rendered with rough edges, but in time


class DemoCamera(Node):
    def __init__(self):
        super().__init__("demo_camera")
        self.rate = self.declare_parameter("rate", 10.0).value  # images per second
        self.seconds = self.declare_parameter("seconds", 30.0).value  # length of the drive
        self.mask_delay = self.declare_parameter("mask_delay", 0.06).value  # seconds
        self.mask_noise = self.declare_parameter("mask_noise", 0.7).value  # pixels
        self.samples = self.declare_parameter("samples", 3).value  # per pixel and axis, odd
        # the drive starts when so many receive the masks; an error after so many seconds
        self.receivers = self.declare_parameter("receivers", 1).value
        self.wait_seconds = self.declare_parameter("wait_seconds", 80.0).value
        self.library = ObjectLibrary.load(LIBRARY)
        intrinsics = np.array(
            [[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]]
        )
        self.camera = Camera(intrinsics, (HEIGHT, WIDTH))
        depth = QoSProfile(depth=10)
        self._image = self.create_publisher(Image, "image", depth)
        self._camera_info = self.create_publisher(CameraInfo, "camera_info", depth)
        self._masks = self.create_publisher(Image, "masks", depth)
        self._detections = self.create_publisher(Detection2DArray, "detections", depth)
        self._ground_truth = self.create_publisher(Detection3DArray, "ground_truth", depth)
        self._transforms = compat.transform_broadcaster(self)

    @property
    def is_received(self):
        return self._masks.get_subscription_count() >= self.receivers

    def publish_image(self, frame, kinds):
        """What the camera gives at once; returns the header for what comes later."""
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=CAMERA_FRAME)
        in_world = Header(stamp=header.stamp, frame_id=WORLD_FRAME)
        self._transforms.sendTransform(
            [transform_from_matrix(frame.world_from_camera, in_world, CAMERA_FRAME)]
        )
        self._camera_info.publish(camera_info(self.camera, header))
        self._image.publish(encode_image(frame.rgb, header))
        self._ground_truth.publish(
            Detection3DArray(
                header=header,
                detections=[
                    self._truth(label, kinds[label], pose, header)
                    for label, pose in frame.camera_from_objects.items()
                ],
            )
        )
        return header

    def _truth(self, label, kind, pose, header):
        known = SimpleNamespace(
            name=kind, score=1.0, camera_from_object=pose, covariance=np.zeros((6, 6))
        )
        return detection_from_pose(known, self.library[kind], label, header)

    def publish_masks(self, frame, kinds, header):
        self._masks.publish(encode_image(frame.masks, header, "mono8"))
        self._detections.publish(
            Detection2DArray(
                header=header,
                detections=[
                    detection_2d(label, kinds[label], frame.masks, header)
                    for label in frame.camera_from_objects
                ],
            )
        )


def camera_info(camera, header):
    """A CameraInfo of a camera without distortion."""
    matrix = camera.intrinsics
    return CameraInfo(
        header=header,
        height=camera.height,
        width=camera.width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=matrix.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist(),
    )


def detection_2d(label, kind, labels, header):
    """What a detector says of one object: its label in the masks, its class and its box."""
    rows, columns = np.nonzero(labels == label)
    detection = Detection2D(header=header, id=str(label))
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = kind
    hypothesis.hypothesis.score = 0.95
    detection.results.append(hypothesis)
    detection.bbox.center.position.x = float(columns.min() + columns.max()) / 2
    detection.bbox.center.position.y = float(rows.min() + rows.max()) / 2
    detection.bbox.size_x = float(np.ptp(columns) + 1)
    detection.bbox.size_y = float(np.ptp(rows) + 1)
    return detection


class _Renderer:
    """Renders the frames of the drive ahead, in a thread; iterate over it."""

    def __init__(self, street, rate):
        self._street = street
        self._rate = rate
        self._samples = street.samples
        self._started = False
        self._frames = queue.Queue(RENDER_AHEAD)
        self._stop = threading.Event()
        self._error = None
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        try:
            for time_ in np.arange(0.0, self._street.seconds, 1.0 / self._rate):
                late = self._started and self._frames.qsize() < LOW_ON_FRAMES
                self._street.samples = 1 if late else self._samples
                if not self._put(self._street.frame(time_)):
                    return
        except Exception as error:
            self._error = error
        self._put(None)

    def _put(self, frame):
        while not self._stop.is_set():
            try:
                self._frames.put(frame, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def next(self):
        """The next frame; None after the last."""
        self._started = True
        frame = self._frames.get()
        if frame is None and self._error is not None:
            raise self._error
        return frame

    def stop(self):
        self._stop.set()


def drive(process, node):
    """Publish the whole drive; the number of images published."""
    street = Street(node.camera, node.seconds, mask_noise=node.mask_noise, samples=node.samples)
    renderer = _Renderer(street, node.rate)
    waiting_since = time.monotonic()
    while not node.is_received and process.spin_for(node, 0.1):
        if time.monotonic() - waiting_since > node.wait_seconds:
            raise TimeoutError(
                f"{node.receivers} receivers of the masks were expected, but after "
                f"{node.wait_seconds:g} s there are {node.count_subscribers('masks')}"
            )

    random = np.random.default_rng(1)
    network = deque()  # (when the masks are ready, frame, header)
    next_image = time.monotonic()
    frame = renderer.next()
    count = 0
    node.get_logger().info(f"driving for {node.seconds:g} s")
    while (frame is not None or network) and not process.stop.is_set():
        now = time.monotonic()
        if network and network[0][0] <= now:
            _, masked, header = network.popleft()
            node.publish_masks(masked, street.kinds, header)
        elif frame is not None and next_image <= now:
            header = node.publish_image(frame, street.kinds)
            network.append((now + node.mask_delay * random.uniform(0.8, 1.2), frame, header))
            frame = renderer.next()
            count += 1
            # late frames are not made up for: a camera keeps its distance between images
            next_image = max(next_image + 1.0 / node.rate, time.monotonic())
        else:
            due = [next_image] * (frame is not None) + [ready for ready, _, _ in network][:1]
            process.spin_for(node, min(due) - now)
    stop_waiting = time.monotonic() + 0.5  # let the last messages reach their receivers
    while time.monotonic() < stop_waiting and process.spin_for(node, 0.1):
        pass
    renderer.stop()
    return count


def main(args=None):
    with Process(args) as process:
        node = DemoCamera()
        try:
            count = drive(process, node)
        except TimeoutError as error:
            node.get_logger().fatal(str(error))
            return 1
        node.get_logger().info(f"{count} images published")
    return 0


if __name__ == "__main__":
    sys.exit(main())
