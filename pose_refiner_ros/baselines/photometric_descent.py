# SPDX-License-Identifier: Apache-2.0
"""The paper's refinement: down the gradient of the photometric error, through the field.

Yen-Chen et al., "iNeRF: Inverting Neural Radiance Fields for Pose Estimation" (2021), section IV-A.
The pose T, from the camera's frame to the model's, starts at T0 and is moved by a screw motion,

    T = exp([S]θ) T0,    S = (ω, v),    K = (Iθ + (1 - cos θ)[ω] + (θ - sin θ)[ω]²) v,

K being the translation of exp([S]θ) (equations 3 and 4; ω is a unit vector). The six numbers Sθ
are what Adam changes, as in the paper: θ is the length of the rotation part and ω its direction, so
T is a rigid motion whatever they are. Some re-implementations change ω, v and θ apart from each
other and leave ω any length, or change the matrix itself: both leave SE(3). `se3.exp_se3` is this
exponential, with the translation first.

The motion is on the left of a transform into the model's frame: it turns about the model's origin,
not about the camera, which is the paper's reason for it (turning the camera moves the object out of
sight, turning about the object does not). This package keeps camera_from_object, T's inverse:

    camera_from_object = camera_from_object_0 exp(-[S]θ).

What else the paper says, and what it does not:

* Each element of Sθ starts at random, N(0, 1e-6), which is read as the standard deviation here. As
  a variance it would be σ = 1e-3, a tenth of the first step: too little to matter, either way.
* Adam, β = (0.9, 0.999), and a rate α0 0.8^(t/100). α0 is not in the text; 0.01 is what
  re-implementations use. It is in radians and in units of the scene, which are about as large as
  the object in NeRF's scenes: for a field that is much smaller or larger than a metre, say so by
  `unit`.
* A new batch of rays for each step (`ray_sampling`), the loss of equation 1 (`photometric_loss`).
* The last pose is the result. Losses of different batches cannot be compared.

Poses of a batch have a loss, rays and moments each: nothing that happens to one, NaN included,
reaches another.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.rays import camera_rays, cross_box
from pose_refiner_ros.refinement.ray_sampling import ITERATIONS, draw_pixels, pixels_to_draw

from . import se3
from .photometric_loss import LOSSES, photometric_loss

STEPS = 300
RAYS = 1024
RATE = 0.01  # α0: radians and units per step
_BETAS = (0.9, 0.999)
_DECAY = 0.8  # of the rate, in 100 steps
_SIGMA = 1e-6  # of Sθ at the start


class PhotometricDescentError(ValueError):
    """Photos, poses or settings that cannot be refined, with the reason."""


@dataclass(frozen=True, eq=False)
class DescentResult:
    """Where B poses went.

    camera_from_object: (B, 4, 4) float64, after the last step.
    history: (T, B, 4, 4) float64, poses after `at_step` steps; the given ones first, the last last.
    at_step: (T,) int. seconds: (T,) since the start.
    losses: (steps, B) float32, of each step's own rays before it; NaN where one was not finite.
    """

    camera_from_object: np.ndarray
    history: np.ndarray
    at_step: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


class PhotometricDescent:
    """The paper's refinement in a given field.

    sampling, iterations: see `ray_sampling`. rays: per pose and step; the paper tries 512 to 2048.
    loss: "rgb" or "uv". background: (3,) RGB behind the object; the field's own without it.
    rate: α0. unit: metres that Adam counts as one, usually about the object's radius.
    seed: of rays and start.

    Raises PhotometricDescentError, and RaySamplingError for sampling and photos.
    """

    def __init__(
        self,
        field: RadianceField,
        sampling: str = "interest_region",
        rays: int = RAYS,
        loss: str = "rgb",
        background=None,
        iterations: int = ITERATIONS,
        rate: float = RATE,
        unit: float = 1.0,
        seed: int = 0,
    ):
        if background is None:
            background = field.background
        if background is None:
            raise PhotometricDescentError(
                "what is behind the object is unknown to the field: give the background's colour"
            )
        if loss not in LOSSES:
            raise PhotometricDescentError(f"loss is {loss!r}: give one of {', '.join(LOSSES)}")
        if rays < 1 or not (0.0 < rate < math.inf and 0.0 < unit < math.inf):
            raise PhotometricDescentError(
                f"rays is {rays}, rate {rate} and unit {unit}; give 1 or more rays, and a rate and "
                "a unit above 0"
            )
        self._field, self._device = field, field.device
        self._background = torch.as_tensor(
            np.asarray(background), dtype=torch.float32, device=field.device
        )
        if self._background.shape != (3,):
            raise PhotometricDescentError(f"background is {background}; give (r, g, b) in [0, 1]")
        self._unit = torch.tensor([unit] * 3 + [1.0] * 3, device=field.device)
        self._sampling, self._iterations, self._rays = sampling, iterations, rays
        self._loss, self._rate, self._seed = loss, rate, seed

    def run(
        self,
        image: np.ndarray,
        intrinsics: np.ndarray,
        camera_from_object,
        steps: int = STEPS,
        record_every: int = 10,
        weight: np.ndarray | None = None,
    ) -> DescentResult:
        """Refine poses (B, 4, 4) of one photo.

        image: (H, W, 3) RGB, uint8 or float in [0, 1], without distortion. intrinsics: (3, 3).
        weight: (H, W), 0 for pixels that say nothing.
        """
        start = self._start(camera_from_object)
        if steps < 0 or record_every < 1:
            raise PhotometricDescentError(
                f"steps is {steps} and record_every {record_every}; give 0 or more, and 1 or more"
            )
        intrinsics = np.asarray(intrinsics, dtype=np.float64)
        if intrinsics.shape != (3, 3) or not (np.diag(intrinsics) > 0).all():
            raise PhotometricDescentError(
                f"intrinsics are {intrinsics.tolist()}; give (3, 3) with positive focal lengths"
            )
        begun = time.perf_counter()
        pixels = pixels_to_draw(image, self._sampling, weight, self._iterations)
        photo = _as_float(image).to(self._device)
        self._check_seen(intrinsics, start, photo.shape[:2])
        rng = np.random.default_rng(self._seed)
        twist = torch.as_tensor(rng.normal(0.0, _SIGMA, (len(start), 6)), device=self._device)
        record = _Record(begun)
        with torch.inference_mode(False), torch.enable_grad():
            twist = twist.clone().requires_grad_()
            adam = torch.optim.Adam([twist], lr=self._rate, betas=_BETAS)
            losses = []
            record.add(0, start)
            for step in range(steps):
                adam.param_groups[0]["lr"] = self._rate * _DECAY ** (step / 100.0)
                loss = self._step_loss(photo, intrinsics, start, twist, pixels, rng)
                (gradient,) = torch.autograd.grad(loss.sum(), twist)
                usable = gradient.isfinite().all(dim=1) & loss.isfinite()
                twist.grad = torch.where(usable[:, None], gradient, 0.0)
                adam.step()
                losses.append(torch.where(usable, loss, torch.nan).detach())
                if (step + 1) % record_every == 0 or step + 1 == steps:
                    record.add(step + 1, _moved(start, self._unit * twist.detach()))
        return record.result(losses, len(start))

    def _step_loss(self, photo, intrinsics, start, twist, pixels, rng) -> Tensor:
        """(B,) of a new batch of rays."""
        drawn = np.stack([draw_pixels(pixels, self._rays, rng) for _ in range(len(start))])
        drawn = torch.as_tensor(drawn, device=self._device)
        observed = photo[drawn[..., 1], drawn[..., 0]]
        origins, directions = camera_rays(intrinsics, _moved(start, self._unit * twist), drawn)
        seen = self._field.render(origins.reshape(-1, 3).float(), directions.reshape(-1, 3).float())
        colour = seen.over(self._background).view_as(observed)
        return photometric_loss(colour, observed, self._loss)

    def _start(self, camera_from_object) -> Tensor:
        pose = torch.as_tensor(camera_from_object, dtype=torch.float64, device=self._device)
        if pose.ndim != 3 or pose.shape[1:] != (4, 4) or len(pose) == 0:
            raise PhotometricDescentError(
                f"camera_from_object has shape {tuple(pose.shape)}; give (B, 4, 4)"
            )
        if not pose.isfinite().all():
            raise PhotometricDescentError("a pose to start from is NaN or infinite")
        return pose.clone()

    def _check_seen(self, intrinsics, start: Tensor, size) -> None:
        """A field that no camera looks at gives no gradient."""
        y, x = (torch.linspace(0.0, n - 1.0, 16, dtype=torch.float64) for n in size)
        pixels = torch.cartesian_prod(x, y)
        origins, directions = camera_rays(intrinsics, start, pixels)
        box = torch.as_tensor(self._field.bounds).to(origins)
        near, far = cross_box(origins.flatten(0, 1), directions.flatten(0, 1), box)
        if not (far > near).any():
            raise PhotometricDescentError(
                "no camera to start from looks at the field's bounds, "
                f"{np.round(self._field.bounds, 3).tolist()} in the object's frame: is "
                "camera_from_object inverted, or in other units than the field?"
            )


class _Record:
    """Poses on the way and when they were reached."""

    def __init__(self, begun: float):
        self._begun = begun
        self._steps: list[int] = []
        self._poses: list[np.ndarray] = []
        self._seconds: list[float] = []

    def add(self, step: int, pose: Tensor) -> None:
        self._steps.append(step)
        self._poses.append(pose.cpu().numpy())  # which waits for the device
        self._seconds.append(time.perf_counter() - self._begun)

    def result(self, losses: list[Tensor], count: int) -> DescentResult:
        losses = torch.stack(losses).cpu().numpy() if losses else np.zeros((0, count), np.float32)
        return DescentResult(
            self._poses[-1],
            np.stack(self._poses),
            np.array(self._steps),
            np.array(self._seconds),
            losses,
        )


def _moved(start: Tensor, twist: Tensor) -> Tensor:
    """camera_from_object after the screw motion; twist (B, 6) is (vθ, ωθ)."""
    return start @ se3.exp_se3(-twist)


def _as_float(image: np.ndarray) -> Tensor:
    image = np.asarray(image)
    scale = 255.0 if image.dtype == np.uint8 else 1.0
    return torch.as_tensor(image.astype(np.float32) / scale)
