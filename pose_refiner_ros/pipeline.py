# SPDX-License-Identifier: Apache-2.0
"""The whole job in one call: a frame in, the poses of its objects out. No ROS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import warp as wp

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.refinement.evidence import EvidenceError, ObjectEvidence, gather_evidence
from pose_refiner_ros.refinement.refiner import Refined, Refiner

log = logging.getLogger(__name__)

Report = Callable[[int | None, str], None]


class FrameError(ValueError):
    """A frame that cannot be used at all; the message says why and what to do."""


def log_warning(label: int | None, text: str) -> None:
    """The default report: a line in the log."""
    log.warning("%s", text if label is None else f"label {label}: {text}")


@dataclass(frozen=True)
class Settings:
    """What a user may tune.

    hypotheses: views of the codebook that are refined for an object without a usable start pose;
    keep: of those, how many different ones are followed to the end; search: auto (where the
    given poses are missing or fit badly), always or never; accept_iou: overlap from which the
    result of a given pose is taken without a search; confirm_iou: the same for one that hardly
    moved; batch: most poses refined at once.
    """

    hypotheses: int = 16
    keep: int = 4
    search: str = "auto"
    accept_iou: float = 0.97
    confirm_iou: float = 0.8
    batch: int = 64

    def __post_init__(self) -> None:
        if self.search not in ("auto", "always", "never"):
            raise ValueError(f"search is {self.search!r}; choose auto, always or never")
        for name in ("hypotheses", "keep", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(eq=False)
class Frame:
    """One moment of one camera.

    masks: (H, W) integer label image, 0 = background; labels: label in masks -> object name;
    initial_poses: label -> camera_from_object guesses (4, 4), the likeliest first; image:
    (H, W, 3) uint8 RGB, not used by silhouettes; tracked: labels whose initial poses come from the
    frame before, so that no others are tried as long as one of them fits; search: labels for which
    all views are tried beside the initial poses in any case.
    """

    masks: np.ndarray
    camera: Camera
    labels: Mapping[int, str]
    initial_poses: Mapping[int, Sequence[np.ndarray]] = field(default_factory=dict)
    image: np.ndarray | None = None
    tracked: Collection[int] = ()
    search: Collection[int] = ()


@dataclass(eq=False)
class ObjectPose:
    """Where an object is.

    camera_from_object: (4, 4) float64. covariance: (6, 6), twist order (metres, radians), camera
    axes, about the object's origin. score in [0, 1]: iou times belief; 1 means that it fits to the
    pixel and nothing else does, 0.5 that two poses fit equally well. belief: this pose's share
    among the different poses found. iou: overlap of silhouette and mask over the known pixels.
    quality: good; ambiguous (another pose fits nearly as well: see alternatives); partial (over a
    quarter of the outline is hidden); poor (the silhouette does not fit the mask). contour_rms_px:
    robust RMS distance between outline and mask border in photo pixels. cost: robust area between
    silhouette and mask, crop pixels squared. visible_fraction: share of the model's outline that
    could be compared with the mask. reason: why the refinement stopped.
    """

    label: int
    name: str
    camera_from_object: np.ndarray
    covariance: np.ndarray
    score: float
    quality: str
    iou: float
    contour_rms_px: float
    visible_fraction: float
    cost: float
    iterations: int
    reason: str
    belief: float = 1.0
    alternatives: list[ObjectPose] = field(default_factory=list)


def weighed(poses: Sequence[ObjectPose], beliefs: Sequence[float], chosen: int) -> ObjectPose:
    """The chosen one of an object's rival poses, the others its alternatives, best first; scores
    and qualities follow from the beliefs (which sum to 1)."""
    poses = [
        replace(
            pose,
            score=float(pose.iou * belief),
            belief=float(belief),
            quality=_quality(pose, belief),
            alternatives=[],
        )
        for pose, belief in zip(poses, beliefs, strict=True)
    ]
    best = poses.pop(chosen)
    best.alternatives = sorted(poses, key=lambda pose: -pose.score)
    return best


def _quality(pose: ObjectPose, belief: float) -> str:
    if pose.iou < POOR_IOU:
        return "poor"
    if belief < AMBIGUOUS_BELIEF:
        return "ambiguous"
    return "partial" if pose.visible_fraction < PARTIAL_VISIBLE else "good"


CONFIRM_ANGLE = np.radians(12.0)
START_SIGMA = np.radians(25.0)  # how far off a given pose may well be turned
FARTHEST = 1e5  # metres; start poses beyond are mistakes
POOR_IOU = 0.7
AMBIGUOUS_BELIEF = 0.7
PARTIAL_VISIBLE = 0.75


class Pipeline:
    """Estimates the poses of a library's objects.

    device: auto (CUDA where there is one), cpu, cuda or cuda:N. Not thread-safe: one per worker.
    Raises ValueError for a library without objects or a device that is not there.
    """

    def __init__(
        self,
        library: Mapping[str, ObjectModel],
        settings: Settings | None = None,
        device: str = "auto",
    ) -> None:
        if not library:
            raise ValueError("the object library is empty: nothing could be recognised")
        self.library = library
        self.settings = settings or Settings()
        self.device = choose_device(device)
        self._refiner = Refiner(list(library.values()), self.device, self.settings.batch)
        self._codebooks: dict[str, ViewCodebook] = {}

    def warm_up(self) -> None:
        """Compile the kernels (seconds, once per machine) and build the codebooks."""
        for model in self.library.values():
            self._codebook(model.name)
        model = next(iter(self.library.values()))
        camera = Camera(np.array([[120.0, 0, 47.5], [0, 120.0, 47.5], [0, 0, 1]]), (96, 96))
        masks = np.zeros((96, 96), np.uint8)
        masks[32:64, 32:64] = 1
        self.process(Frame(masks, camera, {1: model.name}), report=lambda label, text: None)

    def process(self, frame: Frame, report: Report = log_warning) -> list[ObjectPose]:
        """Find the pose of every labelled object of a frame, in the order of its labels.

        What is left out is told to report(label or None, text); one bad object does not harm the
        others. Raises FrameError where nothing of the frame can be used.
        """
        masks = checked_masks(frame)
        seen = self._look(frame, masks, report)
        if not seen:
            return []
        names = [frame.labels[evidence.label] for evidence in seen]
        given = [self._initial(frame, evidence.label, report) for evidence in seen]
        tracked = [evidence.label in frame.tracked for evidence in seen]
        restart = [not known for known in tracked]
        results = self._refiner.refine(seen, names, given, self.settings.keep, restart)
        search = [
            i
            for i, name in enumerate(names)
            if seen[i].label in frame.search
            or self._needs_search(name, results[i], given[i], tracked[i])
        ]
        if search:
            guesses = [self._guess(seen[i], names[i]) for i in search]
            found = self._refiner.refine(
                [seen[i] for i in search], [names[i] for i in search], guesses, self.settings.keep
            )
            for i, more in zip(search, found, strict=True):
                results[i] = self._refiner.merge(names[i], results[i] + more)

        poses = []
        for evidence, name, found, start in zip(seen, names, results, given, strict=True):
            found = [one for one in found if np.isfinite(one.camera_from_object).all()]
            if not found or found[0].iou == 0.0:
                report(evidence.label, f"no pose of {name} found that overlaps its mask")
                continue
            poses.append(self._judge(evidence.label, name, found, start))
        return poses

    def _look(self, frame: Frame, masks: np.ndarray, report: Report) -> list[ObjectEvidence]:
        seen = []
        for label in sorted(frame.labels):
            name = frame.labels[label]
            if label == 0:
                report(label, f"{name} left out: 0 is the background in label images")
                continue
            if name not in self.library:
                known = ", ".join(sorted(self.library))
                report(label, f"class {name!r} is not in the object library (it has {known})")
                continue
            try:
                seen.append(gather_evidence(masks, label, frame.camera))
            except (EvidenceError, ValueError) as error:
                report(label, f"{name} left out: {error}")
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

    def _needs_search(self, name: str, found: list[Refined], given, tracked: bool) -> bool:
        """Whether the codebook's views are to be tried beside the given poses."""
        if self.settings.search != "auto":
            return self.settings.search == "always"
        if not found or found[0].iou < self.settings.confirm_iou:
            return True
        if tracked:
            return False
        # A fit like that of real masks proves a pose that was nearly right already (a tracked
        # one). One that had to turn further must fit better, and one that turned far proves
        # nothing: its silhouette may fit as well as the right one's.
        model = self.library[name]
        pose, start = found[0].camera_from_object, given[0]
        turned = model.symmetries.reduced_rotation_error(pose, start)
        moved = np.linalg.norm(pose[:3, 3] - start[:3, 3])
        if turned < CONFIRM_ANGLE and moved < 0.15 * model.diameter:
            return False
        return turned > START_SIGMA or found[0].iou < self.settings.accept_iou

    def _guess(self, evidence: ObjectEvidence, name: str) -> list[np.ndarray]:
        camera_from_crop = np.eye(4)
        camera_from_crop[:3, :3] = evidence.crop.crop_from_camera.T
        hypotheses = self._codebook(name).match(evidence, self.settings.hypotheses)
        return [camera_from_crop @ one.camera_from_object for one in hypotheses]

    def _judge(self, label: int, name: str, found: list[Refined], given) -> ObjectPose:
        """One verdict from an object's refined hypotheses.

        Belief in a hypothesis falls with the overlap it lacks, measured against what the best one
        lacks itself: a mask that no pose fits well tells poses apart less sharply. The choice
        also weighs how far each is turned from the first given pose, so that an ambiguous object
        does not flip; score and quality do not, since silhouettes alone cannot tell.
        """
        missing = np.array([1.0 - one.iou for one in found])
        sharpness = max(0.25 * missing.min(), 0.004)
        belief = np.exp(-(missing - missing.min()) / sharpness)
        belief /= belief.sum()
        chosen = int(belief.argmax())
        if given:
            turned = self.library[name].symmetries.reduced_rotation_error(
                np.stack([one.camera_from_object for one in found]), given[0]
            )
            chosen = int((belief * np.exp(-0.5 * (turned / START_SIGMA) ** 2)).argmax())
        rivals = [
            ObjectPose(
                label=label,
                name=name,
                camera_from_object=one.camera_from_object,
                covariance=one.covariance,
                score=0.0,
                quality="",
                iou=one.iou,
                contour_rms_px=one.contour_rms_px,
                visible_fraction=one.visible_fraction,
                cost=one.cost,
                iterations=one.iterations,
                reason=one.reason.name.lower(),
            )
            for one in found
        ]
        return weighed(rivals, belief, chosen)

    def _codebook(self, name: str) -> ViewCodebook:
        if name not in self._codebooks:
            self._codebooks[name] = ViewCodebook(self.library[name])
        return self._codebooks[name]


