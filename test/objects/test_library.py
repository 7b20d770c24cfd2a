# SPDX-License-Identifier: Apache-2.0
"""The object library: what it reads, and what it says of mistakes."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh
from conftest import mesh_of
from painted import painted_block
from rich.console import Console

from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.mlp import MlpField, MlpSettings
from pose_refiner_ros.objects.inspect import describe
from pose_refiner_ros.objects.library import ObjectLibrary, ObjectLibraryError
from pose_refiner_ros.objects.model import ObjectModel

TINY = MlpSettings(width=8, depth=3, coarse_samples=4, fine_samples=4)
EXAMPLE = Path(__file__).parents[2] / "config" / "objects_example.yaml"


@pytest.fixture
def write(tmp_path, box_file):
    """write(text) is a library file beside box.obj (100 x 200 x 300 mm)."""

    def write(text):
        path = tmp_path / "objects.yaml"
        path.write_text(text)
        return path

    return write


def entry(lines="", name="box"):
    """A library of one good object with these lines added."""
    text = f"objects:\n  {name}:\n    mesh: box.obj\n    unit: mm\n"
    return text + "".join(f"    {line}\n" for line in lines.splitlines())


def problem(path):
    """Why the only object of the file cannot be used."""
    with pytest.raises(ObjectLibraryError, match="no object can be used") as caught:
        ObjectLibrary.load(path)
    return str(caught.value)


def test_smallest_library(write, box_file):
    library = ObjectLibrary.load(write(entry()))
    assert list(library) == ["box"]
    assert library.problems == {}
    model = library["box"]
    np.testing.assert_allclose(model.box_size, (0.1, 0.2, 0.3), atol=1e-7)
    np.testing.assert_allclose(model.box_center, 0, atol=1e-7)
    assert model.diameter == pytest.approx(np.sqrt(0.14))
    assert model.mesh_path == box_file
    assert model.mesh_resource == box_file.as_uri()
    assert model.mesh_resource_scale == 0.001
    assert not model.symmetries.any


def test_everything_stated(write):
    library = ObjectLibrary.load(
        write(
            entry(
                "scale: 2\nframe: {forward: y, up: z, origin: bottom}\n"
                "symmetries: {axis: z, order: 2}\ncolor: '#ff8000'\naliases: [Car, 7]\nlabel: 3\n"
                "bop_id: 12\nmax_faces: 500\ntolerance_px: 1\n"
                "mesh_resource: package://robots/meshes/box.obj"
            )
        )
    )
    model = library["box"]
    np.testing.assert_allclose(model.box_size, (0.4, 0.2, 0.6), atol=1e-6)
    np.testing.assert_allclose(model.box_center, (0, 0, 0.3), atol=1e-6)
    assert len(model.symmetries.discrete) == 2
    assert model.color == (1.0, 128 / 255, 0.0)
    assert (model.aliases, model.label, model.bop_id) == (("Car", "7"), 3, 12)
    assert model.mesh_resource == "package://robots/meshes/box.obj"
    assert model.mesh_resource_scale == 0.002
    # RViz draws the file's vertices, scaled, at object_from_mesh: the same points as the mesh's.
    corner = model.object_from_mesh @ (*(np.array([50, 100, 150]) * 0.002), 1)
    np.testing.assert_allclose(corner[:3], (0.2, -0.1, 0.6), atol=1e-9)


def test_defaults_and_overrides(write):
    library = ObjectLibrary.load(
        write(
            "defaults: {unit: mm, color: red}\nobjects:\n  a: {mesh: box.obj}\n"
            "  b: {mesh: box.obj, unit: cm, color: [0, 0, 1]}\n"
        )
    )
    assert library["a"].diameter * 10 == pytest.approx(library["b"].diameter)
    assert library["b"].color == (0.0, 0.0, 1.0)
    assert library["a"].color[0] > 0.8


def test_objects_without_a_colour_differ(write):
    entries = "".join(f"  o{i}: {{mesh: box.obj, unit: mm}}\n" for i in range(5))
    library = ObjectLibrary.load(write("objects:\n" + entries))
    assert len({model.color for model in library.values()}) == 5


@pytest.mark.parametrize(
    ("frame", "size", "center"),
    [
        ("{up: y}", None, None),
        ("{forward: -z, up: y}", (0.3, 0.1, 0.2), (0, 0, 0)),
        ("{forward: x, up: z, origin: [0.05, 0, 0]}", (0.1, 0.2, 0.3), (-0.05, 0, 0)),
        ("{origin: bottom}", (0.1, 0.2, 0.3), (0, 0, 0.15)),
        ("{forward: y, up: -x, origin: bottom}", (0.2, 0.3, 0.1), (0, 0, 0.05)),
        (
            "{matrix: [[0, 0, 1, 0.5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]}",
            (0.3, 0.1, 0.2),
            (0.5, 0, 0),
        ),
    ],
)
def test_frame(write, frame, size, center):
    model = ObjectLibrary.load(write(entry(f"frame: {frame}")))["box"]
    if size is None:
        size, center = (0.1, 0.3, 0.2), (0, 0, 0)  # forward stays x
    np.testing.assert_allclose(model.box_size, size, atol=1e-6)
    np.testing.assert_allclose(model.box_center, center, atol=1e-6)
    assert np.linalg.det(model.object_from_mesh[:3, :3]) == pytest.approx(1)
    assert model.mesh.watertight


def test_resolve(write):
    library = ObjectLibrary.load(write(entry("aliases: [Cardboard Box, carton]\nbop_id: 4")))
    box = library["box"]
    for name in ("box", "BOX", " Box ", "cardboard box", "Carton", "4", "000004"):
        assert library.resolve(name) is box
    for name in ("", "cart", "5", "obj_5"):
        assert library.resolve(name) is None
    assert library.by_bop_id(4) is box
    assert library.by_bop_id(1) is None


def test_by_label(write):
    library = ObjectLibrary.load(write(entry("label: 9")))
    assert library.by_label(9) is library["box"]
    assert library.by_label(1) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("untis: mm", "unknown key 'untis'; did you mean 'unit'?"),
        ("zzz: 1", "unknown key 'zzz'; known: mesh"),
        ("scale: big", "'scale' must be a number, not 'big'"),
        ("scale: -1", "scale must be a positive number"),
        ("color: mauve", "'mauve' is neither '#rrggbb'"),
        ("color: [255, 0, 0]", "go from 0 to 1"),
        ("color: [1, 0]", "three numbers"),
        ("label: 0", "'label' must be a whole number, 1 or more"),
        ("label: true", "'label' must be a whole number"),
        ("bop_id: x", "'bop_id' must be a whole number"),
        ("max_faces: 2", "'max_faces' must be a whole number, 12 or more"),
        ("tolerance_px: 0", "'tolerance_px' must be from 0.05 to 10"),
        ("aliases: {a: b}", "aliases must be a list"),
        ("symmetries: {axis: q, order: 2}", "'q' is not x, y, z"),
        ("frame: {forward: x, up: x}", "must be different axes"),
        ("frame: {forward: a}", "'a' is not an axis of the mesh"),
        ("frame: {origin: top}", "'top' is not center, bottom"),
        ("frame: {origin: [1, 2]}", "three numbers"),
        ("frame: {fwd: x}", "did you mean 'forward'?"),
        ("frame: up", "'frame' must be like"),
        ("frame: {matrix: [[1]]}", "4 rows of 4 numbers"),
        ("frame: {matrix: [[2,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}", "without scale or mirror"),
        ("frame: {matrix: 1, up: z}", "not both"),
        ("mesh_resource: meshes/box.obj", "must be a file:// or package:// URI"),
    ],
)
def test_mistakes_in_an_object(write, lines, message):
    assert message in problem(write(entry(lines)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objects:\n  box:\n    unit: mm\n", "'mesh' is missing"),
        ("objects:\n  box:\n    mesh: box.obj\n", "but it is missing"),
        ("objects:\n  box:\n    mesh: box.obj\n    unit: inch\n", "not 'inch'"),
        ("objects:\n  box:\n    mesh: gone.obj\n    unit: mm\n", "gone.obj does not exist"),
        ("objects:\n  box: box.obj\n", "must map keys to values"),
        ("objects:\n  a box: {mesh: box.obj, unit: mm}\n", "call it 'a_box'"),
        ("objects:\n  /box: {mesh: box.obj, unit: mm}\n", "call it 'box'"),
        ("objects:\n  1: {mesh: box.obj, unit: mm}\n", "put it in quotes: '1'"),
        ("objects:\n  on: {mesh: box.obj, unit: mm}\n", "put it in quotes"),
        ("objects:\n  box: {mesh: 'package://none/box.obj', unit: mm}\n", "package 'none' was not"),
    ],
)
def test_mistakes_that_leave_no_object(write, text, message):
    assert message in problem(write(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'objects:'"),
        ("hello", "'objects:'"),
        ("- a\n- b\n", "'objects:'"),
        ("objects: {}\n", "missing or empty"),
        ("objects:\n", "missing or empty"),
        ("defaults: {unit: m}\n", "missing or empty"),
        ("objects:\n  - name: box\n", "not be a list with dashes"),
        ("object:\n  box: {}\n", "did you mean 'objects'?"),
        ("defaults: {unti: m}\nobjects:\n  box: {}\n", "did you mean 'unit'?"),
        ("defaults: {mesh: a.obj}\nobjects:\n  box: {}\n", "unknown key 'mesh'"),
        ("defaults: mm\nobjects:\n  box: {}\n", "'defaults' must map"),
        ("objects:\n  box:\n   mesh: a\n    unit: mm\n", "line 4"),
        ("objects:\n  box: {mesh: [a}\n", "line 2"),
        ("objects:\n  box: {}\n  cup: {}\n  box: {}\n", "line 4.*'box' stands here a second time"),
        ("objects:\n  box:\n    mesh: a.obj\n    mesh: b.obj\n", "line 4.*second time"),
        ("objects:\n\tbox: {}\n", "line 2"),
    ],
)
def test_mistakes_in_the_file(write, text, message):
    path = write(text)
    with pytest.raises(ObjectLibraryError, match=message) as caught:
        ObjectLibrary.load(path)
    assert str(path) in str(caught.value)


def test_binary_file_and_missing_file(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ObjectLibraryError, match="cannot be read as text"):
        ObjectLibrary.load(tmp_path / "a.yaml")
    with pytest.raises(ObjectLibraryError, match="does not exist"):
        ObjectLibrary.load(tmp_path / "b.yaml")


def test_one_bad_object_is_left_out_and_named(write, caplog):
    path = write(entry() + "  cup:\n    mesh: cup.stl\n    unit: mm\n")
    library = ObjectLibrary.load(path)
    assert list(library) == ["box"]
    assert list(library.problems) == ["cup"]
    assert "cup.stl does not exist" in library.problems["cup"]
    assert "object 'cup' left out" in caplog.text


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("", "aliases: [BOX]", "'BOX' already stands for object 'box'"),
        ("aliases: [thing]", "aliases: [Thing]", "'Thing' already stands for object 'box'"),
        ("aliases: [cup]", "", "'cup' already stands for object 'box'"),
        ("label: 1", "label: 1", "label 1 already stands for object 'box'"),
        ("bop_id: 1", "bop_id: 1", "bop_id 1 already stands for object 'box'"),
    ],
)
def test_names_must_be_unique(write, first, second, message):
    second = entry(second, "cup").removeprefix("objects:\n")
    library = ObjectLibrary.load(write(entry(first) + second))
    assert list(library) == ["box"]
    assert message in library.problems["cup"]


def test_implausible_size_is_a_warning(write, caplog):
    library = ObjectLibrary.load(write(entry().replace("unit: mm", "unit: m")))
    assert library.problems == {}
    assert "say 'unit: mm'" in library.warnings["box"][0]
    assert "say 'unit: mm'" in caplog.text


def test_paths(tmp_path, monkeypatch, box_file):
    """Relative to the file, from the environment, as URIs, and in a ROS package."""
    share = tmp_path / "install" / "share" / "my_robot"
    share.mkdir(parents=True)
    box_file.rename(share / "box.obj")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path / 'none'}:{tmp_path / 'install'}")
    monkeypatch.setenv("MESHES", str(share))
    monkeypatch.chdir("/")
    (tmp_path / "lib").mkdir()
    for mesh in (
        "../install/share/my_robot/box.obj",
        "$MESHES/box.obj",
        str(share / "box.obj"),
        (share / "box.obj").as_uri(),
        "package://my_robot/box.obj",
    ):
        (tmp_path / "lib" / "a.yaml").write_text(entry().replace("box.obj", mesh))
        model = ObjectLibrary.load(tmp_path / "lib" / "a.yaml")["box"]
        assert model.mesh_path == share / "box.obj"
        assert model.mesh_resource.endswith("my_robot/box.obj")
    assert model.mesh_resource == "package://my_robot/box.obj"


def test_from_models():
    box = ObjectModel("box", mesh_of(trimesh.creation.box()))
    library = ObjectLibrary.from_models([box])
    assert library["box"] is box
    assert box.silhouette_mesh is box.mesh
    with pytest.raises(ObjectLibraryError, match="already stands for"):
        ObjectLibrary.from_models([box, ObjectModel("Box", box.mesh)])
    with pytest.raises(ObjectLibraryError, match="call it 'a_b'"):
        ObjectLibrary.from_models([ObjectModel("a b", box.mesh)])


@pytest.fixture
def bop_models(tmp_path):
    folder = tmp_path / "dataset" / "models"
    folder.mkdir(parents=True)
    for number in (2, 11):
        trimesh.creation.box((60, 80, 100 * number)).export(folder / f"obj_{number:06d}.ply")
    info = {"2": {"diameter": 1, "symmetries_discrete": [np.diag([-1, -1, 1, 1]).ravel().tolist()]}}
    (folder / "models_info.json").write_text(json.dumps(info))
    return folder


def test_bop_folder(bop_models):
    library = ObjectLibrary.load(bop_models)
    assert list(library) == ["obj_000002", "obj_000011"]
    model = library.by_bop_id(2)
    np.testing.assert_allclose(model.box_size, (0.06, 0.08, 0.2), atol=1e-6)
    assert len(model.symmetries.discrete) == 2
    for name in ("2", "obj_000002", "OBJ_000002", "000002"):
        assert library.resolve(name) is model
    assert list(ObjectLibrary.load(bop_models.parent)) == list(library)


def test_bop_names(bop_models):
    (bop_models / "names.json").write_text('{"2": "cup", "11": "tall box"}')
    library = ObjectLibrary.load(bop_models)
    assert library.resolve("cup") is library.resolve("obj_000002") is library["cup"]
    assert "call it 'tall_box'" in library.problems["tall box"]


def test_bop_without_info(bop_models):
    (bop_models / "models_info.json").unlink()
    assert not ObjectLibrary.load(bop_models).by_bop_id(2).symmetries.any


def test_bad_bop_folders(tmp_path, bop_models):
    with pytest.raises(ObjectLibraryError, match=r"no obj_\*\.ply"):
        ObjectLibrary.load(tmp_path)
    (bop_models / "obj_000011.ply").write_bytes(b"ply\nrubbish")
    library = ObjectLibrary.load(bop_models)
    assert list(library) == ["obj_000002"]
    assert "not a readable ply" in library.problems["obj_000011"]
    (bop_models / "models_info.json").write_text("{")
    with pytest.raises(ObjectLibraryError, match=r"models_info\.json: not valid JSON"):
        ObjectLibrary.load(bop_models)


def test_example_shows_every_key():
    from pose_refiner_ros.objects.entry import FRAME_KEYS, OBJECT_KEYS

    text = EXAMPLE.read_text()
    for key in (*OBJECT_KEYS, *FRAME_KEYS, "discrete", "continuous", "offset", "order"):
        assert f"{key}:" in text, key


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "diameter", "symmetries"),
    [
        ("bop/schauma", "schauma", 0.1963108, 2),
        ("bop/schauma", "triangle", 0.0675366, 6),
        ("bop/ycbv_000629", "006_mustard_bottle", 0.196529, 1),
    ],
)
def test_real_bop_folders(example_data, folder, name, diameter, symmetries):
    library = ObjectLibrary.load(example_data(folder))
    assert library.problems == {}
    assert library[name].diameter == pytest.approx(diameter, abs=1e-6)
    assert len(library[name].symmetries.discrete) == symmetries


@pytest.fixture
def example_library(tmp_path, monkeypatch):
    """The example file with meshes where it expects them."""
    meshes = tmp_path / "config" / "meshes"
    package = tmp_path / "install" / "share" / "warehouse_description" / "meshes"
    meshes.mkdir(parents=True)
    package.mkdir(parents=True)
    trimesh.creation.box((4, 1.8, 1.5)).export(meshes / "sedan.obj")
    trimesh.creation.cylinder(40, 100).export(meshes / "mug.stl")
    trimesh.creation.box((40, 40, 30)).export(package / "crate.obj")
    trimesh.creation.box((3, 4, 8)).export(meshes / "bottle.ply")
    save_field(painted_block(), tmp_path / "config" / "fields" / "chair.safetensors")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path / "install"))
    (tmp_path / "config" / "objects.yaml").write_text(EXAMPLE.read_text())
    return tmp_path / "config" / "objects.yaml"


def test_example_loads(example_library):
    library = ObjectLibrary.load(example_library)
    assert library.problems == {}
    assert library.warnings == {}
    assert list(library) == ["sedan", "mug", "crate", "bottle", "chair"]
    assert len(library["crate"].symmetries.discrete) == 8
    assert len(library["bottle"].symmetries.discrete) == 4
    np.testing.assert_allclose(library["mug"].box_size, (0.105, 0.084, 0.084), atol=1e-3)


def test_describe(example_library):
    example_library.write_text(
        EXAMPLE.read_text().replace("meshes/sedan.obj", "meshes/gone[1].obj")
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(describe(ObjectLibrary.load(example_library)))
    text = console.export_text()
    assert "any turn about z" in text
    assert "8 poses" in text
    assert "BOP 5" in text
    assert "gone[1].obj does not exist" in " ".join(text.replace("│", " ").split())


# --- radiance fields ------------------------------------------------------------------------------


@pytest.fixture
def block(tmp_path):
    """A field of a block of the size of box.obj, beside it."""
    field = painted_block((0.05, 0.1, 0.15))
    save_field(field, tmp_path / "box.safetensors")
    return field


def test_field_alone(write, block):
    library = ObjectLibrary.load(write("objects:\n  box: {field: box.safetensors}\n"))
    model = library["box"]
    assert library.warnings == {}
    np.testing.assert_allclose(model.box_size, (0.11, 0.21, 0.31), atol=0.004)
    assert model.mesh.watertight and model.exact_shape
    assert model.silhouette_mesh is model.mesh and len(model.mesh.faces) < 4000
    assert model.field.occupied_bounds == pytest.approx(block.occupied_bounds)
    assert (model.mesh_path, model.mesh_resource) == (None, None)
    assert model.field_path.name == "box.safetensors"
    out = io.StringIO()
    Console(file=out, width=100).print(describe(library))
    assert "nodes mm" in out.getvalue() and "10.0" in out.getvalue()


def test_mesh_and_field(write, block):
    library = ObjectLibrary.load(write(entry("field: box.safetensors")))
    assert library.warnings == {}
    assert len(library["box"].mesh.faces) == 12
    assert library["box"].field is not None


def test_mesh_and_field_that_do_not_lie_alike(write, block):
    for lines in ("scale: 2", "frame: {origin: bottom}", "frame: {forward: z, up: x}"):
        library = ObjectLibrary.load(write(entry(f"field: box.safetensors\n{lines}")))
        (text,) = library.warnings["box"]
        assert "mesh and field do not lie alike" in text and "the field's [-0.045" in text


def test_field_takes_no_defaults_of_meshes(write, block):
    text = "defaults: {unit: mm, scale: 3, frame: {origin: bottom}}\n"
    text += "objects:\n  box: {field: box.safetensors}\n"
    np.testing.assert_allclose(ObjectLibrary.load(write(text))["box"].box_center, 0, atol=0.003)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("field: gone.safetensors", r"^field \S*gone.safetensors does not exist$"),
        ("field: box.obj", "box.obj is not a whole safetensors file"),
        ("field: cut.safetensors", "cut.safetensors is not a whole safetensors file"),
        ("field: network.safetensors", "of kind 'mlp', too slow for a robot"),
        ("field: empty.safetensors", "empty.safetensors: it holds nothing"),
        ("field: 3", "'field' must be the path of a file, not 3"),
        ("field: box.safetensors\n    unit: m", "'unit' belongs to a mesh, and there is none"),
        ("field: box.safetensors\n    category: sedan\n    exact_shape: false", "shows one object"),
        ("label: 3", "'mesh' is missing: .*; or 'field'"),
    ],
)
def test_bad_fields(write, block, tmp_path, lines, reason):
    whole = (tmp_path / "box.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    save_field(MlpField([[0] * 3, [1] * 3], None, TINY), tmp_path / "network.safetensors")
    nothing = GridField(np.zeros((4, 4, 4), np.int32), np.zeros((1, 4)), [0] * 3, 0.1)
    save_field(nothing, tmp_path / "empty.safetensors")
    library = ObjectLibrary.load(write(entry() + f"  other:\n    {lines}\n"))
    assert list(library) == ["box"]
    assert re.search(reason, library.problems["other"]), library.problems["other"]
    assert "\n" not in library.problems["other"]


def test_field_with_a_category_is_of_that_object(write, block):
    text = "objects:\n  box: {field: box.safetensors, category: sedan}\n"
    assert ObjectLibrary.load(write(text))["box"].exact_shape
