# SPDX-License-Identifier: Apache-2.0
"""Features of training photos as points of the object: at the depth that neighbouring photos tell,
else at that which the field has there."""

from __future__ import annotations

import numpy as np
import torch

from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.datasets.posed_images.matched_points import MatchedPoints
from pose_refiner_ros.fields.features import FieldFeatures
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.rays import camera_rays
from pose_refiner_ros.geometry.epipolar import rays_through

from .self_supervision import farthest_apart

MOST_PHOTOS = 64
OPAQUE = 0.8  # where a field has a depth
# Depths beside a feature that differ by more than that share may lie before or behind an edge.
EDGE, BESIDE = 0.1, 1.5  # pixels
_RAYS = 16384  # that are rendered at once


def field_features(
    field: RadianceField, posed: PosedImages, matched: MatchedPoints
) -> FieldFeatures:
    """Of the photos that a field was trained from; of many those that differ most."""
    chosen = farthest_apart(posed.camera_from_object, MOST_PHOTOS, posed.bounds.mean(axis=0))
    points, descriptors = [], []
    for i in np.sort(chosen):
        pose, pixels, depth = posed.camera_from_object[i], matched.pixels[i], matched.depths[i]
        rays = rays_through(pixels, posed.intrinsics[i])
        there = (rays * depth[:, None] - pose[:3, 3]) @ pose[:3, :3]
        alone = np.isnan(depth)
        there[alone] = _places(field, posed.intrinsics[i], pose, pixels[alone])
        known = np.isfinite(there).all(axis=1)
        points.append(there[known])
        descriptors.append(matched.descriptors[i][known])
    return FieldFeatures(
        np.concatenate(points).astype(np.float32),
        np.concatenate(descriptors),
        np.cumsum([0, *(len(own) for own in points)]),
    )


@torch.no_grad()
def _places(field: RadianceField, intrinsics, pose, pixels: np.ndarray) -> np.ndarray:
    """(N, 3) points that pixels (N, 2) show; NaN where the field is thin, or has an edge."""
    offsets = BESIDE * np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    around = (pixels[:, None] + offsets).reshape(-1, 2)
    origins, directions = camera_rays(intrinsics, torch.as_tensor(pose), torch.as_tensor(around))
    origins, directions = origins.float().to(field.device), directions.float().to(field.device)
    rays = zip(origins.split(_RAYS), directions.split(_RAYS), strict=True)
    parts = [field.render(o, d) for o, d in rays]
    depth, opacity = (
        torch.cat([getattr(part, name) for part in parts]).reshape(-1, len(offsets)).cpu().numpy()
        for name in ("depth", "opacity")
    )
    own = origins.reshape(-1, len(offsets), 3)[:, 0].cpu().numpy()
    ways = directions.reshape(-1, len(offsets), 3)[:, 0].cpu().numpy()
    known = (opacity.min(axis=1) > OPAQUE) & (np.ptp(depth, axis=1) < EDGE * depth[:, 0])
    return np.where(known[:, None], own + depth[:, :1] * ways, np.nan)
