# SPDX-License-Identifier: Apache-2.0
"""Objects with a radiance field: the photo decides where silhouettes cannot."""

import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from painted import features_of, painted_block, photo, tiled
from posed_scene import orbit
from shapes import (
    angle_deg,
    box,
    ell,
    model,
    pinhole_camera,
    pose,
    random_turn,
    shift_between,
    turned,
)

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.field_mesh import field_mesh
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.refinement.feature_matches import FeatureMatcher
from pose_refiner_ros.refinement.ray_sampling import SAMPLINGS
from pose_refiner_ros.refinement.search import WRONG_COLOURS
from pose_refiner_ros.settings import CHOICES, Settings

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
CUBE = painted_block(voxel=0.005)
OTHER_CUBE = pose((0.0, np.pi / 2, 0.0), (0, 0, 0))  # the cube turned, another side to the front
SETTINGS = Settings(photo_rays=512)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_REFINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pipeline(own_cache):
    mesh = field_mesh(CUBE)
    cube = model("cube", mesh, silhouette_mesh=simplify_for_silhouette(mesh), field=CUBE)
    return Pipeline({"cube": cube, "ell": model("ell", ell())}, SETTINGS, "cpu")


@pytest.fixture
def settings(pipeline):
    yield
    pipeline.settings = SETTINGS


class Reports(list):
    def __call__(self, label, text):
        self.append((label, text))


def frame_of(truth=TRUTH, camera=CAMERA, **more) -> Frame:
    image, mask = photo(CUBE, truth, camera)
    return Frame(mask, camera, {1: "cube"}, **{"image": image, **more})


@pytest.mark.parametrize("seed", range(4))
def test_photo_finds_the_one_of_24_poses_that_a_cube_has(pipeline, seed):
    rng = np.random.default_rng(seed)
    truth = turned(TRUTH, rng.normal(size=3), rng.normal(size=3) * 0.02)
    reports = Reports()
    (found,) = pipeline.process(frame_of(truth), reports)
    assert reports == []
    # sides of one colour each tell a turn about the middle only roughly; the others are 90 deg off
    assert angle_deg(found.camera_from_object, truth) < 2.0
    assert shift_between(found.camera_from_object, truth) < 0.006
    assert found.quality == "good" and found.belief > 0.9
    assert found.photo_rms < 0.05
    for other in found.alternatives:
        assert angle_deg(found.camera_from_object, other.camera_from_object) > 8.0
    assert (np.linalg.eigvalsh(found.covariance) > 0).all()


def test_starts_that_end_alike_are_one(pipeline):
    starts = [turned(TRUTH, turn) for turn in ((0.2, 0.1, 0), (-0.1, 0.3, 0), (0, -0.1, 0.3))]
    (found,) = pipeline.process(frame_of(initial_poses={1: starts}))
    assert found.alternatives == [] and found.belief == 1.0


def test_silhouette_alone_does_not(pipeline, settings):
    pipeline.settings = replace(SETTINGS, photometric="never")
    (found,) = pipeline.process(frame_of())
    assert found.photo_rms is None
    assert found.quality == "ambiguous" and found.alternatives


def test_given_pose_on_the_wrong_side_is_searched_for(pipeline):
    wrong = TRUTH @ OTHER_CUBE
    (found,) = pipeline.process(frame_of(initial_poses={1: [wrong]}))
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    assert found.quality == "good"


def test_wrong_side_that_is_tracked_is_not_good(pipeline):
    reports = Reports()
    frame = frame_of(initial_poses={1: [TRUTH @ OTHER_CUBE]}, tracked={1})
    (found,) = pipeline.process(frame, reports)
    assert angle_deg(found.camera_from_object, TRUTH) > 80.0
    assert found.iou > 0.95
    assert found.quality == "ambiguous" and found.photo_rms > 0.1
    assert "the colours of cube are not those of its field" in reports[0][1]
    frame.search = {1}  # as the tracker asks for once in a while
    (found,) = pipeline.process(frame)
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    assert found.quality == "good"


