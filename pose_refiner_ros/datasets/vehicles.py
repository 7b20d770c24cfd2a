# SPDX-License-Identifier: Apache-2.0
"""Simple vehicles made from a handful of numbers: for the demo, tests and benchmarks.

Metres, x forward, y left, z up, origin on the ground under the middle of the vehicle's box. The
body is a loft: a closed ring of points for each station along x. Wheels and mirrors are bodies of
their own. Every part is closed, so silhouettes are well defined.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pose_refiner_ros.objects.mesh import Mesh

DATA = Path(__file__).resolve().parents[1] / "data"
LIBRARY = DATA / "demo_objects.yaml"  # the object library of the vehicles below


class Part(IntEnum):
    PAINT = 0
    GLASS = 1
    TYRE = 2
    RIM = 3
    TRIM = 4  # sills, bumpers, mirrors
    HEADLAMP = 5
    TAIL_LAMP = 6


PART_COLORS = {
    Part.GLASS: (0.10, 0.13, 0.17),
    Part.TYRE: (0.07, 0.07, 0.08),
    Part.RIM: (0.62, 0.63, 0.65),
    Part.TRIM: (0.16, 0.16, 0.17),
    Part.HEADLAMP: (0.98, 0.97, 0.88),
    Part.TAIL_LAMP: (0.75, 0.06, 0.07),
}


@dataclass(frozen=True)
class VehicleShape:
    """Metres. Lengths run from the front: hood, windscreen, roof, rear window, deck."""

    length: float
    width: float
    height: float
    hood_length: float
    hood_height: float
    windscreen_length: float  # along x: long is raked
    roof_length: float
    rear_window_length: float
    deck_height: float  # boot, or the sides of a loading bed
    belt_height: float  # lower edge of the side windows
    wheelbase: float
    wheel_radius: float = 0.33
    clearance: float = 0.2
    tumblehome: float = 0.14  # how much narrower the roof is, on each side
    bed_floor: float | None = None  # height of an open bed behind the cabin
    side_glass_length: float = 9.0  # from the windscreen's top backwards; a van has little


VEHICLES = {
    "sedan": VehicleShape(
        length=4.70,
        width=1.82,
        height=1.45,
        hood_length=1.20,
        hood_height=0.92,
        windscreen_length=0.85,
        roof_length=1.15,
        rear_window_length=0.80,
        deck_height=1.02,
        belt_height=0.93,
        wheelbase=2.78,
        wheel_radius=0.33,
        tumblehome=0.20,
    ),
    "suv": VehicleShape(
        length=4.65,
        width=1.90,
        height=1.74,
        hood_length=1.10,
        hood_height=1.06,
        windscreen_length=0.66,
        roof_length=2.25,
        rear_window_length=0.42,
        deck_height=1.12,
        belt_height=1.08,
        wheelbase=2.72,
        wheel_radius=0.37,
        clearance=0.25,
        tumblehome=0.15,
    ),
    "van": VehicleShape(
        length=5.40,
        width=2.02,
        height=2.35,
        hood_length=0.72,
        hood_height=1.18,
        windscreen_length=0.82,
        roof_length=3.80,
        rear_window_length=0.04,
        deck_height=2.25,
        belt_height=1.22,
        wheelbase=3.35,
        wheel_radius=0.35,
        tumblehome=0.10,
        side_glass_length=0.75,
    ),
    "pickup": VehicleShape(
        length=5.45,
        width=1.96,
        height=1.84,
        hood_length=1.32,
        hood_height=1.12,
        windscreen_length=0.68,
        roof_length=1.15,
        rear_window_length=0.22,
        deck_height=1.12,
        belt_height=1.15,
        wheelbase=3.35,
        wheel_radius=0.39,
        clearance=0.30,
        tumblehome=0.14,
        bed_floor=0.78,
    ),
}


class VehicleMesh(NamedTuple):
    mesh: Mesh
    parts: np.ndarray  # (F,) int: the Part of each face

    def colors(self, paint) -> np.ndarray:
        """(F, 3) in [0, 1]: the paint given, the other parts in their own colours."""
        table = np.array([PART_COLORS.get(part, paint) for part in Part], np.float32)
        return table[self.parts]


def make_vehicle(shape: VehicleShape) -> VehicleMesh:
    """Body, four wheels and two mirrors."""
    pieces = [_body(shape)]
    side = shape.width / 2 - 0.11
    for x in (shape.wheelbase / 2, -shape.wheelbase / 2):
        for y in (side, -side):
            pieces.append(_wheel(x + 0.04, y, shape.wheel_radius))
    mirror_x = shape.length / 2 - shape.hood_length - 0.45 * shape.windscreen_length
    for y in (1, -1):
        centre = (mirror_x, y * (shape.width / 2 + 0.07), shape.belt_height + 0.09)
        pieces.append(_box(centre, (0.14, 0.2, 0.14), Part.TRIM))

    vertices, faces, parts, count = [], [], [], 0
    for points, triangles, part in pieces:
        vertices.append(points)
        faces.append(triangles + count)
        parts.append(np.broadcast_to(part, len(triangles)))
        count += len(points)
    vertices = np.concatenate(vertices)
    low, high = vertices.min(0), vertices.max(0)
    vertices -= [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    # to the millimetre, so that the mesh equals the file that is written of it
    mesh = Mesh(np.round(vertices, 3).astype(np.float32), np.concatenate(faces).astype(np.int32))
    return VehicleMesh(mesh, np.concatenate(parts).astype(np.int32))


def _body(s: VehicleShape):
    """The loft: (points, triangles, parts)."""
    front, rear = s.length / 2, -s.length / 2
    cowl = front - s.hood_length
    roof_front = cowl - s.windscreen_length
    roof_rear = roof_front - s.roof_length
    deck_front = max(roof_rear - s.rear_window_length, rear + 0.02)
    # side view: height of the middle of the vehicle over x, from the rear
    outline = np.array(
        [
            (rear, s.deck_height - 0.12),
            (rear + 0.08, s.deck_height),
            (max(deck_front, rear + 0.09), s.deck_height),
            (max(roof_rear, rear + 0.1), s.height - 0.05),
            ((roof_rear + roof_front) / 2, s.height),
            (roof_front, s.height - 0.05),
            (cowl, s.hood_height + 0.04),
            (front - 0.35, s.hood_height - 0.06),
            (front - 0.05, s.hood_height - 0.2),
            (front, s.hood_height - 0.34),
        ]
    )
    fine = np.linspace(rear, front, 400)
    heights = np.interp(fine, *outline.T)
    blur = np.hanning(25)
    heights = np.convolve(np.pad(heights, 12, mode="edge"), blur / blur.sum(), mode="valid")

    stations = np.unique(
        np.concatenate(
            [
                np.linspace(rear, front, 34),
                rear + np.array([0.03, 0.08]),
                front - np.array([0.03, 0.08]),
            ]
        )
    )
    top = np.interp(stations, fine, heights)
    belt = np.minimum(s.belt_height, top - 0.07)
    if s.bed_floor is not None:  # the bed is open: its floor lies below its sides
        in_bed = (stations > rear + 0.1) & (stations < deck_front - 0.05)
        belt = np.where(stations < deck_front, s.deck_height, belt)
        top = np.where(in_bed, s.bed_floor, np.maximum(top, belt))
    end = np.abs(stations) / front
    half_width = s.width / 2 * (1 - 0.22 * end**8)  # rounded in plan
    sill = s.clearance + 0.14 * end**6
    # the cabin leans inwards in proportion to its height over the belt
    lean = s.tumblehome * np.clip((top - belt) / (s.height - s.belt_height), 0.12, 1.0)
    roof = half_width - lean
    bulge = (sill + belt) / 2

    half = np.stack(
        [  # one side of the ring, from the middle of the floor up to that of the roof
            np.stack([0 * sill, sill], 1),
            np.stack([half_width * 0.82, sill], 1),
            np.stack([half_width * 0.96, sill + 0.06], 1),
            np.stack([half_width, bulge], 1),
            np.stack([half_width * 0.985, belt - 0.03], 1),
            np.stack([half_width * 0.95, belt], 1),
            np.stack([roof, top - 0.25 * np.abs(top - belt)], 1),
            np.stack([roof * 0.93, top - 0.07 * np.abs(top - belt)], 1),
            np.stack([roof * 0.55, top], 1),
            np.stack([0 * top, top], 1),
        ],
        axis=1,
    )  # (stations, 10, 2)
    if s.bed_floor is not None:
        half[in_bed, 6:8, 0] = (half_width[in_bed] * 0.9)[:, None]
        half[in_bed, 6, 1] = belt[in_bed]
        half[in_bed, 7, 1] = s.bed_floor
    mirrored = half[:, -2:0:-1] * [-1, 1]
    ring = np.concatenate([half, mirrored], axis=1)  # (stations, R, 2): up the left, down the right
    count, size = ring.shape[:2]
    points = np.concatenate([np.repeat(stations, size)[:, None], ring.reshape(-1, 2)], axis=1)

    # what each band of the ring is made of, from floor to roof
    middle = (stations[1:] + stations[:-1]) / 2
    cabin = np.minimum(top[1:] - belt[1:], top[:-1] - belt[:-1]) > 0.18
    cabin &= middle > roof_front - s.side_glass_length
    side_glass = cabin & (middle > roof_rear - 0.5 * s.rear_window_length)
    slope = np.diff(top) / np.diff(stations)
    windscreen = cabin & (np.abs(slope) > 0.3) & (middle < cowl + 0.1)
    triangles, parts = [], []
    for i in range(count - 1):
        for j in range(size):
            band = j if j < 9 else size - 1 - j
            part = Part.PAINT
            if band <= 1:
                part = Part.TRIM
            elif (band in (5, 6) and side_glass[i]) or (band >= 7 and windscreen[i]):
                part = Part.GLASS
            elif band == 3 and middle[i] > front - 0.2:
                part = Part.HEADLAMP
            elif band == 3 and middle[i] < rear + 0.12:
                part = Part.TAIL_LAMP
            a, b = i * size + j, i * size + (j + 1) % size
            c, d = b + size, a + size
            triangles += [(a, b, c), (a, c, d)]
            parts += [part, part]
    for station, forward, lamp in ((0, False, Part.TAIL_LAMP), (count - 1, True, Part.HEADLAMP)):
        outer = station * size
        inner = len(points)  # a narrower copy of the end's ring; the lamps are beside it
        points = np.concatenate([points, points[outer : outer + size] * [1, 0.55, 1]])
        quads = [
            (outer + j, outer + (j + 1) % size, inner + (j + 1) % size, inner + j)
            for j in range(size)
        ]
        quads += [
            (inner + j, inner + j + 1, inner + size - j - 1, inner + (size - j) % size)
            for j in range(9)
        ]
        for k, (a, b, c, d) in enumerate(quads):
            for triangle in ((a, b, c), (a, c, d)):
                if len(set(triangle)) == 3:  # the strip begins and ends in a point
                    triangles.append(triangle if forward else triangle[::-1])
                    parts.append(lamp if k in (3, size - 4) else Part.PAINT)
    return points, np.array(triangles), np.array(parts)


def _wheel(x, y, radius, width=0.22, sections=24):
    """A tyre with a dished rim, axis along y."""
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    circle = np.stack([np.cos(angle), np.zeros(sections), np.sin(angle)], 1)
    outer = np.sign(y) * width / 2
    rings = [  # radius, y: from the inner hub over the tread to the outer hub
        (radius * 0.6, -outer),
        (radius * 0.96, -outer),
        (radius, -0.7 * outer),
        (radius, 0.7 * outer),
        (radius * 0.96, outer),
        (radius * 0.64, 0.95 * outer),
    ]
    points = [[0.0, -outer, 0.0]]
    points += [p for r, offset in rings for p in circle * r + [0, offset, 0]]
    points.append([0.0, 0.8 * outer, 0.0])
    last = len(points) - 1
    triangles, parts = [], []
    for j in range(sections):
        k = (j + 1) % sections
        triangles.append((0, 1 + k, 1 + j))
        parts.append(Part.TRIM)
        for ring in range(len(rings) - 1):
            a, b = 1 + ring * sections + j, 1 + ring * sections + k
            triangles += [(a, b, b + sections), (a, b + sections, a + sections)]
            parts += [Part.TYRE] * 2
        triangles.append((last, last - sections + j, last - sections + k))
        parts.append(Part.RIM)
    triangles = np.array(triangles)
    if y > 0:  # the wheel of the other side is its mirror image
        triangles = triangles[:, ::-1]
    return np.array(points) + np.array([x, y, radius]), triangles, np.array(parts)


def _box(centre, size, part):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    triangles = np.array(
        [
            [0, 1, 3],
            [0, 3, 2],
            [4, 6, 7],
            [4, 7, 5],
            [0, 4, 5],
            [0, 5, 1],
            [2, 3, 7],
            [2, 7, 6],
            [0, 2, 6],
            [0, 6, 4],
            [1, 5, 7],
            [1, 7, 3],
        ]
    )
    return corners * size + centre, triangles, part


def obj_text(mesh: Mesh) -> str:
    """The mesh as the text of an OBJ file, to the millimetre."""
    lines = [f"v {x:.3f} {y:.3f} {z:.3f}" for x, y, z in mesh.vertices]
    lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    return "\n".join(lines) + "\n"


def write_demo_meshes(folder: Path = DATA) -> list[Path]:
    """The meshes that the demo's object library names."""
    paths = []
    for name, shape in VEHICLES.items():
        path = folder / f"{name}.obj"
        path.write_text(obj_text(make_vehicle(shape).mesh), encoding="ascii")
        paths.append(path)
    return paths


if __name__ == "__main__":
    print("\n".join(f"wrote {path}" for path in write_demo_meshes()))
