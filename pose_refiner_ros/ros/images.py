# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays and back. Label images are decoded here always: no library is to be
trusted with 16-bit labels, padded rows and big-endian data all at once."""

import array
import sys

import numpy as np

from pose_refiner_ros.ros import compat
from pose_refiner_ros.ros.bad_input import BadInput

LABEL_TYPES = {
    "mono8": "u1",
    "8UC1": "u1",
    "mono16": "u2",
    "16UC1": "u2",
    "16SC1": "i2",
    "32SC1": "i4",
}
# Colour encodings that need no library: channels, and which of them are red, green, blue.
PLAIN_COLORS = {
    "rgb8": (3, (0, 1, 2)),
    "8UC3": (3, (2, 1, 0)),  # by OpenCV's custom
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "8UC4": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}


def decode_labels(message):
    """A label image as a (height, width) integer array, 0 = background."""
    kind = LABEL_TYPES.get(message.encoding)
    if kind is None:
        raise BadInput(
            "masks encoding",
            f"masks have the encoding '{message.encoding}'; a label image is one of "
            f"{', '.join(LABEL_TYPES)}, where 0 is background and every object has its own value",
        )
    stored = np.dtype((">" if message.is_bigendian else "<") + kind)
    data, step = checked_data(message, message.width * stored.itemsize, "masks")
    shape, strides = (message.height, message.width), (step, stored.itemsize)
    labels = np.ascontiguousarray(np.ndarray(shape, stored, data, strides=strides), dtype=kind)
    # Negative labels mark pixels to ignore in some data sets.
    return np.maximum(labels, 0) if kind[0] == "i" else labels


def decode_color(message):
    """An Image or CompressedImage as (height, width, 3) uint8 RGB."""
    if hasattr(message, "format"):
        return _decode_compressed(message)
    if message.encoding in PLAIN_COLORS:
        channels, order = PLAIN_COLORS[message.encoding]
        data, step = checked_data(message, message.width * channels, "image")
        shape, strides = (message.height, message.width, channels), (step, channels, 1)
        picture = np.ndarray(shape, np.uint8, data, strides=strides)
        return np.ascontiguousarray(picture[:, :, order])
    try:
        row_bytes = _bytes_per_pixel(message) * message.width
        data, step = checked_data(message, row_bytes, "image")
        rows = np.ndarray((message.height, row_bytes), np.uint8, data, strides=(step, 1))
        picture = np.ascontiguousarray(compat.convert_color(message, rows))
    except BadInput:
        raise
    except Exception as error:  # cv_bridge, rosbags-image and OpenCV have an exception each
        raise BadInput(
            "image encoding",
            f"the image has the encoding '{message.encoding}', which could not be converted to "
            f"rgb8 ({error})",
        ) from None
    if picture.shape != (message.height, message.width, 3) or picture.dtype != np.uint8:
        raise BadInput(
            "image encoding",
            f"the image has the encoding '{message.encoding}', which is no colour picture",
        )
    return picture


def encode_image(picture, header, encoding="rgb8"):
    """An Image message of a uint8 array: (height, width, 3), or (height, width) as mono8."""
    from sensor_msgs.msg import Image

    height, width = picture.shape[:2]
    # rclpy takes an array.array as it is; any other sequence is checked byte by byte (52 ms).
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(picture).data)
    return Image(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=int(sys.byteorder == "big"),
        step=picture[0].size,
        data=data,
    )


def checked_data(message, row_bytes, what):
    """The data as a flat uint8 array and the bytes from row to row, if there is enough of it."""
    height, width = message.height, message.width
    if height == 0 or width == 0:
        raise BadInput(f"{what} size", f"{what}: the message is {width}x{height} pixels large")
    step = message.step or row_bytes  # some publishers leave it 0
    if step < row_bytes:
        raise BadInput(
            f"{what} size",
            f"{what}: step is {step} bytes, but {width} pixels of '{message.encoding}' need "
            f"{row_bytes}",
        )
    data = np.frombuffer(message.data, np.uint8)
    # The padding of the last row may be missing.
    needed = step * (height - 1) + row_bytes
    if len(data) < needed:
        raise BadInput(
            f"{what} size",
            f"{what}: {len(data)} bytes of data, but {height} rows with a step of {step} bytes "
            f"need {needed}",
        )
    return data, step


def _bytes_per_pixel(message):
    """For encodings where it is the same for every pixel; else what `step` says."""
    if "yuv422" in message.encoding or message.encoding in ("uyvy", "yuyv"):
        return 2
    if message.encoding.startswith("bayer"):
        return 2 if message.encoding.endswith("16") else 1
    channels = {"mono16": 1, "rgb16": 3, "bgr16": 3, "rgba16": 4, "bgra16": 4}
    if message.encoding in channels:
        return 2 * channels[message.encoding]
    return max(message.step // max(message.width, 1), 1)


def _decode_compressed(message):
    import cv2

    data = np.frombuffer(message.data, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        raise BadInput(
            "image encoding",
            f"the compressed image (format '{message.format}', {len(data)} bytes) could not be "
            "decoded",
        )
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
