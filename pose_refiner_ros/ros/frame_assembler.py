# SPDX-License-Identifier: Apache-2.0
"""Finds the messages that belong to one moment, in bounded memory.

Masks drive it: they come last, from a segmenter that needed its time. Everything else waits for
them in a buffer and is found by its stamp. No ROS in here: a message is anything, a stamp is an
integer of nanoseconds, `now` is in seconds of any steady clock.
"""

import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

INPUTS = ("masks", "image", "camera_info", "detections", "initial_poses", "depth", "points")

# Masks wait for depth where this share of the last ones, so many, had one of their stamp: a camera
# that is slower than the masks must not slow them down.
DEPTH_COMES, DEPTH_HISTORY, DEPTH_TRIALS = 0.7, 10, 5

# Stamps that go back further than this are a new recording, not messages out of order.
JUMP_BACK = 500_000_000

WAITING_FOR_INFO = "waiting for camera_info"
WAITING_FOR_IMAGE = "waiting for the image"
WAITING_FOR_DETECTIONS = "waiting for detections"
WAITING_FOR_DEPTH = "waiting for depth"
WAITING_FOR_PARTNERS = (WAITING_FOR_IMAGE, WAITING_FOR_DEPTH, WAITING_FOR_DETECTIONS)
NO_IMAGE = "no image with the stamp of the masks"
NO_DETECTIONS = "no detections with the stamp of the masks"
NEWER_FRAME = "a newer frame was ready"
DUPLICATE = "stamp came twice"
OUT_OF_ORDER = "stamp older than a frame already answered"
JUMPED_BACK = "stamps jumped back"
BUFFER_FULL = "buffer full"


@dataclass
class SyncOptions:
    """How messages are paired; parameters of the node, see parameters.py."""

    sync_slop: float = 0.01
    sync_timeout: float = 0.2
    require_image: bool = False
    use_detections: str = "auto"
    initial_pose_max_age: float = 1.0
    points_max_age: float = 0.1
    buffer_size: int = 60
    buffer_megabytes: int = 256
    # Whether someone publishes them, so that waiting makes sense.
    images_expected: bool = False
    depth_expected: bool = False
    depth_stopped: bool = False
    detections_expected: bool = False


@dataclass
class FrameMessages:
    """The messages of one moment."""

    stamp: int
    masks: object
    camera_info: object
    image: object = None
    detections: object = None
    initial_poses: object = None
    depth: object = None
    points: object = None
    problem: str = ""  # what is expected and did not come


@dataclass(eq=False)
class _PendingMasks:
    stamp: int
    message: object
    size: int
    received: float
    waiting_for: str = NEWER_FRAME


class StampedBuffer:
    """The latest messages of one input, found by stamp."""

    def __init__(self):
        self._messages = OrderedDict()  # stamp -> (message, bytes), in the order of arrival
        self._bytes = 0
        self.newest_stamp = None

    def __len__(self):
        return len(self._messages)

    def add(self, stamp, message, size, max_count, max_bytes):
        if stamp in self._messages:
            self._bytes -= self._messages.pop(stamp)[1]
        self._messages[stamp] = (message, size)
        self._bytes += size
        self.newest_stamp = stamp
        while len(self._messages) > 1 and (
            len(self._messages) > max_count or self._bytes > max_bytes
        ):
            self._bytes -= self._messages.popitem(last=False)[1][1]

    def nearest(self, stamp):
        """(message, difference in nanoseconds) of the nearest stamp; (None, None) if empty."""
        if stamp in self._messages:
            return self._messages[stamp][0], 0
        if not self._messages:
            return None, None
        # Of equally near ones the later arrival.
        found = min(reversed(self._messages), key=lambda other: abs(other - stamp))
        return self._messages[found][0], found - stamp

    def within(self, stamp, seconds):
        """The message with the nearest stamp if it is no further away than that, else None."""
        message, difference = self.nearest(stamp)
        return message if message is not None and abs(difference) <= seconds * 1e9 else None

    def clear(self):
        self._messages.clear()
        self._bytes = 0
        self.newest_stamp = None


