# SPDX-License-Identifier: Apache-2.0
"""The paper's online refinement: 30 steps down the gradient of the alignment error.

Palazzi et al., "End-to-end 6-DoF Object Pose Estimation through Differentiable Rasterization"
(2018), section 3.3: the object is drawn by the soft rasteriser, compared with its mask, and the
error goes back (a) into the pose, `refine_pose`, or (b) through the pose into the weights of the
network that estimated it, `refine_encoder`. The paper gives neither loss nor optimiser. What is
used here refined vehicles best of what was tried:

* The rasteriser adds up to 5 to 8 where triangles overlap and falls to 0 at each triangle's edges.
  The plain squared error drives it to 1 everywhere, which moves the object away from its mask.
  `1 - exp(-4 s)` is a covered pixel as a probability: nearly 1 for one triangle's middle and for
  any number of them, never flat, so that every pixel still pulls. min(s, 1) is flat where most
  pixels are; with a factor of 1, or tanh(s), pictures stay too faint and objects come too near;
  with 10 and more they are as hard as a drawn mask.
* The squared difference to the mask is added up at the full resolution and after averaging over
  2x2, 4x4, … pixels, all alike in weight. Coarse pixels see an outline that is still some way
  off, and average away the pattern of the triangles. A soft IoU does neither.
* The gradient of each triangle is limited to 0.1 times its length (`SoftRasterizer`). Without it a
  few thin triangles decide where the pose goes: this matters more than the choice of loss.
* Adam, in radians, radii and distances (see `refine_pose`), so that one rate fits turns and
  shifts: gradients differ by orders of magnitude between objects, views and resolutions, and Adam
  does not care. Short memory (0.7, 0.95) as there are only 30 steps; the rate falls as a cosine
  because the loss is rough. Of all poses on the way, the one with the least loss is returned.

Triangles of a pixel or two have no gradient, so that little is gained at low resolutions: that is
the rasteriser's weakness. docs/palazzi.md has what 30 steps gain at each (table 2).

Each object of a batch has its own loss and its own moments: nothing that happens to one, NaN
included, reaches another.

On the CPU one thread is used (`torch_threads.py`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pose_refiner_ros.torch_threads import one_thread

from . import se3
from .soft_rasterizer import SoftRasterizer

STEPS = 30
RATE = 0.03  # of poses: radians, radii, and shares of the distance, per step
ENCODER_RATE = 1e-4  # of weights
_BETAS = (0.7, 0.95)
GRADIENT_LIMIT = 0.1
_GAIN = 4.0
_COARSEST = 4  # pixels that are left of the shorter side at the coarsest level
_LAST_RATE = 0.1  # share of the rate that is left at the last step


class GradientDescentError(ValueError):
    """Poses, masks or settings that cannot be refined, with the reason."""


@dataclass(frozen=True, eq=False)
class GradientResult:
    """Poses that were reached. Tensors on the rasteriser's device.

    camera_from_object: (B, 4, 4) float64, of each object the pose with the least loss. An object
    that could not be refined (its pose was not finite, its mask empty) keeps the pose it had.
    losses: (steps + 1, B), of the given poses first; infinite where a pose was not finite.
    poses: (steps + 1, B, 4, 4) float64, the pose before each step and after the last.
    """

    camera_from_object: Tensor
    losses: Tensor
    poses: Tensor


@contextmanager
def _gradients() -> Iterator[None]:
    """Gradients whatever the caller has switched off, and one thread on the CPU."""
    with one_thread(), torch.inference_mode(False), torch.enable_grad():
        yield


def alignment_error(picture: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(B,) how far soft pictures (B, H, W) are from masks (B, H, W) in [0, 1]; 0 if equal.

    The squared difference of 1 - exp(-4 picture) and mask, summed over the levels of a pyramid and
    divided by the mask's area. weight: (B, H, W), 1 where the mask is known, 0 where it is not.
    """
    difference = 1.0 - torch.exp(-_GAIN * picture) - target
    if weight is not None:
        difference, target = difference * weight, target * weight
    difference = difference[:, None]
    error, pixel = 0.0, 1
    while True:
        error = error + pixel**2 * difference.square().sum(dim=(1, 2, 3))
        if min(difference.shape[2:]) < 2 * _COARSEST:
            break
        odd = (0, difference.shape[3] % 2, 0, difference.shape[2] % 2)
        difference = functional.avg_pool2d(functional.pad(difference, odd), 2)
        pixel *= 2
    return error / target.sum(dim=(1, 2)).clamp(min=1.0)


