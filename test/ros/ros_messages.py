# SPDX-License-Identifier: Apache-2.0
"""Messages for tests, in few words."""

import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    Detection2D,
    Detection2DArray,
    Detection3D,
    Detection3DArray,
    ObjectHypothesisWithPose,
)

MUG, BOX = 1, 2

BOX_OBJ = """\
v -0.05 -0.05 0
v 0.05 -0.05 0
v 0.05 0.05 0
v -0.05 0.05 0
v -0.05 -0.05 0.1
v 0.05 -0.05 0.1
v 0.05 0.05 0.1
v -0.05 0.05 0.1
f 1 3 2
f 1 4 3
f 5 6 7
f 5 7 8
f 1 2 6
f 1 6 5
f 2 3 7
f 2 7 6
f 3 4 8
f 3 8 7
f 4 1 5
f 4 5 8
"""

LIBRARY = """\
objects:
  mug: {mesh: box.obj, unit: m, aliases: [cup], label: 1}
  box: {mesh: box.obj, unit: m}
"""


def write_library(folder, text=LIBRARY):
    """An object library of two boxes; the path of its file."""
    (folder / "box.obj").write_text(BOX_OBJ)
    path = folder / "objects.yaml"
    path.write_text(text)
    return path


def header(stamp=0, frame_id="camera_optical_frame"):
    """stamp: nanoseconds."""
    return Header(
        stamp=Time(sec=stamp // 10**9, nanosec=stamp % 10**9),
        frame_id=frame_id,
    )


def raw_image(data, width, height, encoding, step, is_bigendian=0, **where):
    return Image(
        header=header(**where),
        height=height,
        width=width,
        encoding=encoding,
        step=step,
        is_bigendian=is_bigendian,
        data=array.array("B", data),
    )


def image(pixels, encoding, padding=0, is_bigendian=0, **where):
    """An image message of an array; padding: bytes of rubbish at the end of each row."""
    pixels = np.ascontiguousarray(pixels)
    if is_bigendian:
        pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(len(pixels), -1)
    rubbish = np.full((len(pixels), padding), 0xAB, np.uint8)
    data = np.concatenate([rows, rubbish], axis=1)
    return raw_image(
        data.tobytes(), pixels.shape[1], len(pixels), encoding, data.shape[1], is_bigendian, **where
    )


def label_pixels(*labels, size=(120, 160)):
    """A label image with a square per label, side by side."""
    pixels = np.zeros(size, np.uint16)
    for index, label in enumerate(labels):
        pixels[40:70, 10 + 40 * index : 40 + 40 * index] = label
    return pixels


def masks(*labels, size=(120, 160), encoding="mono16", **where):
    return image(label_pixels(*labels, size=size), encoding, **where)


def picture(size=(120, 160), **where):
    return image(np.full((*size, 3), 90, np.uint8), "rgb8", **where)


def camera_info(size=(120, 160), k=None, **where):
    height, width = size
    if k is None:
        k = [200.0, 0.0, width / 2, 0.0, 200.0, height / 2, 0.0, 0.0, 1.0]
    return CameraInfo(
        header=header(**where),
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=[float(value) for value in k],
    )


def _hypothesis(class_name, score=0.9):
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = class_name
    hypothesis.hypothesis.score = score
    return hypothesis


def detections(names, **where):
    """names: {id: class}."""
    message = Detection2DArray(header=header(**where))
    for label, class_name in names.items():
        results = [_hypothesis(class_name)] if class_name is not None else []
        message.detections.append(Detection2D(id=str(label), results=results))
    return message


def initial_poses(poses, **where):
    """poses: [(id, class, (x, y, z))]."""
    message = Detection3DArray(header=header(**where))
    for label, class_name, position in poses:
        hypothesis = _hypothesis(class_name)
        point = hypothesis.pose.pose.position
        point.x, point.y, point.z = (float(value) for value in position)
        message.detections.append(
            Detection3D(id=str(label), header=message.header, results=[hypothesis])
        )
    return message