def test_tracked_pose_is_followed(pipeline, monkeypatch):
    start = turned(TRUTH, (0.02, -0.03, 0.01), (0.004, -0.003, 0.01))
    monkeypatch.setattr(ViewCodebook, "match", lambda *asked: pytest.fail("searched"))
    frame = frame_of(initial_poses={1: [start]}, tracked={1}, search={1})
    (found,) = pipeline.process(frame)  # a fresh look is due, and not needed
    assert angle_deg(found.camera_from_object, TRUTH) < 0.5
    assert shift_between(found.camera_from_object, TRUTH) < 0.003
    assert found.quality == "good"


def test_photo_of_a_fisheye(pipeline):
    from cv2 import remap

    intrinsics = np.array([[220.0, 0, 199.5], [0, 220.0, 149.5], [0, 0, 1]])
    lens = Camera(intrinsics, (300, 400), "equidistant", np.array([0.03, -0.01, 0.0, 0.0]))
    truth = pose((0.6, -0.7, 0.4), (0.3, 0.1, 0.6))
    # what a pinhole camera sees that looks at it, bent
    towards = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
    x = np.cross((0.0, 1.0, 0.0), towards)
    straight_from_lens = np.stack([x / np.linalg.norm(x), np.cross(towards, x), towards])
    straight_from_lens[1] /= np.linalg.norm(straight_from_lens[1])
    turn = np.eye(4)
    turn[:3, :3] = straight_from_lens
    straight = pinhole_camera(400, 600.0)
    image, mask = photo(CUBE, turn @ truth, straight)
    pixels = np.stack(np.meshgrid(np.arange(400), np.arange(300)), -1).astype(float)
    seen = straight.project(lens.rays(pixels) @ straight_from_lens.T).astype(np.float32)
    seen = np.nan_to_num(seen, nan=-1e4)
    maps = seen[..., 0], seen[..., 1]
    frame = Frame(remap(mask, *maps, 0), lens, {1: "cube"}, image=remap(image, *maps, 1))
    (found,) = pipeline.process(frame)
    assert angle_deg(found.camera_from_object, truth) < 1.0
    assert shift_between(found.camera_from_object, truth) < 0.01


@pytest.mark.parametrize("exposure", [True, False], ids=["exposure", "colours as they are"])
def test_in_other_light_the_pattern_tells(pipeline, exposure):
    frame = frame_of()
    frame.image = np.rint(0.55 * frame.image).astype(np.uint8)
    solving = Pipeline(pipeline.library, replace(SETTINGS, exposure=exposure), "cpu")
    reports = Reports()
    (found,) = solving.process(frame, reports)
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0
    assert found.quality == "good" and not reports
    assert (found.photo_rms > WRONG_COLOURS) != exposure and found.photo_correlation > 0.9


def test_no_photo_or_one_of_another_size(pipeline):
    for image, why in (
        (None, "no image came with the masks"),
        (np.zeros((10, 20, 3), np.uint8), "20x10"),
    ):
        reports = Reports()
        (found,) = pipeline.process(frame_of(image=image), reports)
        ((label, text),) = reports
        assert label == 1 and "its silhouette alone" in text and why in text
        assert found.photo_rms is None and found.iou > 0.97


@pytest.mark.parametrize("photometric", ["auto", "never"])
def test_other_refinements_tell_that_they_do_not_use_the_photo(pipeline, settings, photometric):
    pipeline.settings = Settings(refinement="none", photometric=photometric)
    reports = Reports()
    frame = frame_of(initial_poses={1: [TRUTH], 2: [TRUTH]})
    frame.masks[:4, :4], frame.labels[2] = 2, "cube"
    pipeline.process(frame, reports)
    told = [text for label, text in reports if label is None]
    if photometric == "never":  # as was asked for
        assert told == []
    else:
        (text,) = told
        assert "the photo is not used" in text and "cube" in text and "none" in text


