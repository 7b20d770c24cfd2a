# SPDX-License-Identifier: Apache-2.0
"""What a procedural vehicle is: a handful of named lengths, and the ranges they are drawn from.

Metres. Lengths run from the front: hood, windscreen, roof, rear window, deck; what they leave is
the roof. `KINDS`, in `data/kinds.json`, bounds length, width, height, wheelbase, tyre and clearance
by published dimensions of the models that it names (manufacturers' data sheets; segments B to F, J,
M and N1/N2 as the European Commission divides the market). The other lengths are measured off such
models' side views, rounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

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


KINDS: dict[str, Kind] = {
    name: Kind(**entry)
    for name, entry in json.loads(
        (Path(__file__).parent / "data" / "kinds.json").read_text()
    ).items()
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
