# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from blocks import bop_truth
from painted import painted_block, photo
from shapes import angle_deg, pinhole_camera, pose
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.cli.refine import doubts
from pose_refiner_ros.cli.single_image import to_json
from pose_refiner_ros.evaluation import metrics
from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.frame import Frame, ObjectPose, weighed


@pytest.fixture
def inputs(bop_folder, tmp_path):
    """Options of refine for the first image: the wedge is label 5, the L label 9."""
    labels = np.zeros((240, 320), np.uint8)
    for index, label in ((0, 5), (1, 9)):
        mask = bop_folder / f"test/000003/mask_visib/000000_{index:06d}.png"
        labels[cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) > 0] = label
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    return {
        "--image": bop_folder / "test/000003/rgb/000000.png",
        "--masks": tmp_path / "labels.png",
        "--camera": bop_folder / "camera.json",
        "--objects": bop_folder / "models",
        "--out": tmp_path / "poses.json",
        "--device": "cpu",
    }


BOTH = ["--label", "5=wedge", "--label", "9=4"]  # by name, and by BOP id


def run(command, options=(), extra=()):
    arguments = [command, *(str(a) for pair in dict(options).items() for a in pair), *extra]
    return CliRunner().invoke(app, arguments)


def check_refused(result, message):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pose-refiner: "), result.stderr
    assert message in lines[0]


def test_refine_writes_poses_and_overlay(inputs, tmp_path):
    inputs["--overlay"] = tmp_path / "overlay.png"
    result = run("refine", inputs, BOTH)
    assert result.exit_code == 0, result.output
    assert "wedge" in result.stdout and "poses.json" in result.stdout
    content = json.loads((tmp_path / "poses.json").read_text())
    assert content["problems"] == []
    assert content["camera"]["width"] == 320 and len(content["camera"]["K"]) == 9
    for found, label, name, obj_id in zip(
        content["objects"], (5, 9), ("wedge", "ell"), (1, 4), strict=True
    ):
        assert (found["label"], found["name"]) == (label, name)
        assert 0 <= found["score"] <= 1 and found["iou"] > 0.9
        assert found["quality"] in ("good", "ambiguous", "partial", "poor")
        assert np.shape(found["covariance"]) == (6, 6)
        hypotheses = [found, *found["alternatives"]]
        poses = np.array([h["camera_from_object"] for h in hypotheses])
        rotation, translation = metrics.pose_errors(poses, bop_truth()[obj_id])
        assert np.degrees(rotation.min()) < 8 and translation.min() < 0.03
    picture = cv2.imread(str(tmp_path / "overlay.png"))
    assert picture.shape == (240, 320, 3)
    assert (picture != cv2.imread(str(inputs["--image"]))).any()


CUBE_POSE = pose((0.6, -0.7, 0.4), (0.02, 0.01, 0.6))


@pytest.fixture
def cube_inputs(tmp_path, monkeypatch):
    """Options of refine for the photo of an object that has a field."""
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))
    field = painted_block()
    image, mask = photo(field, CUBE_POSE, pinhole_camera(160, 200.0))
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    save_field(field, tmp_path / "cube.safetensors")
    (tmp_path / "objects.yaml").write_text("objects:\n  cube: {field: cube.safetensors}\n")
    return {
        "--image": tmp_path / "photo.png",
        "--masks": tmp_path / "mask.png",
        "--camera": "200 200 79.5 79.5 160 160",
        "--objects": tmp_path / "objects.yaml",
        "--out": tmp_path / "poses.json",
        "--overlay": tmp_path / "overlay.png",
        "--device": "cpu",
    }


def test_refine_by_the_field_of_an_object(cube_inputs, tmp_path):
    result = run("refine", cube_inputs)
    assert result.exit_code == 0, result.output
    assert "colour RMS" in result.stdout
    (found,) = json.loads((tmp_path / "poses.json").read_text())["objects"]
    assert found["photo_rms"] < 0.1 and found["quality"] == "good"
    assert angle_deg(np.array(found["camera_from_object"]), CUBE_POSE) < 2.0