@_gradients()
def refine_pose(
    rasterizer: SoftRasterizer,
    target,
    camera_from_object,
    pinhole,
    steps: int = STEPS,
    rate: float = RATE,
    weight=None,
    mesh=0,
) -> GradientResult:
    """Refine poses (B, 4, 4) so that their pictures become masks.

    target: (B, H, W) masks, bool or [0, 1], of the rasteriser's size: usually square windows
    around the objects. pinhole: fx, fy, cx, cy of those windows, (4,) or (B, 4). weight: (B, H, W),
    1 for known and 0 for unknown pixels; all are known without it. mesh: which of the rasteriser's
    meshes each object is, an integer or (B,). Arrays or tensors.

    The update is a twist (v, w) on the left about the object's origin, R' = exp(w) R, t' = t + v.
    It is counted in units that each move the picture by about as much: w in radians, sideways v in
    the object's radii, v in depth in the object's distance. rate: of these, per step.

    Raises GradientDescentError, SoftRasterizerError.
    """
    device = rasterizer.corners.device
    start = _poses(camera_from_object, device)
    mesh = torch.as_tensor(mesh, device=device).expand(len(start))
    goal = _Goal.of(rasterizer, target, weight, pinhole, mesh, len(start))
    radius = rasterizer.radius[mesh]
    distance = start[:, 2, 3].abs().maximum(radius)
    turn = torch.ones_like(radius)
    unit = torch.stack([radius, radius, distance, turn, turn, turn], dim=1).nan_to_num(1.0)
    twist = torch.zeros_like(unit, requires_grad=True)

    def drop_unusable() -> None:
        usable = twist.grad.isfinite().all(dim=1) & (goal.area > 0)
        twist.grad = torch.where(usable[:, None], twist.grad, 0.0)

    def pose() -> Tensor:
        return se3.perturb(start, unit * twist)

    return _descend(pose, [twist], drop_unusable, goal, steps, rate, start)


@_gradients()
def refine_encoder(
    pose_of: Callable[[nn.Module], Tensor],
    network: nn.Module,
    rasterizer: SoftRasterizer,
    target,
    pinhole,
    steps: int = STEPS,
    rate: float = ENCODER_RATE,
    weight=None,
    mesh=0,
) -> GradientResult:
    """Refine one object's pose by training a copy of the network on that object's mask alone.

    pose_of: makes the pose (1, 4, 4) of a network, differentiable by its weights; it holds the
    network's input, which must not be a tensor made in inference mode. network: left as it is; a
    copy in evaluation mode (no dropout) is trained, so that the next object starts from the same
    weights. rate: of Adam, per weight and step. The rest is as in `refine_pose`, for one object.

    Raises GradientDescentError, SoftRasterizerError.
    """
    goal = _Goal.of(rasterizer, target, weight, pinhole, mesh, 1)
    network = copy.deepcopy(network).eval().requires_grad_(True)
    weights = list(network.parameters())
    if not weights:
        raise GradientDescentError("the network has no weights that could be refined")

    def pose() -> Tensor:
        found = pose_of(network)
        _check_shape(found, 1)
        if not found.requires_grad:
            raise GradientDescentError(
                "the pose does not depend on the network's weights; pose_of must use the network "
                "that it is given, without no_grad"
            )
        return found

    def drop_unusable() -> None:
        for parameter in weights:
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                parameter.grad = None

    return _descend(pose, weights, drop_unusable, goal, steps, rate)


