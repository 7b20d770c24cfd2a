# SPDX-License-Identifier: Apache-2.0
"""Whole pictures of a radiance field."""

from __future__ import annotations

import numpy as np
import torch

from .field import RadianceField, RenderedRays
from .rays import camera_rays, image_pixels

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
        background = behind(field)
    picture = render_picture(field, intrinsics, camera_from_object, size).over(background)
    return picture.clamp(0.0, 1.0).reshape(*size, 3).cpu().numpy()


def behind(field: RadianceField) -> np.ndarray | tuple[float, float, float]:
    """The colour that a picture is put in front of: the field's own, or white."""
    return _WHITE if field.background is None else field.background
