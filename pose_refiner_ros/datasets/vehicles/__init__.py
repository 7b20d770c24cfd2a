# SPDX-License-Identifier: Apache-2.0
"""Procedural vehicles: sedans, SUVs and cargo vehicles of any number, each from a few lengths."""

from __future__ import annotations

from pathlib import Path

from pose_refiner_ros.datasets.vehicles.build import PART_COLORS, Part, VehicleMesh, make_vehicle
from pose_refiner_ros.datasets.vehicles.shape import (
    CLUSTERS,
    KINDS,
    Kind,
    VehicleShape,
    kinds_of,
    sample_shape,
)
from pose_refiner_ros.objects.mesh import Mesh

__all__ = [
    "CLUSTERS",
    "DATA",
    "KINDS",
    "LIBRARY",
    "PART_COLORS",
    "VEHICLES",
    "Kind",
    "Part",
    "VehicleMesh",
    "VehicleShape",
    "kinds_of",
    "make_vehicle",
    "obj_text",
    "sample_shape",
    "write_demo_meshes",
]

DATA = Path(__file__).resolve().parents[2] / "data"
LIBRARY = DATA / "demo_objects.yaml"  # the object library of the vehicles below

# those of the demo, tests and benchmarks
VEHICLES = {
    "sedan": VehicleShape(
        length=4.70,
        width=1.82,
        height=1.45,
        wheelbase=2.78,
        front_overhang=0.86,
        wheel_radius=0.33,
        clearance=0.16,
        hood_length=1.20,
        hood_height=0.95,
        nose_height=0.74,
        windscreen_length=0.82,
        rear_window_length=0.68,
        deck_length=0.60,
        deck_height=1.03,
        belt_height=0.92,
        tumblehome=0.20,
        nose_bow=0.24,
        tail_bow=0.15,
    ),
    "suv": VehicleShape(
        length=4.65,
        width=1.90,
        height=1.74,
        wheelbase=2.72,
        front_overhang=0.88,
        wheel_radius=0.37,
        clearance=0.22,
        hood_length=1.10,
        hood_height=1.12,
        nose_height=0.96,
        windscreen_length=0.66,
        rear_window_length=0.34,
        deck_length=0.14,
        deck_height=1.14,
        belt_height=1.08,
        nose_bow=0.18,
        tail_bow=0.13,
        rear_pillar=0.22,
        cladding=True,
    ),
    "van": VehicleShape(
        length=5.40,
        width=2.02,
        height=2.35,
        wheelbase=3.35,
        front_overhang=0.96,
        wheel_radius=0.35,
        clearance=0.19,
        hood_length=0.75,
        hood_height=1.28,
        nose_height=1.02,
        windscreen_length=0.85,
        rear_window_length=0.06,
        deck_length=0.10,
        deck_height=1.32,
        belt_height=1.28,
        tumblehome=0.11,
        tail_bow=0.06,
        tail_lean=0.03,
        roof_drop=0.03,
        glass_height=0.72,
        glass_length=1.05,
        side_windows=1,
        rear_pillar=0.15,
    ),
    "pickup": VehicleShape(
        length=5.45,
        width=1.96,
        height=1.84,
        wheelbase=3.30,
        front_overhang=0.92,
        wheel_radius=0.39,
        clearance=0.25,
        hood_length=1.32,
        hood_height=1.20,
        nose_height=1.06,
        windscreen_length=0.68,
        rear_window_length=0.18,
        deck_length=1.75,
        deck_height=1.08,
        belt_height=1.17,
        nose_bow=0.16,
        tail_bow=0.06,
        nose_lean=0.07,
        tail_lean=0.03,
        rear_pillar=0.20,
        bed_floor=0.74,
    ),
}


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
