# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner field`: train, render, info, and what they say of wrong input."""

from __future__ import annotations

import json

import cv2
import numpy as np
import posed_scene
import pytest
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.fields.field_file import load_field
from pose_refiner_ros.learning import field_training
from pose_refiner_ros.learning.grid_training import GridTraining


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return posed_scene.write_split_scene(tmp_path_factory.mktemp("scene"), 24, every=6)


@pytest.fixture(scope="module")
def trained(scene, tmp_path_factory):
    out = tmp_path_factory.mktemp("field") / "balls.safetensors"
    result = run("train", scene, "--out", out, "--steps", 40, "--previews", out.parent / "seen")
    return out, result


def run(command, *arguments):
    device = [] if command == "info" else ["--device", "cpu"]
    return CliRunner().invoke(app, ["field", command, *map(str, arguments), *device])


def refused(result, message):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pose-refiner: "), result.stderr
    assert message in lines[0], lines[0]


def test_training_writes_a_field_and_says_how_good_it_is(trained):
    out, result = trained
    assert result.exit_code == 0, result.output
    assert "PSNR of training rays" in result.stderr
    field = load_field(out)
    test = field.record["test"]
    assert f"test PSNR {test['mean_psnr']:.2f} dB over 4 photos of 80x60" in result.stdout
    assert test["mean_psnr"] > 24.0
    assert field.record["source"]["scale"] == 1.0
    assert len(list((out.parent / "seen").glob("test_*.png"))) == 4
    assert cv2.imread(str(out.parent / "seen" / "test_000.png")).shape == (60, 160, 3)
    assert not out.with_suffix(".training").exists()


def test_photos_that_are_missing_are_told_once(tmp_path):
    source = posed_scene.write_instant_ngp(tmp_path, posed_scene.orbit(16), masks="masks")
    (source / "images" / "003.png").unlink()
    result = run("train", source, "--out", tmp_path / "f.safetensors", "--steps", 20)
    assert result.exit_code == 0, result.output
    assert "over 2 photos" in result.stdout
    told = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1, result.stderr
    assert "transforms.json: 1 of 16 pictures are missing and left out: images/003.png;" in told[0]


def test_previews_are_named_after_the_photos_they_show(tmp_path):
    source = posed_scene.write_nerf_synthetic(tmp_path / "scene", posed_scene.orbit(12))
    options = ["--steps", 20, "--previews", tmp_path / "seen"]
    result = run("train", source, "--out", tmp_path / "f.safetensors", *options)
    assert result.exit_code == 0, result.output
    assert "no test photos" in result.stderr
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["train_000.png"]


def test_info_prints_the_record(trained):
    result = run("info", trained[0])
    content = json.loads(result.stdout)
    assert content["kind"] == "grid"
    assert content["options"]["steps"] == 40
    assert content["view"]["up"] == [0.0, 0.0, 1.0]
    assert content["features"] == len(load_field(trained[0]).features.points)


def test_an_interrupted_training_goes_on(scene, tmp_path, monkeypatch):
    out = tmp_path / "field.safetensors"
    options = ["--out", out, "--steps", 12, "--voxel", 0.03]
    monkeypatch.setattr(field_training, "_SAVE_EVERY", 0.0)
    step = GridTraining.step

    def interrupted(self):
        if self.done == 7:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(GridTraining, "step", interrupted)
    result = run("train", scene, *options)
    assert result.exit_code == 130
    assert "go on with --resume" in result.stderr
    assert not out.exists()
    monkeypatch.setattr(GridTraining, "step", step)
    checkpoint = out.with_suffix(".training") / "checkpoint.pt"
    refused(run("train", scene, *options), "is of an earlier training")
    refused(run("train", scene, *options, "--resume", "--scale", 2), "with scale 1.0, not 2.0")
    refused(run("train", scene, *options, "--resume", "--degree", 0), "with degree")
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000])
    refused(run("train", scene, *options, "--resume"), "no whole checkpoint")
    checkpoint.write_bytes(whole)
    result = run("train", scene, *options, "--resume")
    assert result.exit_code == 0, result.output
    assert load_field(out).record["steps"] == 12
    assert not checkpoint.exists()
    refused(run("train", scene, *options, "--resume"), "nothing to resume")


