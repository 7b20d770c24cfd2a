# SPDX-License-Identifier: Apache-2.0
"""Fields from photos of three balls of which some have no pose."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import posed_scene
import pytest
from painted import painted_room, photo
from typer.testing import CliRunner

from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.datasets.posed_images.views import View, stack
from pose_refiner_ros.evaluation.inerf_protocol import perturbed_camera
from pose_refiner_ros.evaluation.label_shares import label_shares
from pose_refiner_ros.fields.contraction import Contraction
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.field_file import load_field
from pose_refiner_ros.learning import field_training
from pose_refiner_ros.learning.grid_training import GridOptions, GridTraining, train_grid
from pose_refiner_ros.learning.self_supervision import (
    Estimate,
    PoseSearch,
    alike,
    farthest_apart,
    held_out,
    joined,
    pose_error,
    rms_limit,
    self_supervise,
)

QUICK = GridOptions(steps=80, rays=4096)
UNPOSED = (3, 9, 14)
NOWHERE = np.full((4, 4), np.nan)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A folder of 20 photos with poses; 6 for testing."""
    return posed_scene.write_split_scene(tmp_path_factory.mktemp("scene"), 26, every=5)


@pytest.fixture(scope="module")
def photos(scene):
    return load_posed_images(scene)


@pytest.fixture(scope="module")
def split(photos):
    """(posed, unposed, true poses): three photos without poses, and one of them as noise."""
    posed = photos.subset(np.setdiff1d(np.arange(len(photos)), UNPOSED))
    unposed = photos.subset([*UNPOSED, UNPOSED[0]])
    truths = unposed.camera_from_object.copy()
    unposed.camera_from_object[:] = NOWHERE
    unposed.names[3] = "noise"
    unposed.images[3] = np.random.default_rng(0).integers(0, 255, unposed.images[3].shape)
    unposed.alpha[3] = 255
    return posed, unposed, truths


@pytest.fixture(scope="module")
def supervised(split):
    """(field, found, photos of each training)."""
    trained = []

    def train(photos):
        trained.append(photos)
        return train_grid(photos, QUICK)

    field, found = self_supervise(*split[:2], train, hypotheses=16)
    return field, found, trained


def test_right_poses_are_used_and_noise_is_not(supervised, split):
    field, found, trained = supervised
    posed, unposed, truths = split
    assert list(found.poses) == [0, 1, 2]
    for i, pose in found.poses.items():
        turn, shift = pose_error(pose, truths[i], np.zeros(3))
        assert np.degrees(turn) < 3.0 and shift < 0.05
    assert found.estimates[3].reason
    assert [len(p) for p in trained] == [len(posed) - 2, len(posed) + 3]
    assert trained[-1].names == [*posed.names, *unposed.names[:3]]
    np.testing.assert_array_equal(trained[-1].images[-3:], unposed.images[:3])


def test_the_record_says_what_was_found(supervised, split):
    field, found, _ = supervised
    record = json.loads(json.dumps(field.record["self_supervision"]))
    assert (record["posed"], record["unposed"], record["accepted"]) == (len(split[0]), 4, 3)
    assert [p["accepted"] for p in record["pictures"]] == [True, True, True, False]
    assert record["pictures"][0]["name"] == split[1].names[0]
    np.testing.assert_allclose(record["pictures"][0]["camera_from_object"], found.poses[0])
    assert record["pictures"][3]["reason"] == found.estimates[3].reason
    assert record["held_out"]["photos"] == 2
    assert record["held_out"]["accepted"] >= 1
    assert record["held_out"]["median_rotation_error_deg"] < 3.0


def remembering(trained, field):
    """A training that takes no time."""

    def train(photos):
        trained.append(photos)
        again = copy.copy(field)
        again.record = {}
        return again

    return train


def test_without_good_poses_the_field_is_that_of_the_posed_photos(supervised, split):
    posed, unposed, _ = split
    trained = []
    train = remembering(trained, supervised[0])
    field, found = self_supervise(posed, unposed.subset([3]), train, hypotheses=4)
    assert not found.poses
    assert trained[-1] is posed
    assert field.record["self_supervision"]["accepted"] == 0


def test_a_field_that_does_not_find_its_own_photos_is_not_believed(supervised, split):
    posed, unposed, _ = split
    # photos whose poses are those of others: nothing that is held out is found where it is said
    shifted = np.roll(posed.camera_from_object, 1, axis=0)
    train = remembering([], supervised[0])
    posed = replace(posed, camera_from_object=shifted)
    _, found = self_supervise(posed, unposed.subset([0]), train, hypotheses=4)
    assert not found.poses
    assert found.estimates[0].reason.startswith("none of 2 held-out photos is found")


def test_what_cannot_be_done_is_said(split):
    posed, unposed, _ = split

    def never(photos):
        raise AssertionError("trained")

    with pytest.raises(FieldError, match=r"without poses are 40x30 pixels, those with poses 80x60"):
        self_supervise(posed, unposed.resized(2), never)
    with pytest.raises(
        FieldError, match=r"with poses have masks, those without have none.*--background"
    ):
        self_supervise(posed, replace(unposed, alpha=None), never)
    with pytest.raises(FieldError, match=r"3 photos with poses are too few.*at least 4"):
        self_supervise(posed.subset([0, 1, 2]), unposed, never)


def test_a_photo_without_start_is_refused(supervised, split):
    with pytest.raises(FieldError, match="no pose to start from"):
        PoseSearch(supervised[0], split[0]).find(next(iter(split[1])), [])


