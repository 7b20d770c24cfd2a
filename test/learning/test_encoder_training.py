# SPDX-License-Identifier: Apache-2.0
"""Training: pictures that teach, a short run that learns, going on from where it stopped."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS, Vehicle
from pose_refiner_ros.datasets.vehicles.views import PaperCamera, RobotCamera
from pose_refiner_ros.encoder.network import Encoder, EncoderError, EncoderSettings
from pose_refiner_ros.encoder.weights import load_encoder
from pose_refiner_ros.learning import encoder_training as training_module
from pose_refiner_ros.learning.encoder_training import (
    CHECKPOINT,
    TrainingOptions,
    train_encoder,
    validate,
)
from pose_refiner_ros.learning.encoder_training_data import (
    CLEAN,
    MIN_PIXELS,
    ROUGH,
    Disturbance,
    VehicleWindows,
    occluder,
    roughened,
)
from pose_refiner_ros.learning.model_card import card_text
from pose_refiner_ros.learning.vehicle_training import TRAINING_CAMERAS, Cameras, vehicle_windows

SMALL = EncoderSettings(CLUSTERS, size=32, channels=(8, 16, 32, 32, 32), dense=64)
TINY = dataclasses.replace(SMALL, channels=(4, 4, 4, 4, 4), dense=8)
CLUSTER_OF = {"sedan": "sedan", "suv": "suv", "van": "cargo", "pickup": "cargo"}
CAMERAS = ((Cameras(PaperCamera(jitter=1.0)), 1.0),)
FEW = TrainingOptions(steps=3, batch=4, workers=0, precision="32-true", log_every=1)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_REFINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vehicles():
    made = {name: make_vehicle(VEHICLES[name]) for name in CLUSTER_OF}
    return [Vehicle(n, CLUSTER_OF[n], v.mesh, np.asarray(v.parts)) for n, v in made.items()]


def windows_of(vehicles, settings=SMALL, batch=32, seed=0, disturbance=ROUGH) -> VehicleWindows:
    return vehicle_windows(settings, vehicles, batch, seed, CAMERAS, disturbance)


def first(windows: VehicleWindows, count: int = 1) -> list:
    endless = iter(windows)
    return [next(endless) for _ in range(count)]


def train(vehicles, folder, settings=TINY, options=FEW, **more):
    windows = windows_of(vehicles, settings, options.batch)
    judged = first(windows_of(vehicles, settings, 8, seed=9, disturbance=CLEAN))
    return train_encoder(settings, windows, judged, folder, options, accelerator="cpu", **more)


# --- pictures -----------------------------------------------------------------------------------


def test_batches(vehicles):
    windows, pinhole, pose, index = first(windows_of(vehicles, batch=100))[0]
    assert windows.shape == (100, 2, 32, 32) and windows.dtype == torch.uint8
    assert pinhole.shape == (100, 4) and pinhole.dtype == torch.float32
    assert pose.shape == (100, 4, 4) and pose.dtype == torch.float32
    # cargo has two models here, and is drawn as often as the others
    assert (torch.bincount(index) > 18).all() and len(index) == 100
    # the object lies in its window, the more so as nearly all masks are whole
    middle = pose[:, :2, 3] / pose[:, 2:3, 3] * pinhole[:, :2] + pinhole[:, 2:]
    assert ((middle > -6) & (middle < 38)).all(dim=1).float().mean() > 0.9
    assert (windows[:, 0].flatten(1).max(1).values == 255).all()


def test_a_clean_window_is_the_silhouette_that_its_camera_sees(vehicles, monkeypatch):
    from pose_refiner_ros.rendering.draw import draw
    from pose_refiner_ros.rendering.mesh_batch import MeshBatch

    monkeypatch.setattr("pose_refiner_ros.learning.encoder_training_data.PATCH_SIZES", (320,))
    settings = dataclasses.replace(SMALL, size=96)
    batch = first(windows_of(vehicles[:3], settings, 24, disturbance=CLEAN))[0]
    windows, pinhole, pose, index = (part.numpy() for part in batch)
    meshes = MeshBatch([vehicle.mesh for vehicle in vehicles[:3]])
    drawn = draw(meshes, index, pose, pinhole, 96, near=0.05) > 0
    mask = windows[:, 0] > 127
    overlap = (mask & drawn).sum((1, 2)) / (mask | drawn).sum((1, 2))
    assert np.median(overlap) > 0.985 and overlap.min() > 0.95
    pixels = np.indices((96, 96)).reshape(2, -1)
    middles = [m.reshape(24, -1) @ pixels.T / m.sum((1, 2))[:, None] for m in (mask, drawn)]
    assert np.abs(np.mean(middles[0] - middles[1], axis=0)).max() < 0.1  # pixels: no shift
    assert not windows[:, 1].any()


def test_the_same_seed_draws_the_same(vehicles):
    a, b, c = (first(windows_of(vehicles, seed=seed))[0] for seed in (4, 4, 5))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])


def test_masks_are_disturbed_as_asked(vehicles):
    hidden = Disturbance(truncated=0.0, occluded=1.0, rough=0.0)
    cut = Disturbance(truncated=1.0, occluded=0.0, rough=0.0)
    for disturbance in (hidden, cut):
        windows, *_ = first(windows_of(vehicles, batch=64, disturbance=disturbance))[0]
        known = windows[:, 1] == 0
        assert (~known).flatten(1).any(1).float().mean() > 0.5
        assert (windows[:, 0].flatten(1) > 0).any(1).all()
        both = windows[:, 0].float() + windows[:, 1].float()
        assert both.max() <= 256  # a pixel is shown or unknown, not both


def test_occluders_and_rough_borders():
    rng = np.random.default_rng(0)
    mask = np.zeros((80, 80), np.uint8)
    mask[25:60, 20:65] = 1
    for _ in range(60):
        covered = occluder(mask, rng)
        assert covered.dtype == np.uint8 and covered.max() <= 1
        worse = roughened(mask, covered, rng)
        assert worse.dtype == np.uint8 and set(np.unique(worse)) <= {0, 1}
        assert not (worse & covered).any()
    rough = [roughened(mask, None, rng) for _ in range(20)]
    share = np.mean([(r & mask).sum() / (r | mask).sum() for r in rough])
    assert 0.85 < share < 0.995


def test_the_card_names_the_views_that_are_trained_on():
    height, distance = RobotCamera().height, RobotCamera().distance
    views = (
        f"seen from {height[0]:g} to {height[1]:g} m above their ground and {distance[0]:g} to "
        f"{distance[1]:g} m away"
    )
    assert views in card_text("e", SMALL, {})
    assert any(isinstance(c.settings, RobotCamera) for c, _ in TRAINING_CAMERAS)


def test_whole_photos(vehicles):
    settings = dataclasses.replace(TINY, window="image")
    windows, pinhole, pose, _ = first(windows_of(vehicles, settings, batch=16))[0]
    expected = PaperCamera().pinhole[0] / 8
    torch.testing.assert_close(pinhole[:, 0], torch.full((16,), float(expected)))
    assert (pinhole == pinhole[0]).all()  # one camera
    assert not windows[:, 1].any()
    assert (windows[:, 0].float().sum((1, 2)) / 255 > MIN_PIXELS / 64).all()


def test_colours_are_for_one_input_only(vehicles):
    meshes = [vehicle.mesh for vehicle in vehicles]
    with pytest.raises(ValueError, match="rgb_mask"):
        VehicleWindows(SMALL, meshes, [0, 1, 2, 2], CAMERAS, 4, paint=lambda *_: None)
    with pytest.raises(ValueError, match="rgb_mask"):
        colours = dataclasses.replace(SMALL, input="rgb_mask")
        VehicleWindows(colours, meshes, [0, 1, 2, 2], CAMERAS, 4)


# --- learning -----------------------------------------------------------------------------------


def test_a_short_training_learns(vehicles, tmp_path):
    losses, angles = [], []

    def note(done, total, figures):
        assert total == 250 and done in (50, 100, 150, 200, 250)
        losses.append(figures["rotation"] + figures["place"])
        angles.append(figures.get("val_mve_deg"))

    judged = first(windows_of(vehicles, batch=64, seed=9, disturbance=CLEAN), 3)
    torch.manual_seed(0)
    untrained = validate(Encoder(SMALL), judged, torch.device("cpu"))
    encoder, record = train_encoder(
        SMALL,
        windows_of(vehicles),
        judged,
        tmp_path,
        TrainingOptions(
            steps=250, batch=32, learning_rate=2e-3, warm_up=20, workers=0, precision="32-true",
            checkpoint_every=125,
        ),
        accelerator="cpu",
        progress=note,
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    figures = record["validation"]
    # the better of two opposite guesses is 45 degrees off by chance
    assert figures["val_best_mve_deg"] < 26 < 0.5 * untrained["val_best_mve_deg"]
    assert figures["val_best_acc_pi_6"] > 0.55  # 1 in 3 by chance
    assert record["steps"] == 250 and record["samples"] == 8000 and record["device"] == "1 x cpu"
    assert json.loads(json.dumps(record)) is not None
    assert not encoder.training
    assert validate(encoder, judged, torch.device("cpu")) == pytest.approx(figures)
    names = {path.name.split(".")[0] for path in tmp_path.iterdir()}
    assert names == {"checkpoint", "events"}


@pytest.mark.parametrize(
    "changes",
    [
        {"pose_head": "euler_cosine", "window": "image"},
        {"input": "rgb_mask"},
        {"input": "rgb_mask", "window": "image"},
    ],
)
def test_every_kind_can_be_trained(vehicles, tmp_path, monkeypatch, changes):
    monkeypatch.setattr("pose_refiner_ros.learning.encoder_training_data.CHUNK", 12)
    settings = dataclasses.replace(TINY, **changes)
    encoder, record = train(vehicles, tmp_path, settings)
    assert encoder.settings == settings
    assert all(np.isfinite(value) for value in record["validation"].values())


def test_only_features_decay(vehicles, tmp_path, monkeypatch):
    groups = []

    class Spy(torch.optim.Adam):
        def __init__(self, params, **more):
            super().__init__(params, **more)
            groups.extend(self.param_groups)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    encoder, _ = train(
        vehicles, tmp_path, options=dataclasses.replace(FEW, steps=1, weight_decay=0.01)
    )
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in encoder.named_parameters():
        assert decays[id(parameter)] == (0.01 if name.startswith("features") else 0.0), name


def test_the_rate_rises_and_falls():
    options = TrainingOptions(steps=100, warm_up=10)
    rates = [training_module._rate(step, options) for step in range(101)]
    assert rates[0] < 0.11 and np.argmax(rates) == 9 and max(rates) > 0.97
    assert rates[55] == pytest.approx(0.42, abs=0.02) and rates[100] == pytest.approx(0.0)
    assert training_module._rate(0, TrainingOptions(steps=1, warm_up=0)) == 1.0


@pytest.mark.parametrize("name", ["steps", "batch", "checkpoint_every", "log_every"])
def test_options_are_checked(name):
    with pytest.raises(EncoderError, match=f"{name} is 0"):
        TrainingOptions(**{name: 0})


# --- resuming -----------------------------------------------------------------------------------


def test_a_training_goes_on_where_it_stopped(vehicles, tmp_path):
    once = tmp_path / "once"
    options = dataclasses.replace(FEW, steps=6, checkpoint_every=2)
    steps = []
    train(vehicles, once, progress=lambda done, total, figures: steps.append(done))
    assert steps == [1, 2, 3]
    stopped = torch.load(once / CHECKPOINT, weights_only=True)
    assert stopped["step"] == 3
    slower = dataclasses.replace(options, learning_rate=1e-9)  # so that the weights stay
    steps.clear()
    encoder, record = train(
        vehicles, once, options=slower, resume=True,
        progress=lambda done, total, figures: steps.append(done),
    )  # fmt: skip
    assert steps == [4, 5, 6] and record["steps"] == 6
    assert record["seconds"] >= round(stopped["seconds"])
    for name, value in stopped["network"].items():
        torch.testing.assert_close(encoder.state_dict()[name], value, atol=1e-6, rtol=0)
    later = torch.load(once / CHECKPOINT, weights_only=True)
    assert later["step"] == 6 and later["schedule"]["last_epoch"] == 6
    moments = later["optimizer"]["state"][0]
    assert moments["step"] == 6  # Adam's memory went along


def test_resuming_draws_other_pictures(vehicles, tmp_path):
    seeds = []

    class Noted(VehicleWindows):
        def __iter__(self):
            seeds.append(self.seed)
            return super().__iter__()

    meshes = [vehicle.mesh for vehicle in vehicles]
    judged = first(windows_of(vehicles, TINY, 8))
    for folder, steps, resume in (("one", 2, False), ("one", 4, True), ("two", 2, False)):
        windows = Noted(TINY, meshes, [0, 1, 2, 2], CAMERAS, 4)
        options = dataclasses.replace(FEW, steps=steps)
        train_encoder(
            TINY, windows, judged, tmp_path / folder, options, accelerator="cpu", resume=resume
        )
    assert seeds[0] != seeds[1] and seeds[0] == seeds[2]


def test_resuming_without_a_checkpoint_is_refused(vehicles, tmp_path):
    with pytest.raises(EncoderError, match="does not exist: leave out --resume"):
        train(vehicles, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_never_replaced_by_another_training(vehicles, tmp_path):
    train(vehicles, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(EncoderError, match="earlier training: go on from it with --resume"):
        train(vehicles, tmp_path)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_checkpoints_that_do_not_fit_are_named(vehicles, tmp_path):
    train(vehicles, tmp_path)
    with pytest.raises(EncoderError, match="has done 3 steps already"):
        train(vehicles, tmp_path, resume=True)
    longer = dataclasses.replace(FEW, steps=5)
    wider = dataclasses.replace(TINY, dense=16)
    with pytest.raises(EncoderError, match="another architecture") as error:
        train(vehicles, tmp_path, wider, longer, resume=True)
    assert str(tmp_path / CHECKPOINT) in str(error.value)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for broken in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / CHECKPOINT).write_bytes(broken)
        with pytest.raises(EncoderError, match="no whole checkpoint") as error:
            train(vehicles, tmp_path, options=longer, resume=True)
        assert str(tmp_path / CHECKPOINT) in str(error.value)
    torch.save({"state_dict": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(EncoderError, match="no whole checkpoint"):
        train(vehicles, tmp_path, options=longer, resume=True)


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_training_that_diverges_says_so(vehicles, tmp_path):
    wild = dataclasses.replace(FEW, steps=60, learning_rate=1e30, warm_up=0)
    with pytest.raises(EncoderError, match=r"at step \d+: lower the learning rate"):
        train(vehicles, tmp_path, options=wild)
    assert not (tmp_path / CHECKPOINT).exists()


def test_no_checkpoint_is_made_of_weights_that_are_no_numbers(vehicles, tmp_path, monkeypatch):
    """Between two looks at the loss."""
    train(vehicles, tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    whole = Encoder.loss
    calls = []

    def bad(self, *arguments):
        calls.append(None)
        parts = whole(self, *arguments)
        return parts if len(calls) == 1 else {"class": parts["class"] * torch.nan}

    monkeypatch.setattr(Encoder, "loss", bad)
    options = dataclasses.replace(FEW, steps=5, log_every=100)
    with pytest.raises(EncoderError, match=r"NaN or infinite at step 5.* resume from"):
        train(vehicles, tmp_path, options=options, resume=True)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("change", [{"precision": "8-bits"}, {"accelerator": "cuda"}])
def test_what_this_machine_cannot_do_is_said(vehicles, tmp_path, change):
    if change.get("accelerator") == "cuda" and torch.cuda.is_available():
        pytest.skip("it can")
    options = dataclasses.replace(FEW, precision=change.get("precision", "auto"))
    windows = windows_of(vehicles, TINY, 4)
    with pytest.raises(EncoderError, match="training cannot start"):
        train_encoder(TINY, windows, [], tmp_path, options, 1, change.get("accelerator", "cpu"))


# --- the command --------------------------------------------------------------------------------


def command(*arguments: str):
    return CliRunner().invoke(app, ["encoder", *map(str, arguments)])


def test_the_command_trains_and_tells(tmp_path):
    out = tmp_path / "deep" / "e.safetensors"
    arguments = [
        "train", "--out", out, "--steps", 3, "--batch", 8, "--size", 32, "--per-cluster", 5,
        "--workers", 0, "--accelerator", "cpu", "--precision", "32-true",
    ]  # fmt: skip
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    assert str(out.name) in result.output.replace("\n", "")
    encoder, record = load_encoder(out)
    assert encoder.settings.classes == CLUSTERS and encoder.settings.size == 32
    assert record["steps"] == 3 and sum(record["data"]["training_models"].values()) > 3
    card = out.with_suffix(".md").read_text()
    assert "3 steps of 8 pictures" in card and "5 per cluster" in card
    told = command("info", out)
    assert told.exit_code == 0
    assert "sedan, suv, cargo" in told.stdout and "3 steps of 8 pictures" in told.stdout

    again = command(*arguments, "--resume")
    assert again.exit_code == 2 and "3 steps already" in again.output
    assert "Traceback" not in again.output


def test_the_command_names_what_is_wrong(tmp_path):
    for arguments, message in (
        (("info", tmp_path / "none.safetensors"), "do not exist"),
        (("train", "--out", tmp_path / "e", "--size", 33), "multiple of 32"),
        (
            ("train", "--out", tmp_path / "e", "--size", 32, "--per-cluster", 2),
            "no sedan to validate on (procedural, 2 per cluster, seed 0)",
        ),
    ):
        result = command(*arguments)
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
