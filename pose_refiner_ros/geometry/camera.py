# SPDX-License-Identifier: Apache-2.0
"""The camera: pinhole with lens distortion. Points are undistorted, images never resampled.

Axes: x right, y down, z forward (OpenCV's, and ROS's optical frame). Pixel (0, 0) is the centre
of the top-left pixel. Sizes are (height, width). The distortion models are OpenCV's, under the
names that ROS gives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pose_refiner_ros.geometry import lens

# Numbers of coefficients that a model may have, and what they are.
_COEFFICIENTS = {
    "none": ((0,), "none"),
    "plumb_bob": ((4, 5), "k1 k2 p1 p2 [k3]"),
    "rational_polynomial": ((8, 12, 14), "k1 k2 p1 p2 k3 k4 k5 k6 [s1 s2 s3 s4 [tau_x tau_y]]"),
    "equidistant": ((4,), "k1 k2 k3 k4"),
}
_ALIASES = {"": "none", "pinhole": "none", "fisheye": "equidistant"}


class CameraError(ValueError):
    """A calibration that cannot be used; the message says which value is wrong and what to do."""


@dataclass(frozen=True, eq=False)
class Camera:
    """Intrinsics and distortion of the image that is used.

    Attributes:
        intrinsics: (3, 3) float64, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels.
        size: (height, width) of the image in pixels.
        distortion_model: none | plumb_bob | rational_polynomial | equidistant (fisheye).
        distortion: (N,) float64, in OpenCV's order; empty for none.

    Raises:
        CameraError: for anything that is not a usable calibration.
    """

    intrinsics: np.ndarray
    size: tuple[int, int]
    distortion_model: str = "none"
    distortion: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        intrinsics = _checked_intrinsics(self.intrinsics)
        model, distortion = _checked_distortion(self.distortion_model, self.distortion)
        for array in (intrinsics, distortion):
            array.setflags(write=False)
        set_field = object.__setattr__
        set_field(self, "intrinsics", intrinsics)
        set_field(self, "size", _checked_size(self.size))
        set_field(self, "distortion_model", model)
        set_field(self, "distortion", distortion)

    @classmethod
    def from_calibration(
        cls,
        size: Sequence[int],
        K: Any,
        D: Any = (),
        model: str = "plumb_bob",
        binning: Sequence[int] = (1, 1),
        roi: Any = None,
    ) -> Camera:
        """Camera of the image that belongs to a calibration such as sensor_msgs/CameraInfo.

        K and D belong to the sensor's full resolution; the image is its region of interest, then
        binned. The region moves pixels, not rays, so the distortion stays as it is.

        Args:
            size: (height, width) at full resolution.
            K: (9,) or (3, 3). For a rectified image pass the left 3x3 of P and no D.
            D: distortion coefficients; none, or all zero, is no distortion (but for equidistant,
                which bends rays even then).
            binning: (x, y) as CameraInfo has it, 0 meaning 1.
            roi: None, or x_offset, y_offset, height, width as attributes or keys. Height and
                width 0 mean the full image. do_rectify says how a rectified image would be
                cropped; this is the raw image, so it changes nothing.

        Raises:
            CameraError: saying which value is wrong and what to do.
        """
        height, width = _checked_size(size)
        K = _checked_intrinsics(K)
        x0, y0, roi_height, roi_width = _checked_roi(roi, height, width)
        binning_x, binning_y = _checked_binning(binning, roi_height, roi_width)
        # Half a pixel is added and taken away because pixel centres, not corners, are integers.
        for axis, offset, factor in ((0, x0, binning_x), (1, y0, binning_y)):
            K[axis, axis] /= factor
            K[axis, 2] = (K[axis, 2] + 0.5 - offset) / factor - 0.5
        return cls(K, (roi_height // binning_y, roi_width // binning_x), model, D)

    @property
    def height(self) -> int:
        return self.size[0]

    @property
    def width(self) -> int:
        return self.size[1]

    @property
    def fx(self) -> float:
        return float(self.intrinsics[0, 0])

    @property
    def fy(self) -> float:
        return float(self.intrinsics[1, 1])

    @property
    def cx(self) -> float:
        return float(self.intrinsics[0, 2])

    @property
    def cy(self) -> float:
        return float(self.intrinsics[1, 2])

    @property
    def is_distorted(self) -> bool:
        return self.distortion_model != "none"

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels of points, with distortion.

        Args:
            points: (..., 3), camera axes, metres.

        Returns:
            (..., 2), of the same precision. NaN where a point has no image: behind the camera, or
            so far off axis that the distortion model folds back on itself. Pixels may lie outside
            the image.
        """
        points, dtype = _floats(points, 3, "points")
        return (self._lens.distort(points) * self._focal + self._centre).astype(dtype)

    def undistort(self, pixels: np.ndarray) -> np.ndarray:
        """Normalised coordinates (x/z, y/z) that a pixel sees.

        Args:
            pixels: (..., 2).

        Returns:
            (..., 2), of the same precision; exact to 1e-9 in float64. NaN where no ray meets the
            pixel (outside the domain of the distortion model), or the ray does not point forward.
        """
        pixels, dtype = _floats(pixels, 2, "pixels")
        xy = lens.forward(self.rays(pixels)) if self.is_distorted else self._normalise(pixels)
        return xy.astype(dtype)

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """Unit directions in camera axes of the rays that meet pixels. (..., 2) -> (..., 3).

        NaN where no ray meets the pixel. With the fisheye model rays may point backwards.
        """
        pixels, dtype = _floats(pixels, 2, "pixels")
        return self._lens.directions(self._normalise(pixels)).astype(dtype)

    def check_image(self, image: Any, name: str = "image") -> None:
        """Raises CameraError unless an image (or a mask) has this camera's size.

        Args:
            image: (H, W) or (H, W, C) array, or its (height, width).
            name: what to call it in the message.
        """
        shape = getattr(image, "shape", image)
        height, width = int(shape[0]), int(shape[1])
        if (height, width) == self.size:
            return
        said = f"the {name} is {width}x{height} but its camera {self.width}x{self.height}"
        ratio = self.width / width
        if (width, height) == (self.height, self.width):
            advice = "one of the two is turned by 90 degrees, or height and width are exchanged"
        elif abs(self.height / height - ratio) < 1e-6:
            advice = (
                f"the {name} was resized by {1 / ratio:g}: resize fx, fy, cx, cy as well, or it "
                "back (masks with nearest neighbour)"
            ) + (f", or set binning to {ratio:g}" if ratio > 1 and ratio == int(ratio) else "")
        else:
            advice = f"use the calibration of this {name}, with its region of interest"
        raise CameraError(f"{said} (width x height); {advice}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Camera) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple:
        return (
            self.intrinsics.tobytes(), self.size, self.distortion_model, self.distortion.tobytes()
        )  # fmt: skip

    @property
    def _focal(self) -> np.ndarray:
        return self.intrinsics.diagonal()[:2]

    @property
    def _centre(self) -> np.ndarray:
        return self.intrinsics[:2, 2]

    @cached_property
    def _lens(self) -> lens.Lens:
        if self.distortion_model == "none":
            return lens.Lens()
        if self.distortion_model == "equidistant":
            return lens.Fisheye(self.distortion)
        return lens.Polynomial(self.distortion)

    def _normalise(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels - self._centre) / self._focal


def _checked_size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(n) for n in size)
        exact = all(int(n) == n for n in size)
    except (TypeError, ValueError) as error:
        raise CameraError(f"image size must be (height, width), got {size!r}") from error
    if height <= 0 or width <= 0 or not exact:
        raise CameraError(
            f"image size (height, width) is {tuple(size)}, both must be whole and positive; "
            "fill in height and width of the calibration"
        )
    return height, width


