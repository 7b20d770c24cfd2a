# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from ros_messages import BOX_OBJ, detections

from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.ros import labels


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    (folder / "box.obj").write_text(BOX_OBJ)
    (folder / "objects.yaml").write_text(
        "objects:\n"
        "  mug: {mesh: box.obj, unit: m, aliases: [cup, '41'], label: 1}\n"
        "  box: {mesh: box.obj, unit: m}\n"
    )
    (folder / "one.yaml").write_text("objects:\n  mug: {mesh: box.obj, unit: m}\n")
    return ObjectLibrary.load(folder / "objects.yaml"), ObjectLibrary.load(folder / "one.yaml")


def name(found, library, message=None, label_names=()):
    reports = []
    names = labels.name_labels(
        found,
        message,
        labels.parse_label_names(label_names),
        library,
        lambda label, text: reports.append((label, text)),
    )
    return names, reports


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_in(dtype):
    masks = np.zeros((10, 10), dtype)
    masks[2, 3], masks[5, 5] = 7, 200
    assert labels.labels_in(masks) == [7, 200]
    assert labels.labels_in(np.zeros((3, 3), dtype)) == []


def test_labels_in_with_huge_values():
    assert labels.labels_in(np.array([[0, 2**31 - 1]], np.int32)) == [2**31 - 1]


def test_detections_name_labels_by_name_alias_and_number(library):
    message = detections({1: "box", 2: "Cup", 3: "41"})
    assert name([1, 2, 3], library[0], message) == ({1: "box", 2: "mug", 3: "mug"}, [])


def test_best_hypothesis_counts(library):
    message = detections({1: "box"})
    message.detections[0].results.append(detections({1: "mug"}).detections[0].results[0])
    message.detections[0].results[1].hypothesis.score = 0.95
    assert name([1], library[0], message)[0] == {1: "mug"}


def test_unknown_class_is_reported_and_not_guessed(library):
    for one in library:
        names, reports = name([1, 2], one, detections({1: "horse", 2: "mug"}))
        assert names == {2: "mug"}
        assert [label for label, _ in reports] == [1]
        assert "horse" in reports[0][1] and "mug" in reports[0][1]


@pytest.mark.parametrize("identity", ["", "mug", "-1", "1.0"])
def test_detection_id_must_be_a_label(library, identity):
    names, reports = name([2], library[0], detections({identity: "box"}))
    assert names == {}
    assert f"'{identity}'" in reports[0][1]


def test_detection_without_results(library):
    names, reports = name([2], library[0], detections({2: None}))
    assert names == {}
    assert "no results" in reports[0][1]


def test_parameter_names_labels(library):
    assert name([1, 5], library[0], label_names=["5: cup"]) == ({1: "mug", 5: "mug"}, [])
    names, reports = name([5], library[0], label_names=["5:horse"])
    assert names == {}
    assert "horse" in reports[0][1]


def test_library_labels(library):
    names, reports = name([1, 2], library[0])
    assert names == {1: "mug"}
    assert reports[0][0] == 2
    assert "no name" in reports[0][1] and "label_names" in reports[0][1]


def test_with_one_object_every_label_is_it(library):
    assert name([4, 9], library[1]) == ({4: "mug", 9: "mug"}, [])


def test_with_one_object_detections_still_decide(library):
    names, reports = name([4, 9], library[1], detections({4: "mug"}))
    assert names == {4: "mug"}
    assert "detections do not list it" in reports[0][1]