def test_a_photo_in_other_light(cube_inputs, tmp_path):
    dark = cv2.imread(str(cube_inputs["--image"])) // 2
    cv2.imwrite(str(cube_inputs["--image"]), dark)
    result = run("refine", cube_inputs)
    assert result.stderr == ""
    (found,) = json.loads((tmp_path / "poses.json").read_text())["objects"]
    assert found["photo_rms"] < 0.1 and found["quality"] == "good"


def test_bag_takes_exposure(monkeypatch):
    given = []

    def run_bag(source, target, options, progress):
        given.append(options.exposure)
        raise ValueError("enough")

    monkeypatch.setattr("pose_refiner_ros.ros.bag.run_bag", run_bag)
    for extra in ([], ["--no-exposure"]):
        run("bag", extra=["in", "out", "--device", "cpu", *extra])
    assert given == [True, False]


def test_unlikely_alternatives_are_not_written():
    camera = pinhole_camera(8, 10.0)
    rivals = [
        ObjectPose(1, "mug", np.eye(4), np.eye(6), 0, "", 0.9, 1.0, 1.0, 1.0, 3, "converged")
        for _ in range(3)
    ]
    found = weighed(rivals, [0.9, 0.006, 0.094], 0)
    frame = Frame(np.ones((8, 8), np.uint8), camera, {1: "mug"})
    (written,) = json.loads(to_json(frame, [found], [], "photo.png"))["objects"]
    assert [other["score"] for other in written["alternatives"]] == [pytest.approx(0.0846)]


def test_poses_of_one_run_start_the_next(inputs, tmp_path):
    assert run("refine", inputs, BOTH).exit_code == 0
    first = json.loads((tmp_path / "poses.json").read_text())
    inputs["--init"], inputs["--out"] = inputs["--out"], tmp_path / "again.json"
    assert run("refine", inputs, BOTH).exit_code == 0
    again = json.loads((tmp_path / "again.json").read_text())
    for a, b in zip(first["objects"], again["objects"], strict=True):
        np.testing.assert_allclose(a["camera_from_object"], b["camera_from_object"], atol=0.02)


def test_labels_without_object_hide_others_and_are_listed(inputs, tmp_path):
    result = run("refine", inputs, BOTH[:2])
    assert result.exit_code == 0
    assert "label 9: no object for it" in result.stderr
    content = json.loads((tmp_path / "poses.json").read_text())
    assert [entry["label"] for entry in content["objects"]] == [5]
    assert content["problems"][0]["label"] == 9


def test_one_object_or_labels_in_the_library_need_no_label_option(inputs, bop_folder, tmp_path):
    (bop_folder / "models/obj_000004.ply").unlink()
    assert run("refine", inputs).exit_code == 0
    content = json.loads((tmp_path / "poses.json").read_text())
    assert {entry["name"] for entry in content["objects"]} == {"wedge"}
    library = tmp_path / "objects.yaml"
    mesh = bop_folder / "models/obj_000001.ply"
    library.write_text(
        f"objects: {{a: {{mesh: {mesh}, unit: mm, label: 9}}, b: {{mesh: {mesh}, unit: mm}}}}"
    )
    inputs["--objects"] = library
    assert run("refine", inputs).exit_code == 0
    content = json.loads((tmp_path / "poses.json").read_text())
    assert [(entry["label"], entry["name"]) for entry in content["objects"]] == [(9, "a")]


def test_refine_without_any_pose_says_so(inputs, tmp_path):
    labels = np.zeros((240, 320), np.uint8)
    labels[100, 100] = 5
    cv2.imwrite(str(inputs["--masks"]), labels)
    result = run("refine", inputs, BOTH[:2])
    assert result.exit_code == 1
    assert "label 5" in result.stderr
    content = json.loads((tmp_path / "poses.json").read_text())
    assert content["objects"] == [] and content["problems"][0]["label"] == 5


