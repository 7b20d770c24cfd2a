# SPDX-License-Identifier: Apache-2.0
"""One frame's messages to poses: decode, name the labels, follow the objects, refine. Runs in the
worker thread; publishes nothing."""

import time
from dataclasses import dataclass, field, replace
from itertools import count
from weakref import WeakKeyDictionary

import numpy as np

from pose_refiner_ros.frame import Frame, FrameError, merged, no_object_for, weighed
from pose_refiner_ros.geometry.pose import about, inverse
from pose_refiner_ros.ros import images, labels, measured
from pose_refiner_ros.ros.across_cameras import same_objects
from pose_refiner_ros.ros.bad_input import BadInput
from pose_refiner_ros.ros.camera_motion import CameraJump, CameraMotion
from pose_refiner_ros.ros.conversions import camera_from_info, matrix_from_pose, nanoseconds
from pose_refiner_ros.tracking.identity import IdentityTracker, observe
from pose_refiner_ros.tracking.naming import ClassMemory

# Where labels are ids: those of objects that the first camera does not see begin here, beyond the
# labels of 16-bit masks.
BEYOND_LABELS = 1 << 16
RETRY_SECONDS = 1.0  # after which a transform that was not there is asked for again


@dataclass
class Answer:
    """What a frame gave."""

    header: object
    frame: Frame
    poses: list  # ObjectPose, those to publish
    ids: dict  # label -> track id
    objects: int  # labels in the masks
    reasons: list = field(default_factory=list)  # why objects have no pose


