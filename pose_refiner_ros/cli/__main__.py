# SPDX-License-Identifier: Apache-2.0
"""`python -m pose_refiner_ros.cli`: the commands where no `pose-refiner` is installed."""

from pose_refiner_ros.cli.main import main

main()
