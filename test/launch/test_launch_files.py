# SPDX-License-Identifier: Apache-2.0
"""The launch files, where launch is installed; what they refer to, everywhere."""

import importlib.util
import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from pose_refiner_ros.files import config_files

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH_FILES = ["refine.launch.py", "demo.launch.py"]

needs_launch = pytest.mark.skipif(
    importlib.util.find_spec("launch_ros") is None,
    reason="launch_ros is not installed; it comes with a ROS installation, not as a wheel",
)


def description(name):
    from launch.launch_description_sources import (
        get_launch_description_from_python_launch_file as load,
    )

    return load(str(REPOSITORY / "launch" / name))


def arguments(name):
    return {
        argument.name: argument
        for argument in description(name).get_launch_arguments(conditional_inclusion=True)
    }


def started_nodes(name, **given):
    """The nodes that a launch file would start, after substitution."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch_ros.actions import Node

    context = LaunchContext()
    context.launch_configurations.update(given)
    nodes = []
    entities = list(description(name).entities)
    for entity in entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.visit(context)
        elif isinstance(entity, OpaqueFunction):
            entities += entity.execute(context) or []
        elif isinstance(entity, Node) and (
            entity.condition is None or entity.condition.evaluate(context)
        ):
            entity._perform_substitutions(context)
            nodes.append(entity)
    return nodes


def parameters_of(node):
    """What the node is started with: parameter files read, in their order."""
    values = {}
    command = node.cmd
    texts = ["".join(part.text for part in word if hasattr(part, "text")) for word in command]
    for flag, value in itertools.pairwise(texts):
        if flag == "--params-file" and Path(value).is_file():
            for section in yaml.safe_load(Path(value).read_text()).values():
                values |= section["ros__parameters"]
    return values


@needs_launch
@pytest.mark.parametrize("name", LAUNCH_FILES)
def test_every_argument_is_described_and_has_a_default(name):
    for argument in arguments(name).values():
        assert len(argument.description) > 10, argument.name
        assert argument.default_value is not None, argument.name


@needs_launch
def test_the_arguments_of_the_issue_are_there():
    assert set(arguments("refine.launch.py")) >= {
        "objects_file", "device", "params_file", "namespace", "use_sim_time", "autostart", "rviz",
        "log_level", "image", "camera_info", "masks", "detections", "initial_poses", "object_poses",
    }  # fmt: skip


@needs_launch
def test_arguments_reach_the_node_and_the_others_stay_with_the_parameter_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("/**:\n  ros__parameters:\n    device: cuda:1\n    min_score: 0.5\n")
    (node,) = started_nodes(
        "refine.launch.py",
        params_file=str(own),
        objects_file="12",  # a string, though it looks like a number
        use_sim_time="true",
        image="/cam/image_raw",
        namespace="robot",
    )
    assert node.node_executable == "pose_refiner"
    assert node.node_name == "/robot/pose_refiner"
    assert ("image", "/cam/image_raw") in node.expanded_remapping_rules
    values = parameters_of(node)
    assert values == {
        "device": "cuda:1", "min_score": 0.5, "objects_file": "12", "use_sim_time": True
    }  # fmt: skip


@needs_launch
def test_rviz_starts_when_asked_for():
    assert len(started_nodes("refine.launch.py")) == 1
    nodes = started_nodes("refine.launch.py", rviz="true", namespace="robot")
    assert [node.node_executable for node in nodes] == ["rviz2", "pose_refiner"] or [
        node.node_executable for node in nodes
    ] == ["pose_refiner", "rviz2"]
    (rviz,) = (node for node in nodes if node.node_executable == "rviz2")
    for topic in ("/pose_refiner/overlay", "/pose_refiner/camera_pose", "/initialpose"):
        assert (topic, f"robot{topic}") in rviz.expanded_remapping_rules


@needs_launch
def test_the_demo_starts_three_processes_in_all():
    names = {node.node_executable for node in started_nodes("demo.launch.py")}
    assert names == {"demo_camera", "demo_printer"}  # and refine.launch.py the third


def test_launch_files_start_what_setup_installs():
    setup = (REPOSITORY / "setup.py").read_text()
    for name in LAUNCH_FILES:
        text = (REPOSITORY / "launch" / name).read_text()
        for executable in ("pose_refiner", "demo_camera", "demo_printer"):
            if f'executable="{executable}"' in text:
                assert f'"{executable} = ' in setup


def test_fast_dds_profile_gives_32_megabytes_to_the_default_participant():
    root = ET.parse(config_files.config_file("fastdds.xml")).getroot()
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
    sizes = {
        transport.findtext("transport_id"): transport.findtext("segment_size")
        for transport in root.iter("transport_descriptor")
    }
    (participant,) = root.iter("participant")
    used = [e.text for e in participant.find("rtps/userTransports")]
    assert participant.get("is_default_profile") == "true"
    assert int(sizes[used[0]]) == 32 * 2**20
    assert set(used) == set(sizes)


def test_a_profile_of_the_user_is_left_alone():
    assert config_files.fastdds_environment({"FASTRTPS_DEFAULT_PROFILES_FILE": "/own.xml"}) == {}
    given = config_files.fastdds_environment({})
    assert Path(given["FASTDDS_DEFAULT_PROFILES_FILE"]).name == "fastdds.xml"


def test_rviz_shows_what_the_node_publishes():
    config = yaml.safe_load(config_files.config_file("refine.rviz").read_text())
    displays = config["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"] for d in displays if "Topic" in d}
    shown = ("overlay", "markers", "scene_view", "camera_pose")
    assert topics == {f"/pose_refiner/{name}" for name in shown}
    assert "rviz_default_plugins/TF" in {d["Class"] for d in displays}


def test_rviz_can_say_where_the_camera_is():
    config = yaml.safe_load(config_files.config_file("refine.rviz").read_text())
    tools = {t["Class"]: t for t in config["Visualization Manager"]["Tools"]}
    button = tools["rviz_default_plugins/SetInitialPose"]
    assert button["Topic"]["Value"] == "/initialpose"


def test_config_files_that_are_not_there_are_none():
    assert config_files.config_file("no_such_file.yaml") is None