class FrameProcessor:
    """Holds the pipeline and the tracker of one object library."""

    def __init__(self, pipeline, library):
        self.pipeline = pipeline
        self.library = library
        self.transforms = None  # a TransformLookup, for initial poses in other frames
        self.encoder = getattr(pipeline, "encoder", None)
        self.scene = None  # a SceneTracker, where the scene has a field
        self._has_fields = any(model.field is not None for model in library.values())
        self._tracker = IdentityTracker(library)
        self._classes = ClassMemory()
        self._numbers = {}  # (class, track id) -> published id
        self._no_transform = {}  # frames of cloud and camera -> when it was asked for in vain
        self._followed = WeakKeyDictionary()  # track of the class memory -> that of the tracker
        self._motion = CameraMotion()
        self._fixed_frame = ""

    def reset(self):
        """Forget every object followed so far."""
        self._tracker.reset()
        self._classes.reset()
        self._numbers.clear()
        self._motion = CameraMotion()

    def process(self, messages, parameters, with_image, report, others=None):
        """An Answer to FrameMessages; BadInput if there can be none. others: {name: FrameMessages}
        of further cameras.

        report(text) receives what was wrong with parts of the frame.
        """
        reasons = []

        def note(label, text):
            reasons.append(text if label is None else f"label {label}: {text}")
            report(reasons[-1])

        masks = images.decode_labels(messages.masks)
        camera = camera_from_info(messages.camera_info, masks.shape, parameters.image_is_rectified)
        header = self._header(messages, note)
        found = labels.labels_in(masks)
        names = labels.name_labels(
            found,
            messages.detections,
            labels.parse_label_names(parameters.label_names),
            self.library,
            note,
            self.encoder is not None,
        )
        observations = observe(masks, names)
        if parameters.labels_are_ids:
            observations = [replace(one, caller_id=one.label) for one in observations]
        with_image |= self.encoder is not None and self.encoder.needs_photo
        with_image |= self._has_fields and parameters.photometric != "never"
        image = self._image(messages.image, masks.shape, report) if with_image else None
        frame = Frame(masks, camera, names, image=image, name=(parameters.cameras or [""])[0])
        if parameters.depth != "never":
            self._add_measured(frame, messages, header, report)
        fixed_from_camera = self._fixed_from_camera(frame, header, parameters, report)
        named, tracks = {}, {}
        further = self._others(frame, header, others or {}, parameters, with_image, report)
        self._number(frame, further, messages.stamp / 1e9)
        frames = [frame, *further.values()]
        elsewhere = _seen_by_others_alone(frames, ["", *further])

        def follow(shares):
            """Settle the names, then start each object where it was a moment ago."""
            if self.encoder is not None:
                named.update(self._settle_classes(messages.stamp, observations, shares, note))
                frame.labels = {label: one.name for label, one in named.items()}
            names = {**frame.labels, **{one.label: one.name for one in elsewhere}}
            seen = [*observations, *elsewhere]
            tracks.update(self._follow(messages.stamp, seen, names, named, _views(frame, further)))
            self._add_starts(frames, tracks, messages, header, parameters, note)
            if fixed_from_camera is not None:
                self._add_earlier(frame, tracks, messages, fixed_from_camera, parameters, report)

        poses = self._estimate(frames, named, parameters, note, follow)
        self._remember(poses, tracks, messages.stamp, fixed_from_camera)
        ids = {label: self._published_id(track) for label, track in tracks.items()}
        if parameters.labels_are_ids:
            first = {one.label for one in observations}
            ids = {n: n if n in first else BEYOND_LABELS + one for n, one in ids.items()}
        poses = [pose for pose in poses if self._is_wanted(pose, parameters, note)]
        return Answer(header, frame, poses, ids, len(found) + len(elsewhere), reasons)

    def _add_starts(self, frames, tracks, messages, header, parameters, report):
        """Start poses from the message and from the tracks, and which object to search afresh."""
        frame = frames[0]
        frame.initial_poses = self._initial_poses(messages, header, frame.labels, report)
        for one in frames:
            one.tracked, one.search = set(), set()
        places = merged(frames)[1] if parameters.use_last_pose else {}
        due = self._tracker.due_for_search()
        for number in tracks.keys() & places.keys():
            at, label = places[number][0]
            last = tracks[number].initial_poses(messages.stamp / 1e9)
            if at:
                last = [inverse(frames[at].reference_from_camera) @ pose for pose in last]
            frames[at].initial_poses[label] = last + frames[at].initial_poses.get(label, [])
            if last:
                frames[at].tracked.add(label)
                frames[at].search |= {label} if number == due else set()

    def _fixed_from_camera(self, frame, header, parameters, report):
        """Where the camera is in the frame that stands still, (4, 4), if that is known; tracks are
        moved to where they are seen from there."""
        if parameters.fixed_frame != self._fixed_frame:
            self._fixed_frame = parameters.fixed_frame
            self._tracker.forget_sightings()
        if not parameters.fixed_frame:
            return None
        try:
            fixed_from_camera, moved = self._motion.next(
                header, parameters.fixed_frame, self.transforms
            )
        except LookupError as error:
            report(f"how the camera moves is not known: {error}")
            if isinstance(error, CameraJump):
                self._tracker.forget_sightings()
            return None
        if moved is not None:
            for tracker in (self._tracker, self._classes):
                tracker.camera_moved(moved, frame.camera)
        return fixed_from_camera

    def _add_earlier(self, frame, tracks, messages, fixed_from_camera, parameters, report):
        """What was seen before of objects that may stand still, and which are known to."""
        stamp, most = messages.stamp / 1e9, parameters.still_frames - 1
        frame.earlier = {
            label: track.memory.earlier(stamp, fixed_from_camera, most)
            for label, track in tracks.items()
        }
        known = {name: self.library.resolve(name) for name in parameters.still_objects}
        for name in [name for name, model in known.items() if model is None]:
            report(
                f"still_objects: {name!r} is not in the object library (it has "
                f"{', '.join(sorted(self.library))})"
            )
        names = {model.name for model in known.values() if model is not None}
        frame.still = {label for label, track in tracks.items() if track.name in names}

    @staticmethod
    def _remember(poses, tracks, stamp, fixed_from_camera):
        """Keep what was seen for the frames to come."""
        for pose in poses:
            if fixed_from_camera is not None and pose.sighting and pose.quality != "poor":
                sighting = pose.sighting.told_in(fixed_from_camera)
                tracks[pose.label].memory.add(stamp / 1e9, sighting)

    def _settle_classes(self, stamp, observations, shares, report):
        """{label: Named} of all that have a name, or get that of an object from the encoder."""
        named = self._classes.settle(stamp / 1e9, observations, shares)
        for label, one in named.items():
            if one.name not in self.library:
                report(label, no_object_for(one.name, one.probability))
        return {label: one for label, one in named.items() if one.name in self.library}

    def _others(self, frame, header, others, parameters, with_image, report):
        """{name: Frame} of further cameras."""
        frames = {}
        for name, messages in others.items():
            try:
                masks = images.decode_labels(messages.masks)
                rectified = parameters.image_is_rectified
                camera = camera_from_info(messages.camera_info, masks.shape, rectified)
                at = self._header(messages, lambda label, text: None)
                if at.frame_id == header.frame_id:
                    raise BadInput("camera frame", f"its frame is the first's, '{at.frame_id}'")
                where = self.transforms.matrix(header.frame_id, at.frame_id, at.stamp, 0.0)
            except (BadInput, LookupError) as error:
                report(f"camera {name} is left out: {error}")
                continue
            names = labels.name_labels(
                labels.labels_in(masks),
                messages.detections,
                labels.parse_label_names(parameters.label_names),
                self.library,
                lambda label, text, name=name: report(f"camera {name}: label {label}: {text}"),
                False,
            )

            def of_camera(text, name=name):
                report(f"camera {name}: {text}")

            image = self._image(messages.image, masks.shape, of_camera) if with_image else None
            other = Frame(masks, camera, names, {}, image, reference_from_camera=where, name=name)
            if parameters.depth != "never":
                self._add_measured(other, messages, at, of_camera)
            frames[name] = other
        return frames

    def _number(self, frame, further, stamp):
        """Give frames ids that say which of their objects another one before them sees as well."""
        if not further:
            return
        views, looks = _views(frame, further), {}
        frame.ids = {label: label for label in frame.labels}
        taken = set(frame.labels)
        for camera, other in {"": frame, **further}.items():
            seen = [replace(one, camera=camera) for one in observe(other.masks, other.labels)]
            looks[camera] = self._tracker.seen_before(stamp, seen, views)
        before = {"": frame}
        for camera, other in further.items():
            other.ids = {}
            for name, one in before.items():  # the rest is seen here for the first time
                found = {*other.ids.values()}
                here = {n: c for n, c in one.labels.items() if one.ids.get(n) not in found}
                rest = {n: c for n, c in other.labels.items() if n not in other.ids}
                same = same_objects(
                    replace(one, labels=here),
                    replace(other, labels=rest),
                    self.library,
                    (looks[name], looks[camera]),
                )
                other.ids.update({own: one.ids[its] for own, its in same.items()})
            there = set(labels.labels_in(other.masks))
            for label in sorted(other.labels.keys() - other.ids.keys()):
                number = label
                if label in taken:  # each is to have a number of its own
                    number = next(n for n in count(1) if n not in taken and n not in there)
                    other.masks = np.where(other.masks == label, np.int32(number), other.masks)
                    for own in (other.labels, looks[camera]):
                        if label in own:
                            own[number] = own.pop(label)
                other.ids[number] = number
                taken.add(number)
            before[camera] = other

    def _estimate(self, frames, named, parameters, report, follow):
        frame = frames[0]
        self.pipeline.settings = replace(
            self.pipeline.settings,
            hypotheses=parameters.max_hypotheses,
            keep=parameters.keep_hypotheses,
            search=parameters.search,
            photometric=parameters.photometric,
            depth=parameters.depth,
        )
        try:
            seen = frame if len(frames) == 1 else frames
            poses = self.pipeline.process(seen, report, follow)
        except FrameError as error:
            raise BadInput("frame", str(error)) from None
        poses = [_with_class(pose, named.get(pose.label)) for pose in poses]
        due = merged(frames)[0].search
        poses = [self._believed(pose, pose.label in due) for pose in poses]
        # A pose that does not fit its mask is no place to start from in the next frame.
        steady = self._tracker.end_frame(
            {pose.label: pose.camera_from_object for pose in poses if pose.quality != "poor"}
        )
        return [_moved_to(pose, steady.get(pose.label)) for pose in poses]

    def _believed(self, pose, searched):
        """Of the pose and its alternatives, the one to believe after all frames so far."""
        if pose.quality == "poor":
            return pose
        rivals = [pose, *pose.alternatives]
        beliefs = self._tracker.weigh(
            pose.label,
            [(one.camera_from_object, one.belief) for one in rivals],
            searched,
            pose.visible_fraction > 0.8,
        )
        if len(rivals) == 1:
            return pose
        return weighed(rivals, beliefs, int(beliefs.argmax()))

    def _follow(self, stamp, observations, names, named, views):
        """{label: track} of the labels that have a name. An object whose class the encoder has
        corrected keeps its number."""
        kept = {}
        for label, one in named.items():
            before = self._followed.get(one.track)
            if one.corrected and before is not None:
                self._tracker.end(before)
                kept[label] = self._numbers.pop((before.name, before.id), None)
        observations = [
            replace(one, name=names[one.label]) for one in observations if one.label in names
        ]
        tracks = self._tracker.begin_frame(stamp / 1e9, observations, views)
        for label, one in named.items():
            self._followed[one.track] = tracks[label]
            if kept.get(label) is not None:
                self._numbers.setdefault((tracks[label].name, tracks[label].id), kept[label])
        return tracks

    def _published_id(self, track):
        """The tracker counts within a class; messages need one id for one object."""
        key = (track.name, track.id)
        if key not in self._numbers:
            self._numbers[key] = max(self._numbers.values(), default=0) + 1
        return self._numbers[key]

    @staticmethod
    def _header(messages, report):
        """The image's header where there is one; else that of the masks, which copies it."""
        source = (messages.image or messages.masks).header
        headers = (source, messages.masks.header, messages.camera_info.header)
        frame_id = next((header.frame_id for header in headers if header.frame_id), "")
        if not frame_id:
            report(
                None,
                "image, masks and camera_info have an empty frame_id: poses lie in no frame and "
                "there is no TF; set frame_id in the camera driver",
            )
        return type(source)(stamp=source.stamp, frame_id=frame_id)  # ROS's Header or rosbags'

    @staticmethod
    def _image(message, size, report):
        """The picture for fields and the overlay, or None if it cannot be had."""
        if message is None:
            return None
        try:
            picture = images.decode_color(message)
        except BadInput as error:
            report(f"{error}; it is not used")
            return None
        if picture.shape[:2] != size:
            report(
                f"the image is {picture.shape[1]}x{picture.shape[0]} pixels, masks and camera_info "
                f"are {size[1]}x{size[0]}; it is not used"
            )
            return None
        return picture

    def _add_measured(self, frame, messages, header, report):
        """Depth image and points, where they came and can be used."""
        if messages.problem:
            report(messages.problem)
        if messages.depth is not None:
            own = messages.depth.header.frame_id
            try:
                if own and header.frame_id and own != header.frame_id:
                    raise BadInput(
                        "depth frame",
                        f"depth is in frame '{own}', the masks in '{header.frame_id}': register it "
                        "to the colour camera",
                    )
                frame.depth, frame.depth_scale = measured.decode_depth(messages.depth)
            except BadInput as error:
                report(f"{error}; it is not used")
        if messages.points is not None:
            self._add_points(frame, messages, header, report)

    def _add_points(self, frame, messages, header, report):
        source, now = messages.points.header, time.monotonic()
        try:
            move = None
            if source.frame_id != header.frame_id:
                frames = source.frame_id, header.frame_id
                if now - self._no_transform.get(frames, -RETRY_SECONDS) < RETRY_SECONDS:
                    return  # it has been told
                try:
                    # clouds wait for their masks longer than transforms for theirs
                    stamp, timeout = source.stamp, 0.0
                    move = self.transforms.matrix(header.frame_id, source.frame_id, stamp, timeout)
                except LookupError:
                    self._no_transform[frames] = now
                    raise
            points = measured.decode_points(messages.points)
            if move is not None:
                points = points @ move[:3, :3].T + move[:3, 3]
            frame.scan = points
            if messages.stamp and nanoseconds(source.stamp):
                frame.scan_age = abs(nanoseconds(source.stamp) - messages.stamp) / 1e9
        except (BadInput, ValueError, LookupError) as error:
            report(f"points are not used: {error}")

    def _initial_poses(self, messages, header, names, report):
        """{label: [camera_from_object]} from the message, for the labels they belong to."""
        result = {}
        if messages.initial_poses is None:
            return result
        message = messages.initial_poses
        for detection in message.detections:
            frame_id = detection.header.frame_id or message.header.frame_id or header.frame_id
            try:
                camera_from_frame = self._camera_from(frame_id, header)
                poses = [
                    camera_from_frame @ matrix_from_pose(hypothesis.pose.pose)
                    for hypothesis in detection.results
                ]
            except (ValueError, LookupError) as error:
                report(None, f"an initial pose is ignored: {error}")
                continue
            for label in self._labels_of(detection, names):
                result.setdefault(label, []).extend(poses)
        return result

    def _labels_of(self, detection, names):
        """The labels that an initial pose is for: its id if that is one, else all of its class."""
        classes = {hypothesis.hypothesis.class_id for hypothesis in detection.results} - {""}
        models = {self.library.resolve(class_name) for class_name in classes}
        wanted = {model.name for model in models if model is not None}
        label = labels.label_of(detection.id)
        if label in names and (not classes or names[label] in wanted):
            return [label]
        return [label for label, name in names.items() if name in wanted]

    def _camera_from(self, frame_id, header):
        if frame_id == header.frame_id:
            return np.eye(4)
        return self.transforms.matrix(header.frame_id, frame_id, header.stamp)

    @staticmethod
    def _is_wanted(pose, parameters, report):
        if pose.score < parameters.min_score:
            report(
                pose.label,
                f"{pose.name} has a score of {pose.score:.2f}, under min_score "
                f"{parameters.min_score}",
            )
            return False
        if pose.quality not in parameters.publish_qualities:
            report(
                pose.label,
                f"{pose.name} has the quality {pose.quality}, which publish_qualities leaves out",
            )
            return False
        return True