def test_mesh_of_its_own_and_a_field(own_cache):
    """The outline is the mesh's, here with half a voxel less all around than the field's."""
    cube = model("cube", box(0.2, 0.2, 0.2), field=CUBE)
    (found,) = Pipeline({"cube": cube}, SETTINGS, "cpu").process(frame_of())
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0
    assert shift_between(found.camera_from_object, TRUTH) < 0.02
    assert found.quality == "good"


def test_objects_without_a_field_are_what_they_were(pipeline, caplog):
    """Beside one that has a field, and where all that the photo shows is noise."""
    rng = np.random.default_rng(0)
    camera = pinhole_camera(256, 300.0)
    image, mask = photo(CUBE, pose((0.6, -0.7, 0.4), (-0.12, 0.0, 0.8)), camera)
    from shapes import silhouette

    mask[silhouette(ell(), pose((0.3, 0.2, 0.9), (0.15, 0.0, 0.7)), camera) > 0] = 2
    image[mask == 2] = rng.integers(0, 255, (np.count_nonzero(mask == 2), 3))
    starts = {2: [pose((0.35, 0.2, 0.9), (0.14, 0.0, 0.7))]}
    both = Frame(mask, camera, {1: "cube", 2: "ell"}, starts, image)
    plain = Pipeline({"ell": pipeline.library["ell"], "box": model("box", box())}, device="cpu")
    with caplog.at_level(logging.WARNING):
        cube, beside = pipeline.process(both)
        (alone,) = plain.process(Frame(mask, camera, {2: "ell"}, starts))
    assert caplog.text == ""
    assert cube.photo_rms < 0.1 and beside.photo_rms is None
    np.testing.assert_allclose(beside.camera_from_object, alone.camera_from_object, atol=1e-6)


@pytest.fixture(scope="module")
def tiled_pipeline(own_cache):
    """Of a cube with tiles on all sides, seen in its training from all around."""
    cube = tiled(CUBE, side=5)
    cube.features = features_of(cube, CAMERA, orbit(16, 0.6))
    mesh = field_mesh(cube)
    cube = model("cube", mesh, silhouette_mesh=simplify_for_silhouette(mesh), field=cube)
    return Pipeline({"cube": cube}, SETTINGS, "cpu")


@pytest.mark.parametrize("init", ["auto", "features"])
def test_features_begin_what_has_no_start(tiled_pipeline, init, monkeypatch):
    def no_views(*args):
        raise AssertionError("the views are not needed")

    monkeypatch.setattr(ViewCodebook, "match", no_views)
    tiled_pipeline.settings = replace(SETTINGS, init=init)
    image, mask = photo(tiled_pipeline.library["cube"].field, TRUTH, CAMERA)
    (found,) = tiled_pipeline.process(Frame(mask, CAMERA, {1: "cube"}, image=image))
    assert found.quality == "good"
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0
    wrong = {1: [TRUTH @ OTHER_CUBE]}
    if init == "features":
        (found,) = tiled_pipeline.process(Frame(mask, CAMERA, {1: "cube"}, wrong, image))
        assert angle_deg(found.camera_from_object, TRUTH) < 1.0


def test_features_speak_against_a_start_that_the_mask_likes(tiled_pipeline):
    """A start from outside is no better than what the features know, and gets their say as well."""
    tiled_pipeline.settings = SETTINGS
    image, mask = photo(tiled_pipeline.library["cube"].field, TRUTH, CAMERA)
    for start in (TRUTH, TRUTH @ OTHER_CUBE):
        (found,) = tiled_pipeline.process(Frame(mask, CAMERA, {1: "cube"}, {1: [start]}, image))
        assert angle_deg(found.camera_from_object, TRUTH) < 1.0 and found.quality == "good"


def test_features_are_told_in_the_reference(tiled_pipeline):
    tiled_pipeline.settings = replace(SETTINGS, init="features")
    image, mask = photo(tiled_pipeline.library["cube"].field, TRUTH, CAMERA)
    where = pose((0.3, -0.5, 0.1), (0.5, 0.2, 0.1))
    frame = Frame(mask, CAMERA, {1: "cube"}, image=image, reference_from_camera=where)
    (found,) = tiled_pipeline.process(frame)
    assert angle_deg(found.camera_from_object, where @ TRUTH) < 1.0


