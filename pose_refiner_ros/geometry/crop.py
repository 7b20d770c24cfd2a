# SPDX-License-Identifier: Apache-2.0
"""Square windows of a photo as pinhole cameras of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera

# The map of a distorted crop is computed once per so many pixels and interpolated, as lenses are
# smooth.
_CELL = 4


@dataclass(frozen=True, eq=False)
class Crop:
    """A window of a photo, at most as large as asked, undistorted.

    size: side S in pixels; pinhole: (4,) fx, fy, cx, cy in crop pixels; scale: crop pixels per
    photo pixel; bounds: (4,) x0, y0, x1, y1 of the photo's outer pixel centres in crop pixels;
    crop_from_camera: (3, 3) rotation, the identity unless the lens is a fisheye, whose crops look
    straight at their object because no plane could hold its whole view.
    """

    camera: Camera
    size: int
    pinhole: np.ndarray
    scale: float
    bounds: np.ndarray
    crop_from_camera: np.ndarray
    origin: tuple[int, int]  # photo pixel (x, y) at the corner of an undistorted crop
    side: int  # of that window in photo pixels

    def window(self, image: np.ndarray) -> np.ndarray | None:
        """The part of a photo (H, W) that an undistorted crop shows, a view (None: distorted)."""
        if self.camera.is_distorted:
            return None
        x0, y0 = self.origin
        return image[max(y0, 0) : max(y0 + self.side, 0), max(x0, 0) : max(x0 + self.side, 0)]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The crop (S, S) uint8 of a binary photo (H, W) uint8 0/1: which share of a crop pixel is
        set, 0 to 255; 0 beyond the photo."""
        if self.camera.is_distorted:
            x, y = self._map
            return cv2.remap(
                image * np.uint8(255), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
            )
        return self.fit(self.window(image))

    def cut_photo(self, image: np.ndarray) -> np.ndarray:
        """The crop (S, S, 3) uint8 of a photo (H, W, 3) uint8; black beyond it."""
        if self.camera.is_distorted:
            x, y = self._map
            return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        whole = self._padded(self.window(image))
        return cv2.resize(whole, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def fit(self, window: np.ndarray) -> np.ndarray:
        """The crop (S, S) uint8 0 to 255 of a window (h, w) uint8 0/1 of an undistorted photo."""
        picture = self._padded(window * np.uint8(255))
        side = self.side
        while side >= 2 * self.size:  # halves are exact and fast; the rest is interpolated
            side //= 2
            picture = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
        if side != self.size:
            picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_LINEAR)
        return picture

    def _padded(self, part: np.ndarray) -> np.ndarray:
        """A window, with black where it reaches beyond the photo."""
        height, width = part.shape[:2]
        if (height, width) == (self.side, self.side):
            return part
        whole = np.zeros((self.side, self.side, *part.shape[2:]), np.uint8)
        left, top = np.maximum(np.negative(self.origin), 0)
        whole[top : top + height, left : left + width] = part
        return whole

    def outside(self) -> np.ndarray | None:
        """(S, S) uint8, 1 where the crop reaches beyond the photo; None where it nowhere does."""
        last = self.size - 1
        if not self.camera.is_distorted:
            x0, y0, x1, y1 = self.bounds
            if x0 <= 0 and y0 <= 0 and x1 >= last and y1 >= last:
                return None
            outside = np.ones((self.size, self.size), np.uint8)
            column0, row0 = np.maximum(np.ceil([x0 - 0.5, y0 - 0.5]), 0).astype(int)
            column1, row1 = np.floor([x1 + 0.5, y1 + 0.5]).astype(int) + 1
            outside[row0 : max(row1, 0), column0 : max(column1, 0)] = 0
            return outside
        x, y = self._map
        height, width = self.camera.size
        with np.errstate(invalid="ignore"):
            inside = (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)
        return None if inside.all() else (~inside).view(np.uint8)

    @cached_property
    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """Photo pixel (x, y), each (S, S) float32, of every crop pixel."""
        # one cell more on each side, so that the interpolation never runs out
        grid = (np.arange(-1, self.size // _CELL + 1) + 0.5) * _CELL - 0.5
        fx, fy, cx, cy = self.pinhole
        u, v = np.meshgrid((grid - cx) / fx, (grid - cy) / fy)
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ self.crop_from_camera
        coarse = np.nan_to_num(self.camera.project(rays), nan=-1e4).astype(np.float32)
        size = self.size + 2 * _CELL
        fine = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
        fine = fine[_CELL:-_CELL, _CELL:-_CELL]
        return np.ascontiguousarray(fine[..., 0]), np.ascontiguousarray(fine[..., 1])


def crop_around(
    camera: Camera, box: tuple[float, float, float, float], max_size: int, margin: float = 0.3
) -> Crop:
    """The crop that shows a box (x0, y0, x1, y1) of photo pixels with a margin on every side.

    margin: share of the box's longer side. The side is a multiple of 8 of at most max_size pixels,
    at the photo's own resolution where that fits.
    """
    if camera.is_distorted:
        return _undistorted_crop(camera, box, max_size, margin)
    x0, y0, x1, y1 = box
    side = (max(x1 - x0, y1 - y0) + 1.0) * (1.0 + 2.0 * margin) + 4.0
    # An undistorted window starts at a whole pixel; its side is a multiple of 8, so that levels
    # of a half and a quarter come out even.
    side = int(np.ceil(side / 8.0)) * 8
    size = min(side, max_size)
    scale = size / side
    left = int(round((x0 + x1 + 1.0 - side) / 2.0))
    top = int(round((y0 + y1 + 1.0 - side) / 2.0))
    start = np.array([left, top])
    # half a pixel is added and taken away because pixel centres, not corners, are integers
    centre = (np.array([camera.cx, camera.cy]) + 0.5 - start) * scale - 0.5
    pinhole = np.array([camera.fx * scale, camera.fy * scale, *centre])
    height, width = camera.size
    bounds = np.array([*-start * scale, *([width, height] - start) * scale - 1.0])
    return Crop(camera, size, pinhole, scale, bounds, np.eye(3), (left, top), side)


def _undistorted_crop(camera: Camera, box, max_size: int, margin: float) -> Crop:
    x0, y0, x1, y1 = box
    edge = np.linspace(0.0, 1.0, 9)
    xs, ys = x0 + edge * (x1 - x0), y0 + edge * (y1 - y0)
    ring = np.array([(x, y) for x in xs for y in (y0, y1)] + [(x, y) for x in (x0, x1) for y in ys])
    rays = camera.rays(ring)
    rays = rays[np.isfinite(rays).all(axis=-1)]
    rotation = np.eye(3)
    if camera.distortion_model == "equidistant" and len(rays):
        rotation = _look_along(rays.mean(axis=0))
    points = rays @ rotation.T
    points = points[points[:, 2] > 0.05]
    if len(points) == 0:
        raise ValueError(
            f"the box {tuple(round(float(v), 1) for v in box)} lies where the lens model "
            f"({camera.distortion_model}) has no rays: check the distortion coefficients"
        )
    plane = points[:, :2] / points[:, 2:] * np.array([camera.fx, camera.fy])
    low, high = plane.min(axis=0), plane.max(axis=0)
    side = float((high - low).max() + 1.0) * (1.0 + 2.0 * margin) + 4.0
    side = int(np.ceil(side / 8.0)) * 8
    size = min(side, max_size)
    scale = size / side
    center = (low + high) / 2.0
    pinhole = np.array([camera.fx * scale, camera.fy * scale, 0.0, 0.0])
    pinhole[2:] = (size - 1) / 2.0 - center * scale
    # where the photo ends is told by outside(), since its border is curved here
    bounds = np.array([-1e6, -1e6, 1e6, 1e6])
    return Crop(camera, size, pinhole, scale, bounds, rotation, (0, 0), side)


def _look_along(ray: np.ndarray) -> np.ndarray:
    """(3, 3) crop_from_camera of a camera that looks along a ray, rolled as little as possible."""
    z = ray / np.linalg.norm(ray)
    axis = np.cross([0.0, 0.0, 1.0], z)
    sine, cosine = np.linalg.norm(axis), z[2]
    if sine < 1e-9:
        return np.eye(3)
    camera_from_crop, _ = cv2.Rodrigues(axis / sine * np.arctan2(sine, cosine))
    return camera_from_crop.T