def checked_masks(frame: Frame) -> np.ndarray:
    """The label image as (H, W) integers that kernels and OpenCV take; FrameError otherwise."""
    masks = np.asarray(frame.masks)
    if masks.ndim != 2:
        raise FrameError(f"the label image has shape {masks.shape}; it must be (height, width)")
    if masks.dtype == bool:
        masks = masks.view(np.uint8)
    if masks.dtype.kind not in "iu":
        raise FrameError(f"the label image holds {masks.dtype}; labels must be whole numbers")
    if masks.shape != frame.camera.size:
        raise FrameError(
            f"the label image is {masks.shape[1]}x{masks.shape[0]} and the camera "
            f"{frame.camera.size[1]}x{frame.camera.size[0]} pixels (width x height); masks must "
            "have the camera's size"
        )
    return masks


def pose_problem(pose: np.ndarray) -> str | None:
    """What is wrong with a start pose, or None."""
    if pose.shape != (4, 4):
        return f"it has shape {pose.shape} instead of (4, 4)"
    if not np.isfinite(pose).all():
        return "it holds NaN or infinity"
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
        return "its upper left 3x3 is not a rotation"
    if pose[2, 3] <= 0.0:
        return f"it lies behind the camera (z = {pose[2, 3]:.3g} m)"
    if np.abs(pose[:3, 3]).max() > FARTHEST:
        return f"it lies {np.abs(pose[:3, 3]).max():.3g} m away (is the unit metres?)"
    return None


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