def test_poses_in_a_scene_are_compared_by_cameras():
    room = painted_room(half=(1.6, 1.2, 0.9), voxel=0.05)
    room.contraction = Contraction((0.1, 0.0, 0.0), 2.0)
    camera = posed_scene.pinhole((96, 128), 90.0)
    truth = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.2], [0, 0, 0, 1.0]])
    view = View("room", photo(room, truth, camera)[0], None, None, camera.intrinsics, truth)
    search = PoseSearch(room, stack([view], 1))
    np.testing.assert_allclose(search.middle, [-0.2, 0.0, 0.0], atol=1e-9)
    assert 1.2 < search.diameter < 2.2  # the walls are 0.9 to 1.8 away
    found = search.find(view, [perturbed_camera(truth, np.random.default_rng(1), 15.0)])
    turn, shift = pose_error(found.camera_from_object, truth, search.middle)
    assert np.degrees(turn) < 0.5 and shift < 0.02
    assert 0.0 < found.sigma < np.radians(3.0)


def test_photos_without_masks_are_put_in_front_of_one_colour(split):
    posed, unposed, _ = split
    bare = replace(unposed, alpha=None)
    posed, bare = alike(posed, bare, (1.0, 1.0, 1.0))
    assert posed.alpha is None and bare.alpha is None
    assert (posed.images[0, 0, 0] == 255).all()
    np.testing.assert_array_equal(bare.images, unposed.images)


def test_joining_keeps_which_pixels_count(split):
    posed, unposed, truths = split
    weight = np.ones(unposed.images.shape[:3], bool)
    weight[1, :5] = False
    both = joined(posed, replace(unposed, weight=weight), {1: truths[1]})
    assert both.weight[:-1].all() and not both.weight[-1, :5].any()
    np.testing.assert_array_equal(both.camera_from_object[-1], truths[1])
    assert len(both.names) == len(both.alpha) == len(both.intrinsics) == len(posed) + 1


def test_the_limit_follows_what_is_believed():
    pose = np.eye(4)
    clear = [Estimate("a", pose, rms, 0.2, 0.01) for rms in (0.03, 0.04, 0.05)]
    doubtful = [Estimate("b", pose, 0.5, 0.9, 0.01), Estimate("c", pose, 0.5, 0.1, 1.0)]
    assert rms_limit([*clear, *doubtful], [0.04]) == pytest.approx(1.5 * 0.04)
    assert rms_limit(doubtful, [0.1]) == pytest.approx(0.15)


def test_starts_are_far_from_each_other():
    poses = posed_scene.orbit(40)
    poses = np.concatenate([poses, poses[:20]])  # twenty of them twice
    chosen = farthest_apart(poses, 30, np.zeros(3))
    assert len(set(chosen)) == 30
    different = {tuple(poses[i].ravel()) for i in chosen}
    assert len(different) == 30
    np.testing.assert_array_equal(farthest_apart(poses, 60, np.zeros(3)), np.arange(60))


def test_an_eighth_is_held_out():
    assert len(held_out(4)) == 1 and len(held_out(8)) == 2 and len(held_out(40)) == 5
    assert len(held_out(1000)) == 8
    assert held_out(1000).min() > 0 and held_out(1000).max() < 1000


def run(*arguments):
    return CliRunner().invoke(app, ["field", "train", *map(str, arguments), "--device", "cpu"])


def test_command_uses_photos_without_poses_and_can_be_resumed(photos, scene, tmp_path, monkeypatch):
    folder, out = tmp_path / "more", tmp_path / "balls.safetensors"
    posed_scene.write_unposed(folder, photos.camera_from_object[list(UNPOSED)])
    arguments = (scene, "--out", out, "--steps", 40, "--unposed", folder)
    step, calls = GridTraining.step, []

    def interrupted(self):
        calls.append(len(calls))
        if len(calls) == 60:  # in the second training
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(GridTraining, "step", interrupted)
    result = run(*arguments)
    assert result.exit_code == 130 and "--resume" in result.stderr
    found = out.with_suffix(".training") / field_training.FOUND
    assert found.is_file() and not out.exists()
    other = run(*arguments[:-1], scene / "test", "--resume")
    assert other.exit_code == 2 and "other photos" in other.stderr
    calls.clear()
    result = run(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    assert len(calls) == 40  # the first training was not repeated
    assert "3 of 3 photos without poses used" in result.stdout
    record = load_field(out).record
    assert record["self_supervision"]["accepted"] == 3
    assert record["photos"] == 20 + 3
    assert not found.parent.exists()


def test_command_says_in_one_line_what_is_wrong(scene, tmp_path):
    out = tmp_path / "balls.safetensors"
    result = run(scene, "--out", out, "--unposed", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines() == [
        f"pose-refiner: {tmp_path} has no pictures (.png, .jpg, .jpeg, .tif, .tiff, .bmp, .webp)"
    ]
    assert not out.exists()


def test_table_of_shares_of_poses(photos, scene):
    test = load_posed_images(scene, "test")
    table = label_shares(
        photos, test, (1.0, 0.6), lambda p: train_grid(p, QUICK), starts="perturbed"
    )
    whole, part = json.loads(json.dumps(table))["rows"]
    assert whole["labelled"] == 20 and whole["psnr_with"] is None
    assert part["labelled"] == 12 and part["estimated"] == 8
    assert part["kept"] >= 6 and part["kept_right"] >= 6
    assert part["median_rotation_error_deg"] < 2.0
    assert part["psnr_with"] > part["psnr_without"]
    assert "another pose costs less than 2 times as much" in table["rule"]
    with pytest.raises(ValueError, match="posed or perturbed"):
        label_shares(photos, test, starts="anywhere")
