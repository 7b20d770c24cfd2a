# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from pose_refiner_ros.geometry.camera import CameraError
from pose_refiner_ros.geometry.camera_file import load_camera

CALIBRATION = """\
image_width: 640
image_height: 480
camera_name: head
camera_matrix:
  rows: 3
  cols: 3
  data: [600.0, 0.0, 330.5, 0.0, 610.0, 235.2, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.28, 0.07, 0.001, -0.002, 0.0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: [580, 0, 331, 0, 0, 590, 234, 0, 0, 0, 1, 0]
"""
MESSAGE = """\
header:
  stamp: {sec: 1, nanosec: 2}
  frame_id: camera
height: 960
width: 1280
distortion_model: rational_polynomial
d: [0.5, -2.7, 4.0e-4, -3.0e-4, 1.5, 0.38, -2.5, 1.4]
k: [1200.0, 0.0, 661.5, 0.0, 1220.0, 470.9, 0.0, 0.0, 1.0]
binning_x: 2
binning_y: 2
roi: {x_offset: 0, y_offset: 0, height: 0, width: 0, do_rectify: false}
---
"""
BOP = {"fx": 600, "fy": 610, "cx": 330.5, "cy": 235.2, "width": 640, "height": 480}


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        path = tmp_path / "camera.txt"
        path.write_text(text)
        return load_camera(path)

    return write_and_load


def test_bop_camera_json(load):
    camera = load(json.dumps({**BOP, "depth_scale": 1.0}))
    assert camera.size == (480, 640) and not camera.is_distorted
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (600, 610, 330.5, 235.2)
    matrix = {"cam_K": [600, 0, 330.5, 0, 610, 235.2, 0, 0, 1], "width": 640, "height": 480}
    assert load(json.dumps(matrix)) == camera


@pytest.mark.parametrize("text", ["600 610 330.5 235.2 640 480", "600,610,330.5,235.2\n640, 480\n"])
def test_six_numbers(load, text):
    assert load(text) == load(json.dumps(BOP))


def test_ros_calibration(load):
    camera = load(CALIBRATION)
    assert camera.size == (480, 640) and camera.distortion_model == "plumb_bob"
    np.testing.assert_array_equal(camera.distortion, [-0.28, 0.07, 0.001, -0.002, 0])
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (600, 610, 330.5, 235.2)


def test_printed_camera_info(load):
    camera = load(MESSAGE)
    assert camera.size == (480, 640) and camera.distortion_model == "rational_polynomial"
    assert (camera.fx, camera.cx) == (600, 330.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds 0 numbers, not six; known are"),
        ("600 610 330.5 235.2", "holds 4 numbers, not six"),
        ("600 610 330.5 235.2 640 0", r"size \(height, width\) is \(0.0, 640.0\)"),
        ("{\"fx\": 600,", "is neither JSON nor YAML .Expecting property name"),
        ("a: [1", "is neither JSON nor YAML"),
        ("hello", "holds no calibration but 'hello'; known are"),
        ("[1, {}]", "holds no calibration but"),
        ("a: 1", "has a but no intrinsics"),
        ("{\"fx\": 1, \"fy\": 1, \"cx\": 1, \"cy\": 1, \"width\": 3}", "lacks 'height'; it has fx"),
        ("{\"1\": {\"cam_K\": [1]}}", "is a scene_camera.json of many images"),
        (CALIBRATION.replace("image_width", "w"), "lacks 'image_width'"),
        (CALIBRATION.replace("data: [600", "date: [600"), "lacks .camera_matrix.data"),
        (CALIBRATION.replace("600.0", ".nan"), "NaN or infinity"),
        (CALIBRATION.replace("plumb_bob", "magic"), "unknown distortion model 'magic'"),
        (MESSAGE.replace("1200.0", "0.0"), "fx is 0 pixels"),
    ],
)  # fmt: skip
def test_wrong_files_say_what_is_wrong(load, text, message):
    with pytest.raises(CameraError, match=f"^camera file .*camera.txt: .*{message}"):
        load(text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CameraError, match=r"nothing\.json does not exist"):
        load_camera(tmp_path / "nothing.json")
    with pytest.raises(CameraError, match="cannot be read"):
        load_camera(tmp_path)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CameraError, match="cannot be read"):
        load_camera(tmp_path / "image.png")


@pytest.mark.data
def test_real_files(example_data):
    camera = load_camera(example_data("bop/schauma/camera.json"))
    assert camera.size == (540, 960) and camera.fx == 698.128
    assert load_camera(example_data("bop/schauma/depth_raw_camera.json")).size == (480, 848)


@pytest.mark.parametrize("text", ["600 610 320 240 640 480", "600, 610, 320, 240, 640, 480"])
def test_six_numbers_need_no_file(text):
    camera = load_camera(text)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (600, 610, 320, 240)
    assert camera.size == (480, 640)


def test_six_numbers_that_are_no_camera_are_named():
    with pytest.raises(CameraError, match="0 610"):
        load_camera("0 610 320 240 640 480")
