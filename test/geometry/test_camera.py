# SPDX-License-Identifier: Apache-2.0
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_refiner_ros.geometry.camera import Camera, CameraError

K = np.array([[600.0, 0, 330.5], [0, 610.0, 235.2], [0, 0, 1]])
SIZE = (480, 640)
LENSES = {
    "none": ("none", []),
    "plumb_bob 4": ("plumb_bob", [-0.28, 0.07, 1e-3, -2e-3]),
    "plumb_bob 5": ("plumb_bob", [0.12, -0.23, -1e-3, 4e-4, 0.11]),
    "rational 8": ("rational_polynomial", [0.5, -2.7, 4e-4, -3e-4, 1.5, 0.38, -2.5, 1.4]),
    "rational 12": (
        "rational_polynomial",
        [0.1, -0.05, 1e-3, -1e-3, 0.01, 0.05, -0.02, 0.01, 2e-3, -1e-3, 1e-3, 3e-3],
    ),
    "rational 14": (
        "rational_polynomial",
        [0.1, -0.05, 1e-3, -1e-3, 0.01, 0.05, -0.02, 0.01, 2e-3, -1e-3, 1e-3, 3e-3, 0.03, -0.05],
    ),
    "equidistant": ("equidistant", [-0.01, 0.02, -0.015, 0.003]),
    "equidistant plain": ("equidistant", [0, 0, 0, 0]),
}


@pytest.fixture(params=LENSES, ids=lambda name: name.replace(" ", "-"))
def camera(request):
    model, D = LENSES[request.param]
    return Camera(K, SIZE, model, np.array(D, dtype=float))


def points_in_view(n=500, seed=0):
    rng = np.random.default_rng(seed)
    xy = rng.uniform((-0.5, -0.4), (0.5, 0.4), (n, 2))
    z = rng.uniform(0.3, 5, (n, 1))
    return np.concatenate((xy * z, z), 1)


def opencv_project(camera, points):
    zero = np.zeros(3)
    points = points[:, None]
    if camera.distortion_model == "equidistant":
        return cv2.fisheye.projectPoints(points, zero, zero, K, camera.distortion)[0][:, 0]
    return cv2.projectPoints(points, zero, zero, K, camera.distortion)[0][:, 0]


def test_project_agrees_with_opencv(camera):
    points = points_in_view()
    np.testing.assert_allclose(camera.project(points), opencv_project(camera, points), atol=1e-9)


def test_undistort_agrees_with_opencv(camera):
    pixels = opencv_project(camera, points_in_view())
    if camera.distortion_model == "equidistant":
        expected = cv2.fisheye.undistortPoints(pixels[:, None], K, camera.distortion)[:, 0]
    else:
        many = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 500, 1e-14)
        expected = cv2.undistortPointsIter(
            pixels[:, None], K, camera.distortion, np.eye(3), np.eye(3), many
        )[:, 0]
    np.testing.assert_allclose(camera.undistort(pixels), expected, atol=1e-6)


def test_undistort_inverts_project(camera):
    points = points_in_view(5000)
    pixels = camera.project(points)
    np.testing.assert_allclose(
        camera.undistort(pixels), points[:, :2] / points[:, 2:], atol=1e-9, rtol=0
    )
    rays = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(camera.rays(pixels), rays, atol=1e-9)


def test_project_inverts_undistort_over_the_whole_image(camera):
    pixels = np.stack(np.meshgrid(np.arange(0, 640, 7.0), np.arange(0, 480, 7.0)), -1)
    rays = camera.rays(pixels)
    assert rays.shape == (*pixels.shape[:-1], 3)
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1, atol=1e-12)
    np.testing.assert_allclose(camera.project(2.5 * rays), pixels, atol=1e-8)


@given(st.floats(-0.4, 0.4), st.floats(-0.3, 0.3), st.floats(-5e-3, 5e-3), st.integers(0, 99))
def test_strong_distortion_round_trips_or_is_nan(k1, k2, p1, seed):
    camera = Camera(K, SIZE, "plumb_bob", np.array([k1, k2, p1, -p1, 0.05]))
    pixels = np.random.default_rng(seed).uniform((-200, -200), (840, 680), (100, 2))
    xy = camera.undistort(pixels)
    good = np.isfinite(xy).all(1)
    assert np.isfinite(xy).any(1)[good].all()
    back = camera.project(np.concatenate((xy[good], np.ones((good.sum(), 1))), 1))
    np.testing.assert_allclose(back, pixels[good], atol=1e-7)


