# SPDX-License-Identifier: Apache-2.0
"""The whole job in one call: a frame in, the poses of its objects out. No ROS."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import warp as wp

from pose_refiner_ros.frame import (
    Frame,
    ObjectPose,
    Report,
    checked_masks,
    class_without_object,
    log_warning,
    no_object_for,
    pose_problem,
    weighed,
)
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.photometric import PhotoStage, with_photo
from pose_refiner_ros.refinement.category import category_prior, known_as_category
from pose_refiner_ros.refinement.codebook import ViewCodebook, is_cut
from pose_refiner_ros.refinement.evidence import ObjectEvidence, gather_evidence
from pose_refiner_ros.refinement.photo_evidence import PhotoEvidence
from pose_refiner_ros.refinement.prior_term import PosePrior
from pose_refiner_ros.refinement.refiner import (
    RESTART_ANGLE,
    RESTART_RMS,
    Refined,
    Refiner,
    turned,
)
from pose_refiner_ros.settings import Settings

if TYPE_CHECKING:  # torch is imported where an encoder or a field is used
    from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder


@dataclass(eq=False)
class SeenObject:
    """An object on its way through the pipeline: what is seen of it, what is known, what is found.

    given: start poses from outside; starts: all that are refined, priors: beside them;
    is_category: its mesh stands for a category and is not its own.
    """

    evidence: ObjectEvidence
    name: str | None
    class_probability: float = 1.0
    estimate: Estimate | None = None
    given: list[np.ndarray] = field(default_factory=list)
    tracked: bool = False
    is_category: bool = False
    starts: list[np.ndarray] = field(default_factory=list)
    priors: list[PosePrior | None] = field(default_factory=list)
    photo: PhotoEvidence | None = None  # of one that has a field
    found: list[Refined] = field(default_factory=list)

    @property
    def label(self) -> int:
        return self.evidence.label


TWO_PARTS = 0.1  # share of a mask that a part apart from the rest must have to be mentioned
# With a field the photo tells views apart that silhouettes do not: more are followed, for it to
# choose from. A cube has 24.
PHOTO_VIEWS = 48
PHOTO_KEEP = 24
# Of what is cut by the photo's border or hidden, more views fit about as well at first: more are
# followed; the rivals of the best few are tried, and the best one turned, already where it ends at
# this share of the usual distance from the mask's border.
CUT_KEEP = 6
CUT_RIVALLED, CUT_RIVALS, CUT_LIKE = 2, 6, 0.8
CUT_ROUND_KEEP = 3
CUT_RESTART = 0.5
SHARPNESS = 0.25  # lack of overlap that matters, as a share of what the best pose lacks
CATEGORY_SHARPNESS = 1.0
SURE_COLOURS = 0.06  # a difference that wrong poses do not come down to
LEAST_COLOUR = 0.005  # a difference of colours, robust RMS, that says little
CONFIRM_ANGLE = np.radians(12.0)
START_SIGMA = np.radians(25.0)  # how far off a given pose may well be turned


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
        self._refiner = Refiner(list(library.values()), self.device, self.settings.batch)
        self._photos = PhotoStage(library, self._refiner, self.settings, self.device)
        self._codebooks: dict[str, ViewCodebook] = {}
        self._gradient_refiner = None  # made at the first use: torch is not needed otherwise
        # What classify has seen, for process.
        self._looked: WeakKeyDictionary[Frame, dict[int, ObjectEvidence]] = WeakKeyDictionary()
        self._estimates: WeakKeyDictionary[ObjectEvidence, Estimate] = WeakKeyDictionary()

    def warm_up(self) -> None:
        """Compile the kernels (seconds, once per machine) and build the codebooks."""
        for model in self.library.values():
            self._codebook(model.name)
        with_field = [model for model in self.library.values() if model.field is not None]
        model = [*with_field, *self.library.values()][0]
        camera = Camera(np.array([[120.0, 0, 47.5], [0, 120.0, 47.5], [0, 0, 1]]), (96, 96))
        masks = np.zeros((96, 96), np.uint8)
        masks[32:64, 32:64] = 1
        labels = {1: model.name}
        if self.encoder is not None:
            masks[4:28, 4:28], labels[2] = 2, None
        photo = np.zeros((96, 96, 3), np.uint8)
        self.process(Frame(masks, camera, labels, image=photo), report=lambda label, text: None)

    def process(self, frame: Frame, report: Report = log_warning) -> list[ObjectPose]:
        """Find the pose of every labelled object of a frame, in the order of its labels.

        What is left out is told to report(label or None, text); one bad object does not harm the
        others. Raises FrameError where nothing of the frame can be used.
        """
        masks = checked_masks(frame)
        seen = [
            SeenObject(evidence, frame.labels[evidence.label])
            for evidence in self._look(frame, frame.labels, masks, report)
        ]
        seen = self._name(seen, report)
        if not seen:
            return []
        for one in seen:
            one.given = self._initial(frame, one.label, report)
            one.tracked = one.label in frame.tracked
        self._photos.look(seen, frame, self.settings, report)
        self._refine(seen, frame.search, report)
        poses = []
        for one in seen:
            found = [r for r in one.found if np.isfinite(r.camera_from_object).all()]
            if not found or found[0].iou == 0.0:
                report(one.label, f"no pose of {one.name} found that overlaps its mask")
                continue
            poses.append(self._judge(one, found))
        return poses

    def classify(self, frame: Frame, report: Report = log_warning) -> dict[int, dict[str, float]]:
        """Label -> {object name: probability}, for the labels of a frame that have no name and a
        mask of which the encoder can say something.

        Classes that no object of the library stands for are there as `class_without_object`. Name
        the labels in the same Frame, and process has less to do.
        """
        nameless = {label: name for label, name in frame.labels.items() if not name}
        if self.encoder is None or not nameless:
            return {}
        seen = self._look(frame, nameless, checked_masks(frame), report)
        self._looked[frame] = {evidence.label: evidence for evidence in seen}
        seen = [evidence for evidence in seen if self._can_ask(evidence)]
        return {
            evidence.label: self._names_of(estimate)
            for evidence, estimate in zip(seen, self._estimate(seen), strict=True)
        }

    def _estimate(self, seen: Sequence[ObjectEvidence]) -> list[Estimate]:
        """The encoder's, of each mask; it is asked once about each."""
        new = [evidence for evidence in seen if evidence not in self._estimates]
        self._estimates.update(zip(new, self.encoder.estimate(new), strict=True))
        return [self._estimates[evidence] for evidence in seen]

    def _can_ask(self, evidence: ObjectEvidence) -> bool:
        encoder = self.encoder
        return encoder is not None and (evidence.photo is not None or not encoder.needs_photo)

    def _names_of(self, estimate: Estimate) -> dict[str, float]:
        models = {c: self.library_of_category(c) for c in estimate.class_probabilities}
        return {
            models[c].name if models[c] else class_without_object(c): share
            for c, share in estimate.class_probabilities.items()
        }

    def library_of_category(self, category: str) -> ObjectModel | None:
        """The object of the library that stands for a class of the encoder."""
        return next((m for m in self.library.values() if m.category == category), None)

    def _name(self, seen: list[SeenObject], report: Report) -> list[SeenObject]:
        """Ask the encoder about those that it knows or that have no name; leave out those that it
        cannot name either."""
        asked = [
            one for one in seen if self._can_ask(one.evidence) and self._is_for_encoder(one.name)
        ]
        if asked:
            estimates = self._estimate([one.evidence for one in asked])
            for one, estimate in zip(asked, estimates, strict=True):
                one.estimate = estimate
        named = []
        for one in seen:
            if one.name is None:
                if one.estimate is None:
                    why = "there is no encoder to ask"
                    if self.encoder is not None:
                        why = "the encoder looks at the photo: none of use came with the masks"
                    report(one.label, f"its class is unknown and {why}")
                    continue
                shares = self._names_of(one.estimate)
                name = max(shares, key=shares.__getitem__)
                if name not in self.library:
                    report(one.label, no_object_for(name, shares[name]))
                    continue
                one.name, one.class_probability = name, shares[name]
            named.append(one)
        return named

    def _is_for_encoder(self, name: str | None) -> bool:
        return name is None or self.library[name].category in self.encoder.classes

    def _refine(self, seen: list[SeenObject], search: Collection[int], report: Report) -> None:
        """Fill in what was found of each object."""
        for one in seen:
            model = self.library[one.name]
            one.starts = list(one.given)
            one.is_category = one.estimate is not None and not model.exact_shape
            if one.estimate is not None and (one.is_category or not one.given):
                guesses = [h.camera_from_object for h in one.estimate.likely]
                one.starts += [pose for pose in guesses if pose_problem(pose) is None]
            if one.is_category:
                one.priors = [category_prior(one.evidence, one.estimate, p) for p in one.starts]
            else:
                one.priors = [None] * len(one.starts)
        if self.settings.refinement != "solver":
            self._refine_otherwise(seen, report)
            return
        results = self._refiner.refine(
            [one.evidence for one in seen],
            [one.name for one in seen],
            [one.starts for one in seen],
            self.settings.keep,
            # a mesh that stands for a category never fits well enough to leave it at that
            [not one.tracked and not one.is_category for one in seen],
            [one.priors for one in seen],
        )
        for one, found in zip(seen, results, strict=True):
            one.found = found
        again = [
            one
            for one in seen
            if (one.label in search and one.photo is None and not one.is_category)
            or self._needs_search(one)
        ]
        self._search(again)
        # What was given fits its mask, and yet the colours say that it is another view. Where they
        # clearly fit, a tracked pose needs no fresh look: that takes far longer than the rest.
        misfits = self._photos.refine(seen)
        doubted = [
            one
            for one in seen
            if one.photo is not None and one.found and one not in again and not one.is_category
            if (one in misfits and not one.tracked)
            or (one.label in search and not one.found[0].photo_rms <= SURE_COLOURS)
        ]
        if doubted and self.settings.search != "never":
            self._search(doubted)
            self._photos.refine(doubted)
        self._photos.tell(seen, report)

    def _search(self, seen: Sequence[SeenObject]) -> None:
        """Refine the views of the codebook, too."""
        cut = [is_cut(one.evidence) for one in seen]
        for by_photo, by_cut in itertools.product((False, True), repeat=2):
            group = [
                one
                for one, its_cut in zip(seen, cut, strict=True)
                if (one.photo is not None, its_cut) == (by_photo, by_cut)
            ]
            more = (PHOTO_KEEP if by_photo else 0, CUT_KEEP if by_cut else 0)
            keep = max(self.settings.keep, *more)
            if not group:
                continue
            found = self._refiner.refine(
                [one.evidence for one in group],
                [one.name for one in group],
                [self._guess(one) for one in group],
                keep,
                restart=not by_cut,
            )
            for one, more in zip(group, found, strict=True):
                one.found = self._refiner.merge(one.name, one.found + more)
            if by_cut:
                self._search_on(group)

    def _search_on(self, seen: Sequence[SeenObject]) -> None:
        """Of objects that are cut, refine the rivals of the best poses, then the best, turned."""
        rivals = [
            [
                rival
                for best in one.found[:CUT_RIVALLED]
                for rival in self._codebook(one.name).similar_views(
                    best.camera_from_object, CUT_RIVALS, CUT_LIKE
                )
            ]
            for one in seen
        ]
        self._refine_more(seen, rivals, CUT_ROUND_KEEP)
        around: list[list[np.ndarray]] = []
        for one in seen:
            limit = CUT_RESTART * RESTART_RMS * one.evidence.crop.size / one.evidence.crop.scale
            poor = one.found and not one.found[0].contour_rms_px < limit
            best = one.found[0].camera_from_object if poor else None
            around.append(turned(best, RESTART_ANGLE) if poor else [])
        self._refine_more(seen, around, CUT_ROUND_KEEP)

    def _refine_more(self, seen: Sequence[SeenObject], starts, keep: int) -> None:
        """Refine starts (poses of each object) and add what is found."""
        found = self._refiner.refine(
            [one.evidence for one in seen],
            [one.name for one in seen],
            starts,
            keep,
            restart=False,
        )
        for one, more in zip(seen, found, strict=True):
            one.found = self._refiner.merge(one.name, one.found + more)

    def _refine_otherwise(self, seen: list[SeenObject], report: Report) -> None:
        """The paper's procedures, or none at all, from the best few starts."""
        for one in seen:
            poses = one.starts or self._guess(one)
            if self.settings.refinement == "none":
                poses = poses[:1]
            else:
                poses = self._descend(one, poses[: self.settings.keep], report)
            found = [self._refiner.evaluate(one.evidence, one.name, pose) for pose in poses]
            one.found = self._refiner.merge(one.name, found)

    def _descend(self, one: SeenObject, poses: list[np.ndarray], report: Report) -> list:
        """Poses (4, 4) after the paper's 30 steps."""
        model = self.library[one.name]
        if self._gradient_refiner is None:
            from pose_refiner_ros.refinement.gradient_refiner import GradientRefiner

            self._gradient_refiner = GradientRefiner(device=self.device)
        camera_from_crop = np.eye(4)
        camera_from_crop[:3, :3] = one.evidence.crop.crop_from_camera.T
        if self.settings.refinement == "gradient_encoder" and one.estimate is not None:
            found = self._gradient_refiner.refine_encoder(one.evidence, model, self.encoder)
        else:
            if self.settings.refinement == "gradient_encoder":
                report(
                    one.label,
                    f"the encoder does not know {one.name}: the error goes into the pose instead "
                    "of into its weights",
                )
            starts = [camera_from_crop.T @ pose for pose in poses]
            found = [self._gradient_refiner.refine_poses(one.evidence, model, starts)]
        reached = np.concatenate([result.camera_from_object.cpu().numpy() for result in found])
        return list(camera_from_crop @ reached)

    def _look(
        self, frame: Frame, labels: Mapping[int, str | None], masks: np.ndarray, report: Report
    ) -> list[ObjectEvidence]:
        seen, before = [], self._looked.get(frame, {})
        for label in sorted(labels):
            name = labels[label]
            if label in before:
                seen.append(before[label])
                continue
            if label == 0:
                report(label, f"{name} left out: 0 is the background in label images")
                continue
            if name is not None and name not in self.library:
                known = ", ".join(sorted(self.library))
                report(label, f"class {name!r} is not in the object library (it has {known})")
                continue
            try:
                evidence = gather_evidence(masks, label, frame.camera)
            except ValueError as error:
                report(label, f"{name or 'an object'} left out: {error}")
                continue
            if frame.image is not None and self.encoder is not None and self.encoder.needs_photo:
                try:
                    evidence = with_photo(evidence, frame)
                except CameraError as error:
                    report(label, f"the encoder cannot look at it: {error}")
            seen.append(evidence)
            if evidence.second_part > TWO_PARTS:
                report(
                    label,
                    f"its mask is in parts, the second of them {evidence.second_part:.0%} of it: "
                    "the pose is to fit all; if they are several objects, give each its own label",
                )
        return seen

    def _initial(self, frame: Frame, label: int, report: Report) -> list[np.ndarray]:
        usable = []
        for pose in frame.initial_poses.get(label, ()):
            pose = np.asarray(pose, np.float64)
            problem = pose_problem(pose)
            if problem:
                report(label, f"start pose ignored: {problem}")
            else:
                usable.append(pose)
        return usable

    def _needs_search(self, one: SeenObject) -> bool:
        """Whether the codebook's views are to be tried beside the poses to start from."""
        if self.settings.search == "never":
            return False
        if one.is_category or not one.found:
            return not one.found
        if self.settings.search == "always":
            return True
        if one.found[0].iou < self.settings.confirm_iou:
            return True
        if one.tracked:
            return False
        # A fit like that of real masks proves a pose that was nearly right already (a tracked
        # one). One that had to turn further must fit better, and one that turned far proves
        # nothing: its silhouette may fit as well as the right one's.
        model = self.library[one.name]
        pose, start = one.found[0].camera_from_object, one.starts[0]
        turned = model.symmetries.reduced_rotation_error(pose, start)
        moved = np.linalg.norm(pose[:3, 3] - start[:3, 3])
        if turned < CONFIRM_ANGLE and moved < 0.15 * model.diameter:
            return False
        return turned > START_SIGMA or one.found[0].iou < self.settings.accept_iou

    def _guess(self, one: SeenObject) -> list[np.ndarray]:
        """Poses (4, 4) from the codebook's views."""
        camera_from_crop = np.eye(4)
        camera_from_crop[:3, :3] = one.evidence.crop.crop_from_camera.T
        count = max(self.settings.hypotheses, PHOTO_VIEWS if one.photo is not None else 0)
        hypotheses = self._codebook(one.name).match(one.evidence, count)
        return [camera_from_crop @ guess.camera_from_object for guess in hypotheses]

    def _judge(self, one: SeenObject, found: list[Refined]) -> ObjectPose:
        """One verdict from an object's refined hypotheses.

        Belief in a hypothesis falls with the overlap it lacks, measured against what the best one
        lacks itself: a mask that no pose fits well tells poses apart less sharply, and a mesh that
        is not the object's own less sharply still. The encoder's opinion counts as well. The choice
        also weighs how far each is turned from the first given pose, so that an ambiguous object
        does not flip; score and quality do not, since silhouettes alone cannot tell.
        """
        missing = np.array([1.0 - r.iou for r in found])
        blunt = CATEGORY_SHARPNESS if one.is_category else SHARPNESS
        sharpness = max(blunt * missing.min(), 0.004)
        belief = np.exp(-(missing - missing.min()) / sharpness)
        if one.estimate is not None:
            belief *= [one.estimate.share_of(r.camera_from_object) for r in found]
        belief *= _belief_by_colour(found)
        belief /= belief.sum()
        chosen = int(belief.argmax())
        if one.given:
            turned = self.library[one.name].symmetries.reduced_rotation_error(
                np.stack([r.camera_from_object for r in found]), one.given[0]
            )
            chosen = int((belief * np.exp(-0.5 * (turned / START_SIGMA) ** 2)).argmax())
        rivals = [
            ObjectPose(
                label=one.label,
                name=one.name,
                camera_from_object=r.camera_from_object,
                covariance=known_as_category(r, one.estimate) if one.is_category else r.covariance,
                score=0.0,
                quality="",
                iou=r.iou,
                contour_rms_px=r.contour_rms_px,
                visible_fraction=r.visible_fraction,
                cost=r.cost,
                iterations=r.iterations,
                reason=r.reason.name.lower(),
                class_probability=one.class_probability,
                photo_rms=r.photo_rms,
            )
            for r in found
        ]
        return weighed(rivals, belief, chosen)

    def _codebook(self, name: str) -> ViewCodebook:
        if name not in self._codebooks:
            self._codebooks[name] = ViewCodebook(self.library[name])
        return self._codebooks[name]


def _belief_by_colour(found: Sequence[Refined]) -> np.ndarray:
    """(N,) factors of belief in poses, by how much worse their colours fit than the best one's."""
    rms = np.array([refined.photo_rms for refined in found], float)  # None becomes NaN
    if np.isnan(rms).any():
        return np.ones(len(found))
    return np.exp(-(rms - rms.min()) / max(SHARPNESS * rms.min(), LEAST_COLOUR))


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
