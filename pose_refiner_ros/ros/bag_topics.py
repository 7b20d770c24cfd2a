# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are image, camera_info, masks and so on. No ROS in here."""

import re
from dataclasses import dataclass

TYPES = {
    "masks": ("sensor_msgs/msg/Image",),
    "image": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
    "detections": ("vision_msgs/msg/Detection2DArray",),
    "initial_poses": ("vision_msgs/msg/Detection3DArray",),
    "depth": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "points": ("sensor_msgs/msg/PointCloud2",),
}
REQUIRED = ("masks", "camera_info")
PACKED = ("/compressed", "/compressedDepth")  # what image_transport adds to a topic
NONE = "none"  # what a user gives for "do without"

MASK_NAME = re.compile(r"mask|segment|label|instance", re.IGNORECASE)
DEPTH_NAME = re.compile(r"depth", re.IGNORECASE)
NO_DEPTH = re.compile(r"infra|/compressed$")  # another camera's, or what JPEG has left of it
NO_SCAN = re.compile(r"map|octo|voxel", re.IGNORECASE)
REGISTERED_NAME = re.compile(r"registered|aligned|depth_to_color|depth/compressedDepth$")
NO_IMAGE_NAME = re.compile(r"depth|overlay|debug|disparity|infra|left_raw|theora", re.IGNORECASE)


class BagError(ValueError):
    """A bag cannot be worked on; the text says why and what to do."""


@dataclass(frozen=True)
class BagTopics:
    """Topic names; None where there is none."""

    masks: str
    camera_info: str
    image: str | None = None
    detections: str | None = None
    initial_poses: str | None = None
    depth: str | None = None
    points: str | None = None

    def names(self):
        """{topic: what it is}."""
        return {topic: role for role, topic in vars(self).items() if topic is not None}


def find_topics(types, given=None):
    """The BagTopics of a bag.

    types: {topic: message type}. given: {masks, image...: topic}, chosen by the user; "none" for
    doing without. What is not given is found by type and name, if only one will do.
    """
    given = {role: topic for role, topic in (given or {}).items() if topic}
    found = {}
    for role, topic in given.items():
        found[role] = (
            None if topic == NONE and role not in REQUIRED else _checked(role, topic, types)
        )
    for role in TYPES:
        if role not in found:
            found[role] = _choose(role, types, found)
    return BagTopics(**found)


def _checked(role, topic, types):
    """A topic that the user has named."""
    name = next((t for t in (topic, "/" + topic) if t in types), None)
    if name is None:
        raise BagError(f"there is no topic {topic} in the bag for {role}; {listing(types)}")
    if types[name] not in TYPES[role]:
        raise BagError(
            f"topic {name} is of type {types[name]}; {role} are {' or '.join(TYPES[role])}"
        )
    return name


def _choose(role, types, found):
    """The one topic that fits; None if there is none and it may be missing."""
    candidates = [t for t in types if types[t] in TYPES[role] and t not in found.values()]
    if role == "masks":
        candidates = [t for t in candidates if MASK_NAME.search(t)]
    elif role == "image":
        candidates = [t for t in candidates if not MASK_NAME.search(t)]
        candidates = [t for t in candidates if not NO_IMAGE_NAME.search(t)]
    elif role == "initial_poses":
        candidates = [t for t in candidates if "initial" in t]
    elif role == "depth":  # in the camera's own pixels, or nobody knows where
        candidates = [t for t in candidates if DEPTH_NAME.search(t) and not NO_DEPTH.search(t)]
        registered = [t for t in candidates if REGISTERED_NAME.search(t)]
        candidates = registered or [t for t in candidates if _last(t) == "depth"]
    elif role == "points":
        candidates = [t for t in candidates if not NO_SCAN.search(t)]
    exact = [t for t in candidates if _last(t) == role]
    if len(candidates) > 1 and len(exact) == 1:
        candidates = exact
    # of several cameras, the one in whose namespace the masks or the image are
    near = [t for t in candidates if _namespace(t) in {_namespace(f) for f in found.values() if f}]
    if len(candidates) > 1 and near:
        candidates = near
    raw = [t for t in candidates if not t.endswith(PACKED)]
    if len(candidates) > 1 and len(raw) == 1 and _same_but_for_compression(raw[0], candidates):
        candidates = raw
    if len(candidates) == 1:
        return candidates[0]
    if role in ("depth", "points"):  # what may be used as well is no reason to stop
        return None
    option = "--" + role.replace("_", "-")
    if candidates:
        raise BagError(
            f"several topics could be {role}: {', '.join(sorted(candidates))}; choose with {option}"
            + ("" if role in REQUIRED else f", or {option} none")
        )
    if role in REQUIRED:
        raise BagError(
            f"no topic of the bag looks like {role} ({' or '.join(TYPES[role])}); name it with "
            f"{option}; {listing(types)}"
        )
    return None


def _same_but_for_compression(raw, candidates):
    return all(t == raw or t in [raw + end for end in PACKED] for t in candidates)


def _last(topic):
    return topic.rsplit("/", 1)[-1]


def _namespace(topic):
    for end in PACKED:
        topic = topic.removesuffix(end)
    return topic.rsplit("/", 1)[0]


def listing(types):
    """The topics of the bag, for an error message."""
    if not types:
        return "the bag is empty"
    return "it holds " + ", ".join(f"{topic} ({types[topic]})" for topic in sorted(types))