def _checked_intrinsics(K: Any) -> np.ndarray:
    """A fresh (3, 3) float64 array, or CameraError."""
    try:
        K = np.array(K, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CameraError(f"intrinsics K must be 3x3 numbers, got {K!r}") from error
    if K.size == 12:
        raise CameraError(
            "intrinsics K have 12 numbers, like the projection matrix P of a rectified image; "
            "for a raw image pass K (9 numbers), for a rectified one P's left 3x3 and no distortion"
        )
    if K.size != 9:
        raise CameraError(f"intrinsics K must have 9 numbers (3x3 row by row), got {K.size}")
    K = K.reshape(3, 3)
    if not np.isfinite(K).all():
        raise CameraError(f"intrinsics K contain NaN or infinity: {_numbers(K)}; calibrate again")
    if not K.any():
        raise CameraError(
            "intrinsics K are all zero: the camera is not calibrated; calibrate it, or let its "
            "driver load the calibration file"
        )
    for name, focal in (("fx", K[0, 0]), ("fy", K[1, 1])):
        if focal <= 0:
            raise CameraError(
                f"focal length {name} is {focal:g} pixels, it must be positive; "
                "a flipped image needs flipping back, not a negative focal length"
            )
    if K[0, 1] != 0:
        raise CameraError(
            f"intrinsics K have skew {K[0, 1]:g}, which is not supported; "
            "calibrate without skew (OpenCV and ROS do)"
        )
    if K[1, 0] != 0 or tuple(K[2]) != (0.0, 0.0, 1.0):
        raise CameraError(
            f"intrinsics K must be [fx 0 cx 0 fy cy 0 0 1] row by row, got {_numbers(K)}"
            + ("; they look transposed" if K[0, 2] == K[1, 2] == 0 and K[2, 2] == 1 else "")
        )
    return K


def _checked_distortion(model: Any, D: Any) -> tuple[str, np.ndarray]:
    name = _ALIASES.get(model, model)
    if name not in _COEFFICIENTS:
        known = ", ".join(_COEFFICIENTS)
        raise CameraError(
            f"unknown distortion model {model!r}; known are {known}. "
            "Rectify the image first, or calibrate with one of these"
        )
    try:
        D = np.array([] if D is None else D, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise CameraError(f"distortion coefficients must be numbers, got {D!r}") from error
    if not np.isfinite(D).all():
        raise CameraError(f"distortion D contains NaN or infinity: {_numbers(D)}; calibrate again")
    # No coefficients or zeros bend no ray: the fast path, whatever the model's name. Not so for a
    # fisheye, whose image without coefficients is still not a pinhole's.
    if name != "equidistant" and not D.any():
        return "none", np.zeros(0)
    counts, meaning = _COEFFICIENTS[name]
    if len(D) not in counts:
        fitting = [m for m, (c, _) in _COEFFICIENTS.items() if len(D) in c and m != "equidistant"]
        expected = " or ".join(map(str, counts))
        raise CameraError(
            f"distortion model {name!r} takes {expected} coefficients ({meaning}), got {len(D)}"
            + (f"; {len(D)} coefficients belong to {fitting[0]!r}" if fitting else "")
        )
    if len(D) == 14 and max(abs(D[12]), abs(D[13])) >= math.pi / 2:
        raise CameraError(
            f"sensor tilt is {_numbers(D[12:])} radians, it must be below a right angle"
        )
    return name, D


def _checked_roi(roi: Any, height: int, width: int) -> tuple[int, int, int, int]:
    """(x_offset, y_offset, height, width) inside the full image."""
    if roi is None:
        return 0, 0, height, width
    try:
        get = roi.__getitem__ if isinstance(roi, Mapping) else roi.__getattribute__
        x0, y0, h, w = (int(get(k)) for k in ("x_offset", "y_offset", "height", "width"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CameraError(
            f"region of interest must have x_offset, y_offset, height and width, got {roi!r}"
        ) from error
    if h == 0 and w == 0 and x0 == 0 and y0 == 0:
        return 0, 0, height, width
    said = f"region of interest {w}x{h} at ({x0}, {y0})"
    if h <= 0 or w <= 0:
        raise CameraError(f"{said} is empty; all zero would mean the full image")
    if x0 < 0 or y0 < 0 or x0 + w > width or y0 + h > height:
        raise CameraError(
            f"{said} reaches outside the full image of {width}x{height} (width x height); "
            "offsets count from the top left at full resolution, before binning"
        )
    return x0, y0, h, w


def _checked_binning(binning: Any, height: int, width: int) -> tuple[int, int]:
    try:
        x, y = (int(b) or 1 for b in binning)
    except (TypeError, ValueError) as error:
        raise CameraError(f"binning must be two whole numbers (x, y), got {binning!r}") from error
    if x < 1 or y < 1 or x > width or y > height:
        raise CameraError(
            f"binning {x}x{y} does not fit an image of {width}x{height} (width x height)"
        )
    return x, y


def _floats(values: Any, n: int, what: str) -> tuple[np.ndarray, np.dtype]:
    """Values (..., n) in float64, and the precision that they came with (float64 for integers)."""
    values = np.asarray(values)
    if values.ndim == 0 or values.shape[-1] != n:
        raise ValueError(f"{what} must have shape (..., {n}), got {values.shape}")
    dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
    return values.astype(np.float64), dtype


def _numbers(array: np.ndarray) -> str:
    return " ".join(f"{x:g}" for x in np.ravel(array))
