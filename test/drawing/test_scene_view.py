# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from pose_refiner_ros.drawing.scene_view import draw_scene
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.scene import (
    GroundPlane,
    Scene,
    SceneError,
    SceneObject,
    birds_eye,
    look_at,
    scene_from_camera,
)

CAMERA = Camera([[500, 0, 319.5], [0, 500, 239.5], [0, 0, 1]], (480, 640))
FISHEYE = Camera([[180, 0, 319.5], [0, 180, 239.5], [0, 0, 1]], (480, 640), "equidistant", [0] * 4)
SIZE = (240, 320)
VIEWS = ["birds_eye", "chase", "camera", look_at((-8, 6, 5), (12, 0, 0), SIZE)]
BOX_FACES = [
    [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
    [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],
]  # fmt: skip


def box(name, length, width, height, color):
    corners = [
        [x, y, z]
        for x in (-length / 2, length / 2)
        for y in (-width / 2, width / 2)
        for z in (0.0, height)
    ]
    return ObjectModel(name, Mesh(np.array(corners), np.array(BOX_FACES)), color=color)


LIBRARY = {
    "car": box("car", 4.0, 2.0, 1.5, (0.9, 0.1, 0.1)),
    "bus": box("bus", 8.0, 2.4, 3.0, (0.1, 0.2, 0.9)),
}


def standing(name, x, y, heading=0.0, z=0.0, number=1):
    cos, sin = np.cos(heading), np.sin(heading)
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = (x, y, z)
    return SceneObject(name, number, matrix, "good")


def scene(*objects, camera=CAMERA, height=1.5, pitch=0.05):
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(height, pitch))
    return Scene(objects, frame, camera)


def draw(*objects, view="birds_eye", labels=False, size=SIZE, **of_scene):
    return draw_scene(scene(*objects, **of_scene), LIBRARY, view, size, labels)


def red(picture):
    """Pixels of the car."""
    r, g, b = (picture[..., k].astype(int) for k in range(3))
    return (r > 80) & (g < 0.4 * r) & (b < 0.4 * r)


def blue(picture):
    """Pixels of the bus."""
    r, g, b = (picture[..., k].astype(int) for k in range(3))
    return (b > 80) & (r < 0.4 * b) & (g < 0.42 * b)


def centre(mask):
    rows, columns = np.nonzero(mask)
    assert len(rows), "it is not in the picture"
    return rows.mean(), columns.mean()


@pytest.mark.parametrize("view", VIEWS, ids=["birds_eye", "chase", "camera", "custom"])
def test_every_view_shows_the_objects(view):
    picture = draw(standing("car", 9, -2), standing("bus", 22, 3), view=view)
    assert picture.shape == (*SIZE, 3) and picture.dtype == np.uint8
    assert red(picture).sum() > 30 and blue(picture).sum() > 30
    assert not red(draw(standing("bus", 22, 3), view=view)).any()


def test_birds_eye_keeps_the_arrangement_to_scale():
    picture = draw(standing("car", 6, 0), standing("bus", 18, 5), size=(480, 640))
    car, bus = centre(red(picture)), centre(blue(picture))
    assert bus[0] < car[0] and bus[1] < car[1]  # farther is up, left is left
    rows, columns = np.nonzero(red(picture))
    pixels_a_metre = np.ptp(rows) / 4.0
    assert np.ptp(columns) / 2.0 == pytest.approx(pixels_a_metre, rel=0.2)
    assert (car[0] - bus[0]) / 12.0 == pytest.approx(pixels_a_metre, rel=0.1)
    assert (car[1] - bus[1]) / 5.0 == pytest.approx(pixels_a_metre, rel=0.1)


def test_turning_an_object_turns_its_picture():
    along = red(draw(standing("car", 9, 0)))
    across = red(draw(standing("car", 9, 0, heading=np.pi / 2)))
    assert np.ptp(np.nonzero(along)[0]) > 1.5 * np.ptp(np.nonzero(along)[1])
    assert np.ptp(np.nonzero(across)[1]) > 1.5 * np.ptp(np.nonzero(across)[0])


def test_nearer_objects_hide_others():
    view = look_at((0, 0, 1), (20, 0, 1), SIZE)
    hidden = draw(standing("car", 20, 0), standing("bus", 10, 0), view=view)
    assert blue(hidden).any() and not red(hidden).any()


