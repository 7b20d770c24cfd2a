# SPDX-License-Identifier: Apache-2.0
"""Fields come back from their files as they were; files that are wrong are named with what is."""

import json

import numpy as np
import pytest
import torch
from painted import painted_block
from safetensors import safe_open
from safetensors.numpy import save_file

from pose_refiner_ros.fields.field import FieldError, check_state
from pose_refiner_ros.fields.field_file import FieldFileError, load_field, save_field
from pose_refiner_ros.fields.mlp import MlpField, MlpSettings
from pose_refiner_ros.fields.surface import FieldSurface
from pose_refiner_ros.objects.field_mesh import field_mesh, simplified_surface

TINY = MlpSettings(width=8, depth=3, coarse_samples=4, fine_samples=4)


@pytest.fixture
def file(tmp_path):
    field = MlpField([[-1, -1, 0], [1, 2, 3]], (1.0, 1.0, 0.5), TINY, {"steps": 7, "scale": 0.01})
    path = tmp_path / "mug.safetensors"
    save_field(field, path)
    return path, field


def changed(path, tensors=None, format=None, **header):
    """The file again with some of it changed; a header entry of None is left out."""
    with safe_open(path, "np") as old:
        state = {name: old.get_tensor(name) for name in old.keys()}  # noqa: SIM118
        metadata = old.metadata()
    entries = {**json.loads(metadata["header"]), **header}
    metadata["header"] = json.dumps({k: v for k, v in entries.items() if v is not None})
    save_file(
        (tensors or (lambda state: state))(state),
        path,
        metadata={**metadata, "format": format or metadata["format"]},
    )


def test_a_field_comes_back(file):
    path, field = file
    again = load_field(path)
    assert isinstance(again, MlpField) and again.settings == TINY
    assert np.array_equal(again.bounds, field.bounds)
    assert again.background.tolist() == [1.0, 1.0, 0.5]
    assert again.record == {"steps": 7, "scale": 0.01}
    assert not any(p.requires_grad for p in again.parameters())
    rays = torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.equal(again.render(*rays).colour, field.render(*rays).colour)
    assert [p.name for p in path.parent.iterdir()] == ["mug.safetensors"]


def test_the_header_says_what_the_numbers_mean(file):
    with safe_open(file[0], "np") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata["header"])
    assert metadata["format"] == "pose_refiner_ros field 1"
    assert header["kind"] == "mlp" and header["scale"] == 0.01
    assert "OpenCV" in header["convention"] and "metres" in header["convention"]


def test_an_unknown_background_comes_back_as_unknown(tmp_path):
    save_field(MlpField([[0] * 3, [1] * 3], None, TINY), tmp_path / "field.safetensors")
    assert load_field(tmp_path / "field.safetensors").background is None


def without(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


def spoiled(state):
    state["fine.colour.weight"][0, 0] = np.nan
    return state


DAMAGE = {
    "missing": (lambda p: p.unlink(), "do not exist"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "are a folder"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:-9]), "not a whole safetensors file"),
    "cut in its header": (lambda p: p.write_bytes(p.read_bytes()[:40]), "cut short"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole safetensors file"),
    "a picture": (lambda p: p.write_bytes(b"\x89PNG" * 50), "not a whole safetensors file"),
    "an encoder": (lambda p: changed(p, format="pose_refiner_ros encoder 1"), "not a field"),
    "weights of others": (lambda p: save_file({"a": np.ones(2)}, p), "something else, not a field"),
    "newer": (
        lambda p: changed(p, format="pose_refiner_ros field 3"),
        r"written by a newer version \(format 3; this package reads 1\): update the package",
    ),
    "format 0": (lambda p: changed(p, format="pose_refiner_ros field 0"), "not a field"),
    "no kind": (lambda p: changed(p, kind=None), "the header has no 'kind'"),
    "another kind": (lambda p: changed(p, kind="cloud"), "kind 'cloud'"),
    "no settings": (lambda p: changed(p, settings=None), "the header has no 'settings'"),
    "bounds": (lambda p: changed(p, bounds=[[1, 1, 1], [0, 0, 0]]), "corner of a box"),
    "background": (lambda p: changed(p, background=[1, 2]), "header cannot be used"),
    "settings": (lambda p: changed(p, settings={"depht": 3}), "settings .* cannot be used"),
    "sizes": (lambda p: changed(p, settings={"width": -4}), "width is -4"),
    "a tensor missing": (
        lambda p: changed(p, without("fine.colour.bias")),
        "fine.colour.bias is missing",
    ),
    "a tensor too many": (lambda p: changed(p, lambda s: {**s, "x": np.ones(2)}), "x is unknown"),
    "another size": (
        lambda p: changed(p, settings={"width": 12, "depth": 3}),
        r"has shape .*; the field needs",
    ),
    "NaN": (lambda p: changed(p, spoiled), "fine.colour.weight is NaN or infinite"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_field_is_named_with_its_path(file, damage):
    path, _ = file
    spoil, message = DAMAGE[damage]
    spoil(path)
    with pytest.raises(FieldFileError, match=message) as error:
        load_field(path)
    assert "mug.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_written_of_a_field_that_diverged(file, tmp_path):
    _, field = file
    field.fine.density.bias[0] = float("inf")
    with pytest.raises(FieldFileError, match=r"is not written: .*fine.density.bias"):
        save_field(field, tmp_path / "new" / "field.safetensors")
    assert not (tmp_path / "new").exists()


def test_any_length_fits_where_none_is_said():
    check_state({"a": np.ones((4, 2))}, {"a": (None, 2)})


def test_the_surface_is_in_the_file(tmp_path):
    field = painted_block((0.05, 0.1, 0.15))
    assert load_again(field, tmp_path).surface is None
    field.surface = simplified_surface(field)
    again = load_again(field, tmp_path)
    np.testing.assert_array_equal(again.surface.vertices, field.surface.vertices)
    np.testing.assert_array_equal(again.scaled(2.0).surface.faces, field.surface.faces)
    np.testing.assert_array_equal(field_mesh(again).vertices, field.surface.vertices)


def load_again(field, folder):
    save_field(field, folder / "field.safetensors")
    return load_field(folder / "field.safetensors")


def test_a_surface_of_vertices_that_are_not_there():
    surface = FieldSurface(np.zeros((3, 3), np.float32), np.array([[0, 1, 3]]), np.ones(1))
    with pytest.raises(FieldError, match="not there"):
        FieldSurface.taken_from(surface.state())
