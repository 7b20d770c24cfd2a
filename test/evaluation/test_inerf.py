# SPDX-License-Identifier: Apache-2.0
import json
import re

import cv2
import numpy as np
import pytest
from analytic_field import AnalyticField, as_grid, pinhole, view_from
from posed_scene import opengl, write_json, write_png
from typer.testing import CliRunner

from pose_refiner_ros import torch_threads
from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.evaluation import inerf, inerf_adam_blocks, inerf_blocks, label_shares
from pose_refiner_ros.evaluation.inerf import run_inerf
from pose_refiner_ros.evaluation.inerf_blocks import relit
from pose_refiner_ros.evaluation.inerf_protocol import (
    InerfCounts,
    Protocol,
    errors,
    perturbed,
    shares,
)
from pose_refiner_ros.evaluation.inerf_tables import markdown
from pose_refiner_ros.evaluation.report import EvaluationError
from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.fields.mlp import SMALL, MlpField
from pose_refiner_ros.fields.picture import render_picture

SIZE = 48
TINY = InerfCounts(
    views=2, starts=2, adam_views=1, adam_starts=2, steps=4, mlp_runs=1, mlp_steps=1,
    mlp_training=1, half_turn_starts=1, hypotheses=3, light_starts=1, light_adam_runs=1,
    batch_repeats=1, table1_photos=4, table1_factor=1, table1_steps=9, table1_rays=1024,
)  # fmt: skip
FIGURES = {
    "n", "share_5deg", "share_5cm", "share_both", "median_rotation_error_deg",
    "median_translation_error_m", "seconds_per_pose",
}  # fmt: skip
BLOCKS = {
    "fast",
    "speed",
    "half_turn",
    "light",
    "batch",
    "examples",
    "figure_6a",
    "adam_mlp",
    "self_supervision",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with torch_threads.one_thread():
        yield


@pytest.fixture(scope="module")
def field():
    return as_grid(AnalyticField(background=None), 32)


@pytest.fixture(scope="module")
def photos(field, tmp_path_factory):
    """RGBA photos of the blobs from all sides, in NeRF's layout."""
    folder = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    K = pinhole(SIZE)
    for split, count in (("train", 5), ("test", 2)):
        frames = []
        for i in range(count):
            pose = view_from(rng.normal(size=3) + np.array([1.5, 0, 1]), 2.0)
            seen = render_picture(field, K, pose, (SIZE, SIZE))
            opacity = seen.opacity.reshape(SIZE, SIZE, 1).numpy()
            colour = seen.colour.reshape(SIZE, SIZE, 3).numpy() / np.maximum(opacity, 1e-3)
            picture, alpha = (
                np.rint(255 * x.clip(0, 1)).astype(np.uint8) for x in (colour, opacity)
            )
            write_png(folder / split / f"r_{i}.png", picture, alpha)
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": opengl(pose, 1.0)})
        angle = 2 * np.arctan(0.5 * SIZE / K[0, 0])
        write_json(folder / f"transforms_{split}.json", camera_angle_x=angle, frames=frames)
    return folder


def shares_of_nothing(data, test, train, **_):
    """What `label_shares` returns; it has tests of its own."""
    field = train(data)
    assert field.kind == "grid" and len(data) == 4 and len(test) == 2
    row = {"share": 0.5, "labelled": 2, "psnr_without": 20.0, "psnr_with": None, "kept": None}
    return {"rows": [row], "size": list(data.size), "rule": "Kept are all."}


@pytest.fixture(scope="module")
def results(field, photos, tmp_path_factory):
    """Everything, run once."""
    folder, told = tmp_path_factory.mktemp("inerf"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inerf, "BATCH_SIZES", (1, 3))
        patch.setattr(label_shares, "label_shares", shares_of_nothing)
        report = run_inerf(folder, photos, field, counts=TINY, progress=lambda *s: told.append(s))
    return folder, report, told


def test_every_block_is_measured_and_written(results):
    folder, report, told = results
    written = json.loads((folder / "inerf.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert set(report["blocks"]) == BLOCKS
    assert not [block for block in report["blocks"].values() if block["failed"]]
    assert set(written["methods"]) == {"fast", "adam_grid", "adam_mlp"}
    assert all(set(row) >= FIGURES for row in written["methods"].values())
    assert written["methods"]["fast"]["n"] == 4 and written["methods"]["adam_mlp"]["n"] == 1
    assert len(written["figure_6a"]["cells"]) == 9
    for cell in written["figure_6a"]["cells"].values():
        assert cell["at_step"] == [0, 4] and len(cell["curves"]["share_both"]) == 2
    assert written["half_turn"]["hypotheses"] == 3 and written["half_turn"]["n"] == 2
    assert set(written["light"]["rows"]["exposure"]) == {
        "fast", "fast_no_exposure", "adam_rgb", "adam_uv"
    }  # fmt: skip
    assert [row["size"] for row in written["batch"]["rows"]] == [1, 3]
    table1 = written["self_supervision"]
    assert (table1["photos"], table1["steps"], table1["rows"][0]["labelled"]) == (4, 9, 2)
    last = {block: (done, total) for block, done, total in told}
    assert all(done == total for done, total in last.values())


def test_the_fast_method_refines_and_both_begin_alike(results):
    report = results[1]
    fast = report["methods"]["fast"]
    assert np.median(fast["after"]["rotation_deg"]) < 0.2 * np.median(
        fast["before"]["rotation_deg"]
    )
    # the first starts of the first view are Adam's, and 4 steps lead nowhere
    before = np.mean(np.array(fast["before"]["rotation_deg"][:2]) < 5)
    assert report["methods"]["adam_grid"]["curves"]["share_5deg"][0] == before


def test_plots_and_tables_can_be_read(results):
    folder, report, _ = results
    text = (folder / "inerf.md").read_text()
    assert text == markdown(report)
    for name in (
        "inerf_6a_steps.png",
        "inerf_time.png",
        "inerf_9_errors.png",
        "inerf_examples.png",
    ):
        assert f"({name})" in text
        assert cv2.imread(str(folder / name)).std() > 1
    assert "**missed**" in text and "0.71" in text and "Kept are all." in text
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_block_that_fails_leaves_the_others(results, field, photos, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no light")

    out, file = tmp_path / "out", tmp_path / "blobs.safetensors"
    save_field(field, file)
    out.mkdir()
    first = json.loads((results[0] / "inerf.json").read_text())
    (out / "inerf.json").write_text(json.dumps({k: v for k, v in first.items() if k != "batch"}))
    command = ["evaluate", "inerf", "--quick", "--field", str(file), "--data", str(photos)]
    command += ["--out", str(out), "--device", "cpu", "--only", "light"]
    with monkeypatch.context() as patch:
        patch.setattr(inerf, "QUICK", TINY)
        patch.setattr(inerf, "BATCH_SIZES", (1,))
        patch.setattr(inerf_blocks, "light", fail)
        run = CliRunner().invoke(app, [*command, "--only", "batch"])  # which comes after
        assert run.exit_code == 1, run.output
        assert "block light failed: RuntimeError: no light" in run.output
        assert "target missed: " in run.output
        second = json.loads((out / "inerf.json").read_text())
        assert len(second["batch"]["rows"]) == 1
        assert second["light"] == first["light"] and second["methods"] == first["methods"]
        assert "`light`: RuntimeError" in (out / "inerf.md").read_text()
    monkeypatch.setattr(inerf, "QUICK", TINY)
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    third = json.loads((out / "inerf.json").read_text())
    assert third["light"]["rows"]["exposure"]["fast"]["n"] == 2
    assert third["speed"] == first["speed"] and not third["blocks"]["light"]["failed"]


def test_one_block_alone(field, photos, tmp_path):
    report = run_inerf(tmp_path, photos, field, counts=TINY, only=["fast"])
    assert list(report["blocks"]) == ["fast"] and report["methods"]["fast"]["n"] == 4
    assert all(target["from"].startswith(("methods.fast", "field")) for target in report["targets"])
    page = (tmp_path / "inerf.md").read_text()
    assert "Not run." in page
    pictures = re.findall(r"\]\((\w+\.png)\)", page)
    assert sorted(pictures) == sorted(path.name for path in tmp_path.glob("*.png"))


def test_wrong_input_is_one_sentence(results, field, photos, tmp_path):
    network = MlpField([[-1] * 3, [1] * 3], settings=SMALL)
    with pytest.raises(EvaluationError, match="the fast method needs a grid"):
        run_inerf(tmp_path, photos, network, counts=TINY)
    with pytest.raises(EvaluationError, match="give one of kind mlp"):
        run_inerf(tmp_path, photos, field, field, counts=TINY)
    (tmp_path / "inerf.json").write_text('{"seed": 0}')
    with pytest.raises(EvaluationError, match=r"cannot be used \(KeyError\('counts'\)\)"):
        run_inerf(tmp_path, photos, field, counts=TINY, only=["fast"])
    done = (results[0] / "inerf.json").read_text()
    (tmp_path / "inerf.json").write_text(done)
    with pytest.raises(EvaluationError, match="no block is called slow; there are fast"):
        run_inerf(tmp_path, photos, field, counts=TINY, only=["slow"])
    with pytest.raises(EvaluationError, match="is of another run, with another seed"):
        run_inerf(tmp_path, photos, field, counts=TINY, seed=1, only=["fast"])
    assert (tmp_path / "inerf.json").read_text() == done
    (tmp_path / "inerf.json").write_text(done.replace('"device": "cpu"', '"device": "cuda:0"'))
    with pytest.raises(EvaluationError, match="was measured on cuda:0, not cpu"):
        run_inerf(tmp_path, photos, field, counts=TINY, only=["fast"])
    with pytest.raises(EvaluationError, match="steps is 0"):
        InerfCounts(steps=0)
    posed = load_posed_images(photos, "test")
    posed.alpha = None
    with pytest.raises(EvaluationError, match="nothing says what is behind"):
        Protocol.of(posed, field, 1, 0)


def test_starts_are_those_of_the_protocol(field, photos):
    truth = view_from((1, 0.3, 0.5))
    rng = np.random.default_rng(0)
    turned = np.array([perturbed(truth, rng, shift=0.0) for _ in range(200)])
    found = errors(turned, truth)
    assert 35 < found["rotation_deg"].max() <= 40
    # about the model's origin: it stays where it is seen, and as far away
    np.testing.assert_allclose(found["origin_m"], 0.0, atol=1e-9)
    moved = np.array([perturbed(truth, rng, degrees=0.0) for _ in range(200)])
    camera = -np.einsum("nji,nj->ni", moved[:, :3, :3], moved[:, :3, 3])
    away = camera + truth[:3, :3].T @ truth[:3, 3]
    assert (np.abs(away) <= 0.2).all() and (np.abs(away).max(axis=0) > 0.17).all()
    np.testing.assert_allclose(errors(moved, truth)["rotation_deg"], 0.0, atol=1e-4)

    posed = load_posed_images(photos, "test")
    few, many = (Protocol.of(posed, field, n, 3) for n in (2, 5))
    np.testing.assert_array_equal(few.starts, many.starts[:, :2])
    assert not np.allclose(few.starts, Protocol.of(posed, field, 2, 4).starts)
    assert few.images.max() == 1.0 and few.images[:, 0, 0].min() > 0.9  # white behind


def test_errors_of_known_motions():
    truth = view_from((1, 0, 0), 2.0)
    turn = np.eye(4)
    turn[:2, :2] = [[0, -1], [1, 0]]
    found = errors(truth @ turn, truth)
    assert found["rotation_deg"] == pytest.approx(90.0)
    assert found["translation_m"] == pytest.approx(2 * np.sqrt(2))
    assert found["origin_m"] == pytest.approx(0.0, abs=1e-9)
    share = shares(
        {"rotation_deg": np.array([1.0, 1.0, 9.0]), "translation_m": np.array([0.01, 0.1, 0.01])}
    )
    assert [round(float(share[k]), 3) for k in ("share_5deg", "share_5cm", "share_both")] == [
        0.667, 0.667, 0.333,
    ]  # fmt: skip


def test_time_to_an_accuracy_is_that_from_which_on_it_is_kept():
    reached = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    seconds = np.tile([0.0, 1.0, 2.0, 3.0], (4, 1))
    fast, by_fast = np.full(4, 0.5), np.array([True, True, True, False])
    level = inerf_adam_blocks._level(reached, seconds, fast, by_fast, stays=True)
    assert (level["fast_reaches"], level["adam_reaches"], level["both"]) == (3, 3, 2)
    assert level["adam_seconds"] == 2.5 and level["times"] == 5.0
    assert level["times_with_never"] == 6.0  # of 4, 6 and never
    first = inerf_adam_blocks._level(reached, seconds, fast, by_fast, stays=False)
    assert first["adam_seconds"] == 1.5
    never = inerf_adam_blocks._level(np.zeros((4, 4), bool), seconds, fast, by_fast, stays=True)
    assert never["times"] is None and never["times_with_never"] is None and never["both"] == 0


def test_light_changes_as_said():
    image = np.full((4, 4, 3), 0.5, np.float32)
    rng = np.random.default_rng(0)
    grey = relit(image, rng, colour=False)
    assert np.ptp(grey) == 0 and 0.35 <= grey[0, 0, 0] <= 0.65 and grey[0, 0, 0] != 0.5
    tinted = relit(image, rng, colour=True)
    assert np.ptp(tinted[0, 0]) > 0.01 and relit(2 * image, rng, True).max() <= 1.0
