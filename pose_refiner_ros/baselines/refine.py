# SPDX-License-Identifier: Apache-2.0
"""The procedures of Palazzi et al. behind the call of the refiner: a yardstick for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.refiner import Refiner

if TYPE_CHECKING:
    from pose_refiner_ros.encoder.inference import PoseEncoder

    from .gradient_refiner import GradientRefiner


class Baseline:
    """Refines hypotheses by another procedure than the package's own, and measures them with it.

    kind: gradient_pose, gradient_encoder, or none: the likeliest pose stays as it is guessed.
    refiner: measures what comes out; encoder: whose weights gradient_encoder changes; device: of
    torch.
    """

    def __init__(
        self, kind: str, refiner: Refiner, encoder: PoseEncoder | None, device: str
    ) -> None:
        self.kind = kind
        self._refiner, self._encoder, self._device = refiner, encoder, device
        self._descent: GradientRefiner | None = None

    def refine(
        self,
        observations: Sequence[Sequence[Observation]],
        hypotheses: Sequence[Sequence[Hypothesis]],
        keep: int = 4,
        report: Callable[[int | None, str], None] = lambda label, text: None,
    ) -> list[list[Hypothesis]]:
        """As `Refiner.refine`; the first observation of each object alone is used."""
        results = []
        for own, starts in zip(observations, hypotheses, strict=True):
            starts = list(starts)[: 1 if self.kind == "none" else keep]
            if starts and self.kind != "none":
                starts = self._descend(own[0], starts, report)
            results.append(self._refiner.merge(self._refiner.evaluate(own, starts), own))
        return results

    def _descend(self, seen: Observation, starts: Sequence[Hypothesis], report) -> list[Hypothesis]:
        """After the paper's 30 steps."""
        if self._descent is None:
            from .gradient_refiner import GradientRefiner

            self._descent = GradientRefiner(device=self._device)
        name = starts[0].object
        model = self._refiner.models[name]
        encoder = self._encoder if self.kind == "gradient_encoder" else None
        if encoder is not None and model.category in encoder.classes:
            found = self._descent.refine_encoder(seen, model, encoder)
        else:
            if self.kind == "gradient_encoder":
                report(
                    seen.label,
                    f"the encoder does not know {name}: the error goes into the pose instead of "
                    "into its weights",
                )
            poses = [seen.crop_from_reference @ one.reference_from_object for one in starts]
            found = [self._descent.refine_poses(seen, model, poses)]
        reached = np.concatenate([result.camera_from_object.cpu().numpy() for result in found])
        start, back = starts[0], seen.reference_from_crop
        return [replace(start, reference_from_object=back @ pose) for pose in reached]
