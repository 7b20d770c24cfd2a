# SPDX-License-Identifier: Apache-2.0
"""The whole job in one call: a frame in, the poses of its objects out. No ROS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import warp as wp

from pose_refiner_ros.camera_agreement import leave_out_contradictions
from pose_refiner_ros.encoder.category import category_prior, known_as_category
from pose_refiner_ros.frame import (
    Follow,
    Frame,
    ObjectPose,
    Report,
    checked_masks,
    class_without_object,
    log_warning,
    merged,
    no_object_for,
    pose_problem,
    weighed,
)
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.pose import about, inverse, transform_problem
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.pose_search import PoseSearch, Target
from pose_refiner_ros.refinement.depth_points import (
    DepthError,
    checked_depth,
    checked_scan,
    doubt_about,
    measured_in,
)
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import (
    START_SIGMA,
    WRONG_COLOURS,
    WRONG_DEPTH,
    colour_rms,
    contradicts,
    correlation,
    depth_agrees,
)
from pose_refiner_ros.settings import Settings
from pose_refiner_ros.still_objects import by_earlier_frames

if TYPE_CHECKING:  # torch is imported where an encoder is used
    from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder

TWO_PARTS = 0.1  # share of a mask that a part apart from the rest must have to be mentioned
SHARPNESS = 0.25  # lack of overlap that matters, as a share of what the best pose lacks
CATEGORY_SHARPNESS = 1.0
LEAST_DEPTH = 0.02  # a share of the points that says little
LEAST_COLOUR = 0.005  # a difference of colours, robust RMS, that says little


class Pipeline:
    """Estimates the poses of a library's objects.

    device: auto (CUDA where there is one), cpu, cuda or cuda:N. encoder: names masks whose class is
    unknown, and gives the first poses of objects that have a category. Not thread-safe: one per
    worker. Raises ValueError for a library without objects or a device that is not there.
    """

    def __init__(
        self,
        library: Mapping[str, ObjectModel],
        settings: Settings | None = None,
        device: str = "auto",
        encoder: PoseEncoder | None = None,
    ) -> None:
        if not library:
            raise ValueError("the object library is empty: nothing could be recognised")
        self.library = library
        self.settings = settings or Settings()
        self.device = choose_device(device)
        self.encoder = encoder
        self.refiner = Refiner(
            list(library.values()), self.device, self.settings.batch, self.settings
        )
        self._search = PoseSearch(library, self.refiner)
        self._baseline = None  # made at the first use: torch is not needed otherwise

    def warm_up(self) -> None:
        """Compile the kernels (seconds, once per machine), build the codebooks."""
        for model in self.library.values():
            self._search.codebook(model.name)
        with_field = [model for model in self.library.values() if model.field is not None]
        model = [*with_field, *self.library.values()][0]
        camera = Camera(np.array([[120.0, 0, 47.5], [0, 120.0, 47.5], [0, 0, 1]]), (96, 96))
        masks = np.zeros((96, 96), np.uint8)
        masks[32:64, 32:64] = 1
        labels = {1: model.name}
        if self.encoder is not None:
            masks[4:28, 4:28], labels[2] = 2, None
        image, depth = np.zeros((96, 96, 3), np.uint8), np.ones((96, 96), np.float32)
        frame = Frame(masks, camera, labels, image=image, depth=depth)
        self.process(frame, report=lambda label, text: None)

    def process(
        self,
        frame: Frame | Sequence[Frame],
        report: Report = log_warning,
        follow: Follow | None = None,
    ) -> list[ObjectPose]:
        """Find the pose of every labelled object of a frame, in the order of its labels; or of
        several frames that belong together (see `Frame`): one pose for each object, by all cameras
        that see it, in their reference.

        What is left out is told to report(label or None, text); one bad object does not harm the
        others. follow: may change names and start poses of the frame, knowing what the encoder says
        of the labels without a name. Raises FrameError where nothing of the frame can be used.
        """
        frames = [frame] if isinstance(frame, Frame) else list(frame)
        frame, places = merged(frames)
        observations = self._observe(frames, frame, places, report)
        estimates = self._estimate(observations, frame.labels)
        if follow is not None:
            nameless = [label for label in estimates if not frame.labels[label]]
            follow({label: self._names_of(estimates[label]) for label in nameless})
            frame, _ = merged(frames)  # which it may have changed
        targets = self._targets(frames, frame, observations, estimates, report)
        poses, found_targets = [], []
        for target, found in zip(targets, self._find(frames, targets, report), strict=True):
            found = [one for one in found if np.isfinite(one.reference_from_object).all()]
            if not found and self.settings.search == "never":
                report(target.label, f"{target.name} has no start pose, and search is 'never'")
                continue
            if not found or found[0].fits["silhouette"].iou == 0.0:
                report(target.label, f"no pose of {target.name} found that overlaps its mask")
                continue
            poses.append(self._judge(target, found))
            found_targets.append(target)
        if frame.earlier is None or self.settings.refinement != "solver":
            return poses
        return by_earlier_frames(self.refiner, self.library, found_targets, poses, report)

    def _observe(
        self,
        frames: Sequence[Frame],
        merged: Frame,
        places: Mapping[int, Sequence[tuple[int, int]]],
        report: Report,
    ) -> dict[int, list[tuple[int, Observation]]]:
        """Label -> what is seen in which frame, the largest mask first, of what can be used."""
        usable = []
        for label in sorted(places):
            name = merged.labels[label]
            if label == 0:
                report(label, f"{name} left out: 0 is the background in label images")
            elif self._has(name, label, report):
                usable.append(label)
        observations: dict[int, list[tuple[int, Observation]]] = {label: [] for label in usable}
        for number, frame in enumerate(frames):
            masks = checked_masks(frame)
            depth, scan = self._measured(frame, report)
            own = [(n, there) for n in usable for i, there in places[n] if i == number]
            for label, there in own:
                try:
                    seen = self._look(frame, masks, there, report)
                except ValueError as error:
                    camera = f" in frame {number}" if len(frames) > 1 else ""
                    report(
                        label, f"{merged.labels[label] or 'an object'} left out{camera}: {error}"
                    )
                    continue
                if depth is not None or scan is not None:
                    seen = measured_in(seen, masks, depth, frame.depth_scale, scan, frame.scan_age)
                observations[label].append((number, seen))
                if seen.second_part > TWO_PARTS:
                    report(
                        label,
                        f"its mask is in parts, the second of them {seen.second_part:.0%} of it: "
                        "the pose is to fit all; if they are several objects, give each its own "
                        "label",
                    )
            found = [seen for each in observations.values() for i, seen in each if i == number]
            nowhere = found and all(seen.points is None for seen in found)
            if nowhere and not (depth is None and scan is None):
                what = "the points (is their transform right?)" if depth is None else "the depths"
                report(None, f"none of {what} lies within a mask: masks alone are compared")
        for own in observations.values():
            own.sort(key=lambda one: -one[1].area / one[1].crop.scale ** 2)
        return {label: own for label, own in observations.items() if own}

    def _look(self, frame: Frame, masks: np.ndarray, label: int, report: Report) -> Observation:
        """At one label of a frame."""
        where = frame.reference_from_camera
        where = None if where is None else np.asarray(where, np.float64)
        seen = observe_mask(masks, label, frame.camera, reference_from_camera=where)
        if frame.image is not None and self.encoder is not None and self.encoder.needs_photo:
            try:
                return seen.with_image(frame.image)
            except CameraError as error:
                report(label, f"the encoder cannot look at it: {error}")
        return seen

    def _measured(
        self, frame: Frame, report: Report
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Depth image and scan, what can be used of them."""
        depth = scan = None
        if self.settings.depth == "never":
            return depth, scan
        try:
            depth = checked_depth(frame.depth, frame.camera)
        except DepthError as error:
            report(None, str(error))
        try:
            scan = checked_scan(frame.scan)
        except DepthError as error:
            report(None, str(error))
        return depth, scan

    def _has(self, name: str | None, label: int, report: Report) -> bool:
        if name is None or name in self.library:
            return True
        known = ", ".join(sorted(self.library))
        report(label, f"class {name!r} is not in the object library (it has {known})")
        return False

    def _estimate(
        self,
        observations: Mapping[int, Sequence[tuple[int, Observation]]],
        names: Mapping[int, str | None],
    ) -> dict[int, Estimate]:
        """What the encoder says of those that it knows or that have no name, by the largest mask of
        each; poses in the reference."""
        encoder = self.encoder
        if encoder is None:
            return {}
        asked = {
            label: own[0][1]
            for label, own in observations.items()
            if (own[0][1].rgb is not None or not encoder.needs_photo)
            and (not names[label] or self.library[names[label]].category in encoder.classes)
        }
        estimates = encoder.estimate(list(asked.values()))
        return {
            label: estimate
            if seen.reference_from_camera is None
            else estimate.moved(seen.reference_from_camera)
            for (label, seen), estimate in zip(asked.items(), estimates, strict=True)
        }

    def _names_of(self, estimate: Estimate) -> dict[str, float]:
        """Object name -> probability; classes that no object of the library stands for are there as
        `class_without_object`."""
        models = {c: self.library_of_category(c) for c in estimate.class_probabilities}
        return {
            models[c].name if models[c] else class_without_object(c): share
            for c, share in estimate.class_probabilities.items()
        }

    def library_of_category(self, category: str) -> ObjectModel | None:
        """The object of the library that stands for a class of the encoder."""
        return next((m for m in self.library.values() if m.category == category), None)

    def _targets(
        self,
        frames: Sequence[Frame],
        frame: Frame,
        observations: Mapping[int, Sequence[tuple[int, Observation]]],
        estimates: Mapping[int, Estimate],
        report: Report,
    ) -> list[Target]:
        """What is to be found; objects that nobody can name are left out."""
        targets = []
        for label, own in observations.items():
            seen = own[0][1]
            # whoever follows the objects may have left it out, or named it
            if label not in frame.labels or not self._has(frame.labels[label], label, report):
                continue
            name, estimate, probability = frame.labels[label], estimates.get(label), 1.0
            if name is None:
                if estimate is None:
                    why = "there is no encoder to ask"
                    if self.encoder is not None:
                        why = "the encoder looks at the photo: none of use came with the masks"
                    report(label, f"its class is unknown and {why}")
                    continue
                shares = self._names_of(estimate)
                name = max(shares, key=shares.__getitem__)
                probability = shares[name]
                if name not in self.library:
                    report(label, no_object_for(name, probability))
                    continue
            model = self.library[name]
            given = self._given(frame, label, model.box_center, seen, report)
            is_category = estimate is not None and not model.exact_shape
            poses = list(given)
            if estimate is not None and (is_category or not given):
                guesses = [h.camera_from_object for h in estimate.likely]
                poses += [pose for pose in guesses if not _problem(pose, model.box_center, seen)]
            starts = [
                Hypothesis(name, p, category_prior(seen, estimate, p) if is_category else None)
                for p in poses
            ]
            targets.append(
                Target(
                    label=label,
                    seen=tuple(own),
                    name=name,
                    class_probability=probability,
                    estimate=estimate,
                    is_category=is_category,
                    starts=tuple(starts),
                    given=len(given),
                    tracked=label in frame.tracked,
                    due=label in frame.search,
                    earlier=tuple((frame.earlier or {}).get(label, ())),
                    still=label in frame.still,
                )
            )
        return self._with_images(targets, frames, report)

    def _given(
        self, frame: Frame, label: int, middle: np.ndarray, seen: Observation, report: Report
    ) -> list[np.ndarray]:
        usable = []
        for pose in frame.initial_poses.get(label, ()):
            pose = np.asarray(pose, np.float64)
            problem = _problem(pose, middle, seen)
            if problem:
                report(label, f"start pose ignored: {problem}")
            else:
                usable.append(pose)
        return usable

    def _with_images(
        self, targets: Sequence[Target], frames: Sequence[Frame], report: Report
    ) -> list[Target]:
        """Cut the images for objects that have a field; tell why there is none."""
        fields = {t.name for t in targets if self.library[t.name].field is not None}
        unused = self.settings.photometric == "never" or self.settings.refinement != "solver"
        if fields and unused and self.settings.photometric != "never":
            report(
                None,
                f"the photo is not used: the fields of {', '.join(sorted(fields))} are for the "
                f"refinement solver, not for {self.settings.refinement}",
            )
        return [
            self._with_image(target, frames, unused, report) if target.name in fields else target
            for target in targets
        ]

    def _with_image(
        self, target: Target, frames: Sequence[Frame], unused: bool, report: Report
    ) -> Target:
        own = []
        for number, seen in target.seen:
            if unused:
                seen = replace(seen, rgb=None)
            else:
                try:
                    seen = seen.with_image(frames[number].image)
                except CameraError as error:
                    report(
                        target.label,
                        f"{target.name} has a radiance field, but is placed by its silhouette "
                        f"alone: {error}",
                    )
            own.append((number, seen))
        return replace(target, seen=tuple(own))

    def _find(
        self, frames: Sequence[Frame], targets: list[Target], report: Report
    ) -> list[list[Hypothesis]]:
        """The refined hypotheses of each, best first. Of targets that cameras contradict each other
        about, the first one's view is left."""
        if self.settings.refinement != "solver":
            return self._find_by_baseline(targets, report)
        found = self._search.find(frames, targets, self.settings)
        cameras = [frame.name or str(number) for number, frame in enumerate(frames, 1)]
        if leave_out_contradictions(self.refiner, targets, found, cameras, report):
            found = self._search.find(frames, targets, self.settings)
        for target, own in zip(targets, found, strict=True):
            if own and contradicts(own[0]):
                report(
                    target.label,
                    f"the colours of {target.name} are not those of its field in any pose (off by "
                    f"{colour_rms(own[0]):.2f}, more than {WRONG_COLOURS:g}, and their pattern is "
                    f"another, correlation {correlation(own[0]):.2f}): its silhouette alone "
                    "placed it; is it that object?",
                )
            agrees = depth_agrees(own[0]) if own else None
            if agrees is not None and agrees < WRONG_DEPTH:
                measured = [seen for seen in target.observations if seen.points is not None]
                pose = measured[0].crop_from_reference @ own[0].reference_from_object
                model = self.library[target.name]
                report(target.label, doubt_about(pose, measured[0].points, model))
        return found

    def _find_by_baseline(
        self, targets: Sequence[Target], report: Report
    ) -> list[list[Hypothesis]]:
        """The papers' procedures, or none at all, from the best few starts."""
        if self._baseline is None or self._baseline.kind != self.settings.refinement:
            from pose_refiner_ros.baselines.refine import Baseline

            self._baseline = Baseline(
                self.settings.refinement, self.refiner, self.encoder, self.device
            )
        if any(seen.points is not None for target in targets for seen in target.observations):
            report(None, f"depth is not used: it is for the solver, not for {self._baseline.kind}")
        starts = [target.starts or self._search.views(target, self.settings) for target in targets]
        return self._baseline.refine(
            [target.observations for target in targets], starts, self.settings.keep, report
        )

    def _judge(self, target: Target, found: Sequence[Hypothesis]) -> ObjectPose:
        """One verdict from an object's refined hypotheses.

        Belief in a hypothesis falls with the overlap it lacks, measured against what the best one
        lacks itself: a mask that no pose fits well tells poses apart less sharply, and a mesh that
        is not the object's own less sharply still. The encoder's opinion counts as well. The choice
        also weighs how far each is turned from the first given pose, so that an ambiguous object
        does not flip; score and quality do not, since silhouettes alone cannot tell.
        """
        missing = np.array([1.0 - one.fits["silhouette"].iou for one in found])
        blunt = CATEGORY_SHARPNESS if target.is_category else SHARPNESS
        sharpness = max(blunt * missing.min(), 0.004)
        belief = np.exp(-(missing - missing.min()) / sharpness)
        if target.estimate is not None:
            belief *= [target.estimate.share_of(one.reference_from_object) for one in found]
        belief *= _belief_by_colour(found) * _belief_by_depth(found)
        belief /= belief.sum()
        chosen = int(belief.argmax())
        if target.given:
            turned = self.library[target.name].symmetries.reduced_rotation_error(
                np.stack([one.reference_from_object for one in found]),
                target.starts[0].reference_from_object,
            )
            chosen = int((belief * np.exp(-0.5 * (turned / START_SIGMA) ** 2)).argmax())
        model = self.library[target.name]
        return weighed([_object_pose(target, one, model) for one in found], belief, chosen)


