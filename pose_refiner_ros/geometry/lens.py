# SPDX-License-Identifier: Apache-2.0
"""Lens distortion between directions and the plane at distance 1 behind which pixels lie.

A lens maps directions to distorted normalised coordinates (`distort`) and back (`directions`).
numpy and torch arrays go in and the same kind comes out. Formulas: OpenCV's documentation of the
calib3d module (pinhole) and of cv2.fisheye (Kannala and Brandt 2006).
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

_ITERATIONS = 30
_TOLERANCE = 1e-12  # of distorted normalised coordinates: a billionth of a pixel


class Lens:
    """No distortion: a pinhole."""

    def distort(self, points: Any) -> Any:
        """(..., 3) points -> (..., 2) distorted normalised coordinates; NaN where not imaged."""
        return forward(points)

    def directions(self, distorted: Any) -> Any:
        """(..., 2) distorted normalised coordinates -> (..., 3) unit rays; NaN where none."""
        x, y = distorted[..., 0], distorted[..., 1]
        z = 1.0 / (x * x + y * y + 1.0) ** 0.5
        return stack((x * z, y * z, z))


class Polynomial(Lens):
    """Radial polynomial or its ratio, tangential, thin prism, tilted sensor.

    4, 5, 8, 12 or 14 coefficients k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tau_x tau_y]]]].
    """

    def __init__(self, coefficients: np.ndarray):
        full = [0.0] * 14
        full[: len(coefficients)] = [float(c) for c in coefficients]
        k1, k2, self.p1, self.p2, k3, k4, k5, k6, self.s1, self.s2, self.s3, self.s4 = full[:12]
        self.numerator = (1.0, k1, k2, k3)
        self.denominator = (1.0, k4, k5, k6)
        self.tilt = _tilt(*full[12:]) if full[12] or full[13] else None
        self.radius, self.table = self._domain()

    def distort(self, points: Any) -> Any:
        xy = forward(points)
        # Beyond the first turning point of the radial curve the model folds back and would put
        # points far outside the view into the image.
        inside = (xy * xy).sum(-1) < self.radius**2
        x, y = self._distort(xy[..., 0], xy[..., 1])
        if self.tilt is not None:
            x, y = _homography(self.tilt, x, y)
        nan = float("nan")
        return stack((where(inside, x, nan), where(inside, y, nan)))

    def directions(self, distorted: Any) -> Any:
        return super().directions(_in_numpy(self._undistort, distorted))

    def _radial(self, r2: Any) -> tuple[Any, Any]:
        """The radial factor and its derivative by r^2."""
        top, slope_top = _horner(self.numerator, r2)
        bottom, slope_bottom = _horner(self.denominator, r2)
        factor = top / bottom
        return factor, (slope_top - factor * slope_bottom) / bottom

    def _distort(self, x: Any, y: Any) -> tuple[Any, Any]:
        r2 = x * x + y * y
        radial = self._radial(r2)[0]
        xy2 = 2.0 * x * y
        prism_x, prism_y = (self.s1 + self.s2 * r2) * r2, (self.s3 + self.s4 * r2) * r2
        return (
            x * radial + self.p1 * xy2 + self.p2 * (r2 + 2.0 * x * x) + prism_x,
            y * radial + self.p2 * xy2 + self.p1 * (r2 + 2.0 * y * y) + prism_y,
        )

    def _jacobian(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
        r2 = x * x + y * y
        radial, slope = self._radial(r2)
        prism_x = 2.0 * (self.s1 + 2.0 * self.s2 * r2)
        prism_y = 2.0 * (self.s3 + 2.0 * self.s4 * r2)
        mixed = 2.0 * (x * y * slope + self.p1 * x + self.p2 * y)
        return (
            radial + x * (2.0 * x * slope + 6.0 * self.p2 + prism_x) + 2.0 * self.p1 * y,
            mixed + y * prism_x,
            mixed + x * prism_y,
            radial + y * (2.0 * y * slope + 6.0 * self.p1 + prism_y) + 2.0 * self.p2 * x,
        )

    def _undistort(self, distorted: np.ndarray) -> np.ndarray:
        """Newton's method in the plane, started from the inverse of the radial part."""
        xd, yd = distorted[..., 0], distorted[..., 1]
        if self.tilt is not None:
            xd, yd = _homography(np.linalg.inv(self.tilt), xd, yd)
        rd = np.hypot(xd, yd)
        scale = np.interp(rd, *self.table) / np.maximum(rd, 1e-300)
        x, y = np.where(rd > 0, xd * scale, 0.0), np.where(rd > 0, yd * scale, 0.0)
        shape, left = x.shape, slice(None)
        x, y, xd, yd = (np.ravel(a) for a in (x, y, xd, yd))
        with np.errstate(all="ignore"):
            for _ in range(_ITERATIONS):
                at_x, at_y = self._distort(x[left], y[left])
                ex, ey = at_x - xd[left], at_y - yd[left]
                moving = ~(np.hypot(ex, ey) < _TOLERANCE)
                left = np.arange(x.size)[left][moving]  # few need more than three rounds
                if not left.size:
                    break
                xx, xy, yx, yy = self._jacobian(x[left], y[left])
                determinant = xx * yy - xy * yx
                ex, ey = ex[moving], ey[moving]
                x[left] -= (yy * ex - xy * ey) / determinant
                y[left] -= (xx * ey - yx * ex) / determinant
            xx, xy, yx, yy = self._jacobian(x, y)
            at_x, at_y = self._distort(x, y)
            good = np.hypot(at_x - xd, at_y - yd) < 10.0 * _TOLERANCE * (1.0 + np.hypot(xd, yd))
            good &= (xx * yy - xy * yx > 0) & (np.hypot(x, y) < self.radius)
        return np.where(good[:, None], np.stack((x, y), -1), np.nan).reshape(*shape, 2)

    def _domain(self) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """Radius up to which the radial curve rises, and that curve as (distorted, radius)."""
        # d/dr of r N(r^2)/D(r^2) has the sign of N D + 2 r^2 (N' D - N D'), a polynomial in r^2;
        # the curve also ends where D vanishes.
        N, D = np.poly1d(self.numerator[::-1]), np.poly1d(self.denominator[::-1])
        slope = N * D + 2.0 * np.poly1d([1.0, 0.0]) * (N.deriv() * D - N * D.deriv())
        roots = np.concatenate((slope.roots, D.roots))
        real = roots.real[(abs(roots.imag) < 1e-9 * (1.0 + abs(roots))) & (roots.real > 0)]
        radius = math.sqrt(real.min()) if len(real) else math.inf
        # Dense near the centre, and far enough for rays of 89 degrees where there is no end.
        r = np.tan(np.linspace(0.0, math.atan(min(radius, 60.0)), 1000))
        r = np.minimum(r, radius)
        with np.errstate(all="ignore"):
            curve = r * self._radial(r * r)[0]
        usable = np.isfinite(curve) & (np.maximum.accumulate(curve) == curve)
        return radius, (curve[usable], r[usable])


