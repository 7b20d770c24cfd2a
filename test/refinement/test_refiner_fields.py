# SPDX-License-Identifier: Apache-2.0
"""Objects with radiance fields: poses from images, with and without masks."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh
from analytic_field import AnalyticField, as_grid, pinhole, view_from
from scipy.spatial.transform import Rotation
from shapes import ell, guesses, model, silhouette

from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import camera_rays, image_pixels
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.field_mesh import field_mesh
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.observation import observe_image, observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import contradicts
from pose_refiner_ros.refinement.terms.prior import PosePrior
from pose_refiner_ros.scene_localiser import field_model
from pose_refiner_ros.settings import Settings

SIZE = 160
CAMERA = Camera(pinhole(SIZE), (SIZE, SIZE))
WHITE = (1.0, 1.0, 1.0)
GREY = (0.5, 0.5, 0.5)
POSE = view_from((1.0, 0.4, 0.5))
SETTINGS = Settings(photo_rays=512)


@pytest.fixture(scope="module")
def field():
    return AnalyticField(density=40.0, chequers=6.0)


@pytest.fixture(scope="module")
def grid(field):
    return as_grid(field, count=96)


@pytest.fixture(scope="module")
def refiner(grid):
    return refiner_of(blobs=grid)


def refiner_of(capacity: int = 64, **fields) -> Refiner:
    """Of objects that are nothing but their fields."""
    return Refiner([field_model(*one) for one in fields.items()], "cpu", capacity, SETTINGS)


def photo(grid, pose, background=WHITE) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and the opacity (H, W)."""
    origins, directions = camera_rays(CAMERA.intrinsics, pose, image_pixels((SIZE, SIZE)))
    seen = grid.render(origins.float(), directions.float())
    colour = seen.over(background).reshape(SIZE, SIZE, 3).numpy()
    return (255.0 * colour.clip(0, 1)).round().astype(np.uint8), seen.opacity.reshape(
        SIZE, SIZE
    ).numpy()


def moved(pose, degrees, shift, seed) -> np.ndarray:
    generator = np.random.default_rng(seed)
    axis = generator.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    other = pose.copy()
    other[:3, :3] = turn @ pose[:3, :3]
    other[:3, 3] += generator.uniform(-shift, shift, 3)
    return other


def errors(found, pose) -> tuple[float, float]:
    """Degrees and metres."""
    turn = Rotation.from_matrix(found[:3, :3].T @ pose[:3, :3]).magnitude()
    return np.degrees(turn), float(np.linalg.norm(found[:3, 3] - pose[:3, 3]))


def test_colours_alone_bring_poses_back(refiner, grid):
    image, _ = photo(grid, POSE)
    seen = observe_image(image, CAMERA, WHITE)
    for seed in range(4):
        start = moved(POSE, 30.0, 0.08, seed)
        (found,) = refiner.refine([[seen]], [guesses("blobs", start)])
        assert max(errors(found[0].reference_from_object, POSE)) < 0.3, seed
        assert found[0].fits["radiance"].rms < 0.02


def test_of_many_hypotheses_the_right_one_wins(refiner, grid):
    image, _ = photo(grid, POSE)
    hypotheses = []
    for k in range(12):
        other = POSE.copy()
        other[:3, :3] = POSE[:3, :3] @ Rotation.from_rotvec([0, 0, 0.2 + k * np.pi / 6]).as_matrix()
        hypotheses.append(other)
    seen = observe_image(image, CAMERA, WHITE)
    (found,) = refiner.refine([[seen]], [guesses("blobs", *hypotheses)])
    assert max(errors(found[0].reference_from_object, POSE)) < 0.3
    assert [r.cost for r in found] == sorted(r.cost for r in found)


def test_objects_of_one_call_do_not_disturb_each_other(refiner, grid):
    other = view_from((0.2, -1.0, 0.4))
    photos = [[observe_image(photo(grid, pose)[0], CAMERA, WHITE)] for pose in (POSE, other)]
    starts = [
        guesses("blobs", moved(POSE, 15.0, 0.05, 1)),
        guesses("blobs", moved(other, 15.0, 0.05, 2)),
    ]
    both = refiner.refine(photos, starts)
    for i, pose in enumerate((POSE, other)):
        alone = refiner.refine(photos[i : i + 1], starts[i : i + 1])[0][0]
        assert max(errors(both[i][0].reference_from_object, pose)) < 0.3
        assert max(errors(both[i][0].reference_from_object, alone.reference_from_object)) < 0.02