def _views(frame, further):
    """{name: (Camera, reference_from_camera)} of the cameras of a moment."""
    views = {name: (one.camera, one.reference_from_camera) for name, one in further.items()}
    return {"": (frame.camera, np.eye(4)), **views}


def _seen_by_others_alone(frames, cameras):
    """What the tracker takes of the objects that the first frame does not show."""
    found = []
    for number, ((at, label), *_) in merged(frames)[1].items():
        if at:
            for one in observe(frames[at].masks, {label: frames[at].labels[label]}):
                found.append(replace(one, label=number, camera=cameras[at]))
    return found


def _with_class(pose, named):
    """The ObjectPose with the probability of its class over all frames so far in its score and
    quality."""
    if named is None or named.probability == pose.class_probability:
        return pose
    rivals = [
        replace(one, class_probability=named.probability) for one in (pose, *pose.alternatives)
    ]
    return weighed(rivals, [one.belief for one in rivals], 0)


def _moved_to(pose, equivalent):
    """The ObjectPose at an equivalent (4, 4) of a symmetric object. Where the symmetry moves the
    object's origin by d, a small turn w about the old one moves the new one by w x d as well."""
    if equivalent is None:
        return pose
    offset = equivalent[:3, 3] - pose.camera_from_object[:3, 3]
    return replace(pose, camera_from_object=equivalent, covariance=about(offset, pose.covariance))
