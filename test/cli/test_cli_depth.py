# SPDX-License-Identifier: Apache-2.0
"""Depth images and points of files in the commands `refine` and `bop`."""

import json

import cv2
import numpy as np
import pytest
from shapes import ell, pinhole_camera, pose, silhouette
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.rendering.scene import render_scene

CAMERA = pinhole_camera(320, 400.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Options of refine for one object in front of nothing; its depth is depth.png."""
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))
    mask = silhouette(ell(), TRUTH, CAMERA)
    depth = render_scene([ell()], TRUTH[None], CAMERA).depth
    depth = np.where(np.isfinite(depth), depth, 0.0)
    cv2.imwrite(str(tmp_path / "depth.png"), (1e3 * depth).round().astype(np.uint16))
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    cv2.imwrite(str(tmp_path / "photo.png"), np.full((320, 320, 3), 90, np.uint8))
    rows, columns = np.nonzero(depth[::4, ::4])
    rays = CAMERA.rays(4.0 * np.stack([columns, rows], axis=-1))
    points = rays * (depth[::4, ::4][rows, columns] / rays[:, 2])[:, None]
    np.save(tmp_path / "points.npy", points @ np.diag([1.0, -1.0, -1.0]))  # y up, z back
    (tmp_path / "camera_from_points.txt").write_text("1 0 0 0  0 -1 0 0  0 0 -1 0")
    mesh = ell()
    lines = [f"v {x} {y} {z}" for x, y, z in mesh.vertices]
    lines += ["f " + " ".join(str(i + 1) for i in face) for face in mesh.faces]
    (tmp_path / "ell.obj").write_text("\n".join(lines))
    (tmp_path / "objects.yaml").write_text("objects:\n  ell: {mesh: ell.obj, unit: m}\n")
    return {
        "--image": tmp_path / "photo.png",
        "--masks": tmp_path / "mask.png",
        "--camera": "400 400 159.5 159.5 320 320",
        "--objects": tmp_path / "objects.yaml",
        "--out": tmp_path / "poses.json",
        "--device": "cpu",
    }


def refine(inputs, **more):
    options = inputs | {f"--{name.replace('_', '-')}": value for name, value in more.items()}
    return CliRunner().invoke(app, ["refine", *(str(a) for pair in options.items() for a in pair)])


def found_in(tmp_path):
    content = json.loads((tmp_path / "poses.json").read_text())
    (found,) = content["objects"]
    return found, content["problems"]


def test_a_depth_image(inputs, tmp_path):
    result = refine(inputs, depth=tmp_path / "depth.png")
    assert result.exit_code == 0, result.output
    found, problems = found_in(tmp_path)
    assert found["depth_agrees"] > 0.9 and not problems and "depth agrees" in result.stdout
    np.testing.assert_allclose(np.array(found["camera_from_object"]), TRUTH, atol=0.01)


def test_points_in_axes_of_their_own(inputs, tmp_path):
    move = tmp_path / "camera_from_points.txt"
    result = refine(inputs, points=tmp_path / "points.npy", camera_from_points=move)
    assert result.exit_code == 0, result.output
    found, problems = found_in(tmp_path)
    assert found["depth_agrees"] > 0.9 and not problems


def test_without_depth_nothing_is_said_of_it(inputs, tmp_path):
    result = refine(inputs)
    assert result.exit_code == 0 and "depth agrees" not in result.stdout
    assert found_in(tmp_path)[0]["depth_agrees"] is None


def test_a_wrong_scale_is_a_warning(inputs, tmp_path):
    result = refine(inputs, depth=tmp_path / "depth.png", depth_scale=1.0)
    assert result.exit_code == 0, result.output
    assert "1000 times" in " ".join(result.stderr.split())
    assert found_in(tmp_path)[0]["depth_agrees"] == 0.0


@pytest.mark.parametrize(
    "options, words",
    [
        ({"depth": "nowhere.png"}, "nowhere.png cannot be read"),
        ({"depth": "mask.png"}, "one channel of 16 bit"),
        ({"points": "photo.png"}, "give a .pcd, .ply, .bin"),
        ({"points": "points.npy", "camera_from_points": "objects.yaml"}, "not made of numbers"),
    ],
    ids=["missing", "mask", "picture", "transform"],
)
def test_wrong_files_are_one_line(inputs, tmp_path, options, words):
    result = refine(inputs, **{name: tmp_path / file for name, file in options.items()})
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1
    assert words in result.stderr
