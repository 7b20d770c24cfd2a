# SPDX-License-Identifier: Apache-2.0
"""Meshes from files: units, parts, cleaning, and what is said of bad ones."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from pose_refiner_ros.objects.mesh import Mesh, MeshError, clean, load_mesh


def load(path, unit="mm", **kwargs):
    """load_mesh, with warnings as errors."""

    def fail(text):
        raise AssertionError(text)

    return load_mesh(path, unit, warn=fail, **kwargs)


def outward(mesh, center=0.0):
    """(F,) positive where a face's corners run counter-clockwise, seen from outside."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] - center for k in range(3))
    return np.einsum("ij,ij->i", np.cross(b - a, c - a), a)


@pytest.mark.parametrize(
    ("unit", "metres"), [("m", 1.0), ("cm", 1e-2), ("mm", 1e-3), ("in", 0.0254), ("ft", 0.3048)]
)
def test_units(tmp_path, unit, metres):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.stl")
    mesh = load(tmp_path / "box.stl", unit, scale=2.0)
    np.testing.assert_allclose(np.ptp(mesh.bounds, axis=0), 2 * metres * np.array([1, 2, 3]))
    assert mesh.diameter == pytest.approx(2 * metres * np.sqrt(14))


@pytest.mark.parametrize("suffix", ["obj", "stl", "ply", "off", "glb"])
def test_formats_give_one_welded_closed_mesh(tmp_path, suffix):
    path = tmp_path / f"box.{suffix}"
    trimesh.creation.box((0.1, 0.2, 0.3)).export(path)
    mesh = load(path, "m")
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert mesh.watertight
    assert mesh.vertices.dtype == np.float64
    assert mesh.faces.dtype == np.int32


def test_parts_of_a_scene_stand_where_their_nodes_put_them(tmp_path):
    scene = trimesh.Scene()
    box = trimesh.creation.box((0.2, 0.2, 0.2))
    for x, turn in ((0.0, 0.0), (1.0, np.pi / 4)):
        place = trimesh.transformations.rotation_matrix(turn, (0, 0, 1))
        place[0, 3] = x
        scene.add_geometry(box, transform=place)
    scene.export(tmp_path / "two.glb")
    mesh = load(tmp_path / "two.glb", "m")
    assert len(mesh.faces) == 24
    assert mesh.bounds[1, 0] == pytest.approx(1 + 0.1 * np.sqrt(2))


def test_quads_and_texture_seams(tmp_path):
    """A cube as people export it: quads, and vertices split by texture coordinates."""
    lines = [f"v {x} {y} {z}" for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    lines += [f"vt {i / 10} 0" for i in range(8)]
    quads = ["1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4"]
    for k, quad in enumerate(quads):
        lines.append("f " + " ".join(f"{v}/{(int(v) + k) % 8 + 1}" for v in quad.split()))
    (tmp_path / "cube.obj").write_text("\n".join(lines) + "\n")
    mesh = load(tmp_path / "cube.obj", "m")
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert mesh.watertight
    assert (outward(mesh, 0.5) > 0).all()


def test_missing_material_file_does_not_matter(tmp_path):
    (tmp_path / "a.obj").write_text(
        "mtllib gone.mtl\nusemtl x\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\n"
    )
    assert len(load(tmp_path / "a.obj", "m").faces) == 2


@pytest.mark.parametrize(
    ("faces", "words"),
    [("f 1 2 3\n", "only 1 triangle"), ("f 1 2 3\nf 1 3 4\n", "only 2 triangles in one plane")],
)
def test_a_flat_mesh_is_kept_and_said_to_be_flat(tmp_path, faces, words):
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0.2\nv 1 1 0.2\nv 0 1 0\n" + faces)
    said = []
    mesh = load_mesh(tmp_path / "a.obj", "m", warn=said.append)
    assert len(mesh.faces) == faces.count("f")
    assert len(said) == 1 and words in said[0]


def test_the_diameter_of_a_huge_mesh_takes_no_time():
    ball = trimesh.creation.icosphere(7)
    mesh = Mesh(ball.vertices * [2.0, 1.0, 1.0] + 5.0, ball.faces)
    assert mesh.diameter == pytest.approx(4.0, rel=1e-6)


@given(flips=st.lists(st.booleans(), min_size=24, max_size=24))
def test_winding_becomes_consistent_and_outward(flips):
    """Two closed boxes with any faces turned round, one of them around the other."""
    inner, outer = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((3, 3, 3))
    vertices = np.concatenate([inner.vertices, outer.vertices])
    faces = np.concatenate([inner.faces, outer.faces + 8])
    faces[flips] = faces[flips][:, ::-1]
    mesh = Mesh(*clean(vertices, faces))
    assert mesh.watertight
    assert (outward(mesh) > 0).all()


def test_open_sheet_keeps_the_winding_of_most_of_it():
    sheet = trimesh.creation.icosphere(2)
    up = sheet.triangles_center[:, 2] > 0.1
    faces = sheet.faces[up].copy()
    faces[::5] = faces[::5, ::-1]
    mesh = Mesh(*clean(sheet.vertices, faces))
    assert not mesh.watertight
    assert (outward(mesh) > 0).all()


def test_moebius_strip_is_left_as_it_is():
    count = 12
    angle = np.arange(count) * 2 * np.pi / count
    rim = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    lift = np.stack([np.cos(angle / 2)[:, None] * rim, np.sin(angle / 2)[:, None] * (0, 0, 1)]).sum(
        0
    )
    vertices = np.concatenate([rim + 0.3 * lift, rim - 0.3 * lift])
    faces = []
    for i in range(count):
        a, b = i, i + count
        c, d = (i + 1, i + 1 + count) if i + 1 < count else (count, 0)
        faces += [(a, b, c), (b, d, c)]
    mesh = Mesh(*clean(vertices, np.array(faces)))
    assert len(mesh.faces) == 2 * count


def test_degenerate_and_doubled_faces_are_dropped():
    box = trimesh.creation.box()
    faces = np.concatenate([box.faces, [(0, 0, 1), (2, 2, 2)], box.faces[:3, [1, 2, 0]]])
    vertices, faces = clean(box.vertices, faces)
    assert len(faces) == 12


def test_diameter_is_exact():
    rng = np.random.default_rng(0)
    for count in (4, 50, 800):
        points = rng.normal(size=(count, 3)).astype(np.float32)
        faces = rng.permutation(count)[: count - count % 3].reshape(-1, 3)
        used = points[faces.ravel()].astype(np.float64)
        expected = np.linalg.norm(used[:, None] - used[None], axis=2).max()
        assert Mesh(points, faces).diameter == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "flat", [[[0, 0, 0], [3, 0, 0], [0, 4, 0]], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]]
)
def test_diameter_of_flat_meshes(flat):
    expected = max(np.linalg.norm(np.subtract(a, b)) for a in flat for b in flat)
    assert Mesh(flat, [[0, 1, 2]]).diameter == pytest.approx(expected)


