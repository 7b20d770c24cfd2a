# SPDX-License-Identifier: Apache-2.0
"""The command `pose-refiner bag`: poses for a recorded bag, written beside what it holds.

Needs no ROS: rosbags reads and writes. Every frame is estimated, however long it takes.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pose_refiner_ros.geometry.frame_tree import FrameTree
from pose_refiner_ros.ros.bag_topics import BagError, BagTopics, find_topics
from pose_refiner_ros.ros.reports import kind_of

TRANSFORMS = "tf2_msgs/msg/TFMessage"
AHEAD_SECONDS = 0.5  # by so much transforms are read before the rest: masks lie between two of them


@dataclass(frozen=True)
class BagOptions:
    """objects: library YAML or BOP models folder; None: the package's vehicles. topics: {masks,
    image, camera_info, detections, initial_poses, depth, points: topic}, found by itself where
    missing. rectified: the image is, so that CameraInfo's P holds. namespace: of the new topics;
    "refined" if the bag has some of that name. encoder, refinement, exposure: as the node's
    encoder_file, refinement and photo_exposure; fixed_frame, still_objects: as the node's.
    """

    objects: Path | None = None
    topics: dict = field(default_factory=dict)
    device: str = "auto"
    overlay: bool = True
    overwrite: bool = False
    rectified: bool = False
    namespace: str = ""
    encoder: str = ""
    refinement: str = "solver"
    exposure: bool = True
    fixed_frame: str = ""
    still_objects: list = field(default_factory=list)


@dataclass
class BagSummary:
    topics: BagTopics
    written: dict  # role -> topic
    fixed_frame: str = ""
    masks: int = 0
    frames: int = 0
    poses: int = 0
    joined: int = 0  # of these, by several frames
    skipped: Counter = field(default_factory=Counter)  # reason -> masks
    reports: Counter = field(default_factory=Counter)  # text -> frames
    seconds: float = 0.0  # of estimation


def run_bag(
    source: Path,
    target: Path,
    options: BagOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BagSummary:
    """Estimate the poses of every frame of a bag (folder, .mcap or .db3) and write a new one, MCAP,
    with all the old topics and the poses, frames and overlay.

    progress(done, total) counts messages. Raises BagError; the target is there only on success.
    """
    from rosbags.highlevel import AnyReader, AnyReaderError

    from pose_refiner_ros.ros.message_types import typestore
    from pose_refiner_ros.ros.recording import BagRecorder

    source, target = Path(source), Path(target)
    _check_paths(source, target, options.overwrite)
    try:
        reader, ahead = (AnyReader([source], default_typestore=typestore()) for _ in range(2))
        reader.open()
        ahead.open()
    except (AnyReaderError, OSError) as error:
        raise BagError(f"{source} cannot be read as a ROS 2 bag: {error}") from None
    try:
        types = {connection.topic: connection.msgtype for connection in reader.connections}
        topics = find_topics(types, options.topics)
        summary = BagSummary(topics, output_topics(types, options), options.fixed_frame)
        estimator = _Estimator(options, summary)
        with BagRecorder(target, options.overwrite) as recorder:
            for connection in reader.connections:
                _copy_topic(recorder, connection)
            total = reader.message_count
            done = 0
            try:
                transforms = _Transforms(ahead, estimator.add_transforms)
                for connection, stamp, data in reader.messages():
                    recorder.write(connection.topic, connection.msgtype, stamp, data)
                    transforms.read_until(stamp + int(AHEAD_SECONDS * 1e9))
                    role = topics.names().get(connection.topic)
                    if role is not None:
                        message = reader.deserialize(data, connection.msgtype)
                        estimator.add(role, message, stamp, recorder)
                    done += 1
                    progress(done, total)
            except AnyReaderError as error:
                raise BagError(f"{source}, message {done + 1} of {total}: {error}") from None
            estimator.finish(recorder)
    finally:
        reader.close()
        ahead.close()
    return summary


class _Transforms:
    """Those of a bag, in the order in which they were recorded."""

    def __init__(self, reader, take):
        """take(message, whether they are static)."""
        self._reader, self._take = reader, take
        connections = [one for one in reader.connections if one.msgtype == TRANSFORMS]
        self._messages = reader.messages(connections) if connections else iter(())
        self._next = next(self._messages, None)

    def read_until(self, stamp):
        while self._next is not None and self._next[1] <= stamp:
            connection, _, data = self._next
            message = self._reader.deserialize(data, connection.msgtype)
            self._take(message, connection.topic.endswith("_static"))
            self._next = next(self._messages, None)


def _check_paths(source, target, overwrite):
    if not source.exists():
        raise BagError(f"{source} does not exist")
    if source.is_dir() and not (source / "metadata.yaml").exists():
        raise BagError(
            f"{source} has no metadata.yaml, so it is no ROS 2 bag; give the folder of the bag, or "
            "the .mcap or .db3 file in it"
        )
    if source.is_file() and source.suffix not in (".mcap", ".db3"):
        raise BagError(f"{source} is no .mcap or .db3 file, and no folder of a bag")
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise BagError(f"{target} would overwrite the bag that is read; choose another name")
    if target.exists() and not overwrite:
        raise BagError(f"{target} exists already; choose another name, or --overwrite")


def output_topics(types, options):
    """Names of the new topics, none of which the bag has yet. TF is added to the bag's own."""
    for namespace in (options.namespace, "refined", "pose_refiner_offline"):
        prefix = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
        names = {
            "object_poses": f"{prefix}/object_poses",
            "overlay": f"{prefix}/pose_refiner/overlay",
        }
        if not set(names.values()) & set(types):
            # a frame can have one parent only: the recorded frames keep their names
            names["tf_prefix"] = prefix.strip("/").replace("/", "_") + "_" * bool(prefix)
            return names
    raise BagError(
        f"the bag has topics {' and '.join(names.values())} already; choose another --namespace"
    )


