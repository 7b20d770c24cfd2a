# SPDX-License-Identifier: Apache-2.0
"""Encoders as safetensors files: the weights, and in the header what they belong to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pose_refiner_ros.files.atomic import write_atomically
from pose_refiner_ros.files.tensor_file import TensorFileError, read_tensors

from .network import Encoder, EncoderError, EncoderSettings

FORMAT = "pose_refiner_ros encoder 1"


def save_encoder(encoder: Encoder, path: str | Path, record: dict) -> None:
    """Write an encoder, half precision, with a record of its training (anything JSON holds).

    Raises EncoderError, and writes nothing, where a weight is not a number of half precision.
    """
    from safetensors.torch import save

    tensors = {name: value.half().contiguous() for name, value in encoder.state_dict().items()}
    if not all(value.isfinite().all() for value in tensors.values()):
        raise EncoderError(
            f"{path} is not written: the encoder has weights that are NaN or too large for half "
            "precision; its training has diverged"
        )
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(dataclasses.asdict(encoder.settings)),
        "training": json.dumps(record),
    }
    write_atomically(Path(path), save(tensors, metadata))


def load_encoder(path: str | Path) -> tuple[Encoder, dict]:
    """The encoder of a file, ready to be used, and the record of its training.

    Raises EncoderError where the file is not there, is no encoder, or is one of another
    architecture.
    """
    import torch

    path = Path(path)
    try:
        arrays, metadata = read_tensors(path, "encoder weights", "pose-refiner encoder train")
    except TensorFileError as error:
        raise EncoderError(str(error)) from error
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    if metadata.get("format") != FORMAT:
        raise EncoderError(
            f"{path} holds {metadata.get('format', 'weights of something else')!r}, not "
            f"{FORMAT!r}: train it again with `pose-refiner encoder train`"
        )
    try:
        settings = json.loads(metadata["settings"])
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        encoder = Encoder(EncoderSettings(**settings))
        record = json.loads(metadata.get("training", "{}"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EncoderError(f"{path}: its settings cannot be used: {error}") from error
    expected = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != found:
        name = next(n for n in sorted({*expected, *found}) if expected.get(n) != found.get(n))
        raise EncoderError(
            f"{path} is of another architecture: {name} is {found.get(name, 'missing')}, the "
            f"encoder of its settings has {expected.get(name, 'no such tensor')}; train it again "
            "with `pose-refiner encoder train`"
        )
    if not all(value.isfinite().all() for value in tensors.values()):
        raise EncoderError(f"{path} holds NaN or infinite weights: its training has diverged")
    encoder.load_state_dict(tensors)
    return encoder.eval(), record if isinstance(record, dict) else {}
