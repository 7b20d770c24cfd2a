# SPDX-License-Identifier: Apache-2.0
"""Kinds of evidence that pull on poses: a file each. The solver knows none of them.

silhouette.py   the outline against the mask
appearance.py   what a field looks like, moved over the image: coarse to fine
radiance.py     a radiance field's colours against the image, ray by ray (iNeRF, 2021)
depth.py        measured points against the surface
prior.py        what was known of a pose before
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from ..hypotheses import Hypothesis
    from ..normal_equations import NormalEquations, PoseBatch
    from ..observation import Observation


@dataclass(frozen=True, eq=False)
class TermFit:
    """How poses (B) fit what one term has seen of them; `at` gives the fit of one.

    cost: (B,), 0 for a perfect fit; rms: (B,) robust RMS residual, in the term's own unit: photo
    pixels of the outline, or colour in [0, 1]; hessian: (B, 6, 6) Gauss-Newton matrix of this term
    alone; sectors: (B, S, 6) parts of its gradient whose residuals are alike, S a multiple of 12
    (`covariance.py` groups them); slope: (B,) how fast residuals really grow, relative to the
    matrix; least_noise: (B,) of the residuals, in the unit of the cost, where it is known
    beforehand; has_masks: (B,) whether all masks of a pose are in this term as well, as opacity.

    Of silhouettes: iou over known pixels; visible: share of the outline on known pixels. Of
    colours: colour_rms: that of the pixels which both mask and field cover, covered: their share of
    the mask; correlation: of the patterns that field and image show there, whatever the light;
    usual_rms: (B,) what `rms` is where a pose is right, NaN where the field does not say; gain,
    bias: (B, 3) from the field's colours to the image's.
    """

    cost: np.ndarray
    rms: np.ndarray
    hessian: np.ndarray | None = None
    sectors: np.ndarray | None = None
    slope: np.ndarray | None = None
    least_noise: np.ndarray | None = None
    iou: np.ndarray | None = None
    visible: np.ndarray | None = None
    colour_rms: np.ndarray | None = None
    covered: np.ndarray | None = None
    correlation: np.ndarray | None = None
    usual_rms: np.ndarray | None = None
    has_masks: np.ndarray | None = None
    gain: np.ndarray | None = None
    bias: np.ndarray | None = None

    def at(self, i: int) -> TermFit:
        """The fit of pose i."""
        values = [getattr(self, name) for name in _FIELDS]
        return TermFit(*[None if value is None else value[i] for value in values])


_FIELDS = [field.name for field in fields(TermFit)]


class ResidualTerm(Protocol):
    """Evidence that pulls on poses.

    name: by which levels choose it; finest: its sharpest scale; measures: whether it says how well
    a pose fits, and not only leads to one; sees: (B,) bool, the loaded poses of which it has seen
    something.
    """

    name: str
    finest: int
    measures: bool
    sees: np.ndarray

    def observe(self, observations: Sequence[Observation]) -> None:
        """Take in what rows of the batches to come refer to."""

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch: its poses, and rows (index of a pose, what was seen of it), by the poses'
        order."""

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """A level of the solver begins at these poses, those of them that are active."""

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add cost, gradient, Gauss-Newton matrix and weight at the active poses."""

    def fit(self) -> TermFit:
        """How the poses fit that were linearised last."""
