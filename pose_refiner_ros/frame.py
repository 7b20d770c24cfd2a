# SPDX-License-Identifier: Apache-2.0
"""What goes into the pipeline and what comes out of it: frames and the poses of their objects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point, transform_problem
from pose_refiner_ros.refinement.search import colours_differ
from pose_refiner_ros.refinement.sighting import Sighting

FARTHEST = 1e5  # metres; start poses beyond are mistakes
POOR_IOU = 0.7  # below: poor
AMBIGUOUS_BELIEF = 0.7  # of pose and class together; below: ambiguous
PARTIAL_VISIBLE = 0.75
LEAST_BELIEF = 0.01  # of an alternative that is worth telling

Report = Callable[[int | None, str], None]
# Called once in a frame, when the encoder has looked at the labels without a name: with label ->
# {object name: probability}, before names and start poses of the frame are used; may change them.
Follow = Callable[[dict[int, dict[str, float]]], None]
log = logging.getLogger(__name__)


def log_warning(label: int | None, text: str) -> None:
    """The default report: a line in the log."""
    log.warning("%s", text if label is None else f"label {label}: {text}")


def class_without_object(category: str) -> str:
    """What stands for a class of the encoder among the names of objects where the library has no
    object of that category. No object is called so."""
    return f"({category})"


def no_object_for(key: str, probability: float) -> str:
    """The report about a mask that the encoder takes for a `class_without_object`."""
    return (
        f"the encoder takes it for {key[1:-1]} ({probability:.0%}), and no object of the library "
        "has that category: add one, or name the label"
    )


class FrameError(ValueError):
    """A frame that cannot be used at all; the message says why and what to do."""


@dataclass(eq=False)
class Frame:
    """One moment of one camera.

    Several of one moment, or of a scene that stands still, go into the pipeline together:
    reference_from_camera (4, 4) says where each camera is (None: in the reference), and objects are
    the same where their labels and names are, or, where frames have ids (label -> number), their
    names and numbers.

    masks: (H, W) integer label image, 0 = background; labels: label in masks -> object name, or
    None where the encoder is to say; initial_poses: label -> camera_from_object guesses (4, 4),
    the likeliest first; image: (H, W, 3) uint8 RGB, for objects that have a field (silhouettes do
    not use it); depth: (H, W) registered to the masks, along the optical axis, float metres or
    whole numbers times depth_scale metres, 0 or NaN where unknown; scan: (N, 3) points that a laser
    scanner, say, has measured, camera axes, metres, scan_age seconds before or after the masks;
    tracked: labels whose initial poses come from the frame before, so that no others are tried as
    long as one of them fits; search: labels for which all views are tried beside the initial poses
    in any case; earlier: label -> what earlier frames showed of an object that may stand still,
    told in this camera (`tracking/sighting_memory.py`; None: nothing is kept for frames to come);
    still: labels of what is known to. name: of the camera, for messages about it.
    """

    masks: np.ndarray
    camera: Camera
    labels: Mapping[int, str | None]
    initial_poses: Mapping[int, Sequence[np.ndarray]] = field(default_factory=dict)
    image: np.ndarray | None = None
    depth: np.ndarray | None = None
    depth_scale: float = 0.001
    scan: np.ndarray | None = None
    scan_age: float = 0.0
    tracked: Collection[int] = ()
    search: Collection[int] = ()
    reference_from_camera: np.ndarray | None = None
    ids: Mapping[int, int] | None = None
    earlier: Mapping[int, Sequence[Sighting]] | None = None
    still: Collection[int] = ()
    name: str = ""


@dataclass(eq=False)
class ObjectPose:
    """Where an object is.

    camera_from_object: (4, 4) float64; of several cameras that say where they are, in their
    reference. covariance: (6, 6), twist order (metres, radians), camera
    axes, about the object's origin. score in [0, 1]: iou times belief times class probability; 1
    means that it fits to the pixel and nothing else does, 0.5 that two poses fit equally well.
    belief: this pose's share among the different poses found; class_probability: the encoder's, 1
    where the class was given. iou: overlap of silhouette and mask over the known pixels.
    depth_agrees: share of the measured points that lie on the object at this pose; None where none
    came. photo_rms: robust RMS difference of its field's colours and the photo's, in [0, 1]; None
    for what has no field, or where no photo came. photo_correlation: that of their patterns.
    quality: good; ambiguous (another pose fits nearly as well: see alternatives; or the encoder is
    not sure of the class; or the colours do not fit); partial (over a quarter of the outline is
    hidden); poor (the silhouette does not fit the mask). contour_rms_px: robust RMS distance of
    outline and mask border, photo pixels. cost: robust area between silhouette and mask, crop
    pixels squared. visible_fraction: share of the model's outline that could be compared with the
    mask. reason: why the refinement stopped. frames: by how many frames of an object that stands
    still; sighting: for frames to come (both: see `Frame.earlier`).
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
    class_probability: float = 1.0
    photo_rms: float | None = None
    photo_correlation: float | None = None
    depth_agrees: float | None = None
    frames: int = 1
    sighting: Sighting | None = field(default=None, repr=False)
    alternatives: list[ObjectPose] = field(default_factory=list)


