# SPDX-License-Identifier: Apache-2.0
"""The subscriptions of the active node. Callbacks run in the executor and put messages away."""

import time
from functools import partial
from math import inf

from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from vision_msgs.msg import Detection2DArray, Detection3DArray

from pose_refiner_ros.ros import qos
from pose_refiner_ros.ros.conversions import nanoseconds
from pose_refiner_ros.ros.watchdog import InputView

# An image stream that was silent for so long is over: masks do not wait for it any more.
STREAM_SECONDS = 2.0


class Inputs:
    """Subscribes, and hands every message to the assembler."""

    def __init__(self, node, assembler, wake, compressed, depth_transport, camera=""):
        """depth_transport: raw or compressedDepth; "" for no depth and no points. camera: before
        the names of the topics, where there are several."""
        self._node = node
        self._assembler = assembler
        self._wake = wake
        self._subscriptions = {}
        self._topics = {}  # name -> topic after remapping
        self._types = {}
        self._incompatible = {}  # topic -> explanation
        self._last = {}  # of streams that masks wait for: seconds when something came
        self._detections_published = False
        self._camera = f"{camera}/" if camera else ""
        image_topic = "image"
        if compressed:  # where image_transport puts it, also after remapping of `image`
            image_topic = node.resolve_topic_name(f"{self._camera}image") + "/compressed"
        self._subscribe("image", CompressedImage if compressed else Image, image_topic)
        self._subscribe("camera_info", CameraInfo)
        self._subscribe("masks", Image)
        self._subscribe("detections", Detection2DArray)
        self._subscribe("initial_poses", Detection3DArray)
        if depth_transport:
            depth_topic, depth_type = "depth", Image
            if depth_transport != "raw":
                depth_topic = node.resolve_topic_name(f"{self._camera}depth")
                depth_topic += f"/{depth_transport}"
                depth_type = CompressedImage
            self._subscribe("depth", depth_type, depth_topic)
            self._subscribe("points", PointCloud2)

    def _subscribe(self, name, message_type, topic=None):
        topic = topic or name
        if not topic.startswith("/"):
            topic = self._camera + topic
        package = message_type.__module__.split(".")[0]
        self._types[name] = f"{package}/msg/{message_type.__name__}"
        self._topics[name] = self._node.resolve_topic_name(topic)
        self._subscriptions[name] = qos.create_subscription(
            self._node,
            message_type,
            topic,
            partial(self._on_message, name),
            self._on_incompatible,
        )

    def _on_message(self, name, message):
        now, stamp = time.monotonic(), nanoseconds(message.header.stamp)
        self._last[name] = now
        if name == "detections":
            self._detections_published = True
        if name == "masks":
            self._assembler.add_masks(stamp, message, len(message.data), now)
        else:
            size = len(message.data) if name in ("image", "depth", "points") else 0
            self._assembler.add(name, stamp, message, size)
        self._wake()

    def _on_incompatible(self, topic, explanation):
        if self._incompatible.get(topic) != explanation:
            self._incompatible[topic] = explanation
            self._node.get_logger().error(explanation)

    def stopped(self, name):
        """Whether a stream was there and is over."""
        return name in self._last and not self.expected(name)

    def expected(self, name):
        """Whether a stream is alive, so that waiting for its next message makes sense."""
        return time.monotonic() - self._last.get(name, -inf) < STREAM_SECONDS

    @property
    def detections_expected(self):
        return self._detections_published

    def look_at_graph(self):
        """Note who publishes detections. Once a second is enough: it asks the middleware."""
        self._detections_published = self._node.count_publishers(self._topics["detections"]) > 0

    def topics(self):
        """The names after remapping."""
        return dict(self._topics)

    def views(self):
        """What the watchdog needs to know of each input, by name."""
        graph = self._published_topics()
        here = self._node.get_name(), self._node.get_namespace()
        own = frozenset(dict(self._node.get_publisher_names_and_types_by_node(*here)))
        views = {}
        for name, topic in self._topics.items():
            count = self._assembler.counts.received[name]
            views[name] = InputView(
                topic,
                self._types[name],
                count,
                [info.topic_type for info in self._node.get_publishers_info_by_topic(topic)],
                graph,
                own,
                self._incompatible.get(topic, ""),
            )
        return views

    def _published_topics(self):
        """topic -> type names, without topics that have subscribers only."""
        return {
            topic: types
            for topic, types in self._node.get_topic_names_and_types()
            if self._node.count_publishers(topic) > 0
        }

    def destroy(self):
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
