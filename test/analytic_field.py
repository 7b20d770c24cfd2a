# SPDX-License-Identifier: Apache-2.0
"""A radiance field that needs no training: soft coloured blobs, summed up along rays in torch."""

import numpy as np
import torch

from pose_refiner_ros.fields.field import RenderedRays
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import cross_box

CENTRES = np.array([
    (0.3, 0.0, 0.1), (-0.25, 0.2, 0.0), (0.0, -0.3, -0.2), (0.05, 0.1, 0.35), (-0.1, -0.1, -0.05),
])  # fmt: skip
RADII = np.array([0.14, 0.18, 0.12, 0.10, 0.2])
COLOURS = np.array([
    (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9), (0.9, 0.8, 0.1), (0.5, 0.5, 0.5),
])  # fmt: skip


class AnalyticField:
    """Gaussian blobs: density Σ 12 exp(-r²/2s²) per metre; colour their mean, a little by view.

    chequers: light and dark cubes in each colour, that many to a metre, for what needs corners.
    """

    kind = "analytic"
    settings: dict = {}  # noqa: RUF012
    device = torch.device("cpu")

    def __init__(self, background=(1.0, 1.0, 1.0), samples=48, density=12.0, chequers=0.0):
        self.bounds = np.array([[-0.7] * 3, [0.7] * 3])
        self.background = None if background is None else np.asarray(background, np.float64)
        self.record: dict = {}
        self._samples, self._density, self._chequers = samples, density, chequers

    def query(self, points, directions):
        centres, radii, colours = (torch.as_tensor(x).to(points) for x in (CENTRES, RADII, COLOURS))
        squared = (points[:, None] - centres).square().sum(-1) / (2.0 * radii**2)
        blobs = torch.exp(-squared)
        share = blobs / (blobs.sum(1, keepdim=True) + 1e-6)
        shade = 0.9 + 0.1 * directions[:, 2:]
        if self._chequers:
            waves = torch.sin(torch.pi * self._chequers * points).prod(1, keepdim=True)
            shade = shade * (0.55 + 0.45 * torch.tanh(8.0 * waves))
        return self._density * blobs.sum(1), share @ colours * shade

    def render(self, origins, directions):
        box = torch.as_tensor(self.bounds).to(origins)
        near, far = cross_box(origins.detach(), directions.detach(), box)
        step = (far - near)[:, None] / self._samples
        at = near[:, None] + (torch.arange(self._samples).to(origins) + 0.5) * step
        points = origins[:, None] + at[..., None] * directions[:, None]
        density, colour = self.query(
            points.flatten(0, 1), directions.repeat_interleave(self._samples, 0)
        )
        passed = density.view_as(at) * step
        weights = torch.exp(passed - passed.cumsum(1)) * (1.0 - torch.exp(-passed))
        opacity = weights.sum(1)
        colour = (weights[..., None] * colour.view(*at.shape, 3)).sum(1)
        return RenderedRays(colour, opacity, (weights * at).sum(1) / opacity.clamp(min=1e-6))


def view_from(direction, distance: float = 2.5, up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """camera_from_object (4, 4) of a camera that looks at the origin from that side."""
    z = -np.asarray(direction, np.float64) / np.linalg.norm(direction)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([x, np.cross(z, x), z])
    pose[2, 3] = distance
    return pose


def pinhole(size: int, focal: float = 1.6) -> np.ndarray:
    """(3, 3) of square pictures; focal: in widths of the picture."""
    return np.array([
        [focal * size, 0.0, (size - 1) / 2], [0.0, focal * size, (size - 1) / 2], [0.0, 0.0, 1.0],
    ])  # fmt: skip


def as_grid(field: AnalyticField, count: int = 64, degree: int = 1) -> GridField:
    """The same blobs as a voxel grid of count nodes along each axis; exact at the nodes.

    The grid reaches beyond the field's bounds, where its blobs are cut off.
    """
    axis = 1.5 * np.linspace(field.bounds[0, 0], field.bounds[1, 0], count)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    place = torch.as_tensor(points, dtype=torch.float32)

    def looking(z: float) -> tuple[np.ndarray, np.ndarray]:
        direction = torch.tensor([[0.0, 0.0, z]]).expand_as(place)
        density, colour = field.query(place, direction)
        return density.numpy(), colour.numpy()

    density, up = looking(1.0)
    _, down = looking(-1.0)
    values = np.zeros((len(points), 4 if degree == 0 else 13), np.float32)
    values[:, 0] = density
    values[:, 1:4] = (up + down) / 2
    if degree:  # the third linear function is z
        values[:, 10:13] = (up - down) / 2
    occupied = density > 1e-5 * density.max()
    return GridField.from_nodes(
        occupied.reshape(count, count, count), values[occupied], np.full(3, axis[0]),
        axis[1] - axis[0], background=field.background,
    )  # fmt: skip
