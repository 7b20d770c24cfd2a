# SPDX-License-Identifier: Apache-2.0
"""A frame in, poses out: the whole job without ROS."""

import logging
from itertools import pairwise

import numpy as np
import pytest
from shapes import (
    angle_deg,
    box,
    cylinder,
    ell,
    guesses,
    model,
    pinhole_camera,
    pose,
    random_turn,
    shift_between,
    silhouette,
    turned,
)

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.frame import Frame, FrameError
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.objects.symmetry import Axis, Symmetries
from pose_refiner_ros.pipeline import Pipeline, Settings, choose_device
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.rendering.scene import render_scene

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
HALF_TURNS = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0)), pose((0, np.pi, 0), (0, 0, 0))]))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_REFINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Reports(list):
    """Collects what a pipeline reports."""

    def __call__(self, label, text):
        self.append((label, text))

    def texts(self, label) -> str:
        return "; ".join(text for which, text in self if which == label)


def library(*models):
    return {one.name: one for one in models}


@pytest.fixture(scope="module")
def blocks():
    return Pipeline(library(model("ell", ell()), model("box", box())), device="cpu")


@pytest.fixture(scope="module")
def vehicles():
    models = []
    for name in ("sedan", "van", "pickup"):
        mesh = make_vehicle(VEHICLES[name]).mesh
        models.append(model(name, mesh, silhouette_mesh=simplify_for_silhouette(mesh)))
    return Pipeline(library(*models), device="cpu")


def on_the_road(x: float, z: float, heading: float) -> np.ndarray:
    """A vehicle x metres to the right and z ahead, seen from 2.5 m above its ground."""
    camera_from_object = np.eye(4)
    direction = np.array([np.cos(heading), np.sin(heading), 0.25])
    camera_from_object[:3, :3] = look_at(direction[None] / np.linalg.norm(direction))[0]
    camera_from_object[:3, 3] = (x, 1.2, z)
    return camera_from_object


STREET = {
    5: ("sedan", on_the_road(-4.0, 11.0, 0.6)),
    17: ("van", on_the_road(0.5, 14.0, 2.2)),
    300: ("pickup", on_the_road(4.5, 12.0, 3.9)),
}


def street(pipeline, camera):
    """The label image of three vehicles, of which the van is partly hidden."""
    meshes = [pipeline.library[name].mesh for name, _ in STREET.values()]
    poses = np.stack([truth for _, truth in STREET.values()])
    return render_scene(meshes, poses, camera, labels=list(STREET)).labels


WIDE = Camera(np.array([[600.0, 0, 399.5], [0, 600.0, 249.5], [0, 0, 1]]), (500, 800))
LENSES = {
    "none": WIDE,
    "plumb_bob": Camera(
        WIDE.intrinsics, WIDE.size, "plumb_bob", np.array([-0.25, 0.08, 1e-3, -1e-3, 0.0])
    ),
    "equidistant": Camera(
        np.array([[560.0, 0, 399.5], [0, 560.0, 249.5], [0, 0, 1]]),
        WIDE.size,
        "equidistant",
        np.array([0.03, -0.01, 2e-3, 0.0]),
    ),
}


# --- whole frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize("start", ["codebook alone", "initial poses"])
def test_three_vehicles_in_one_label_image(vehicles, lens, start):
    camera, reports = LENSES[lens], Reports()
    masks = street(vehicles, camera)
    labels = {label: name for label, (name, _) in STREET.items()}
    rng = np.random.default_rng(3)
    initial = {}
    if start == "initial poses":
        for label, (_, truth) in STREET.items():
            initial[label] = [turned(truth, random_turn(rng, 0.25), rng.normal(size=3) * 0.15)]
    poses = vehicles.process(Frame(masks, camera, labels, initial), reports)
    assert reports == []
    assert [found.label for found in poses] == sorted(STREET)
    for found in poses:
        name, truth = STREET[found.label]
        assert found.name == name
        candidates = [found, *found.alternatives]
        nearest = min(candidates, key=lambda one: angle_deg(one.camera_from_object, truth))
        # a vehicle's silhouette is nearly that of its mirror image: that is said, not hidden
        assert nearest is found or found.quality == "ambiguous"
        assert angle_deg(nearest.camera_from_object, truth) < 1.5
        assert shift_between(nearest.camera_from_object, truth) < 0.25
        assert found.iou > 0.95
        assert 0.0 <= found.score <= 1.0
        # Where the pickup meets the van, whose pixels are unknown, outline that lies a fraction of
        # a pixel within the mask finds no border near: that counts at the true pose as well.
        seen = observe_mask(masks, found.label, camera)
        (at_truth,) = vehicles.refiner.evaluate([seen], guesses(name, truth))
        assert found.contour_rms_px < max(1.0, at_truth.fits["silhouette"].rms)
        assert found.covariance.shape == (6, 6)
        assert (np.linalg.eigvalsh(found.covariance) > 0).all()
        assert all(a.score >= b.score for a, b in pairwise(found.alternatives))
    if start == "initial poses":
        assert all(angle_deg(f.camera_from_object, STREET[f.label][1]) < 1.5 for f in poses)
    hidden = next(found for found in poses if found.name == "van")
    assert hidden.visible_fraction < 0.98


