# SPDX-License-Identifier: Apache-2.0
"""Cameras around a vehicle, silhouettes, pictures, and the data set that is written of them."""

import json
import time
from functools import cache

import numpy as np
import pytest
from shapes import box
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.bop import BopDataset
from pose_refiner_ros.datasets.vehicles import render_bop as module
from pose_refiner_ros.datasets.vehicles.collection import procedural_collection
from pose_refiner_ros.datasets.vehicles.pictures import random_background, render_picture
from pose_refiner_ros.datasets.vehicles.render_bop import RenderError, RenderOptions, render_bop
from pose_refiner_ros.datasets.vehicles.views import (
    PaperCamera,
    RobotCamera,
    resized_pinhole,
    silhouettes,
)
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

CAMERAS = {"paper": PaperCamera(), "jitter": PaperCamera(jitter=1.0), "robot": RobotCamera()}


@cache
def vehicles():
    return procedural_collection(per_cluster=6)


def rng(seed=0):
    return np.random.default_rng(seed)


def positions(poses):
    return -np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3])


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_views_are_rigid_seeded_and_quick(camera):
    start = time.perf_counter()
    views = camera.sample(10_000, rng())
    assert time.perf_counter() - start < 0.5  # milliseconds, on an idle machine
    R = views.camera_from_object[:, :3, :3]
    np.testing.assert_allclose(
        R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(R), 1)
    assert views.camera_from_object.dtype == np.float64 and views.pinhole.shape == (10_000, 4)
    assert (R[:, 1, 2] < 0).all()  # the vehicle's up is up in the picture
    assert (views.camera_from_object[:, 2, 3] > 4).all()  # in front of the camera
    again = camera.sample(10_000, rng())
    np.testing.assert_array_equal(again.camera_from_object, views.camera_from_object)


