# SPDX-License-Identifier: Apache-2.0
import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pose_refiner_ros import shipped
from pose_refiner_ros.cli import app

CAMERA = {
    "width": 640,
    "height": 480,
    "K": [500, 0, 319.5, 0, 500, 239.5, 0, 0, 1],
    "distortion_model": "plumb_bob",
    "D": [0.1, 0, 0, 0, 0],
}


def entry(label, name="wedge", z=10.0, **change):
    """An object that stands on the ground under a level camera 1.5 m above it."""
    matrix = [[0, -1, 0, 2.0], [0, 0, -1, 1.5], [1, 0, 0, z], [0, 0, 0, 1]]
    return {"label": label, "name": name, "camera_from_object": matrix, **change}


def write(path, *objects, **content):
    content = {"camera": CAMERA, "objects": objects, "problems": [], **content}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def run(bop_folder, tmp_path):
    """run(file, options) with the blocks as library; the scene goes to scene.png and .json."""

    def run_scene(poses, *options, objects=bop_folder / "models"):
        arguments = ["scene", poses, "--out", tmp_path / "scene.png", "--json"]
        arguments += [tmp_path / "scene.json", "--size", 320, 240, *options]
        if objects:
            arguments += ["--objects", objects]
        return CliRunner().invoke(app, list(map(str, arguments)))

    return run_scene


def test_scene_is_drawn_and_written(run, tmp_path):
    result = run(write(tmp_path / "poses.json", entry(3), entry(4, "ell", 25.0)))
    assert result.exit_code == 0, result.output
    assert "+10.00" in result.stdout and "scene.png" in result.stdout
    assert cv2.imread(str(tmp_path / "scene.png")).shape == (240, 320, 3)
    content = json.loads((tmp_path / "scene.json").read_text())
    assert content["ground"]["camera_height"] == 1.5 and content["problems"] == []
    near, far = content["objects"]
    assert (near["label"], near["name"], far["name"]) == (3, "wedge", "ell")
    np.testing.assert_allclose(near["position"], [10, -2, 0], atol=1e-9)
    np.testing.assert_allclose(far["position"], [25, -2, 0], atol=1e-9)
    np.testing.assert_allclose(near["scene_from_object"], np.array(
        [[1, 0, 0, 10], [0, 1, 0, -2], [0, 0, 1, 0], [0, 0, 0, 1]]), atol=1e-9)  # fmt: skip


def test_ground_by_height_pitch_or_plane(run, tmp_path):
    poses = write(tmp_path / "poses.json", entry(3))
    down = np.radians(10)
    plane = [0, -2 * np.cos(down), -2 * np.sin(down), 4.0]
    placed = []
    for options in (["--camera-height", 2, "--camera-pitch", 10], ["--plane", *plane]):
        assert run(poses, *options).exit_code == 0
        placed.append(json.loads((tmp_path / "scene.json").read_text())["scene_from_camera"])
    np.testing.assert_allclose(*placed, atol=1e-9)
    assert placed[0][2][3] == 2.0


def test_views_differ(run, tmp_path):
    poses = write(tmp_path / "poses.json", entry(3))
    pictures = []
    for view in (
        ["birds_eye"],
        ["chase"],
        ["camera"],
        ["custom", "--eye", -5, 5, 5, "--target", 10, 0, 0],
    ):
        assert run(poses, "--view", *view).exit_code == 0
        pictures.append(cv2.imread(str(tmp_path / "scene.png")))
    for i, one in enumerate(pictures):
        assert all((one != other).any() for other in pictures[:i])


