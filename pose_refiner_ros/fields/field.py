# SPDX-License-Identifier: Apache-2.0
"""What a radiance field is: density and colour at every point of a box, and pictures of them.

Mildenhall et al., "NeRF: Representing Scenes as Neural Radiance Fields for View Synthesis" (2020),
section 4: a ray collects the colour C = Σ wᵢ cᵢ with wᵢ = Tᵢ (1 - exp(-σᵢ δᵢ)), where Tᵢ is the
light that is left at sample i. A field lives in the frame of its object (or scene), in metres.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:  # torch is needed to look into a field, not to name one
    from torch import Tensor, device

    from .features import FieldFeatures
    from .surface import FieldSurface


class FieldError(ValueError):
    """A field that cannot be made, trained or rendered, with the reason."""


@dataclass(frozen=True, eq=False)
class RenderedRays:
    """What R rays see.

    colour: (R, 3) RGB, premultiplied: what the field adds, black where it is empty.
    opacity: (R,) in [0, 1], the share of light that the field stops.
    depth: (R,) metres along the ray, Σ wᵢ tᵢ / Σ wᵢ; 0 where nothing is hit.
    """

    colour: Tensor
    opacity: Tensor
    depth: Tensor

    def over(self, background) -> Tensor:
        """(R, 3) the colour in front of a background, (3,) or (R, 3)."""
        import torch

        background = torch.as_tensor(background).to(self.colour)
        return self.colour + (1.0 - self.opacity[:, None]) * background


class RadianceField(Protocol):
    """Density and colour in a box. Tensors are float32, on the field's device."""

    kind: ClassVar[str]  # of its file: "grid" or "mlp"
    bounds: np.ndarray  # (2, 3) float64 metres, object frame: opposite corners of the box
    background: np.ndarray | None  # (3,) RGB behind all that it was trained on; None: unknown
    settings: Any  # dataclass or dict that from_state needs beside the tensors; JSON-able
    record: dict  # how it was trained, JSON-able; "scale": metres per unit of the source's numbers
    device: device
    features: FieldFeatures | None  # of the photos that it was trained from
    surface: FieldSurface | None  # of an object, as triangles

    def query(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) points and (N, 3) unit directions of view -> density (N,) 1/m, colour (N, 3)."""

    def render(self, origins: Tensor, directions: Tensor) -> RenderedRays:
        """Rays (R, 3), (R, 3), unit directions, object frame. Differentiable by both."""

    def state(self) -> dict[str, np.ndarray]:
        """All arrays that the field consists of."""

    @classmethod
    def from_state(
        cls, state: Mapping[str, np.ndarray], header: Mapping[str, Any], device="cpu"
    ) -> RadianceField:
        """The field again. header: bounds, background, settings, record as in `field_file`.

        Raises FieldError where arrays are missing or of the wrong shape (`check_state`).
        """


def check_bounds(bounds) -> np.ndarray:
    """(2, 3) float64, the lower corner first. Raises FieldError."""
    bounds = np.asarray(bounds, dtype=np.float64)
    if bounds.shape != (2, 3) or not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
        raise FieldError(
            f"bounds are {bounds.tolist()}: give the lower and the upper corner of a box, (2, 3) "
            "in metres"
        )
    return bounds


def check_state(
    state: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int | None, ...]]
) -> None:
    """Raises FieldError unless the arrays have these names and shapes; None is any length."""
    for name in sorted({*expected, *state}):
        if name not in state:
            raise FieldError(f"{name} is missing; the field needs {', '.join(sorted(expected))}")
        if name not in expected:
            raise FieldError(f"{name} is unknown; the field has {', '.join(sorted(expected))}")
        found, wanted = tuple(state[name].shape), expected[name]
        if len(found) != len(wanted) or any(
            w not in (None, f) for f, w in zip(found, wanted, strict=True)
        ):
            shown = ", ".join("any" if w is None else str(w) for w in wanted)
            raise FieldError(f"{name} has shape {found}; the field needs ({shown})")


def taken_part(
    state: dict[str, np.ndarray], prefix: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
    """Arrays whose names begin with a prefix, without it, which `state` loses; None where it has
    none. shapes: (N, *shape) of each. Raises FieldError."""
    own = {name: state.pop(prefix + name, None) for name in shapes}
    if all(array is None for array in own.values()):
        return None
    for name, shape in shapes.items():
        if own[name] is None or own[name].shape[1:] != shape:
            wanted = ", ".join(("any", *(str(n) for n in shape)))
            raise FieldError(f"{prefix}{name} is missing, or its shape is not ({wanted})")
    return own
