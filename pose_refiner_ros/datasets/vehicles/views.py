# SPDX-License-Identifier: Apache-2.0
"""Where cameras stand around a vehicle, and the silhouettes that they see.

The vehicle stands at the origin of a ground plane z = 0, x forward, y left, z up. Everything works
on arrays: ten thousand cameras are drawn in milliseconds, so data sets need not lie on disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

CHUNK = 256  # silhouettes drawn in one launch: their scratch memory stays in the caches


class Views(NamedTuple):
    """camera_from_object: (N, 4, 4) float64, metres. pinhole: (N, 4) float64, fx fy cx cy of a
    square image, pixels."""

    camera_from_object: np.ndarray
    pinhole: np.ndarray


@dataclass(frozen=True)
class PaperCamera:
    """The camera of Palazzi et al. 2018, section 4.1.

    Of the paper: it stands on a point of a 10x10 grid at height 1.5, looks at a point of a 3x3 grid
    at the object, and takes pictures of 256x256. Not stated there, and chosen here: the grids'
    extents; that no camera stands nearer than `nearest`, which leaves out the middle of the grid
    (inside a vehicle, or too close to see it whole: 32 of 100 points); the field of view. The
    authors' published renderer has a 35 mm lens and a sensor of 32 mm across its diagonal; here
    they are its side, or a car would not fit into the picture.

    Attributes:
        grid: points along a side of the grid of positions, which is centred on the vehicle.
        extent: half its side, metres.
        height: of the camera above the ground, metres.
        look_at_grid, look_at_extent: the same of the points that are looked at, level with
            look_at_height, about half the height of a car.
        jitter: moves positions and points looked at by up to this share of half a cell of their
            grids; 0 is the paper, 1 fills the plane.
        nearest: least horizontal distance of the camera to the vehicle's origin, metres.
        size: of the picture, pixels.
        fov: field of view, radians.
    """

    grid: int = 10
    extent: float = 10.0
    height: float = 1.5
    look_at_grid: int = 3
    look_at_extent: float = 1.0
    look_at_height: float = 0.75
    jitter: float = 0.0
    nearest: float = 7.0
    size: int = 256
    fov: float = 2 * math.atan(16 / 35)

    @property
    def pinhole(self) -> np.ndarray:
        """(4,) fx, fy, cx, cy of every picture, pixels."""
        return _pinholes(np.array(self.fov), self.size)

    @cached_property
    def positions(self) -> np.ndarray:
        """(P, 2) points of the grid that are far enough from the vehicle, metres."""
        points = _grid(self.grid, self.extent)
        points = points[np.linalg.norm(points, axis=1) >= self.nearest]
        if len(points) == 0:
            raise ValueError(
                f"no point of a grid of {self.grid}x{self.grid} over ±{self.extent:g} m is "
                f"{self.nearest:g} m from the vehicle: give a larger extent or a smaller distance"
            )
        return points

    def sample(self, count: int, rng: np.random.Generator) -> Views:
        """`count` cameras drawn evenly from all pairs of position and point looked at."""
        targets = _grid(self.look_at_grid, self.look_at_extent)
        position = self.positions[rng.integers(len(self.positions), size=count)]
        target = targets[rng.integers(len(targets), size=count)]
        if self.jitter:
            position = position + self._shift(count, rng, self.grid, self.extent)
            target = target + self._shift(count, rng, self.look_at_grid, self.look_at_extent)
            away = np.linalg.norm(position, axis=1, keepdims=True)
            position *= np.maximum(self.nearest / away, 1.0)  # jitter must not bring it too near
        forward = np.column_stack(
            [target - position, np.full(count, self.look_at_height - self.height)]
        )
        poses = _poses(
            np.column_stack([position, np.full(count, self.height)]),
            heading=np.arctan2(forward[:, 1], forward[:, 0]),
            pitch=np.arctan2(forward[:, 2], np.linalg.norm(forward[:, :2], axis=1)),
        )
        return Views(poses, _pinholes(np.full(count, self.fov), self.size))

    def _shift(self, count, rng, grid, extent):
        cell = 2 * extent / max(grid - 1, 1)
        return rng.uniform(-0.5, 0.5, (count, 2)) * (self.jitter * cell)


@dataclass(frozen=True)
class RobotCamera:
    """Cameras of all kinds on robots and cars: wider than the paper's, so that what is learned
    holds up elsewhere. Each range is (least, most).

    Attributes:
        height: of the camera above the ground, metres.
        distance: horizontal, to the vehicle's origin, metres; near ones are as likely as far ones
            (uniform in its logarithm). A lorry's corners are 4 m from its origin.
        fov: field of view, radians.
        off_axis: how far the vehicle's middle may lie from that of the picture, as a share of half
            the field of view.
        roll: standard deviation, radians.
        size: of the picture, pixels.
    """

    height: tuple[float, float] = (0.5, 3.0)
    distance: tuple[float, float] = (5.0, 40.0)
    fov: tuple[float, float] = (math.radians(35), math.radians(85))
    off_axis: float = 0.5
    roll: float = math.radians(3)
    middle_height: float = 0.75  # of a vehicle, metres
    size: int = 256

    def sample(self, count: int, rng: np.random.Generator) -> Views:
        """`count` cameras, evenly all around the vehicle."""
        distance = np.exp(rng.uniform(*np.log(self.distance), count))
        bearing = rng.uniform(-np.pi, np.pi, count)  # of the camera, seen from the vehicle
        height = rng.uniform(*self.height, count)
        fov = rng.uniform(*self.fov, count)
        off = rng.uniform(-0.5, 0.5, (2, count)) * (self.off_axis * fov)
        poses = _poses(
            np.column_stack([distance * np.cos(bearing), distance * np.sin(bearing), height]),
            heading=bearing + np.pi + off[0],
            pitch=np.arctan2(self.middle_height - height, distance) + off[1],
            roll=rng.normal(0.0, self.roll, count),
        )
        return Views(poses, _pinholes(fov, self.size))


def silhouettes(
    meshes: MeshBatch,
    mesh_index: np.ndarray,
    camera_from_object: np.ndarray,
    pinhole: np.ndarray,
    size: int,
) -> np.ndarray:
    """(N, size, size) uint8 0/1: the silhouette of meshes (N,) at poses (N, 4, 4).

    pinhole: fx, fy, cx, cy of an image of that size, (4,) or one per pose (N, 4).
    """
    count = len(camera_from_object)
    mesh_index = np.broadcast_to(np.asarray(mesh_index), (count,))
    pinhole = np.broadcast_to(np.asarray(pinhole), (count, 4))
    masks = np.empty((count, size, size), np.uint8)
    for first in range(0, count, CHUNK):
        part = slice(first, first + CHUNK)
        masks[part] = draw(meshes, mesh_index[part], camera_from_object[part], pinhole[part], size)
    return masks


def resized_pinhole(pinhole: np.ndarray, size: int, new_size: int) -> np.ndarray:
    """Intrinsics (..., 4) of the same view with another number of pixels."""
    pinhole = np.array(pinhole, np.float64)
    factor = new_size / size
    pinhole[..., :2] *= factor
    pinhole[..., 2:] = (pinhole[..., 2:] + 0.5) * factor - 0.5
    return pinhole


def _grid(count: int, extent: float) -> np.ndarray:
    """(count^2, 2) points from -extent to extent; the middle alone for a count of 1."""
    line = np.linspace(-extent, extent, count) if count > 1 else np.zeros(1)
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def _poses(position, heading, pitch, roll=0.0) -> np.ndarray:
    """camera_from_object (N, 4, 4) of cameras at (N, 3) metres. heading: about z, 0 looks along x;
    pitch: upwards; roll: about the optical axis, clockwise. Radians, (N,)."""
    forward = np.stack(
        [np.cos(pitch) * np.cos(heading), np.cos(pitch) * np.sin(heading), np.sin(pitch)], -1
    )
    right = np.stack([np.sin(heading), -np.cos(heading), np.zeros_like(heading)], -1)
    down = np.cross(forward, right)
    cos, sin = (np.broadcast_to(f(roll), heading.shape)[:, None] for f in (np.cos, np.sin))
    poses = np.zeros((len(position), 4, 4))
    poses[:, 0, :3] = cos * right + sin * down
    poses[:, 1, :3] = cos * down - sin * right
    poses[:, 2, :3] = forward
    poses[:, :3, 3] = -np.einsum("nij,nj->ni", poses[:, :3, :3], position)
    poses[:, 3, 3] = 1.0
    return poses


def _pinholes(fov: np.ndarray, size: int) -> np.ndarray:
    focal = size / 2 / np.tan(fov / 2)
    centre = np.full_like(focal, (size - 1) / 2)
    return np.stack([focal, focal, centre, centre], -1)
