# SPDX-License-Identifier: Apache-2.0
"""The encoder at work: masks in, classes and pose hypotheses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from pose_refiner_ros.geometry.pose import in_axes, rigid
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.torch_threads import one_thread

from .network import Encoder, EncoderError
from .pose_heads import PoseHypotheses, camera_from_ray
from .weights import load_encoder
from .window import mask_window

UNLIKELY = 0.02  # a hypothesis with less weight is left alone


@dataclass(frozen=True, eq=False)
class PoseHypothesis:
    """A pose that the encoder holds possible.

    camera_from_object: (4, 4) float64; weight: its share among the hypotheses; covariance: (6, 6),
    twist order, camera axes, about the object's origin; distance_sigma: standard deviation of the
    log of the distance, which the size of the object leaves open.
    """

    camera_from_object: np.ndarray
    weight: float
    covariance: np.ndarray
    distance_sigma: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the encoder says of one mask: class -> probability, and poses, the likeliest first."""

    class_probabilities: dict[str, float]
    hypotheses: list[PoseHypothesis]

    @property
    def likely(self) -> list[PoseHypothesis]:
        """The hypotheses worth refining: the best, and others that are not ruled out."""
        return [self.hypotheses[0]] + [h for h in self.hypotheses[1:] if h.weight >= UNLIKELY]

    @property
    def best_class(self) -> str:
        return max(self.class_probabilities, key=self.class_probabilities.__getitem__)

    def nearest(self, camera_from_object: np.ndarray) -> PoseHypothesis:
        """The hypothesis that is turned least from a pose (4, 4)."""
        R = camera_from_object[:3, :3]
        return max(self.hypotheses, key=lambda h: float((h.camera_from_object[:3, :3] * R).sum()))

    def moved(self, reference_from_camera: np.ndarray) -> Estimate:
        """The same with poses in a reference that the camera is (4, 4) in."""
        turn = reference_from_camera[:3, :3]
        hypotheses = [
            replace(
                one,
                camera_from_object=reference_from_camera @ one.camera_from_object,
                covariance=in_axes(turn, one.covariance),
            )
            for one in self.hypotheses
        ]
        return Estimate(self.class_probabilities, hypotheses)

    def share_of(self, camera_from_object: np.ndarray) -> float:
        """The weight of the hypothesis nearest to a pose; never so little that nothing else could
        speak for it."""
        return UNLIKELY + (1.0 - UNLIKELY) * self.nearest(camera_from_object).weight


class PoseEncoder:
    """An encoder with its weights, for masks of any camera. Not thread-safe.

    device: of torch: cpu, cuda or cuda:N. Raises EncoderError where the weights cannot be used.
    """

    def __init__(self, encoder: Encoder, record: dict | None = None, device: str = "cpu") -> None:
        if encoder.settings.window != "crop":
            raise EncoderError(
                f"the encoder's window is {encoder.settings.window!r}: it knows one camera only. "
                "Train one with the window 'crop' for use on photos"
            )
        self.encoder = encoder.eval().to(device)
        self.record = record or {}
        self.device = torch.device(device)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> PoseEncoder:
        """From a safetensors file that `pose-refiner encoder train` has written."""
        encoder, record = load_encoder(path)
        try:
            return cls(encoder, record, device)
        except EncoderError as error:
            raise EncoderError(f"{path}: {error}") from None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.encoder.settings.classes

    @property
    def needs_photo(self) -> bool:
        """Whether it looks at colours as well: `Observation.rgb` must be there."""
        return self.encoder.settings.input == "rgb_mask"

    def windows(self, observations: Sequence[Observation]) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, S, S) uint8 and the windows' pinholes (B, 4), on the encoder's device. Raises
        EncoderError where a photo is needed and is not there."""
        if self.needs_photo and any(seen.rgb is None for seen in observations):
            raise EncoderError("the encoder looks at the photo, and none came with the masks")
        size = self.encoder.settings.size
        pairs = [
            mask_window(
                seen.mask,
                seen.unknown,
                seen.crop.pinhole,
                size,
                image=seen.rgb if self.needs_photo else None,
            )
            for seen in observations
        ]
        windows = torch.from_numpy(np.stack([window for window, _ in pairs]))
        pinhole = torch.from_numpy(np.stack([pinhole for _, pinhole in pairs]).astype(np.float32))
        return windows.to(self.device), pinhole.to(self.device)

    @torch.no_grad()
    def likely(self, window: torch.Tensor, pinhole: torch.Tensor) -> list[int]:
        """Which hypotheses of a window (1, C, S, S) are worth refining, the likeliest first: their
        places in the network's output."""
        weights = self.encoder(window, pinhole).poses.logits.softmax(1)[0]
        best, *others = weights.argsort(descending=True).tolist()
        return [best] + [k for k in others if weights[k] >= UNLIKELY]

    @torch.inference_mode()
    def estimate(self, observations: Sequence[Observation]) -> list[Estimate]:
        """Classes and hypotheses of each mask, one batch."""
        if not observations:
            return []
        windows, pinhole = self.windows(observations)
        with one_thread():
            found = self.encoder(windows, pinhole)
        probabilities = found.class_logits.softmax(1).tolist()
        weights = found.poses.logits.softmax(1).tolist()
        covariances = hypothesis_covariances(found.poses, pinhole, self.encoder.settings.size)
        covariances = covariances.double().cpu().numpy()
        distance = (found.poses.log_sigma[..., 2].exp() * 2.0**0.5).tolist()
        poses = found.poses.camera_from_object.double().cpu().numpy()
        estimates = []
        for i, seen in enumerate(observations):
            camera_from_crop = seen.crop.crop_from_camera.T
            hypotheses = [
                PoseHypothesis(
                    rigid(camera_from_crop) @ poses[i, k],
                    weights[i][k],
                    in_axes(camera_from_crop, covariances[i, k]),
                    distance[i][k],
                )
                for k in np.argsort(weights[i])[::-1]
            ]
            classes = dict(zip(self.classes, probabilities[i], strict=True))
            estimates.append(Estimate(classes, hypotheses))
        return estimates


def hypothesis_covariances(poses: PoseHypotheses, pinhole: torch.Tensor, size: int) -> torch.Tensor:
    """(B, K, 6, 6) from the sigmas of hypotheses: twist order, camera axes, about the origin."""
    turn, _, half = camera_from_ray(pinhole, size)
    t = poses.camera_from_object[..., :3, 3]
    jacobian = torch.zeros(*t.shape[:2], 6, 6, dtype=t.dtype, device=t.device)
    jacobian[..., 0, 0] = half[:, None, 0] * t[..., 2]
    jacobian[..., 1, 1] = half[:, None, 1] * t[..., 2]
    jacobian[..., :3, 2] = t
    jacobian[..., 3:, 3:] = turn[:, None]
    variance = 2.0 * (2.0 * poses.log_sigma).exp()  # the sigmas are scales of Laplace's law
    return jacobian * variance[..., None, :] @ jacobian.transpose(2, 3)
