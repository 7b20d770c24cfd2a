# SPDX-License-Identifier: Apache-2.0
"""Several cameras see one object: pose and covariance are told in the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from painted import painted_block, photo
from shapes import (
    angle_deg,
    box,
    ell,
    guesses,
    model,
    pinhole_camera,
    pose,
    random_rotation,
    random_turn,
    shift_between,
    silhouette,
    turned,
)

from pose_refiner_ros.evaluation.mask_noise import flip_border
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import in_axes, inverse, rigid, twist_between
from pose_refiner_ros.objects.symmetry import Axis, Symmetries
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_image, observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.terms.prior import PosePrior
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.settings import Settings

CAMERA = pinhole_camera(256, 300.0)
SIDE_CAMERA = pinhole_camera(200, 260.0)
ELL, BOX = model("ell", ell()), model("box", box())
MIDDLE = np.array([0.03, -0.02, 0.6])  # of what both see
TRUTH = pose((0.6, -0.7, 0.4), MIDDLE)


def from_the_side(angle: float = 1.4) -> np.ndarray:
    """reference_from_camera (4, 4) of a camera that looks at the middle from the right, tilted."""
    turn = pose((0.1, -angle, 0.25))[:3, :3]
    return rigid(turn, MIDDLE - turn @ [0.0, 0.01, 0.7])


def seen_by(camera, shape, truth, reference_from_camera=None, noise=None):
    there = np.eye(4) if reference_from_camera is None else reference_from_camera
    mask = silhouette(shape.mesh, inverse(there) @ truth, camera)
    if noise is not None:
        mask = flip_border(mask, noise)
    return observe_mask(mask, 1, camera, reference_from_camera=reference_from_camera)


def both(shape, truth, noise=None) -> list:
    return [
        seen_by(CAMERA, shape, truth, noise=noise),
        seen_by(SIDE_CAMERA, shape, truth, from_the_side(), noise),
    ]


def random_truth(rng: np.random.Generator) -> np.ndarray:
    return rigid(random_rotation(rng), MIDDLE + rng.uniform(-0.02, 0.02, 3))


def start_near(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return turned(truth, random_turn(rng, np.radians(8.0)), 0.02 * rng.normal(size=3))


@pytest.fixture(scope="module")
def refiner():
    return Refiner([ELL, BOX], capacity=16)


# --- one camera, elsewhere ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_elsewhere_finds_the_same_pose_in_the_reference(refiner, seed):
    rng = np.random.default_rng(seed)
    shape, truth = (ELL, BOX)[seed % 2], random_truth(rng)
    reference_from_camera = rigid(random_rotation(rng), rng.normal(size=3))
    start = start_near(truth, rng)
    seen = seen_by(CAMERA, shape, truth)
    elsewhere = replace(seen, reference_from_camera=reference_from_camera)
    (here,) = refiner.refine([[seen]], [guesses(shape.name, start)], restart=False)
    (there,) = refiner.refine(
        [[elsewhere]], [guesses(shape.name, reference_from_camera @ start)], restart=False
    )
    expected = reference_from_camera @ here[0].reference_from_object
    assert angle_deg(there[0].reference_from_object, expected) < 0.02
    assert shift_between(there[0].reference_from_object, expected) < 1e-4
    turned_covariance = in_axes(reference_from_camera[:3, :3], here[0].covariance)
    np.testing.assert_allclose(
        there[0].covariance, turned_covariance, atol=0.02 * np.abs(turned_covariance).max()
    )
    for name in ("cost", "iou", "rms", "visible"):
        values = [float(getattr(one[0].fits["silhouette"], name)) for one in (here, there)]
        assert values[1] == pytest.approx(values[0], rel=0.02, abs=0.5 if name == "cost" else 5e-3)


def test_what_was_known_before_is_told_in_the_reference(refiner):
    rng = np.random.default_rng(12)
    reference_from_camera = rigid(random_rotation(rng), rng.normal(size=3))
    root = rng.normal(size=(6, 6)) * [2e3, 2e3, 2e3, 3e2, 3e2, 3e2]
    mean, start = start_near(TRUTH, rng), start_near(TRUTH, rng)
    prior = PosePrior(mean, root.T @ root)
    elsewhere = PosePrior(
        reference_from_camera @ mean, in_axes(reference_from_camera[:3, :3], prior.information)
    )
    seen = seen_by(CAMERA, ELL, TRUTH)
    (here,) = refiner.refine([[seen]], [[Hypothesis("ell", start, prior)]], restart=False)
    (there,) = refiner.refine(
        [[replace(seen, reference_from_camera=reference_from_camera)]],
        [[Hypothesis("ell", reference_from_camera @ start, elsewhere)]],
        restart=False,
    )
    free = refiner.refine([[seen]], [guesses("ell", start)], restart=False)[0][0]
    assert angle_deg(here[0].reference_from_object, free.reference_from_object) > 0.2
    expected = reference_from_camera @ here[0].reference_from_object
    assert angle_deg(there[0].reference_from_object, expected) < 0.02
    assert shift_between(there[0].reference_from_object, expected) < 1e-4
    assert there[0].fits["prior"].cost == pytest.approx(here[0].fits["prior"].cost, rel=0.02)


def test_what_turns_about_its_axis_is_unsure_about_it_in_the_reference():
    from shapes import cylinder

    can = model("can", cylinder(), symmetries=Symmetries(axes=(Axis((0, 0, 1)),)))
    refiner = Refiner([can], capacity=4)
    truth = pose((1.0, 0.3, 0.0), MIDDLE)
    reference_from_camera = rigid(random_rotation(np.random.default_rng(5)), (3.0, -2.0, 1.0))
    seen = replace(seen_by(CAMERA, can, truth), reference_from_camera=reference_from_camera)
    there = reference_from_camera @ truth
    (found,) = refiner.refine([[seen]], [guesses("can", there)])
    rotation = found[0].covariance[3:, 3:]
    axis, across = there[:3, 2], there[:3, 0]
    assert np.sqrt(axis @ rotation @ axis) > 1.0
    assert np.sqrt(across @ rotation @ across) < np.radians(2.0)


def test_a_fisheye_elsewhere_finds_the_pose_in_the_reference(refiner):
    """Its crop looks at the object, and is turned against the camera as well."""
    lens = Camera(
        np.array([[200.0, 0, 255.5], [0, 200.0, 255.5], [0, 0, 1]]), (512, 512), "equidistant",
        np.zeros(4),
    )  # fmt: skip
    rng = np.random.default_rng(6)
    in_camera = pose((1.0, 0.2, -0.5), (0.35, -0.2, 0.4))
    masks = render_scene([ELL.mesh], in_camera[None], lens).labels
    reference_from_camera = rigid(random_rotation(rng), rng.normal(size=3))
    seen = observe_mask(masks, 1, lens, reference_from_camera=reference_from_camera)
    assert np.trace(seen.crop_from_camera) < 2.9
    truth = reference_from_camera @ in_camera
    (found,) = refiner.refine([[seen]], [guesses("ell", start_near(truth, rng))])
    assert angle_deg(found[0].reference_from_object, truth) < 1.5
    assert shift_between(found[0].reference_from_object, truth) < 0.01


# --- two cameras --------------------------------------------------------------------------------


def test_two_cameras_find_the_pose(refiner):
    rng = np.random.default_rng(7)
    for k in range(10):
        shape, truth = (ELL, BOX)[k % 2], random_truth(rng)
        observed = both(shape, truth)
        assert shift_between(from_the_side(), np.eye(4)) > 0.5
        (measured,) = refiner.evaluate(observed, guesses(shape.name, truth))
        assert measured.fits["silhouette"].iou > 0.98
        start = guesses(shape.name, start_near(truth, rng))
        best = refiner.refine([observed], [start])[0][0]
        assert angle_deg(best.reference_from_object, truth) < 0.5
        assert shift_between(best.reference_from_object, truth) < 1.5e-3
        assert best.fits["silhouette"].iou > 0.98
        assert best.fits["silhouette"].visible == 1.0


def test_the_fit_is_that_of_both_masks(refiner):
    off = turned(TRUTH, (0.05, -0.1, 0.05), (0.01, 0.0, 0.02))
    observed = both(ELL, TRUTH)
    (together,) = refiner.evaluate(observed, guesses("ell", off))
    each = [refiner.evaluate([one], guesses("ell", off))[0] for one in observed]
    fits = [one.fits["silhouette"] for one in (together, *each)]
    assert float(fits[0].cost) == pytest.approx(float(fits[1].cost + fits[2].cost), rel=1e-4)
    assert min(fits[1].iou, fits[2].iou) < fits[0].iou < max(fits[1].iou, fits[2].iou)
    assert min(fits[1].rms, fits[2].rms) < fits[0].rms < max(fits[1].rms, fits[2].rms)
    np.testing.assert_allclose(
        fits[0].hessian, fits[1].hessian + fits[2].hessian, rtol=1e-3, atol=10
    )
    other_way = refiner.evaluate(observed[::-1], guesses("ell", off))[0]
    assert other_way.cost == pytest.approx(together.cost, rel=1e-5)


def test_the_second_camera_tells_what_the_first_does_not(refiner):
    """Masks with noisy borders: the distance along the first camera's ray comes out better, the
    stated covariance is smaller and about as large as the errors are."""
    rng = np.random.default_rng(8)
    along, stated, squared, volumes = [], [], [], []
    for _ in range(60):
        truth = random_truth(rng)
        observed = both(ELL, truth, rng)
        start = guesses("ell", turned(truth, random_turn(rng, np.radians(3.0))))
        ray = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
        results = [
            refiner.refine([seen], [start], restart=False)[0][0]
            for seen in (observed[:1], observed)
        ]
        errors = [twist_between(one.reference_from_object, truth) for one in results]
        if max(np.linalg.norm(error[3:]) for error in errors) > np.radians(5.0):
            continue  # another face has turned into view: not what a covariance is about
        one, two = (result.covariance for result in results)
        along.append([abs(ray @ error[:3]) for error in errors])
        stated.append([np.sqrt(ray @ c[:3, :3] @ ray) for c in (one, two)])
        squared.append([e @ np.linalg.solve(c, e) for e, c in zip(errors, (one, two), strict=True)])
        volumes.append([np.linalg.slogdet(c)[1] for c in (one, two)])
        assert np.trace(two[:3, :3]) < np.trace(one[:3, :3])
    assert len(along) > 50
    along, stated, squared = (np.array(values) for values in (along, stated, squared))
    assert np.sqrt((along[:, 1] ** 2).mean()) < 0.5 * np.sqrt((along[:, 0] ** 2).mean())
    assert np.median(stated[:, 1] / stated[:, 0]) < 0.5
    assert (np.diff(volumes, axis=1) < 0.0).mean() > 0.9
    # the mean of a covariance that is right is 6
    assert 3.0 < squared[:, 1].mean() < 9.0, squared.mean(axis=0)


def test_the_covariance_does_not_depend_on_whose_camera_the_reference_is(refiner):
    rng = np.random.default_rng(9)
    side = from_the_side()
    observed = both(ELL, TRUTH)
    in_second = [
        replace(one, reference_from_camera=inverse(side) @ there)
        for one, there in zip(observed, (np.eye(4), side), strict=True)
    ]
    start = start_near(TRUTH, rng)
    (first,) = refiner.refine([observed], [guesses("ell", start)], restart=False)
    (second,) = refiner.refine([in_second], [guesses("ell", inverse(side) @ start)], restart=False)
    expected = inverse(side) @ first[0].reference_from_object
    assert angle_deg(second[0].reference_from_object, expected) < 0.02
    assert shift_between(second[0].reference_from_object, expected) < 1e-4
    covariance = in_axes(side[:3, :3].T, first[0].covariance)
    np.testing.assert_allclose(
        second[0].covariance, covariance, atol=0.05 * np.abs(covariance).max()
    )


def test_what_one_camera_sees_hidden_the_other_shows(refiner):
    rng = np.random.default_rng(10)
    mask = silhouette(ELL.mesh, TRUTH, CAMERA).astype(np.int32)
    rows, columns = np.nonzero(mask)
    mask[:, : int(np.quantile(columns, 0.6))] = 2
    hidden = observe_mask(mask, 1, CAMERA)
    start = guesses("ell", start_near(TRUTH, rng))
    side = both(ELL, TRUTH)[1]
    (alone,) = refiner.refine([[hidden]], [start])
    (together,) = refiner.refine([[hidden, side]], [start])
    assert rows.size and alone[0].fits["silhouette"].visible < 0.8
    assert together[0].fits["silhouette"].visible > alone[0].fits["silhouette"].visible
    assert angle_deg(together[0].reference_from_object, TRUTH) < 0.5
    assert shift_between(together[0].reference_from_object, TRUTH) < 1.5e-3
    assert np.trace(together[0].covariance) < np.trace(alone[0].covariance)


# --- batches ------------------------------------------------------------------------------------


def test_objects_seen_by_one_camera_and_by_two_do_not_mix(refiner):
    rng = np.random.default_rng(11)
    observed, starts = [], []
    for k in range(6):
        shape, truth = (ELL, BOX)[k % 2], random_truth(rng)
        seen = both(shape, truth)
        observed.append([seen, seen[:1], seen[1:]][k % 3])
        starts.append(guesses(shape.name, start_near(truth, rng)))
    together = refiner.refine(observed, starts, restart=False)
    for capacity in (2, 3, 16):
        small = Refiner([ELL, BOX], capacity=capacity)
        for k, one in enumerate(small.refine(observed, starts, restart=False)):
            np.testing.assert_array_equal(
                one[0].reference_from_object, together[k][0].reference_from_object
            )
    for k in range(6):
        (alone,) = refiner.refine([observed[k]], [starts[k]], restart=False)
        np.testing.assert_array_equal(
            together[k][0].reference_from_object, alone[0].reference_from_object
        )
        np.testing.assert_array_equal(together[k][0].covariance, alone[0].covariance)
        assert together[k][0].cost == alone[0].cost


def test_more_cameras_than_a_batch_holds_are_named():
    small = Refiner([ELL], capacity=1)
    with pytest.raises(ValueError, match="2 observations of an object for a refiner of capacity 1"):
        small.refine([both(ELL, TRUTH)], [guesses("ell", TRUTH)])


# --- colours ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def block():
    return painted_block((0.1, 0.08, 0.06), voxel=0.005)


def photographed(block, shape, camera, reference_from_camera):
    image, mask = photo(block, inverse(reference_from_camera) @ TRUTH, camera)
    seen = observe_mask(mask, 1, camera, reference_from_camera=reference_from_camera)
    return seen.with_image(image)


@pytest.mark.parametrize("outlines", [True, False], ids=["with outlines", "colours alone"])
def test_two_cameras_and_a_field(block, outlines):
    from pose_refiner_ros.objects.field_mesh import field_mesh

    shape = model("block", field_mesh(block), field=block)
    refiner = Refiner([shape], capacity=16, settings=Settings(photo_rays=512))
    observed = [
        photographed(block, shape, CAMERA, np.eye(4)),
        photographed(block, shape, SIDE_CAMERA, from_the_side()),
    ]
    if not outlines:
        observed = [replace(one, distances=()) for one in observed]
    start = guesses("block", turned(TRUTH, (0.1, -0.12, 0.08), (0.01, 0.01, 0.03)))
    results = [refiner.refine([seen], [start])[0][0] for seen in (observed[:1], observed)]
    one, two = results
    assert ("silhouette" in two.fits) == outlines
    assert angle_deg(two.reference_from_object, TRUTH) < 0.5
    assert shift_between(two.reference_from_object, TRUTH) < 1.5e-3
    assert two.fits["radiance"].colour_rms < 0.05 and two.fits["radiance"].covered > 0.9
    ray = TRUTH[:3, 3] / np.linalg.norm(TRUTH[:3, 3])
    sigma = [np.sqrt(ray @ result.covariance[:3, :3] @ ray) for result in (one, two)]
    assert sigma[1] < 0.7 * sigma[0]
    away = [abs(ray @ (result.reference_from_object - TRUTH)[:3, 3]) for result in (one, two)]
    assert away[1] < max(away[0], 1e-3)


def test_a_mask_beside_an_image_without_one_makes_the_covariance_smaller(block):
    """The outline of the one is no part of the other's colours."""
    from pose_refiner_ros.objects.field_mesh import field_mesh

    shape = model("block", field_mesh(block), field=block)
    poor, good = pinhole_camera(128, 80.0), pinhole_camera(900, 1500.0)
    there = from_the_side()
    image = observe_image(photo(block, TRUTH, poor)[0], poor, (0.4, 0.5, 0.4))
    side = seen_by(good, shape, TRUTH, there)
    refiner = Refiner([shape], capacity=4, settings=Settings(photo_rays=512))
    sigmas = [
        np.sqrt(np.diag(refiner.evaluate(seen, guesses("block", TRUTH))[0].covariance))
        for seen in ([image], [side], [image, side])
    ]
    assert (sigmas[2] < 1.1 * np.minimum(sigmas[0], sigmas[1])).all()
    assert sigmas[2][2] < 0.5 * sigmas[0][2]  # the range, which the side camera sees