@dataclass(frozen=True, eq=False)
class _Goal:
    """Masks (B, H, W) that pictures should become, weights of their pixels, and the cameras (4,) or
    (B, 4) and meshes () or (B,) of those pictures. area: (B,) known pixels of each mask."""

    rasterizer: SoftRasterizer
    masks: Tensor
    weight: Tensor
    pinhole: Tensor
    mesh: Tensor | int
    area: Tensor

    @classmethod
    def of(cls, rasterizer, target, weight, pinhole, mesh, count: int) -> _Goal:
        masks = _pixels("target", target, rasterizer, count)
        known = torch.ones_like(masks)
        if weight is not None:
            known = _pixels("weight", weight, rasterizer, count)
        pinhole = torch.as_tensor(pinhole, dtype=torch.float64, device=masks.device).clone()
        return cls(rasterizer, masks, known, pinhole, mesh, (masks * known).sum(dim=(1, 2)))

    def loss(self, pose: Tensor) -> Tensor:
        """(B,) of poses (B, 4, 4)."""
        picture = self.rasterizer(pose.float(), self.pinhole, self.mesh, GRADIENT_LIMIT)
        return alignment_error(picture, self.masks, self.weight)


def _descend(
    pose_of: Callable[[], Tensor],
    variables: list[Tensor],
    drop_unusable: Callable[[], None],
    goal: _Goal,
    steps: int,
    rate: float,
    start: Tensor | None = None,
) -> GradientResult:
    """Adam on the variables that poses (B, 4, 4) are made of.

    drop_unusable: takes from the variables' gradients what must not have an effect; start: what an
    object keeps that cannot be refined, its first pose if not given.
    """
    if steps < 0 or not 0 < rate < math.inf:
        raise GradientDescentError(
            f"steps is {steps} and rate {rate}; give 0 or more steps and a rate above 0"
        )
    optimiser = torch.optim.Adam(variables, lr=rate, betas=_BETAS)
    poses, losses = [], []
    for step in range(steps + 1):
        pose = pose_of()
        loss = goal.loss(pose)
        # a pose that is not finite draws nothing, which has a loss like any other
        usable = pose.detach().isfinite().all(dim=(1, 2)) & loss.detach().isfinite()
        poses.append(pose.detach().double())
        losses.append(torch.where(usable, loss.detach(), torch.inf))
        if step == steps:
            break
        optimiser.zero_grad()
        # times the area: the limit on gradients is in pixels
        (loss * goal.area).sum().backward()
        drop_unusable()
        optimiser.param_groups[0]["lr"] = rate * _schedule(step, steps)
        optimiser.step()
    poses, losses = torch.stack(poses), torch.stack(losses)
    least, at = losses.min(dim=0)
    best = poses[at, torch.arange(len(at), device=at.device)]
    usable = least.isfinite() & (goal.area > 0)
    found = torch.where(usable[:, None, None], best, poses[0] if start is None else start)
    return GradientResult(found, losses, poses)


def _schedule(step: int, steps: int) -> float:
    """Share of the rate: a cosine from 1 to _LAST_RATE."""
    return _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _poses(poses, device) -> Tensor:
    """(B, 4, 4) float64, checked."""
    poses = torch.as_tensor(poses, dtype=torch.float64, device=device)
    _check_shape(poses)
    return poses.clone()


def _check_shape(poses: Tensor, count: int | None = None) -> None:
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or count not in (None, len(poses)):
        raise GradientDescentError(
            f"camera_from_object has shape {tuple(poses.shape)}; give ({count or 'B'}, 4, 4)"
        )


def _pixels(name: str, values, rasterizer: SoftRasterizer, count: int) -> Tensor:
    """(B, H, W) float32 of the rasteriser's size, in [0, 1], checked."""
    values = torch.as_tensor(values, dtype=torch.float32, device=rasterizer.corners.device)
    expected = (count, *rasterizer.size)
    if tuple(values.shape) != expected:
        raise GradientDescentError(
            f"{name} has shape {tuple(values.shape)}; for {count} poses and pictures of "
            f"{rasterizer.size} give {expected}"
        )
    if values.numel() and not (values.min() >= 0 and values.max() <= 1):
        low, high = float(values.min()), float(values.max())
        raise GradientDescentError(
            f"{name} holds values from {low:g} to {high:g}; give 0 to 1 (masks of 0 and 255 "
            "divided by 255)"
        )
    return values.clone()  # a tensor made without gradients cannot be kept for them