@pytest.fixture
def vehicle_inputs(tmp_path):
    """Options of refine for two vehicles whose classes nobody says, and no objects."""
    from pose_refiner_ros import shipped
    from pose_refiner_ros.geometry.camera import Camera
    from pose_refiner_ros.objects.library import ObjectLibrary
    from pose_refiner_ros.rendering.scene import render_scene

    library = ObjectLibrary.load(shipped.OBJECTS)
    camera = Camera(np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]), (240, 320))
    pose = np.eye(4)
    u, _, v = np.linalg.svd([[0.6, -0.8, 0.0], [-0.16, -0.12, -0.98], [0.784, 0.588, -0.2]])
    pose[:3, :3] = u @ v
    poses = np.stack([pose, pose])
    poses[:, :3, 3] = (-2.5, 0.5, 11.0), (2.5, 0.5, 12.0)
    meshes = [library["sedan"].mesh, library["cargo"].mesh]
    picture = render_scene(meshes, poses, camera)
    cv2.imwrite(str(tmp_path / "photo.png"), picture.rgb)
    cv2.imwrite(str(tmp_path / "labels.png"), picture.labels.astype(np.uint8))
    (tmp_path / "camera.txt").write_text("300 300 159.5 119.5 320 240")
    return {
        "--image": tmp_path / "photo.png",
        "--masks": tmp_path / "labels.png",
        "--camera": tmp_path / "camera.txt",
        "--out": tmp_path / "poses.json",
        "--device": "cpu",
    }


def test_without_objects_the_encoder_names_vehicles(vehicle_inputs, tmp_path):
    result = run("refine", vehicle_inputs)
    assert result.exit_code == 0, result.output
    assert "quality  class" in result.stdout and "%" in result.stdout
    content = json.loads((tmp_path / "poses.json").read_text())
    found = [(entry["label"], entry["name"]) for entry in content["objects"]]
    assert found == [(1, "sedan"), (2, "cargo")]
    for entry in content["objects"]:
        assert 0.3 < entry["class_probability"] <= 1.0
        assert entry["score"] <= entry["class_probability"]
        assert entry["iou"] > 0.8
    # what it has found starts the next run; a stated class is certain
    vehicle_inputs["--init"] = vehicle_inputs["--out"]
    vehicle_inputs["--out"] = tmp_path / "again.json"
    result = run("refine", vehicle_inputs, ["--label", "2=cargo"])
    assert result.exit_code == 0, result.output
    again = json.loads((tmp_path / "again.json").read_text())["objects"]
    assert again[1]["class_probability"] == 1.0


def test_without_an_encoder_classes_must_be_said(vehicle_inputs):
    vehicle_inputs["--encoder"] = "none"
    check_refused(run("refine", vehicle_inputs), "which object is label 1?")
    assert run("refine", vehicle_inputs, ["--label", "1=car", "--label", "2=van"]).exit_code == 0


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--encoder", "gone.safetensors"], "encoder weights gone.safetensors do not exist"),
        (["--encoder", "none", "--refinement", "gradient_encoder"], "there is none: choose one"),
        (["--label", "1=lorry"], "no object 'lorry' in the library; it has sedan, suv, cargo"),
    ],
)
def test_encoders_that_cannot_be_used_are_one_line(vehicle_inputs, extra, message):
    check_refused(run("refine", vehicle_inputs, extra), message)


def test_a_bad_mask_is_one_warning_and_the_others_are_found(vehicle_inputs, tmp_path):
    labels = cv2.imread(str(vehicle_inputs["--masks"]), cv2.IMREAD_UNCHANGED)
    labels[0, 0] = 3
    labels[200:230, 20:60] = labels[200:230, 100:130] = 4
    cv2.imwrite(str(vehicle_inputs["--masks"]), labels)
    result = run("refine", vehicle_inputs)
    assert result.exit_code == 0
    assert result.stderr.count("label 3") == 2  # once as the mask's
    assert "fewer than 25" in result.stderr
    assert "label 4: its mask is in parts, the second of them 43% of it" in result.stderr
    objects = json.loads((tmp_path / "poses.json").read_text())["objects"]
    names = {entry["label"]: entry["name"] for entry in objects}
    assert names[1] == "sedan" and names[2] == "cargo"


