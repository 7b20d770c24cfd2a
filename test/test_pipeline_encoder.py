# SPDX-License-Identifier: Apache-2.0
"""The pipeline with an encoder: names, first poses, categories, and the paper's refinements."""

import dataclasses

import numpy as np
import pytest
import torch
from shapes import (
    angle_deg,
    box,
    ell,
    model,
    pinhole_camera,
    pose,
    shift_between,
    silhouette,
    turned,
)

from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder, PoseHypothesis
from pose_refiner_ros.encoder.network import Encoder, EncoderSettings
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.settings import CHOICES, Settings

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
OTHER = turned(TRUTH, (0.0, 2.6, 0.0))  # a hypothesis that is wrong
SURE = np.diag([0.02**2] * 3 + [0.1**2] * 3)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_REFINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


class Reports(list):
    def __call__(self, label, text):
        self.append((label, text))

    def texts(self, label) -> str:
        return "; ".join(text for which, text in self if which == label)


class FakeEncoder:
    """Says the same of every mask, and how often it was asked."""

    needs_photo = False

    def __init__(self, probabilities, *hypotheses):
        self.probabilities = probabilities
        self.hypotheses = hypotheses or ((TRUTH, 0.6), (OTHER, 0.4))
        self.asked = []

    @property
    def classes(self):
        return tuple(self.probabilities)

    def estimate(self, observations):
        self.asked += [seen.label for seen in observations]
        said = [PoseHypothesis(one, weight, SURE, 0.1) for one, weight in self.hypotheses]
        return [Estimate(dict(self.probabilities), said) for _ in observations]


def library(exact: bool = True, mesh: Mesh | None = None) -> dict:
    models = [
        model("ell", mesh or ell(), category="letter", exact_shape=exact),
        model("box", box(), category="brick", exact_shape=exact),
        model("plain", box(0.1, 0.1, 0.2)),
    ]
    return {one.name: one for one in models}


EXACT = library()
CATEGORIES = library(exact=False)
LETTER = {"letter": 0.8, "brick": 0.15, "dragon": 0.05}


def frame(label=1, name=None, truth=TRUTH, mesh=None, **more) -> Frame:
    masks = silhouette(mesh or ell(), truth, CAMERA) * np.uint8(label)
    return Frame(masks, CAMERA, {label: name}, **more)


def two_objects(name_2) -> Frame:
    """Label 1: an L of unknown class; label 2: a box beside it."""
    beside = pose((0.3, 0.5, 0.2), (0.18, 0.17, 0.8))
    masks = silhouette(ell(), TRUTH, CAMERA)
    masks[silhouette(box(), beside, CAMERA) > 0] = 2
    return Frame(masks, CAMERA, {1: None, 2: name_2})


def followed(pipeline, one: Frame, reports=None) -> tuple[dict, list]:
    """What whoever follows the objects is told, once a frame, and the poses."""
    told = []
    poses = pipeline.process(one, Reports() if reports is None else reports, told.append)
    (shares,) = told
    return shares, poses


# --- names --------------------------------------------------------------------------------------


def test_an_unknown_object_is_named():
    encoder, reports = FakeEncoder(LETTER), Reports()
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame(), reports)
    assert found.name == "ell" and found.class_probability == pytest.approx(0.8)
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0
    assert found.score <= found.iou * found.belief * 0.8 + 1e-9 and reports == []


def test_classes_that_the_library_lacks_keep_their_probability():
    encoder = FakeEncoder({"dragon": 0.4, "brick": 0.1, "letter": 0.5})
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame())
    assert found.name == "ell" and found.class_probability == pytest.approx(0.5)
    assert found.quality == "ambiguous"


def test_what_is_likeliest_of_a_class_that_the_library_lacks_is_left_out():
    encoder, reports = FakeEncoder({"dragon": 0.7, "brick": 0.1, "letter": 0.2}), Reports()
    assert Pipeline(EXACT, device="cpu", encoder=encoder).process(frame(), reports) == []
    assert reports == [
        (
            1,
            "the encoder takes it for dragon (70%), and no object of the library has that "
            "category: add one, or name the label",
        )
    ]


def test_a_class_is_no_object_of_the_same_name():
    """`plain` is an object, and has no category."""
    encoder, reports = FakeEncoder({"plain": 0.9, "letter": 0.1}), Reports()
    assert Pipeline(EXACT, device="cpu", encoder=encoder).process(frame(), reports) == []
    assert "takes it for plain (90%)" in reports.texts(1)


def test_a_given_name_wins():
    encoder = FakeEncoder({"letter": 0.01, "brick": 0.99})
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame(name="ell"))
    assert found.name == "ell" and found.class_probability == 1.0
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0


