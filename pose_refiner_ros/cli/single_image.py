# SPDX-License-Identifier: Apache-2.0
"""The `refine` command: one image from files, its poses to a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pose_refiner_ros import shipped
from pose_refiner_ros.frame import Frame, ObjectPose, likely_alternatives
from pose_refiner_ros.geometry.camera_file import load_camera
from pose_refiner_ros.objects.library import ObjectLibrary

if TYPE_CHECKING:
    from pose_refiner_ros.encoder.inference import PoseEncoder


class InputError(ValueError):
    """A file or an option that cannot be used; the message says which, why and what to do."""


@dataclass
class Problem:
    """Something of the input that was left out. label: in the mask, or None for all of it."""

    label: int | None
    text: str

    def __str__(self) -> str:
        return self.text if self.label is None else f"label {self.label}: {self.text}"


def read_inputs(
    image: Path,
    masks: Path,
    camera: Path,
    objects: Path | None = None,
    label_options: Sequence[str] = (),
    init: Path | None = None,
    encoder: str = "",
    device: str = "cpu",
    refinement: str = "solver",
) -> tuple[Frame, ObjectLibrary, PoseEncoder | None, list[Problem]]:
    """Reads and checks everything that `refine` needs.

    Args:
        image: a photo that OpenCV can read.
        masks: label image, 8 or 16 bit grey, 0 = background; a black and white mask is one label.
        camera: see `load_camera`.
        objects: a library YAML or a BOP models/ folder; None: the package's vehicles.
        label_options: "1=mug" says that label 1 is the object (name, alias or BOP id) mug.
        init: a file that `refine` has written, whose poses are start poses.
        encoder, device, refinement: see `choose_encoder`.

    Raises:
        InputError, CameraError, ObjectLibraryError, EncoderChoiceError: with a message for the
            user.
    """
    calibration = load_camera(camera)
    rgb = _read_rgb(image)
    calibration.check_image(rgb, f"image {image}")
    label_image = read_label_image(masks)
    calibration.check_image(label_image, f"mask {masks}")
    library = ObjectLibrary.load(objects or shipped.OBJECTS)
    problems = [Problem(None, f"object {n} left out: {why}") for n, why in library.problems.items()]
    chosen = shipped.choose_encoder(library, encoder, device, refinement)
    for name, texts in library.warnings.items():
        problems += [Problem(None, f"object {name}: {text}") for text in texts]

    present = [int(label) for label in np.unique(label_image) if label != 0]
    if not present:
        raise InputError(f"mask {masks} is empty: every pixel is 0 (background)")
    labels = _names_of_labels(present, label_options, library, chosen is not None)
    for label in present:
        if label not in labels:
            text = f"no object for it, so it only hides others; say which with --label {label}=NAME"
            problems.append(Problem(label, text))
    starts = _read_start_poses(init, labels) if init is not None else {}
    return Frame(label_image, calibration, labels, starts, rgb), library, chosen, problems


def read_label_image(path: Path) -> np.ndarray:
    """(H, W) integer label image. A colour file is taken only where its channels are equal."""
    labels = _read(path, cv2.IMREAD_UNCHANGED, "mask")
    if labels.ndim == 3:
        if (labels[..., :3] != labels[..., :1]).any():
            raise InputError(
                f"mask {path} is a colour picture; save instance numbers as an 8 or 16 bit grey "
                "PNG (not as palette or RGB), 0 = background"
            )
        labels = labels[..., 0]
    if labels.dtype.kind != "u":
        raise InputError(
            f"mask {path} holds {labels.dtype}; it must hold whole numbers, 8 or 16 bit"
        )
    return labels


def to_json(
    frame: Frame, poses: Sequence[ObjectPose], problems: Sequence[Problem], image: Path
) -> str:
    """What `refine` writes, as JSON. Poses in metres, covariances in twist order (v, w)."""
    content = {
        "image": str(image),
        "camera": {
            "width": frame.camera.width,
            "height": frame.camera.height,
            "K": frame.camera.intrinsics.ravel().tolist(),
            "distortion_model": frame.camera.distortion_model,
            "D": frame.camera.distortion.tolist(),
        },
        "objects": [
            {
                "label": int(pose.label),
                "name": pose.name,
                "camera_from_object": _matrix(pose.camera_from_object),
                "covariance": _matrix(pose.covariance),
                "score": float(pose.score),
                "class_probability": float(pose.class_probability),
                "quality": pose.quality,
                "iou": float(pose.iou),
                "contour_rms_px": float(pose.contour_rms_px),
                "visible_fraction": float(pose.visible_fraction),
                "photo_rms": pose.photo_rms,
                "photo_correlation": pose.photo_correlation,
                "depth_agrees": pose.depth_agrees,
                "iterations": int(pose.iterations),
                "reason": pose.reason,
                "alternatives": [
                    {
                        "camera_from_object": _matrix(other.camera_from_object),
                        "score": float(other.score),
                        "iou": float(other.iou),
                    }
                    for other in likely_alternatives(pose)
                ],
            }
            for pose in poses
        ],
        "problems": [{"label": problem.label, "text": problem.text} for problem in problems],
    }
    return readable_json(content)


def readable_json(content: dict) -> str:
    """JSON with rows of numbers on one line each: matrices are to be read."""
    text = json.dumps(content, indent=1)
    row = re.compile(r"\[\s*([^\[\]{}\"]+?)\s*\]")
    return row.sub(lambda m: "[" + " ".join(m.group(1).split()) + "]", text) + "\n"


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file; InputError, which begins with `what`, where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not text, so it is not the JSON of refine") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path} is not JSON: {error}") from error


def wrong_form(error: Exception) -> str:
    """What is wrong with JSON of another form, in a few words."""
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _names_of_labels(
    present: Sequence[int], options: Sequence[str], library: ObjectLibrary, has_encoder: bool
) -> dict[int, str | None]:
    """label -> object name: as --label says; else as the library's `label` entries say; else the
    library's only object; else None, for the encoder to say."""
    known = ", ".join(library)
    labels: dict[int, str | None] = {}
    for option in options:
        number, _, name = option.partition("=")
        if not number.strip().isdecimal() or not name:
            raise InputError(
                f"--label {option}: write LABEL=NAME, such as --label 1={next(iter(library))}"
            )
        model = library.resolve(name.strip())
        if model is None:
            raise InputError(f"--label {option}: no object {name!r} in the library; it has {known}")
        if int(number) in labels:
            raise InputError(f"--label {option}: label {int(number)} has a name already")
        if int(number) not in present:
            in_mask = ", ".join(map(str, present[:20]))
            raise InputError(f"--label {option}: the mask has no label {number}; it has {in_mask}")
        labels[int(number)] = model.name
    for label in present:
        model = library.by_label(label)
        if label not in labels and model is not None:
            labels[label] = model.name
    if not labels and len(library) == 1:
        return dict.fromkeys(present, next(iter(library)))
    if has_encoder:
        return {label: labels.get(label) for label in present}
    if not labels:
        raise InputError(
            f"which object is label {present[0]}? The library has {known}: say it with "
            f"--label {present[0]}=NAME, or give objects a 'label' in the library file"
        )
    return labels