def test_colours_that_end_far_off_are_tried_again(refiner, grid):
    seen = observe_image(photo(grid, POSE)[0], CAMERA, WHITE)
    start = [guesses("blobs", moved(POSE, 125.0, 0.05, 5))]
    (once,) = refiner.refine([[seen]], start, restart=False)
    assert errors(once[0].reference_from_object, POSE)[0] > 90.0
    (again,) = refiner.refine([[seen]], start)
    assert max(errors(again[0].reference_from_object, POSE)) < 0.3


def test_no_hypothesis_no_result(refiner, grid):
    seen = observe_image(photo(grid, POSE)[0], CAMERA, WHITE)
    none, one = refiner.refine([[seen], [seen]], [[], guesses("blobs", POSE)])
    assert none == [] and len(one) == 1


def test_a_track_takes_few_iterations(refiner, grid):
    seen = observe_image(photo(grid, POSE)[0], CAMERA, WHITE)
    start = moved(POSE, 2.0, 0.01, 0)
    (found,) = refiner.refine([[seen]], [guesses("blobs", start)], tracked=True)
    assert max(errors(found[0].reference_from_object, POSE)) < 0.2
    assert found[0].iterations <= 14


@pytest.fixture(scope="module")
def ball(grid):
    """A ball of radius 0.5 whose colours vary with place."""
    axis = np.linspace(-0.6, 0.6, 64)
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    radius = np.linalg.norm(place, axis=-1)
    occupied = radius < 0.56
    values = np.zeros((np.count_nonzero(occupied), 4), np.float32)
    values[:, 0] = 2000.0 * (0.5 - radius[occupied]).clip(-0.02, 0.1)
    values[:, 1:] = 0.5 + 0.5 * np.sin(6.0 * place[occupied] + np.array([0.0, 1.0, 2.0]))
    return GridField.from_nodes(occupied, values, np.full(3, -0.6), axis[1] - axis[0])


def masked_ball(ball, pose=POSE, **more):
    """The ball in front of noise."""
    noise = np.random.default_rng(0).uniform(size=(SIZE * SIZE, 3))
    image, opacity = photo(ball, pose, torch.as_tensor(noise))
    return observe_mask((opacity > 0.5).astype(np.uint8), 1, CAMERA, **more).with_image(image)


def ball_mesh(radius: float, offset=(0.0, 0.0, 0.0)) -> Mesh:
    shape = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    return Mesh(shape.vertices + np.asarray(offset), np.asarray(shape.faces, np.int32))


def colours_alone(seen):
    """The mask as part of the picture, and no outline to compare with."""
    return replace(seen, distances=())


def test_a_mask_stands_in_for_a_known_background(ball):
    """A ball's silhouette says nothing of how it is turned; its colours do."""
    start = guesses("ball", moved(POSE, 25.0, 0.06, 3))
    seen = masked_ball(ball)
    with_mesh = Refiner([ObjectModel("ball", field_mesh(ball), field=ball)], settings=SETTINGS)
    for refiner, observed, most in (
        (refiner_of(ball=ball), colours_alone(seen), 0.2),
        (with_mesh, seen, 0.5),
    ):
        (found,) = refiner.refine([[observed]], [start])
        turn, shift = errors(found[0].reference_from_object, POSE)
        assert turn < most
        assert shift < 0.003 * POSE[2, 3]


def test_silhouettes_pull_as_well(ball):
    # a mesh somewhat too large: the outline asks for a place farther away
    refiner = Refiner([ObjectModel("ball", ball_mesh(0.52), field=ball)], settings=SETTINGS)
    start = guesses("ball", moved(POSE, 8.0, 0.04, 4))
    distances = []
    for seen in (colours_alone(masked_ball(ball)), masked_ball(ball)):
        (found,) = refiner.refine([[seen]], [start])
        assert errors(found[0].reference_from_object, POSE)[0] < 1.0
        distances.append(found[0].reference_from_object[2, 3])
    assert distances[0] + 0.01 < distances[1] < POSE[2, 3] * 0.52 / 0.5


