# SPDX-License-Identifier: Apache-2.0
"""Points that depth cameras and laser scanners have measured on an object, by its mask."""

from __future__ import annotations

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.surface import ranges_to_surface

from .observation import Observation

MOST_POINTS = 192  # of an observation; more say little more
LEAST_POINTS = 8
MOST_PIXELS = 48**2  # around an object that are looked at
# Standard deviation of a depth: constant and by the distance squared, as stereo and structured
# light have it; and of what all depths of a picture are off by together.
DEPTH_SIGMA = 0.002, 0.002
DEPTH_OFFSET_SIGMA = 0.005
DEPTH_PATCH = 60.0  # pixels over which its noise is alike
SCAN_SIGMA = 0.02  # of a laser scanner's point
SCAN_OFFSET_SIGMA = 0.01
SPEED = 3.0  # metres per second that objects may move by between a scan and the mask
# A depth whose neighbours differ by more than this (share of the distance, beside six standard
# deviations) mixes what is in front and what is behind.
JUMP = 0.03
FARTHEST = np.float32(1e4)  # metres
START_RAYS = 48  # by which a start pose finds its distance
LEAST_MET = 0.25  # of these
# A surface that is measured so much farther or nearer than a pose has it, share of the distance, is
# not this object's: glass, a wrong unit.
FARTHEST_SHIFT = 0.4
UNITS = {1000.0: "millimetres and metres", 100.0: "centimetres and metres", 25.4: "inches"}
UNIT_TOLERANCE = 0.2  # of the logarithm

_BESIDE = np.ones((3, 3), np.uint8)


class DepthError(ValueError):
    """A depth image or scan that cannot be used; the message says why and what to do."""


def checked_depth(depth: np.ndarray | None, camera: Camera) -> np.ndarray | None:
    """A depth image (H, W) of a camera, if there is one and it can be used. Raises DepthError."""
    if depth is None:
        return None
    depth = np.asarray(depth)
    if depth.ndim != 2 or depth.dtype.kind not in "iuf":
        raise DepthError(
            f"depth not used: it has shape {depth.shape} of {depth.dtype}; it must be "
            "(height, width) metres, or whole numbers with a scale"
        )
    if depth.shape != camera.size:
        raise DepthError(
            f"depth not used: it is {depth.shape[1]}x{depth.shape[0]} and the camera "
            f"{camera.size[1]}x{camera.size[0]} pixels (width x height): register it to the colour "
            "camera"
        )
    return depth


def checked_scan(scan: np.ndarray | None) -> np.ndarray | None:
    """Points (N, 3) that are finite and in front of the camera. Raises DepthError."""
    if scan is None:
        return None
    scan = np.asarray(scan)
    if scan.ndim != 2 or scan.shape[1] != 3:
        raise DepthError(f"points not used: they have shape {scan.shape}; it must be (N, 3) metres")
    return scan[np.isfinite(scan).all(axis=1) & (scan[:, 2] > 0.0)]


def measured_in(
    seen: Observation,
    masks: np.ndarray,
    depth: np.ndarray | None,
    depth_scale: float,
    scan: np.ndarray | None,
    scan_age: float = 0.0,
) -> Observation:
    """An observation with what was measured in its mask: of the depth image (H, W) if that shows
    anything there, else of the scan (N, 3). depth_scale: metres per unit of whole numbers;
    scan_age: seconds between scan and mask."""
    label, camera = seen.label, seen.crop.camera
    if depth is not None:
        scale = depth_scale if depth.dtype.kind in "iu" else 1.0
        points, pixels = points_of_depth(depth, masks, label, camera, scale)
        if len(points) >= LEAST_POINTS:
            alike = max(DEPTH_PATCH * len(points) / pixels, 1.0)
            return seen.with_points(points, DEPTH_OFFSET_SIGMA, alike)
    if scan is not None:
        points = points_of_scan(scan, masks, label, camera)
        if len(points) >= LEAST_POINTS:
            return seen.with_points(points, np.hypot(SCAN_OFFSET_SIGMA, SPEED * scan_age))
    return seen


