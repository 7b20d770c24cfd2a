# SPDX-License-Identifier: Apache-2.0
"""Photos through a lens as a pinhole of the same intrinsics would have taken them."""

from __future__ import annotations

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera


def undistortion_map(camera: Camera) -> np.ndarray:
    """(H, W, 2) float32: pixel of the photo that the pinhole's pixel sees, far outside if none."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(np.float64)
    rays = np.stack(((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)), -1)
    return np.nan_to_num(camera.project(rays), nan=-1e4).astype(np.float32)


def undistort(
    image: np.ndarray, alpha: np.ndarray | None, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The photo seen by the pinhole.

    Args:
        image: (H, W, 3) uint8.
        alpha: (H, W) uint8 or None.
        pixels: (H, W, 2) of undistortion_map.

    Returns:
        image, alpha, and the weight (H, W) bool: False where the photo has nothing to show.
    """
    height, width = image.shape[:2]
    u, v = pixels[..., 0], pixels[..., 1]
    weight = (u >= -0.5) & (v >= -0.5) & (u <= width - 0.5) & (v <= height - 0.5)

    def sampled(array: np.ndarray) -> np.ndarray:
        return cv2.remap(array, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    if alpha is None:
        return sampled(image) * weight[..., None], None, weight
    # Colours are mixed as they are seen, so that a colour behind alpha 0 does not bleed in.
    opacity = sampled(alpha.astype(np.float32))
    seen = sampled(image.astype(np.float32) * alpha[..., None])
    colour = np.rint(seen / np.maximum(opacity, 1e-6)[..., None]).clip(0, 255)
    image = (colour * (weight & (opacity > 0))[..., None]).astype(np.uint8)
    return image, np.rint(opacity * weight).astype(np.uint8), weight
