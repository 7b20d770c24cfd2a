# SPDX-License-Identifier: Apache-2.0
"""Several cameras of one node: frames of one moment, which objects are the same, their poses."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ros_messages import camera_info, detections, image
from shapes import angle_deg, box, ell, model, pose, silhouette

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.ros import parameters
from pose_refiner_ros.ros.across_cameras import same_objects
from pose_refiner_ros.ros.bad_input import TransformError
from pose_refiner_ros.ros.camera_set import CameraSet
from pose_refiner_ros.ros.frame_assembler import FrameAssembler, FrameMessages, SyncOptions
from pose_refiner_ros.ros.frame_processor import FrameProcessor

MS = 1_000_000
START = 1000 * 1000 * MS
SIZE = (240, 320)
CAMERA = Camera(np.reshape(camera_info(SIZE).k, (3, 3)), SIZE)
RIGHT = pose((0.0, -0.6, 0.0), (0.5, 0.0, 0.1))  # left_from_right
BACK = pose((0.3, -0.4, 0.2), (-0.15, 0.05, 0.9))
FRONT = pose((0.6, -0.7, 0.4), (0.1, -0.02, 0.7))

# ---- frames of one moment ----


class Cameras:
    """Two assemblers that know their cameras; stamps in milliseconds."""

    def __init__(self, **options):
        self.skipped = Counter()
        left, right = (FrameAssembler(lambda reason: self.skipped.update([reason])) for _ in "lr")
        for one in (left, right):
            one.options = SyncOptions(**options)
            one.add("camera_info", START, "info")
        self.left, self.right, self.both = left, right, CameraSet(left, {"right": right})

    def masks(self, which, ms, now=0.0):
        which.add_masks(START + ms * MS, f"masks {ms}", 10, now)

    def take(self, now=0.0, alive=("right",)):
        return self.both.take(now, alive)


def test_masks_of_one_stamp_make_a_set():
    cameras = Cameras(sync_slop=0.01)
    cameras.masks(cameras.left, 0)
    assert cameras.take() is None  # the other's may still come
    cameras.masks(cameras.right, 4)
    first, others, missing = cameras.take()
    assert (first.masks, others["right"].masks, missing) == ("masks 0", "masks 4", [])
    assert cameras.take() is None and not cameras.skipped


def test_a_late_camera_is_left_out_after_the_timeout():
    cameras = Cameras(sync_timeout=0.2)
    cameras.masks(cameras.left, 0, now=5.0)
    assert cameras.take(5.0) is None
    assert cameras.both.wait_seconds(5.05) == pytest.approx(0.15)
    first, others, missing = cameras.take(5.2)
    assert first.masks == "masks 0" and others == {}
    assert missing == ["camera right is left out: no masks have the stamp of the first's"]
    cameras.masks(cameras.right, 0, now=5.3)  # too late: the next set is not held up by it
    cameras.masks(cameras.left, 33, now=5.3)
    cameras.masks(cameras.right, 33, now=5.3)
    assert cameras.take(5.3)[1]["right"].masks == "masks 33"


def test_a_silent_camera_is_not_waited_for_and_may_return():
    cameras = Cameras()
    cameras.masks(cameras.left, 0)
    first, others, missing = cameras.take(alive=())
    assert first.masks == "masks 0" and missing == ["camera right is left out: no masks come"]
    cameras.masks(cameras.left, 33)
    cameras.masks(cameras.right, 33)
    assert cameras.take()[2] == []


def test_a_camera_that_is_ahead_is_not_waited_for():
    cameras = Cameras()
    cameras.masks(cameras.right, 100)
    cameras.masks(cameras.left, 0)
    assert len(cameras.take()[2]) == 1
    cameras.masks(cameras.left, 100)
    assert cameras.take()[1]["right"].masks == "masks 100"


def test_clearing_forgets_what_waits():
    cameras = Cameras()
    cameras.masks(cameras.left, 0)
    cameras.take()
    cameras.both.clear()
    assert cameras.take(10.0) is None and cameras.both.wait_seconds(0.0) is None


# ---- which objects are the same ----

LIBRARY = {"ell": model("ell", ell()), "box": model("box", box(0.1, 0.15, 0.3))}


def drawn(where, objects) -> Frame:
    """objects: label -> name, pose in the reference."""
    masks = np.zeros(SIZE, np.uint16)
    for label in sorted(objects, key=lambda n: -(inverse(where) @ objects[n][1])[2, 3]):
        name, at = objects[label]
        masks[silhouette(LIBRARY[name].mesh, inverse(where) @ at, CAMERA) > 0] = label
    names = {label: name for label, (name, _) in objects.items()}
    return Frame(masks, CAMERA, names, reference_from_camera=where)


def test_the_same_class_in_both_is_the_same_object():
    left = drawn(np.eye(4), {1: ("ell", FRONT), 2: ("box", BACK)})
    right = drawn(RIGHT, {1: ("box", BACK), 5: ("ell", FRONT)})
    assert same_objects(left, right, LIBRARY) == {1: 2, 5: 1}


def test_two_of_a_class_are_told_apart_by_where_they_are():
    left = drawn(np.eye(4), {1: ("ell", FRONT), 2: ("ell", BACK)})
    right = drawn(RIGHT, {1: ("ell", BACK), 2: ("ell", FRONT)})
    assert same_objects(left, right, LIBRARY) == {1: 2, 2: 1}


def test_another_of_the_class_somewhere_else_is_another():
    left = drawn(np.eye(4), {1: ("ell", FRONT)})
    right = drawn(RIGHT, {1: ("ell", pose((0, 0, 0), (0.1, 0.45, 0.9)))})
    assert same_objects(left, right, LIBRARY) == {}
    empty = replace(right, masks=np.zeros(SIZE, np.uint8))
    assert same_objects(left, empty, LIBRARY) == {}


# ---- their poses ----


class Library(dict):
    """Enough of an ObjectLibrary."""

    def resolve(self, name):
        return self.get(name)

    def by_label(self, label):
        return None


class Transforms:
    def __init__(self, answer=RIGHT):
        self.answer = answer

    def matrix(self, target, source, stamp, timeout=0.1):
        if isinstance(self.answer, Exception):
            raise self.answer
        assert (target, source) == ("left", "right")
        return self.answer


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(LIBRARY, device="cpu")


def messages(frame_id, where, objects, later=0) -> FrameMessages:
    labels, names = drawn(where, objects).masks, {n: o[0] for n, o in objects.items()}
    at = {"stamp": START + later, "frame_id": frame_id}
    return FrameMessages(
        START + later,
        image(labels, "mono16", **at),
        camera_info(SIZE, **at),
        detections=detections(names, **at),
    )


def answer(pipeline, others, transforms):
    told = []
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor.transforms = transforms
    left = messages("left", np.eye(4), {1: ("ell", FRONT), 2: ("box", BACK)})
    values = parameters.defaults()
    values.label_names = []
    found = processor.process(left, values, False, told.append, others)
    return {pose.name: pose for pose in found.poses}, told


def test_poses_are_by_both_cameras_and_in_the_frame_of_the_first(pipeline):
    right = messages("right", RIGHT, {1: ("box", BACK), 5: ("ell", FRONT)})
    alone, _ = answer(pipeline, {}, Transforms())
    both, told = answer(pipeline, {"right": right}, Transforms())
    assert not told
    for name, truth in (("ell", FRONT), ("box", BACK)):
        ray = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
        sigma = [np.sqrt(ray @ poses[name].covariance[:3, :3] @ ray) for poses in (alone, both)]
        assert sigma[1] < 0.6 * sigma[0]
        assert np.linalg.norm(both[name].camera_from_object[:3, 3] - truth[:3, 3]) < 0.004
    assert angle_deg(both["ell"].camera_from_object, FRONT) < 1.0


@pytest.mark.parametrize(
    "frame_id, transforms, words",
    [
        ("right", Transforms(TransformError("there is no transform")), "there is no transform"),
        ("left", Transforms(), "its frame is the first's, 'left'"),
    ],
)
def test_a_camera_without_a_place_is_left_out(pipeline, frame_id, transforms, words):
    right = messages(frame_id, RIGHT, {5: ("ell", FRONT)})
    found, told = answer(pipeline, {"right": right}, transforms)
    assert set(found) == {"ell", "box"}
    assert len(told) == 1 and told[0].startswith("camera right is left out: ") and words in told[0]


def test_bad_masks_of_one_camera_harm_nobody(pipeline):
    right = messages("right", RIGHT, {5: ("ell", FRONT)})
    right.masks.encoding = "rgb8"
    found, told = answer(pipeline, {"right": right}, Transforms())
    assert set(found) == {"ell", "box"} and "rgb8" in told[0]


def test_what_only_another_camera_sees_gets_a_pose_and_keeps_its_id(pipeline):
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor.transforms = Transforms()
    values, told, ids = parameters.defaults(), [], []
    values.label_names = []
    for n in range(3):
        shift = n * 100 * MS
        left = messages("left", np.eye(4), {1: ("ell", FRONT)}, shift)
        right = messages("right", RIGHT, {1: ("box", BACK), 2: ("ell", FRONT)}, shift)
        found = processor.process(left, values, False, told.append, {"right": right})
        by_name = {pose.name: pose for pose in found.poses}
        assert found.objects == 2 and set(by_name) == {"ell", "box"} and not told
        box_pose = by_name["box"].camera_from_object
        assert np.linalg.norm(box_pose[:3, 3] - BACK[:3, 3]) < 0.03
        assert angle_deg(box_pose, BACK) < 3.0
        ids.append({pose.name: found.ids[pose.label] for pose in found.poses})
    assert ids[0] == ids[1] == ids[2] and ids[0]["ell"] != ids[0]["box"]
    (track,) = (one for one in processor._tracker.tracks.values() if one.name == "box")
    assert track.camera == "right" and track.pose is not None
    processor.process(left, values, False, told.append)  # the other one is silent
    assert not told


def test_an_object_keeps_its_id_where_it_passes_from_view_to_view(pipeline):
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor.transforms = Transforms()
    values, told, ids = parameters.defaults(), [], []
    values.label_names, values.cameras = [], ["left", "right"]
    aside = pose((0.2, 0.4, 0.0), (0.0, 0.1, 1.2))
    for n, (in_left, in_right) in enumerate([(0, 1), (0, 1), (1, 1), (1, 0), (1, 0), (0, 1)]):
        here = {1: ("ell", FRONT)} | ({2: ("box", BACK)} if in_left else {})
        there = {4: ("box", aside)} | ({3: ("box", BACK)} if in_right else {})
        left = messages("left", np.eye(4), here, n * 100 * MS)
        right = messages("right", RIGHT, there, n * 100 * MS)
        found = processor.process(left, values, False, told.append, {"right": right})
        places = {found.ids[p.label]: p.camera_from_object[:3, 3] for p in found.poses}
        assert len(places) == 3
        ids.append(min(places, key=lambda one: np.linalg.norm(places[one] - BACK[:3, 3])))
    assert len(set(ids)) == 1 and not told


def test_an_object_has_one_place_in_each_camera(pipeline):
    """Two of a class in the third camera are not both the one that the first two see."""
    frames = [
        drawn(np.eye(4), {1: ("box", FRONT)}),
        drawn(RIGHT, {1: ("box", FRONT)}),
        drawn(RIGHT, {1: ("box", FRONT), 2: ("box", BACK)}),
    ]
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor._number(frames[0], {"right": frames[1], "third": frames[2]}, 1.0)
    numbers = list(frames[2].ids.values())
    assert len(set(numbers)) == 2 and frames[1].ids[1] == frames[0].ids[1] == 1


@pytest.mark.parametrize("label", [65535, 2])
def test_labels_that_mean_another_object_get_a_number_of_their_own(pipeline, label):
    frames = [
        drawn(np.eye(4), {1: ("ell", FRONT), label: ("ell", FRONT)}),
        drawn(RIGHT, {label: ("box", BACK)}),
    ]
    frames[1].masks[:4, :4] = 65535  # nameless
    FrameProcessor(pipeline, Library(LIBRARY))._number(frames[0], {"right": frames[1]}, 1.0)
    (number,) = frames[1].ids.values()
    assert number not in (1, label, 65535) and list(frames[1].labels) == [number]
    assert (frames[1].masks == number).sum() > 100


def test_cameras_that_stand_repeat_nothing(pipeline):
    """Two views of a rig at rest are no motion of its camera."""
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    answers = {("left", "right"): RIGHT, ("odom", "left"): np.eye(4)}
    processor.transforms = Transforms()
    processor.transforms.matrix = lambda target, source, *_: answers[target, source]
    values = parameters.defaults()
    values.label_names, values.fixed_frame, values.still_objects = [], "odom", []
    for n in range(4):
        left = messages("left", np.eye(4), {1: ("ell", FRONT)}, n * 100 * MS)
        right = messages("right", RIGHT, {1: ("box", BACK), 2: ("ell", FRONT)}, n * 100 * MS)
        found = processor.process(left, values, False, lambda text: None, {"right": right})
        assert [pose.frames for pose in found.poses] == [1, 1]


def test_ids_that_are_labels_do_not_meet_those_of_other_cameras(pipeline):
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor.transforms = Transforms()
    values, ids = parameters.defaults(), []
    values.label_names, values.labels_are_ids = [], True
    for n, here in enumerate([{1: ("ell", FRONT)}] * 2 + [{}]):
        left = messages("left", np.eye(4), here, n * 100 * MS)
        right = messages("right", RIGHT, {1: ("box", BACK)}, n * 100 * MS)
        found = processor.process(left, values, False, lambda text: None, {"right": right})
        ids.append({pose.name: found.ids[pose.label] for pose in found.poses})
    assert ids[0]["ell"] == 1 and ids[0]["box"] > 65535
    assert ids[0] == ids[1] and ids[2] == {"box": ids[0]["box"]}


def test_what_two_further_cameras_see_is_one_object(pipeline):
    processor = FrameProcessor(pipeline, Library(LIBRARY))
    processor.transforms = Transforms()
    values, told = parameters.defaults(), []
    values.label_names = []
    left = messages("left", np.eye(4), {1: ("ell", FRONT)})
    right = messages("right", RIGHT, {1: ("box", BACK)})
    third = messages("right", RIGHT, {4: ("box", BACK), 1: ("ell", FRONT)})
    others = {"right": right, "third": third}
    found = processor.process(left, values, False, told.append, others)
    assert sorted(pose.name for pose in found.poses) == ["box", "ell"] and not told
