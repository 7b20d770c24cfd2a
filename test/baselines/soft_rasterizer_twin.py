# SPDX-License-Identifier: Apache-2.0
"""What the soft rasteriser must compute, word for word, as a dense (triangles, pixels) array."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_picture(
    triangles: Tensor, camera_from_object: Tensor, pinhole: Tensor, size: tuple[int, int]
) -> Tensor:
    """(H, W) of triangles (F, 3, 3) in front of the camera, at a pose (4, 4)."""
    height, width = size
    points = triangles @ camera_from_object[:3, :3].T + camera_from_object[:3, 3]
    v = points[..., :2] / points[..., 2:] * pinhole[:2] + pinhole[2:]

    y, x = torch.meshgrid(
        torch.arange(height, dtype=v.dtype), torch.arange(width, dtype=v.dtype), indexing="ij"
    )
    p = torch.stack([x, y], dim=-1).reshape(-1, 2)

    edges = [v[:, 1] - v[:, 0], v[:, 2] - v[:, 1], v[:, 0] - v[:, 2]]
    normal = cross(edges[0], edges[2]) + 1e-8
    product = torch.ones(len(v), len(p), dtype=v.dtype)
    for k, edge in enumerate(edges):
        to_vertex = v[:, None, k] - p
        product = product * (cross(edge[:, None], to_vertex) * normal[:, None]).clamp(min=0)

    least = product.min(dim=1).values[:, None]
    largest = product.max(dim=1).values[:, None]
    normalised = (product - least) / (largest - least + 1e-8)
    return torch.tanh(normalised).sum(dim=0).reshape(height, width)


def cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
