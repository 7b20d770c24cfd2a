# SPDX-License-Identifier: Apache-2.0
"""What the core says through Python's logging goes to the ROS log as well."""

import logging


class RosLogHandler(logging.Handler):
    """Hands records to an rclpy logger."""

    def __init__(self, ros_logger):
        super().__init__(logging.INFO)
        self._ros_logger = ros_logger

    def emit(self, record):
        text = self.format(record)
        # One call per severity: rclpy remembers a severity for each line that logs.
        if record.levelno >= logging.ERROR:
            self._ros_logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._ros_logger.warning(text)
        else:
            self._ros_logger.info(text)


def connect(ros_logger):
    """Send the package's records there; returns what disconnect() takes."""
    handler = RosLogHandler(ros_logger)
    logger = logging.getLogger("pose_refiner_ros")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # or Python prints them a second time
    return handler


def disconnect(handler):
    logger = logging.getLogger("pose_refiner_ros")
    logger.removeHandler(handler)
    logger.propagate = True
