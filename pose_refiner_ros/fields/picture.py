# SPDX-License-Identifier: Apache-2.0
"""Whole pictures of a radiance field, and how near they come to photos."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from .field import RadianceField, RenderedRays
from .rays import camera_rays, image_pixels

if TYPE_CHECKING:
    from pose_refiner_ros.datasets.posed_images.views import PosedImages, View

_RAYS = 16384  # that are rendered at once
_WHITE = (1.0, 1.0, 1.0)


@torch.no_grad()
def render_picture(
    field: RadianceField, intrinsics, camera_from_object, size: tuple[int, int]
) -> RenderedRays:
    """What a camera of (height, width) pixels sees, row by row: all arrays have H * W rays."""
    pose = torch.as_tensor(camera_from_object, dtype=torch.float64, device=field.device)
    origins, directions = camera_rays(intrinsics, pose, image_pixels(size))
    rays = zip(origins.float().split(_RAYS), directions.float().split(_RAYS), strict=True)
    parts = [field.render(o, d) for o, d in rays]
    return RenderedRays(
        *(torch.cat([getattr(p, n) for p in parts]) for n in ("colour", "opacity", "depth"))
    )


def picture_over(
    field: RadianceField, intrinsics, camera_from_object, size: tuple[int, int], background=None
) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1] in front of a colour: the given, the field's own, or white."""
    if background is None:
        background = _behind(field)
    picture = render_picture(field, intrinsics, camera_from_object, size).over(background)
    return picture.clamp(0.0, 1.0).reshape(*size, 3).cpu().numpy()


def field_psnr(field: RadianceField, posed: PosedImages) -> np.ndarray:
    """(N,) decibels, one for each photo, over the pixels that count.

    Photos with masks and pictures are put in front of the same colour: the field's own, or white,
    as in the NeRF paper's tables.
    """
    result = []
    for view in posed:
        photo, drawn = _both(field, view)
        squared = np.square(drawn - photo)
        error = squared.mean() if view.weight is None else squared[view.weight].mean()
        result.append(-10.0 * math.log10(max(float(error), 1e-10)))
    return np.array(result)


def beside_photo(field: RadianceField, view: View) -> np.ndarray:
    """(H, 2 W, 3) uint8: a photo, and the field seen by its camera, over one background."""
    return np.rint(255.0 * np.hstack(_both(field, view)).clip(0.0, 1.0)).astype(np.uint8)


def _both(field: RadianceField, view: View) -> tuple[np.ndarray, np.ndarray]:
    """A photo and the field seen by its camera, (H, W, 3) in [0, 1]."""
    size = view.image.shape[:2]
    drawn = picture_over(field, view.intrinsics, view.camera_from_object, size)
    return view.over(_behind(field)), drawn


def _behind(field: RadianceField) -> np.ndarray | tuple[float, float, float]:
    return _WHITE if field.background is None else field.background
