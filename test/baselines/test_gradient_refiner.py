# SPDX-License-Identifier: Apache-2.0
"""The paper's online refinement on observations: photos' frames and sizes come out right."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from shapes import angle_deg, box, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.baselines.gradient_refiner import GradientRefiner
from pose_refiner_ros.encoder.inference import UNLIKELY, PoseEncoder
from pose_refiner_ros.encoder.network import Encoder, EncoderSettings
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.signed_distance import shrink_pinhole
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.05, -0.04, 0.6))
ELL = model("ell", ell())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def refiner() -> GradientRefiner:
    return GradientRefiner(size=64)


@pytest.fixture(scope="module")
def seen():
    return observe_mask(silhouette(ell(), TRUTH, CAMERA), 1, CAMERA)


@pytest.fixture
def encoder() -> PoseEncoder:
    torch.manual_seed(0)
    settings = EncoderSettings(("ell",), size=32, channels=(4, 4, 4, 4, 4), dense=8)
    return PoseEncoder(Encoder(settings))


def overlap(seen, camera_from_object: np.ndarray) -> float:
    """IoU of the L at a pose with the mask in the crop, over the known pixels."""
    drawn = draw(
        MeshBatch([ell()]), [0], camera_from_object[None], seen.crop.pinhole, seen.crop.size
    )[0]
    known = np.ones_like(drawn) if seen.unknown is None else 1 - seen.unknown
    return (drawn & seen.mask).sum() / ((drawn | seen.mask) & known).sum()


def test_poses_get_better(refiner, seen):
    starts = [
        turned(TRUTH, turn, (0.006, -0.01, 0.03)) for turn in ((0.2, 0, 0), (0, -0.2, 0), (0, 0, 0))
    ]
    result = refiner.refine_poses(seen, ELL, starts)
    assert result.camera_from_object.shape == (3, 4, 4)
    for start, found in zip(starts, result.camera_from_object.numpy(), strict=True):
        assert overlap(seen, found) > max(0.9, overlap(seen, start))


@pytest.mark.parametrize("size", [32, 64, 128])
def test_target_and_camera_go_together(seen, size):
    """The mask that is aimed at, and what the mesh covers when drawn eight times as fine."""
    mask, weight, pinhole = GradientRefiner(size=size)._target(seen)
    assert mask.shape == weight.shape == (size, size) and weight.mean() > 0.95
    fine = draw(MeshBatch([ell()]), [0], TRUTH[None], shrink_pinhole(pinhole, 1 / 8), 8 * size)[0]
    expected = fine.reshape(size, 8, size, 8).mean((1, 3))
    pixels = np.indices(mask.shape).reshape(2, -1)
    middles = [pixels @ picture.ravel() / picture.sum() for picture in (mask, expected)]
    np.testing.assert_allclose(*middles, atol=0.08)
    assert mask.sum() == pytest.approx(expected.sum(), rel=0.01)


def test_what_another_object_hides_does_not_pull(refiner):
    whole = silhouette(ell(), TRUTH, CAMERA)
    _, xs = np.nonzero(whole)
    hidden = whole.copy()
    hidden[:, int(np.quantile(xs, 0.7)) :] *= 2
    seen = observe_mask(hidden, 1, CAMERA)
    _, weight, _ = refiner._target(seen)
    assert weight.min() == 0.0 and 0.8 < weight.mean() < 1.0
    found = refiner.refine_poses(seen, ELL, [TRUTH]).camera_from_object[0].numpy()
    assert angle_deg(found, TRUTH) < 8.0  # the soft pictures of few large triangles allow no less
    blind = dataclasses.replace(seen, unknown=None)
    misled = refiner.refine_poses(blind, ELL, [TRUTH]).camera_from_object[0].numpy()
    assert overlap(seen, found) > overlap(seen, misled)


def test_the_encoder_is_left_as_it_was(refiner, seen, encoder):
    before = copy.deepcopy(encoder.encoder.state_dict())
    results = refiner.refine_encoder(seen, ELL, encoder)
    weights = [h.weight for h in encoder.estimate([seen])[0].hypotheses]
    assert len(results) == sum(weight >= UNLIKELY for weight in weights)
    for result in results:
        assert result.camera_from_object.shape == (1, 4, 4)
        assert result.camera_from_object.isfinite().all()
        assert result.losses.min() <= result.losses[0]
    # the likelier hypothesis first
    np.testing.assert_allclose(
        results[0].poses[0, 0].numpy(),
        encoder.estimate([seen])[0].hypotheses[0].camera_from_object,
        atol=1e-4,
    )
    for name, value in encoder.encoder.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not encoder.encoder.training


def test_each_object_is_drawn_by_its_own_mesh(refiner, seen):
    other = model("box", box())
    a = refiner.refine_poses(seen, ELL, [TRUTH]).losses[0]
    b = refiner.refine_poses(seen, other, [TRUTH]).losses[0]
    again = refiner.refine_poses(seen, ELL, [TRUTH]).losses[0]
    assert b > a and torch.equal(a, again)
