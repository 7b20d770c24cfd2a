# SPDX-License-Identifier: Apache-2.0
"""The demo as a user starts it, only shorter."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from rosbags.highlevel import AnyReader

from pose_refiner_ros.cli import demo

REPOSITORY = Path(__file__).resolve().parents[2]


def start(output, *options, **environment):
    # A session of its own, so that what it leaves behind can be found.
    return subprocess.Popen(
        [sys.executable, "-m", "pose_refiner_ros.cli.demo", "--output", str(output), *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell's background job, as these tests may be, passes on that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def children(pid):
    """Processes whose parent is `pid`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.ros
def test_a_short_drive(tmp_path):
    process = start(tmp_path / "out", "--seconds", "5", "--rate", "4")
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert "The drive in numbers" in output and "estimate" in output and "FAILED" not in output

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == 20 and summary["poses"] > 5
    assert summary["median_rotation_error_deg"] < 5
    assert cv2.imread(str(tmp_path / "out" / "overlay.png")).shape == (960, 1920, 3)
    assert cv2.VideoCapture(str(tmp_path / "out" / "overlay.mp4")).read()[0]

    with AnyReader([tmp_path / "out" / "bag"]) as bag:
        counts = {topic: info.msgcount for topic, info in bag.topics.items()}
        frames = {
            transform.child_frame_id
            for connection, _, data in bag.messages()
            if connection.topic == "/tf"
            for transform in bag.deserialize(data, connection.msgtype).transforms
        }
    for topic in ("image", "camera_info", "masks", "detections", "ground_truth"):
        assert counts[f"/{topic}"] == 20, topic
    answered = counts["/object_poses"]
    assert answered == summary["frames_answered"]
    assert counts["/pose_refiner/overlay"] >= answered - 1  # subscribed before the first frame
    assert counts["/pose_refiner/markers"] >= answered - 1
    assert "camera_optical_frame" in frames and any(f.startswith("van_") for f in frames)


@pytest.mark.slow
@pytest.mark.ros
def test_ctrl_c_ends_everything(tmp_path):
    process = start(tmp_path / "out")
    deadline = time.monotonic() + 20
    while len(children(process.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.0)
    started = children(process.pid)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert len(started) == 3 and not any(alive(pid) for pid in started)


@pytest.mark.slow
@pytest.mark.ros
def test_a_node_that_cannot_start_ends_the_demo_with_its_log(tmp_path):
    process = start(tmp_path / "out", "--device", "cuda:99")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FAILED" in output and "cuda:99" in output and "node.log" in output


def test_what_the_user_has_set_stays():
    own = {"ROS_DOMAIN_ID": "5", "ROS_AUTOMATIC_DISCOVERY_RANGE": "SUBNET"}
    given = demo.demo_environment(own)
    assert {name: given[name] for name in own} == own
    assert given["FASTRTPS_DEFAULT_PROFILES_FILE"].endswith("fastdds.xml")
    alone = demo.demo_environment({})
    assert alone["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert alone["ROS_DOMAIN_ID"] == demo.DOMAIN
