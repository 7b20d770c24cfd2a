# SPDX-License-Identifier: Apache-2.0
"""`evaluate inerf` in a scene: a painted room, photographed from within."""

import json

import cv2
import numpy as np
import pytest
from painted import painted_room, photo
from posed_scene import write_png
from shapes import angle_deg
from typer.testing import CliRunner

from pose_refiner_ros import torch_threads
from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.evaluation import inerf, label_shares
from pose_refiner_ros.evaluation.inerf import run_inerf
from pose_refiner_ros.evaluation.inerf_protocol import InerfCounts, Protocol, perturbed_camera
from pose_refiner_ros.evaluation.inerf_scene import SceneFrame, is_scene
from pose_refiner_ros.evaluation.inerf_tables import markdown
from pose_refiner_ros.evaluation.report import EvaluationError
from pose_refiner_ros.fields.contraction import Contraction
from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.fields.mlp import SMALL, MlpField
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.learning.field_photos import field_psnr

CAMERA = Camera(np.array([[90.0, 0, 63.5], [0, 90.0, 47.5], [0, 0, 1]]), (96, 128))
NEAREST = 0.5
TINY = InerfCounts(
    views=2, starts=2, adam_views=1, adam_starts=1, steps=4, light_starts=1,
    light_adam_runs=1, batch_repeats=1, table1_photos=4, table1_factor=1, table1_steps=9,
    table1_rays=1024,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with torch_threads.one_thread():
        yield


@pytest.fixture(scope="module")
def field():
    """All of it within the cube that contraction leaves as it is."""
    room = painted_room(half=(1.6, 1.2, 0.9), voxel=0.05)
    room.contraction = Contraction((0.0, 0.0, 0.0), 3.0)
    return room


@pytest.fixture(scope="module")
def folder(field, tmp_path_factory):
    """Ten photos in LLFF's layout that look along x; two are for testing."""
    folder, rows = tmp_path_factory.mktemp("data") / "room", []
    rng = np.random.default_rng(0)
    for i in range(10):
        pose = np.eye(4)  # scene from camera: z along x, y down
        pose[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        pose[:3, 3] = rng.uniform(-0.3, 0.3, 3) + np.array([0.3, 0.2, -0.1])
        pose = inverse(perturbed_camera(inverse(pose), rng, 8.0, 0.0))
        write_png(folder / "images" / f"{i:03d}.png", photo(field, inverse(pose), CAMERA)[0])
        right, down, forward, position = pose[:3].T
        hwf = np.array([*CAMERA.size, CAMERA.fx])
        matrix = np.stack((down, right, -forward, position, hwf), -1)
        rows.append([*matrix.ravel(), NEAREST + 0.1 * i, 3.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def shares_of_nothing(data, test, train, scene, **_):
    """What `label_shares` returns; it has tests of its own."""
    assert scene and train(data).contraction is not None
    row = {"share": 0.5, "labelled": 2, "psnr_without": 20.0, "psnr_with": None, "kept": None}
    return {"rows": [row], "size": list(data.size), "rule": "Kept are all."}


@pytest.fixture(scope="module")
def results(field, folder, tmp_path_factory):
    """Everything, run once by the command."""
    out = tmp_path_factory.mktemp("out")
    save_field(field, out / "room.safetensors")
    command = ["evaluate", "inerf", "--quick", "--field", str(out / "room.safetensors")]
    command += ["--data", str(folder), "--out", str(out), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inerf, "BATCH_SIZES", (1, 2))
        patch.setattr(inerf, "QUICK_SCENE", TINY)
        patch.setattr(label_shares, "label_shares", shares_of_nothing)
        run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "inerf_room.json" in run.output and "0.05" in run.output
    return out, json.loads((out / "inerf_room.json").read_text())


def test_the_blocks_of_a_scene_are_measured(results):
    _, report = results
    assert set(report["blocks"]) == {
        "fast", "basin", "speed", "light", "batch", "examples", "figure_6b", "table1"
    }  # fmt: skip
    assert not [block for block in report["blocks"].values() if block["failed"]]
    assert report["scene"]["scale"] == pytest.approx(4.0 / 3.0 / NEAREST)
    assert set(report["methods"]) == {"fast", "adam_grid"}
    assert len(report["figure_6b"]["cells"]) == 3
    assert report["table1"]["rows"][0]["labelled"] == 2
    for row in report["basin"]["rows"]:
        parts = [row[name] for name in ("right", "wrong_and_lost", "wrong_and_not_lost")]
        assert sum(parts) == row["n"] == 1


def test_cameras_are_found_in_either_unit(results):
    fast = results[1]["methods"]["fast"]
    assert fast["n"] == 4 and fast["share_both"] == fast["share_both_field_unit"] == 1.0
    assert fast["median_translation_error_m"] < 0.02 and max(fast["before"]["rotation_deg"]) > 10


def test_the_page_says_units_and_what_the_paper_has(results):
    out, report = results
    text = (out / "inerf_room.md").read_text()
    assert text == markdown(report)
    assert " cm" not in text.replace("_5cm", "") and "none of them need be metres" in text
    assert "0.55" in text and "24.18" in text and "wrong, and not said" in text
    for name in ("6b_steps", "time", "9_errors", "examples"):
        assert f"(inerf_room_{name}.png)" in text
        assert cv2.imread(str(out / f"inerf_room_{name}.png")).std() > 1


def test_a_network_is_refused(field, folder, tmp_path):
    network = MlpField([[-1] * 3, [1] * 3], settings=SMALL)
    with pytest.raises(EvaluationError, match="--mlp-field is for objects"):
        run_inerf(tmp_path, folder, field, network, counts=TINY)


def test_without_depths_the_unit_is_that_of_the_field(results):
    report = results[1]
    text = markdown({**report, "scene": {**report["scene"], "scale": 1.0}})
    assert "the unit of the field, since the photos' file says no depths" in text


def test_the_frame_is_that_of_nerf_and_shows_the_same(field, folder):
    frame, posed = SceneFrame.of(folder), load_posed_images(folder, "test")
    assert is_scene(posed, field)
    photos = frame.photos(posed)
    assert photos.near_far.min() == pytest.approx(4.0 / 3.0)
    everything = frame.photos(load_posed_images(folder, "all"))
    np.testing.assert_allclose(everything.camera_positions.mean(axis=0), 0.0, atol=1e-12)
    there, here = field_psnr(field, posed), field_psnr(frame.field(field), photos)
    np.testing.assert_allclose(here, there, atol=0.01)


def test_cameras_start_turned_in_their_places(field, folder):
    frame, posed = SceneFrame.of(folder), load_posed_images(folder, "test")
    protocol = Protocol.of(frame.photos(posed), frame.field(field), 200, 0, frame)
    truth, starts = inverse(protocol.truths[0]), np.linalg.inv(protocol.starts[0])
    moved = np.abs(starts[:, :3, 3] - truth[:3, 3])
    assert (moved <= 0.1).all() and (moved.max(axis=0) > 0.09).all()
    turned = np.array([angle_deg(start, truth) for start in starts])
    assert 35 < turned.max() <= 40 and turned.min() < 3
    exactly = protocol.start(0, np.random.default_rng(0), 20.0, exactly=True)
    assert angle_deg(inverse(exactly), truth) == pytest.approx(20.0)