def test_a_picture_is_transparent_unless_it_has_a_background(trained, tmp_path):
    picture = tmp_path / "picture.png"
    result = run("render", trained[0], "--out", picture, "--size", "48x64", "--azimuth", 30)
    assert result.exit_code == 0, result.output
    pixels = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (48, 64, 4)
    assert pixels[0, 0, 3] == 0 and (pixels[..., 3] > 200).mean() > 0.01
    run("render", trained[0], "--out", picture, "--background", "0,0.5,1")
    pixels = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (60, 80, 3)
    assert pixels[0, 0].tolist() == [255, 128, 0]


def test_a_picture_by_pose_and_camera_shows_what_the_photo_does(trained, scene, tmp_path):
    pose = posed_scene.orbit(24)[6]
    refined = {"objects": [{"label": 1, "camera_from_object": pose.tolist()}]}
    (tmp_path / "pose.json").write_text(json.dumps(refined))
    (tmp_path / "camera.txt").write_text("100 100 39.5 29.5 80 60")
    options = ["--pose", tmp_path / "pose.json", "--camera", tmp_path / "camera.txt"]
    result = run("render", trained[0], "--out", tmp_path / "seen.png", *options)
    assert result.exit_code == 0, result.output
    pixels = cv2.imread(str(tmp_path / "seen.png"), cv2.IMREAD_UNCHANGED).astype(float)
    _, index = posed_scene.render(posed_scene.pinhole(), pose)
    assert abs(pixels[..., 3] / 255.0 - (index >= 0)).mean() < 0.03


def test_an_orbit_is_a_film(trained, tmp_path):
    out = tmp_path / "orbit.mp4"
    options = ["--orbit", "--frames", 5, "--size", "32x40"]
    result = run("render", trained[0], "--out", out, *options)
    if "cannot write MP4" in result.output:
        pytest.skip("this OpenCV has no encoder")
    assert result.exit_code == 0, result.output
    film = cv2.VideoCapture(str(out))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert film.read()[1].shape == (32, 40, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["orbit.mp4"]


def test_wrong_input_is_one_line(trained, scene, tmp_path):
    field, out = trained[0], tmp_path / "out.png"
    away = np.diag([1.0, -1.0, -1.0, 1.0])
    away[2, 3] = -3.0
    (tmp_path / "away.json").write_text(json.dumps(away.tolist()))
    (tmp_path / "bent.json").write_text(json.dumps((2 * np.eye(4)).tolist()))
    for options, message in (
        (["--pose", tmp_path / "away.json"], "looks past the field"),
        (["--pose", tmp_path / "bent.json"], "no rotation and translation"),
        (["--pose", tmp_path / "none.json"], "cannot be read"),
        (["--size", "big"], "height x width"),
        (["--background", "red"], "white, black or three numbers"),
        (["--orbit"], "must end in .mp4"),
    ):
        refused(run("render", field, "--out", out, *options), message)
    refused(run("render", tmp_path / "none.safetensors", "--out", out), "do not exist")
    refused(run("info", scene / "transforms_train.json"), "not a whole safetensors file")
    for options, message in (
        ([scene, "--out", tmp_path], "is a folder"),
        ([tmp_path / "nowhere", "--out", tmp_path / "f"], "does not exist"),
        ([scene, "--out", tmp_path / "f", "--voxel", 3], "does not suit"),
        ([scene, "--out", tmp_path / "f", "--kind", "mlp", "--voxel", 1], "belong to --kind grid"),
    ):
        refused(run("train", *options), message)
    assert not out.exists() and not (tmp_path / "f").exists()
    assert not (tmp_path / "f.training").exists()
