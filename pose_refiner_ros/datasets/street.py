# SPDX-License-Identifier: Apache-2.0
"""A drive along a street with parked and moving vehicles: pictures, instance masks and true poses.

World axes: x along the street, y left, z up, metres, origin on the road's middle line. The camera
looks ahead from a vehicle in the right lane, 1.5 m above the ground.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.scene import render_scene

CAMERA_HEIGHT = 1.5
LANE = -1.75  # y of the lane's middle
SPEED = 4.0  # metres per second

ASPHALT, KERB, PAVING = (0.33, 0.33, 0.35), (0.62, 0.61, 0.60), (0.55, 0.54, 0.52)
GRASS, TRUNK, LEAVES = (0.36, 0.50, 0.28), (0.36, 0.27, 0.20), (0.25, 0.42, 0.20)
MARKING, WINDOW, SHADOW = (0.93, 0.93, 0.90), (0.25, 0.31, 0.38), (0.17, 0.17, 0.19)
FACADES = [(0.78, 0.68, 0.55), (0.70, 0.45, 0.36), (0.80, 0.77, 0.70), (0.58, 0.62, 0.66)]
PAINTS = [
    (0.75, 0.12, 0.10),
    (0.16, 0.30, 0.62),
    (0.88, 0.88, 0.86),
    (0.20, 0.44, 0.28),
    (0.86, 0.62, 0.12),
    (0.45, 0.47, 0.50),
    (0.10, 0.11, 0.13),
]


@dataclass(frozen=True)
class StreetVehicle:
    """kind: a name in VEHICLES. x, y, heading (radians from +x) at time 0; speed along heading."""

    label: int
    kind: str
    x: float
    y: float
    heading: float = 0.0
    speed: float = 0.0

    def world_from_object(self, time: float) -> np.ndarray:
        """(4, 4)."""
        c, s = np.cos(self.heading), np.sin(self.heading)
        ahead = self.speed * time
        rotation = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
        return rigid(rotation, (self.x + ahead * c, self.y + ahead * s, 0.0))


@dataclass
class StreetFrame:
    time: float  # seconds since the start of the drive
    rgb: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) uint8: true instance labels, 0 = background
    masks: np.ndarray  # (H, W) uint8: what a segmenter finds: large objects, edges a little off
    world_from_camera: np.ndarray  # (4, 4)
    camera_from_objects: dict[int, np.ndarray] = field(default_factory=dict)  # those in masks


class Street:
    """Frames of the drive by time; the same every time."""

    def __init__(
        self,
        camera: Camera,
        seconds: float = 30.0,
        min_mask_pixels: int = 1200,
        mask_noise: float = 0.7,
        samples: int = 3,
        seed: int = 0,
    ):
        """min_mask_pixels: a segmenter misses what is smaller. mask_noise: standard deviation of
        the error of a mask's edge, pixels. samples: per pixel and axis, odd."""
        self.camera = camera
        self.min_mask_pixels = min_mask_pixels
        self.samples = samples
        self.seconds = seconds
        rng = np.random.default_rng(seed)
        length = SPEED * seconds
        self.vehicles = _place_vehicles(length, rng)
        self.kinds = {v.label: v.kind for v in self.vehicles}
        made = {kind: make_vehicle(shape) for kind, shape in VEHICLES.items()}
        self._meshes = [made[v.kind].mesh for v in self.vehicles]
        self._colors = [made[v.kind].colors(PAINTS[v.label % len(PAINTS)]) for v in self.vehicles]
        self._shadows = {kind: _shadow(shape) for kind, shape in VEHICLES.items()}
        self._scenery, self._scenery_colors = _scenery(length, rng)
        self._noise = _edge_noise(camera.size, mask_noise, rng)

    def world_from_camera(self, time: float) -> np.ndarray:
        """(4, 4): the vehicle sways a little in its lane."""
        yaw = 0.05 * np.sin(0.5 * time) - 0.04
        pitch = 0.03 + 0.006 * np.sin(2.3 * time)  # downwards
        level = np.cos(pitch)
        forward = np.array([np.cos(yaw) * level, np.sin(yaw) * level, -np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        rotation = np.stack([right, np.cross(forward, right), forward], axis=1)
        return rigid(rotation, (SPEED * time, LANE + 0.2 * np.sin(0.4 * time), CAMERA_HEIGHT))

    def frame(self, time: float) -> StreetFrame:
        world_from_camera = self.world_from_camera(time)
        camera_from_world = np.linalg.inv(world_from_camera)
        poses = [camera_from_world @ v.world_from_object(time) for v in self.vehicles]
        near = [i for i, pose in enumerate(poses) if -5 < pose[2, 3] < 50]
        meshes = [self._scenery, *(self._meshes[i] for i in near)]
        colors = [self._scenery_colors, *(self._colors[i] for i in near)]
        labels = [0, *(self.vehicles[i].label for i in near)]
        transforms = [camera_from_world, *(poses[i] for i in near)]
        for i in near:
            meshes.append(self._shadows[self.vehicles[i].kind])
            colors.append(SHADOW)
            labels.append(0)
            transforms.append(poses[i])
        picture = render_scene(
            meshes,
            np.stack(transforms),
            self.camera,
            colors,
            labels,
            background=_sky(self.camera, camera_from_world),
            samples=self.samples,
            up=camera_from_world[:3, 2],
        )
        true = picture.labels.astype(np.uint8)
        counts = np.bincount(true.ravel(), minlength=256)
        found = [v.label for v in self.vehicles if counts[v.label] >= self.min_mask_pixels]
        kept = np.zeros(256, np.uint8)
        kept[found] = found
        masks = self._with_edge_noise(kept[true], time)
        return StreetFrame(
            time,
            picture.rgb,
            true,
            masks,
            world_from_camera,
            {label: poses[label - 1] for label in found if np.any(masks == label)},
        )

    def _with_edge_noise(self, masks, time):
        """Masks with smoothly displaced edges; another displacement in every frame."""
        if self._noise is None:
            return masks
        height, width = masks.shape
        shift = np.random.default_rng(int(time * 1000)).integers(0, [height, width])
        dx, dy = (np.roll(n, shift, (0, 1)) for n in self._noise)
        u, v = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        return cv2.remap(masks, u + dx, v + dy, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _place_vehicles(length, rng):
    """Parked on both sides, one that comes towards us and one that drives ahead."""
    kinds = list(VEHICLES)
    placed = []
    label = 1
    for y, heading, x in ((-4.6, 0.0, 11.0), (4.9, np.pi, 7.0)):
        while x < length + 40:
            kind = kinds[(label + int(rng.integers(0, 2))) % len(kinds)]
            turn = rng.normal(0, np.radians(3))
            placed.append(StreetVehicle(label, kind, x, y + rng.normal(0, 0.1), heading + turn))
            label += 1
            x += rng.uniform(9.0, 15.0)
    for start in range(30, int(length) * 3, 75):
        placed.append(StreetVehicle(label, "sedan", start, -LANE, np.pi, 6.0))
        label += 1
    return placed


def _edge_noise(size, sigma, rng):
    """(2, H, W) float32 displacement in pixels, smooth over some ten pixels; None for none."""
    if sigma <= 0:
        return None
    noise = rng.normal(size=(2, *size)).astype(np.float32)
    noise = gaussian_filter(noise, (0, 5, 5), mode="wrap")
    return noise * (sigma / noise.std())


def _sky(camera, camera_from_world):
    """A gradient from the horizon upwards, (H, W, 3) uint8."""
    height, width = camera.size
    up = camera_from_world[:3, 2]
    elevation = -(np.arange(height) - camera.cy) / camera.fy - up[2]  # small angles
    blend = np.clip(elevation / 0.5, 0, 1)[:, None]
    color = (1 - blend) * np.array([226, 232, 236]) + blend * np.array([112, 164, 216])
    return np.repeat(color[:, None].astype(np.uint8), width, axis=1)


class _Builder:
    """Collects coloured quads and boxes into one mesh."""

    def __init__(self):
        self.vertices, self.faces, self.colors = [], [], []
        self._count = 0

    def add(self, vertices, faces, color):
        self.vertices.append(np.asarray(vertices, float))
        self.faces.append(np.asarray(faces) + self._count)
        self.colors += [color] * len(faces)
        self._count += len(vertices)

    def ground(self, x0, x1, y0, y1, z, color):
        corners = [[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]]
        self.add(corners, [[0, 1, 2], [0, 2, 3]], color)

    def box(self, low, high, color):
        (x0, y0, z0), (x1, y1, z1) = low, high
        corners = [[x, y, z] for x in (x0, x1) for y in (y0, y1) for z in (z0, z1)]
        quads = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [1, 5, 7, 3]]
        faces = [f for a, b, c, d in quads for f in ([a, b, c], [a, c, d])]  # none below
        self.add(corners, faces, color)

    def mesh(self):
        vertices = np.concatenate(self.vertices).astype(np.float32)
        faces = np.concatenate(self.faces).astype(np.int32)
        return Mesh(vertices, faces), np.array(self.colors, np.float32)


def _scenery(length, rng):
    """Road, markings, pavements, houses and trees: a mesh and its colours (F, 3)."""
    build = _Builder()
    start, end = -20.0, length + 90.0
    for x in np.arange(start, end, 10.0):
        build.ground(x, x + 10, -6.2, 6.2, 0.0, ASPHALT)
        for side in (-1, 1):
            y = sorted((side * 6.2, side * 6.5))
            build.box((x, y[0], 0), (x + 10, y[1], 0.13), KERB)
            y = sorted((side * 6.5, side * 9.5))
            build.ground(x, x + 10, *y, 0.12, PAVING)
            y = sorted((side * 9.5, side * 60))
            build.ground(x, x + 10, *y, 0.1, GRASS)
    for x in np.arange(start, end, 5.0):
        build.ground(x, x + 2.2, -0.07, 0.07, 0.01, MARKING)
        for y in (-3.5, 3.6):
            build.ground(x, x + 4.8, y, y + 0.06, 0.01, MARKING)
    for side in (-1, 1):
        x = start
        while x < end:
            width, height = rng.uniform(9, 16), rng.uniform(6, 13)
            if rng.random() < 0.72:
                _house(build, x, width, side, height, FACADES[rng.integers(len(FACADES))])
            else:
                for k in range(2):
                    _tree(build, x + width * (0.25 + 0.5 * k), side * rng.uniform(10, 13), rng)
            x += width + rng.uniform(0.0, 3.0)
    return build.mesh()


def _house(build, x, width, side, height, color):
    front = side * 10.5
    back = front + side * 9
    build.box((x, min(front, back), 0), (x + width, max(front, back), height), color)
    face = front - side * 0.02
    for z in np.arange(1.0, height - 1.6, 2.9):
        for u in np.arange(x + 1.0, x + width - 1.5, 2.4):
            corners = [[u + a, face, z + b] for a, b in ((0, 0), (1.2, 0), (1.2, 1.5), (0, 1.5))]
            build.add(corners, [[0, 1, 2], [0, 2, 3]], WINDOW)


def _tree(build, x, y, rng):
    height = rng.uniform(1.8, 2.6)
    build.box((x - 0.15, y - 0.15, 0), (x + 0.15, y + 0.15, height + 0.8), TRUNK)
    crown = rng.uniform(1.5, 2.3)
    color = np.array(LEAVES) * rng.uniform(0.8, 1.2)
    around = np.linspace(0, 2 * np.pi, 9)[:-1]
    rings = [(0.0, -1.0), (0.75, -0.55), (1.0, 0.0), (0.75, 0.6), (0.0, 1.1)]
    points = np.array(
        [
            [x + crown * r * np.cos(a), y + crown * r * np.sin(a), height + crown * (0.9 + z)]
            for r, z in rings
            for a in around
        ]
    )
    faces = [
        f
        for ring in range(4)
        for j in range(8)
        for f in (
            (ring * 8 + j, ring * 8 + (j + 1) % 8, ring * 8 + 8 + (j + 1) % 8),
            (ring * 8 + j, ring * 8 + 8 + (j + 1) % 8, ring * 8 + 8 + j),
        )
    ]
    build.add(points, faces, tuple(color))


def _shadow(shape):
    """A dark patch under a vehicle, object axes."""
    x, y = shape.length / 2 + 0.05, shape.width / 2 + 0.1
    corner = [(x, y - 0.3), (x - 0.3, y), (0.3 - x, y), (-x, y - 0.3)]
    outline = corner + [(a, -b) for a, b in corner[::-1]]
    points = [[a, b, 0.015] for a, b in outline]
    return Mesh(
        np.array(points, np.float32),
        np.array([[0, k, k + 1] for k in range(1, len(points) - 1)], np.int32),
    )