def test_the_papers_camera_stands_on_its_grid_and_looks_at_its_points():
    camera = PaperCamera()
    poses = camera.sample(5000, rng()).camera_from_object
    place = positions(poses)
    np.testing.assert_allclose(place[:, 2], 1.5)
    grid = np.linspace(-camera.extent, camera.extent, 10)
    assert np.abs(place[:, :2, None] - grid).min(-1).max() < 1e-9
    assert len(np.unique(place[:, :2].round(6), axis=0)) == len(camera.positions) == 68
    assert np.linalg.norm(place[:, :2], axis=1).min() >= camera.nearest
    # the optical axis meets the plane of the points that are looked at in one of nine
    axis = poses[:, 2, :3]
    hit = place + axis * ((camera.look_at_height - place[:, 2]) / axis[:, 2])[:, None]
    np.testing.assert_allclose(np.unique(hit[:, :2].round(6)), [-1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(poses[:, 0, 2], 0, atol=1e-12)  # no roll
    np.testing.assert_allclose(camera.pinhole, [280, 280, 127.5, 127.5])


def test_jitter_keeps_its_distance():
    camera = CAMERAS["jitter"]
    place = positions(camera.sample(5000, rng()).camera_from_object)
    assert np.linalg.norm(place[:, :2], axis=1).min() > camera.nearest - 1e-9
    assert len(np.unique(place[:, 0].round(6))) > 4000


def test_a_grid_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="give a larger extent"):
        PaperCamera(extent=2.0).sample(1, rng())


def test_the_robots_camera_keeps_to_its_ranges():
    camera = RobotCamera()
    views = camera.sample(5000, rng())
    place = positions(views.camera_from_object)
    distance = np.linalg.norm(place[:, :2], axis=1)
    assert 5 <= distance.min() < 5.1 and 39 < distance.max() <= 40
    assert place[:, 2].min() >= 0.5 and place[:, 2].max() <= 3.0
    middle = views.camera_from_object @ [0, 0, camera.middle_height, 1]
    pixel = middle[:, :2] / middle[:, 2:3] * views.pinhole[:, :2] + views.pinhole[:, 2:]
    assert ((pixel > 0) & (pixel < 255)).all()


@pytest.mark.parametrize("camera", [CAMERAS["paper"], CAMERAS["robot"]], ids=["paper", "robot"])
def test_vehicles_are_mostly_in_view(camera):
    batch = MeshBatch([v.mesh for v in vehicles().vehicles])
    views = camera.sample(400, rng())
    index = rng(1).integers(len(batch), size=400)
    wide = views.pinhole + np.array([0, 0, 256, 256])
    masks = silhouettes(batch, index, views.camera_from_object, wide, 3 * 256)
    seen, whole = masks[:, 256:512, 256:512].sum((1, 2)), masks.sum((1, 2))
    assert (seen > 0).all()
    share = seen / whole
    assert share.mean() > 0.9 and np.quantile(share, 0.1) > 0.7


def test_silhouettes_are_those_of_single_draws_at_any_size():
    batch = MeshBatch([box(4, 2, 1.5), box(5, 2, 2)])
    views = PaperCamera().sample(300, rng())
    index = np.arange(300) % 2
    masks = silhouettes(batch, index, views.camera_from_object, views.pinhole, 256)
    assert masks.dtype == np.uint8 and masks.max() == 1
    for i in (0, 257, 299):
        one = silhouettes(
            batch, index[i], views.camera_from_object[i : i + 1], views.pinhole[i], 256
        )
        np.testing.assert_array_equal(masks[i], one[0])
    small = silhouettes(
        batch, index, views.camera_from_object, resized_pinhole(views.pinhole, 256, 64), 64
    )
    coarse = masks.reshape(300, 64, 4, 64, 4).mean((2, 4)) > 0.5
    assert (coarse != small).mean() < 0.005


def test_pictures_are_seeded_and_their_masks_are_the_silhouettes():
    vehicle = vehicles().vehicles[0]
    views = PaperCamera().sample(6, rng())
    silhouette = silhouettes(
        MeshBatch([vehicle.mesh]), 0, views.camera_from_object, views.pinhole, 256
    )
    pictures = []
    for i, (pose, pinhole) in enumerate(zip(*views, strict=True)):
        rgb, mask = render_picture(vehicle, pose, pinhole, 256, rng(i))
        again, _ = render_picture(vehicle, pose, pinhole, 256, rng(i))
        np.testing.assert_array_equal(rgb, again)
        assert rgb.shape == (256, 256, 3) and rgb.dtype == np.uint8
        assert (mask != silhouette[i]).sum() < 0.01 * mask.sum()
        pictures.append(rgb.mean((0, 1)))
    assert np.ptp(pictures, axis=0).min() > 5  # paint, light and background differ


def test_the_horizon_of_a_background_is_the_cameras():
    """About half of the backgrounds have ground and sky: the greatest step from row to row that
    they have in common is where the camera's horizon is."""
    camera = PaperCamera(height=3.0, size=128)  # looks down, the horizon is above the middle
    pose, pinhole = camera.sample(1, rng())[0][0], camera.pinhole
    up = pose[:3, 2]
    horizon = pinhole[3] - pinhole[1] * up[2] / up[1]
    found = np.stack([random_background(pose, pinhole, 128, rng(i)) for i in range(60)])
    rows = found.astype(float).mean((2, 3))
    step = np.median(np.abs(rows[:, 4:] - rows[:, :-4]), axis=0)  # between rows 4 apart
    assert found.shape == (60, 128, 128, 3) and 30 < horizon < 60
    assert abs(step.argmax() + 2 - horizon) < 4
    assert step.max() > 3 * np.median(step)


def test_a_data_set_is_written_that_bop_reads(tmp_path):
    seen = []
    folder = tmp_path / "new" / "set"
    options = RenderOptions(split="test", count=7, size=96, seed=3)
    models = render_bop(folder, vehicles(), options, progress=lambda *n: seen.append(n))
    assert seen[0] == (0, 7) and seen[-1] == (7, 7)
    images = list(BopDataset(folder, "test"))
    assert len(images) == 7
    library = ObjectLibrary.load(folder / "models")
    assert not library.problems and len(library) == models
    content = json.loads((folder / "vehicles.json").read_text())["vehicles"]
    clusters = [content[str(image.instances[0].obj_id)]["cluster"] for image in images]
    assert clusters == ["cargo", "sedan", "suv"] * 2 + ["cargo"]
    for image in images:
        (instance,) = image.instances
        model = library.by_bop_id(instance.obj_id)
        mask = image.mask(instance)
        np.testing.assert_array_equal(mask, image.mask(instance, "full"))
        camera = image.camera
        pinhole = [camera.fx, camera.fy, camera.cx, camera.cy]
        drawn = silhouettes(
            MeshBatch([model.mesh]), 0, instance.camera_from_object[None], pinhole, 96
        )
        assert (drawn[0] != mask).sum() <= 0.02 * mask.sum() + 2
        assert 0.3 < instance.visible_fraction <= 1.0
        assert image.rgb().shape == (96, 96, 3)
    assert not list(folder.parent.glob(".*"))  # nothing half-written left


def test_the_same_seed_writes_the_same_pictures(tmp_path):
    for name in "ab":
        render_bop(tmp_path / name, vehicles(), RenderOptions(count=3, size=48))
    a, b = (sorted((tmp_path / name).rglob("*.png")) for name in "ab")
    assert [p.read_bytes() for p in a] == [p.read_bytes() for p in b]


def test_folders_are_only_replaced_when_asked(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    options = RenderOptions(count=1, size=32)
    render_bop(folder, vehicles(), options)
    with pytest.raises(RenderError, match="give --overwrite"):
        render_bop(folder, vehicles(), options)
    monkeypatch.setattr(module, "render_picture", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what fails leaves the old one, and no rest
        render_bop(folder, vehicles(), RenderOptions(count=2, size=32, overwrite=True))
    assert len(list(BopDataset(folder, "train"))) == 1
    assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.undo()
    render_bop(folder, vehicles(), RenderOptions(count=2, size=32, overwrite=True))
    assert len(list(BopDataset(folder, "train"))) == 2

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(RenderError, match="was not written by this command"):
        render_bop(tmp_path / "mine", vehicles(), RenderOptions(overwrite=True))
    with pytest.raises(RenderError, match="is a file"):
        render_bop(tmp_path / "mine" / "thesis.txt", vehicles(), options)
    with pytest.raises(RenderError, match="count is 0"):
        render_bop(tmp_path / "new", vehicles(), RenderOptions(count=0))
    with pytest.raises(RenderError, match="size is 8 pixels"):
        render_bop(tmp_path / "new", vehicles(), RenderOptions(size=8))


def test_commands_write_data_set_and_library(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["vehicles", *map(str, arguments), "--per-cluster", "6"])

    result = run("render", tmp_path / "set", "--count", 3, "--size", 64, "--view", "robot")
    assert result.exit_code == 0, result.output
    assert "3 images of 3 vehicles" in result.stdout
    assert len(list(BopDataset(tmp_path / "set", "train"))) == 3
    result = run("render", tmp_path / "set", "--count", 3)
    assert result.exit_code == 2 and "give --overwrite" in result.stderr
    result = run("medoids", "--out", tmp_path / "library")
    assert result.exit_code == 0, result.output
    for cluster, vehicle in vehicles().medoids.items():
        assert cluster in result.stdout and vehicle.name in result.stdout
    assert not ObjectLibrary.load(tmp_path / "library" / "vehicles.yaml").problems
    result = run("medoids", "--shapenet", tmp_path)
    assert result.exit_code == 2 and "has no 02958343/" in result.stderr
    result = run("medoids", "--clusters", tmp_path / "clusters.csv")
    assert result.exit_code == 2 and "belongs to --shapenet" in result.stderr


def test_a_split_without_vehicles_is_said(tmp_path):
    with pytest.raises(RenderError, match="has no vehicle"):
        render_bop(tmp_path / "new", procedural_collection(per_cluster=1), RenderOptions())
    assert not list(tmp_path.iterdir())
