# SPDX-License-Identifier: Apache-2.0
"""From the numbers of the network's last layer to poses, and the losses that teach them.

A head turns raw outputs into K hypotheses per window: poses, weights, and how far off each may be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Errors are told in the frame of the window: offset right and down in half window widths, log of
# the distance, rotation vector.
ERRORS = 6


@dataclass
class PoseHypotheses:
    """K poses per window (B).

    camera_from_object: (B, K, 4, 4); logits: (B, K) of their weights; log_sigma: (B, K, 6) log
    standard deviations of: offset (2, half window widths), log distance, rotation vector (3,
    radians, in the axes of `camera_from_ray`).
    """

    camera_from_object: Tensor
    logits: Tensor
    log_sigma: Tensor


def camera_from_ray(pinhole: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where a window (B) looks.

    pinhole: (B, 4) fx, fy, cx, cy. Returns camera_from_ray (B, 3, 3), the least rotation that takes
    the optical axis to the ray through the window's centre; that ray's x/z and y/z (B, 2); and half
    the window's width in units of z (B, 2).
    """
    focal = pinhole[:, :2]
    centre = ((size - 1) / 2.0 - pinhole[:, 2:]) / focal
    ray = functional.normalize(torch.cat([centre, torch.ones_like(centre[:, :1])], 1), dim=1)
    x, y, z = ray.unbind(1)
    k = 1.0 / (1.0 + z)  # Rodrigues' formula for the axis z cross ray, which has no z part
    rows = [1.0 - k * x * x, -k * x * y, x, -k * x * y, 1.0 - k * y * y, y, -x, -y, z]
    return torch.stack(rows, 1).view(-1, 3, 3), centre, size / 2.0 / focal


class ContinuousHead(nn.Module):
    """Rotation as two columns (6-D, Zhou et al. 2019, section 4.2), relative to the ray through the
    window's centre; the object's origin as offset in the window and log distance in window widths.

    A silhouette seen from far is nearly the mirror image of the one seen from the other side, and
    vehicles are their own mirror images: front and rear views fit alike. So there are two
    hypotheses, `from the front` and `from behind`, each trained on its half of the views (and a
    little beyond), with a weight each. They cannot average two poses that fit.
    """

    hypotheses = 2
    overlap = 0.25  # cosine of the azimuth up to which a half is trained on views of the other

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, self.hypotheses * (1 + 6 + 3 + ERRORS))

    def forward(self, features: Tensor, pinhole: Tensor, size: int) -> PoseHypotheses:
        raw = self.linear(features).float().view(len(features), self.hypotheses, -1)
        logits, columns, place, log_sigma = raw.split([1, 6, 3, ERRORS], dim=2)
        ray_from_object = _rotation_from_columns(columns)
        turn, centre, half = camera_from_ray(pinhole, size)
        z = half.mean(1)[:, None] ** -1 * place[..., 2].clamp(-6.0, 6.0).exp()
        xy = (centre[:, None] + half[:, None] * place[..., :2]) * z[..., None]
        pose = torch.zeros(*z.shape, 4, 4, dtype=raw.dtype, device=raw.device)
        pose[..., :3, :3] = turn[:, None] @ ray_from_object
        pose[..., :2, 3] = xy
        pose[..., 2, 3] = z
        pose[..., 3, 3] = 1.0
        return PoseHypotheses(pose, logits[..., 0], log_sigma.clamp(-7.0, 2.0))

    def loss(
        self, found: PoseHypotheses, truth: Tensor, pinhole: Tensor, size: int
    ) -> dict[str, Tensor]:
        """Parts of the loss, each a mean over the batch; truth: camera_from_object (B, 4, 4).

        Rotations are compared by the Frobenius norm, places by their absolute error: both grow
        linearly, so a flipped view does not outweigh many good ones.
        """
        errors = self.errors(found, truth, pinhole, size)
        facing = self.facing(truth)
        rotation = (found.camera_from_object[..., :3, :3] - truth[:, None, :3, :3]).flatten(2)
        rotation = rotation.square().sum(2).add(1e-8).sqrt()
        place = errors[..., :3].abs().sum(2)
        # Laplace likelihood of errors that are taken as given: it teaches the sigmas alone
        sure = (errors.detach().abs() * (-found.log_sigma).exp() + found.log_sigma).sum(2)
        choice = facing / facing.sum(1, keepdim=True)
        return {
            "rotation": (facing * rotation).sum(1).mean(),
            "place": (facing * place).sum(1).mean(),
            "sigma": 0.05 * (facing * sure).sum(1).mean(),
            "facing": -(choice * found.logits.log_softmax(1)).sum(1).mean(),
        }

    def facing(self, truth: Tensor) -> Tensor:
        """(B, 2) how far each hypothesis answers for a pose: 1 in its half of the views, falling to
        0 beyond it."""
        object_from_camera = truth[:, :3, :3].transpose(1, 2)
        seen_from = -(object_from_camera @ truth[:, :3, 3:])[..., 0]
        cosine = functional.normalize(seen_from[:, :2], dim=1)[:, 0]
        front = (cosine / self.overlap + 1.0).clamp(0.0, 1.0)
        rear = (1.0 - cosine / self.overlap).clamp(0.0, 1.0)
        return torch.stack([front, rear], 1)

    @staticmethod
    def errors(found: PoseHypotheses, truth: Tensor, pinhole: Tensor, size: int) -> Tensor:
        """(B, K, 6) how far hypotheses are off, as `PoseHypotheses.log_sigma` counts."""
        turn, _, half = camera_from_ray(pinhole, size)
        pose, truth = found.camera_from_object, truth[:, None]
        xy = pose[..., :2, 3] / pose[..., 2:3, 3] - truth[..., :2, 3] / truth[..., 2:3, 3]
        depth = (pose[..., 2, 3] / truth[..., 2, 3]).log()
        turn = turn[:, None].transpose(2, 3)
        R = turn @ pose[..., :3, :3]
        difference = R @ (turn @ truth[..., :3, :3]).transpose(2, 3)
        odd = difference - difference.transpose(2, 3)
        vector = torch.stack([odd[..., 2, 1], odd[..., 0, 2], odd[..., 1, 0]], -1) / 2.0
        sine = vector.norm(dim=-1, keepdim=True)
        cosine = (difference.diagonal(dim1=2, dim2=3).sum(-1, keepdim=True) - 1.0) / 2.0
        angle = torch.atan2(sine, cosine)
        vector = vector * torch.where(sine > 1e-6, angle / sine.clamp_min(1e-6), 1.0)
        return torch.cat([xy / half[:, None], depth[..., None], vector], -1)