def test_what_is_wrong_with_an_object_is_said_and_harms_no_other(run, tmp_path):
    nan = [[float("nan")] * 4] * 4
    bad = [entry(4, z=-10.0), entry(5, "truck"), entry(6, camera_from_object=nan)]
    bad += [{"label": 7, "name": "wedge"}, "car", entry(8, camera_from_object="here")]
    result = run(write(tmp_path / "poses.json", entry(3), *bad))
    assert result.exit_code == 0
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 6
    for text in (
        "label 4: wedge is not in the scene: it lies behind the camera",
        "label 5: truck is not drawn: the object library has none of that name",
        "label 6: wedge is not in the scene: it holds NaN",
        "left out: it has no 'camera_from_object'",
        "object 6 of",
        "object 7 of",
    ):
        assert sum(text in line for line in lines) == 1, result.stderr
    content = json.loads((tmp_path / "scene.json").read_text())
    assert [one["label"] for one in content["objects"]] == [3, 5]  # a pose needs no mesh
    assert len(content["problems"]) == 6


def test_no_objects_give_an_empty_scene_and_exit_code_1(run, tmp_path):
    result = run(write(tmp_path / "poses.json"))
    assert result.exit_code == 1 and (tmp_path / "scene.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--camera-height", -1], "must be above the ground"),
        (["--camera-pitch", 100], "within ±90 degrees"),
        (["--plane", 0, 0, 0, 1], "is no plane"),
        (["--plane", 0, 1, 0, 0], "goes through the camera"),
        (["--plane", 0, 1, 0, 1, "--camera-pitch", 3], "either --plane, or"),
        (["--view", "custom"], "needs --eye X Y Z and --target"),
        (["--eye", 1, 2, 3], "are for --view custom"),
        (["--view", "custom", "--eye", 1, 2, 3, "--target", 1, 2, 3], "at itself"),
        (["--size", 3, 240], "give 64 to 8192"),
        (["--out", "scene.foo"], "OpenCV cannot write .foo files"),
    ],
)
def test_options_that_cannot_be(run, tmp_path, options, message):
    check_refused(run(write(tmp_path / "poses.json", entry(3)), *options), message)
    assert not (tmp_path / "scene.json").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "cannot be read: No such file"),
        ("[1, 2]", "not in the form that refine writes"),
        ("{", "is not JSON: Expecting property name"),
        pytest.param("[" * 100_000, "is not JSON", id="nested"),
        pytest.param(b"\x89PNG\r\n" + bytes(range(256)) * 99, "is not text", id="binary"),
        ('{"objects": []}', "it has no 'camera'"),
        (json.dumps({"camera": CAMERA, "objects": 3}), "objects is no list"),
        (json.dumps({"camera": {**CAMERA, "K": [0] * 9}, "objects": []}), "all zero"),
    ],
)
def test_files_that_cannot_be_read(run, tmp_path, text, message):
    path = tmp_path / "poses.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run(path)
    check_refused(result, message)
    assert len(result.stderr) < 400 + len(str(path))


def test_objects_that_float_or_are_sunk_are_said(run, tmp_path):
    up, down, little = entry(3), entry(4), entry(5, z=20.0)
    up["camera_from_object"][1][3] -= 0.5
    down["camera_from_object"][1][3] += 0.4
    little["camera_from_object"][1][3] -= 0.2
    result = run(write(tmp_path / "poses.json", up, down, little))
    assert result.exit_code == 0
    lines = result.stderr.strip().splitlines()
    assert [line.split(":")[1] for line in lines] == [" label 3", " label 4"]
    assert "wedge stands 0.50 m above the ground" in lines[0]
    assert "wedge stands 0.40 m below the ground" in lines[1]
    content = json.loads((tmp_path / "scene.json").read_text())
    assert len(content["problems"]) == 2 and len(content["objects"]) == 3


def test_the_default_library_is_that_of_the_categories(run, tmp_path, monkeypatch, bop_folder):
    poses = write(tmp_path / "poses.json", entry(3))
    library = tmp_path / "vehicles.yaml"
    mesh = bop_folder / "models/obj_000001.ply"
    library.write_text(f"objects: {{wedge: {{mesh: {mesh}, unit: mm}}}}")
    monkeypatch.setattr(shipped, "OBJECTS", library)
    assert run(poses, objects=None).exit_code == 0


def check_refused(result, message):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pose-refiner: "), result.stderr
    assert message in lines[0]