@dataclass
class InputCounts:
    """What came in since the node became active, for diagnostics."""

    received: Counter = field(default_factory=lambda: Counter(dict.fromkeys(INPUTS, 0)))
    # How far the nearest stamp was when nothing matched, seconds; None if nothing was there.
    nearest: dict = field(default_factory=dict)


class FrameAssembler:
    """Collects messages in one thread and hands out complete frames to another."""

    def __init__(self, on_skip=lambda reason: None, on_jump_back=lambda: None):
        """on_skip(reason) is told of masks that will not be answered."""
        self.options = SyncOptions()
        self.counts = InputCounts()
        self._on_skip = on_skip
        self._on_jump_back = on_jump_back
        self._lock = threading.Lock()
        self._pending = []  # masks in the order of arrival
        self._buffers = {name: StampedBuffer() for name in INPUTS if name != "masks"}
        self._last_taken = None
        self._last_image = None  # the message that take_image gave
        self._had_depth = deque(maxlen=DEPTH_HISTORY)  # of the last masks

    def clear(self):
        with self._lock:
            self._clear()

    def _clear(self):
        self._pending.clear()
        for name in ("image", "detections", "initial_poses", "depth", "points"):
            self._buffers[name].clear()
        self._last_taken = self._last_image = None

    def add(self, name, stamp, message, size=0):
        """name: of an input, any but the masks."""
        with self._lock:
            self.counts.received[name] += 1
            options = self.options
            self._buffers[name].add(
                stamp, message, size, options.buffer_size, options.buffer_megabytes * 2**20
            )

    def add_masks(self, stamp, message, size, now):
        with self._lock:
            self.counts.received["masks"] += 1
            newest = max([p.stamp for p in self._pending] + [self._last_taken or 0])
            if stamp and stamp < newest - JUMP_BACK:
                # A recording began anew. What waits for its masks by now belongs to the new one.
                self._drop(self._pending, JUMPED_BACK)
                self._last_taken = None
                self._on_jump_back()
            elif stamp and self._last_taken is not None and stamp <= self._last_taken:
                self._on_skip(DUPLICATE if stamp == self._last_taken else OUT_OF_ORDER)
                return
            elif stamp:
                self._drop([p for p in self._pending if p.stamp == stamp], DUPLICATE)
            self._pending.append(_PendingMasks(stamp, message, size, now))
            self._bound_pending()

    def _bound_pending(self):
        options = self.options
        while len(self._pending) > 1 and (
            len(self._pending) > options.buffer_size
            or sum(p.size for p in self._pending) > options.buffer_megabytes * 2**20
        ):
            oldest = self._pending[0]
            waited = oldest.waiting_for
            self._drop([oldest], BUFFER_FULL if waited == NEWER_FRAME else waited)

    def take(self, now):
        """The newest complete frame, or None. Older masks are skipped with it."""
        with self._lock:
            for pending in list(reversed(self._pending)):
                frame = self._complete(pending, now)
                if frame is not None:
                    for older in self._pending[: self._pending.index(pending)]:
                        self._drop([older], NEWER_FRAME)
                    self._pending.remove(pending)
                    self._last_taken = pending.stamp
                    return frame
            return None

    def take_near(self, stamp, now):
        """The complete frame whose masks have this stamp, within the slop, or None. Older masks are
        skipped."""
        with self._lock:
            slop = self.options.sync_slop * 1e9
            near = [p for p in self._pending if abs(p.stamp - stamp) <= slop]
            self._drop([p for p in self._pending if p.stamp < stamp - slop], NEWER_FRAME)
            for pending in sorted(near, key=lambda p: abs(p.stamp - stamp)):
                frame = self._complete(pending, now)
                if frame is not None:
                    self._pending.remove(pending)
                    self._last_taken = pending.stamp
                    return frame
            return None

    def may_have(self, stamp):
        """Whether masks with this stamp are there, or may still come."""
        with self._lock:
            slop = self.options.sync_slop * 1e9
            newest = max([p.stamp for p in self._pending] + [self._last_taken or 0])
            return newest <= stamp + slop

    def take_image(self):
        """The newest image, with its calibration and without masks; None if it was taken so before,
        or is not complete."""
        with self._lock:
            images, camera_infos = self._buffers["image"], self._buffers["camera_info"]
            if not images or not camera_infos:
                return None
            stamp = images.newest_stamp
            image, _ = images.nearest(stamp)
            if image is self._last_image:  # not by stamp: some drivers write 0
                return None
            self._last_image = image
            return FrameMessages(stamp, None, camera_infos.nearest(stamp)[0], image)

    def wait_seconds(self, now):
        """When `take` could succeed without a new message; None if never."""
        with self._lock:
            waits = [
                pending.received + self.options.sync_timeout - now
                for pending in self._pending
                if pending.waiting_for in WAITING_FOR_PARTNERS
            ]
        return max(0.0, min(waits)) if waits else None

    def _drop(self, dropped, reason):
        for pending in list(dropped):
            if pending.waiting_for == WAITING_FOR_DEPTH:
                self._had_depth.append(False)
            self._pending.remove(pending)
            self._on_skip(reason)

    def _complete(self, pending, now):
        """The frame of these masks, or None while something is missing that may still come."""
        options = self.options
        expired = now - pending.received >= options.sync_timeout
        # A camera seldom changes: the info with the nearest stamp will do. Without any, masks wait
        # as long as the buffer holds them, so that one image after the other also works by hand.
        camera_info, _ = self._buffers["camera_info"].nearest(pending.stamp)
        if camera_info is None:
            pending.waiting_for = WAITING_FOR_INFO
            return None

        image = self._partner("image", pending)
        if image is None:
            expected = options.require_image or options.images_expected
            if expected and not expired and self._may_come("image", pending):
                pending.waiting_for = WAITING_FOR_IMAGE
                return None
            if options.require_image:
                self._drop([pending], NO_IMAGE)
                return None

        detections = None
        if options.use_detections != "never":
            always = options.use_detections == "always"
            detections = self._partner("detections", pending)
            if detections is None and (always or options.detections_expected):
                if not expired and self._may_come("detections", pending):
                    pending.waiting_for = WAITING_FOR_DETECTIONS
                    return None
                if always:
                    self._drop([pending], NO_DETECTIONS)
                    return None

        depth, problem = self._partner("depth", pending), ""
        if options.depth_expected or options.depth_stopped:
            before = self._had_depth
            comes = len(before) < DEPTH_TRIALS or sum(before) >= DEPTH_COMES * len(before)
            comes &= options.depth_expected
            if depth is None and comes and not expired and self._may_come("depth", pending):
                pending.waiting_for = WAITING_FOR_DEPTH
                return None
            self._had_depth.append(depth is not None)
            if depth is None and not sum(self._had_depth):
                nearest = self.counts.nearest.get("depth")
                off = "" if nearest is None else f" (the nearest is {nearest:+.3f} s from it)"
                problem = (
                    f"no depth has the stamp of the masks{off}: masks alone are compared; "
                    f"sync_slop is {options.sync_slop} s"
                )

        pending.waiting_for = NEWER_FRAME
        return FrameMessages(
            pending.stamp,
            pending.message,
            camera_info,
            image,
            detections,
            self._buffers["initial_poses"].within(pending.stamp, options.initial_pose_max_age),
            depth,
            self._buffers["points"].within(pending.stamp, options.points_max_age),
            problem,
        )

    def _partner(self, name, pending):
        message, difference = self._buffers[name].nearest(pending.stamp)
        if message is not None and abs(difference) <= self.options.sync_slop * 1e9:
            self.counts.nearest.pop(name, None)
            return message
        self.counts.nearest[name] = None if difference is None else difference / 1e9
        return None

    def _may_come(self, name, pending):
        """Messages come in order: once there is a later stamp, this one will not come."""
        newest = self._buffers[name].newest_stamp
        return newest is None or newest < pending.stamp + self.options.sync_slop * 1e9