def _read_start_poses(path: Path, labels: Mapping[int, str | None]) -> dict[int, list[np.ndarray]]:
    """label -> start poses, from objects with the same label and name, or without a label. Where
    the name is not known yet the label must be the same."""
    content = read_json(path, "start poses")
    try:
        entries = content["objects"] if isinstance(content, dict) else content
        starts: dict[int, list[np.ndarray]] = {}
        for entry in entries:
            pose = np.array(entry["camera_from_object"], np.float64)
            if pose.shape != (4, 4) or not np.isfinite(pose).all():
                raise ValueError(f"a camera_from_object is not 4x4 finite numbers: {pose.tolist()}")
            for label, name in labels.items():
                same_name = entry.get("name", name) == name or (name is None and "label" in entry)
                if same_name and entry.get("label", label) == label:
                    starts.setdefault(label, []).append(pose)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"start poses {path} are not in the form that refine writes, "
            f'{{"objects": [{{"label": 1, "camera_from_object": 4x4}}]}}: {wrong_form(error)}'
        ) from error
    if not starts:
        named = ", ".join(f"{label}={name or '?'}" for label, name in labels.items())
        raise InputError(f"start poses {path} have none for the labels of the mask ({named})")
    return starts


def _read_rgb(path: Path) -> np.ndarray:
    return cv2.cvtColor(_read(path, cv2.IMREAD_COLOR, "image"), cv2.COLOR_BGR2RGB)


def _read(path: Path, flags: int, what: str) -> np.ndarray:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from error
    picture = cv2.imdecode(data, flags) if data.size else None
    if picture is None:
        raise InputError(f"{what} {path} is not a picture that OpenCV can read")
    return picture


def _matrix(matrix: np.ndarray) -> list[list[float]]:
    return np.asarray(matrix, np.float64).tolist()
