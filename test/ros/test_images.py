# SPDX-License-Identifier: Apache-2.0
import array
import sys
import types

import ament_index_python.packages as packages
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_messages import image, raw_image
from sensor_msgs.msg import CompressedImage

from pose_refiner_ros.ros import compat, images
from pose_refiner_ros.ros.bad_input import BadInput

LABELS = [
    ("mono8", np.uint8),
    ("8UC1", np.uint8),
    ("mono16", np.uint16),
    ("16UC1", np.uint16),
    ("32SC1", np.int32),
]


@given(
    st.sampled_from(LABELS),
    st.integers(1, 6),
    st.integers(1, 7),
    st.integers(0, 5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_labels_survive_padding_and_byte_order(kind, height, width, padding, big, random):
    encoding, dtype = kind
    largest = min(np.iinfo(dtype).max, 100_000)
    pixels = np.array(
        [[random.randint(0, largest) for _ in range(width)] for _ in range(height)], dtype
    )
    decoded = images.decode_labels(image(pixels, encoding, padding, int(big)))
    assert decoded.dtype == dtype
    assert decoded.dtype.isnative and decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels)


def test_negative_labels_are_background():
    pixels = np.array([[-1, 0], [3, -7]], np.int32)
    np.testing.assert_array_equal(images.decode_labels(image(pixels, "32SC1")), [[0, 0], [3, 0]])


def test_last_row_may_lack_its_padding():
    message = image(np.full((3, 5), 9, np.uint8), "mono8", padding=3)
    message.data = message.data[:-3]
    assert (images.decode_labels(message) == 9).all()


def test_step_zero_means_no_padding():
    message = image(np.full((3, 5), 9, np.uint16), "mono16")
    message.step = 0
    assert (images.decode_labels(message) == 9).all()


def test_decoding_labels_copies_no_more_than_needed():
    message = image(np.zeros((4, 4), np.uint8), "mono8")
    assert np.shares_memory(images.decode_labels(message), np.frombuffer(message.data, np.uint8))


@pytest.mark.parametrize(
    "message, kind, words",
    [
        (image(np.zeros((4, 4, 3), np.uint8), "rgb8"), "masks encoding", "rgb8"),
        (image(np.zeros((4, 4), np.float32), "32FC1"), "masks encoding", "mono16"),
        (raw_image(bytes(10), 4, 4, "mono8", 4), "masks size", "need 16"),
        (raw_image(bytes(16), 4, 4, "mono8", 3), "masks size", "step is 3"),
        (raw_image(b"", 0, 0, "mono8", 0), "masks size", "0x0"),
        (raw_image(b"", 4, 4, "", 4), "masks encoding", "encoding ''"),
    ],
)
def test_bad_label_image_is_explained(message, kind, words):
    with pytest.raises(BadInput, match=words) as error:
        images.decode_labels(message)
    assert error.value.kind == kind


RGB = np.array([[[255, 0, 10], [1, 2, 3]], [[0, 200, 0], [9, 8, 7]]], np.uint8)


@pytest.mark.parametrize(
    "encoding, pixels",
    [
        ("rgb8", RGB),
        ("bgr8", RGB[:, :, ::-1]),
        ("rgba8", np.dstack([RGB, np.full((2, 2), 50, np.uint8)])),
        ("bgra8", np.dstack([RGB[:, :, ::-1], np.full((2, 2), 50, np.uint8)])),
        ("bgr16", RGB[:, :, ::-1].astype(np.uint16) * 257),
    ],
)
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("big", [0, 1])
def test_colors(encoding, pixels, padding, big):
    message = image(pixels, encoding, padding, big if pixels.itemsize > 1 else 0)
    np.testing.assert_allclose(images.decode_color(message).astype(int), RGB.astype(int), atol=1)


def test_gray():
    gray = np.array([[0, 128], [255, 3]], np.uint8)
    for encoding, pixels in (("mono8", gray), ("mono16", gray.astype(np.uint16) * 257)):
        decoded = images.decode_color(image(pixels, encoding, padding=1))
        assert (np.abs(decoded.astype(int) - gray[:, :, None]) <= 1).all()


def test_bayer_and_yuv():
    red = np.zeros((8, 8), np.uint8)
    red[::2, ::2] = 255  # the red pixels of rggb
    decoded = images.decode_color(image(red, "bayer_rggb8", padding=4))
    assert decoded[4, 4, 0] > 200 and decoded[4, 4, 2] < 50
    yuv = np.full((4, 4, 2), 128, np.uint8)
    assert images.decode_color(image(yuv, "yuv422", padding=4)).shape == (4, 4, 3)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1", "nonsense", ""])
def test_pictures_that_are_none_are_explained(encoding):
    message = image(np.zeros((4, 4), np.float32), encoding)
    with pytest.raises(BadInput, match=f"the encoding '{encoding}', which") as error:
        images.decode_color(message)
    assert error.value.kind == "image encoding"


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_compressed(suffix):
    pixels = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    _, data = cv2.imencode(suffix, pixels[:, :, ::-1])
    message = CompressedImage(format="jpeg", data=array.array("B", data.tobytes()))
    assert np.abs(images.decode_color(message).astype(int) - pixels).max() < 8


@pytest.mark.parametrize("data", [b"", b"no picture at all"])
def test_bad_compressed_is_explained(data):
    message = CompressedImage(format="jpeg", data=array.array("B", data))
    with pytest.raises(BadInput, match="could not be decoded"):
        images.decode_color(message)


def test_encode_and_decode():
    pixels = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    message = images.encode_image(pixels[:, ::-1], image(pixels, "rgb8").header)
    assert type(message.data) is array.array
    np.testing.assert_array_equal(images.decode_color(message), pixels[:, ::-1])


@pytest.fixture
def fresh_cv_bridge():
    compat.ros_cv_bridge.cache_clear()
    yield
    compat.ros_cv_bridge.cache_clear()


def _fake_cv_bridge(monkeypatch, is_ament_package, **members):
    module = types.ModuleType("cv_bridge")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, "cv_bridge", module)

    def get_package_prefix(name):
        if not is_ament_package:
            raise LookupError(name)
        return "/opt/ros/humble"

    monkeypatch.setattr(packages, "get_package_prefix", get_package_prefix)


class _Bridge:
    def imgmsg_to_cv2(self, message, desired_encoding):
        return np.full((message.height, message.width, 3), 42, np.uint8)


def test_cv_bridge_of_ros_is_used(monkeypatch, fresh_cv_bridge):
    _fake_cv_bridge(monkeypatch, True, CvBridge=_Bridge)
    message = image(np.zeros((4, 4), np.uint16), "mono16")
    assert (images.decode_color(message) == 42).all()


def test_cv_bridge_of_pypi_is_not_used(monkeypatch, fresh_cv_bridge):
    _fake_cv_bridge(monkeypatch, False, CvBridge=_Bridge)
    assert compat.ros_cv_bridge() is None
    assert (images.decode_color(image(np.zeros((4, 4), np.uint16), "mono16")) == 0).all()


def test_cv_bridge_that_breaks_with_numpy_2_is_survived(monkeypatch, fresh_cv_bridge):
    def broken():
        raise AttributeError("_ARRAY_API not found")

    _fake_cv_bridge(monkeypatch, True, CvBridge=broken)
    assert compat.ros_cv_bridge() is None
