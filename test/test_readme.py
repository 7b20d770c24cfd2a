# SPDX-License-Identifier: Apache-2.0
"""What README.md says is done: its commands and code are run where that is cheap, and checked
against the program where it is not."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import trimesh
import typer
import yaml
from blocks import write_bop
from painted import painted_block, photo
from posed_scene import opengl, write_json
from scipy.spatial.transform import Rotation
from shapes import ell, pose
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.scene import render_scene

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = FENCED.findall(README)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = typer.main.get_command(app).commands
# These take long or need something that is not here: their options are parsed.
NOT_RUN = {"bench", "bag", "vehicles", "encoder", "field", "evaluate"}


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def shell_commands() -> list[str]:
    """One line each, without comments."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [" ".join(re.sub(r"\s#\s.*", "", f" {line}").split()) for line in lines]
    return [command for command in commands if command]


def starting_with(*words: str) -> list[list[str]]:
    """The arguments of the commands that begin with these words."""
    split = [shlex.split(command) for command in shell_commands()]
    return [c[len(words) :] for c in split if c[: len(words)] == list(words)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder in which a reader of the README sits: mesh, library, photo, mask and camera."""
    folder = tmp_path_factory.mktemp("readme")
    shape = ell()
    in_mm = trimesh.Trimesh(shape.vertices * 1000.0, shape.faces, process=False)
    in_mm.export(folder / "mug.stl")
    (library,) = [text for text in blocks("yaml") if "mesh: mug.stl" in text]
    (folder / "objects.yaml").write_text(library, encoding="utf-8")
    camera = Camera(np.array([[600, 0, 319.5], [0, 600, 239.5], [0, 0, 1.0]]), (480, 640))
    (folder / "camera.txt").write_text("600 600 319.5 239.5 640 480\n")
    vertices, faces = trimesh.remesh.subdivide_to_size(shape.vertices, shape.faces, 0.02)
    truth = pose((1.2, 0.4, -0.3), (0.02, 0.01, 0.6))
    scene = render_scene([Mesh(vertices, faces)], truth[None], camera)
    cv2.imwrite(str(folder / "photo.png"), scene.rgb[..., ::-1])
    cv2.imwrite(str(folder / "masks.png"), scene.labels.astype(np.uint8))
    write_bop(folder / "my_dataset")
    return folder


def run(arguments, folder):
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120)


# ---- commands ----


def test_no_command_goes_unchecked():
    """A kind of command that nobody checks below must not enter the README unseen."""
    checked = ("pose-refiner ", "make ", "ros2 launch ", ".venv/bin/pose_refiner ")
    setup = (REPOSITORY / "docs" / "setup.md").read_text(encoding="utf-8")
    for command in shell_commands():
        assert command.startswith(checked) or command in setup, command


@pytest.mark.parametrize(
    "arguments", [a for a in starting_with("pose-refiner") if a[0] not in NOT_RUN], ids=" ".join
)
def test_commands_are_run(workplace, arguments):
    if "DATASET" in arguments:
        parse(arguments)
        return
    done = run([sys.executable, "-m", "pose_refiner_ros.cli", *arguments], workplace)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for option in ("--out", "--overlay"):
        if option in arguments:
            assert (workplace / arguments[arguments.index(option) + 1]).exists()
    if arguments[0] in ("refine", "objects"):
        assert "mug" in done.stdout


@pytest.mark.parametrize("arguments", starting_with("pose-refiner"), ids=" ".join)
def test_commands_have_these_options(arguments):
    parse(arguments)


def parse(arguments):
    """Raises click's error for an unknown option or a missing one."""
    name, *arguments = arguments
    command = COMMANDS[name]
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


def test_every_command_has_an_example():
    assert {arguments[0] for arguments in starting_with("pose-refiner")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and name in result.stdout


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE).group(1).split())
    used = starting_with("make")
    assert {"demo"} in [set(words) for words in used] and {"test"} in [set(w) for w in used]
    for words in used:
        for word in words:
            name, is_variable, _ = word.partition("=")
            assert name in targets if not is_variable else f"{name} ?=" in makefile, word


def test_launch_files_have_these_arguments():
    used = starting_with("ros2", "launch", "pose_refiner_ros")
    assert len(used) >= 2
    for name, *arguments in used:
        text = (REPOSITORY / "launch" / name).read_text(encoding="utf-8")
        for argument in arguments:
            assert f'"{argument.partition(":=")[0]}"' in text, argument


def test_the_node_has_these_parameters_and_topics():
    (arguments,) = starting_with(".venv/bin/pose_refiner", "--ros-args")
    topics = ("image", "camera_info", "masks", "detections", "initial_poses", "object_poses")
    for flag, value in zip(arguments[::2], arguments[1::2], strict=True):
        known = topics if flag == "-r" else parameter_names()
        assert flag in ("-r", "-p") and value.partition(":=")[0] in known, value


# ---- code ----


def test_the_library_is_used_like_this(workplace):
    code = next(text for text in blocks("python") if "Pipeline" in text)
    assert len(code.splitlines()) <= 12
    done = run([sys.executable, "-c", code], workplace)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("mug ") for line in done.stdout.splitlines())


