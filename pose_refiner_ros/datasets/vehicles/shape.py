# SPDX-License-Identifier: Apache-2.0
"""What a procedural vehicle is: a handful of named lengths, and the ranges they are drawn from.

Metres. Lengths run from the front: hood, windscreen, roof, rear window, deck; what they leave is
the roof. `KINDS` bounds length, width, height, wheelbase, tyre and clearance by published
dimensions of the models that it names (manufacturers' data sheets; segments B to F, J, M and N1/N2
as the European Commission divides the market). The other lengths are measured off such models'
side views, rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

CLUSTERS = ("sedan", "suv", "cargo")


@dataclass(frozen=True)
class VehicleShape:
    """length, width (without mirrors) and height (without rails) are those of the whole vehicle."""

    length: float
    width: float
    height: float
    wheelbase: float
    front_overhang: float  # from the foremost point to the front axle
    wheel_radius: float
    clearance: float
    hood_length: float  # from the foremost point to the windscreen's lower edge
    hood_height: float  # at the windscreen
    nose_height: float  # at the hood's front edge
    windscreen_length: float  # along x: long is raked
    rear_window_length: float  # along x
    deck_length: float  # boot, bed or load: from the rear window's lower edge to the rear
    deck_height: float  # at the rear window's lower edge
    belt_height: float  # lower edge of the side windows
    tumblehome: float = 0.16  # how much narrower the roof is, on each side
    nose_bow: float = 0.20  # how far the nose's corners lie behind its middle
    tail_bow: float = 0.12
    nose_lean: float = 0.12  # how far the hood's edge lies behind the bumper
    tail_lean: float = 0.08
    roof_drop: float = 0.05  # how much lower the roof is at its ends
    fastback: float = 0.0  # how far the rear window bulges out
    glass_height: float = 9.0  # of side windows and windscreen; what is above is painted
    glass_length: float = 9.0  # of the side windows; what is behind is painted
    side_windows: int = 2
    rear_pillar: float = 0.25
    rear_glass: bool = True
    cladding: bool = False  # unpainted sills and arches
    roof_rails: bool = False
    spoiler: bool = False
    spare_wheel: bool = False  # on the tail, within the length
    bed_floor: float | None = None  # an open bed in the deck: height of its floor
    load: str | None = None  # in place of a deck: box, tarp or flatbed
    load_width: float = 2.1
    load_floor: float = 0.9
    load_gap: float = 0.08  # between cab and load; negative: the cab ends within the box
    luton: bool = False  # the box reaches over the cab
    cab_height: float | None = None  # where the load is higher than the cab

    @property
    def roof_height(self) -> float:
        """Of the cabin."""
        return self.height if self.cab_height is None else self.cab_height

    @property
    def roof_length(self) -> float:
        ends = self.hood_length + self.windscreen_length
        return self.length - ends - self.rear_window_length - self.deck_length


Range = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """Ranges of a kind's numbers. `size` has those that grow together, the others are drawn one by
    one; `chances` are the probabilities of features, `choices` what else differs, and `fixed` is
    the same in all."""

    cluster: str
    models: str  # real models within the ranges, or at their ends
    size: Mapping[str, Range]
    free: Mapping[str, Range]
    chances: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _car(length, width, wheelbase, wheel_radius, front_overhang):
    return {
        "length": length,
        "width": width,
        "wheelbase": wheelbase,
        "wheel_radius": wheel_radius,
        "front_overhang": front_overhang,
    }


KINDS: dict[str, Kind] = {
    "compact_sedan": Kind(
        "sedan",
        "Dacia Logan, Toyota Corolla, Honda Civic, VW Jetta",
        _car((4.36, 4.70), (1.73, 1.82), (2.60, 2.72), (0.305, 0.335), (0.80, 0.92)),
        {
            "height": (1.42, 1.51),
            "clearance": (0.14, 0.18),
            "hood_length": (1.00, 1.22),
            "hood_height": (0.93, 1.00),
            "nose_height": (0.70, 0.78),
            "windscreen_length": (0.68, 0.90),
            "rear_window_length": (0.50, 0.75),
            "deck_length": (0.45, 0.66),
            "deck_height": (1.02, 1.10),
            "belt_height": (0.90, 0.96),
            "tumblehome": (0.15, 0.22),
            "nose_bow": (0.18, 0.32),
            "tail_bow": (0.10, 0.22),
            "nose_lean": (0.08, 0.18),
            "tail_lean": (0.05, 0.12),
            "fastback": (0.0, 0.03),
            "rear_pillar": (0.16, 0.30),
        },
    ),
    "midsize_sedan": Kind(
        "sedan",
        "BMW 3 Series, Audi A4, VW Passat, Toyota Camry, Mazda 6",
        _car((4.68, 4.93), (1.81, 1.87), (2.72, 2.88), (0.32, 0.345), (0.78, 0.95)),
        {
            "height": (1.40, 1.48),
            "clearance": (0.13, 0.17),
            "hood_length": (1.15, 1.40),
            "hood_height": (0.92, 0.99),
            "nose_height": (0.68, 0.77),
            "windscreen_length": (0.70, 0.94),
            "rear_window_length": (0.55, 0.82),
            "deck_length": (0.45, 0.74),
            "deck_height": (1.00, 1.08),
            "belt_height": (0.89, 0.95),
            "tumblehome": (0.17, 0.24),
            "nose_bow": (0.18, 0.34),
            "tail_bow": (0.10, 0.22),
            "nose_lean": (0.08, 0.18),
            "tail_lean": (0.05, 0.12),
            "fastback": (0.0, 0.04),
            "rear_pillar": (0.16, 0.32),
        },
    ),
    "executive_sedan": Kind(
        "sedan",
        "Volvo S90, BMW 5 and 7 Series, Mercedes-Benz E- and S-Class",
        _car((4.90, 5.28), (1.86, 1.95), (2.90, 3.20), (0.335, 0.365), (0.80, 0.95)),
        {
            "height": (1.43, 1.51),
            "clearance": (0.13, 0.17),
            "hood_length": (1.30, 1.60),
            "hood_height": (0.95, 1.03),
            "nose_height": (0.72, 0.84),
            "windscreen_length": (0.70, 0.94),
            "rear_window_length": (0.55, 0.85),
            "deck_length": (0.52, 0.86),
            "deck_height": (1.01, 1.10),
            "belt_height": (0.92, 0.98),
            "tumblehome": (0.18, 0.25),
            "nose_bow": (0.16, 0.30),
            "tail_bow": (0.10, 0.22),
            "nose_lean": (0.05, 0.15),
            "tail_lean": (0.05, 0.12),
            "fastback": (0.0, 0.04),
            "rear_pillar": (0.20, 0.36),
        },
    ),
    "fastback": Kind(
        "sedan",
        "Toyota Prius, Audi A5 Sportback, Ford Mustang, Tesla Model S",
        _car((4.46, 4.98), (1.76, 1.96), (2.68, 2.96), (0.315, 0.355), (0.82, 0.96)),
        {
            "height": (1.36, 1.46),
            "clearance": (0.12, 0.16),
            "hood_length": (0.94, 1.42),
            "hood_height": (0.90, 0.98),
            "nose_height": (0.64, 0.75),
            "windscreen_length": (0.80, 1.20),
            "rear_window_length": (0.98, 1.28),
            "deck_length": (0.20, 0.38),
            "deck_height": (1.00, 1.10),
            "belt_height": (0.88, 0.95),
            "tumblehome": (0.18, 0.26),
            "nose_bow": (0.22, 0.38),
            "tail_bow": (0.12, 0.25),
            "nose_lean": (0.10, 0.20),
            "tail_lean": (0.06, 0.14),
            "roof_drop": (0.05, 0.09),
            "fastback": (0.03, 0.07),
            "rear_pillar": (0.22, 0.42),
        },
        chances={"spoiler": 0.2},
    ),
    "hatchback": Kind(
        "sedan",
        "Renault Clio, VW Polo, VW Golf, Ford Focus",
        _car((3.95, 4.40), (1.70, 1.83), (2.48, 2.70), (0.30, 0.33), (0.75, 0.88)),
        {
            "height": (1.42, 1.51),
            "clearance": (0.13, 0.17),
            "hood_length": (0.90, 1.18),
            "hood_height": (0.94, 1.02),
            "nose_height": (0.70, 0.79),
            "windscreen_length": (0.70, 0.95),
            "rear_window_length": (0.40, 0.68),
            "deck_length": (0.10, 0.20),
            "deck_height": (0.98, 1.06),
            "belt_height": (0.90, 0.96),
            "tumblehome": (0.15, 0.22),
            "nose_bow": (0.20, 0.34),
            "tail_bow": (0.14, 0.25),
            "nose_lean": (0.08, 0.18),
            "tail_lean": (0.05, 0.12),
            "roof_drop": (0.05, 0.08),
            "fastback": (0.0, 0.04),
            "rear_pillar": (0.20, 0.38),
        },
        chances={"spoiler": 0.4},
    ),
    "crossover": Kind(
        "suv",
        "Renault Captur, Nissan Juke, Mazda CX-30, Nissan Qashqai",
        _car((4.13, 4.46), (1.77, 1.85), (2.54, 2.68), (0.335, 0.36), (0.80, 0.90)),
        {
            "height": (1.56, 1.65),
            "clearance": (0.17, 0.21),
            "hood_length": (0.95, 1.18),
            "hood_height": (1.03, 1.10),
            "nose_height": (0.84, 0.95),
            "windscreen_length": (0.68, 0.88),
            "rear_window_length": (0.32, 0.55),
            "deck_length": (0.10, 0.18),
            "deck_height": (1.08, 1.16),
            "belt_height": (1.00, 1.07),
            "tumblehome": (0.14, 0.20),
            "nose_bow": (0.18, 0.30),
            "tail_bow": (0.12, 0.22),
            "nose_lean": (0.06, 0.14),
            "tail_lean": (0.05, 0.10),
            "roof_drop": (0.05, 0.08),
            "rear_pillar": (0.20, 0.36),
        },
        chances={"cladding": 0.7, "roof_rails": 0.5, "spoiler": 0.5},
    ),
    "midsize_suv": Kind(
        "suv",
        "VW Tiguan, Honda CR-V, Toyota RAV4, Skoda Kodiaq",
        _car((4.45, 4.72), (1.82, 1.89), (2.62, 2.80), (0.35, 0.375), (0.82, 0.94)),
        {
            "height": (1.63, 1.73),
            "clearance": (0.18, 0.22),
            "hood_length": (1.02, 1.25),
            "hood_height": (1.08, 1.15),
            "nose_height": (0.90, 1.02),
            "windscreen_length": (0.62, 0.82),
            "rear_window_length": (0.25, 0.45),
            "deck_length": (0.10, 0.18),
            "deck_height": (1.10, 1.18),
            "belt_height": (1.04, 1.11),
            "tumblehome": (0.14, 0.20),
            "nose_bow": (0.14, 0.26),
            "tail_bow": (0.10, 0.18),
            "nose_lean": (0.05, 0.12),
            "tail_lean": (0.04, 0.09),
            "rear_pillar": (0.16, 0.32),
        },
        chances={"cladding": 0.6, "roof_rails": 0.7, "spoiler": 0.5},
        fixed={"side_windows": 3},
    ),
    "large_suv": Kind(
        "suv",
        "BMW X5, Volvo XC90, Toyota Land Cruiser, Chevrolet Tahoe",
        _car((4.82, 5.35), (1.93, 2.06), (2.84, 3.08), (0.375, 0.41), (0.85, 1.00)),
        {
            "height": (1.72, 1.92),
            "clearance": (0.20, 0.25),
            "hood_length": (1.18, 1.45),
            "hood_height": (1.14, 1.25),
            "nose_height": (0.98, 1.12),
            "windscreen_length": (0.58, 0.80),
            "rear_window_length": (0.22, 0.42),
            "deck_length": (0.10, 0.16),
            "deck_height": (1.15, 1.26),
            "belt_height": (1.10, 1.20),
            "tumblehome": (0.14, 0.20),
            "nose_bow": (0.12, 0.22),
            "tail_bow": (0.08, 0.16),
            "nose_lean": (0.04, 0.10),
            "tail_lean": (0.03, 0.08),
            "roof_drop": (0.03, 0.05),
            "rear_pillar": (0.14, 0.28),
        },
        chances={"cladding": 0.4, "roof_rails": 0.8, "spoiler": 0.4},
        fixed={"side_windows": 3},
    ),
    "off_roader": Kind(
        "suv",
        "Suzuki Jimny, Jeep Wrangler, Mercedes-Benz G-Class, Land Rover Defender, Hummer H2",
        _car((3.64, 5.02), (1.64, 2.06), (2.25, 3.12), (0.345, 0.44), (0.58, 0.86)),
        {
            "height": (1.72, 2.00),
            "clearance": (0.22, 0.31),
            "hood_length": (0.98, 1.30),
            "hood_height": (1.14, 1.26),
            "nose_height": (1.02, 1.14),
            "windscreen_length": (0.22, 0.45),
            "rear_window_length": (0.04, 0.12),
            "deck_length": (0.08, 0.12),
            "deck_height": (1.14, 1.25),
            "belt_height": (1.14, 1.25),
            "tumblehome": (0.06, 0.12),
            "nose_bow": (0.04, 0.12),
            "tail_bow": (0.03, 0.08),
            "nose_lean": (0.02, 0.06),
            "tail_lean": (0.01, 0.04),
            "roof_drop": (0.01, 0.03),
            "rear_pillar": (0.10, 0.22),
        },
        chances={"cladding": 0.7, "roof_rails": 0.5, "spare_wheel": 0.7},
        fixed={"side_windows": 3},
    ),
    "delivery_van": Kind(
        "cargo",
        "Renault Kangoo, VW Caddy, Citroen Berlingo, Ford Transit Connect",
        _car((4.21, 4.82), (1.80, 1.86), (2.66, 2.97), (0.31, 0.335), (0.82, 0.92)),
        {
            "height": (1.79, 1.88),
            "clearance": (0.15, 0.19),
            "hood_length": (0.82, 1.02),
            "hood_height": (1.08, 1.16),
            "nose_height": (0.84, 0.96),
            "windscreen_length": (0.75, 0.98),
            "rear_window_length": (0.04, 0.12),
            "deck_length": (0.08, 0.12),
            "deck_height": (1.10, 1.18),
            "belt_height": (1.08, 1.14),
            "tumblehome": (0.08, 0.14),
            "nose_bow": (0.16, 0.28),
            "tail_bow": (0.05, 0.12),
            "nose_lean": (0.08, 0.16),
            "tail_lean": (0.02, 0.05),
            "roof_drop": (0.02, 0.04),
            "rear_pillar": (0.10, 0.20),
            "glass_length": (0.95, 1.15),
        },
        chances={"rear_glass": 0.6},
        fixed={"side_windows": 1},
    ),
    "panel_van": Kind(
        "cargo",
        "VW Transporter, Mercedes-Benz Vito, Ford Transit Custom",
        _car((4.90, 5.34), (1.90, 2.00), (3.00, 3.40), (0.325, 0.35), (0.88, 1.00)),
        {
            "height": (1.91, 2.02),
            "clearance": (0.16, 0.20),
            "hood_length": (0.72, 0.98),
            "hood_height": (1.12, 1.22),
            "nose_height": (0.86, 1.00),
            "windscreen_length": (0.75, 1.00),
            "rear_window_length": (0.04, 0.12),
            "deck_length": (0.08, 0.12),
            "deck_height": (1.15, 1.24),
            "belt_height": (1.14, 1.22),
            "tumblehome": (0.10, 0.16),
            "nose_bow": (0.16, 0.28),
            "tail_bow": (0.05, 0.12),
            "nose_lean": (0.08, 0.16),
            "tail_lean": (0.02, 0.05),
            "roof_drop": (0.02, 0.05),
            "rear_pillar": (0.10, 0.20),
            "glass_length": (0.98, 1.20),
        },
        chances={"rear_glass": 0.5},
        fixed={"side_windows": 1},
    ),
    "large_van": Kind(
        "cargo",
        "Fiat Ducato, Mercedes-Benz Sprinter, Ford Transit (high and low roofs)",
        _car((4.98, 6.95), (1.99, 2.07), (3.00, 4.30), (0.335, 0.36), (0.92, 1.03)),
        {
            "height": (2.25, 2.80),
            "clearance": (0.17, 0.22),
            "hood_length": (0.62, 0.95),
            "hood_height": (1.25, 1.38),
            "nose_height": (0.98, 1.12),
            "windscreen_length": (0.78, 1.05),
            "rear_window_length": (0.03, 0.10),
            "deck_length": (0.08, 0.12),
            "deck_height": (1.28, 1.40),
            "belt_height": (1.26, 1.36),
            "tumblehome": (0.08, 0.14),
            "nose_bow": (0.14, 0.26),
            "tail_bow": (0.03, 0.08),
            "nose_lean": (0.08, 0.18),
            "tail_lean": (0.01, 0.04),
            "roof_drop": (0.02, 0.05),
            "rear_pillar": (0.10, 0.20),
            "glass_length": (0.95, 1.15),
            "glass_height": (0.66, 0.80),
        },
        chances={"rear_glass": 0.5},
        fixed={"side_windows": 1},
    ),
    "pickup": Kind(
        "cargo",
        "double cab: Toyota Hilux, Ford Ranger, Ram 1500, Ford F-150",
        _car((5.25, 5.92), (1.85, 2.04), (3.05, 3.68), (0.375, 0.415), (0.85, 0.98)),
        {
            "height": (1.78, 1.97),
            "clearance": (0.22, 0.28),
            "hood_length": (1.20, 1.48),
            "hood_height": (1.13, 1.26),
            "nose_height": (1.00, 1.14),
            "windscreen_length": (0.58, 0.80),
            "rear_window_length": (0.10, 0.28),
            "deck_length": (1.48, 1.78),
            "deck_height": (1.10, 1.26),
            "belt_height": (1.12, 1.24),
            "tumblehome": (0.13, 0.20),
            "nose_bow": (0.10, 0.22),
            "tail_bow": (0.03, 0.08),
            "nose_lean": (0.04, 0.10),
            "tail_lean": (0.01, 0.04),
            "roof_drop": (0.03, 0.06),
            "rear_pillar": (0.14, 0.26),
            "bed_floor": (0.70, 0.80),
        },
        chances={"cladding": 0.5},
    ),
    "pickup_single_cab": Kind(
        "cargo",
        "single cab: Toyota Hilux, Isuzu D-Max, Ford F-150 (6.5 and 8 ft beds)",
        _car((5.20, 5.80), (1.80, 2.04), (3.05, 3.60), (0.36, 0.41), (0.85, 0.96)),
        {
            "height": (1.72, 1.93),
            "clearance": (0.20, 0.27),
            "hood_length": (1.20, 1.45),
            "hood_height": (1.10, 1.24),
            "nose_height": (0.98, 1.12),
            "windscreen_length": (0.58, 0.78),
            "rear_window_length": (0.08, 0.20),
            "deck_length": (2.05, 2.45),
            "deck_height": (1.08, 1.24),
            "belt_height": (1.10, 1.22),
            "tumblehome": (0.12, 0.19),
            "nose_bow": (0.10, 0.22),
            "tail_bow": (0.03, 0.08),
            "nose_lean": (0.04, 0.10),
            "tail_lean": (0.01, 0.04),
            "roof_drop": (0.03, 0.05),
            "rear_pillar": (0.12, 0.20),
            "bed_floor": (0.68, 0.78),
        },
        chances={"cladding": 0.4},
        fixed={"side_windows": 1},
    ),
    "box_van": Kind(
        "cargo",
        "cutaway cabs with a box: Ford Transit, Fiat Ducato, Iveco Daily, Chevrolet Express",
        _car((5.90, 7.40), (1.99, 2.07), (3.45, 4.35), (0.34, 0.37), (0.92, 1.03)),
        {
            "height": (2.85, 3.35),
            "cab_height": (2.20, 2.35),
            "clearance": (0.18, 0.24),
            "hood_length": (0.68, 1.00),
            "hood_height": (1.26, 1.38),
            "nose_height": (1.00, 1.14),
            "windscreen_length": (0.75, 0.98),
            "rear_window_length": (0.04, 0.10),
            "deck_length": (3.35, 4.30),
            "deck_height": (1.30, 1.40),
            "belt_height": (1.27, 1.36),
            "tumblehome": (0.10, 0.15),
            "nose_bow": (0.14, 0.26),
            "tail_bow": (0.03, 0.06),
            "nose_lean": (0.08, 0.16),
            "tail_lean": (0.01, 0.03),
            "rear_pillar": (0.10, 0.16),
            "load_width": (2.10, 2.32),
            "load_gap": (-0.15, 0.10),
            "load_floor": (0.64, 0.92),
            "glass_height": (0.66, 0.78),
        },
        chances={"luton": 0.3},
        fixed={"side_windows": 1, "load": "box", "rear_glass": False},
    ),
    "light_truck": Kind(
        "cargo",
        "cab over engine with box or tarpaulin: Isuzu N-Series, Mitsubishi Fuso Canter, Hino 300",
        _car((5.30, 7.20), (1.80, 2.10), (2.75, 4.00), (0.36, 0.41), (1.05, 1.15)),
        {
            "height": (2.75, 3.35),
            "cab_height": (2.15, 2.35),
            "clearance": (0.24, 0.32),
            "hood_length": (0.16, 0.26),
            "hood_height": (1.32, 1.45),
            "nose_height": (1.22, 1.32),
            "windscreen_length": (0.20, 0.40),
            "rear_window_length": (0.03, 0.08),
            "deck_length": (3.45, 5.10),
            "deck_height": (1.32, 1.45),
            "belt_height": (1.25, 1.38),
            "tumblehome": (0.08, 0.13),
            "nose_bow": (0.08, 0.16),
            "tail_bow": (0.03, 0.06),
            "nose_lean": (0.02, 0.06),
            "tail_lean": (0.01, 0.03),
            "rear_pillar": (0.10, 0.16),
            "load_width": (2.00, 2.35),
            "load_floor": (0.92, 1.08),
        },
        fixed={"side_windows": 1, "rear_glass": False},
        choices={"load": ("box", "tarp")},
    ),
    "flatbed": Kind(
        "cargo",
        "dropside chassis cabs: Mercedes-Benz Sprinter, Ford Transit, Renault Master",
        _car((5.45, 6.90), (1.95, 2.07), (3.25, 4.20), (0.335, 0.365), (0.92, 1.03)),
        {
            "height": (2.15, 2.35),
            "clearance": (0.18, 0.24),
            "hood_length": (0.68, 1.00),
            "hood_height": (1.25, 1.36),
            "nose_height": (0.98, 1.12),
            "windscreen_length": (0.75, 0.98),
            "rear_window_length": (0.04, 0.12),
            "deck_length": (2.75, 3.70),
            "deck_height": (1.28, 1.38),
            "belt_height": (1.26, 1.34),
            "tumblehome": (0.10, 0.15),
            "nose_bow": (0.14, 0.26),
            "tail_bow": (0.03, 0.06),
            "nose_lean": (0.08, 0.16),
            "tail_lean": (0.01, 0.03),
            "rear_pillar": (0.10, 0.16),
            "load_width": (2.00, 2.20),
            "load_floor": (0.80, 0.98),
            "glass_height": (0.66, 0.78),
        },
        fixed={"side_windows": 1, "load": "flatbed"},
    ),
}


def kinds_of(cluster: str) -> list[str]:
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster {cluster!r} is not known: use one of {', '.join(CLUSTERS)}")
    return [name for name, kind in KINDS.items() if kind.cluster == cluster]


def sample_shape(kind: str, rng: np.random.Generator) -> VehicleShape:
    """A vehicle of that kind; the same for the same state of the generator."""
    if kind not in KINDS:
        raise ValueError(f"vehicle kind {kind!r} is not known: use one of {', '.join(KINDS)}")
    table = KINDS[kind]
    size = rng.random()  # small or large of its kind: long ones are also wide
    values: dict[str, object] = {}
    for name, (low, high) in table.size.items():
        where = np.clip(size + rng.uniform(-0.25, 0.25), 0.0, 1.0)
        values[name] = low + where * (high - low)
    for name, (low, high) in table.free.items():
        values[name] = rng.uniform(low, high)
    for name, chance in table.chances.items():
        values[name] = bool(rng.random() < chance)
    values.update(table.fixed)
    for name, options in table.choices.items():
        values[name] = options[int(rng.integers(len(options)))]
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = round(float(value), 3)
    return _consistent(VehicleShape(**values))


def _consistent(shape: VehicleShape) -> VehicleShape:
    """Lengths that were drawn one by one made to fit each other."""
    # the rear overhang is what length, wheelbase and front overhang leave
    least_overhang = shape.wheel_radius + 0.20 + (0.2 if shape.spare_wheel else 0.0)
    longest = shape.length - shape.front_overhang - least_overhang
    changes = {"wheelbase": round(min(shape.wheelbase, longest), 3)}
    if shape.load is not None:  # the cab ends before the rear wheels, the load begins behind it
        least = shape.hood_length + shape.windscreen_length + shape.rear_window_length
        least += 1.0 if shape.hood_length < 0.5 else 0.65  # the door behind the windscreen
        cab = np.clip(shape.length - shape.deck_length, least, least + 0.35)
        changes["deck_length"] = round(float(shape.length - cab), 3)
    elif shape.roof_length < 0.8:
        names = ("hood_length", "windscreen_length", "rear_window_length", "deck_length")
        shrink = (shape.length - 0.8) / (shape.length - shape.roof_length)
        changes |= {name: round(shrink * getattr(shape, name), 3) for name in names}
    return replace(shape, **changes)
