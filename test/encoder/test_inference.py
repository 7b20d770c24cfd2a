# SPDX-License-Identifier: Apache-2.0
"""The encoder at work on what is seen."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from shapes import ell, pinhole_camera, pose, silhouette

from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder, PoseHypothesis
from pose_refiner_ros.encoder.network import Encoder, EncoderError, EncoderSettings
from pose_refiner_ros.encoder.pose_heads import camera_from_ray
from pose_refiner_ros.encoder.weights import save_encoder
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.refinement.observation import observe_mask

SETTINGS = EncoderSettings(("a", "b", "c"), size=32, channels=(4, 4, 4, 4, 4), dense=8)
CAMERA = pinhole_camera(256, 300.0)
FISHEYE = Camera(
    np.array([[120.0, 0, 127.5], [0, 120.0, 127.5], [0, 0, 1]]), (256, 256), "equidistant",
    np.array([0.02, -0.01, 0.0, 0.0]),
)  # fmt: skip
POSES = [
    pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6)),
    pose((-0.6, 0.2, 0.4), (0.15, 0.1, 0.8)),
    pose((1.6, 0.2, 0.4), (-0.25, 0.1, 0.7)),
]


@pytest.fixture(scope="module")
def encoder() -> PoseEncoder:
    torch.manual_seed(0)
    return PoseEncoder(Encoder(SETTINGS))


@pytest.fixture(scope="module")
def observations() -> list:
    masks = [silhouette(ell(), one, CAMERA) for one in POSES]
    seen = [observe_mask(mask, 1, CAMERA) for mask in masks]
    aside = np.zeros((256, 256), np.uint8)
    aside[20:50, 200:240] = 1
    return [*seen, observe_mask(aside, 1, FISHEYE)]


def test_a_batch_is_each_alone(encoder, observations):
    together = encoder.estimate(observations)
    assert len(together) == len(observations)
    for seen, estimate in zip(observations, together, strict=True):
        (alone,) = encoder.estimate([seen])
        assert estimate.class_probabilities == pytest.approx(alone.class_probabilities, abs=1e-5)
        for a, b in zip(estimate.hypotheses, alone.hypotheses, strict=True):
            np.testing.assert_allclose(
                a.camera_from_object, b.camera_from_object, rtol=1e-4, atol=1e-5
            )


def test_nothing_seen_is_nothing_said(encoder):
    assert encoder.estimate([]) == []


def test_estimates_are_whole(encoder, observations):
    for estimate in encoder.estimate(observations):
        assert tuple(estimate.class_probabilities) == encoder.classes == ("a", "b", "c")
        assert sum(estimate.class_probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert estimate.best_class in encoder.classes
        weights = [h.weight for h in estimate.hypotheses]
        assert sum(weights) == pytest.approx(1.0, abs=1e-5) and weights == sorted(weights)[::-1]
        for hypothesis in estimate.hypotheses:
            T = hypothesis.camera_from_object
            assert T.dtype == np.float64 and T.shape == (4, 4)
            np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-5)
            np.testing.assert_array_equal(T[3], [0, 0, 0, 1])
            np.testing.assert_allclose(
                hypothesis.covariance, hypothesis.covariance.T, rtol=1e-4, atol=1e-6
            )
            assert (np.linalg.eigvalsh(hypothesis.covariance) > 0).all()
            assert hypothesis.distance_sigma > 0


def test_the_object_lies_where_its_mask_is(encoder, observations):
    """Untrained, an encoder says the middle of the window, give or take: also for a fisheye's crop
    that looks aside, whose poses are turned back to the camera."""
    for seen, estimate in zip(observations, encoder.estimate(observations), strict=True):
        camera = seen.crop.camera
        mask = seen.crop.crop_from_camera
        in_crop = mask @ estimate.hypotheses[0].camera_from_object[:3, 3]
        pixel = seen.crop.pinhole[:2] * in_crop[:2] / in_crop[2] + seen.crop.pinhole[2:]
        ys, xs = np.nonzero(seen.mask)
        assert np.abs(pixel - (xs.mean(), ys.mean())).max() < 0.3 * seen.crop.size
        assert np.isfinite(camera.project(estimate.hypotheses[0].camera_from_object[:3, 3])).all()
    assert not np.allclose(observations[-1].crop.crop_from_camera, np.eye(3))


def test_covariance_is_that_of_the_errors_it_stands_for(encoder, observations):
    """Poses drawn from the head's error model: offsets in half windows, log distance, rotation
    about the axes of the window's ray, all of Laplace's law."""
    seen = observations[2]
    small = PoseEncoder(Encoder(SETTINGS))
    head = small.encoder.pose_head
    with torch.no_grad():
        rows = torch.arange(2 * 16).view(2, 16)[:, -6:]
        head.linear.weight[rows.flatten()] = 0.0
        head.linear.bias[rows] = torch.tensor([-4.0, -3.5, -4.5, -3.0, -4.0, -3.4])
    (estimate,) = small.estimate([seen])
    hypothesis = estimate.hypotheses[0]
    T = hypothesis.camera_from_object
    _, pinhole = small.windows([seen])
    turn, _, half = (part[0].double().numpy() for part in camera_from_ray(pinhole, 32))

    rng = np.random.default_rng(0)
    scale = np.exp([-4.0, -3.5, -4.5, -3.0, -4.0, -3.4])
    errors = rng.laplace(scale=scale, size=(60_000, 6))
    z = T[2, 3] * np.exp(errors[:, 2])
    xy = T[:2, 3] / T[2, 3] + errors[:, :2] * half
    t = np.column_stack([xy * z[:, None], z])
    w = Rotation.from_matrix(turn @ Rotation.from_rotvec(errors[:, 3:]).as_matrix() @ turn.T)
    twists = np.column_stack([t - T[:3, 3], w.as_rotvec()])
    drawn = np.cov(twists.T)
    sigma = np.sqrt(np.diag(drawn))
    np.testing.assert_allclose(np.sqrt(np.diag(hypothesis.covariance)), sigma, rtol=0.04)
    shape = np.outer(sigma, sigma)
    np.testing.assert_allclose(hypothesis.covariance / shape, drawn / shape, atol=0.04)
    assert hypothesis.distance_sigma == pytest.approx(np.std(errors[:, 2]), rel=0.04)


def test_nearest_and_share():
    poses = [pose((0, angle, 0)) for angle in (0.0, 3.0)]
    hypotheses = [PoseHypothesis(poses[i], w, np.eye(6), 0.1) for i, w in ((1, 0.9), (0, 0.1))]
    estimate = Estimate({"a": 0.3, "b": 0.7}, hypotheses)
    assert estimate.best_class == "b"
    assert estimate.nearest(pose((0, 0.4, 0))) is hypotheses[1]
    assert estimate.nearest(pose((0, 2.4, 0), (9, 9, 9))) is hypotheses[0]
    assert estimate.share_of(poses[1]) == pytest.approx(0.02 + 0.98 * 0.9)
    nothing = Estimate({"a": 1.0}, [PoseHypothesis(poses[0], 0.0, np.eye(6), 0.1)])
    assert nothing.share_of(poses[0]) > 0


def test_an_encoder_of_whole_photos_is_refused():
    with pytest.raises(EncoderError, match="one camera only"):
        PoseEncoder(Encoder(dataclasses.replace(SETTINGS, window="image")))


def test_an_encoder_that_looks_at_colours_needs_the_photo(observations):
    colour = PoseEncoder(Encoder(dataclasses.replace(SETTINGS, input="rgb_mask")))
    with pytest.raises(EncoderError, match="none came"):
        colour.estimate(observations)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*seen.mask.shape, 3), np.uint8) for seen in observations]
    dark = [
        dataclasses.replace(seen, rgb=0 * p) for seen, p in zip(observations, pictures, strict=True)
    ]
    bright = [
        dataclasses.replace(seen, rgb=p) for seen, p in zip(observations, pictures, strict=True)
    ]
    assert colour.windows(bright)[0].shape[1] == 5
    a, b = colour.estimate(dark)[0], colour.estimate(bright)[0]
    assert a.class_probabilities != b.class_probabilities


def test_from_a_file(encoder, observations, tmp_path):
    save_encoder(encoder.encoder, tmp_path / "e.safetensors", {"steps": 5})
    again = PoseEncoder.load(tmp_path / "e.safetensors")
    assert again.record == {"steps": 5} and again.classes == encoder.classes
    a, b = (one.estimate(observations[:1])[0].class_probabilities for one in (encoder, again))
    assert a == pytest.approx(b, abs=1e-2)


def test_the_papers_head_has_one_hypothesis(observations):
    settings = dataclasses.replace(SETTINGS, pose_head="euler_cosine")
    (estimate,) = PoseEncoder(Encoder(settings)).estimate(observations[:1])
    (hypothesis,) = estimate.hypotheses
    assert hypothesis.weight == 1.0 and np.isfinite(hypothesis.covariance).all()
