# SPDX-License-Identifier: Apache-2.0
"""The frame of a process with one node that is not the pose refiner's."""

import signal
import threading

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions


class Process:
    """`with Process(args) as process:` make nodes, then `process.spin_for(node, seconds)`.

    SIGINT and SIGTERM set `stop`; nothing is torn down under the node's feet.
    """

    def __init__(self, args=None):
        self.stop = threading.Event()
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop.set())
        self._executor = SingleThreadedExecutor()
        self._node = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._executor.shutdown()
        if self._node is not None:
            self._node.destroy_node()
        rclpy.try_shutdown()

    def spin_for(self, node, seconds):
        """Handle callbacks until one was handled or the time is over; False to stop."""
        if self._node is None:
            self._node = node
            self._executor.add_node(node)
        try:
            self._executor.spin_once(timeout_sec=max(0.0, seconds))
        except ExternalShutdownException:
            self.stop.set()
        return not self.stop.is_set()