def _object_pose(target: Target, found: Hypothesis, model: ObjectModel) -> ObjectPose:
    """A hypothesis as the user gets it, yet without score and quality. Of poses that look the same
    it is the one nearest to where the object was said to be."""
    outline, pose = found.fits["silhouette"], found.reference_from_object
    covariance, symmetries = found.covariance, model.symmetries
    if target.is_category:
        eye = target.observations[0].eye
        covariance = known_as_category(found, target.estimate, eye, model.diameter)
    if target.given and symmetries.any:
        pose = symmetries.closest_equivalent(pose, target.starts[0].reference_from_object)
        covariance = about(pose[:3, 3] - found.reference_from_object[:3, 3], covariance)
    return ObjectPose(
        label=target.label,
        name=target.name,
        camera_from_object=pose,
        covariance=covariance,
        score=0.0,
        quality="",
        iou=float(outline.iou),
        contour_rms_px=float(outline.rms),
        visible_fraction=float(outline.visible),
        cost=float(outline.cost),
        iterations=found.iterations,
        reason=found.reason,
        class_probability=target.class_probability,
        photo_rms=colour_rms(found),
        photo_correlation=correlation(found),
        depth_agrees=depth_agrees(found),
    )


def _problem(pose: np.ndarray, middle: np.ndarray, seen: Observation) -> str | None:
    """See `pose_problem`, for the camera of an observation."""
    where = seen.reference_from_camera
    if where is None or transform_problem(pose):
        return pose_problem(pose, middle)
    return pose_problem(inverse(where) @ pose, middle)


