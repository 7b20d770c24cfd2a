# SPDX-License-Identifier: Apache-2.0
"""A mesh that stands for a category: the encoder's opinion is held against the outline's."""

import numpy as np
import pytest
from shapes import angle_deg, ell, guesses, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.encoder.category import category_prior, known_as_category
from pose_refiner_ros.encoder.inference import Estimate, PoseHypothesis
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import restart_angle

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.05, -0.04, 0.6))


def covariance(metres: float, radians: float) -> np.ndarray:
    return np.diag([metres**2] * 3 + [radians**2] * 3)


def estimate(*poses, metres=0.02, radians=0.05, distance_sigma=0.1) -> Estimate:
    hypotheses = [
        PoseHypothesis(one, 1 / len(poses), covariance(metres, radians), distance_sigma)
        for one in poses
    ]
    return Estimate({"ell": 1.0}, hypotheses)


def wider(mesh: Mesh) -> Mesh:
    """Of the category and yet another object: broader, lower."""
    return Mesh(mesh.vertices * (1.12, 1.1, 0.93), mesh.faces)


@pytest.fixture(scope="module")
def seen():
    return observe_mask(silhouette(wider(ell()), TRUTH, CAMERA), 1, CAMERA)


@pytest.fixture(scope="module")
def refiner():
    return Refiner([model("ell", ell())], capacity=8)


def test_the_prior_is_the_nearest_hypothesis(seen):
    behind = turned(TRUTH, (0, 3.0, 0))
    said = estimate(behind, TRUTH)
    prior = category_prior(seen, said, turned(TRUTH, (0.2, 0.1, 0)))
    np.testing.assert_array_equal(prior.reference_from_object, TRUTH)
    np.testing.assert_array_equal(prior.information, prior.information.T)
    sigma = np.sqrt(np.diag(prior.information))
    assert sigma[0] / sigma[3] == pytest.approx(0.05 / 0.02)  # as the covariance, but for the unit
    unsure = category_prior(seen, estimate(TRUTH, metres=0.2, radians=0.5), TRUTH)
    np.testing.assert_allclose(unsure.information, prior.information / 100, rtol=1e-9)


def test_the_prior_pulls_and_a_surer_one_pulls_more(seen, refiner):
    mean = turned(TRUTH, (0.0, 0.25, 0.0))
    ends = []
    for radians in (5.0, 0.2, 0.01):
        said = estimate(mean, metres=20 * radians, radians=radians)
        prior = category_prior(seen, said, mean)
        (found,) = refiner.refine([[seen]], [[Hypothesis("ell", mean, prior)]], restart=False)
        ends.append(angle_deg(found[0].reference_from_object, mean))
        fits = found[0].fits
        assert fits["prior"].cost >= 0
        assert found[0].cost == pytest.approx(fits["silhouette"].cost + fits["prior"].cost)
    (alone,) = refiner.refine([[seen]], [guesses("ell", mean)], restart=False)
    free = angle_deg(alone[0].reference_from_object, mean)
    assert ends[0] == pytest.approx(free, abs=0.5)  # an encoder that knows nothing
    assert ends[0] > ends[1] > ends[2]
    assert ends[2] < 0.5 < free


def test_a_prior_at_the_truth_keeps_a_wrong_mesh_upright(seen, refiner):
    start = turned(TRUTH, (0.05, -0.1, 0.05))
    (free,) = refiner.refine([[seen]], [guesses("ell", start)], restart=False)
    prior = category_prior(seen, estimate(TRUTH), start)
    (held,) = refiner.refine([[seen]], [[Hypothesis("ell", start, prior)]], restart=False)
    error = angle_deg(held[0].reference_from_object, TRUTH)
    assert error < angle_deg(free[0].reference_from_object, TRUTH) and error < 3.0


def test_what_is_tried_again_is_held_to_the_prior_as_well(seen, refiner):
    """Otherwise a restart would seem to be better only because it is asked for less."""
    mean = turned(TRUTH, (0.0, 0.25, 0.0))
    prior = category_prior(seen, estimate(mean, metres=0.01, radians=0.01), mean)
    start = Hypothesis("ell", mean, prior)
    (once,) = refiner.refine([[seen]], [[start]], restart=False)
    (again,) = refiner.refine([[seen]], [[start]], restart=True)
    assert restart_angle(once[0], [seen]) is not None
    assert all("prior" in one.fits for one in again)
    assert again[0].cost <= once[0].cost
    assert angle_deg(again[0].reference_from_object, mean) < 1.0


def refined(covariance_: np.ndarray) -> Hypothesis:
    return Hypothesis("ell", TRUTH, covariance=covariance_)


def test_the_distance_is_as_unsure_as_the_objects_size():
    fit = covariance(1e-4, 1e-3)  # an outline that fits tells everything but the size
    known = known_as_category(refined(fit), estimate(TRUTH, distance_sigma=0.08), np.zeros(3), 1.0)
    np.testing.assert_allclose(known, known.T)
    assert (np.linalg.eigvalsh(known) > 0).all()
    ray = TRUTH[:3, 3] / np.linalg.norm(TRUTH[:3, 3])
    along = np.sqrt(ray @ known[:3, :3] @ ray)
    assert along == pytest.approx(0.08 * np.linalg.norm(TRUTH[:3, 3]), rel=0.01)
    across = np.linalg.svd(np.eye(3) - np.outer(ray, ray))[0][:, :2]
    assert np.sqrt(np.linalg.eigvalsh(across.T @ known[:3, :3] @ across)).max() < 1.1e-4
    np.testing.assert_allclose(known[3:, 3:], fit[3:, 3:], rtol=0.01)


def test_two_opinions_are_surer_than_one():
    outline = np.diag([1e-4, 1e-4, 1e-2, 1e-2, 1e-2, 100.0])  # an axis that no outline fixes
    known = known_as_category(
        refined(outline), estimate(TRUTH, distance_sigma=1e-6), np.zeros(3), 1.0
    )
    said = covariance(0.02, 0.05)
    assert (np.diag(known) <= np.minimum(np.diag(outline), np.diag(said)) + 1e-9).all()
    assert known[5, 5] == pytest.approx(0.05**2, rel=1e-3)