class Fisheye(Lens):
    """Equidistant projection with an odd polynomial of the angle, k1 k2 k3 k4.

    The distorted radius is theta (1 + k1 theta^2 + ... + k4 theta^8), theta the angle to the axis.
    """

    def __init__(self, coefficients: np.ndarray):
        self.powers = (1.0, *(float(c) for c in coefficients))
        slope = np.poly1d([(2 * i + 1) * c for i, c in enumerate(self.powers)][::-1])
        roots = slope.roots
        real = roots.real[(abs(roots.imag) < 1e-9 * (1.0 + abs(roots))) & (roots.real > 0)]
        self.angle = min([math.pi, *np.sqrt(real)])
        angles = np.linspace(0.0, self.angle, 1000)
        self.table = (self._curve(angles)[0], angles)

    def distort(self, points: Any) -> Any:
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        r = hypot(x, y)
        theta = module(points).arctan2(r, z)
        # On the axis direction is anything, the radius zero, and their ratio one over z.
        safe = where(r > 0, r, 1.0)
        scale = where(r > 0, self._curve(theta)[0] / safe, 1.0 / where(z > 0, z, float("nan")))
        scale = where(theta < self.angle, scale, float("nan"))
        return stack((x * scale, y * scale))

    def directions(self, distorted: Any) -> Any:
        return _in_numpy(self._directions, distorted)

    def _curve(self, theta: Any) -> tuple[Any, Any]:
        """Distorted radius and its derivative by the angle."""
        t2 = theta * theta
        value, slope = _horner(self.powers, t2)
        return theta * value, value + 2.0 * t2 * slope

    def _directions(self, distorted: np.ndarray) -> np.ndarray:
        rd = np.hypot(distorted[..., 0], distorted[..., 1])
        theta = np.interp(rd, *self.table)
        with np.errstate(all="ignore"):
            for _ in range(_ITERATIONS):
                value, slope = self._curve(theta)
                if not (abs(value - rd) > _TOLERANCE).any():
                    break
                theta = np.clip(theta - (value - rd) / slope, 0.0, self.angle)
            good = abs(self._curve(theta)[0] - rd) < 10.0 * _TOLERANCE * (1.0 + rd)
            sine = np.where(rd > 0, np.sin(theta) / np.where(rd > 0, rd, 1.0), 1.0)
        z = np.cos(theta)
        rays = np.stack((distorted[..., 0] * sine, distorted[..., 1] * sine, z), -1)
        return np.where(good[..., None], rays, np.nan)


