# SPDX-License-Identifier: Apache-2.0
"""Procedural vehicles: sedans, SUVs and cargo vehicles of any number, each from a few lengths."""

from __future__ import annotations

import json
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
    name: VehicleShape(**lengths)
    for name, lengths in json.loads(
        (Path(__file__).parent / "data" / "demo.json").read_text()
    ).items()
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
