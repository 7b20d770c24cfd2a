# SPDX-License-Identifier: Apache-2.0
"""A simulated drive past several vehicles: camera, pose refiner, printer and, if wanted, RViz.

Ends when the drive is over. `python3 -m pose_refiner_ros.cli.demo` does the same without launch.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from pose_refiner_ros.datasets.vehicles import LIBRARY

ARGUMENTS = [
    ("seconds", "30.0", "Length of the drive"),
    ("rate", "10.0", "Images per second"),
    ("device", "auto", "Where to compute: auto, cpu, cuda or cuda:N"),
    ("output", "demo_output", "Folder for the video, the bag and the summary"),
    ("rviz", "false", "Show overlay, markers and frames in RViz"),
]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value=value, description=text)
        for name, value, text in ARGUMENTS
    ]
    number = {
        name: ParameterValue(LaunchConfiguration(name), value_type=float)
        for name in ("seconds", "rate")
    }
    refiner = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(Path(__file__).with_name("refine.launch.py"))),
        launch_arguments={
            "objects_file": str(LIBRARY),
            "device": LaunchConfiguration("device"),
            "rviz": LaunchConfiguration("rviz"),
            "rviz_frame": "map",
        }.items(),
    )
    printer = Node(
        package="pose_refiner_ros",
        executable="demo_printer",
        parameters=[
            {
                "output": ParameterValue(LaunchConfiguration("output"), value_type=str),
                "rate": number["rate"],
            }
        ],
        output="screen",
        # it writes video and bag when it is told to end
        sigterm_timeout="30",
        sigkill_timeout="30",
    )
    camera = Node(
        package="pose_refiner_ros",
        executable="demo_camera",
        parameters=[{**number, "receivers": 2}],  # the refiner and the printer
        output="both",
    )
    over = RegisterEventHandler(
        OnProcessExit(
            target_action=camera, on_exit=[EmitEvent(event=Shutdown(reason="the drive is over"))]
        )
    )
    return LaunchDescription([*arguments, refiner, printer, camera, over])
