# SPDX-License-Identifier: Apache-2.0
"""Messages of depth cameras and laser scanners to arrays."""

import struct

import numpy as np

from pose_refiner_ros.ros.bad_input import BadInput
from pose_refiner_ros.ros.images import checked_data

# Encodings of depth images: how a pixel is stored, and metres per unit (REP 118).
DEPTH_TYPES = {"16UC1": ("u2", 0.001), "mono16": ("u2", 0.001), "32FC1": ("f4", 1.0)}
COMPRESSED_HEADER = struct.Struct("<iff")  # of compressed_depth_image_transport
POINT_TYPES = {7: "f4", 8: "f8"}  # PointField.FLOAT32, FLOAT64


def decode_depth(message):
    """An Image or CompressedImage as (height, width) depths and metres per unit."""
    if hasattr(message, "format"):
        return _decode_compressed(message)
    if message.encoding not in DEPTH_TYPES:
        raise BadInput(
            "depth encoding",
            f"depth has the encoding '{message.encoding}'; it must be 16UC1 (millimetres) or 32FC1 "
            "(metres)",
        )
    kind, scale = DEPTH_TYPES[message.encoding]
    stored = np.dtype((">" if message.is_bigendian else "<") + kind)
    data, step = checked_data(message, message.width * stored.itemsize, "depth")
    shape, strides = (message.height, message.width), (step, stored.itemsize)
    return np.ascontiguousarray(np.ndarray(shape, stored, data, strides=strides), dtype=kind), scale


def _decode_compressed(message):
    """As compressed_depth_image_transport packs: twelve bytes, then a PNG of 16 bit; of floats it
    holds a / depth + b."""
    import cv2

    data = bytes(message.data)
    encoding = message.format.split(";")[0].strip()
    if "compressedDepth" not in message.format or encoding not in DEPTH_TYPES:
        raise BadInput(
            "depth encoding",
            f"compressed depth has the format '{message.format}'; it must be '16UC1; "
            "compressedDepth' or '32FC1; compressedDepth' (JPEG cannot hold depths)",
        )
    start = data.find(b"\x89PNG")
    packed = np.frombuffer(data[max(start, 0) :], np.uint8)
    picture = cv2.imdecode(packed, cv2.IMREAD_UNCHANGED) if start >= 0 else None
    if picture is None or picture.ndim != 2:
        raise BadInput(
            "depth encoding",
            f"compressed depth (format '{message.format}', {len(data)} bytes) holds no PNG that "
            "can be decoded; RVL is not supported",
        )
    if encoding != "32FC1":
        return picture, DEPTH_TYPES[encoding][1]
    _, a, b = COMPRESSED_HEADER.unpack_from(data)
    depth = np.zeros(picture.shape, np.float32)
    known = picture > 0
    depth[known] = a / (picture[known] - b)
    return depth, 1.0


def decode_points(message):
    """x, y, z of a PointCloud2 as (N, 3) float32, without points that are not finite."""
    fields = {field.name: field for field in message.fields}
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise BadInput(
            "points", f"points have no field {missing[0]}; they have {', '.join(fields)}"
        )
    kinds = {fields[axis].datatype for axis in "xyz"}
    if len(kinds) > 1 or not kinds <= set(POINT_TYPES):
        raise BadInput("points", "points: x, y and z must be float32 or float64, all of them alike")
    if message.width == 0 or message.height == 0:
        return np.zeros((0, 3), np.float32)
    order, step = ">" if message.is_bigendian else "<", message.point_step
    stored = np.dtype(order + POINT_TYPES[kinds.pop()])
    data = np.frombuffer(message.data, np.uint8)
    row_step = max(message.row_step, message.width * step)  # some publishers leave it 0
    needed = (message.height - 1) * row_step + message.width * step
    farthest = max(fields[axis].offset for axis in "xyz") + stored.itemsize
    if farthest > step or len(data) < needed:
        raise BadInput(
            "points",
            f"points: {len(data)} bytes, but {message.width}x{message.height} points of {step} "
            f"bytes need {needed}",
        )
    shape, strides = (message.height, message.width), (row_step, step)
    columns = [
        np.ndarray(shape, stored, data, fields[axis].offset, strides).ravel() for axis in "xyz"
    ]
    points = np.stack(columns, axis=1).astype(np.float32)
    return points[np.isfinite(points).all(axis=1)]
