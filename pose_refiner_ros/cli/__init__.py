# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner`: the commands. Each imports what it needs when it runs."""

from pose_refiner_ros.cli.main import app, main

__all__ = ["app", "main"]
