# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.scene import (
    GroundPlane,
    SceneError,
    birds_eye,
    chase,
    compose,
    framed_box,
    grid_step,
    look_at,
    scene_from_camera,
    through_camera,
)

CAMERA = Camera([[500, 0, 330.0], [0, 510, 250.0], [0, 0, 1]], (480, 640))
SIZES = [(480, 640), (640, 480), (300, 300)]


def pose(x=0.0, y=0.0, z=10.0, label=1, name="car", heading=0.0):
    """Level in the camera's axes, its front away from the camera for heading 0."""
    cos, sin = np.cos(heading), np.sin(heading)
    matrix = np.eye(4)
    matrix[:3, :3] = [[-sin, -cos, 0], [0, 0, -1], [cos, -sin, 0]]
    matrix[:3, 3] = (x, y, z)
    return SimpleNamespace(label=label, name=name, camera_from_object=matrix, quality="good")


# ---- ground and frame ----


def test_a_level_camera():
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0.0))
    np.testing.assert_allclose(frame @ [0, 0, 0, 1], [0, 0, 1.5, 1], atol=1e-12)
    np.testing.assert_allclose(frame @ [2, 1.5, 10, 1], [10, -2, 0, 1], atol=1e-12)


def test_positive_pitch_looks_down_and_positive_roll_leans_right():
    down = scene_from_camera(GroundPlane.from_height_and_pitch(1.0, np.radians(30)))
    axis = down[:3, :3] @ [0, 0, 1]
    np.testing.assert_allclose(axis, [np.cos(np.pi / 6), 0, -0.5], atol=1e-12)
    right = scene_from_camera(GroundPlane.from_height_and_pitch(1.0, 0.2, 0.1))[:3, :3] @ [1, 0, 0]
    assert right[2] < -0.05 and abs(right[1] + 1) < 0.03  # the camera's right side hangs


def test_straight_down_the_image_top_is_ahead():
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(5.0, np.pi / 2))
    np.testing.assert_allclose(frame[:3, :3] @ [0, -1, 0], [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(frame @ [0, 0, 5, 1], [0, 0, 0, 1], atol=1e-9)


angles = st.floats(-1.5, 1.5)


@given(height=st.floats(0.05, 100), pitch=angles, roll=angles, factor=st.floats(0.1, 10))
def test_height_and_pitch_and_plane_say_the_same(height, pitch, roll, factor):
    mounted = GroundPlane.from_height_and_pitch(height, pitch, roll)
    assert np.linalg.norm(mounted.normal) == pytest.approx(1)
    for sign in (-1, 1):
        plane = GroundPlane.from_plane(
            sign * factor * mounted.normal, sign * factor * mounted.height
        )
        np.testing.assert_allclose(plane.normal, mounted.normal, atol=1e-12)
        assert plane.height == pytest.approx(height)
    frame = scene_from_camera(mounted)
    np.testing.assert_allclose(frame[:3, :3] @ frame[:3, :3].T, np.eye(3), atol=1e-9)
    assert np.linalg.det(frame[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(frame[:3, 3], [0, 0, height], atol=1e-9)  # above the origin
    ahead = frame[:3, :3] @ [0, 0, 1]
    assert ahead[1] == pytest.approx(0, abs=1e-9)  # x is where the camera looks
    # a point of the plane has no height
    point = -mounted.height * mounted.normal
    assert (frame[:3, :3] @ point + frame[:3, 3])[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GroundPlane.from_height_and_pitch(-1.5, 0), "-1.5 m: it must be above"),
        (lambda: GroundPlane.from_height_and_pitch(0, 0), "must be above the ground"),
        (lambda: GroundPlane.from_height_and_pitch(np.nan, 0), "height is nan"),
        (lambda: GroundPlane.from_height_and_pitch(1.5, 5), r"286.* must lie within ±90 degrees"),
        (lambda: GroundPlane.from_height_and_pitch(1.5, np.nan), "pitch is nan"),
        (lambda: GroundPlane.from_height_and_pitch(1.5, 0, 7), "roll"),
        (lambda: GroundPlane.from_plane((0, -1, 0), 0), "goes through the camera"),
        (lambda: GroundPlane.from_plane((0, 0, 0), 1), "is no plane"),
        (lambda: GroundPlane.from_plane((0, np.inf, 0), 1), "3 finite numbers"),
        (lambda: GroundPlane.from_plane((0, -1), 1), "3 finite numbers"),
        (lambda: GroundPlane.from_plane((0, -1, 0), np.nan), "is no plane"),
        (lambda: GroundPlane.from_plane("abc", 1), "must be 3 numbers"),
        (lambda: GroundPlane((0, 0, 0), 1.0), "normal is zero"),
    ],
)
def test_what_is_no_ground_is_said(make, message):
    with pytest.raises(SceneError, match=message):
        make()


# ---- objects ----


def test_objects_keep_how_they_stand_to_each_other():
    poses = [pose(-2, 1.5, 8, 3, heading=0.3), pose(4, 1.4, 20, 5, "van", heading=-2)]
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0.1, -0.05))
    near, far = compose(poses, frame, ids={5: 77})
    assert (near.name, near.id, far.name, far.id, far.quality) == ("car", 3, "van", 77, "good")
    apart = np.linalg.inv(near.scene_from_object) @ far.scene_from_object
    expected = np.linalg.inv(poses[0].camera_from_object) @ poses[1].camera_from_object
    np.testing.assert_allclose(apart, expected, atol=1e-12)


