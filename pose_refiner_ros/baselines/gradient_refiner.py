# SPDX-License-Identifier: Apache-2.0
"""The paper's online refinement on the pipeline's observations, one object at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.signed_distance import shrink_pinhole

from .gradient_descent import STEPS, GradientResult, refine_encoder, refine_pose
from .soft_rasterizer import SoftRasterizer

if TYPE_CHECKING:
    from pose_refiner_ros.encoder.inference import PoseEncoder

SIZE = 128  # pixels of the pictures that are compared
# Starts are an encoder's, a degree or two off, nearer than those that `gradient_descent` chose its
# rates for: smaller ones end nearer on vehicles of the validation split. The poses' still reaches
# some 15 degrees in 30 steps.
RATE = 0.01
ENCODER_RATE = 3e-5


class GradientRefiner:
    """Refines poses by the soft rasteriser and Adam, one object at a time.

    size: side in pixels of the pictures; device: of torch. Rasterisers are made when an object is
    first seen.
    """

    def __init__(self, size: int = SIZE, steps: int = STEPS, device: str = "cpu") -> None:
        self.size = size
        self.steps = steps
        # torch may be without CUDA where Warp has it
        self.device = device if torch.cuda.is_available() else "cpu"
        self._rasterizers: dict[str, SoftRasterizer] = {}

    def refine_poses(
        self, observation: Observation, model: ObjectModel, poses: Sequence[np.ndarray]
    ) -> GradientResult:
        """Refine start poses (4, 4) of an object, in its crop's frame, all at once."""
        target, weight, pinhole = self._target(observation)
        count = len(poses)
        return refine_pose(
            self._rasterizer(model),
            np.repeat(target[None], count, 0),
            np.stack(poses),
            pinhole,
            self.steps,
            RATE,
            weight=np.repeat(weight[None], count, 0),
        )

    def refine_encoder(
        self, observation: Observation, model: ObjectModel, encoder: PoseEncoder
    ) -> list[GradientResult]:
        """Refine copies of the encoder's weights, one for each likely hypothesis; poses are in the
        crop's frame."""
        windows, window_pinhole = encoder.windows([observation])
        target, weight, pinhole = self._target(observation)
        results = []
        for k in encoder.likely(windows, window_pinhole):

            def pose_of(network, k=k):
                return network(windows, window_pinhole).poses.camera_from_object[:, k]

            results.append(
                refine_encoder(
                    pose_of,
                    encoder.encoder,
                    self._rasterizer(model),
                    target[None],
                    pinhole,
                    self.steps,
                    ENCODER_RATE,
                    weight=weight[None],
                )
            )
        return results

    def _rasterizer(self, model: ObjectModel) -> SoftRasterizer:
        if model.name not in self._rasterizers:
            self._rasterizers[model.name] = SoftRasterizer(
                [model.mesh], (self.size, self.size), device=self.device
            )
        return self._rasterizers[model.name]

    def _target(self, observation: Observation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mask and weight (S, S) float32 of the crop at this size, and its pinhole (4,)."""
        shape = (self.size, self.size)
        mask = cv2.resize(observation.mask * np.float32(1), shape, interpolation=cv2.INTER_AREA)
        weight = np.ones_like(mask)
        if observation.unknown is not None:
            hidden = observation.unknown * np.float32(1)
            weight -= cv2.resize(hidden, shape, interpolation=cv2.INTER_AREA)
        # area means of 0 and 1 may leave that range by rounding
        mask, weight = mask.clip(0.0, 1.0), weight.clip(0.0, 1.0)
        factor = observation.crop.size / self.size
        return mask, weight, shrink_pinhole(np.asarray(observation.crop.pinhole), factor)