def test_points_beyond_the_models_domain_have_no_image():
    # r (1 - 0.3 r^2) rises until r = 1 / sqrt(0.9).
    camera = Camera(K, SIZE, "plumb_bob", np.array([-0.3, 0, 0, 0]))
    turn = 1 / math.sqrt(0.9)
    inside, outside = camera.project([[turn - 1e-6, 0, 1], [turn + 1e-6, 0, 1]])
    assert np.isfinite(inside).all() and np.isnan(outside).all()
    edge = 600 * turn * (1 - 0.3 * turn**2) + 330.5
    known, unknown = camera.undistort([[edge - 1e-3, 235.2], [edge + 1e-3, 235.2]])
    assert known[0] == pytest.approx(turn, abs=5e-3) and np.isnan(unknown).all()
    assert np.isnan(camera.rays([[5000.0, 235.2]])).all()


def test_points_behind_the_camera_have_no_image(camera):
    if camera.distortion_model == "equidistant":
        # A fisheye sees sideways and backwards: its rays go on where x / z ends.
        sideways = np.array([[1.0, 0.2, -1e-6], [1.0, 0.2, -0.2]])
        sideways /= np.linalg.norm(sideways, axis=1, keepdims=True)
        pixels = camera.project(sideways)
        np.testing.assert_allclose(camera.rays(pixels), sideways, atol=1e-9)
        assert np.isnan(camera.undistort(pixels)).all()
    else:
        assert np.isnan(camera.project([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0]])).all()
    assert np.isnan(camera.project([0.0, 0.0, -1.0])).all()
    np.testing.assert_allclose(camera.project([0.0, 0.0, 2.0]), camera.project([0.0, 1e-12, 2.0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_and_precision_are_kept(camera, dtype):
    points = points_in_view(50).astype(dtype).reshape(5, 10, 3)
    pixels = camera.project(points)
    assert pixels.dtype == dtype and pixels.shape == (5, 10, 2)
    for f in (camera.undistort, camera.rays):
        assert f(pixels).dtype == dtype and f(pixels).shape[:2] == (5, 10)
        exact = f(pixels.astype(np.float64))
        np.testing.assert_allclose(f(pixels), exact, atol=10 * np.finfo(dtype).eps)
    assert camera.project(points[0, 0]).shape == (2,)
    assert camera.undistort(pixels[0, 0]).shape == (2,)
    assert camera.undistort([100, 200]).dtype == np.float64
    assert camera.undistort(np.zeros((0, 2))).shape == (0, 2)
    assert camera.project(np.zeros((0, 3))).shape == (0, 2)


def test_cameras_compare_by_value():
    a, b = Camera(K, SIZE), Camera(K.tolist(), (480.0, 640), "plumb_bob", np.zeros(5))
    assert a == b and hash(a) == hash(b) and not b.is_distorted
    assert a != Camera(K, (480, 641)) and a != 3
    with pytest.raises(ValueError):
        a.intrinsics[0, 0] = 1
    assert (a.fx, a.fy, a.cx, a.cy, a.width, a.height) == (600, 610, 330.5, 235.2, 640, 480)


# --- from_calibration


@pytest.mark.parametrize("binning", [(1, 1), (2, 2), (4, 2), (0, 0)])
def test_region_and_binning_move_pixels_and_not_rays(binning):
    D = [-0.28, 0.07, 1e-3, -2e-3, 0]
    full = Camera.from_calibration(SIZE, K.ravel(), D)
    roi = SimpleNamespace(x_offset=100, y_offset=60, height=240, width=320, do_rectify=True)
    part = Camera.from_calibration(SIZE, K.ravel(), D, "plumb_bob", binning, roi)
    bx, by = (b or 1 for b in binning)
    assert part.size == (240 // by, 320 // bx)
    # A binned pixel's centre is the mean of the centres of the pixels in it.
    columns, rows = 100 + 3 * bx + np.arange(bx), 60 + 5 * by + np.arange(by)
    covered = columns.mean(), rows.mean()
    np.testing.assert_allclose(part.undistort([3, 5]), full.undistort(covered), atol=1e-9)


def test_binned_centre_follows_pixel_centres():
    camera = Camera.from_calibration(SIZE, K, binning=(2, 2), roi={
        "x_offset": 10, "y_offset": 20, "height": 100, "width": 200})  # fmt: skip
    assert camera.cx == pytest.approx((330.5 + 0.5 - 10) / 2 - 0.5)
    assert camera.cy == pytest.approx((235.2 + 0.5 - 20) / 2 - 0.5)
    assert (camera.fx, camera.fy, camera.size) == (300, 305, (50, 100))


def test_calibration_is_not_changed_by_binning():
    given_K = K.copy()
    Camera.from_calibration(SIZE, given_K, binning=(2, 2))
    np.testing.assert_array_equal(given_K, K)


def test_no_coefficients_or_zeros_are_no_distortion():
    for D in ((), None, [0] * 5, np.zeros(4)):
        assert Camera.from_calibration(SIZE, K, D).distortion_model == "none"
    assert Camera.from_calibration(SIZE, K, [], "").distortion_model == "none"
    assert Camera.from_calibration(SIZE, K, [0] * 4, "fisheye").distortion_model == "equidistant"


def with_K(**entries):
    changed = K.copy()
    for name, value in entries.items():
        changed[int(name[1]), int(name[2])] = value
    return changed


WRONG = {
    "nan": ({"K": with_K(k00=math.nan)}, "NaN or infinity: nan 0 330.5"),
    "uncalibrated": ({"K": np.zeros(9)}, "all zero: the camera is not calibrated; calibrate it"),
    "negative focal length": ({"K": with_K(k11=-610)}, "fy is -610 pixels, it must be positive"),
    "zero focal length": ({"K": with_K(k00=0)}, "fx is 0 pixels"),
    "skew": ({"K": with_K(k01=0.5)}, "skew 0.5, which is not supported"),
    "last row": ({"K": with_K(k22=2)}, "must be .fx 0 cx 0 fy cy 0 0 1."),
    "transposed": ({"K": K.T}, "they look transposed"),
    "P for K": ({"K": np.zeros((3, 4))}, "12 numbers, like the projection matrix P"),
    "too few": ({"K": [1, 2, 3]}, "9 numbers .3x3 row by row., got 3"),
    "text": ({"K": "abc"}, "must be 3x3 numbers, got 'abc'"),
    "coefficients": ({"D": [0.1] * 3}, "takes 4 or 5 coefficients .k1 k2 p1 p2 .k3.., got 3"),
    "rational as plumb_bob": ({"D": [0.1] * 8}, "8 coefficients belong to 'rational_polynomial'"),
    "few rational": (
        {"D": [0.1] * 5, "model": "rational_polynomial"},
        "8 or 12 or 14 .* belong to 'plumb_bob'",
    ),
    "fisheye without": ({"model": "equidistant"}, "takes 4 coefficients .k1 k2 k3 k4., got 0"),
    "nan distortion": ({"D": [0.1, math.nan, 0, 0]}, "D contains NaN or infinity: 0.1 nan 0 0"),
    "coefficients of none": ({"D": [0.1] * 4, "model": "none"}, "takes 0 .* belong to 'plumb_bob'"),
    "tilt": ({"D": [0.1] * 13 + [2], "model": "rational_polynomial"}, "below a right angle"),
    "unknown model": ({"model": "f-theta"}, "unknown distortion model 'f-theta'; known are none"),
    "empty size": ({"size": (0, 640)}, r"size \(height, width\) is \(0, 640\), both must be whole"),
    "broken size": ({"size": (480.5, 640)}, "both must be whole"),
    "one size": ({"size": 480}, "must be .height, width., got 480"),
    "outside": (
        {"roi": {"x_offset": 600, "y_offset": 0, "height": 480, "width": 100}},
        r"100x480 at \(600, 0\) reaches outside the full image of 640x480",
    ),
    "empty region": (
        {"roi": {"x_offset": 6, "y_offset": 0, "height": 0, "width": 0}},
        "is empty; all zero would mean",
    ),
    "half a region": ({"roi": {"x_offset": 6}}, "must have x_offset, y_offset, height and width"),
    "binning": ({"binning": (-1, 1)}, "binning -1x1 does not fit an image of 640x480"),
    "too much binning": ({"binning": (1, 1000)}, "binning 1x1000 does not fit"),
    "no binning": ({"binning": 2}, "must be two whole numbers .x, y., got 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_calibrations_say_what_is_wrong(name):
    change, message = WRONG[name]
    with pytest.raises(CameraError, match=message):
        Camera.from_calibration(**{"size": SIZE, "K": K, **change})


def test_wrong_arrays_are_named(camera):
    for call in (lambda: camera.project(np.zeros((3, 2))), lambda: camera.undistort([1, 2, 3])):
        with pytest.raises(ValueError, match="must have shape"):
            call()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((240, 320), "image is 320x240 but its camera 640x480 .*resized by 0.5.*set binning to 2"),
        ((960, 1280), "resized by 2: resize fx, fy, cx, cy"),
        ((640, 480), "turned by 90 degrees"),
        ((480, 500), "with its region of interest"),
    ],
)
def test_image_of_another_size(shape, message):
    camera = Camera(K, SIZE)
    camera.check_image(np.zeros((480, 640, 3), np.uint8))
    camera.check_image((480, 640))
    with pytest.raises(CameraError, match=message):
        camera.check_image(np.zeros(shape))
    with pytest.raises(CameraError, match="the mask is"):
        camera.check_image(np.zeros(shape), "mask")
