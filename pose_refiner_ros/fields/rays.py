# SPDX-License-Identifier: Apache-2.0
"""Rays of a pinhole camera in the frame of an object, and where they cross a box."""

from __future__ import annotations

import torch
from torch import Tensor


def image_pixels(size: tuple[int, int], device=None) -> Tensor:
    """(H * W, 2) float32, x and y of all pixels, row by row. size: (height, width)."""
    height, width = size
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack((x, y), -1).reshape(-1, 2)


def camera_rays(intrinsics, camera_from_object, pixels) -> tuple[Tensor, Tensor]:
    """Origins and unit directions of rays through pixels, object frame, both (..., R, 3).

    Differentiable by the pose. Tensors stay on the pose's device and come out in its precision.
    Leading dimensions broadcast. Arrays or tensors.

    Args:
        intrinsics: (..., 3, 3) pixels; no distortion.
        camera_from_object: (..., 4, 4).
        pixels: (..., R, 2), x and y; (0, 0) is the centre of the top-left pixel.
    """
    pose = torch.as_tensor(camera_from_object)
    pixels, K = torch.as_tensor(pixels).to(pose), torch.as_tensor(intrinsics).to(pose)[..., None]
    y = (pixels[..., 1] - K[..., 1, 2, :]) / K[..., 1, 1, :]
    x = (pixels[..., 0] - K[..., 0, 2, :] - K[..., 0, 1, :] * y) / K[..., 0, 0, :]
    directions = torch.stack((x, y, torch.ones_like(x)), -1)
    directions = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    R, t = pose[..., :3, :3], pose[..., None, :3, 3]
    directions = directions @ R  # rows: R^T d
    return (-t @ R).expand_as(directions), directions


def cross_box(origins: Tensor, directions: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (R,) at which rays enter and leave a box (2, 3); equal where they miss it.

    Never behind the origin: a camera inside the box sees from 0 on.
    """
    tiny = torch.where(directions < 0, -1e-12, 1e-12).to(directions)
    slope = 1.0 / torch.where(directions.abs() < 1e-12, tiny, directions)
    low, high = (bounds[0] - origins) * slope, (bounds[1] - origins) * slope
    near = torch.minimum(low, high).amax(-1).clamp(min=0.0)
    far = torch.maximum(low, high).amin(-1)
    return near, torch.maximum(near, far)
