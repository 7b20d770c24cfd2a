# SPDX-License-Identifier: Apache-2.0
"""Depth images and point clouds as messages: every way to pack them, and what is refused."""

import array
import struct

import cv2
import numpy as np
import pytest
from ros_messages import header, image, raw_image
from sensor_msgs.msg import CompressedImage, PointCloud2, PointField

from pose_refiner_ros.ros.bad_input import BadInput
from pose_refiner_ros.ros.measured import decode_depth, decode_points

MILLIMETRES = np.array([[0, 1, 500], [1000, 30_000, 65_535]], np.uint16)
METRES = np.array([[0.0, np.nan, 0.5], [1.25, 30.0, np.inf]], np.float32)

# ---- depth ----


@pytest.mark.parametrize("padding", [0, 1, 6])
@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize(
    "encoding, pixels, scale",
    [("16UC1", MILLIMETRES, 0.001), ("mono16", MILLIMETRES, 0.001), ("32FC1", METRES, 1.0)],
)
def test_depth_survives_padding_and_byte_order(encoding, pixels, scale, padding, big):
    depth, metres = decode_depth(image(pixels, encoding, padding, big))
    assert metres == scale
    assert depth.dtype == pixels.dtype and depth.dtype.isnative and depth.flags.c_contiguous
    np.testing.assert_array_equal(depth, pixels)


def test_the_last_row_of_a_depth_may_lack_its_padding():
    message = image(MILLIMETRES, "16UC1", padding=4)
    message.data = message.data[:-4]
    np.testing.assert_array_equal(decode_depth(message)[0], MILLIMETRES)


@pytest.mark.parametrize(
    "message, kind, words",
    [
        (image(np.zeros((4, 4, 3), np.uint8), "rgb8"), "depth encoding", "'rgb8'.*16UC1"),
        (image(np.zeros((4, 4), np.uint8), "mono8"), "depth encoding", "'mono8'.*32FC1"),
        (raw_image(b"", 4, 4, "", 4), "depth encoding", "encoding ''"),
        (raw_image(bytes(31), 4, 4, "16UC1", 8), "depth size", "31 bytes.* need 32"),
        (raw_image(bytes(64), 4, 4, "32FC1", 8), "depth size", "step is 8.* need 16"),
        (raw_image(b"", 0, 0, "16UC1", 0), "depth size", "0x0"),
    ],
)
def test_a_bad_depth_image_is_explained(message, kind, words):
    with pytest.raises(BadInput, match=words) as error:
        decode_depth(message)
    assert error.value.kind == kind


# ---- compressed depth ----


def compressed(pixels, form="16UC1; compressedDepth", a=0.0, b=0.0, start=None, suffix=".png"):
    """As compressed_depth_image_transport has it: twelve bytes of header before the picture."""
    start = struct.pack("<iff", 0, a, b) if start is None else start
    data = start + cv2.imencode(suffix, pixels)[1].tobytes()
    return CompressedImage(header=header(), format=form, data=array.array("B", data))


@pytest.mark.parametrize("form", ["16UC1; compressedDepth", "16UC1; compressedDepth png"])
def test_compressed_millimetres_are_the_picture(form):
    depth, scale = decode_depth(compressed(MILLIMETRES, form))
    assert scale == 0.001 and depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, MILLIMETRES)


@pytest.mark.parametrize("form", ["32FC1; compressedDepth", "32FC1; compressedDepth png"])
def test_compressed_metres_come_back_from_inverse_depths(form):
    nearest, farthest = 100.0, 10.0  # its parameters depth_quantization and depth_max
    a = nearest * (nearest + 1.0)
    b = 1.0 - a / farthest
    depth = np.array([[0.5, 1.0, 2.0], [5.0, 9.5, np.nan]], np.float32)
    with np.errstate(invalid="ignore"):
        raw = np.where(np.isfinite(depth), a / depth + b, 0).astype(np.uint16)
    decoded, scale = decode_depth(compressed(raw, form, a, b))
    assert scale == 1.0 and decoded.dtype == np.float32
    known = np.isfinite(depth)
    np.testing.assert_allclose(decoded[known], depth[known], rtol=0.01)
    assert (decoded[~known] == 0.0).all()


@pytest.mark.parametrize(
    "message, words",
    [
        (compressed(MILLIMETRES, "jpeg"), "format 'jpeg'.*JPEG cannot hold depths"),
        (compressed(MILLIMETRES, "16UC1; jpeg compressed "), "JPEG cannot hold depths"),
        (compressed(MILLIMETRES, "16UC1; png compressed "), "must be '16UC1; compressedDepth'"),
        (compressed(MILLIMETRES, "bgr8; compressedDepth"), "format 'bgr8; compressedDepth'"),
        (compressed(MILLIMETRES, ""), "format ''"),
        (
            CompressedImage(format="16UC1; compressedDepth rvl", data=array.array("B", bytes(99))),
            "99 bytes.*RVL is not supported",
        ),
        (CompressedImage(format="16UC1; compressedDepth"), "0 bytes.*no PNG"),
        (compressed(np.zeros((4, 4, 3), np.uint8)), "no PNG that can be decoded"),
        (
            CompressedImage(format="16UC1; compressedDepth", data=array.array("B", b"\x89PNG...")),
            "no PNG that can be decoded",
        ),
    ],
)
def test_bad_compressed_depth_is_explained(message, words):
    with pytest.raises(BadInput, match=words) as error:
        decode_depth(message)
    assert error.value.kind == "depth encoding"


