# SPDX-License-Identifier: Apache-2.0
"""Training of the voxel grid on three balls."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import numpy as np
import posed_scene
import pytest
import torch
import warp as wp

from pose_refiner_ros.datasets.posed_images import PosedImages, load_posed_images
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.grid_march import march_kernels
from pose_refiner_ros.fields.picture import render_picture
from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.learning import grid_training
from pose_refiner_ros.learning.field_photos import field_psnr
from pose_refiner_ros.learning.grid_nodes import first_nodes
from pose_refiner_ros.learning.grid_training import GridOptions, GridTraining, train_grid
from pose_refiner_ros.learning.grid_training_kernels import training_kernels
from pose_refiner_ros.learning.training_loop import run
from pose_refiner_ros.learning.training_rays import RayOrder

QUICK = GridOptions(steps=60, rays=4096, degree=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """(training, test) with masks: every fifth of 30 photos is for testing."""
    folder = tmp_path_factory.mktemp("balls")
    posed_scene.write_nerf_synthetic(folder, posed_scene.orbit(30))
    posed = load_posed_images(folder)
    test = np.arange(0, 30, 5)
    return posed.subset(np.setdiff1d(np.arange(30), test)), posed.subset(test)


def in_front_of(posed, colour):
    """The same photos without masks, over a colour, in a box that is wider than the balls."""
    alpha = posed.alpha[..., None] / 255.0
    images = np.rint(alpha * posed.images + (1 - alpha) * 255 * np.array(colour)).astype(np.uint8)
    return replace(posed, images=images, alpha=None, bounds=1.2 * posed.bounds)


@pytest.fixture
def one_lane(monkeypatch):
    monkeypatch.setattr(grid_training, "cpu_threads", lambda: 1)


def test_a_field_shows_photos_that_it_has_not_seen(photos):
    training, test = photos
    shown = []
    field = train_grid(training, QUICK, progress=lambda *figures: shown.append(figures))
    assert field_psnr(field, test).mean() > 27.0
    assert field.background is None
    assert shown[-1][:2] == (60, 60)
    assert shown[-1][2]["psnr"] > shown[0][2]["psnr"] + 5.0
    assert field.record["nodes"] == len(field.values) - 1 < 60_000
    # the balls are where they are: their middles are full, the space between them empty
    points = torch.tensor(np.vstack([posed_scene.BALLS[:, :3], [[0.15, -0.15, 0.1]]])).float()
    density, _ = field.query(points, torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))
    assert density[3] == 0.0
    seen = render_picture(field, test.intrinsics[0], test.camera_from_object[0], test.size)
    inside = test.alpha[0].reshape(-1) == 255
    assert seen.opacity[torch.from_numpy(inside)].mean() > 0.95


def test_a_resumed_training_ends_like_one_without_a_break(photos, one_lane):
    options = replace(QUICK, steps=12, rays=1024)
    whole = train_grid(photos[0], options)
    first = GridTraining(photos[0], options)
    for _ in range(7):
        first.step()
    stored = io.BytesIO()
    torch.save(first.state(), stored)
    stored.seek(0)
    state = torch.load(stored, weights_only=True)
    resumed = GridTraining(photos[0], options, resume_state=state)
    run(resumed)
    again = resumed.finish()
    assert np.array_equal(again.links, whole.links)
    assert np.allclose(again.values, whole.values, rtol=1e-4, atol=1e-4)
    with pytest.raises(FieldError, match="with rays 1024, not 512"):
        GridTraining(photos[0], replace(options, rays=512), resume_state=state)
    with pytest.raises(FieldError, match="cannot be used"):
        GridTraining(photos[0], options, resume_state={"options": state["options"]})


def test_without_masks_a_known_background_stays_empty(photos):
    colour = (0.9, 0.8, 0.1)
    training, test = (in_front_of(posed, colour) for posed in photos)
    field = train_grid(training, replace(QUICK, background=colour))
    assert field.background.tolist() == list(colour)
    assert field_psnr(field, test).mean() > 25.0
    seen = render_picture(field, test.intrinsics[0], test.camera_from_object[0], test.size)
    outside = photos[1].alpha[0].reshape(-1) == 0
    assert seen.opacity[torch.from_numpy(outside)].mean() < 0.1


def test_without_masks_a_plain_background_is_found(photos):
    training, test = (in_front_of(posed, (0.9, 0.8, 0.1)) for posed in photos)
    field = train_grid(training, QUICK)
    assert field.background == pytest.approx((0.9, 0.8, 0.1), abs=0.03)
    assert field_psnr(field, test).mean() > 25.0


def before_walls(count=5):
    """Photos from a row of cameras, without masks: a wall 3 m away on the left, one 12 m away on
    the right."""
    height, width, focal = 48, 64, 60.0
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    v, u = np.mgrid[:height, :width].astype(float)
    rays = np.stack([(u - K[0, 2]) / focal, (v - K[1, 2]) / focal, np.ones_like(u)], -1)
    images, poses = [], []
    for x, y in [(x, y) for x in np.linspace(-0.5, 0.5, count) for y in (-0.2, 0.2)]:
        points = np.array([x, y, 0.0]) + 3.0 * rays
        left = points[..., 0] < 0.0
        points[~left] = (np.array([x, y, 0.0]) + 12.0 * rays)[~left]
        scale = np.where(left, 4.0, 1.0)[..., None]
        waves = np.sin(scale * points + [0, 1, 2]), np.sin(0.618 * scale * points[..., [0, 0, 1]])
        images.append(np.rint(127.5 + 60.0 * (waves[0] + waves[1])).astype(np.uint8))
        poses.append(rigid(np.eye(3), (-x, -y, 0.0)))
    names = [str(i) for i in range(len(images))]
    everywhere = np.array([[-20.0] * 3, [20.0] * 3])
    intrinsics = np.repeat(K[None], len(images), axis=0)
    return PosedImages(names, np.stack(images), None, intrinsics, np.stack(poses), everywhere)


@pytest.mark.parametrize("bounded", [False, True])
def test_photos_without_masks_are_learned_to_their_edges(bounded):
    """What is near and what is far, from one side: nothing of the photos is thrown away."""
    posed = before_walls()
    training, test = posed.subset([i for i in range(10) if i != 4]), posed.subset([4])
    if bounded:
        training = replace(training, near_far=np.tile([2.0, 20.0], (len(training), 1)))
    field = train_grid(training, replace(QUICK, steps=300))
    assert field.background is None and field.contraction is not None
    assert field_psnr(field, test).mean() > 22.0
    seen = render_picture(field, test.intrinsics[0], test.camera_from_object[0], test.size)
    assert seen.opacity.mean() > 0.95
    if bounded:  # else much of these walls may be anywhere
        depth = seen.depth.reshape(test.size)
        assert depth[:, :15].median() == pytest.approx(3.3, abs=0.6)
        assert depth[:, -15:].median() > 8.0  # its parallax is of a few pixels
    header = {"settings": asdict(field.settings), "background": None, "record": {}}
    again = type(field).from_state(field.state(), header)
    assert again.contraction == field.contraction


def test_exposures_of_photos_are_found(photos):
    """From photos each in its own exposure comes a field as from photos in one."""
    training, test = photos
    rng = np.random.default_rng(0)
    gain = rng.uniform(0.6, 1.2, (len(training), 1, 1, 3))
    spoiled = np.clip(gain * training.images, 0, 255).astype(np.uint8)
    exposed = replace(training, images=spoiled)
    options = replace(QUICK, steps=150)
    fits = [GridTraining(exposed, replace(options, exposure=on)) for on in (False, True)]
    for fit in fits:
        run(fit)
    without, found = (field_psnr(fit.finish(), test).mean() for fit in fits)
    relative = gain[:, 0, 0] / gain[:, 0, 0].mean(axis=0)
    assert np.corrcoef(fits[1]._photos.gain.numpy().ravel(), relative.ravel())[0, 1] > 0.9
    assert (fits[0]._photos.gain.numpy() == 1.0).all()
    mean = replace(test, images=np.rint(gain.mean(axis=0) * test.images).astype(np.uint8))
    without, found = (field_psnr(fit.finish(), mean).mean() for fit in fits)
    assert found > without + 1.0


def test_photos_of_one_exposure_have_none(photos):
    training = GridTraining(photos[0], QUICK)
    run(training)
    assert (training._photos.gain.numpy() == 1.0).all()
    assert not training._photos.bias.numpy().any()


def test_noise_of_photos_is_not_learned(photos):
    training, test = photos
    noise = np.random.default_rng(1).normal(0.0, 40.0, training.images.shape)
    noisy = replace(training, images=np.clip(training.images + noise, 0, 255).astype(np.uint8))
    few = noisy.subset(range(0, len(noisy), 3))
    rough, smooth = (
        field_psnr(train_grid(few, replace(QUICK, steps=150, smoothing=share)), test).mean()
        for share in (0.0, 0.03)
    )
    assert smooth > rough + 0.3


def test_nothing_grows_before_a_camera(photos):
    training = in_front_of(photos[0], (0.9, 0.8, 0.1))
    training.bounds = np.array([[-1.5] * 3, [1.5] * 3])
    occupied, origin = first_nodes(training, 0.05)
    nodes = origin + 0.05 * np.argwhere(occupied)
    to_cameras = np.linalg.norm(nodes[:, None] - training.camera_positions, axis=-1)
    assert 0.1 < to_cameras.min() < 0.2
    assert occupied.mean() > 0.2


def test_what_cannot_be_trained_is_refused(photos):
    training = photos[0]
    with pytest.raises(FieldError, match="too few"):
        GridTraining(training.subset([0]), QUICK)
    with pytest.raises(FieldError, match=r"voxel of 5 m does not suit"):
        GridTraining(training, replace(QUICK, voxel=5.0))
    with pytest.raises(FieldError, match="degree is 4"):
        GridOptions(degree=4)
    with pytest.raises(FieldError, match="steps is 0"):
        GridOptions(steps=0)
    empty = replace(training, alpha=np.zeros_like(training.alpha))
    with pytest.raises(FieldError, match="mask"):
        GridTraining(empty, QUICK)


def test_batches_cover_what_counts_and_come_again(photos):
    posed = photos[0]
    weight = np.ones(posed.images.shape[:3], bool)
    weight[:, :, :40] = False
    posed = replace(posed, weight=weight)
    order = RayOrder(posed, 500, margin=3, seed=4)
    near = (posed.alpha > 0) & weight
    batches = [order.batch(step) for step in range(60)]
    drawn = np.concatenate(batches)
    assert weight.reshape(-1)[drawn].all()
    assert np.isin(np.flatnonzero(near), drawn).mean() > 0.99
    assert 0.0 < order.share < 1.0
    assert np.array_equal(RayOrder(posed, 500, margin=3, seed=4).batch(41), batches[41])
    assert not np.array_equal(RayOrder(posed, 500, margin=3, seed=5).batch(41), batches[41])
    with pytest.raises(FieldError, match="all masks are empty"):
        RayOrder(replace(posed, weight=~weight & (posed.alpha == 0)), 500, margin=0, seed=0)


@pytest.mark.skipif(
    not hasattr(wp, "compile_aot_module"), reason="this Warp cannot compile ahead of time"
)
@pytest.mark.parametrize("part", ["march", "training"])
@pytest.mark.parametrize("contracted", [False, True])
def test_kernels_compile_for_a_gpu(part, contracted, tmp_path):
    degree = GridOptions().degree
    kernels = {
        "march": march_kernels(degree, contracted).values(),
        "training": training_kernels(degree, contracted).values(),
    }[part]
    for i, kernel in enumerate(kernels):
        folder = tmp_path / str(i)
        try:
            wp.compile_aot_module(kernel.module, arch=90, module_dir=folder, use_ptx=True)
        except RuntimeError as error:
            if "NVRTC" in str(error) or "CUDA compiler" in str(error):
                pytest.skip(f"no CUDA compiler here: {error}")
            raise
        (ptx,) = folder.glob("*.ptx")
        assert ".entry" in ptx.read_text()
