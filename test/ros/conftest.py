# SPDX-License-Identifier: Apache-2.0
"""These tests need ROS's Python packages; without them none is collected."""

import importlib.util

HAS_ROS = all(importlib.util.find_spec(name) for name in ("rclpy", "vision_msgs", "tf2_msgs"))
collect_ignore_glob = [] if HAS_ROS else ["test_*.py"]


def pytest_report_header():
    return [] if HAS_ROS else ["rclpy, vision_msgs or tf2_msgs missing: test/ros is left out"]