def test_one_bad_object_does_not_harm_the_others(vehicles):
    masks = street(vehicles, WIDE)
    labels = {label: name for label, (name, _) in STREET.items()}
    initial = {label: [turned(truth, (0.1, 0.1, 0))] for label, (_, truth) in STREET.items()}
    good = vehicles.process(Frame(masks, WIDE, labels, initial))
    worse = masks.copy()
    worse[0, 0] = 9
    worse[-1, -30:] = 10
    labels |= {9: "sedan", 10: "lorry", 11: "van", 0: "van"}
    initial |= {
        9: [np.eye(4)],
        300: [np.full((4, 4), np.nan), np.eye(3), *initial[300]],
        5: [
            *initial[5],
            pose(translation=(0, 0, -9)),
            2 * np.eye(4),
            pose(translation=(0, 0, 1e9)),
        ],
    }
    reports = Reports()
    poses = vehicles.process(Frame(worse, WIDE, labels, initial), reports)
    assert [found.label for found in poses] == sorted(STREET)
    for found, before in zip(poses, good, strict=True):
        np.testing.assert_array_equal(found.camera_from_object, before.camera_from_object)
        assert found.score == before.score
    assert "1 pixels" in reports.texts(9)
    assert "'lorry' is not in the object library (it has pickup, sedan, van)" in reports.texts(10)
    assert "no pixel" in reports.texts(11)
    assert "background" in reports.texts(0)
    assert "NaN" in reports.texts(300) and "shape (3, 3)" in reports.texts(300)
    assert "behind the camera" in reports.texts(5) and "not a rotation" in reports.texts(5)
    assert "1e+09 m away" in reports.texts(5)


def test_reports_go_to_the_log_if_nobody_listens(blocks, caplog):
    masks = np.zeros(CAMERA.size, np.uint8)
    with caplog.at_level(logging.WARNING):
        assert blocks.process(Frame(masks, CAMERA, {3: "ell"})) == []
    assert "label 3: ell left out: label 3 has no pixel in the mask" in caplog.text


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(np.ones((256, 256), np.uint8), id="whole image"),
        pytest.param(np.pad(np.zeros((254, 254), np.uint8), 1, constant_values=1), id="border"),
        pytest.param(np.pad(np.ones((1, 1), np.uint8), (100, 155)), id="one pixel"),
        pytest.param(np.pad(np.ones((6, 6), np.uint8), (100, 150)), id="tiny"),
        pytest.param(np.pad(np.ones((128, 256), np.uint8), ((0, 128), (0, 0))), id="upper half"),
        pytest.param(np.indices((256, 256)).sum(axis=0).astype(np.uint8) % 2, id="checkerboard"),
        pytest.param(
            (np.random.default_rng(0).random((256, 256)) < 0.3).astype(np.uint8), id="noise"
        ),
    ],
)
def test_masks_of_any_kind_are_answered_or_reported(blocks, mask):
    reports = Reports()
    with np.errstate(all="raise"):
        poses = blocks.process(Frame(mask, CAMERA, {1: "ell"}), reports)
    assert len(poses) + len(reports) == 1
    for found in poses:
        assert np.isfinite(found.camera_from_object).all() and np.isfinite(found.covariance).all()
        assert 0.0 <= found.score <= 1.0
    # and the next good frame is answered
    good = Frame(silhouette(ell(), TRUTH, CAMERA), CAMERA, {1: "ell"})
    assert angle_deg(blocks.process(good)[0].camera_from_object, TRUTH) < 1.0


