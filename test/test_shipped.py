# SPDX-License-Identifier: Apache-2.0
"""What comes with the package, and which encoder goes with which library."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from pose_refiner_ros import shipped
from pose_refiner_ros.cli import app
from pose_refiner_ros.encoder.network import Encoder, EncoderSettings
from pose_refiner_ros.encoder.weights import save_encoder
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.shipped import EncoderChoiceError, choose_encoder

CLUSTERS = ("sedan", "suv", "cargo")
SMALL = EncoderSettings(CLUSTERS, size=32, channels=(4, 4, 4, 4, 4), dense=8)


@pytest.fixture(scope="module")
def vehicles():
    return ObjectLibrary.load(shipped.OBJECTS)


def library_of(vehicles, **categories):
    """The vehicles with other categories, or none."""
    models = [replace(vehicles[name], category=c, exact_shape=c is None)
              for name, c in categories.items()]  # fmt: skip
    return ObjectLibrary.from_models(models)


@pytest.fixture
def weights(tmp_path):
    """An encoder that knows nothing yet, but its architecture."""

    def write(settings=SMALL, name="encoder.safetensors"):
        save_encoder(Encoder(settings), tmp_path / name, {})
        return tmp_path / name

    return write


def test_the_vehicles_have_the_categories_of_the_encoder(vehicles):
    assert shipped.categories_of(vehicles) == {name: [name] for name in CLUSTERS}
    assert vehicles.problems == vehicles.warnings == {}
    encoder = choose_encoder(vehicles)
    assert encoder.classes == CLUSTERS
    assert vehicles.warnings == {}


def test_none_where_none_is_wanted_or_of_use(vehicles):
    assert choose_encoder(vehicles, "none") is None
    assert choose_encoder(library_of(vehicles, sedan=None)) is None
    assert choose_encoder(library_of(vehicles, sedan="boat")) is None


def test_a_file_of_the_users_own(vehicles, weights):
    assert choose_encoder(vehicles, str(weights())).classes == CLUSTERS


def test_categories_that_it_does_not_know_are_said(vehicles, weights):
    library = library_of(vehicles, sedan="sedan", suv="boat", cargo="sedan")
    choose_encoder(library, str(weights()))
    assert (
        "its category 'boat' is no class of the encoder, which knows sedan, suv, cargo"
        in (library.warnings["suv"][0])
    )
    assert "sedan has the category 'sedan' as well" in library.warnings["cargo"][0]


def other_architecture(write, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(write(), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    first = next(iter(tensors))
    save_file(
        {**tensors, first: tensors[first][:1].clone()}, tmp_path / "other.safetensors", metadata
    )
    return tmp_path / "other.safetensors"


def a_picture(write, tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG and so on")
    return tmp_path / "x.png"


def cut_short(write, tmp_path):
    path = write()
    path.write_bytes(path.read_bytes()[:2000])
    return path


def empty(write, tmp_path):
    (tmp_path / "empty.safetensors").write_bytes(b"")
    return tmp_path / "empty.safetensors"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda write, tmp_path: tmp_path / "gone.safetensors", "gone.safetensors do not exist"),
        (lambda write, tmp_path: tmp_path, "are a folder"),
        (a_picture, "is not a whole safetensors file"),
        (
            cut_short,
            r"encoder.safetensors is not a whole .* \(2,000 bytes.*copy it again, or train",
        ),
        (empty, "copy it again"),
        (other_architecture, "is of another architecture"),
        (lambda write, _: write(replace(SMALL, window="image")), "tensors: .* one camera only"),
    ],
    ids=["missing", "folder", "picture", "cut", "empty", "architecture", "whole image"],
)
def test_weights_that_cannot_be_used(vehicles, weights, tmp_path, make, words):
    with pytest.raises(EncoderChoiceError, match=words) as caught:
        choose_encoder(vehicles, str(make(weights, tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("record", [[1, 2], "text", None, {"data": 3}, {"seconds": "long"}])
def test_a_strange_record_of_the_training_does_no_harm(vehicles, tmp_path, record):
    path = tmp_path / "encoder.safetensors"
    save_encoder(Encoder(SMALL), path, record)
    assert choose_encoder(vehicles, str(path)).classes == CLUSTERS
    result = CliRunner().invoke(app, ["encoder", "info", str(path)])
    assert result.exit_code == 0 and "Classes: sedan, suv, cargo" in result.stdout
    assert isinstance(record, dict) == ("cannot be read" in result.stderr)


def test_info_is_about_the_packages_own_where_no_file_is_given():
    result = CliRunner().invoke(app, ["encoder", "info"])
    assert result.exit_code == 0 and "encoder.safetensors" in result.stdout


def test_weights_for_other_objects(vehicles, weights):
    file = weights(replace(SMALL, classes=("cup", "plate")))
    with pytest.raises(EncoderChoiceError, match=r"knows cup, plate, and no object"):
        choose_encoder(vehicles, str(file))


@pytest.mark.parametrize(("choice", "words"), [("none", "choose one"), ("", "no object has a")])
def test_a_refinement_that_needs_an_encoder(vehicles, choice, words):
    library = library_of(vehicles, sedan=None) if not choice else vehicles
    with pytest.raises(EncoderChoiceError, match=words):
        choose_encoder(library, choice, refinement="gradient_encoder")
    assert choose_encoder(vehicles, "none", refinement="gradient_pose") is None