def forward(points: Any) -> Any:
    """(x/z, y/z) of points (..., 3), NaN where z is not positive."""
    z = points[..., 2]
    z = where(z > 0, z, float("nan"))
    return stack((points[..., 0] / z, points[..., 1] / z))


def module(x: Any) -> Any:
    """The module, numpy or torch, whose functions take x."""
    torch = sys.modules.get("torch")  # whoever has a tensor has imported it
    return torch if torch is not None and isinstance(x, torch.Tensor) else np


def floating(x: Any) -> Any:
    """x as a numpy or torch array of floats; anything that is neither becomes float64 numpy."""
    if module(x) is not np:
        return x if x.is_floating_point() else x.double()
    x = np.asarray(x)
    return x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float64)


def stack(parts: tuple[Any, ...]) -> Any:
    return module(parts[0]).stack(parts, -1)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Like numpy's, but a Python number never widens float32."""
    if module(condition) is not np:
        return module(condition).where(condition, a, b)
    dtype = next(x.dtype for x in (a, b) if hasattr(x, "dtype"))
    return np.where(condition, np.asarray(a, dtype), np.asarray(b, dtype))


def hypot(x: Any, y: Any) -> Any:
    return module(x).hypot(x, y)


def _in_numpy(function: Any, x: Any) -> Any:
    """Applies a float64 numpy function to either kind of array, keeping kind and type."""
    torch = module(x)
    if torch is np:
        return function(x.astype(np.float64)).astype(x.dtype)
    result = function(x.detach().cpu().numpy().astype(np.float64))
    return torch.from_numpy(result).to(device=x.device, dtype=x.dtype)


def _horner(coefficients: tuple[float, ...], x: Any) -> tuple[Any, Any]:
    """Value and derivative of a polynomial, lowest power first."""
    value, slope = coefficients[-1], 0.0
    for c in coefficients[-2::-1]:
        slope = slope * x + value
        value = value * x + c
    return value, slope


def _tilt(tau_x: float, tau_y: float) -> np.ndarray:
    """Homography of a sensor tilted about x, then y, by so many radians. (3, 3)."""
    cx, sx, cy, sy = math.cos(tau_x), math.sin(tau_x), math.cos(tau_y), math.sin(tau_y)
    about_x = np.array([[1, 0, 0], [0, cx, sx], [0, -sx, cx]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    R = about_y @ about_x
    return np.array([[R[2, 2], 0, -R[0, 2]], [0, R[2, 2], -R[1, 2]], [0, 0, 1]]) @ R


def _homography(H: np.ndarray, x: Any, y: Any) -> tuple[Any, Any]:
    (a, b, c), (d, e, f), (g, h, i) = H.tolist()
    w = g * x + h * y + i
    return (a * x + b * y + c) / w, (d * x + e * y + f) / w