class EulerCosineHead(nn.Module):
    """The paper's head (section 3.2): cosines of the Euler angles ZYX, and the translation.

    Trained by the mean squared error of P = [R t] (eq. 2). A cosine has no sign, so each angle is
    taken in [0, pi]: poses with a negative angle cannot be told. Here for comparison.
    """

    hypotheses = 1

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 6)

    def forward(self, features: Tensor, pinhole: Tensor, size: int) -> PoseHypotheses:
        raw = self.linear(features).float()
        cosine = raw[:, :3].tanh()
        sine = (1.0 - cosine.square()).clamp_min(1e-6).sqrt()
        pose = torch.zeros(len(raw), 1, 4, 4, dtype=raw.dtype, device=raw.device)
        pose[:, 0, :3, :3] = _rotation_zyx(cosine, sine)
        pose[:, 0, :3, 3] = raw[:, 3:]
        pose[:, 0, 3, 3] = 1.0
        return PoseHypotheses(
            pose, torch.zeros_like(raw[:, :1]), torch.zeros_like(raw)[:, None, :ERRORS]
        )

    def loss(
        self, found: PoseHypotheses, truth: Tensor, pinhole: Tensor, size: int
    ) -> dict[str, Tensor]:
        """Equation 2; truth: camera_from_object (B, 4, 4)."""
        difference = found.camera_from_object[:, 0, :3] - truth[:, :3]
        return {"pose": difference.square().mean()}


HEADS = {"continuous": ContinuousHead, "euler_cosine": EulerCosineHead}


def _rotation_from_columns(columns: Tensor) -> Tensor:
    """(..., 6) -> rotations (..., 3, 3) by Gram-Schmidt: Zhou et al. 2019, eq. 15."""
    x = functional.normalize(columns[..., :3], dim=-1)
    y = columns[..., 3:]
    y = functional.normalize(y - (x * y).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1)


def _rotation_zyx(cosine: Tensor, sine: Tensor) -> Tensor:
    """R = Rz(a) Ry(b) Rx(c) (B, 3, 3) from cosines and sines (B, 3) of a, b, c."""
    ca, cb, cc = cosine.unbind(1)
    sa, sb, sc = sine.unbind(1)
    rows = [
        ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc,
        sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc,
        -sb, cb * sc, cb * cc,
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)
