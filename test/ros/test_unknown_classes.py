# SPDX-License-Identifier: Apache-2.0
"""Masks without a class: the encoder names them unless somebody else does; ids and classes stay."""

from types import SimpleNamespace

import numpy as np
import pytest
from ros_messages import camera_info, detections, image, masks
from stub_node import StubPipeline

from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.street import Street
from pose_refiner_ros.frame import FrameError
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.ros import parameters
from pose_refiner_ros.ros.bad_input import BadInput
from pose_refiner_ros.ros.frame_assembler import FrameMessages
from pose_refiner_ros.ros.frame_processor import FrameProcessor
from pose_refiner_ros.ros.loading import default_pipeline

SUV = {"sedan": 0.05, "suv": 0.85, "cargo": 0.1}
CARGO = {"sedan": 0.05, "suv": 0.1, "cargo": 0.85}


class Pipeline(StubPipeline):
    """What the encoder says of a label is in `says`; it is asked about no others."""

    encoder = SimpleNamespace(classes=("sedan", "suv", "cargo"), needs_photo=False)

    def __init__(self, library):
        super().__init__(library, None)
        self.says = {}

    def classes_of(self, frame, report):
        nameless = [label for label, name in frame.labels.items() if name is None]
        for label in nameless:
            if label not in self.says:
                report(label, "an object left out: its mask is bad")
        return {label: self.says[label] for label in nameless if label in self.says}


class Bench:
    """A FrameProcessor and frames for it, a tenth of a second apart."""

    def __init__(self, library, pipeline):
        self.pipeline = pipeline
        self.processor = FrameProcessor(pipeline, library)
        self.parameters = parameters.defaults()
        self.parameters.label_names = []
        self.reports = []
        self.frames = 0

    def process(self, *labels, mask=None, info=None, **parts):
        self.frames += 1
        stamp = 10**10 + self.frames * 10**8
        mask = masks(*labels, stamp=stamp) if mask is None else image(mask, "mono16", stamp=stamp)
        messages = FrameMessages(stamp, mask, info or camera_info(stamp=stamp), **parts)
        return self.processor.process(messages, self.parameters, False, self.reports.append)


@pytest.fixture(scope="module")
def library():
    return ObjectLibrary.load(shipped.OBJECTS)


@pytest.fixture
def bench(library):
    return Bench(library, Pipeline(library))


def names(answer):
    return {pose.label: pose.name for pose in answer.poses}


def test_the_encoder_names_what_nothing_else_does(bench):
    bench.pipeline.says = {1: SUV, 2: CARGO}
    answer = bench.process(1, 2)
    assert names(answer) == {1: "suv", 2: "cargo"}
    assert answer.reasons == []
    assert answer.poses[0].class_probability == pytest.approx(0.85)
    assert answer.poses[0].score == pytest.approx(0.9 * 0.85)


def test_a_detected_class_wins(bench):
    bench.pipeline.says = {1: SUV, 2: SUV}
    answer = bench.process(1, 2, detections=detections({1: "van"}))
    assert names(answer) == {1: "cargo", 2: "suv"}
    assert answer.poses[0].score == pytest.approx(0.9)
    # and is remembered where detections come now and then
    assert names(bench.process(1, 2)) == {1: "cargo", 2: "suv"}


def test_a_class_without_an_object_is_left_out_and_said(bench):
    bench.pipeline.says = {1: SUV, 2: {"suv": 0.1, "(lorry)": 0.9}}
    answer = bench.process(1, 2)
    assert names(answer) == {1: "suv"} and answer.ids == {1: 1}
    assert answer.reasons == [
        "label 2: the encoder takes it for lorry (90%), and no object of the library has that "
        "category: add one, or name the label"
    ]
    assert names(bench.process(1, 2, detections=detections({2: "suv"}))) == {1: "suv", 2: "suv"}


