# SPDX-License-Identifier: Apache-2.0
"""What the package brings along: an object library of vehicles, and the encoder that knows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pose_refiner_ros.objects.model import ObjectModel

if TYPE_CHECKING:  # torch is imported where an encoder is used
    from pose_refiner_ros.encoder.inference import PoseEncoder
    from pose_refiner_ros.objects.library import ObjectLibrary

VEHICLES = Path(__file__).parent / "data" / "vehicles"
OBJECTS = VEHICLES / "vehicles.yaml"
ENCODER = VEHICLES / "encoder.safetensors"
EULER_ENCODER = VEHICLES / "encoder_euler_cosine.safetensors"  # the paper's head, for comparison
NO_ENCODER = "none"


class EncoderChoiceError(ValueError):
    """An encoder that cannot be used, or not with this library or refinement."""


def choose_encoder(
    library: ObjectLibrary, choice: str = "", device: str = "cpu", refinement: str = "solver"
) -> PoseEncoder | None:
    """The encoder for a library, or None where there is nothing for it to know.

    choice: a file of weights; "none"; or "", the package's own where an object of the library has
    a category that it knows. device: the pipeline's. Objects whose category the encoder does not
    know are named in the library's warnings.

    Raises EncoderChoiceError where the weights cannot be used, where nothing of the library belongs
    to a given file, or where the refinement needs an encoder.
    """
    categories = categories_of(library)
    encoder = None
    if choice != NO_ENCODER and (choice or categories):
        import torch

        from pose_refiner_ros.encoder.inference import PoseEncoder
        from pose_refiner_ros.encoder.network import EncoderError

        on_gpu = device.startswith("cuda") and torch.cuda.is_available()
        weights = Path(choice).expanduser() if choice else ENCODER
        try:
            encoder = PoseEncoder.load(weights, device if on_gpu else "cpu")
        except EncoderError as error:
            raise EncoderChoiceError(str(error)) from error
        _check(library, categories, encoder, choice)
        if not choice and not set(categories) & set(encoder.classes):
            encoder = None
    if refinement == "gradient_encoder" and encoder is None:
        why = "choose one" if choice == NO_ENCODER else "no object has a category that it knows"
        raise EncoderChoiceError(
            f"gradient_encoder changes the weights of an encoder, and there is none: {why}, or "
            "take another refinement"
        )
    return encoder


def categories_of(library: Mapping[str, ObjectModel]) -> dict[str, list[str]]:
    """Category -> names of its objects."""
    categories: dict[str, list[str]] = {}
    for model in library.values():
        if model.category is not None:
            categories.setdefault(model.category, []).append(model.name)
    return categories


def _check(
    library: ObjectLibrary, categories: dict[str, list[str]], encoder: PoseEncoder, choice: str
) -> None:
    known = ", ".join(encoder.classes)
    if choice and not set(categories) & set(encoder.classes):
        raise EncoderChoiceError(
            f"the encoder {choice} knows {known}, and no object of the library has one of these as "
            "its category: give objects a category, or leave the encoder out"
        )
    for category, (first, *others) in categories.items():
        if category not in encoder.classes:
            text = f"its category {category!r} is no class of the encoder, which knows {known}"
            for name in (first, *others):
                library.warnings.setdefault(name, []).append(text)
        for name in others:
            library.warnings.setdefault(name, []).append(
                f"{first} has the category {category!r} as well: of what the encoder takes for it "
                f"each is named {first}"
            )
