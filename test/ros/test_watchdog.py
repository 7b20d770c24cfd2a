# SPDX-License-Identifier: Apache-2.0
import pytest

from pose_refiner_ros.ros.watchdog import InputView, Situation, explain, explain_images

IMAGE = "sensor_msgs/msg/Image"
GRAPH = {
    "/camera/image_raw": [IMAGE],
    "/segmenter/masks_raw": [IMAGE],
    "/segmenter/debug": [IMAGE],
    "/map": ["nav_msgs/msg/OccupancyGrid"],
}


def view(name, received=10, publishers=1, published_as=None, **options):
    types = {"camera_info": "sensor_msgs/msg/CameraInfo"}
    own = types.get(name, IMAGE)
    return InputView(f"/{name}", own, received, published_as or [own] * publishers, **options)


def situation(**changes):
    views = {name: view(name) for name in ("masks", "camera_info", "image", "detections")}
    return Situation(**{**views, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"masks": view("masks", 0, 0, graph=GRAPH)},
            ["nobody publishes /masks", "/segmenter/masks_raw", "remap"],
        ),
        ({"masks": view("masks", 0, 0)}, ["nobody publishes /masks", IMAGE]),
        (
            {"masks": view("masks", 0, published_as=["std_msgs/msg/String"])},
            ["/masks is published as std_msgs/msg/String", IMAGE],
        ),
        ({"masks": view("masks", 0, 1)}, ["/masks has 1 publisher", "nothing has arrived"]),
        (
            {"masks": view("masks", 0, 1, incompatible="reliability does not fit")},
            ["reliability does not fit"],
        ),
        ({"camera_info": view("camera_info", 0, 0)}, ["nobody publishes /camera_info"]),
        (
            {"image": view("image", 0, 0), "require_image": True},
            ["nobody publishes /image", "require_image"],
        ),
        (
            {"nearest": {"image": 0.033}, "require_image": True, "sync_slop": 0.01},
            ["never match", "+0.033 s", "0.01", "header"],
        ),
        (
            {"nearest": {"detections": None}, "use_detections": "always"},
            ["never come together"],
        ),
        (
            {"detections": view("detections", 0, 0), "use_detections": "always"},
            ["nobody publishes /detections", "use_detections"],
        ),
        ({"busy_seconds": 7.2}, ["7 s"]),
        ({"last_reasons": ("label 3 has no name",)}, ["label 3 has no name"]),
        ({"last_reasons": ("mug has score 0.10, under min_score 0.5",)}, ["min_score 0.5"]),
        ({"skipped": {"masks encoding": 7}}, ["masks encoding (7)"]),
        ({}, ["no masks have arrived lately"]),
    ],
)
def test_explanation_names_the_cause(changes, words):
    text = explain(situation(**changes))
    for word in words:
        assert word in text


def test_what_comes_first_is_said_first():
    text = explain(
        situation(
            masks=view("masks", 0, 0),
            camera_info=view("camera_info", 0, 0),
            skipped={"masks encoding": 7},
        )
    )
    assert "/masks" in text and "camera_info" not in text


def test_optional_inputs_are_no_cause():
    text = explain(situation(image=view("image", 0, 0), detections=view("detections", 0, 0)))
    assert "nobody" not in text


def test_images_for_the_camera():
    info = view("camera_info")
    assert "nobody publishes /image" in explain_images(view("image", 0, 0), info)
    assert "nobody publishes /camera_info" in explain_images(
        view("image"), view("camera_info", 0, 0)
    )
    assert "no image has arrived lately on /image" in explain_images(view("image"), info)


def test_similar_topics_most_alike_first():
    assert view("masks", graph=GRAPH).similar()[0] == "/segmenter/masks_raw"


def test_topics_of_the_node_itself_are_not_offered():
    own = "/pose_refiner/overlay"
    masks = view("masks", 0, 0, graph={own: [IMAGE], **GRAPH}, own=frozenset({own}))
    assert len(masks.similar()) == 3 and own not in masks.similar()
    alone = view("masks", 0, 0, graph={own: [IMAGE]}, own=frozenset({own}))
    assert "remap" not in alone.missing()