def write(path, content):
    if isinstance(content, np.ndarray):
        cv2.imwrite(str(path), content)
    else:
        path.write_text(content)
    return path


RAMP = np.arange(240 * 320 * 3).reshape(240, 320, 3).astype(np.uint8)
WRONG = {
    "no image": ("--image", None, "cannot be read: No such file"),
    "image is text": ("--image", "hello", "is not a picture"),
    "image size": ("--image", np.zeros((480, 640, 3), np.uint8), "640x480 but its camera 320x240"),
    "colour mask": ("--masks", RAMP, "is a colour picture"),
    "empty mask": ("--masks", np.zeros((240, 320), np.uint8), "is empty: every pixel is 0"),
    "mask size": ("--masks", np.ones((120, 160), np.uint8), "the mask"),
    "no camera": ("--camera", None, "does not exist"),
    "uncalibrated": ("--camera", "0 0 0 0 320 240", "fx is 0 pixels"),
    "camera is prose": ("--camera", "a camera", "holds no calibration"),
    "no library": ("--objects", None, "does not exist"),
    "broken library": ("--objects", "objects: [", "line 1"),
    "library of nothing": ("--objects", "objects: {a: {mesh: b.ply, unit: mm}}", "no object can"),
    "no start poses": ("--init", None, "cannot be read: No such file"),
    "start poses are a picture": ("--init", RAMP, "is not text"),
    "start poses of no form": ("--init", "{", "is not JSON: Expecting property name"),
    "strange start poses": ("--init", "[1]", "are not in the form that refine writes"),
    "start poses of others": (
        "--init",
        json.dumps([{"label": 77, "camera_from_object": np.eye(4).tolist()}]),
        "have none for the labels of the mask (5=wedge, 9=ell)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_one_line_and_exit_code_2(inputs, tmp_path, case):
    option, content, message = WRONG[case]
    suffix = ".png" if isinstance(content, np.ndarray) else ".txt"
    path = tmp_path / f"wrong{suffix}"
    inputs[option] = path if content is None else write(path, content)
    result = run("refine", inputs, BOTH)
    check_refused(result, message)
    assert len(result.stderr) < 400 + len(str(path))
    assert not (tmp_path / "poses.json").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "which object is label 5? The library has wedge, ell: say it with --label 5=NAME"),
        (["--label", "5"], "--label 5: write LABEL=NAME, such as --label 1=wedge"),
        (["--label", "5=mug"], "no object 'mug' in the library; it has wedge, ell"),
        (["--label", "5=wedge", "--label", "05=ell"], "05=ell: label 5 has a name already"),
        (["--label", "6=wedge"], "the mask has no label 6; it has 5, 9"),
        ([*BOTH, "--overlay", "picture.foo"], "OpenCV cannot write .foo files"),
        ([*BOTH, "--device", "cuda"], "device 'cuda' is not here"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(inputs, extra, message):
    if "cuda" in extra:
        import warp

        if warp.is_cuda_available():
            pytest.skip("there is a CUDA device")
        del inputs["--device"]
    check_refused(run("refine", inputs, extra), message)


def test_mistakes_of_ours_keep_their_traceback(inputs, monkeypatch):
    def broken(*_, **__):
        raise ValueError("shapes do not match")

    monkeypatch.setattr("pose_refiner_ros.pipeline.Pipeline.process", broken)
    result = run("refine", inputs, BOTH)
    assert isinstance(result.exception, ValueError)


def test_bop_command_writes_report(bop_folder, tmp_path):
    options = {"--out": tmp_path / "out", "--start": "perturbed", "--rotation-deg": 10,
               "--translation": 0.02, "--repeats": 2, "--device": "cpu"}  # fmt: skip
    result = run("bop", options, [str(bop_folder)])
    assert result.exit_code == 0, result.output
    assert "total" in result.stdout and "wedge" in result.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["total"]["count"] == 8 and len(report["objects"]) == 12
    assert report["options"]["rotation_deg"] == 10
    assert len(list((tmp_path / "out/overlays").iterdir())) == 3


@pytest.mark.parametrize(
    ("folder", "extra", "message"),
    [
        ("nowhere", [], "nowhere is not a folder"),
        ("blocks", ["--split", "train"], "this data set has the splits test"),
        ("blocks/models", [], "has no scenes"),
    ],
)
def test_bop_refuses_what_is_no_data_set(bop_folder, tmp_path, folder, extra, message):
    result = run("bop", {"--out": tmp_path / "out"}, [str(tmp_path / folder), *extra])
    check_refused(result, message)
    assert not (tmp_path / "out").exists()


def test_objects_shows_a_library(tmp_path, bop_folder):
    result = run("objects", extra=[str(bop_folder / "models")])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    rows = [line.split() for line in result.stdout.splitlines()]
    wedge = next(row for row in rows if row and row[0] == "wedge")
    assert wedge[1:4] == ["0.120", "0.060", "0.096"] and wedge[-2:] == ["BOP", "1"]
    assert "remark" not in result.stdout and "left out" not in result.stdout


def test_objects_tells_what_it_leaves_out(tmp_path, bop_folder):
    mesh = bop_folder / "models/obj_000001.ply"
    library = tmp_path / "objects.yaml"
    library.write_text(
        f"objects:\n  a: {{mesh: {mesh}, unit: m}}\n  b: {{mesh: 'gone[1].ply', unit: m}}\n"
    )
    result = run("objects", extra=[str(library)])
    assert result.exit_code == 1
    text = " ".join(result.stdout.split())
    assert "b left out: " in text and "gone[1].ply does not exist" in text
    assert "a: " in text and "mm" in text  # an object of 120 m: which unit was meant


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("objects: [", "line 1"),
        ("objects: {a: {mesh: b.ply, unit: mm}}", "no object can be used"),
        ("things: {}", "things"),
    ],
)
def test_objects_refuses_what_is_no_library(tmp_path, content, message):
    path = tmp_path / "objects.yaml"
    check_refused(
        run("objects", extra=[str(path if content is None else write(path, content))]), message
    )