def test_frames_that_cannot_be_used(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    for wrong, message in (
        (masks[:200], "the label image is 256x200 and the camera 256x256 pixels"),
        (masks.astype(np.float32), "float32"),
        (np.stack([masks] * 3, axis=-1), r"shape \(256, 256, 3\)"),
        (masks.astype("S1"), "whole numbers"),
        (np.zeros((0, 0), np.uint8), "0x0"),
    ):
        with pytest.raises(FrameError, match=message):
            blocks.process(Frame(wrong, CAMERA, {1: "ell"}))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.uint16, np.int32, np.int64, ">i4"])
def test_label_images_of_every_kind(blocks, kind):
    masks = silhouette(ell(), TRUTH, CAMERA).astype(kind)
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "ell"}, {1: [turned(TRUTH, (0.1, 0, 0))]}))
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5


def test_nothing_to_do(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    assert blocks.process(Frame(masks, CAMERA, {})) == []


def test_frames_leave_no_trace(blocks):
    """The same frame gives the same answer whatever came before."""
    frame = Frame(silhouette(ell(), TRUTH, CAMERA), CAMERA, {1: "ell"})
    (first,) = blocks.process(frame)
    other = turned(TRUTH, (0, 0.9, 0), (0.05, 0, 0.2))
    blocks.process(Frame(silhouette(box(), other, CAMERA) * 7, CAMERA, {7: "box"}))
    (again,) = blocks.process(frame)
    np.testing.assert_array_equal(first.camera_from_object, again.camera_from_object)
    np.testing.assert_array_equal(first.covariance, again.covariance)
    assert first.score == again.score
    (fresh,) = Pipeline(blocks.library, device="cpu").process(frame)
    np.testing.assert_array_equal(first.camera_from_object, fresh.camera_from_object)


# --- verdicts -----------------------------------------------------------------------------------


def test_an_asymmetric_object_is_good(blocks):
    (found,) = blocks.process(Frame(silhouette(ell(), TRUTH, CAMERA), CAMERA, {1: "ell"}))
    assert found.quality == "good" and found.score > 0.8
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    assert found.belief == pytest.approx(found.score / found.iou)
    assert found.reason in ("converged", "stalled", "max_iterations")


def test_a_box_is_ambiguous_and_the_right_pose_among_its_alternatives(blocks):
    masks = silhouette(box(), TRUTH, CAMERA)
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "box"}))
    assert found.quality == "ambiguous"
    assert found.score < 0.75 and found.iou > 0.98
    candidates = [found, *found.alternatives]
    assert len(candidates) >= 2
    errors = [angle_deg(one.camera_from_object, TRUTH) for one in candidates]
    assert min(errors) < 1.0
    for one in found.alternatives:
        assert 0.0 <= one.score <= found.score + 1e-9
        assert one.alternatives == []
    total = sum(one.belief for one in candidates)
    assert total == pytest.approx(1.0)


def test_a_given_pose_decides_between_poses_that_look_alike(blocks):
    masks = silhouette(box(), TRUTH, CAMERA)
    for flip in HALF_TURNS.discrete:
        wanted = TRUTH @ flip
        start = turned(wanted, (0.1, 0.1, 0.1))
        (found,) = blocks.process(Frame(masks, CAMERA, {1: "box"}, {1: [start]}, search=(1,)))
        assert angle_deg(found.camera_from_object, wanted) < 1.0
        assert found.quality == "ambiguous"  # silhouettes cannot tell, though the start can


def test_declared_symmetries_are_no_ambiguity():
    told = model("box", box(), symmetries=HALF_TURNS)
    can = model("can", cylinder(), symmetries=Symmetries(axes=(Axis((0, 0, 1)),)))
    pipeline = Pipeline(library(told, can), device="cpu")
    truth = pose((0.9, -0.5, 0.3), (-0.08, 0.02, 0.65))
    other = pose((1.2, 0.4, 0.0), (0.1, -0.02, 0.6))
    masks = silhouette(told.mesh, truth, CAMERA) + 2 * silhouette(can.mesh, other, CAMERA)
    found = pipeline.process(Frame(masks, CAMERA, {1: "box", 2: "can"}))
    for one, expected in zip(found, (truth, other), strict=True):
        symmetries = pipeline.library[one.name].symmetries
        error = symmetries.reduced_rotation_error(one.camera_from_object, expected)
        candidates = [error] + [
            symmetries.reduced_rotation_error(rival.camera_from_object, expected)
            for rival in one.alternatives
        ]
        assert np.degrees(min(candidates)) < 1.5
        for rival in one.alternatives:  # none looks the same
            apart = symmetries.reduced_rotation_error(
                rival.camera_from_object, one.camera_from_object
            )
            assert np.degrees(apart) > 5
    assert found[0].quality == "good"


