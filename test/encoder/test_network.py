# SPDX-License-Identifier: Apache-2.0
"""The network, its settings, and its file of weights."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pose_refiner_ros.encoder.network import Encoder, EncoderError, EncoderSettings
from pose_refiner_ros.encoder.weights import FORMAT, load_encoder, save_encoder

SMALL = EncoderSettings(("sedan", "suv", "cargo"), size=32, channels=(4, 6, 8, 8, 8), dense=16)
HYPOTHESES = {"continuous": 2, "euler_cosine": 1}


def small_encoder(seed: int = 0, **changes) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(dataclasses.replace(SMALL, **changes)).eval()


def views(settings: EncoderSettings, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    channels = 2 if settings.input == "mask" else 5
    generator = torch.Generator().manual_seed(1)
    shape = (count, channels, settings.size, settings.size)
    windows = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return windows, torch.tensor([[60.0, 60.0, 15.5, 20.0]]).expand(count, 4)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose_head": "quaternion"}, "pose_head is 'quaternion'; choose continuous or euler"),
        ({"input": "depth"}, "input is 'depth'; choose mask or rgb_mask"),
        ({"window": "zoom"}, "window is 'zoom'; choose crop or image"),
        ({"classes": ()}, "no classes"),
        ({"classes": "suv"}, "classes is 'suv'"),
        ({"classes": ("suv", "suv")}, "each name once"),
        ({"channels": (4, 4, 4)}, "5 convolutions"),
        ({"channels": ()}, "5 convolutions"),
        ({"channels": (4, 4, 0, 4, 4)}, "5 convolutions"),
        ({"size": 48}, "size is 48; it must be a multiple of 32"),
        ({"size": 0}, "size is 0"),
        ({"size": -32}, "size is -32"),
        ({"dense": 0}, "dense is 0"),
        ({"dropout": (0.5,)}, "dropout is"),
        ({"dropout": (0.5, 1.0)}, "dropout is"),
        ({"dropout": (-0.1, 0.5)}, "dropout is"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(EncoderError, match=message):
        dataclasses.replace(SMALL, **change)


# --- layers -------------------------------------------------------------------------------------


def test_the_layers_are_the_papers():
    encoder = Encoder(EncoderSettings(("a", "b")))
    convolutions = [m for m in encoder.features if isinstance(m, nn.Conv2d)]
    assert [c.kernel_size for c in convolutions] == [(k, k) for k in (5, 5, 5, 3, 3)]
    assert {c.stride for c in convolutions} == {(2, 2)}
    assert [c.out_channels for c in convolutions] == [32, 64, 128, 256, 256]
    rectifiers = [m for m in encoder.modules() if isinstance(m, nn.LeakyReLU)]
    assert len(rectifiers) == 5 + 2 and {r.negative_slope for r in rectifiers} == {0.2}
    assert [m.p for m in encoder.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.1]


@pytest.mark.parametrize("pose_head", HYPOTHESES)
@pytest.mark.parametrize("input_", ["mask", "rgb_mask"])
@pytest.mark.parametrize("window", ["crop", "image"])
def test_shapes(pose_head, input_, window):
    encoder = small_encoder(pose_head=pose_head, input=input_, window=window, size=64)
    windows, pinhole = views(encoder.settings)
    found = encoder(windows, pinhole)
    k = HYPOTHESES[pose_head]
    assert found.class_logits.shape == (3, 3)
    assert found.poses.camera_from_object.shape == (3, k, 4, 4)
    assert found.poses.logits.shape == (3, k)
    assert found.poses.log_sigma.shape == (3, k, 6)
    truth = torch.eye(4).repeat(3, 1, 1)
    truth[:, 2, 3] = 9.0
    parts = encoder.loss(found, torch.tensor([0, 1, 2]), truth, pinhole)
    assert "class" in parts and all(part.isfinite() and part.ndim == 0 for part in parts.values())
    sum(parts.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_inputs_are_scaled():
    encoder = small_encoder(input="rgb_mask")
    windows = torch.zeros(1, 5, 32, 32, dtype=torch.uint8)
    windows[:, :, 16:] = 255
    prepared = encoder.prepared(windows)
    assert prepared[0, :, 0, 0].tolist() == [-1, 0, 0, 0, 0]
    assert prepared[0, :, 31, 0].tolist() == [1, 1, 1, 1, 1]


def test_dropout_is_for_training():
    encoder = small_encoder()
    windows, pinhole = views(SMALL)
    first, again = (encoder(windows, pinhole).class_logits for _ in range(2))
    assert torch.equal(first, again)
    encoder.train()
    first, again = (encoder(windows, pinhole).class_logits for _ in range(2))
    assert not torch.equal(first, again)


def test_one_sample_does_not_touch_another():
    encoder = small_encoder()
    windows, pinhole = views(SMALL)
    together = encoder(windows, pinhole).poses.camera_from_object
    alone = encoder(windows[1:2], pinhole[1:2]).poses.camera_from_object
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"pose_head": "euler_cosine", "window": "image", "input": "rgb_mask"}]
)
def test_weights_come_back(tmp_path, changes):
    encoder = small_encoder(**changes)
    save_encoder(encoder, tmp_path / "deep" / "e.safetensors", {"steps": 7, "data": {"a": "b"}})
    again, record = load_encoder(tmp_path / "deep" / "e.safetensors")
    assert again.settings == encoder.settings
    assert record == {"steps": 7, "data": {"a": "b"}}
    assert not again.training
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-3, atol=1e-7)
    windows, pinhole = views(encoder.settings)
    torch.testing.assert_close(
        again(windows, pinhole).poses.camera_from_object,
        encoder(windows, pinhole).poses.camera_from_object,
        rtol=0.02, atol=0.02,
    )  # fmt: skip
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["e.safetensors"]


def rewritten(path, tensors=None, **metadata):
    """The file at path with some of its header or its tensors changed."""
    with safe_open(path, "pt") as file:
        header = {**file.metadata(), **metadata}
        if tensors is None:
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    save_file(tensors, path, {key: value for key, value in header.items() if value is not None})


def other_settings(**changes) -> str:
    return json.dumps({**dataclasses.asdict(SMALL), **changes})


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(small_encoder(), path, {})
    return path


BROKEN = {
    "missing": (lambda path: path.unlink(), "do not exist"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "are a folder"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-900]), "not a whole safetensors file"),
    "text": (lambda path: path.write_text("weights" * 99), "not a whole safetensors file"),
    "a pickle": (lambda path: torch.save({"a": 1}, path), "not a whole safetensors file"),
    "other weights": (
        lambda path: save_file({"layer": torch.zeros(3)}, path),
        "weights of something else",
    ),
    "a later format": (lambda path: rewritten(path, format="pose_refiner_ros encoder 9"), FORMAT),
    "no settings": (lambda path: rewritten(path, settings=None), "settings cannot be used"),
    "settings no JSON": (lambda path: rewritten(path, settings="{"), "settings cannot be used"),
    "settings a list": (lambda path: rewritten(path, settings="[1]"), "settings cannot be used"),
    "record no JSON": (lambda path: rewritten(path, training="{"), "settings cannot be used"),
    "unknown setting": (
        lambda path: rewritten(path, settings=other_settings(depth=3)),
        "unexpected keyword argument 'depth'",
    ),
    "unknown head": (
        lambda path: rewritten(path, settings=other_settings(pose_head="octonions")),
        "settings cannot be used: pose_head is 'octonions'",
    ),
    "size a word": (lambda p: rewritten(p, settings=other_settings(size="big")), "cannot be used"),
    "wider layers": (
        lambda path: rewritten(path, settings=other_settings(dense=32)),
        r"another architecture: class_branch.0.0.bias is \(16,\), the encoder .* has \(32,\)",
    ),
    "other head": (
        lambda path: rewritten(path, settings=other_settings(pose_head="euler_cosine")),
        "another architecture: pose_head",
    ),
    "a layer missing": (
        lambda path: rewritten(path, {"pose_head.linear.bias": torch.zeros(32)}),
        "another architecture: .* is missing",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_what_is_no_encoder_is_named_with_its_path(weights, damage):
    harm, message = BROKEN[damage]
    harm(weights)
    with pytest.raises(EncoderError, match=message) as error:
        load_encoder(weights)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(weights, value):
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    tensors["class_branch.1.bias"][1] = value
    rewritten(weights, tensors)
    with pytest.raises(EncoderError, match="NaN or infinite") as error:
        load_encoder(weights)
    assert str(weights) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), 1e5])  # 1e5 is infinite in half precision
def test_nothing_is_written_of_an_encoder_that_diverged(weights, value):
    before = weights.read_bytes()
    encoder = small_encoder()
    with torch.no_grad():
        encoder.pose_head.linear.bias[0] = value
    with pytest.raises(EncoderError, match="not written"):
        save_encoder(encoder, weights, {})
    assert weights.read_bytes() == before


def test_a_record_that_is_no_json_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_encoder(small_encoder(), tmp_path / "e.safetensors", {"model": object()})
    assert list(tmp_path.iterdir()) == []