def points_of_depth(
    depth: np.ndarray, masks: np.ndarray, label: int, camera: Camera, scale: float = 1.0
) -> tuple[np.ndarray, int]:
    """Points (P, 4) float32 in camera axes, metres, of one label, each with its standard deviation
    along the ray; and of how many pixels with a depth they are.

    depth: (H, W) times scale metres along the optical axis, 0 or NaN where unknown; masks: (H, W)
    labels. Pixels at the mask's border and at steps of the depth are left out: there two surfaces
    are mixed.
    """
    own = (masks == label).view(np.uint8)
    x, y, width, height = cv2.boundingRect(own)
    wide = int(np.sqrt(width * height / MOST_PIXELS)) or 1
    for stride, border in ((wide, 1), (1, 1), (1, 0)):  # where there is little, closer
        part = slice(y, y + height, stride), slice(x, x + width, stride)
        z = depth[part].astype(np.float32)
        z *= np.float32(scale)
        known = (z > 0.0) & (z < FARTHEST)
        z[~known] = 0.0
        sigma = DEPTH_SIGMA[0] + DEPTH_SIGMA[1] * z * z
        nearest = cv2.erode(np.where(known, z, FARTHEST), _BESIDE)
        known &= cv2.dilate(z, _BESIDE) - nearest < JUMP * z + 6.0 * sigma
        inside = np.ascontiguousarray(own[part])
        if border:
            inside = cv2.erode(inside, _BESIDE, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        rows, columns = np.nonzero(inside.view(bool) & known)
        if len(rows) >= LEAST_POINTS:
            break
    chosen, count = _evenly(len(rows)), stride**2 * len(rows)
    rows, columns = rows[chosen], columns[chosen]
    pixels = (stride * np.stack([columns, rows], axis=-1) + (x, y)).astype(np.float64)
    rays = camera.rays(pixels)
    points = rays * (z[rows, columns] / rays[:, 2])[:, None]
    good = np.isfinite(points).all(axis=1) & (rays[:, 2] > 0.0)
    return np.column_stack([points, sigma[rows, columns]])[good].astype(np.float32), count


def points_of_scan(scan: np.ndarray, masks: np.ndarray, label: int, camera: Camera) -> np.ndarray:
    """The same of points (N, 3) in camera axes, those that are seen in the label's mask."""
    pixels = camera.project(scan.astype(np.float64))
    pixels = np.nan_to_num(pixels, nan=-1.0).round().astype(int)
    height, width = masks.shape
    inside = ((pixels >= 0) & (pixels < (width, height))).all(axis=1)
    scan, pixels = scan[inside], pixels[inside]
    scan = scan[masks[pixels[:, 1], pixels[:, 0]] == label]
    scan = scan[_evenly(len(scan))]
    return np.column_stack([scan, np.full(len(scan), SCAN_SIGMA)]).astype(np.float32)


def _evenly(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int)


def at_measured_distance(poses: np.ndarray, points: np.ndarray, model: ObjectModel) -> np.ndarray:
    """Poses (N, 4, 4) in the axes of points (P, 4), each moved along its ray until the surface is
    where it was measured (in the median). Those whose surface the rays miss stay, and those that
    would be moved by far."""
    poses = np.array(poses, np.float64)
    measured, found = _ranges(poses, points, model)
    shift = np.ma.median(np.ma.masked_invalid(measured - found), axis=1).filled(np.inf)
    middle = poses[:, :3, :3] @ model.box_center + poses[:, :3, 3]
    share = shift / np.linalg.norm(middle, axis=1)
    met = np.isfinite(found).sum(axis=1) >= LEAST_MET * START_RAYS
    moved = met & (np.abs(share) < FARTHEST_SHIFT)
    poses[moved, :3, 3] += middle[moved] * share[moved, None]
    return poses


def doubt_about(pose: np.ndarray, points: np.ndarray, model: ObjectModel) -> str:
    """What may be wrong where points (P, 4) do not lie on an object at a pose (4, 4) that fits its
    mask."""
    measured, (found,) = _ranges(pose[None], points, model)
    met = np.isfinite(found)
    measured, found = measured[met], found[met]
    if not met.any():
        measured = np.linalg.norm(points[:, :3], axis=1)
        found = np.linalg.norm(pose[:3, :3] @ model.box_center + pose[:3, 3])
    ratio = float(np.median(measured / found))
    told = (
        f"what was measured of {model.name} does not lie on it in any pose that fits the mask "
        f"(it is {float(f'{ratio:.2g}'):g} times as far away): the mask alone placed it; "
    )
    for factor, why in UNITS.items():
        if abs(abs(np.log(ratio)) - np.log(factor)) < UNIT_TOLERANCE:
            return f"{told}is the unit of the depth or of the mesh wrong ({why})?"
    return told + "is it glass, another object, or a mesh of another size?"


def _ranges(poses: np.ndarray, points: np.ndarray, model: ObjectModel):
    """The ranges (R,) that were measured along some rays, and (N, R) those of the surface in each
    pose (N, 4, 4), infinite where a ray misses it."""
    chosen = np.linspace(0, len(points) - 1, min(START_RAYS, len(points))).astype(int)
    points = points[chosen, :3].astype(np.float64)
    measured = np.linalg.norm(points, axis=1)
    return measured, ranges_to_surface(model, poses, points / measured[:, None])
