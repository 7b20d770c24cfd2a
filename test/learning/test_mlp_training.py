# SPDX-License-Identifier: Apache-2.0
"""A NeRF learns a scene whose truth is known; a training goes on where it was interrupted."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from analytic_field import AnalyticField, pinhole, view_from

from pose_refiner_ros.datasets.posed_images.views import PosedImages
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.mlp import MlpSettings
from pose_refiner_ros.fields.picture import picture_over, render_picture
from pose_refiner_ros.learning.field_photos import field_psnr
from pose_refiner_ros.learning.mlp_training import MlpOptions, MlpTraining, train_mlp
from pose_refiner_ros.learning.training_loop import run

SIZE = (32, 32)
SETTINGS = MlpSettings(width=32, depth=3, point_frequencies=4, direction_frequencies=1,
                       coarse_samples=10, fine_samples=10)  # fmt: skip
QUICK = MlpOptions(steps=12, rays=64, learning_rate=3e-3, log_every=4)


def photos(count: int, seed: int = 0) -> PosedImages:
    field, K = AnalyticField(background=None), pinhole(SIZE[0])
    rng = np.random.default_rng(seed)
    poses = np.stack([view_from(d) for d in rng.normal(size=(count, 3))])
    colours, alphas = [], []
    for pose in poses:
        seen = render_picture(field, K, pose, SIZE)
        colours.append((seen.colour / seen.opacity[:, None].clamp(min=1e-6)).reshape(*SIZE, 3))
        alphas.append(seen.opacity.reshape(SIZE))
    eight_bits = [
        (255 * torch.stack(x)).round().clamp(0, 255).byte().numpy() for x in (colours, alphas)
    ]
    names = [f"{i}.png" for i in range(count)]
    return PosedImages(names, *eight_bits, np.stack([K] * count), poses, field.bounds)


@pytest.fixture(scope="module")
def seen() -> PosedImages:
    return photos(12)


def test_a_scene_is_learned_from_photos(seen):
    options = MlpOptions(steps=250, rays=384, learning_rate=5e-3, log_every=50)
    shown = []
    field = train_mlp(seen, SETTINGS, options, progress=lambda *figures: shown.append(figures))

    unseen = photos(2, seed=5)
    assert field_psnr(field, unseen).min() > 25.0
    blank = field_psnr(AnalyticField(density=0.0), unseen)
    assert blank.max() < 20.0  # a white picture is not enough
    # masks are learned too: empty is empty, whatever the colour behind
    opacity = render_picture(
        field, unseen.intrinsics[0], unseen.camera_from_object[0], SIZE
    ).opacity
    error = opacity.reshape(SIZE) - torch.as_tensor(unseen.alpha[0] / 255.0)
    assert float(error.square().mean().sqrt()) < 0.06

    assert [(step, total) for step, total, _ in shown] == [(s, 250) for s in range(50, 251, 50)]
    assert shown[-1][2]["psnr"] > shown[0][2]["psnr"] + 5.0
    assert field.record["steps"] == 250 and field.record["rays"] == 250 * 384
    assert field.background is None
    assert not any(p.requires_grad for p in field.parameters())


def test_a_training_goes_on_where_it_was(seen):
    whole = train_mlp(seen, SETTINGS, QUICK)
    first = MlpTraining(seen, SETTINGS, QUICK)
    for _ in range(5):
        first.step()
    resumed = MlpTraining(seen, SETTINGS, QUICK, resume_state=saved(first.state()))
    assert resumed.done == 5
    run(resumed)
    again = resumed.finish()
    assert again.record["steps"] == 12
    for name, value in whole.state().items():
        assert np.allclose(value, again.state()[name], atol=1e-6)


def saved(state: dict) -> dict:
    """As it comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_pixels_that_do_not_count_teach_nothing(seen):
    weight = np.zeros((len(seen), *SIZE), bool)
    weight[:, 10:20, 5:25] = True
    hidden = dataclasses.replace(seen, images=seen.images.copy(), weight=weight)
    hidden.images[~weight] = 77
    clean = dataclasses.replace(seen, weight=weight)
    fields = [train_mlp(p, SETTINGS, QUICK) for p in (hidden, clean)]
    assert all(np.array_equal(fields[0].state()[n], v) for n, v in fields[1].state().items())
    with pytest.raises(FieldError, match="no pixel of the photos counts"):
        MlpTraining(dataclasses.replace(seen, weight=weight & False), SETTINGS, QUICK)


def test_what_is_behind_is_known_only_if_it_was_said(seen):
    white = dataclasses.replace(QUICK, background=(1.0, 1.0, 1.0), steps=1)
    assert train_mlp(seen, SETTINGS, white).background.tolist() == [1, 1, 1]
    without = dataclasses.replace(seen, alpha=None)
    one = dataclasses.replace(QUICK, steps=1)
    assert train_mlp(without, SETTINGS, one).background.tolist() == [0, 0, 0]


def test_pictures_are_put_in_front_of_a_colour(seen):
    field = AnalyticField(background=(0.0, 1.0, 0.0))
    K, pose = seen.intrinsics[0], seen.camera_from_object[0]
    own = picture_over(field, K, pose, SIZE)
    assert own.shape == (*SIZE, 3) and own[0, 0] == pytest.approx([0, 1, 0], abs=0.01)
    assert picture_over(field, K, pose, SIZE, (1, 0, 0))[0, 0] == pytest.approx([1, 0, 0], abs=0.01)
    assert field_psnr(field, seen).min() > 45.0  # its own photos, of eight bits


def test_what_cannot_be_trained_is_refused(seen):
    with pytest.raises(FieldError, match="1 photo is too few"):
        MlpTraining(seen.subset([0]), SETTINGS, QUICK)
    state = MlpTraining(seen, SETTINGS, QUICK).state()
    wider = dataclasses.replace(SETTINGS, width=40)
    with pytest.raises(FieldError, match="the checkpoint is of a field with settings"):
        MlpTraining(seen, wider, QUICK, resume_state=state)
    with pytest.raises(FieldError, match="the checkpoint cannot be used"):
        MlpTraining(seen, SETTINGS, QUICK, resume_state={"step": 3})
    with pytest.raises(FieldError, match=r"diverged: its error is .* at step \d+; lower its rates"):
        train_mlp(seen, SETTINGS, dataclasses.replace(QUICK, learning_rate=1e30))
    with pytest.raises(FieldError, match="steps is 0"):
        MlpOptions(steps=0)