def test_polygons_become_a_label_image():
    code = next(text for text in blocks("python") if "fillPoly" in text)
    scope = {"np": np, "cv2": cv2}
    exec(code, scope)

    def detection(name, corners):
        points = [SimpleNamespace(x=float(x), y=float(y)) for x, y in corners]
        return SimpleNamespace(class_name=name, mask=SimpleNamespace(data=points))

    message = SimpleNamespace(
        detections=[
            detection("mug", [(10, 10), (30, 10), (30, 20), (10, 20)]),
            detection("nothing", []),
            detection("box", [(50, 30), (60, 30), (60, 40)]),
        ]
    )
    labels, names = scope["labels_and_names"](message, (48, 64))
    assert names == {1: "mug", 3: "box"}
    assert labels.shape == (48, 64) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 3}
    assert (labels == 1).sum() == 21 * 11
    message.detections = []
    assert scope["labels_and_names"](message, (48, 64))[1] == {}


def code_of(page: str, word: str) -> str:
    """The one snippet of a page of docs/ that has this word."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    (code,) = [code for kind, code in FENCED.findall(text) if kind == "python" and word in code]
    return code


def test_a_photo_without_a_mask_is_refined_like_this(tmp_path, monkeypatch, capsys):
    field, camera = (
        painted_block(),
        Camera(np.array([[555.6, 0, 199.5], [0, 555.6, 199.5], [0, 0, 1.0]]), (400, 400)),
    )
    truth = pose((0.7, 0.4, -0.3), (0.0, 0.0, 0.8))
    save_field(field, tmp_path / "chair.safetensors")
    image, _ = photo(field, truth, camera, background=(1.0, 1.0, 1.0))
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    np.savetxt(tmp_path / "start.txt", pose((0.75, 0.45, -0.3), (0.01, 0.0, 0.8)))
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code_of("inerf.md", "PhotometricDescent"), scope)
    assert abs(scope["found"][0].reference_from_object - truth).max() < 0.005
    (descended,) = re.findall(r"\[\[[^\[]*(?:\[[^\[]*){3}\Z", capsys.readouterr().out)
    moved = np.array(re.sub(r"[\[\]]", " ", descended).split(), float).reshape(4, 4)
    assert abs(moved - truth).max() < 0.02


def test_a_photos_pose_becomes_the_initial_pose_like_this(tmp_path, monkeypatch, capsys):
    camera_from_scene = pose((0.2, -0.4, 0.5), (0.3, 0.1, 2.0))
    frames = [{"transform_matrix": opengl(camera_from_scene, 0.31)}]
    (tmp_path / "room").mkdir()
    write_json(tmp_path / "room" / "transforms.json", frames=frames)
    monkeypatch.chdir(tmp_path)
    exec(code_of("ros.md", "scene_initial_pose"), {})
    x, y, z, *quaternion = yaml.safe_load(capsys.readouterr().out)["scene_initial_pose"]
    scene_from_camera = np.linalg.inv(camera_from_scene)
    np.testing.assert_allclose((x, y, z), scene_from_camera[:3, 3], atol=1e-6)
    turn = Rotation.from_quat(quaternion).as_matrix()
    np.testing.assert_allclose(turn, scene_from_camera[:3, :3], atol=1e-6)


# ---- text ----


def parameter_names():
    """From the generated reference: the node's module cannot be imported without ROS."""
    text = (REPOSITORY / "docs" / "parameters.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))


def test_names_in_the_text_exist():
    """Parameters, topics, files and fields that the text names."""
    others = (REPOSITORY / "docs" / "ros.md").read_text(encoding="utf-8")
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("pose_refiner_ros", "launch")
        for path in (REPOSITORY / folder).rglob("*.py")
    )
    for name in re.findall(r"`~?/?([a-z]+(?:_[a-z]+)+)`", PROSE):
        assert name in parameter_names() or name in others or name in sources, name
    assert {"watchdog_seconds", "min_score", "sync_slop", "label_names"} <= parameter_names()


def test_topics_are_those_of_the_reference():
    rows = re.findall(r"^\| `([^`]+)` \| (\w+/\w+) \|", PROSE, re.MULTILINE)
    reference = (REPOSITORY / "docs" / "ros.md").read_text(encoding="utf-8")
    wanted = re.findall(r"^\| `([^`]+)` \| (\w+/\w+) \|", reference, re.MULTILINE)
    assert len(wanted) >= 12 and set(rows) == set(wanted)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", PROSE):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        assert (REPOSITORY / path).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (REPOSITORY / path).read_text(), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
    for name in re.findall(r"`((?:config|docs|tools|test)/[\w./]+)", PROSE):
        assert (REPOSITORY / name).exists(), name
    assert (REPOSITORY / "docs/images/demo.png").stat().st_size < 400_000


def test_the_download_is_that_of_the_reference():
    setup = (REPOSITORY / "docs" / "setup.md").read_text(encoding="utf-8")
    sizes = re.findall(r"[\d.]+ [GM]B", PROSE.split("## How fast")[0])
    assert len(sizes) >= 6
    for size in sizes:
        assert size in setup, size


def test_every_figure_is_marked_once():
    names = re.findall(r"<!-- figure:(\w+) -->", README)
    assert len(names) == len(set(names))