def merged(frames: Sequence[Frame]) -> tuple[Frame, dict[int, list[tuple[int, int]]]]:
    """What several frames say of their objects as if it were one frame, labels and start poses
    those of the reference; and where each object is: label -> [(number of a frame, its label
    there)]. Raises FrameError for none, or for a reference_from_camera that is no transform."""
    if not frames:
        raise FrameError("no frame was given")
    for frame in frames:
        where = frame.reference_from_camera
        if where is not None and (problem := transform_problem(np.asarray(where))):
            raise FrameError(f"reference_from_camera: {problem}")
    if len(frames) == 1 and frames[0].reference_from_camera is None:
        return frames[0], {label: [(0, label)] for label in frames[0].labels}
    labels: dict[int, str | None] = {}
    starts: dict[int, list[np.ndarray]] = {}
    places: dict[int, list[tuple[int, int]]] = {}
    numbers: dict[object, int] = {}
    tracked, search = set(), set()
    for i, frame in enumerate(frames):
        for label, name in frame.labels.items():
            same = (name, frame.ids[label]) if frame.ids and label in frame.ids else label
            if name and (labels.get(numbers.get(same)) or name) != name:
                same = label, name  # another object under the same label
            if same not in numbers:
                free = max(places, default=0) + 1
                numbers[same] = free if label in places else label
            number = numbers[same]
            labels[number] = labels.get(number) or name
            places.setdefault(number, []).append((i, label))
            for pose in frame.initial_poses.get(label, ()):
                pose, where = np.asarray(pose, np.float64), frame.reference_from_camera
                if where is not None and not transform_problem(pose):  # else it is told later
                    pose = np.asarray(where) @ pose
                starts.setdefault(number, []).append(pose)
            tracked |= {number} if label in frame.tracked else set()
            search |= {number} if label in frame.search else set()
    one = replace(frames[0], labels=labels, initial_poses=starts, tracked=tracked, search=search)
    return one, places


def weighed(poses: Sequence[ObjectPose], beliefs: Sequence[float], chosen: int) -> ObjectPose:
    """The chosen one of an object's rival poses, the others its alternatives, best first; scores
    and qualities follow from the beliefs (which sum to 1)."""
    poses = [
        replace(
            pose,
            score=float(pose.iou * belief * pose.class_probability),
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
    contradicted = colours_differ(pose.photo_rms, pose.photo_correlation)
    if belief * pose.class_probability < AMBIGUOUS_BELIEF or contradicted:
        return "ambiguous"
    return "partial" if pose.visible_fraction < PARTIAL_VISIBLE else "good"


def likely_alternatives(pose: ObjectPose) -> list[ObjectPose]:
    """The alternatives that are written and published. Only those that follow an object from frame
    to frame want the others too: what is unlikely in one need not be in the next."""
    return [other for other in pose.alternatives if other.belief >= LEAST_BELIEF]


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


def pose_problem(pose: np.ndarray, middle: Sequence[float] = (0.0, 0.0, 0.0)) -> str | None:
    """What is wrong with a start pose (4, 4) of an object whose middle lies at (3,) of its frame;
    None if nothing is."""
    problem = transform_problem(pose)
    if problem:
        return problem
    place = about_point(pose, middle)[:3, 3]
    if place[2] <= 0.0:
        return f"it lies behind the camera (z = {place[2]:.3g} m)"
    if np.abs(place).max() > FARTHEST:
        return f"it lies {np.abs(place).max():.3g} m away (is the unit metres?)"
    return None