def test_outlines_pull_whatever_the_other_objects_are(ball):
    """Also beside one whose origin is far off, and with more objects than go into a batch."""
    offset = np.array([4.0, 0.0, 0.0])
    far_ball = ball.shifted(-offset)
    models = [
        ObjectModel("ball", ball_mesh(0.52), field=ball),
        ObjectModel("far", ball_mesh(0.52, offset), field=far_ball),
    ]
    seen, start = masked_ball(ball), moved(POSE, 8.0, 0.04, 4)
    found = {}
    for capacity, names in ((64, ["ball"]), (64, ["ball", "far"]), (1, ["ball", "ball"])):
        refiner = Refiner(models, capacity=capacity, settings=SETTINGS)
        starts = [
            guesses(name, start if name == "ball" else about_point(start, -offset))
            for name in names
        ]
        all_found = refiner.refine([[seen]] * len(names), starts)
        found[(capacity, *names)] = [one[0].reference_from_object for one in all_found]
    (alone,) = found[64, "ball"]
    assert alone[2, 3] > POSE[2, 3] + 0.01
    beside, far = found[64, "ball", "far"]
    assert beside[2, 3] == pytest.approx(alone[2, 3], abs=1e-3)
    assert about_point(far, offset)[2, 3] == pytest.approx(alone[2, 3], abs=1e-3)
    for one in found[1, "ball", "ball"]:
        assert one[2, 3] == pytest.approx(alone[2, 3], abs=1e-3)


def test_a_scene_far_from_its_origin_is_the_same_scene(grid):
    offset = np.array([40.0, -30.0, 5.0])
    start = about_point(moved(POSE, 10.0, 0.03, 5), -offset)
    image, _ = photo(grid, POSE)
    (found,) = refiner_of(scene=grid.shifted(-offset)).refine(
        [[observe_image(image, CAMERA, WHITE)]], [guesses("scene", start)]
    )
    assert max(errors(about_point(found[0].reference_from_object, offset), POSE)) < 0.3
    # its position is as uncertain as 50 m times the angle, along with it
    sigma = np.sqrt(np.diag(found[0].covariance))
    assert sigma[:3].max() > 10.0 * sigma[3:].min()


@pytest.mark.parametrize(("blur", "least"), [(0, 2.0), (3, 3.0), (10, 3.0)])
def test_the_covariance_is_what_noise_makes_of_poses(refiner, grid, blur, least):
    """The mean squared Mahalanobis distance is 6 for a covariance that is right. Fields and photos
    differ by what is alike over large parts of the image; noise that is not is taken for more."""
    clean = photo(grid, POSE, GREY)[0].astype(np.float32) / 255.0
    generator = np.random.default_rng(7)
    distances = []
    for _ in range(30):
        noise = generator.normal(size=clean.shape)
        if blur:
            noise = cv2.GaussianBlur(noise, (0, 0), blur)
        noisy = clean + 0.05 * noise / noise.std()
        seen = observe_image(noisy.clip(0, 1).astype(np.float32), CAMERA, GREY)
        (found,) = refiner.refine([[seen]], [guesses("blobs", POSE)], restart=False, given=False)
        pose, covariance = found[0].reference_from_object, found[0].covariance
        w = Rotation.from_matrix(pose[:3, :3] @ POSE[:3, :3].T).as_rotvec()
        away = np.concatenate([pose[:3, 3] - POSE[:3, 3], w])
        distances.append(away @ np.linalg.solve(covariance, away))
    assert least < np.mean(distances) < 12.0


def test_broken_pixels_are_left_out(refiner, grid):
    image = photo(grid, POSE)[0].astype(np.float32) / 255.0
    image[40:70, 60:90] = np.nan
    (found,) = refiner.refine(
        [[observe_image(image, CAMERA, WHITE)]], [guesses("blobs", moved(POSE, 10.0, 0.04, 6))]
    )
    assert max(errors(found[0].reference_from_object, POSE)) < 0.3


