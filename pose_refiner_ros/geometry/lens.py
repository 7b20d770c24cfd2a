# SPDX-License-Identifier: Apache-2.0
"""Lens distortion between directions and the plane at distance 1 behind which pixels lie.

A lens maps directions to distorted normalised coordinates (`distort`) and back (`directions`), in
float64. The models are those of OpenCV's calib3d module (pinhole) and of cv2.fisheye (Kannala and
Brandt 2006). Its functions know no end of a model's domain, its inverses stop short near that end,
and `projectPoints` makes derivatives that nobody asked for, in ten times the time.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial.transform import Rotation

_ITERATIONS = 30
_TOLERANCE = 1e-12  # of distorted normalised coordinates: a billionth of a pixel


class Lens:
    """No distortion: a pinhole."""

    def distort(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) points -> (..., 2) distorted normalised coordinates; NaN where not imaged."""
        return forward(points)

    def directions(self, distorted: np.ndarray) -> np.ndarray:
        """(..., 2) distorted normalised coordinates -> (..., 3) unit rays; NaN where none."""
        rays = np.concatenate((distorted, np.ones_like(distorted[..., :1])), -1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


class Polynomial(Lens):
    """Radial polynomial or its ratio, tangential, thin prism, tilted sensor.

    4, 5, 8, 12 or 14 coefficients k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tau_x tau_y]]]].
    """

    def __init__(self, coefficients: np.ndarray):
        full = np.zeros(14)
        full[: len(coefficients)] = coefficients
        k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tau_x, tau_y = full
        self.top, self.bottom = np.poly1d([k3, k2, k1, 1.0]), np.poly1d([k6, k5, k4, 1.0])
        self.top_slope, self.bottom_slope = self.top.deriv(), self.bottom.deriv()
        self.p = np.array([[p2], [p1]])  # columns, as points are (2, N) in here
        self.s, self.s_slope = np.array([[s1], [s3]]), np.array([[s2], [s4]])
        self.tilt = _tilt(tau_x, tau_y) if tau_x or tau_y else None
        self.radius, self.table = self._domain()

    def distort(self, points: np.ndarray) -> np.ndarray:
        xy = forward(points).reshape(-1, 2).T
        # Beyond the first turning point of the radial curve the model folds back and would put
        # points far outside the view into the image.
        inside = xy[0] ** 2 + xy[1] ** 2 < self.radius**2
        distorted = self._distort(xy)
        if self.tilt is not None:
            distorted = _homography(self.tilt, distorted)
        return np.where(inside, distorted, np.nan).T.reshape(*points.shape[:-1], 2)

    def directions(self, distorted: np.ndarray) -> np.ndarray:
        undistorted = self._undistort(distorted.reshape(-1, 2).T)
        return super().directions(undistorted.T.reshape(distorted.shape))

    def _distort(self, xy: np.ndarray) -> np.ndarray:
        """(2, N) -> (2, N), before the tilt."""
        r2 = xy[0] ** 2 + xy[1] ** 2
        scale = self.top(r2) / self.bottom(r2) + 2.0 * (self.p * xy).sum(0)
        return scale * xy + (self.p + self.s + self.s_slope * r2) * r2

    def _jacobian(self, xy: np.ndarray) -> np.ndarray:
        """(2, 2, N) of `_distort` at (2, N)."""
        r2 = xy[0] ** 2 + xy[1] ** 2
        radial = self.top(r2) / self.bottom(r2)
        slope = (self.top_slope(r2) - radial * self.bottom_slope(r2)) / self.bottom(r2)
        scale = radial + 2.0 * (self.p * xy).sum(0)
        of_scale = xy[:, None] * (slope * xy + self.p)
        of_shift = (self.p + self.s + 2.0 * self.s_slope * r2)[:, None] * xy
        return scale * np.eye(2)[..., None] + 2.0 * (of_scale + of_shift)

    def _undistort(self, distorted: np.ndarray) -> np.ndarray:
        """(2, N) by Newton's method in the plane, started from the inverse of the radial part."""
        if self.tilt is not None:
            distorted = _homography(np.linalg.inv(self.tilt), distorted)
        rd = np.hypot(*distorted)
        xy = distorted * np.interp(rd, *self.table) / np.maximum(rd, 1e-300)
        left = np.arange(len(rd))
        with np.errstate(all="ignore"):
            for _ in range(_ITERATIONS):
                error = self._distort(xy[:, left]) - distorted[:, left]
                moving = ~(np.hypot(*error) < _TOLERANCE)
                left, (ex, ey) = left[moving], error[:, moving]  # few need more than three rounds
                if not left.size:
                    break
                (a, b), (c, d) = self._jacobian(xy[:, left])
                xy[:, left] -= np.array([d * ex - b * ey, a * ey - c * ex]) / (a * d - b * c)
            (a, b), (c, d) = self._jacobian(xy)
            error = np.hypot(*(self._distort(xy) - distorted))
            good = error < 10.0 * _TOLERANCE * (1.0 + rd)
            good &= (a * d - b * c > 0) & (np.hypot(*xy) < self.radius)
        return np.where(good, xy, np.nan)

    def _domain(self) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
        """Radius up to which the radial curve rises, and that curve as (distorted, radius)."""
        # d/dr of r N(r^2)/D(r^2) has the sign of N D + 2 r^2 (N' D - N D'), a polynomial in r^2;
        # the curve also ends where D vanishes.
        N, D = self.top, self.bottom
        slope = N * D + 2.0 * np.poly1d([1.0, 0.0]) * (N.deriv() * D - N * D.deriv())
        radius = math.sqrt(min(_least_positive_root(slope), _least_positive_root(D)))
        # Dense near the centre, and far enough for rays of 89 degrees where there is no end.
        r = np.tan(np.linspace(0.0, math.atan(min(radius, 60.0)), 1000))
        r = np.minimum(r, radius)
        with np.errstate(all="ignore"):
            curve = r * N(r * r) / D(r * r)
        usable = np.isfinite(curve) & (np.maximum.accumulate(curve) == curve)
        return radius, (curve[usable], r[usable])


class Fisheye(Lens):
    """Equidistant projection with an odd polynomial of the angle, k1 k2 k3 k4.

    The distorted radius is theta (1 + k1 theta^2 + ... + k4 theta^8), theta the angle to the axis.
    cv2.fisheye has no rays that point sideways or backwards.
    """

    def __init__(self, coefficients: np.ndarray):
        powers = np.array([1.0, *coefficients])
        self.curve = np.poly1d(np.ravel([np.zeros(5), powers], order="F")[::-1])
        slope = np.poly1d((powers * [1, 3, 5, 7, 9])[::-1])
        self.angle = min(math.pi, math.sqrt(_least_positive_root(slope)))
        angles = np.linspace(0.0, self.angle, 1000)
        self.table = self.curve(angles), angles

    def distort(self, points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points, -1, 0)
        r = np.hypot(x, y)
        theta = np.arctan2(r, z)
        # On the axis direction is anything, the radius zero, and their ratio one over z.
        on_axis = 1.0 / np.where(z > 0, z, np.nan)
        scale = np.where(r > 0, self.curve(theta) / np.where(r > 0, r, 1.0), on_axis)
        return points[..., :2] * np.where(theta < self.angle, scale, np.nan)[..., None]

    def directions(self, distorted: np.ndarray) -> np.ndarray:
        rd = np.hypot(distorted[..., 0], distorted[..., 1])
        theta = np.interp(rd, *self.table)
        slope = self.curve.deriv()
        with np.errstate(all="ignore"):
            for _ in range(_ITERATIONS):
                error = self.curve(theta) - rd
                if not (abs(error) > _TOLERANCE).any():
                    break
                theta = np.clip(theta - error / slope(theta), 0.0, self.angle)
            good = abs(self.curve(theta) - rd) < 10.0 * _TOLERANCE * (1.0 + rd)
            sine = np.where(rd > 0, np.sin(theta) / np.where(rd > 0, rd, 1.0), 1.0)
        rays = np.concatenate((distorted * sine[..., None], np.cos(theta)[..., None]), -1)
        return np.where(good[..., None], rays, np.nan)


def forward(points: np.ndarray) -> np.ndarray:
    """(x/z, y/z) of points (..., 3), NaN where z is not positive."""
    z = points[..., 2:]
    return points[..., :2] / np.where(z > 0, z, np.nan)


def _least_positive_root(polynomial: np.poly1d) -> float:
    """Infinity if there is none."""
    roots = polynomial.roots
    real = roots.real[(abs(roots.imag) < 1e-9 * (1.0 + abs(roots))) & (roots.real > 0)]
    return float(real.min(initial=math.inf))


def _tilt(tau_x: float, tau_y: float) -> np.ndarray:
    """Homography (3, 3) of a sensor tilted about x, then y, by so many radians."""
    R = Rotation.from_euler("xy", (-tau_x, -tau_y)).as_matrix()
    return np.array([[R[2, 2], 0, -R[0, 2]], [0, R[2, 2], -R[1, 2]], [0, 0, 1]]) @ R


def _homography(H: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(2, N) -> (2, N)."""
    moved = H[:, :2] @ xy + H[:, 2:]
    return moved[:2] / moved[2]