def test_classes_that_the_library_lacks_are_said():
    encoder, reports = FakeEncoder({"dragon": 1.0}), Reports()
    poses = Pipeline(EXACT, device="cpu", encoder=encoder).process(two_objects("box"), reports)
    assert [one.label for one in poses] == [2]
    assert "takes it for dragon (100%)" in reports.texts(1) and reports.texts(2) == ""


def test_without_an_encoder_only_the_nameless_is_left_out():
    reports = Reports()
    pipeline = Pipeline(EXACT, device="cpu")
    shares, (found,) = followed(pipeline, two_objects("box"), reports)
    assert found.name == "box" and shares == {}
    assert "there is no encoder" in reports.texts(1) and reports.texts(2) == ""


def test_wrong_names_and_masks_do_not_reach_the_others():
    encoder, reports = FakeEncoder(LETTER), Reports()
    both = two_objects("teapot")
    both.masks[0, 0] = 3
    both.labels = {**both.labels, 0: None, 3: None, 9: None}
    poses = Pipeline(EXACT, device="cpu", encoder=encoder).process(both, reports)
    assert [one.label for one in poses] == [1]
    assert "'teapot' is not in the object library" in reports.texts(2)
    assert "too small" in reports.texts(3) and "no pixel" in reports.texts(9)
    assert "background" in reports.texts(0)
    assert encoder.asked == [1]


def test_objects_that_the_encoder_does_not_know_are_not_asked_about():
    encoder = FakeEncoder(LETTER)
    plain = box(0.1, 0.1, 0.2)
    truth = pose((0.3, 0.5, 0.2), (0, 0, 0.8))
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(
        frame(name="plain", truth=truth, mesh=plain)
    )
    assert encoder.asked == [] and found.iou > 0.97


def test_whoever_follows_is_told_of_the_nameless_alone():
    encoder, reports = FakeEncoder(LETTER), Reports()
    pipeline = Pipeline(EXACT, device="cpu", encoder=encoder)
    both = two_objects(None)
    both.labels = {**both.labels, 7: None}
    shares, poses = followed(pipeline, both, reports)
    assert shares == {label: {"ell": 0.8, "box": 0.15, "(dragon)": 0.05} for label in (1, 2)}
    assert "no pixel" in reports.texts(7)
    assert [one.label for one in poses] == [1, 2]
    shares, _ = followed(pipeline, two_objects("box"))
    assert set(shares) == {1}
    assert followed(pipeline, frame(name="ell"))[0] == {}
    assert followed(pipeline, frame(label=0))[0] == {}


def test_whoever_follows_may_name_what_the_encoder_would_name_otherwise():
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeEncoder(LETTER))
    beside = two_objects(None)
    truth = pose((0.3, 0.5, 0.2), (0.18, 0.17, 0.8))

    def follow(shares):
        assert max(shares[2], key=shares[2].get) == "ell"
        beside.labels = {**beside.labels, 2: "box"}
        beside.initial_poses = {2: [turned(truth, (0.05, 0.1, 0.0))]}
        beside.tracked = (2,)

    letter, brick = pipeline.process(beside, Reports(), follow)
    assert letter.name == "ell" and letter.class_probability == pytest.approx(0.8)
    assert brick.name == "box" and brick.class_probability == 1.0
    assert angle_deg(brick.camera_from_object, truth) < 1.0


def test_starts_that_whoever_follows_gives_come_first():
    """Also those of a label that had a name all along."""
    pipeline = Pipeline(EXACT, Settings(search="never"), "cpu", FakeEncoder(LETTER, (OTHER, 1.0)))
    given = frame(name="plain", truth=TRUTH)

    def follow(shares):
        given.labels = {1: "ell"}
        given.initial_poses = {1: [turned(TRUTH, (0.05, 0, 0))]}

    (found,) = pipeline.process(given, Reports(), follow)
    assert found.name == "ell" and angle_deg(found.camera_from_object, TRUTH) < 0.5


def test_what_whoever_follows_leaves_out_is_left_out_without_a_word():
    reports = Reports()
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeEncoder(LETTER))
    both = two_objects("box")

    def follow(shares):
        both.labels = {2: "box"}

    (found,) = pipeline.process(both, reports, follow)
    assert found.label == 2 and reports == []


def test_no_pose_is_made_for_a_name_that_whoever_follows_takes_back():
    """To None: then the encoder's opinion counts."""
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeEncoder(LETTER))
    named = frame(name="box")

    def follow(shares):
        named.labels = {1: None}

    (found,) = pipeline.process(named, Reports(), follow)
    assert found.name == "ell" and found.class_probability == pytest.approx(0.8)


# --- shapes that are the object's own, and those of a category ----------------------------------


def test_an_exact_shape_is_fitted_to_the_pixel(monkeypatch):
    start = turned(TRUTH, (0.15, 0.1, -0.1), (0.01, 0, 0.03))
    encoder = FakeEncoder(LETTER, (start, 0.9), (OTHER, 0.1))
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame())
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    assert shift_between(found.camera_from_object, TRUTH) < 0.003 and found.iou > 0.98


