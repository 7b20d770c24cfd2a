# SPDX-License-Identifier: Apache-2.0
"""Painted blocks as radiance fields that nobody had to train, and photos of them."""

from __future__ import annotations

import numpy as np

from pose_refiner_ros.datasets.posed_images.matched_points import matched_points
from pose_refiner_ros.datasets.posed_images.views import PosedImages
from pose_refiner_ros.fields.features import FieldFeatures
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.picture import render_picture
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.learning.field_features import field_features

SIX_COLOURS = np.array([
    (0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9),
    (0.9, 0.8, 0.1), (0.8, 0.2, 0.8), (0.9, 0.9, 0.9),
])  # fmt: skip
DENSITY = 300.0  # 1/m


def painted_block(half=(0.1, 0.1, 0.1), voxel=0.01, centre=(0.0, 0.0, 0.0), **more) -> GridField:
    """A box of another colour on each side, with a dark spot off the middle of each."""
    half = np.asarray(half)
    reach = half + 2.5 * voxel
    axes = [np.arange(-r, r + 1e-9, voxel) for r in reach]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    inside = (half - abs(points)).min(axis=-1)  # distance to the surface
    occupied = np.ones(points.shape[:3], bool)
    share = points[occupied] / half
    axis = abs(share).argmax(axis=-1)
    along = np.take_along_axis(share, axis[:, None], 1)[:, 0]
    colour = SIX_COLOURS[2 * axis + (along > 0)]
    across = np.stack([np.take_along_axis(share, (axis[:, None] + k) % 3, 1)[:, 0] for k in (1, 2)])
    spot = np.hypot(across[0] - 0.35, across[1] - 0.2) < 0.35
    colour = np.where(spot[:, None], 0.25 * colour, colour)
    density = DENSITY * np.clip(0.5 + inside[occupied] / voxel, 0.0, 1.0)
    values = np.column_stack([density, colour]).astype(np.float32)
    origin = np.array([a[0] for a in axes]) + np.asarray(centre)
    return GridField.from_nodes(occupied, values, origin, voxel, **more)


def painted_room(half=(1.6, 1.2, 0.9), voxel=0.04, seed=0) -> GridField:
    """Walls, floor and ceiling of a room, seen from inside, painted with soft patches."""
    half = np.asarray(half)
    axes = [np.arange(-h - 3.5 * voxel, h + 4.0 * voxel, voxel) for h in half]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    outside = (abs(points) - half).max(axis=-1)  # distance into the walls
    occupied = outside > -1.5 * voxel
    rng = np.random.default_rng(seed)
    colour = np.full((np.count_nonzero(occupied), 3), 0.5)
    for _ in range(24):
        wave = rng.normal(size=3)
        wave *= rng.uniform(3.0, 20.0) / np.linalg.norm(wave)
        shade = np.sin(points[occupied] @ wave + rng.uniform(0.0, 6.3))
        colour += 0.12 * shade[:, None] * rng.normal(size=3)
    density = 100.0 * np.clip(0.5 + outside[occupied] / voxel, 0.0, 1.0)
    values = np.column_stack([density, colour.clip(0.0, 1.0)]).astype(np.float32)
    return GridField.from_nodes(occupied, values, np.array([a[0] for a in axes]), voxel)


def tiled(field: GridField, side: int = 3, seed=0) -> GridField:
    """The same, painted with tiles of one colour each, whose edges are `side` nodes long: much for
    features to be found on."""
    tile = np.argwhere(field.links) // side @ np.array([1, 211, 211 * 199]) % 997
    values = field.values[1:].copy()
    values[:, 1:4] = np.random.default_rng(seed).uniform(0.05, 0.95, (997, 3))[tile]
    return GridField.from_nodes(field.links != 0, values, field.origin, field.voxel)


def photo(field: GridField, pose: np.ndarray, camera: Camera, background=(0.4, 0.5, 0.4)):
    """(H, W, 3) uint8 and the mask (H, W) uint8 0/1 of a field seen by a pinhole camera."""
    seen = render_picture(field, camera.intrinsics.copy(), pose, camera.size)
    colour = seen.over(background).clamp(0.0, 1.0).reshape(*camera.size, 3).numpy()
    mask = seen.opacity.reshape(camera.size).numpy() > 0.5
    return np.rint(255.0 * colour).astype(np.uint8), mask.view(np.uint8)


def features_of(field: GridField, camera: Camera, camera_from_object: np.ndarray) -> FieldFeatures:
    """Those that a training takes of its photos; (N, 4, 4)."""
    photos, masks = zip(*(photo(field, pose, camera) for pose in camera_from_object), strict=True)
    count = len(photos)
    posed = PosedImages(
        [str(i) for i in range(count)], np.stack(photos), np.uint8(255) * np.stack(masks),
        np.tile(camera.intrinsics, (count, 1, 1)), np.asarray(camera_from_object), field.bounds,
    )  # fmt: skip
    return field_features(field, posed, matched_points(posed))