def test_position_and_heading_are_those_of_the_scene():
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0))
    (one,) = compose([pose(-2, 1.5, 8, heading=0.3)], frame)
    np.testing.assert_allclose(one.position, [8, 2, 0], atol=1e-12)
    assert one.heading == pytest.approx(0.3)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: np.full((4, 4), np.nan), "NaN"),
        (lambda m: np.diag([1.0, 1, -1, 1]) @ m, "not a rotation"),
        (lambda m: m + _shift(-30), "behind the camera"),
        (lambda m: m[:3], "shape"),
    ],
)
def test_a_bad_pose_is_named_and_the_others_are_unharmed(change, message):
    bad = pose(label=9)
    bad.camera_from_object = change(bad.camera_from_object)
    said = []
    found = compose([pose(), bad, pose(label=2)], np.eye(4), report=lambda *what: said.append(what))
    assert [one.id for one in found] == [1, 2]
    ((label, text),) = said
    assert label == 9 and text.startswith("car is not in the scene: ") and message in text


def _shift(z):
    matrix = np.zeros((4, 4))
    matrix[2, 3] = z
    return matrix


def test_a_frame_that_is_no_transform_is_refused():
    with pytest.raises(SceneError, match="scene_from_camera must be 4x4"):
        compose([pose()], np.full((4, 4), np.nan))


# ---- virtual cameras ----

POINTS = np.array([[0, 0, 0], [0, 0, 1.5], [31.0, -4, 0], [12, 9.5, 2.3]])


def pixels_of(view, points):
    points = points @ view.camera_from_scene[:3, :3].T + view.camera_from_scene[:3, 3]
    return view.camera.project(points)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [birds_eye, lambda p, size: chase(p, 0.4, size)])
def test_framed_views_show_all_points_and_waste_little(make, size):
    view = make(POINTS, size)
    assert view.camera.size == size
    assert np.linalg.det(view.camera_from_scene[:3, :3]) == pytest.approx(1)
    low, high = framed_box(POINTS)
    corners = np.array([[x, y, z] for x in (low[0], high[0]) for y in (low[1], high[1])
                        for z in (low[2], high[2])])  # fmt: skip
    pixels = pixels_of(view, corners)
    upper = np.array(size[::-1]) - 1
    assert (pixels > 0).all() and (pixels < upper).all()
    assert (np.ptp(pixels, axis=0) / upper).max() > 0.85


def test_birds_eye_has_x_up_y_left_and_is_steady():
    view = birds_eye(POINTS, (480, 640))
    origin, ahead, left = pixels_of(view, np.array([[0, 0, 0], [5, 0, 0], [0, 5, 0.0]]))
    assert ahead[1] < origin[1] - 20 and ahead[0] == pytest.approx(origin[0])
    assert left[0] < origin[0] - 20 and left[1] == pytest.approx(origin[1])
    moved = POINTS + np.array([[0, 0, 0], [0, 0, 0], [0.4, 0.3, 0], [-0.4, 0.2, 0]])
    again = birds_eye(moved, (480, 640))
    np.testing.assert_array_equal(view.camera_from_scene, again.camera_from_scene)


def test_chase_is_behind_and_above():
    view = chase(POINTS, np.pi / 2, (480, 640))
    assert view.eye[1] < POINTS[:, 1].min() and view.eye[2] > POINTS[:, 2].max()


def test_look_at_points_there_and_is_level():
    view = look_at((1, 2, 3), (10, -4, 0.5), (480, 640), np.radians(60))
    np.testing.assert_allclose(view.eye, (1, 2, 3))
    centre, above = pixels_of(view, np.array([[10, -4, 0.5], [10, -4, 1.5]]))
    np.testing.assert_allclose(centre, [319.5, 239.5])
    assert above[0] == pytest.approx(319.5) and above[1] < 239
    edge = view.camera.undistort(np.array([639.5, 0]))[0]
    assert np.degrees(np.arctan(edge)) == pytest.approx(30)
    for sign in (-1, 1):  # up and down have no horizon
        assert np.isfinite(look_at((0, 0, 0), (0, 0, sign), (48, 64)).camera_from_scene).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((1, 2, 3), (1, 2, 3)), "at itself"),
        (((1, 2, np.nan), (1, 2, 3)), "position must be 3 finite"),
        (((1, 2, 3), (1, 2)), "target must be 3"),
        (((1, 2, 3), (0, 0, 0), 4.0), "degrees: give 1 to 170"),
    ],
)
def test_views_that_cannot_be(arguments, message):
    with pytest.raises(SceneError, match=message):
        look_at(*arguments[:2], (48, 64), *arguments[2:])


@pytest.mark.parametrize("size", [None, (240, 320), (960, 640), (100, 800)])
def test_through_the_camera_all_of_its_image_is_in_view(size):
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0.2))
    view = through_camera(CAMERA, frame, size)
    border = np.array([[-0.5, -0.5], [639.5, 479.5]])
    seen = np.column_stack([CAMERA.undistort(border), [1.0, 1.0]])
    pixels = view.camera.project(seen)
    height, width = view.camera.size
    assert (pixels > -0.5 - 1e-6).all() and (pixels < np.array([width, height]) - 0.5 + 1e-6).all()
    fills = np.isclose(np.ptp(pixels, axis=0), [width, height])
    assert fills.any()
    np.testing.assert_allclose(view.camera_from_scene @ frame, np.eye(4), atol=1e-12)


@given(extent=st.floats(0.01, 1e4))
def test_grid_step_is_round_and_fits(extent):
    step = grid_step(np.array([extent, 0.1 * extent]))
    assert 5.9 < extent / step < 15.1
    leading = step / 10 ** np.floor(np.log10(step) + 1e-9)
    assert min(abs(leading - n) for n in (1, 2, 5)) < 1e-6
