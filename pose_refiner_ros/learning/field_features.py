# SPDX-License-Identifier: Apache-2.0
"""Features of training photos, each at the depth that the field has there."""

from __future__ import annotations

import numpy as np
import torch

from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.fields.features import FieldFeatures
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.rays import camera_rays
from pose_refiner_ros.geometry.sift import sift_features

from .self_supervision import farthest_apart

MOST_PHOTOS = 64
FEATURES = 600  # of a photo
OPAQUE = 0.8  # where a feature has a depth
# Depths beside a feature that differ by more than that share may lie before or behind an edge.
EDGE, BESIDE = 0.1, 1.5  # pixels
_MASKED = 128
_RAYS = 16384  # that are rendered at once


def field_features(field: RadianceField, posed: PosedImages) -> FieldFeatures:
    """Of the photos that a field was trained from; of many those that differ most."""
    chosen = farthest_apart(posed.camera_from_object, MOST_PHOTOS, posed.bounds.mean(axis=0))
    points, descriptors = [], []
    for view in posed.subset(np.sort(chosen)):
        mask = None if view.alpha is None else view.alpha >= _MASKED
        if view.weight is not None:
            mask = view.weight if mask is None else mask & view.weight
        pixels, described = sift_features(view.image, mask, FEATURES)
        lies, known = _places(field, view.intrinsics, view.camera_from_object, pixels)
        points.append(lies[known])
        descriptors.append(described[known])
    return FieldFeatures(
        np.concatenate(points).astype(np.float32),
        np.concatenate(descriptors),
        np.cumsum([0, *(len(own) for own in points)]),
    )


@torch.no_grad()
def _places(field: RadianceField, intrinsics, pose, pixels: np.ndarray):
    """(N, 3) points that pixels (N, 2) show, and whether they are known (N,)."""
    offsets = BESIDE * np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    around = (pixels[:, None] + offsets).reshape(-1, 2)
    K = torch.as_tensor(intrinsics, dtype=torch.float64)
    origins, directions = camera_rays(K, torch.as_tensor(pose), torch.as_tensor(around))
    origins, directions = origins.float(), directions.float()
    rays = zip(origins.split(_RAYS), directions.split(_RAYS), strict=True)
    parts = [field.render(o.to(field.device), d.to(field.device)) for o, d in rays]
    depth, opacity = (
        torch.cat([getattr(part, name).cpu() for part in parts]).reshape(-1, len(offsets)).numpy()
        for name in ("depth", "opacity")
    )
    own = origins.reshape(-1, len(offsets), 3)[:, 0].numpy()
    ways = directions.reshape(-1, len(offsets), 3)[:, 0].numpy()
    known = (opacity.min(axis=1) > OPAQUE) & (np.ptp(depth, axis=1) < EDGE * depth[:, 0])
    return own + depth[:, :1] * ways, known
