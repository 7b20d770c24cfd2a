# SPDX-License-Identifier: Apache-2.0
"""Start poses from a mask alone."""

import numpy as np
import pytest
from shapes import (
    angle_deg,
    box,
    cylinder,
    ell,
    model,
    pinhole_camera,
    plate,
    pose,
    random_rotation,
    shift_between,
    silhouette,
)

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rotation_angle
from pose_refiner_ros.geometry.views import look_at, view_directions
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.objects.symmetry import Axis, Symmetries
from pose_refiner_ros.refinement import codebook
from pose_refiner_ros.refinement.codebook import VIEWS, ViewCodebook
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.rendering.scene import render_scene

CAMERA = pinhole_camera(256, 300.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path))
    return tmp_path


def vehicle() -> tuple:
    mesh = make_vehicle(VEHICLES["pickup"]).mesh
    return model("pickup", mesh, silhouette_mesh=simplify_for_silhouette(mesh)), 9.0


def random_views(book: ViewCodebook, distance: float, count: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        view = np.eye(4)
        view[:3, :3] = random_rotation(rng)
        middle = rng.uniform(-1, 1, 3) * [0.08, 0.08, 0.15] * distance
        view[:3, 3] = middle + np.array([0, 0, distance]) - view[:3, :3] @ book.center
        yield view


def hide_a_third(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    left, right = columns.min(), columns.max() + 1
    masks = mask.astype(np.int32)
    masks[rows.min() - 9 : rows.max() + 10, max(left - 9, 0) : left + (right - left) // 3] = 2
    return masks


def ranks(shape, distance, hide, count=24, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Where in the list the first pose within 25 degrees stands, and by how much its depth errs."""
    book = ViewCodebook(shape)
    found, depth = [], []
    for truth in random_views(book, distance, count, seed):
        masks = silhouette(shape.mesh, truth, CAMERA)
        seen = observe_mask(hide_a_third(masks) if hide else masks, 1, CAMERA)
        guesses = book.match(seen, 16)
        rotations = np.array([guess[:3, :3] for guess in guesses])
        depths = np.array([guess[2, 3] for guess in guesses])
        right = [angle_deg(rotation, truth) < 25 for rotation in rotations]
        if not any(right):
            found.append(99)
            continue
        found.append(right.index(True))
        depth.append(np.abs(depths[right] / truth[2, 3] - 1).min())
    return np.array(found), np.array(depth)


@pytest.mark.parametrize("thing", ["ell", "vehicle"])
def test_the_right_view_is_among_the_first(thing):
    shape, distance = (model("ell", ell()), 0.6) if thing == "ell" else vehicle()
    found, depth = ranks(shape, distance, hide=False)
    assert (found < 16).all()
    assert (found < 4).mean() > 0.9
    assert np.median(depth) < 0.05 and depth.max() < 0.25


@pytest.mark.parametrize("thing", ["ell", "vehicle"])
def test_the_right_view_is_found_though_a_third_is_hidden(thing):
    shape, distance = (model("ell", ell()), 0.6) if thing == "ell" else vehicle()
    found, depth = ranks(shape, distance, hide=True)
    assert (found < 16).mean() > 0.65
    assert np.median(depth) < 0.12


@pytest.mark.parametrize("lens", ["none", "equidistant"])
def test_views_are_put_where_the_masks_are(lens):
    """Off the axis, where looking straight ahead and looking at the object differ."""
    shape = model("ell", ell())
    camera = Camera(
        np.array([[250.0, 0, 255.5], [0, 260.0, 255.5], [0, 0, 1]]), (512, 512), lens,
        np.zeros(4 if lens == "equidistant" else 0),
    )  # fmt: skip
    book = ViewCodebook(shape)
    rng = np.random.default_rng(5)
    errors, shifts = [], []
    for azimuth in np.arange(12) * (2 * np.pi / 12):
        truth = pose(rng.normal(size=3))
        aside = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.sin(0.4)  # 23 degrees
        truth[:3, 3] = np.append(aside, np.cos(0.4)) * 0.6 - truth[:3, :3] @ book.center
        masks = render_scene([shape.mesh], truth[None], camera).labels
        seen = observe_mask(masks, 1, camera)
        camera_from_crop = np.eye(4)
        camera_from_crop[:3, :3] = seen.crop.crop_from_camera.T
        guesses = [camera_from_crop @ g for g in book.match(seen, 8)]
        best = min(guesses, key=lambda guess: angle_deg(guess, truth))
        errors.append(angle_deg(best, truth))
        shifts.append(shift_between(best, truth))
        np.testing.assert_allclose(best[:3, :3] @ best[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(best[:3, :3]) > 0
    assert np.median(errors) < 15 and max(errors) < 30
    assert np.median(shifts) < 0.06


def test_a_stored_view_turned_about_the_optical_axis_is_found_in_its_place():
    """The silhouette's centroid is not the object's centre, and turns with it."""
    shape = model("hook", ell(foot=0.3, height=0.3, depth=0.04))
    book = ViewCodebook(shape)
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(10):
        view, angle = rng.integers(VIEWS), rng.integers(64)
        truth = pose((0, 0, angle * 2 * np.pi / 64), (0, 0, 0))
        truth[:3, :3] = truth[:3, :3] @ book.rotations[view]
        truth[:3, 3] = [0, 0, 4.0 * shape.diameter] - truth[:3, :3] @ book.center
        camera = pinhole_camera(256, 800.0)
        seen = observe_mask(silhouette(shape.mesh, truth, camera), 1, camera)
        best = min(book.match(seen, 4), key=lambda guess: angle_deg(guess, truth))
        if angle_deg(best, truth) < 4.0:  # otherwise a view nearby fits as well
            found += 1
            error = best[:3, 3] - truth[:3, 3]
            assert np.abs(error[:2]).max() < 0.03 * shape.diameter
            assert abs(error[2]) < 0.06 * 4.0 * shape.diameter
    assert found >= 8


def test_guesses_differ_from_each_other():
    shape = model("ell", ell())
    seen = observe_mask(silhouette(shape.mesh, pose((0.6, 0.7, 0.4)), CAMERA), 1, CAMERA)
    guesses = [g[:3, :3] for g in ViewCodebook(shape).match(seen, 12)]
    assert len(guesses) == 12
    apart = [rotation_angle(a.T @ b) for i, a in enumerate(guesses) for b in guesses[:i]]
    assert min(apart) > np.radians(20)


def test_of_a_symmetric_object_one_guess_stands_for_all_that_look_the_same():
    half = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0)), pose((0, np.pi, 0), (0, 0, 0))]))
    can = Symmetries(axes=(Axis((0, 0, 1)),))
    for mesh, symmetries in ((box(), half), (cylinder(), can)):
        shape = model("thing", mesh, symmetries=symmetries)
        truth = pose((0.6, 0.7, 0.4), (0, 0, 0.6))
        seen = observe_mask(silhouette(mesh, truth, CAMERA), 1, CAMERA)
        guesses = ViewCodebook(shape).match(seen, 8)
        errors = symmetries.reduced_rotation_error(np.stack(guesses), truth)
        assert np.degrees(errors[:2].min()) < 20
        for i, a in enumerate(guesses):
            for b in guesses[:i]:
                assert np.degrees(symmetries.reduced_rotation_error(a, b)) > 15


def test_a_sheet_seen_edge_on_is_no_trouble():
    shape = model("sheet", plate())
    truth = pose((0.5, 0.4, 0.0), (0, 0, 0.6))
    seen = observe_mask(silhouette(shape.mesh, truth, CAMERA), 1, CAMERA)
    for guess in ViewCodebook(shape).match(seen, 16):
        assert np.isfinite(guess).all()
        assert guess[2, 3] > 0


def test_views_look_at_the_object_from_all_around():
    directions = view_directions(VIEWS)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    assert np.linalg.norm(directions.mean(axis=0)) < 0.01
    nearest = np.sort(directions @ directions.T, axis=1)[:, -2]
    assert np.degrees(np.arccos(nearest)).max() < 11 and np.degrees(np.arccos(nearest)).min() > 4
    rotations = look_at(directions)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    # the camera sits in that direction and looks along its own z axis
    np.testing.assert_allclose(rotations[:, 2], -directions, atol=1e-12)


# --- the cache ----------------------------------------------------------------------------------


MASK_POSE = pose((0.6, 0.7, 0.4), (0.01, 0.0, 0.6))


def same_book(a: ViewCodebook, b: ViewCodebook) -> None:
    seen = observe_mask(silhouette(ell(), MASK_POSE, CAMERA), 1, CAMERA)
    for one, other in zip(a.match(seen, 8), b.match(seen, 8), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_codebook_is_built_once_per_shape(own_cache, monkeypatch):
    first = ViewCodebook(model("ell", ell()))
    assert len(list((own_cache / "codebook").glob("*.npz"))) == 1

    def no_building(*arguments):
        raise AssertionError("built again")

    with monkeypatch.context() as patch:
        patch.setattr(codebook, "_build", no_building)
        same_book(first, ViewCodebook(model("another name", ell())))
        with pytest.raises(AssertionError, match="built again"):
            ViewCodebook(model("ell", ell(height=0.21)))
    ViewCodebook(model("ell", ell(height=0.21)))
    assert len(list((own_cache / "codebook").glob("*.npz"))) == 2


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_codebook_is_built_again(own_cache, damage):
    first = ViewCodebook(model("ell", ell()))
    (path,) = (own_cache / "codebook").glob("*.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    same_book(first, ViewCodebook(model("ell", ell())))
    assert len(path.read_bytes()) == len(whole)