def test_content_hash_follows_the_content():
    box = trimesh.creation.box()
    mesh, same = Mesh(box.vertices, box.faces), Mesh(box.vertices.copy(), box.faces.copy())
    assert mesh.content_hash == same.content_hash
    assert mesh.content_hash != Mesh(box.vertices * 1.001, box.faces).content_hash
    assert mesh.content_hash != Mesh(box.vertices, box.faces[:-1]).content_hash


def test_meshes_cannot_be_changed_by_accident():
    mesh = Mesh(np.eye(3), [[0, 1, 2]])
    with pytest.raises(ValueError, match="read-only"):
        mesh.vertices[0] = 1


def test_missing_file(tmp_path):
    with pytest.raises(MeshError, match=r"gone\.stl does not exist"):
        load(tmp_path / "gone.stl")


def test_folder(tmp_path):
    with pytest.raises(MeshError, match="is a folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", b"", "empty"),
        ("a.obj", b"hello\n", "a.obj: "),
        ("a.ply", b"\x00\x01garbage", "not a readable ply"),
        ("a.stl", b"solid x\nend", "a.stl: "),
        ("a.glb", b"glTF\x02\x00", "not a readable glb"),
        ("a.txt", b"1 2 3", "no reader for '.txt'"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "no faces"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n", "NaN"),
        ("a.obj", b"v 0 0 0\nv inf 0 0\nv 0 1 0\nf 1 2 3\n", "1 of 3 vertices are NaN or infinite"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "degenerate"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n", "a.off: "),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with np.errstate(all="raise"), pytest.raises(MeshError, match=message):
        load(tmp_path / name)


def test_unknown_unit_and_scale(box_file):
    with pytest.raises(MeshError, match="'feet' is not known: use one of m, cm, mm, in, ft"):
        load(box_file, "feet")
    for scale in (0.0, -1.0, np.nan):
        with pytest.raises(MeshError, match="scale must be a positive number"):
            load(box_file, "mm", scale=scale)


@pytest.mark.parametrize(
    ("size", "unit", "likely"), [(200, "m", "mm"), (0.2, "mm", "m"), (4000, "m", "mm")]
)
def test_implausible_size_names_the_likely_unit(tmp_path, size, unit, likely):
    trimesh.creation.box((size, size / 2, size / 3)).export(tmp_path / "thing.stl")
    said = []
    load_mesh(tmp_path / "thing.stl", unit, warn=said.append)
    assert len(said) == 1
    assert f"say 'unit: {likely}'" in said[0]


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], "vertices must have shape"),
        (np.eye(3), [[0, 1, 3]], "faces name vertices 0 to 3, but there are 3"),
        (np.eye(3), np.zeros((0, 3)), "faces must have shape"),
        (np.full((3, 3), np.inf), [[0, 1, 2]], "NaN or infinite"),
    ],
)
def test_mesh_checks_its_arrays(vertices, faces, message):
    with pytest.raises(MeshError, match=message):
        Mesh(vertices, faces)


@pytest.mark.data
@pytest.mark.parametrize(("name", "faces"), [("spot", 5856), ("teapot", 6320), ("suzanne", 967)])
def test_real_meshes(example_data, name, faces):
    mesh = load(example_data(f"meshes/{name}.obj"), "m")
    assert len(mesh.faces) == faces
    assert mesh.watertight == (name == "spot")