def test_commands_are_listed_and_start_fast():
    """Help imports neither torch nor warp."""
    code = (
        "import sys; from pose_refiner_ros.cli import app; app(['--help'], standalone_mode=False);"
        "assert not {'torch', 'warp', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("refine", "bop", "bag", "bench", "objects"):
        assert command in done.stdout


def test_a_refusal_in_a_process_of_its_own_is_one_line():
    """Nothing else on stderr: no greeting of Warp, no traceback, no log."""
    done = subprocess.run(
        [sys.executable, "-m", "pose_refiner_ros.cli", "bop", "/nowhere", "--out", "/nowhere"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pose-refiner: data set /nowhere is not a folder\n"


def test_an_ambiguous_pose_names_its_rival():
    pose, turned = np.eye(4), np.diag([1.0, -1.0, -1.0, 1.0])
    rival = SimpleNamespace(camera_from_object=turned, iou=0.99)
    found = SimpleNamespace(
        name="mug", camera_from_object=pose, alternatives=[rival], quality="ambiguous",
        belief=0.6, class_probability=1.0, photo_rms=None,
        photo_correlation=None,
    )  # fmt: skip
    (text,) = doubts(found, SimpleNamespace(exact_shape=True))
    assert "mug turned by 180 degrees" in text and "0.990" in text and "symmetry" in text
    (text,) = doubts(found, SimpleNamespace(exact_shape=False))
    assert "mug turned by 180 degrees" in text and "symmetry" not in text
    assert "front and rear cannot be told apart from this mask; a start pose (--init)" in text
    found.photo_rms = 0.2  # no pose is right
    assert not list(doubts(found, SimpleNamespace(exact_shape=True)))
    found.photo_rms = 0.02
    assert len(list(doubts(found, SimpleNamespace(exact_shape=True)))) == 1
    found.belief, found.class_probability = 1.0, 0.55
    (text,) = doubts(found, SimpleNamespace(exact_shape=False))
    assert text == "mug with a probability of 55% only; say what it is with --label"
    found.quality = "good"
    assert not list(doubts(found, SimpleNamespace(exact_shape=False)))
