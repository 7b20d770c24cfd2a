# SPDX-License-Identifier: Apache-2.0
"""Starts the node pose_refiner: `ros2 launch pose_refiner_ros refine.launch.py --show-args`."""

import os

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from pose_refiner_ros.files.config_files import config_file, fastdds_environment

# Parameters of the node that are launch arguments as well: name, type, description. An empty
# argument leaves the value to the parameter file.
PARAMETERS = [
    ("objects_file", str, "Object library: a YAML file, or the models folder of a BOP dataset"),
    ("encoder_file", str, "Weights that name masks without a class; none: no encoder"),
    ("scene_field", str, "Radiance field of the scene that the camera is to be localised in"),
    ("refinement", str, "solver, gradient_pose or gradient_encoder"),
    ("fixed_frame", str, "Frame in which the world stands still, such as odom: the camera moves"),
    ("device", str, "Where to compute: auto, cpu, cuda or cuda:N"),
    ("image_transport", str, "raw: `image`; compressed: `image/compressed`"),
    ("autostart", bool, "Configure and activate at start; false leaves it to a manager"),
    ("use_sim_time", bool, "Take the time from /clock, as simulators and `ros2 bag play` need it"),
]

TOPICS = [
    ("image", "Camera image, sensor_msgs/Image"),
    ("camera_info", "Calibration of that camera, sensor_msgs/CameraInfo"),
    ("masks", "Instance masks, a label image, sensor_msgs/Image"),
    ("detections", "Class of each label in the masks, vision_msgs/Detection2DArray"),
    ("initial_poses", "Poses to start from (optional), vision_msgs/Detection3DArray"),
    ("depth", "Depth image registered to that camera (optional), sensor_msgs/Image"),
    ("points", "Points of a laser scanner (optional), sensor_msgs/PointCloud2"),
    (
        "initialpose",
        "Where the camera is in scene_field, geometry_msgs/PoseWithCovarianceStamped",
    ),
    ("object_poses", "Output: the refined poses, vision_msgs/Detection3DArray"),
]


def generate_launch_description():
    arguments = [
        DeclareLaunchArgument(name, default_value="", description=description)
        for name, _, description in PARAMETERS
    ]
    arguments += [
        DeclareLaunchArgument(name, default_value=name, description=f"Topic: {description}")
        for name, description in TOPICS
    ]
    arguments += [
        DeclareLaunchArgument(
            "params_file",
            default_value=str(config_file("refine.yaml")),
            description="Parameter file of the node; config/refine.yaml lists all of them",
        ),
        DeclareLaunchArgument(
            "namespace", default_value="", description="Namespace of the node and its topics"
        ),
        DeclareLaunchArgument(
            "log_level",
            default_value="info",
            description="Least severity that is logged",
            choices=["debug", "info", "warn", "error", "fatal"],
        ),
        DeclareLaunchArgument(
            "rviz",
            default_value="false",
            description="Show overlay, markers and frames in RViz",
            choices=["true", "false"],
        ),
        DeclareLaunchArgument(
            "rviz_frame",
            default_value="camera_optical_frame",
            description="What RViz shows everything in: best a frame with z up, such as base_link",
        ),
    ]
    environment = [
        SetEnvironmentVariable(name, value)
        for name, value in fastdds_environment(os.environ).items()
    ]
    return LaunchDescription([*arguments, *environment, OpaqueFunction(function=_refiner), _rviz()])


def _refiner(context):
    """The node, with those parameters that were given."""
    given = {}
    for name, kind, _ in PARAMETERS:
        if LaunchConfiguration(name).perform(context) != "":
            given[name] = ParameterValue(LaunchConfiguration(name), value_type=kind)
    return [
        Node(
            package="pose_refiner_ros",
            executable="pose_refiner",
            name="pose_refiner",
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), given],
            remappings=[(name, LaunchConfiguration(name)) for name, _ in TOPICS],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            output="both",
            emulate_tty=True,
        )
    ]


def _rviz():
    """The configuration names topics of a node without namespace: hence the remapping."""
    shown = ("overlay", "markers", "scene_view", "camera_pose")
    topics = ["/initialpose", *(f"/pose_refiner/{name}" for name in shown)]
    return Node(
        package="rviz2",
        executable="rviz2",
        name="rviz2",
        arguments=["-d", str(config_file("refine.rviz")), "-f", LaunchConfiguration("rviz_frame")],
        remappings=[(topic, [LaunchConfiguration("namespace"), topic]) for topic in topics],
        condition=IfCondition(LaunchConfiguration("rviz")),
        output="log",
    )