def test_an_exact_shape_is_searched_where_the_encoder_is_wrong():
    encoder = FakeEncoder(LETTER, (OTHER, 1.0))
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame())
    candidates = [found, *found.alternatives]
    assert min(angle_deg(one.camera_from_object, TRUTH) for one in candidates) < 0.5


def test_given_poses_of_an_exact_shape_come_first():
    encoder = FakeEncoder(LETTER, (OTHER, 1.0))
    start = turned(TRUTH, (0.05, 0, 0))
    given = frame(name="ell", initial_poses={1: [start]})
    (found,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(given)
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5


@pytest.fixture
def no_codebook(monkeypatch):
    def never(self, seen, count):
        raise AssertionError("searched")

    monkeypatch.setattr(ViewCodebook, "match", never)


def test_a_category_is_refined_from_the_encoders_hypotheses_alone(no_codebook):
    start = turned(TRUTH, (0.1, 0.1, 0))
    encoder = FakeEncoder(LETTER, (start, 0.9), (OTHER, 0.1))
    pipeline = Pipeline(CATEGORIES, device="cpu", encoder=encoder)
    (found,) = pipeline.process(frame())
    assert found.name == "ell" and angle_deg(found.camera_from_object, TRUTH) < 8.0
    pipeline.settings = Settings(search="always")
    assert len(pipeline.process(frame(search=(1,)))) == 1


def test_a_category_is_held_to_the_encoders_word():
    """A broader object of the category: the outline alone would turn the medoid."""
    broad = Mesh(ell().vertices * (1.2, 1.15, 0.9), ell().faces)
    encoder = FakeEncoder(LETTER, (TRUTH, 1.0))
    (exact,) = Pipeline(EXACT, device="cpu", encoder=encoder).process(frame(mesh=broad))
    (held,) = Pipeline(CATEGORIES, device="cpu", encoder=encoder).process(frame(mesh=broad))
    error = angle_deg(held.camera_from_object, TRUTH)
    assert error < angle_deg(exact.camera_from_object, TRUTH) and error < 4.0


def test_the_covariance_of_a_category_is_long_along_the_ray():
    encoder = FakeEncoder(LETTER, (TRUTH, 1.0))
    ray = TRUTH[:3, 3] / np.linalg.norm(TRUTH[:3, 3])
    along = {}
    for key, models in (("exact", EXACT), ("category", CATEGORIES)):
        (found,) = Pipeline(models, device="cpu", encoder=encoder).process(frame())
        assert (np.linalg.eigvalsh(found.covariance) > 0).all()
        along[key] = np.sqrt(ray @ found.covariance[:3, :3] @ ray)
    assert along["category"] > 0.1 * 0.6 > 3 * along["exact"]


def test_the_encoders_weights_count_between_poses_that_fit_alike():
    """A box looks the same turned half around: nothing but the encoder tells which it is."""
    truth = pose((0.5, 0.7, 0.2), (0, 0, 0.8))
    behind = truth.copy()
    behind[:3, :3] = truth[:3, :3] @ np.diag([-1.0, -1.0, 1.0])
    for likelier, other in ((truth, behind), (behind, truth)):
        encoder = FakeEncoder({"brick": 1.0}, (likelier, 0.85), (other, 0.15))
        pipeline = Pipeline(CATEGORIES, device="cpu", encoder=encoder)
        (found,) = pipeline.process(frame(truth=truth, mesh=box()))
        assert angle_deg(found.camera_from_object, likelier) < 5.0
        assert found.belief == pytest.approx(0.85, abs=0.1)
        assert len(found.alternatives) == 1


def test_a_tracked_category_goes_on_without_a_search(no_codebook):
    encoder = FakeEncoder(LETTER, (TRUTH, 0.5), (OTHER, 0.5))
    pipeline = Pipeline(CATEGORIES, device="cpu", encoder=encoder)
    start, angles = turned(TRUTH, (0.02, 0.02, 0)), []
    for step in range(4):
        truth = turned(TRUTH, (0, 0.03 * step, 0), (0.004 * step, 0, 0))
        moving = frame(
            name="ell", truth=truth, initial_poses={1: [start]}, tracked=(1,), search=(1,)
        )
        (found,) = pipeline.process(moving)
        start = found.camera_from_object
        angles.append(angle_deg(start, truth))
    assert max(angles) < 8.0


# --- refinements --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_encoder() -> PoseEncoder:
    torch.manual_seed(0)
    settings = EncoderSettings(("letter", "brick"), size=32, channels=(4, 4, 4, 4, 4), dense=8)
    return PoseEncoder(Encoder(settings))


@pytest.fixture
def small_pictures(monkeypatch):
    from pose_refiner_ros.baselines import gradient_refiner

    monkeypatch.setattr(gradient_refiner.GradientRefiner.__init__, "__defaults__", (32, 5, "cpu"))


@pytest.mark.parametrize("refinement", CHOICES["refinement"])
@pytest.mark.parametrize("models", [EXACT, CATEGORIES], ids=["exact", "category"])
def test_every_refinement_with_a_real_encoder(tiny_encoder, small_pictures, refinement, models):
    reports = Reports()
    pipeline = Pipeline(models, Settings(refinement=refinement), "cpu", tiny_encoder)
    start = turned(TRUTH, (0.1, 0, 0))
    poses = pipeline.process(frame(name="ell", initial_poses={1: [start]}), reports)
    nameless = pipeline.process(frame(), reports)
    assert len(poses) == 1
    for found in (*poses, *nameless):
        assert found.name in ("ell", "box")
        assert np.isfinite(found.camera_from_object).all() and found.covariance.shape == (6, 6)
        assert 0 <= found.score <= 1


def test_no_refinement_changes_nothing():
    encoder = FakeEncoder(LETTER)
    pipeline = Pipeline(EXACT, Settings(refinement="none"), "cpu", encoder)
    start = turned(TRUTH, (0.1, 0, 0))
    (found,) = pipeline.process(frame(name="ell", initial_poses={1: [start]}))
    np.testing.assert_allclose(found.camera_from_object, start, atol=1e-12)
    (found,) = pipeline.process(frame())
    np.testing.assert_allclose(found.camera_from_object, TRUTH, atol=1e-12)


def test_the_pose_goes_down_the_gradient(small_pictures):
    start = turned(TRUTH, (0.1, 0, 0), (0.01, 0, 0.02))
    encoder = FakeEncoder(LETTER, (start, 1.0))
    ious = {}
    for refinement in ("none", "gradient_pose"):
        pipeline = Pipeline(EXACT, Settings(refinement=refinement), "cpu", encoder)
        (found,) = pipeline.process(frame())
        ious[refinement] = found.iou
    assert ious["gradient_pose"] > ious["none"]


def test_what_the_encoder_does_not_know_is_refined_by_its_pose(tiny_encoder, small_pictures):
    reports = Reports()
    pipeline = Pipeline(EXACT, Settings(refinement="gradient_encoder"), "cpu", tiny_encoder)
    truth = pose((0.3, 0.5, 0.2), (0, 0, 0.8))
    plain = frame(name="plain", truth=truth, mesh=box(0.1, 0.1, 0.2), initial_poses={1: [truth]})
    (found,) = pipeline.process(plain, reports)
    assert found.iou > 0.9 and "does not know plain" in reports.texts(1)


def test_unknown_refinements_are_named():
    with pytest.raises(ValueError, match="refinement is 'magic'; choose solver, gradient_pose"):
        Settings(refinement="magic")
    with pytest.raises(ValueError, match="refinement"):
        dataclasses.replace(Settings(), refinement="")


def test_warming_up_asks_the_encoder(tiny_encoder):
    encoder = FakeEncoder(LETTER)
    Pipeline(EXACT, device="cpu", encoder=encoder).warm_up()
    assert encoder.asked
    Pipeline(EXACT, device="cpu", encoder=tiny_encoder).warm_up()


# --- colours ------------------------------------------------------------------------------------


class FakeColourEncoder(FakeEncoder):
    needs_photo = True

    def estimate(self, observations):
        assert all(seen.rgb.shape == (*seen.mask.shape, 3) for seen in observations)
        return super().estimate(observations)


def test_an_encoder_of_colours_gets_the_photo():
    reports, one = Reports(), frame(image=np.zeros((256, 256, 3), np.uint8))
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeColourEncoder(LETTER))
    shares, (found,) = followed(pipeline, one, reports)
    assert shares[1]["ell"] == pytest.approx(0.8)
    assert found.name == "ell" and reports == []


def test_without_a_photo_what_is_named_is_found_all_the_same():
    reports, both = Reports(), two_objects("box")
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeColourEncoder(LETTER))
    shares, (found,) = followed(pipeline, both, reports)
    assert shares == {}
    assert found.name == "box" and "none of use came with the masks" in reports.texts(1)


def test_a_photo_of_another_size_is_said():
    reports, both = Reports(), two_objects("box")
    both.image = np.zeros((100, 100, 3), np.uint8)
    pipeline = Pipeline(EXACT, device="cpu", encoder=FakeColourEncoder(LETTER))
    (found,) = pipeline.process(both, reports)
    assert found.name == "box" and "100x100" in reports.texts(2)
    assert "left out" not in reports.texts(2)
    assert "100x100" in reports.texts(1) and "its class is unknown" in reports.texts(1)
