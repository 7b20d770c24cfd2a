# SPDX-License-Identifier: Apache-2.0
"""What the blocks of `evaluate inerf` share: both methods on one photo, timed as a whole."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_refiner_ros.baselines.photometric_descent import PhotometricDescent
from pose_refiner_ros.evaluation.inerf_protocol import InerfCounts, Protocol, Run, summary
from pose_refiner_ros.evaluation.report import EvaluationError, Progress, each
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_image
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.scene_localiser import field_model
from pose_refiner_ros.settings import Settings

RAYS = 1024
SAMPLING = "interest_region"
RECORD_EVERY = 5
BEHIND_SCENE = (0.0, 0.0, 0.0)  # of the little light that passes a scene, as in NeRF's LLFF
NAME = "object"


@dataclass(eq=False)
class Tools:
    """protocol and field are in one frame. refine, descend: the two methods."""

    protocol: Protocol
    field: RadianceField
    device: str
    seed: int
    counts: InerfCounts
    progress: Progress
    _refiners: dict[tuple[bool, int], Refiner] = dataclasses.field(default_factory=dict)

    def each(self, block: str, trials: Iterable) -> Iterator:
        return each(self.progress, block, trials)

    def refiner(self, exposure: bool = True, capacity: int = 64) -> Refiner:
        """The fast method; made once for each setting.

        Raises EvaluationError where the field is no grid.
        """
        if not isinstance(self.field, GridField):
            raise EvaluationError(
                f"--field is a field of kind {self.field.kind!r}; the fast method needs a grid"
            )
        key = (exposure, capacity)
        if key not in self._refiners:
            settings = Settings(photo_rays=RAYS, exposure=exposure)
            models = [field_model(NAME, self.field)]
            self._refiners[key] = Refiner(models, self.device, capacity, settings, self.seed)
        return self._refiners[key]

    def refine(
        self, view: int, starts: Sequence[np.ndarray], image=None, exposure: bool = True
    ) -> Run:
        """The best of the fast method, with all that is done for a new photo."""
        refiner = self.refiner(exposure)
        begun = time.perf_counter()
        best = refine(refiner, [self.observe(view, image)], [starts])[0][0]
        seconds = time.perf_counter() - begun
        return Run(self.protocol.truths[view], best.reference_from_object, seconds, best)

    def observe(self, view: int, image: np.ndarray | None = None) -> Observation:
        """A test photo, or another image (H, W, 3) that its camera took."""
        protocol = self.protocol
        image = protocol.images[view] if image is None else image
        return observe_image(image, protocol.cameras[view], protocol.background)

    def descend(
        self,
        view: int,
        start: np.ndarray,
        steps: int | None = None,
        sampling: str = SAMPLING,
        rays: int = RAYS,
        image=None,
        loss: str = "rgb",
        field: RadianceField | None = None,
    ) -> Run:
        """The paper's refinement of one pose."""
        protocol = self.protocol
        behind = BEHIND_SCENE if protocol.scene is not None else protocol.background
        descent = PhotometricDescent(
            field or self.field, sampling, rays, loss, behind, seed=self.seed
        )
        image = protocol.images[view] if image is None else image
        K, steps = protocol.cameras[view].intrinsics.copy(), steps or self.counts.steps
        found = descent.run(image, K, start[None], steps, RECORD_EVERY)
        seconds = float(found.seconds[-1])
        return Run(protocol.truths[view], found.camera_from_object[0], seconds, found)

    def summary(self, runs: Sequence[Run]) -> dict[str, Any]:
        """What a table says of refined poses."""
        return summary(runs, self.protocol.scene)

    def warm_up(self) -> None:
        """Compile kernels and fill caches, so that the first run takes no longer than others."""
        start = self.protocol.starts[0, 0]
        self.refine(0, [start])
        self.descend(0, start, 2)


def refine(
    refiner: Refiner, observations: Sequence[Observation], starts: Sequence[Sequence[np.ndarray]]
) -> list[list[Hypothesis]]:
    """Results of photos of the object from poses (4, 4), best first."""
    hypotheses = [[Hypothesis(NAME, start) for start in own] for own in starts]
    return refiner.refine([[seen] for seen in observations], hypotheses, keep=2, given=False)