# --- no result is worse than its start ----------------------------------------------------------


def spoiled(grid, seed: int):
    """A photo in which one to three flat rectangles hide much of the object."""
    rng = np.random.default_rng(seed)
    image = photo(grid, POSE)[0].copy()
    for _ in range(1 + seed % 3):
        a, b = rng.integers(30, 130, 2)
        high, wide = rng.integers(15, 45, 2)
        rows, columns = slice(max(a - high, 0), a + high), slice(max(b - wide, 0), b + wide)
        image[rows, columns] = rng.integers(0, 255, 3)
    return observe_image(image, CAMERA, WHITE)


@pytest.mark.parametrize("seed", [4, 27, 43])
def test_the_truth_is_kept_where_refinement_is_led_astray(refiner, grid, seed):
    seen, start = spoiled(grid, seed), guesses("blobs", POSE)
    (before,) = refiner.evaluate([seen], start)
    for restart in (False, True):
        (astray,) = refiner.refine([[seen]], [start], restart=restart, given=False)
        assert (
            astray[0].cost > before.cost and errors(astray[0].reference_from_object, POSE)[0] > 30
        )
        (found,) = refiner.refine([[seen]], [start], restart=restart)
        best = found[0]
        np.testing.assert_allclose(best.reference_from_object, POSE, atol=1e-6)
        assert best.iterations == 0 and best.cost == before.cost
        assert best.fits["radiance"].colour_rms == before.fits["radiance"].colour_rms
        np.testing.assert_allclose(best.covariance, before.covariance, rtol=1e-9)
        assert [one.cost for one in found] == sorted(one.cost for one in found)


def test_no_start_is_better_than_the_result(refiner, grid):
    for seed in range(12):
        seen = spoiled(grid, seed)
        start = guesses("blobs", POSE if seed % 2 else moved(POSE, 4.0, 0.02, seed))
        (before,) = refiner.evaluate([seen], start)
        for tracked in (False, True):
            (found,) = refiner.refine([[seen]], [start], tracked=tracked, restart=False)
            assert found[0].cost <= before.cost


def test_the_best_by_outlines_alone_is_kept_where_colours_lead_astray(ball):
    """What a stage has found is a result as well: all costs are of the same evidence."""
    refiner = Refiner([ObjectModel("ball", field_mesh(ball), field=ball)], settings=SETTINGS)
    rng = np.random.default_rng(3)
    seen = masked_ball(ball)
    size = seen.crop.size
    noise = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    seen = replace(seen, rgb=np.kron(noise, np.ones((17, 17, 1), np.uint8))[:size, :size])
    for k in range(4):
        start = guesses("ball", moved(POSE, 20.0, 0.03, k))
        (before,) = refiner.evaluate([seen], start)
        (found,) = refiner.refine([[seen]], [start], restart=False)
        outlines = Refiner([ObjectModel("ball", field_mesh(ball))])
        (by_outline,) = outlines.refine([[seen]], [start], restart=False)
        (measured,) = refiner.evaluate([seen], guesses("ball", by_outline[0].reference_from_object))
        total = {
            id(one): sum(float(fit.cost) for fit in one.fits.values())
            for one in (found[0], before, measured)
        }
        assert total[id(found[0])] <= min(total[id(before)], total[id(measured)]) * (1 + 1e-3)


@pytest.mark.parametrize("order", [1, -1], ids=["mask first", "image first"])
def test_where_colours_fit_in_no_pose_the_outline_decides(ball, order):
    """Whichever camera it is that has the mask."""
    mesh = field_mesh(ball)
    refiner = Refiner([ObjectModel("ball", mesh, field=ball)], settings=SETTINGS)
    masked = replace(masked_ball(ball), rgb=None)
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    noise = observe_image(image, CAMERA, GREY)
    (found,) = refiner.refine([[masked, noise][::order]], [guesses("ball", POSE)])
    assert all(contradicts(one) for one in found)
    for one in found:
        assert one.cost == pytest.approx(float(one.fits["silhouette"].cost))