def _copy_topic(recorder, connection):
    """Announce a topic as it is in the bag read."""
    definition, type_hash = connection.msgdef.data or None, connection.digest or None
    from pose_refiner_ros.ros.message_types import typestore

    known = connection.msgtype in typestore().fielddefs
    if definition is None and not known:
        # An old bag of a type of its own: the messages are kept, their definition is not there.
        definition = ""
    if definition is not None and type_hash is None:
        known_hash = typestore().hash_rihs01(connection.msgtype) if known else "RIHS01_" + 64 * "0"
        type_hash = known_hash
    recorder.add_topic(
        connection.topic,
        connection.msgtype,
        definition,
        type_hash,
        connection.ext.offered_qos_profiles,
    )


class _Estimator:
    """Takes messages as they come and writes what the node would publish."""

    def __init__(self, options, summary):
        from pose_refiner_ros import shipped
        from pose_refiner_ros.objects.library import ObjectLibrary
        from pose_refiner_ros.ros import parameters
        from pose_refiner_ros.ros.frame_assembler import FrameAssembler, SyncOptions
        from pose_refiner_ros.ros.frame_processor import FrameProcessor
        from pose_refiner_ros.ros.loading import default_pipeline

        self.summary = summary
        self._overlay = options.overlay and summary.topics.image is not None
        self._parameters = parameters.defaults()
        self._parameters.label_names = []
        self._parameters.image_is_rectified = options.rectified
        self._parameters.device = options.device
        self._parameters.encoder_file = options.encoder
        self._parameters.refinement = options.refinement
        self._parameters.photo_exposure = options.exposure
        self._parameters.fixed_frame = options.fixed_frame.strip("/")
        self._parameters.still_objects = options.still_objects
        self._library = ObjectLibrary.load(options.objects or shipped.OBJECTS)
        pipeline = default_pipeline(self._library, self._parameters)
        pipeline.warm_up()
        self._processor = FrameProcessor(pipeline, self._library)
        self._frame_tree = FrameTree()
        self._told = {}  # kind of a report -> the first of it
        self._processor.transforms = self
        self._assembler = FrameAssembler(on_skip=self._skip, on_jump_back=self._processor.reset)
        self._assembler.options = SyncOptions(
            images_expected=summary.topics.image is not None,
            depth_expected=summary.topics.depth is not None,
            detections_expected=summary.topics.detections is not None,
        )
        self._frames = {}  # child frame -> stamp of its last transform
        self._now = 0.0  # seconds of the bag's clock

    def _skip(self, reason):
        self.summary.skipped[reason] += 1

    def add(self, role, message, received, recorder):
        from pose_refiner_ros.ros.conversions import nanoseconds

        stamp = nanoseconds(message.header.stamp)
        self._now = received / 1e9
        if role == "masks":
            self.summary.masks += 1
            self._assembler.add_masks(stamp, message, len(message.data), self._now)
        else:
            size = len(message.data) if role in ("image", "depth", "points") else 0
            self._assembler.add(role, stamp, message, size)
        self._estimate(received, recorder)

    def add_transforms(self, message, static):
        """Of a TFMessage of the bag."""
        from pose_refiner_ros.ros.conversions import matrix_from_transform, nanoseconds

        for one in message.transforms:
            parent, child = (name.strip("/") for name in (one.header.frame_id, one.child_frame_id))
            stamp = nanoseconds(one.header.stamp) / 1e9
            try:
                matrix = matrix_from_transform(one.transform)
            except ValueError as error:
                self._report(f"a transform from '{child}' to '{parent}' is ignored: {error}")
                continue
            self._frame_tree.add(parent, child, stamp, matrix, static)

    def matrix(self, target_frame, source_frame, stamp, timeout=0.0):
        """target_from_source (4, 4) by the bag's TF, as TransformLookup has it."""
        from pose_refiner_ros.ros.conversions import nanoseconds

        frames = target_frame.strip("/"), source_frame.strip("/")
        return self._frame_tree.matrix(*frames, nanoseconds(stamp) / 1e9)

    def finish(self, recorder):
        """Answer what still waits for partners that will not come."""
        received = int(self._now * 1e9)
        self._now += self._assembler.options.sync_timeout
        self._estimate(received, recorder)

    def _estimate(self, received, recorder):
        from pose_refiner_ros.ros.bad_input import BadInput

        while (messages := self._assembler.take(self._now)) is not None:
            started = time.perf_counter()
            try:
                answer = self._processor.process(
                    messages, self._parameters, self._overlay, self._report
                )
            except BadInput as error:
                self._skip(str(error))
                continue
            finally:
                self.summary.seconds += time.perf_counter() - started
            self.summary.frames += 1
            self.summary.poses += len(answer.poses)
            self.summary.joined += sum(pose.frames > 1 for pose in answer.poses)
            self._write(answer, received, recorder)

    def _report(self, text):
        # what differs in its numbers alone is one
        self.summary.reports[self._told.setdefault(kind_of(text), text)] += 1

    def _write(self, answer, received, recorder):
        from pose_refiner_ros.ros import bag_messages
        from pose_refiner_ros.ros.conversions import frame_name, nanoseconds

        names, header = self.summary.written, answer.header
        recorder.write(
            names["object_poses"],
            bag_messages.POSES,
            received,
            bag_messages.serialize_poses(header, answer.poses, self._library, answer.ids),
        )
        stamp = nanoseconds(header.stamp)
        frames = {
            frame_name(names["tf_prefix"], p.name, answer.ids[p.label]): p.camera_from_object
            for p in answer.poses
        }
        new = {child: pose for child, pose in frames.items() if self._frames.get(child) != stamp}
        if new and header.frame_id and stamp:
            self._frames.update(dict.fromkeys(new, stamp))
            recorder.write(
                "/tf",
                bag_messages.TRANSFORMS,
                received,
                bag_messages.serialize_transforms(header, new),
            )
        if self._overlay and answer.frame.image is not None:
            from pose_refiner_ros.drawing.overlay import draw_overlay

            picture = draw_overlay(
                answer.frame.image, answer.frame.camera, self._library, answer.poses
            )
            recorder.write(
                names["overlay"],
                bag_messages.IMAGE,
                received,
                bag_messages.serialize_image(header, picture),
            )


def summary_lines(summary):
    """What was done, for people."""
    used = ", ".join(f"{role} {topic}" for topic, role in summary.topics.names().items())
    yield f"read:    {used}"
    names = [summary.written["object_poses"], "/tf"]
    if summary.topics.image:
        names.append(summary.written["overlay"])
    yield f"written: {', '.join(names)}"
    per_frame = 1000 * summary.seconds / max(summary.frames, 1)
    yield (
        f"{summary.poses} poses in {summary.frames} of {summary.masks} frames, {per_frame:.1f} ms "
        "per frame"
    )
    if summary.fixed_frame:
        yield f"{summary.joined} of them by several frames, through the camera's motion in TF"
    for reason, count in summary.skipped.most_common(5):
        yield f"{count} frames left out: {reason}"
    for text, count in summary.reports.most_common(5):
        yield f"{count} times: {text}"


__all__ = ["BagError", "BagOptions", "BagSummary", "output_topics", "run_bag", "summary_lines"]