def test_an_object_that_is_taken_for_something_else_for_a_while_keeps_its_id(bench):
    bench.pipeline.says = {1: SUV, 2: SUV}
    first = bench.process(1, 2)
    bench.pipeline.says = {1: SUV, 2: {"suv": 0.05, "(lorry)": 0.95}}
    for _ in range(6):
        answer = bench.process(1, 2)
    assert names(answer) == {1: "suv"}
    bench.pipeline.says = {1: SUV, 2: SUV}
    for _ in range(20):
        answer = bench.process(1, 2)
    assert names(answer) == {1: "suv", 2: "suv"} and answer.ids[1] == first.ids[1]
    assert answer.ids[2] == first.ids[2]


def test_an_unsure_class_is_ambiguous(bench):
    bench.pipeline.says = {1: {"suv": 0.55, "cargo": 0.4, "sedan": 0.05}, 2: SUV}
    qualities = {pose.label: pose.quality for pose in bench.process(1, 2).poses}
    assert qualities == {1: "ambiguous", 2: "good"}


def test_other_names_win_too(bench):
    bench.pipeline.says = {1: SUV}
    bench.parameters.label_names = ["1:sedan"]
    assert names(bench.process(1)) == {1: "sedan"}


def test_a_detected_class_that_is_not_in_the_library_is_left_out(bench):
    bench.pipeline.says = {1: SUV, 2: SUV}
    answer = bench.process(1, 2, detections=detections({1: "horse", 2: "suv"}))
    assert names(answer) == {2: "suv"}
    assert answer.reasons == [
        "label 1: its class 'horse' is not in the object library (sedan, suv, cargo); add it "
        "there, or as an alias of an object"
    ]


def test_without_an_encoder_they_have_no_name(library):
    bench = Bench(library, StubPipeline(library, None))
    answer = bench.process(1)
    assert answer.poses == []
    assert "label 1: it has no name" in answer.reasons[0]


def test_a_class_that_flips_keeps_id_and_name(bench):
    found = set()
    for i in range(30):
        bench.pipeline.says = {1: (SUV, CARGO)[i % 2]}
        answer = bench.process(1)
        found.add((answer.ids[1], answer.poses[0].name))
    assert found == {(1, "suv")}


def test_an_object_whose_class_was_wrong_keeps_its_id(bench):
    bench.pipeline.says = {1: CARGO, 2: CARGO}
    first = bench.process(1, 2)
    bench.process(1, 2)
    bench.pipeline.says = {1: SUV, 2: CARGO}
    for _ in range(20):
        answer = bench.process(1, 2)
        assert answer.ids == first.ids
    assert names(answer) == {1: "suv", 2: "cargo"}
    # a newcomer of the old class gets an id of its own
    bench.pipeline.says = {1: SUV, 2: CARGO, 3: CARGO}
    assert len(set(bench.process(1, 2, 3).ids.values())) == 3


def test_ids_of_the_caller_are_kept(bench):
    bench.parameters.labels_are_ids = True
    bench.pipeline.says = {31: SUV, 52: CARGO}
    for _ in range(3):
        answer = bench.process(31, 52)
        assert answer.ids == {31: 31, 52: 52}
        assert names(answer) == {31: "suv", 52: "cargo"}


def test_of_a_bad_mask_it_says_nothing_and_the_others_are_unharmed(bench):
    bench.pipeline.says = {2: CARGO}
    answer = bench.process(1, 2)
    assert names(answer) == {2: "cargo"}
    assert answer.reasons == ["label 1: an object left out: its mask is bad"]


def test_a_frame_that_cannot_be_looked_at(bench):
    def refuse(frame, report):
        raise FrameError("nonsense")

    bench.pipeline.classes_of = refuse
    with pytest.raises(BadInput, match="nonsense"):
        bench.process(1)


def test_reset_forgets_classes(bench):
    for _ in range(10):
        bench.pipeline.says = {1: SUV}
        bench.process(1)
    bench.processor.reset()
    bench.pipeline.says = {1: CARGO}
    assert names(bench.process(1)) == {1: "cargo"}


# ---- the package's own library and encoder