def test_a_mask_of_something_else_is_poor(blocks):
    masks = np.zeros(CAMERA.size, np.uint8)
    masks[30:50, 20:230] = 1
    masks[30:220, 20:40] = 1
    masks[200:220, 20:230] = 1  # a frame, open to one side
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "box"}))
    assert found.quality == "poor" and found.score < 0.7


def test_a_hidden_half_is_partial(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    columns = np.flatnonzero(masks.any(axis=0))
    masks[:, : int(columns.mean()) + 5] = 2
    start = turned(TRUTH, (0.05, 0.05, 0))
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "ell"}, {1: [start]}))
    assert found.visible_fraction < 0.75
    assert found.quality in ("partial", "ambiguous")
    best = min([found, *found.alternatives], key=lambda o: angle_deg(o.camera_from_object, TRUTH))
    assert angle_deg(best.camera_from_object, TRUTH) < 2.0


# --- start poses and search ---------------------------------------------------------------------


def test_search_may_be_left_out(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    never = Pipeline(blocks.library, Settings(search="never"), "cpu")
    reports = Reports()
    assert never.process(Frame(masks, CAMERA, {1: "ell"}), reports) == []
    assert "ell has no start pose, and search is 'never'" in reports.texts(1)
    (found,) = never.process(Frame(masks, CAMERA, {1: "ell"}, {1: [turned(TRUTH, (0.1, 0, 0))]}))
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5


def test_a_wrong_start_is_searched_around(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    far = turned(TRUTH, (0.0, 2.8, 0.0))
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "ell"}, {1: [far]}))
    candidates = [found, *found.alternatives]
    assert min(angle_deg(one.camera_from_object, TRUTH) for one in candidates) < 0.5


def test_a_start_beside_the_image_is_searched_around(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    for shift in ((3.0, 0, 0), (0, 9e4, 0), (0, 0, 500.0)):
        beside = turned(TRUTH, (0, 0, 0), shift)
        (found,) = blocks.process(Frame(masks, CAMERA, {1: "ell"}, {1: [beside]}))
        assert angle_deg(found.camera_from_object, TRUTH) < 0.5


def test_a_tracked_object_that_fits_is_not_searched(blocks, monkeypatch):
    masks = silhouette(ell(), TRUTH, CAMERA)
    frame = Frame(masks, CAMERA, {1: "ell"}, {1: [turned(TRUTH, (0.1, 0, 0))]}, tracked=(1,))

    def no_search(*asked):
        raise AssertionError("searched")

    monkeypatch.setattr(ViewCodebook, "match", no_search)
    (found,) = blocks.process(frame)
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    frame.search = (1,)
    with pytest.raises(AssertionError, match="searched"):
        blocks.process(frame)


def test_several_start_poses_are_compared(blocks):
    masks = silhouette(ell(), TRUTH, CAMERA)
    starts = [turned(TRUTH, (0, 0, 2.0)), turned(TRUTH, (2.0, 0, 0)), turned(TRUTH, (0.1, 0.1, 0))]
    (found,) = blocks.process(Frame(masks, CAMERA, {1: "ell"}, {1: starts}))
    candidates = [found, *found.alternatives]
    assert min(angle_deg(one.camera_from_object, TRUTH) for one in candidates) < 0.5
    assert max(one.iou for one in candidates) > 0.99


# --- making one ---------------------------------------------------------------------------------


def test_settings_are_checked():
    with pytest.raises(ValueError, match="auto, always or never"):
        Settings(search="sometimes")
    for name in ("hypotheses", "keep", "batch"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            Settings(**{name: 0})


def test_an_empty_library_is_refused():
    with pytest.raises(ValueError, match="empty"):
        Pipeline({})


def test_devices():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "cuda:0")
    for wrong in ("tpu", "cuda:99"):
        with pytest.raises(ValueError, match="choose auto or cpu"):
            choose_device(wrong)


def test_a_small_batch_gives_the_same(blocks):
    frame = Frame(silhouette(ell(), TRUTH, CAMERA), CAMERA, {1: "ell"})
    (expected,) = blocks.process(frame)
    (found,) = Pipeline(blocks.library, Settings(batch=3), "cpu").process(frame)
    np.testing.assert_array_equal(found.camera_from_object, expected.camera_from_object)


def test_warming_up_says_nothing(caplog):
    pipeline = Pipeline(library(model("ell", ell())), device="cpu")
    with caplog.at_level(logging.WARNING):
        pipeline.warm_up()
    assert caplog.text == ""