def pixel(view, x, y):
    """Row and column of a point on the ground."""
    point = view.camera_from_scene @ [x, y, 0, 1]
    column, row = np.round(view.camera.project(point[:3])).astype(int)
    return row, column


def test_grid_lines_are_where_they_should_be():
    """22 m are to be seen: a line every 2 m, lighter ones every 0.5 m."""
    view = birds_eye(np.array([[0, -8, 0], [22, 8, 0]]), (480, 640))
    picture = draw(standing("car", 20, 0), view=view).astype(int).sum(-1)
    for x in range(8, 18, 2):
        _, column = pixel(view, x, 3.25)  # between lines that run along x
        line, light, gap = (
            picture[pixel(view, x + off, 3.25)[0] + np.array([-1, 0, 1]), column].min()
            for off in (0.0, 0.5, 0.25)
        )
        assert line < light - 20 and light < gap - 10


def test_what_the_camera_sees_is_lighter():
    view = birds_eye(np.array([[0, -8, 0], [22, 8, 0]]), (480, 640))
    picture = draw(standing("car", 20, 0), view=view)
    seen, unseen = (picture[pixel(view, 8.25, y)].mean() for y in (2.25, 8.25))
    assert seen > unseen + 10


@pytest.mark.parametrize("camera", [CAMERA, FISHEYE], ids=["pinhole", "fisheye"])
@pytest.mark.parametrize("view", VIEWS, ids=["birds_eye", "chase", "camera", "custom"])
def test_scene_without_objects(view, camera):
    picture = draw(view=view, camera=camera, labels=True)
    assert picture.std() > 2


def test_labels_are_written_only_if_wanted():
    objects = [standing("car", 9, -2, number=7), standing("bus", 22, 3)]
    plain, written = draw(*objects), draw(*objects, labels=True)
    assert (plain != written).any(-1).mean() > 0.01
    assert (written < 100).all(-1).sum() > (plain < 100).all(-1).sum() + 100  # tags are dark


@pytest.mark.parametrize(
    "strange",
    [
        standing("car", 0.2, 0),  # around the camera
        standing("car", -9, 1),
        standing("car", 5, 0, z=-4.0),  # below the ground
        standing("car", 5, 0, z=30.0),
        standing("car", 4e4, 3e4),
    ],
    ids=["around the camera", "behind", "below", "above", "far"],
)
@pytest.mark.parametrize("view", VIEWS, ids=["birds_eye", "chase", "camera", "custom"])
def test_strange_places_do_no_harm(strange, view):
    picture = draw(standing("bus", 22, 3), strange, view=view, labels=True)
    assert picture.shape == (*SIZE, 3)


def test_far_from_the_origin_of_a_map_it_looks_the_same():
    """A scene in a TF frame such as a map in UTM coordinates."""
    near = scene(standing("car", 10, 2), standing("bus", 20, -4))
    shift = np.eye(4)
    shift[:3, 3] = (400_000.0, 5_600_000.0, 0.0)
    objects = [
        SceneObject(one.name, one.id, shift @ one.scene_from_object, one.quality)
        for one in near.objects
    ]
    far = Scene(objects, shift @ near.scene_from_camera, CAMERA)
    a, b = (
        draw_scene(s, LIBRARY, "birds_eye", SIZE, labels=False).astype(int) for s in (near, far)
    )
    assert (abs(a - b) > 12).any(-1).mean() < 0.01


def test_small_scenes_have_small_grids():
    """A mug on a table, 40 cm from the camera, looks like one ten times as large from 4 m."""
    small, large = (
        draw_scene(
            scene(standing("car", 0.42 * k, 0.07 * k), height=0.3 * k),
            {"car": box("car", 0.1 * k, 0.08 * k, 0.1 * k, (0.9, 0.1, 0.1))},
            size=SIZE,
            labels=False,
        ).astype(int)
        for k in (1, 10)
    )
    assert red(small).sum() > 200
    assert (abs(small - large) > 12).any(-1).mean() < 0.01


def test_below_the_ground_there_is_no_ground():
    picture = draw(standing("car", 9, 0), view=look_at((0, 0, -2), (9, 0, 0), SIZE))
    assert red(picture).any()


def test_unknown_views_are_refused():
    with pytest.raises(SceneError, match="'side' is not known: choose one of birds_eye, chase"):
        draw(view="side")
    with pytest.raises(SceneError, match="look_at"):
        draw(view="custom")
