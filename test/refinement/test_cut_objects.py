# SPDX-License-Identifier: Apache-2.0
"""Objects that the photo's border cuts or others hide, found without a start; views alike."""

import numpy as np
import pytest
from shapes import angle_deg, box, model, pinhole_camera, pose, silhouette

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.codebook import ViewCodebook, is_cut
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask

SIZE, FOCAL = 640, 520.0
CAMERA = pinhole_camera(SIZE, FOCAL)


def vehicle():
    mesh = make_vehicle(VEHICLES["pickup"]).mesh
    return model("pickup", mesh, silhouette_mesh=simplify_for_silhouette(mesh))


def seen_from(shape, rng: np.random.Generator) -> np.ndarray:
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.0, 0.6)
    flat = np.cos(elevation)
    seat = np.array([[flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]])
    truth = np.eye(4)
    truth[:3, :3] = look_at(seat)[0]
    away = rng.uniform(1.5, 4.0) * shape.diameter
    truth[:3, 3] = [0.0, 0.0, away] - truth[:3, :3] @ shape.box_center
    return truth


def cut_at_border(shape, rng) -> tuple[np.ndarray, np.ndarray]:
    """A mask of which a border hides 20 to 60 %, and the true pose."""
    while True:
        truth = seen_from(shape, rng)
        side = rng.integers(4) * np.pi / 2
        aside = np.array([np.cos(side), np.sin(side), 0.0]) * 0.5 * SIZE / FOCAL
        truth[:3, 3] += aside * truth[2, 3] * rng.uniform(0.7, 1.2)
        wide = pinhole_camera(3 * SIZE, FOCAL)
        whole = silhouette(shape.mesh, truth, wide)
        mask = whole[SIZE : 2 * SIZE, SIZE : 2 * SIZE]
        if 0.4 * whole.sum() < mask.sum() < 0.8 * whole.sum() and mask.sum() > 800:
            return mask, truth


def hidden(shape, rng) -> tuple[np.ndarray, np.ndarray]:
    """Masks of which another label hides 40 %, from one side, and the true pose."""
    truth = seen_from(shape, rng)
    masks = silhouette(shape.mesh, truth, CAMERA).astype(np.int32)
    columns = np.nonzero(masks)[1]
    if rng.integers(2):
        masks[:, : int(np.quantile(columns, 0.4))] = 2
    else:
        masks[:, int(np.quantile(columns, 0.6)) :] = 2
    masks[:20] = masks[-20:] = 0
    return masks, truth


@pytest.mark.parametrize("make", [cut_at_border, hidden])
def test_of_what_is_cut_a_pose_is_found_that_fits_like_the_true_one(make):
    shape, rng = vehicle(), np.random.default_rng(4)
    pipeline = Pipeline({"pickup": shape}, device="cpu")
    lost = []
    for _ in range(24):
        masks, truth = make(shape, rng)
        seen = observe_mask(masks, 1, CAMERA)
        assert is_cut(seen)
        found = pipeline.process(Frame(masks.astype(np.int32), CAMERA, {1: "pickup"}))
        (best,) = pipeline.refiner.evaluate([seen], [Hypothesis("pickup", truth)])
        lost.append(best.fits["silhouette"].iou - found[0].iou)
    assert np.mean(np.array(lost) < 0.004) > 0.9, np.sort(np.round(lost, 4))


def test_a_whole_mask_is_not_cut():
    shape = vehicle()
    truth = seen_from(shape, np.random.default_rng(0))
    masks = silhouette(shape.mesh, truth, CAMERA).astype(np.int32)
    assert not is_cut(observe_mask(masks, 1, CAMERA))
    masks[:20, :20] = 2  # another object, elsewhere
    assert not is_cut(observe_mask(masks, 1, CAMERA))


# --- views alike --------------------------------------------------------------------------------


def overlap(shape, a: np.ndarray, b: np.ndarray) -> float:
    one, other = silhouette(shape.mesh, a, CAMERA), silhouette(shape.mesh, b, CAMERA)
    return (one & other).sum() / (one | other).sum()


def test_a_box_has_rivals_and_they_cover_the_same():
    shape = model("box", box())
    truth = pose((0.5, 0.4, 0.2), (0.08, -0.05, 0.7))
    rivals = ViewCodebook(shape).similar_views(truth, 6)
    assert len(rivals) >= 3
    for rival in rivals:
        assert angle_deg(rival, truth) > 25.0
        assert overlap(shape, rival, truth) > 0.75
    half_turns = [truth @ pose(np.pi * axis, (0, 0, 0)) for axis in np.eye(3)]
    near = [min(angle_deg(rival, turn) for rival in rivals) for turn in half_turns]
    assert max(near) < 20.0


def test_what_looks_the_same_by_symmetry_is_no_rival():
    half = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0)), pose((0, np.pi, 0), (0, 0, 0))]))
    shape = model("box", box(), symmetries=half)
    truth = pose((0.5, 0.4, 0.2), (0.08, -0.05, 0.7))
    for rival in ViewCodebook(shape).similar_views(truth, 6):
        assert np.degrees(half.reduced_rotation_error(rival, truth)) > 25.0


def test_at_most_as_many_rivals_as_asked_and_none_unlike():
    shape = vehicle()
    book, truth = ViewCodebook(shape), seen_from(shape, np.random.default_rng(5))
    assert len(book.similar_views(truth, 2)) <= 2
    assert book.similar_views(truth, 4, least=1.01) == []