SIZE = (240, 320)
CAMERA = Camera(np.array([[225.0, 0, 159.5], [0, 225, 119.5], [0, 0, 1]]), SIZE)
INFO = camera_info(SIZE, k=CAMERA.intrinsics.ravel())


@pytest.fixture(scope="module")
def real(library):
    values = parameters.defaults()
    values.device = "cpu"
    pipeline = default_pipeline(library, values)
    pipeline.warm_up()
    return pipeline


def test_a_drive_past_vehicles_that_nobody_names(library, real):
    expected = {"sedan": "sedan", "suv": "suv", "van": "cargo", "pickup": "cargo"}
    bench = Bench(library, real)
    street = Street(CAMERA, seconds=10.0, samples=1, min_mask_pixels=400)
    right, ids, turned = [], {}, []
    for time in np.arange(1.0, 4.0, 0.1):
        frame = street.frame(time)
        answer = bench.process(mask=frame.masks.astype(np.uint16), info=INFO)
        for pose in answer.poses:
            right.append(pose.name == expected[street.kinds[pose.label]])
            ids.setdefault(pose.label, set()).add(answer.ids[pose.label])
            true = frame.camera_from_objects[pose.label][:3, :3]
            cosine = (np.trace(true.T @ pose.camera_from_object[:3, :3]) - 1) / 2
            turned.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    assert len(right) > 60 and np.mean(right) > 0.85
    assert np.median(turned) < 8.0
    assert np.mean([len(found) == 1 for found in ids.values()]) > 0.7


def suv_at(x, z):
    """Upright, seen a little from above and from its side."""
    pose = np.eye(4)
    pose[:3, :3] = [[0.6, -0.8, 0.0], [-0.16, -0.12, -0.98], [0.784, 0.588, -0.2]]
    u, _, v = np.linalg.svd(pose[:3, :3])
    pose[:3, :3], pose[:3, 3] = u @ v, (x, 1.0, z)
    return pose


@pytest.fixture(scope="module")
def good_mask(library):
    return render_scene([library["suv"].mesh], suv_at(-2.5, 12.0)[None], CAMERA).labels == 1


def one_pixel(masks):
    masks[200, 300] = 2


def on_all_borders(masks):
    frame = np.ones_like(masks, bool)
    frame[3:-3, 3:-3] = False
    masks[frame & (masks == 0)] = 2


def two_blobs(masks):
    masks[150:190, 180:220] = 2
    masks[150:190, 250:300] = 2


@pytest.mark.parametrize("named", [True, False], ids=["named", "unknown class"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (one_pixel, "1 pixels, fewer than 25"),
        (on_all_borders, None),
        (two_blobs, "its mask is in parts, the second of them 44% of it"),
        (lambda masks: None, None),  # the label of a detection has no pixel
    ],
    ids=["one pixel", "all borders", "two blobs", "empty"],
)
def test_a_bad_mask_does_not_harm_the_others(library, real, good_mask, bad, words, named):
    good = good_mask.astype(np.uint16)
    alone = Bench(library, real).process(mask=good, info=INFO, detections=detections({1: "suv"}))
    pixels = good.copy()
    bad(pixels)
    bench = Bench(library, real)
    found = detections({1: "suv", 2: "cargo"} if named else {1: "suv"})
    answer = bench.process(mask=pixels, info=INFO, detections=found)
    (pose,) = (one for one in answer.poses if one.label == 1)
    if bad is not on_all_borders:  # which hides what is beyond
        np.testing.assert_allclose(
            pose.camera_from_object, alone.poses[0].camera_from_object, atol=1e-5
        )
        assert pose.score == pytest.approx(alone.poses[0].score, abs=1e-4)
    assert pose.quality in ("good", "partial", "ambiguous")
    about = [reason for reason in answer.reasons if reason.startswith("label 2")]
    if words is None:
        assert len(about) + sum(one.label == 2 for one in answer.poses) <= 1
    else:
        assert len(about) == 1 and words in about[0]