def _belief_by_colour(found: Sequence[Hypothesis]) -> np.ndarray:
    """(N,) factors of belief in poses, by how much worse their colours fit than the best one's."""
    rms = np.array([colour_rms(one) for one in found], float)  # None becomes NaN
    if np.isnan(rms).any():
        return np.ones(len(found))
    return np.exp(-(rms - rms.min()) / max(SHARPNESS * rms.min(), LEAST_COLOUR))


def _belief_by_depth(found: Sequence[Hypothesis]) -> np.ndarray:
    """(N,) factors of belief in poses, by how much worse the measured points lie on their surface
    than on the best one's."""
    agrees = np.array([depth_agrees(one) for one in found], float)  # None becomes NaN
    if np.isnan(agrees).any():
        return np.ones(len(found))
    missing = 1.0 - agrees
    return np.exp(-(missing - missing.min()) / max(SHARPNESS * missing.min(), LEAST_DEPTH))


def choose_device(device: str) -> str:
    """The Warp device for auto, cpu, cuda or cuda:N; ValueError where it is not there."""
    if device == "auto":
        return "cuda:0" if wp.is_cuda_available() else "cpu"
    if device == "cpu":
        return "cpu"
    try:
        return str(wp.get_device("cuda:0" if device == "cuda" else device))
    except Exception as error:
        raise ValueError(
            f"device {device!r} is not here ({error if wp.is_cuda_available() else 'no CUDA'}); "
            "choose auto or cpu"
        ) from error
