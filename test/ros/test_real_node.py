# SPDX-License-Identifier: Apache-2.0
"""The node with the real pipeline: what comes out over DDS is what the library computes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import REAL_NODE, ROOT
from ros_messages import camera_info, image, write_library

from pose_refiner_ros import shipped
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.ros.conversions import matrix_from_pose

pytestmark = pytest.mark.ros
SIZE = (240, 320)
INFO = camera_info(SIZE)
CAMERA = Camera(np.reshape(INFO.k, (3, 3)), SIZE)
LIBRARY = """\
objects:
  sedan: {mesh: sedan.obj, unit: m, label: 1}
  van: {mesh: van.obj, unit: m, label: 2}
"""


@pytest.fixture(scope="module")
def library_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vehicles")
    for name in ("sedan.obj", "van.obj"):
        (folder / name).symlink_to(ROOT / "pose_refiner_ros" / "data" / name)
    return write_library(folder, LIBRARY)


@pytest.fixture(scope="module")
def client(start_nodes, library_file):
    client = start_nodes(REAL_NODE, device="cpu", objects_file=library_file, use_last_pose=False)
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    client.wait_connected()
    return client


def vehicle(x, z, heading):
    """Upright, seen from a little above."""
    cos, sin = np.cos(heading), np.sin(heading)
    tilt = np.array([[1, 0, 0], [0, np.cos(0.2), -np.sin(0.2)], [0, np.sin(0.2), np.cos(0.2)]])
    pose = np.eye(4)
    pose[:3, :3] = tilt @ np.array([[cos, -sin, 0], [0, 0, -1], [sin, cos, 0]])
    pose[:3, 3] = (x, 0.5, z)
    return pose


def test_poses_are_those_of_the_library_and_of_the_scene(client, library_file):
    library = ObjectLibrary.load(library_file)
    truth = {1: vehicle(-2.0, 9.0, 0.6), 2: vehicle(2.5, 11.0, 2.5)}
    meshes = [library["sedan"].mesh, library["van"].mesh]
    masks = render_scene(meshes, np.stack(list(truth.values())), CAMERA, labels=[1, 2]).labels
    masks = masks.astype(np.uint16)
    stamp = client.next_stamp()
    answer = client.ask(
        stamp=stamp,
        with_image=False,
        mask=image(masks, "mono16", stamp=stamp),
        info=camera_info(SIZE, stamp=stamp),
    )
    frame = Frame(masks, CAMERA, {1: "sedan", 2: "van"})
    expected = Pipeline(library, device="cpu").process(frame)
    assert [d.results[0].hypothesis.class_id for d in answer.detections] == ["sedan", "van"]
    for detection, pose in zip(answer.detections, expected, strict=True):
        result = detection.results[0]
        matrix = matrix_from_pose(result.pose.pose)
        np.testing.assert_allclose(matrix, pose.camera_from_object, atol=1e-4)
        assert result.hypothesis.score == pytest.approx(pose.score, abs=1e-3)
        covariance = np.reshape(result.pose.covariance, (6, 6))
        np.testing.assert_allclose(covariance, pose.covariance, rtol=1e-2, atol=1e-8)
        true = truth[pose.label]
        turn = matrix[:3, :3].T @ true[:3, :3]
        assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) < 3
        assert np.linalg.norm(matrix[:3, 3] - true[:3, 3]) < 0.2


def test_encoder_that_cannot_be_used_then_none(start_node):
    client = start_node(REAL_NODE, device="cpu", objects_file="", encoder_file="gone.safetensors")
    client.process.wait_for_log("the encoder cannot be used: .* gone.safetensors do not exist")
    assert "Traceback" not in client.process.log
    assert client.state() == "unconfigured"
    status = client.status("objects")
    assert status.level == DiagnosticStatus.ERROR
    assert "gone.safetensors" in status.message
    client.set("encoder_file", "none")
    reply = client.trigger("reload_objects")
    assert reply.success and "sedan, suv, cargo" in reply.message


def test_classes_without_an_object_are_in_the_log(start_node, tmp_path):
    library = tmp_path / "two.yaml"
    library.write_text(
        "objects:\n"
        f"  sedan: {{mesh: {shipped.VEHICLES}/sedan.obj, unit: m, category: sedan}}\n"
        f"  jeep: {{mesh: {shipped.VEHICLES}/suv.obj, unit: m, category: suv}}\n"
    )
    client = start_node(REAL_NODE, device="cpu", objects_file=str(library))
    client.process.wait_for_log(
        "the encoder names masks without a class: sedan, suv; cargo: known to it, but no object"
    )


@pytest.mark.slow
def test_measure_script(tmp_path):
    report = tmp_path / "report.json"
    program = [sys.executable, "tools/measure_node.py", "--seconds", "3", "--json", str(report)]
    subprocess.run(program, cwd=ROOT, check=True, timeout=150)
    values = json.loads(report.read_text())
    assert values["frames_sent"] == 90
    assert values["frames_received"] >= 80
    assert values["objects_per_frame"] > 2.5
