# SPDX-License-Identifier: Apache-2.0
"""The process `pose_refiner`: starts the lifecycle node, spins it, ends it on SIGINT or SIGTERM."""

import os
import signal
import sys
import threading
import traceback


def main(args=None, pipeline_factory=None):
    """Run the node until it is told to stop; the exit code."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # Imported late: Ctrl-C must not end in a traceback while they load.
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from pose_refiner_ros.ros.lifecycle_node import PoseRefinerNode
    from pose_refiner_ros.ros.parameters import ParameterError

    # rclpy's own handlers shut the context down in the midst of a wait, which ends in a traceback
    # every now and then. With ours the loop below ends between two callbacks.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = PoseRefinerNode(pipeline_factory)
    except ParameterError as error:
        rclpy.logging.get_logger("pose_refiner").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    stopped = _spin(node, stop)
    rclpy.try_shutdown()
    if not stopped:  # a kernel is still compiling: leave without waiting for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _spin(node, stop):
    """Run the callbacks until stop is set; False if the node's worker did not end."""
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while not stop.is_set():
        try:
            executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            break
        except Exception:  # no message may end the node
            node.get_logger().error(f"in a callback: {traceback.format_exc()}")
    stopped = node.close()
    executor.shutdown()
    node.destroy_node()
    return stopped


if __name__ == "__main__":
    sys.exit(main())