# ---- points ----

FLOAT32, FLOAT64, UINT8, INT32 = 7, 8, 2, 5
PLACES = np.array([[1, 2, 3], [-4, 5.5, 6], [0, 0, 0], [7, 8, -9], [10, 11, 12], [0.1, 0, 99]])


def cloud(
    points=PLACES,
    offsets=(0, 4, 8),
    step=12,
    datatype=FLOAT32,
    rows=1,
    padding=0,
    big=False,
    names="xyz",
):
    """A PointCloud2 with rubbish wherever no coordinate is."""
    kind = (">" if big else "<") + {FLOAT32: "f4", FLOAT64: "f8"}.get(datatype, "i4")
    width = len(points) // rows
    row_step = width * step + padding
    data = np.full((rows, row_step), 0xAB, np.uint8)
    for i, point in enumerate(points):
        row, start = i // width, i % width * step
        for offset, value in zip(offsets, point, strict=True):
            stored = np.frombuffer(np.array(value, kind).tobytes(), np.uint8)
            data[row, start + offset : start + offset + len(stored)] = stored
    fields = [PointField(name="intensity", offset=0, datatype=UINT8, count=1)]
    fields += [
        PointField(name=name, offset=offset, datatype=datatype, count=1)
        for name, offset in zip(names, offsets, strict=True)
    ]
    return PointCloud2(
        header=header(),
        height=rows,
        width=width,
        fields=fields,
        is_bigendian=big,
        point_step=step,
        row_step=row_step,
        data=array.array("B", data.tobytes()),
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("rows, padding", [(1, 0), (2, 0), (3, 5)])
@pytest.mark.parametrize(
    "datatype, offsets, step",
    [
        (FLOAT32, (0, 4, 8), 12),
        (FLOAT32, (0, 4, 8), 16),
        (FLOAT32, (13, 1, 5), 22),  # in any order, and off the bounds of words
        (FLOAT64, (0, 8, 16), 24),
        (FLOAT64, (4, 12, 20), 31),
    ],
)
def test_points_are_found_wherever_they_lie(datatype, offsets, step, rows, padding, big):
    points = decode_points(cloud(PLACES, offsets, step, datatype, rows, padding, big))
    assert points.dtype == np.float32 and points.dtype.isnative
    np.testing.assert_array_equal(points, PLACES.astype(np.float32))


def test_points_that_are_not_finite_are_dropped():
    places = PLACES.copy()
    places[1, 2], places[3, 0], places[4] = np.nan, np.inf, np.nan
    np.testing.assert_array_equal(
        decode_points(cloud(places, rows=2)), places[[0, 2, 5]].astype(np.float32)
    )


@pytest.mark.parametrize("row_step", [0, 3])
def test_a_row_step_that_is_too_small_means_no_padding(row_step):
    message = cloud(rows=2)
    message.row_step = row_step
    np.testing.assert_array_equal(decode_points(message), PLACES.astype(np.float32))


@pytest.mark.parametrize("height, width", [(1, 0), (0, 0), (0, 5)])
def test_an_empty_cloud_has_no_points(height, width):
    message = cloud(PLACES[:0])
    message.height, message.width, message.point_step = height, width, 0
    message.data = array.array("B")
    assert decode_points(message).shape == (0, 3)


@pytest.mark.parametrize(
    "message, words",
    [
        (cloud(names="xyw"), "no field z; they have intensity, x, y, w"),
        (PointCloud2(), "no field x"),
        (cloud(datatype=INT32), "float32 or float64"),
    ],
)
def test_a_cloud_without_coordinates_is_explained(message, words):
    with pytest.raises(BadInput, match=words) as error:
        decode_points(message)
    assert error.value.kind == "points"


def test_coordinates_of_different_types_are_refused():
    message = cloud(offsets=(0, 4, 8), step=16)
    message.fields[-1].datatype = FLOAT64
    with pytest.raises(BadInput, match="all of them alike"):
        decode_points(message)


@pytest.mark.parametrize("rows, padding, needed", [(1, 0, 72), (2, 4, 76)])
def test_a_cloud_with_too_few_bytes_is_refused(rows, padding, needed):
    message = cloud(rows=rows, padding=padding)
    message.data = message.data[: needed - 1]
    words = f"{needed - 1} bytes, but {6 // rows}x{rows} points of 12 bytes need {needed}"
    with pytest.raises(BadInput, match=words):
        decode_points(message)


def test_a_field_that_reaches_beyond_its_point_is_refused():
    message = cloud()
    message.fields[-1].offset = 9
    with pytest.raises(BadInput, match="points of 12 bytes"):
        decode_points(message)
