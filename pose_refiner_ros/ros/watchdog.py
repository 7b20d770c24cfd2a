# SPDX-License-Identifier: Apache-2.0
"""Says why no pose is published, of objects or of the camera. No ROS in here: the node hands over
what it sees."""

import difflib
from dataclasses import dataclass, field


@dataclass
class InputView:
    """One input topic as the node sees it."""

    topic: str
    type_name: str  # sensor_msgs/msg/Image
    received: int  # messages since the node became active
    published_as: list = field(default_factory=list)  # type name of each publisher
    graph: dict = field(default_factory=dict)  # topic -> type names, of all that is published
    own: frozenset = frozenset()  # topics that the node itself publishes
    incompatible: str = ""  # explanation of incompatible QoS

    def missing(self):
        """Why nothing arrives, or "" if something does."""
        if self.received:
            return ""
        if self.incompatible:
            return self.incompatible
        if self.published_as and self.type_name not in self.published_as:
            return f"{self.topic} is published as {self.published_as[0]}, not {self.type_name}"
        if self.published_as:
            return (
                f"{self.topic} has {len(self.published_as)} publisher(s), but nothing has arrived: "
                "either they publish nothing, or the network or shared memory loses it"
            )
        similar = self.similar()
        hint = f"; published with that type: {', '.join(similar)} (remap it)" if similar else ""
        return f"nobody publishes {self.topic} ({self.type_name}){hint}"

    def similar(self):
        """Up to three topics of the right type, the most similar names first."""
        candidates = [
            topic
            for topic, types in self.graph.items()
            if self.type_name in types and topic != self.topic and topic not in self.own
        ]
        return sorted(candidates, key=self._likeness, reverse=True)[:3]

    def _likeness(self, topic):
        last = self.topic.rsplit("/", 1)[-1]
        # A name that holds ours, like /segmenter/masks_raw, before one that is spelled alike.
        contained = last.rstrip("s") in topic
        return contained, difflib.SequenceMatcher(None, self.topic, topic).ratio()


@dataclass
class Situation:
    """All that the explanation needs."""

    masks: InputView
    camera_info: InputView
    image: InputView
    detections: InputView
    initial_poses: InputView | None = None
    depth: InputView | None = None
    points: InputView | None = None
    require_image: bool = False
    use_detections: str = "auto"
    nearest: dict = field(default_factory=dict)  # input -> seconds to the nearest stamp, or None
    skipped: dict = field(default_factory=dict)  # reasons since the last answer -> frames
    last_reasons: tuple = ()  # why the last frame gave no pose
    busy_seconds: float = 0.0  # how long the frame at hand has taken so far
    sync_slop: float = 0.0


def explain(situation):
    """One sentence or a few: the first thing to mend."""
    for view in (situation.masks, situation.camera_info):
        if view.missing():
            return view.missing()
    if situation.require_image and situation.image.missing():
        return f"{situation.image.missing()}; or set require_image to false"
    if situation.use_detections == "always" and situation.detections.missing():
        return f"{situation.detections.missing()}; or set use_detections to auto"
    for name, needed in (
        ("image", situation.require_image),
        ("detections", situation.use_detections == "always"),
    ):
        if needed and name in situation.nearest:
            return _never_match(name, situation.nearest[name], situation.sync_slop)
    if situation.busy_seconds > 2:
        return f"the frame at hand has been computed for {situation.busy_seconds:.0f} s"
    if situation.last_reasons:
        return "; ".join(situation.last_reasons[:4])
    if situation.skipped:
        reasons = sorted(situation.skipped.items(), key=lambda item: -item[1])
        return "masks arrive but are skipped: " + ", ".join(
            f"{reason} ({count})" for reason, count in reasons[:4]
        )
    return (
        f"no masks have arrived lately on {situation.masks.topic} ({situation.masks.received} so "
        f"far, {len(situation.masks.published_as)} publisher(s) now)"
    )


def explain_images(image, camera_info):
    """Why no image comes to locate the camera with: the first thing to mend. InputViews."""
    return (
        image.missing()
        or camera_info.missing()
        or f"no image has arrived lately on {image.topic} ({image.received} so far, "
        f"{len(image.published_as)} publisher(s) now)"
    )


def _never_match(name, difference, slop):
    if difference is None:
        return f"masks and {name} never come together: no {name} is kept when masks arrive"
    return (
        f"the stamps of masks and {name} never match: the nearest {name} is {difference:+.3f} s "
        f"from the last masks, allowed are {slop} s. Copy the image's header into the masks, raise "
        "sync_slop, or, where masks come seconds later, raise buffer_size"
    )
