# SPDX-License-Identifier: Apache-2.0
"""The mesh of a vehicle, made from its shape.

Metres, x forward, y left, z up, origin on the ground under the middle of the vehicle's box. Every
part is a loft: closed rings of points, the same number in each, joined to the next by a band of
quads and capped at both ends. So every part is closed and silhouettes are well defined. The rings
of the body stand across x, those of the cabin lie one above the other, those of a wheel run around
its axle. Left and right are mirror images.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pose_refiner_ros.datasets.vehicles.shape import VehicleShape
from pose_refiner_ros.objects.mesh import Mesh


class Part(IntEnum):
    PAINT = 0
    GLASS = 1
    TYRE = 2
    RIM = 3
    TRIM = 4  # sills, bumpers, grille, mirrors
    HEADLAMP = 5
    TAIL_LAMP = 6
    LOAD = 7  # a cargo box, tarpaulin or platform


PART_COLORS = {
    Part.GLASS: (0.10, 0.13, 0.17),
    Part.TYRE: (0.07, 0.07, 0.08),
    Part.RIM: (0.62, 0.63, 0.65),
    Part.TRIM: (0.16, 0.16, 0.17),
    Part.HEADLAMP: (0.98, 0.97, 0.88),
    Part.TAIL_LAMP: (0.75, 0.06, 0.07),
    Part.LOAD: (0.80, 0.80, 0.78),
}


class VehicleMesh(NamedTuple):
    mesh: Mesh
    parts: np.ndarray  # (F,) int: the Part of each face

    def colors(self, paint) -> np.ndarray:
        """(F, 3) in [0, 1]: the paint given, the other parts in their own colours."""
        table = np.array([PART_COLORS.get(part, paint) for part in Part], np.float32)
        return table[self.parts]


class _Piece(NamedTuple):
    """A closed surface."""

    points: np.ndarray  # (P, 3)
    faces: np.ndarray  # (F, 3)
    parts: np.ndarray  # (F,)


def make_vehicle(shape: VehicleShape) -> VehicleMesh:
    """Body, cabin, wheels, mirrors and what else the shape asks for."""
    pieces = [_body(shape), _cabin(shape), *_wheels(shape), *_mirrors(shape), *_extras(shape)]
    if shape.load is not None:
        pieces += _load(shape)
    starts = np.cumsum([0] + [len(piece.points) for piece in pieces])
    faces = np.concatenate([p.faces + start for p, start in zip(pieces, starts, strict=False)])
    vertices = np.concatenate([piece.points for piece in pieces])
    # To the millimetre, so that the mesh equals the file that is written of it. Many points lie
    # half way between two: away from zero, whatever their last digit.
    vertices = np.round(vertices + 1e-6 * np.sign(vertices), 3)
    parts = np.concatenate([piece.parts for piece in pieces])
    return VehicleMesh(Mesh(vertices.astype(np.float32), faces.astype(np.int32)), parts)


# --- Lofts -------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _topology(rings: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces (F, 3) of a loft, and the quad (band, place in the ring) of each; caps are the bands
    -1 and `rings` - 1. `size` is even and point j mirrors point -j, for which the diagonals of the
    quads, too, mirror each other."""
    band, j = (a.ravel() for a in np.mgrid[0 : rings - 1, 0:size])
    a, b = band * size + j, band * size + (j + 1) % size
    c, d = b + size, a + size
    left = (j < size // 2)[:, None]
    one = np.where(left, np.stack([a, b, c], 1), np.stack([a, b, d], 1))
    two = np.where(left, np.stack([a, c, d], 1), np.stack([b, c, d], 1))
    faces, quads = [one, two], [np.stack([band, j], 1)] * 2
    half = size // 2
    cap = [(0, 1, size - 1), (half, half + 1, half - 1)]  # a strip between the mirrored points
    place = [0, half - 1]
    for k in range(1, half - 1):  # a strip of quads, each cut from the middle outwards
        cap += [(k, k + 1, size - k - 1), (k, size - k - 1, size - k)]
        place += [k, k]
    first, place = np.array(cap), np.array(place)
    faces += [first[:, ::-1], first + (rings - 1) * size]
    quads += [np.stack([np.full_like(place, end), place], 1) for end in (-1, rings - 1)]
    return np.concatenate(faces), np.concatenate(quads)


def _loft(rings: np.ndarray, parts, first_cap=None, last_cap=None) -> _Piece:
    """rings: (N, K, 3), K even. parts: one Part or (N - 1, K) per quad; those of the caps
    (K / 2,), from the ring's first point on, are those of the band beside them if not given."""
    count, size = rings.shape[:2]
    faces, quads = _topology(count, size)
    table = np.empty((count + 1, size), np.int32)
    table[1:-1] = parts
    table[0], table[-1] = table[1], table[-2]
    for row, cap in ((0, first_cap), (-1, last_cap)):
        if cap is not None:
            table[row, : size // 2] = cap
    points = rings.reshape(-1, 3)
    a, b, c = (points[faces[:, k]] - points[0] for k in range(3))
    if np.einsum("ij,ij->", a, np.cross(b, c)) < 0:  # the rings run the other way round
        faces = faces[:, ::-1]
    return _Piece(points, faces, table[quads[:, 0] + 1, quads[:, 1]])


def _mirrored(half: np.ndarray) -> np.ndarray:
    """Rings (N, 2 (H - 1), 3) from their left halves (N, H, 3), which begin and end at y = 0."""
    return np.concatenate([half, half[:, -2:0:-1] * [1, -1, 1]], axis=1)


def _mirrored_parts(half: np.ndarray) -> np.ndarray:
    """(N, 2 (H - 1)) from the parts of the left quads (N, H - 1)."""
    return np.concatenate([half, half[:, ::-1]], axis=1)


def _pair(piece: _Piece) -> list[_Piece]:
    """The piece and its mirror image on the other side."""
    return [piece, _Piece(piece.points * [1, -1, 1], piece.faces[:, ::-1], piece.parts)]


def _bar(low, high, part, chamfer=0.0) -> _Piece:
    """A box between two corners, the edges along x chamfered."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    c = chamfer
    if c > 0:
        yz = [(y0 + c, z0), (y1 - c, z0), (y1, z0 + c), (y1, z1 - c)]
        yz += [(y1 - c, z1), (y0 + c, z1), (y0, z1 - c), (y0, z0 + c)]
    else:
        yz = [(y0, z0), (y1, z0), (y1, z1), (y0, z1)]
    ring = np.array([(0.0, y, z) for y, z in yz])
    return _loft(np.stack([ring + np.array([x, 0, 0]) for x in (x0, x1)]), part)


# --- Body --------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where along x what begins."""

    front: float
    rear: float
    cowl: float
    roof_front: float
    roof_rear: float
    deck: float
    body_rear: float
    axles: tuple[float, float]


@lru_cache(maxsize=8)
def _places(s: VehicleShape) -> _Places:
    front, rear = s.length / 2, -s.length / 2
    cowl = front - s.hood_length
    roof_front = cowl - s.windscreen_length
    deck = rear + s.deck_length
    body_rear = rear + (0.19 if s.spare_wheel else 0.0)
    if s.load is not None:
        body_rear = deck - 0.02
    if s.spare_wheel:
        deck += 0.19
    axle = front - s.front_overhang
    axles = (axle, axle - s.wheelbase)
    return _Places(
        front, rear, cowl, roof_front, deck + s.rear_window_length, deck, body_rear, axles
    )


# how wide the body is towards its rounded ends; its corners lie `bow` behind the middle
NOSE = np.array([1.0, 0.97, 0.86, 0.64, 0.34])


def _bow(width):
    """How far a point at that share of the width lies behind the middle, as a share of the bow."""
    return (width**3 - NOSE[-1] ** 3) / (1 - NOSE[-1] ** 3)


def _body_top(s: VehicleShape, x: np.ndarray) -> np.ndarray:
    """Height of hood, belt and deck in the middle."""
    p = _places(s)
    bend = min(0.35, 0.4 * s.hood_length)  # where the hood begins to curve down to the nose
    rise = s.hood_height - s.nose_height
    boot_drop = 0.0 if s.bed_floor is not None else 0.15 * (p.deck - p.body_rear) ** 2
    outline = [  # from the rear
        (p.body_rear, s.deck_height - boot_drop),
        (p.deck, s.deck_height),
        (p.deck + 0.45, s.belt_height + 0.02),
        (p.cowl - 0.35, s.belt_height),
        (p.cowl, s.hood_height),
        (p.cowl + 0.5 * (s.hood_length - bend), s.nose_height + 0.78 * rise),
        (p.front - bend, s.nose_height + 0.42 * rise),
        (p.front, s.nose_height),
    ]
    return np.interp(x, *np.transpose(outline))


def _body(s: VehicleShape) -> _Piece:
    """Everything below the side windows, with hood and boot, bed or tail."""
    p = _places(s)
    nose = NOSE
    tail = NOSE if s.tail_bow > 0.1 else NOSE[[0, 2, 3, 4]]
    nose_x, tail_x = p.front - s.nose_bow * _bow(nose), p.body_rear + s.tail_bow * _bow(tail)
    arch = s.wheel_radius + (0.075 if s.clearance > 0.19 else 0.055)
    axles = [axle for axle in p.axles if axle - arch > p.body_rear]  # else below the load
    bed = None if s.bed_floor is None else (p.body_rear + 0.08, p.deck - 0.02)
    x = _stations(s, nose_x, tail_x, axles, arch, bed)

    # the plan: sides that bulge a little between the rounded ends
    plan = np.interp(x, np.append(tail_x[::-1], nose_x), np.append(tail[::-1], nose))
    middle = 0.5 * (nose_x[0] + tail_x[0])
    half_width = plan * (1 - 0.02 * np.clip(np.abs(x - middle) / (0.5 * s.length), 0, 1) ** 3)
    half_width *= 0.5 * s.width / half_width.max()

    half = _body_rings(s, x, half_width, axles, arch)
    if bed is not None:  # the rings' last points go down to the bed's floor
        rows = np.flatnonzero((x >= bed[0] - 1e-4) & (x <= bed[1] + 1e-4))
        rail = half[rows, -1, 2]
        half[rows, 7, 2] = rail
        half[rows, 8, 1:] = np.stack([half_width[rows] - 0.10, rail], 1)
        half[rows, 9, 1] = half_width[rows] - 0.11
        half[rows, 9:, 2] = s.bed_floor

    # in side view the bumper is foremost; the hood's edge lies behind it, the floor tucks in
    tuck = 0.5 * min(s.nose_bow, 0.12)
    for end, inwards, lean in ((p.front, -1, s.nose_lean), (p.body_rear, 1, s.tail_lean)):
        back = np.array([tuck] * 3 + [0.5 * tuck, 0, 0, 0.65 * lean] + [lean] * 4)
        nearness = np.clip(1 - np.abs(x - end) / max(3 * lean, 0.4), 0, 1) ** 2
        half[:, :, 0] += inwards * nearness[:, None] * back

    at_nose = x[:-1] + x[1:] > 2 * (p.front - s.nose_bow - 0.17)
    at_tail = x[:-1] + x[1:] < 2 * (p.body_rear + s.tail_bow + 0.10)
    parts, cap = _body_parts(s, 0.5 * (plan[1:] + plan[:-1]), at_nose, at_tail)
    nose_cap = cap.copy()
    nose_cap[5] = Part.TRIM  # grille
    return _loft(_mirrored(half), _mirrored_parts(parts), cap, nose_cap)


def _stations(s, nose_x, tail_x, axles, arch, bed) -> np.ndarray:
    """(N,) where along x the body's rings stand: dense at the rounded ends and over the wheels."""
    p = _places(s)
    xs = [nose_x, tail_x, np.linspace(p.cowl, nose_x[0], 4)]
    xs.append([nose_x[0] - 0.16, tail_x[0] + 0.1])  # where the lamps end
    xs.append([p.cowl, p.cowl - 0.35, p.deck + 0.45, p.deck])
    for axle in axles:
        xs.append(axle + arch * np.cos(np.linspace(0, np.pi, 8)))
        xs.append([axle - arch - 0.005, axle + arch + 0.005])  # the sill on either side
    if bed is not None:
        xs.append([bed[0], bed[0] - 0.01, bed[1]])
    x = np.unique(np.round(np.concatenate(xs), 4))
    return x[np.append(True, np.diff(x) > 0.004)]


def _body_rings(s: VehicleShape, x, half_width, axles, arch) -> np.ndarray:
    """(N, 11, 3): left halves of the body's rings, from the middle of the floor up to the middle of
    the hood. The points are: 0 to 2 floor, 3 the side's lower edge, 4 sill, 5 waist, 6 shoulder,
    7 to 10 hood."""
    p = _places(s)
    top = _body_top(s, x)
    floor = s.clearance + 0.08 * np.abs(x / p.front) ** 8
    edge = floor + 0.03
    at_wheel = np.zeros(len(x), bool)
    for axle in axles:
        across = np.abs(x - axle)
        near = across <= arch + 1e-3
        round_top = s.wheel_radius + np.sqrt(np.clip(arch**2 - across**2, 0, None))
        edge = np.where(near, np.maximum(np.minimum(round_top, top - 0.13), edge), edge)
        at_wheel |= near

    # over an arch the bands of the side are squeezed, but keep their order
    shoulder = top - 0.06
    least = np.where(at_wheel, 0.2, 0.05) * (shoulder - edge)
    sill = np.maximum(floor + 0.14, edge + least)
    waist = floor + 0.14 + 0.58 * (shoulder - floor - 0.14)
    waist = np.maximum(waist, sill + 0.35 * (shoulder - sill))

    middle = np.zeros_like(x)
    wall = np.maximum(half_width - _wheel_width(s) - 0.10, 0.3 * half_width)  # behind the wheel
    rounding = np.minimum(0.055, 0.08 * half_width)
    profile = [
        (middle, floor),
        (np.where(at_wheel, wall, 0.86 * half_width), floor + 0.01),
        (np.where(at_wheel, wall, 0.93 * half_width), np.where(at_wheel, edge, floor + 0.016)),
        (0.975 * half_width, edge),
        (0.992 * half_width, sill),
        (half_width, waist),
        (0.985 * half_width, shoulder),
        (half_width - rounding, top - 0.022),
        (0.80 * half_width, top - 0.010),
        (0.45 * half_width, top - 0.002),
        (middle, top),
    ]
    return np.stack([np.stack([x, y, z], 1) for y, z in profile], 1)


def _body_parts(s: VehicleShape, plan, at_nose, at_tail):
    """Parts of the bands between the rings' points, (N - 1, 10), and of a cap, (10,). plan: the
    share of the width that each stretch between two rings has."""
    parts = np.full((len(plan), 10), Part.PAINT)
    parts[:, :3] = Part.TRIM
    if s.cladding:
        parts[:, 3] = Part.TRIM
    parts[at_nose & (plan < 0.9), 3] = Part.TRIM
    parts[at_nose, 5] = np.where(plan[at_nose] < 0.62, Part.TRIM, Part.HEADLAMP)
    if s.load is None:
        parts[at_tail & (plan < 0.95), 3] = Part.TRIM
        parts[at_tail & (plan >= 0.62), 5] = Part.TAIL_LAMP
    cap = np.full(10, Part.PAINT)
    cap[:4] = Part.TRIM
    return parts, cap


# --- Cabin -------------------------------------------------------------------------------------

ACROSS = np.array([0.0, 0.4, 0.75, 0.93])  # points on half a windscreen, shares of its width
FRONT_PILLAR = 0.09


def _cabin(s: VehicleShape) -> _Piece:
    """Windows, pillars and roof: rings from the belt upwards, each from the middle of the
    windscreen over the left side to the middle of the rear window."""
    p = _places(s)
    belt_y = 0.5 * s.width - (0.045 if s.tumblehome > 0.125 else 0.02)
    edge_y = 0.5 * s.width - s.tumblehome
    front_bow, rear_bow = 0.16 if s.windscreen_length > 0.5 else 0.08, 0.9 * s.tail_bow
    base_length = p.cowl - front_bow - FRONT_PILLAR - (p.deck + rear_bow + s.rear_pillar)
    along, side_parts = _side_windows(s, base_length)
    ends = len(ACROSS)

    def plan(front, rear, half_width):
        """x, y of a ring whose windows have their middles at `front` and `rear`."""
        side_front = front - front_bow - FRONT_PILLAR
        side_rear = min(rear + rear_bow + s.rear_pillar, side_front - 0.2)
        side = side_front + along * (side_rear - side_front)
        screens = front - front_bow * ACROSS**2, rear + rear_bow * ACROSS[::-1] ** 2
        y = np.concatenate([ACROSS, np.ones(len(along)), ACROSS[::-1]])
        return np.concatenate([screens[0], side, screens[1]]), half_width * y

    # the belt, and the edge of the roof straight above
    base_x, base_y = plan(p.cowl, p.deck, belt_y)
    base_z = _body_top(s, base_x)
    base_z[:ends], base_z[-ends:] = s.hood_height, s.deck_height
    roof_x, roof_y = plan(p.roof_front, p.roof_rear, edge_y)
    crown = 0.03
    peak = 0.45 * p.roof_front + 0.55 * p.roof_rear
    from_peak = (roof_x - peak) / (p.roof_front - peak)
    roof_z = s.roof_height - crown - s.roof_drop * np.abs(from_peak) ** 2.5
    edge_z = roof_z - np.where(base_y < 0.95 * belt_y, 0.02, 0.05)

    # rings between the two: below the belt, within the body; the glass; the roof's edge
    glass_top = min(0.90, (s.glass_height + 0.02) / (edge_z - base_z).mean())
    shares = np.array(
        [-0.06, 0.03, 0.03 + 0.5 * (glass_top - 0.03), glass_top, 0.5 + 0.5 * glass_top, 1.0]
    )
    base, edge = np.stack([base_x, base_y, base_z], 1), np.stack([roof_x, roof_y, edge_z], 1)
    rings = base + shares[:, None, None] * (edge - base)
    swell = np.maximum(4 * shares * (1 - shares), 0)[:, None]  # nothing is quite flat
    rings[:, :ends, 0] += 0.02 * swell
    rings[:, :, 1] += 0.2 * (belt_y - edge_y) * swell * base_y / belt_y
    rings[:, -ends:, 2] += s.fastback * swell

    # two narrower rings make the roof
    middle = 0.5 * (p.roof_front + p.roof_rear)
    roof = []
    for width, length, lift in ((0.90, 0.96, 0.0), (0.55, 0.93, 0.6 * crown)):
        x = middle + length * (roof_x - middle)
        roof.append(np.stack([x, width * roof_y, roof_z + lift], 1))
    roof[-1][:, 2] += s.roof_height - roof[-1][:, 2].max()
    rings = np.concatenate([rings, roof])

    parts = np.full((len(rings) - 1, len(base_x) - 1), Part.PAINT)
    parts[1:3, : ends - 1] = Part.GLASS
    parts[1:3, ends : ends + len(side_parts)] = side_parts
    if s.rear_glass:
        parts[1:3, 1 - ends :] = Part.GLASS
    return _loft(_mirrored(rings), _mirrored_parts(parts))


def _side_windows(s: VehicleShape, length: float):
    """Points along the side, from 0 at the front pillar to 1 at the rear one, and the parts of the
    stretches between them: windows, the posts between them, a painted panel behind."""
    glass = min(s.glass_length, length) / length
    post = 0.07 / length
    ends = {1: [1.0], 2: [0.52, 1.0], 3: [0.40, 0.76, 1.0]}[s.side_windows]
    along, parts = [0.0], []
    for end in ends:
        start, stop = along[-1], end * glass - (post if end < 1.0 else 0.0)
        along += [0.5 * (start + stop), stop]
        parts += [Part.GLASS] * 2
        if end < 1.0:
            along.append(end * glass)
            parts.append(Part.TRIM)
    if glass < 1 - 0.05 / length:
        along += list(np.linspace(along[-1], 1.0, 4)[1:])
        parts += [Part.PAINT] * 3
    along[-1] = 1.0
    return np.array(along), np.array(parts)


# --- Wheels and what is attached ---------------------------------------------------------------


def _wheel_width(s: VehicleShape) -> float:
    return 0.09 + 0.38 * s.wheel_radius


def _wheel(centre, radius: float, width: float) -> _Piece:
    """A tyre with a dished rim on its left, axis along y through the centre of its left side."""
    profile = np.array(  # radius, y: from the hub inside over the tread to the hub outside
        [
            (0.15, -1.0),
            (0.93, -1.0),
            (1.0, -0.88),
            (1.0, -0.12),
            (0.94, 0.0),
            (0.68, -0.06),
            (0.18, -0.04),
        ]
    ) * [radius, width]
    sections = 16
    angle = np.linspace(0, 2 * np.pi, sections, endpoint=False)
    circle = np.stack([np.cos(angle), np.zeros(sections), np.sin(angle)], 1)
    rings = profile[:, None, :1] * circle + profile[:, None, 1:] * [0, 1, 0] + centre
    bands = [Part.TRIM, Part.TYRE, Part.TYRE, Part.TYRE, Part.TYRE, Part.RIM]
    parts = np.repeat(np.array(bands)[:, None], sections, 1)
    parts[5, 1::4] = Part.TRIM  # between the spokes
    return _loft(rings, parts, np.full(sections // 2, Part.TRIM), np.full(sections // 2, Part.RIM))


def _wheels(s: VehicleShape) -> list[_Piece]:
    p = _places(s)
    width = _wheel_width(s)
    y, radius = 0.5 * s.width - 0.03, s.wheel_radius
    rear_width = width if s.load is None else 2 * width  # twin tyres under the load
    front = _wheel((p.axles[0], y, radius), radius, width)
    rear = _wheel((p.axles[1], y, radius), radius, rear_width)
    return _pair(front) + _pair(rear)


def _mirrors(s: VehicleShape) -> list[_Piece]:
    p = _places(s)
    tall = 0.28 if s.roof_height > 2.05 else 0.15
    x = p.cowl - 0.16 - 0.4 * s.windscreen_length
    y, z = 0.5 * s.width - 0.09, s.belt_height + 0.03
    housing = _bar((x - 0.05, y, z), (x + 0.07, y + 0.24, z + tall), Part.TRIM, 0.035)
    return _pair(housing)


def _extras(s: VehicleShape) -> list[_Piece]:
    p = _places(s)
    pieces = []
    roof_y = 0.5 * s.width - s.tumblehome
    if s.roof_rails:
        x0, x1 = p.roof_rear + 0.12, p.roof_front - 0.35
        z = s.roof_height - 0.03
        rail = _bar(
            (x0, roof_y - 0.12, z - s.roof_drop), (x1, roof_y - 0.08, z + 0.045), Part.TRIM, 0.01
        )
        pieces += _pair(rail)
    if s.spoiler:
        z = s.roof_height - s.roof_drop - 0.075
        x = p.roof_rear
        low, high = (x - 0.16, -0.85 * roof_y, z), (x + 0.15, 0.85 * roof_y, z + 0.035)
        pieces.append(_bar(low, high, Part.PAINT, 0.012))
    if s.spare_wheel:
        radius = 0.95 * s.wheel_radius
        wheel = _wheel((0.0, 0.0, 0.0), radius, 0.22)
        points = wheel.points[:, [1, 0, 2]] * [-1, 1, 1]  # its outer side looks backwards
        points += [p.rear - points[:, 0].min(), 0, 0.62 * s.belt_height + 0.35]
        pieces.append(_Piece(points, wheel.faces, wheel.parts))
    if s.bed_floor is not None:  # the rear wheels stand in housings within the bed
        arch, y, z = s.wheel_radius + 0.09, 0.5 * s.width, s.bed_floor
        low = (p.axles[1] - arch, y - _wheel_width(s) - 0.13, z - 0.05)
        high = (p.axles[1] + arch, y - 0.105, 2 * s.wheel_radius + 0.10)
        pieces += _pair(_bar(low, high, Part.PAINT))
    return pieces


def _load(s: VehicleShape) -> list[_Piece]:
    """Frame, and on it a box, a tarpaulin or a platform with dropsides."""
    p = _places(s)
    half = 0.5 * s.load_width
    start, floor = p.deck - 0.02 - s.load_gap, s.load_floor
    frame = _bar(
        (p.rear + 0.06, -0.45, floor - 0.32), (p.deck + 0.3, 0.45, floor - 0.02), Part.TRIM
    )
    pieces = [frame]
    platform = _bar((p.rear, -half, floor - 0.09), (start, half, floor), Part.LOAD)
    pieces.append(platform)
    if s.load == "flatbed":
        board = 0.36
        z0, z1 = floor + 0.004, floor + board
        pieces += _pair(
            _bar((p.rear + 0.031, half - 0.03, z0), (start - 0.051, half, z1), Part.LOAD)
        )
        pieces.append(_bar((p.rear, -half, z0), (p.rear + 0.03, half, z1), Part.LOAD))
        pieces.append(_bar((start - 0.05, -half, z0), (start, half, z1 + 0.35), Part.LOAD))
    else:
        chamfer = 0.04 if s.load == "box" else 0.16
        low, high = (
            (p.rear + 0.005, -half + 0.002, floor + 0.004),
            (start - 0.005, half - 0.002, s.height),
        )
        pieces.append(_bar(low, high, Part.LOAD, chamfer))
        if s.luton:
            low = (start - 0.1, -half + 0.02, s.roof_height + 0.03)
            high = (p.roof_front - 0.1, half - 0.02, s.height - 0.004)
            pieces.append(_bar(low, high, Part.LOAD, chamfer))
    lamp = _bar(
        (p.rear + 0.005, half - 0.32, floor - 0.26),
        (p.rear + 0.08, half - 0.05, floor - 0.11),
        Part.TAIL_LAMP,
    )
    pieces += _pair(lamp)
    bumper = _bar((p.rear + 0.01, -half + 0.1, 0.42), (p.rear + 0.09, half - 0.1, 0.54), Part.TRIM)
    pieces.append(bumper)
    return pieces