def test_features_are_left_alone(tiled_pipeline, monkeypatch):
    def no_features(*args):
        raise AssertionError("features are not to be looked for")

    monkeypatch.setattr(FeatureMatcher, "poses", no_features)
    image, mask = photo(tiled_pipeline.library["cube"].field, TRUTH, CAMERA)
    frame = Frame(mask, CAMERA, {1: "cube"}, image=image)
    tiled_pipeline.settings = replace(SETTINGS, init="views")
    (found,) = tiled_pipeline.process(frame)
    assert angle_deg(found.camera_from_object, TRUTH) < 1.0
    tiled_pipeline.settings = replace(SETTINGS, search="never")
    assert tiled_pipeline.process(frame, Reports()) == []


def test_objects_without_a_field_need_nothing_of_fields(own_cache):
    """What fields are made and rendered with takes long to import."""
    run = """
import sys
import numpy as np
from pose_refiner_ros import shipped
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.pipeline import Pipeline
library = ObjectLibrary.load(shipped.OBJECTS)
camera = Camera(np.array([[120.0, 0, 47.5], [0, 120.0, 47.5], [0, 0, 1]]), (96, 96))
masks = np.zeros((96, 96), np.uint8)
masks[32:64, 32:64] = 1
frame = Frame(masks, camera, {1: "sedan"}, image=np.zeros((96, 96, 3), np.uint8))
Pipeline(library, device="cpu").process(frame)
found = [n for n in sys.modules if n == "torch" or "ros.fields" in n or "field_" in n]
assert not found, found
"""
    subprocess.run([sys.executable, "-c", run], check=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("photometric", "yes"), ("init", "sift"), ("sampling", "grid"), ("photo_rays", 0)],
)
def test_bad_settings(name, value):
    with pytest.raises(ValueError, match=name):
        Settings(**{name: value})


def test_all_samplings_are_offered():
    assert CHOICES["sampling"] == SAMPLINGS


def test_origin_far_from_the_object(own_cache):
    """Poses turn about the object's middle, whatever its origin is."""
    middle = np.array([0.5, 0.1, -0.3])
    block = painted_block((0.1, 0.08, 0.06), voxel=0.005, centre=middle)
    mesh = field_mesh(block)
    one = model("block", mesh, silhouette_mesh=simplify_for_silhouette(mesh), field=block)
    truth = TRUTH.copy()
    truth[:3, 3] -= truth[:3, :3] @ middle
    image, mask = photo(block, truth, CAMERA)
    (found,) = Pipeline({"block": one}, SETTINGS, "cpu").process(
        Frame(mask, CAMERA, {1: "block"}, image=image)
    )
    assert angle_deg(found.camera_from_object, truth) < 1.0
    assert found.quality == "good"


@pytest.mark.parametrize("search", ["auto", "never"])
def test_a_photo_of_other_colours_does_not_harm_the_pose_of_the_outline(own_cache, search):
    """A negative, a repainted object: colours that fit nowhere have no say, and where the pattern
    is the same it has."""
    half = (0.1, 0.06, 0.04)
    field = painted_block(half)
    block = model("block", box(*(2 * np.array(half))), field=field)
    pipeline = Pipeline({"block": block}, replace(SETTINGS, search=search), "cpu")
    rng, errors = np.random.default_rng(0), []
    for k in range(6):
        truth = pose(random_turn(rng, rng.uniform(0, 3)), (0.02, -0.02, 0.6))
        image, mask = photo(field, truth, CAMERA)
        image = np.ascontiguousarray(image[..., [1, 2, 0]] if k % 2 else 255 - image)
        start = turned(truth, random_turn(rng, np.radians(8)), 0.01 * rng.normal(size=3))
        reports = Reports()
        frame = Frame(mask, CAMERA, {1: "block"}, {1: [start]}, image=image)
        (found,) = pipeline.process(frame, reports)
        errors.append(angle_deg(found.camera_from_object, truth))
        assert k % 2 or any("colours" in text for _, text in reports)
    assert np.median(errors) < 5.0
