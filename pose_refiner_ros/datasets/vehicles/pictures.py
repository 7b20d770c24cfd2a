# SPDX-License-Identifier: Apache-2.0
"""Colour pictures of a vehicle: random paint and light, before a random background."""

from __future__ import annotations

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.rendering.scene import render_scene

from .build import VehicleMesh
from .collection import Vehicle

# Colours of new cars, roughly as often as they are sold: white, black, grey, silver, blue, red ...
PAINTS = np.array(
    [
        (0.92, 0.92, 0.90), (0.92, 0.92, 0.90), (0.90, 0.88, 0.82), (0.08, 0.08, 0.09),
        (0.08, 0.08, 0.09), (0.35, 0.36, 0.38), (0.45, 0.46, 0.48), (0.68, 0.69, 0.70),
        (0.12, 0.22, 0.48), (0.20, 0.38, 0.70), (0.62, 0.10, 0.10), (0.78, 0.16, 0.12),
        (0.15, 0.30, 0.20), (0.45, 0.36, 0.26), (0.85, 0.50, 0.12), (0.90, 0.78, 0.20),
    ]
)  # fmt: skip
SUPERSAMPLING = 3  # samples per pixel and axis of a picture: smooth edges


def render_picture(
    vehicle: Vehicle,
    camera_from_object: np.ndarray,
    pinhole: np.ndarray,
    size: int,
    rng: np.random.Generator,
    samples: int = SUPERSAMPLING,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (size, size, 3) uint8 RGB and mask (size, size) bool of a vehicle on the ground.

    camera_from_object: (4, 4), metres; pinhole: (4,) fx, fy, cx, cy, pixels. Light falls from a
    random direction above. samples: odd; per pixel and axis.
    """
    fx, fy, cx, cy = pinhole
    camera = Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), (size, size))
    sky = np.array([*rng.normal(0.0, 0.35, 2), 1.0])
    images = render_scene(
        [vehicle.mesh],
        camera_from_object[None],
        camera,
        colors=[_face_colors(vehicle, rng)],
        background=random_background(camera_from_object, pinhole, size, rng),
        device=device,
        samples=samples,
        up=camera_from_object[:3, :3] @ sky,
    )
    return _photographed(images.rgb, rng), images.labels > 0


def random_background(
    camera_from_object: np.ndarray, pinhole: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """(size, size, 3) uint8: ground and sky with the camera's horizon, a colour gradient, blotches,
    or blocks; each with noise of several grain sizes."""
    kind = rng.choice(["ground", "gradient", "blotches", "blocks"], p=[0.55, 0.15, 0.15, 0.15])
    if kind == "ground":
        picture = _ground_and_sky(camera_from_object, pinhole, size, rng)
    elif kind == "gradient":
        a, b = _color(rng), _color(rng)
        angle = rng.uniform(0, 2 * np.pi)
        line = np.linspace(-0.5, 0.5, size, dtype=np.float32)
        along = np.float32(np.cos(angle)) * line + np.float32(np.sin(angle)) * line[:, None]
        picture = a + (b - a) * (along / np.float32(1.42) + np.float32(0.5))[..., None]
    elif kind == "blotches":
        a, b = _color(rng), _color(rng)
        picture = a + (b - a) * np.clip(0.5 + _noise(size, rng), 0, 1)[..., None]
    else:
        picture = np.empty((size, size, 3), np.float32)
        picture[:] = _color(rng)
        for _ in range(rng.integers(5, 20)):
            x, y = rng.integers(-size // 4, size, 2)
            w, h = rng.integers(size // 16, size // 2, 2)
            picture[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = _color(rng)
    picture += (np.float32(rng.uniform(0.02, 0.2)) * _noise(size, rng))[..., None]
    return cv2.convertScaleAbs(np.maximum(picture, 0, out=picture), alpha=255)


def _color(rng: np.random.Generator) -> np.ndarray:
    """(3,) float32: any brightness, more often dull than bright."""
    grey = rng.uniform(0.05, 0.95)
    return np.clip(grey + rng.normal(0, 0.12, 3), 0, 1).astype(np.float32)


def _face_colors(vehicle: Vehicle, rng: np.random.Generator) -> np.ndarray:
    """(F, 3): a random paint, the other parts in their own colours."""
    paint = np.clip(PAINTS[rng.integers(len(PAINTS))] + rng.normal(0, 0.04, 3), 0.02, 1.0)
    if vehicle.parts is None:
        return paint
    return VehicleMesh(vehicle.mesh, vehicle.parts).colors(paint)


def _ground_and_sky(camera_from_object, pinhole, size, rng):
    """(size, size, 3) float32: textured ground to the horizon, a skyline, and sky."""
    fx, fy, cx, cy = pinhole
    u, v = (np.arange(size) - cx) / fx, (np.arange(size) - cy)[:, None] / fy
    up = camera_from_object[:3, 2]  # the object's z in camera axes
    rise = (u * up[0] + v * up[1] + up[2]) / np.sqrt(u * u + v * v + 1)  # sine of the elevation
    rise = rise.astype(np.float32)[..., None]
    blue = rng.uniform(0.3, 0.9)
    zenith = np.array([0.35, 0.5, 0.85], np.float32) * np.float32(blue) + np.float32(0.1)
    horizon = np.float32(rng.uniform(0.6, 0.95))
    sky = horizon + (zenith - horizon) * np.clip(rise * 2, 0, 1)
    ground = rng.uniform(0.15, 0.6) * (1 + rng.normal(0, 0.12, 3))
    texture = 1 + np.float32(0.6 * rng.uniform()) * _noise(size, rng, 4)[..., None]
    skyline = np.float32(0.25 * rng.uniform()) * np.clip(_noise(size, rng)[0], 0, 1)[:, None]
    picture = np.where(rise < skyline, _color(rng), sky)
    below = np.clip(rise * -50, 0, 1)  # the ground fades in below the horizon
    return picture + (ground.astype(np.float32) * texture - picture) * below


def _noise(size: int, rng: np.random.Generator, stretch: int = 1) -> np.ndarray:
    """(size, size) float32 of about unit range, with detail of all sizes; stretched
    horizontally."""
    picture = np.zeros((size, size), np.float32)
    cells, weight = 3, 0.5
    while cells < size:
        coarse = rng.standard_normal((cells, max(cells // stretch, 2)), np.float32)
        fine = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
        cv2.scaleAdd(fine, weight, picture, picture)
        cells, weight = cells * 3, weight * 0.6
    return picture


def _photographed(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture with another exposure, white balance, and sensor noise."""
    gain = (rng.uniform(0.7, 1.25) * (1 + rng.normal(0, 0.04, 3))).astype(np.float32)
    noise = rng.standard_normal(rgb.shape[:2], np.float32) * np.float32(rng.uniform(0.5, 5.0))
    return np.clip(rgb * gain + noise[..., None], 0, 255).astype(np.uint8)