# --- batches of all kinds -----------------------------------------------------------------------


ELL_TRUTH = view_from((0.8, -0.5, 0.7), 0.9)


@pytest.fixture(scope="module")
def mixed(grid, ball):
    """A refiner and objects of it, each with other evidence: name -> observation and hypotheses."""
    refiner = Refiner(
        [
            ObjectModel("ball", field_mesh(ball), field=ball),
            model("ell", ell()),
            field_model("blobs", grid),
        ],
        settings=SETTINGS,
    )
    masked = masked_ball(ball)
    image = observe_image(photo(grid, POSE)[0], CAMERA, WHITE)
    outline = observe_mask(silhouette(ell(), ELL_TRUTH, CAMERA), 1, CAMERA)
    start = moved(POSE, 12.0, 0.04, 1)
    tilted = moved(ELL_TRUTH, 8.0, 0.01, 2)
    information = 1e5 * np.diag([100.0, 100.0, 100.0, 1.0, 1.0, 1.0])
    prior = PosePrior(moved(ELL_TRUTH, 6.0, 0.01, 3), information)
    return refiner, {
        "mask and field": (masked, guesses("ball", start)),
        "mask": (outline, guesses("ell", tilted)),
        "mask and prior": (outline, [replace(guesses("ell", tilted)[0], prior=prior)]),
        "mask, and a field without a photo": (replace(masked, rgb=None), guesses("ball", start)),
        "field": (image, guesses("blobs", start)),
        "field and photo without an outline": (colours_alone(masked), guesses("ball", start)),
    }


TERMS = {
    "mask and field": {"silhouette", "radiance"},
    "mask": {"silhouette"},
    "mask and prior": {"silhouette", "prior"},
    "mask, and a field without a photo": {"silhouette"},
    "field": {"radiance"},
    "field and photo without an outline": {"radiance"},
}


@pytest.mark.parametrize("order", [1, -1], ids=["forth", "back"])
@pytest.mark.parametrize("tracked", [False, True])
def test_each_of_a_mixed_batch_gets_what_it_gets_alone(mixed, order, tracked):
    refiner, objects = mixed
    keys = list(objects)[::order]
    seen, starts = [[objects[key][0]] for key in keys], [objects[key][1] for key in keys]
    together = refiner.refine(seen, starts, tracked=tracked, restart=False)
    for key, own, observed, start in zip(keys, together, seen, starts, strict=True):
        (alone,) = refiner.refine([observed], [start], tracked=tracked, restart=False)
        assert set(own[0].fits) == TERMS[key]
        assert len(own) == len(alone)
        for a, b in zip(own, alone, strict=True):
            np.testing.assert_array_equal(a.reference_from_object, b.reference_from_object, key)
            np.testing.assert_array_equal(a.covariance, b.covariance, key)
            assert (a.cost, a.iterations, a.reason) == (b.cost, b.iterations, b.reason), key
            for name, fit in a.fits.items():
                assert fit.cost == b.fits[name].cost and fit.rms == b.fits[name].rms, key
    assert not np.array_equal(
        *[together[keys.index(key)][0].reference_from_object for key in ("mask", "mask and prior")]
    )


@pytest.mark.parametrize("capacity", [3, 64])
def test_several_starts_of_a_mixed_batch_end_where_they_end_alone(mixed, capacity):
    _, objects = mixed
    refiner = Refiner(list(mixed[0].models.values()), capacity=capacity, settings=SETTINGS)
    seen = [[one] for one, _ in objects.values()]
    starts = [
        [
            replace(own[0], reference_from_object=moved(own[0].reference_from_object, 9.0, 0.0, k))
            for k in range(3)
        ]
        for _, own in objects.values()
    ]
    together = refiner.refine(seen, starts, restart=True)
    for key, own, observed, start in zip(objects, together, seen, starts, strict=True):
        (alone,) = mixed[0].refine([observed], [start], restart=True)
        turn, shift = errors(own[0].reference_from_object, alone[0].reference_from_object)
        assert turn < 0.2 and shift < 2e-3, key
        assert own[0].cost == pytest.approx(alone[0].cost, rel=0.02, abs=0.5), key
