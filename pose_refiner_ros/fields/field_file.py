# SPDX-License-Identifier: Apache-2.0
"""Radiance fields as safetensors files: the field's arrays, and in the header what they mean.

The metadata has two entries: `format`, the name and version of this layout, and `header`, JSON:

    kind        "grid" or "mlp"
    bounds      [[x, y, z], [x, y, z]] metres, object frame
    background  [r, g, b] in [0, 1], or null where it is unknown
    scale       metres per unit of the numbers that the field was trained from
    convention  the frames, in words
    settings    what the kind needs beside its arrays
    record      how the field was trained
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.files.tensor_file import TensorFileError, read_tensors

from .features import FieldFeatures
from .field import FieldError, RadianceField, check_bounds
from .surface import FieldSurface

FORMAT = "pose_refiner_ros field"
VERSION = 1
CONVENTION = (
    "Points are in the object's frame, in metres. Cameras look along +z, x to the right, y down "
    "(OpenCV); pixel (0, 0) is the centre of the top-left pixel. Colours are RGB in [0, 1]."
)
_TRAIN = "pose-refiner field train"


class FieldFileError(FieldError):
    """A field file that cannot be written or read, with the reason."""


def save_field(field: RadianceField, path: str | Path) -> None:
    """Write a field, whole or not at all.

    Raises FieldFileError where the field holds NaN or infinite values.
    """
    from safetensors.numpy import save

    state = dict(field.state())
    for part in (field.features, field.surface):
        state |= {} if part is None else part.state()
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    if (name := _not_finite(state)) is not None:
        raise FieldFileError(
            f"{path} is not written: the field's {name} is NaN or infinite; its training diverged"
        )
    settings = field.settings
    if dataclasses.is_dataclass(settings):
        settings = dataclasses.asdict(settings)
    header = {
        "kind": field.kind,
        "bounds": np.asarray(field.bounds).tolist(),
        "background": None if field.background is None else np.asarray(field.background).tolist(),
        "scale": float(field.record.get("scale", 1.0)),
        "convention": CONVENTION,
        "settings": settings,
        "record": field.record,
    }
    metadata = {"format": f"{FORMAT} {VERSION}", "header": json.dumps(header)}
    write_atomically(Path(path), save(state, metadata))


def load_field(path: str | Path, device="cpu") -> RadianceField:
    """The field of a file, ready to be rendered on the device.

    Raises FieldFileError where the file is not there, is cut short, is no field or one of a newer
    version, or holds something else than its header says.
    """
    try:
        state, metadata = read_tensors(path, "weights of the field", _TRAIN)
    except TensorFileError as error:
        raise FieldFileError(str(error)) from error
    _check_version(path, metadata.get("format", ""))
    try:
        header = json.loads(metadata["header"])
        if header["kind"] not in ("grid", "mlp"):
            raise FieldFileError(f"{path} holds a field of kind {header['kind']!r}: grid or mlp?")
        header["bounds"] = check_bounds(header["bounds"])
        if header["background"] is not None:
            header["background"] = np.array(header["background"], dtype=np.float64).reshape(3)
        if not all(isinstance(header[name], dict) for name in ("record", "settings")):
            raise TypeError("record and settings must be JSON objects")
    except FieldFileError:
        raise
    except KeyError as error:
        raise FieldFileError(
            f"{path}: the header has no {error}: train the field again with `{_TRAIN}`"
        ) from error
    except (TypeError, ValueError) as error:
        raise FieldFileError(f"{path}: its header cannot be used: {error}") from error
    if (name := _not_finite(state)) is not None:
        raise FieldFileError(f"{path}: {name} is NaN or infinite; the field's training diverged")
    if header["kind"] == "grid":
        from .grid import GridField as Field
    else:
        from .mlp import MlpField as Field
    try:
        features, surface = FieldFeatures.taken_from(state), FieldSurface.taken_from(state)
        field = Field.from_state(state, header, device)
        field.features, field.surface = features, surface
        return field
    except FieldError as error:
        raise FieldFileError(f"{path}: {error}") from error


def _check_version(path, found: str) -> None:
    name, _, version = found.rpartition(" ")
    if name != FORMAT or not version.isdigit() or int(version) < 1:
        held = repr(found) if found else "something else"
        raise FieldFileError(f"{path} holds {held}, not a field: make one with `{_TRAIN}`")
    if int(version) > VERSION:
        raise FieldFileError(
            f"{path} was written by a newer version (format {version}; this package reads "
            f"{VERSION}): update the package"
        )


def _not_finite(state: dict[str, np.ndarray]) -> str | None:
    """The first array that holds NaN or infinity."""
    for name, value in state.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            return name
    return None
