# SPDX-License-Identifier: Apache-2.0
"""The medoids of a collection as an object library, and the one that comes with the package.

`python -m pose_refiner_ros.learning.vehicle_library` writes the package's anew: the medoids of
`procedural_collection()`. Run it after every change of the generator.
"""

from __future__ import annotations

from pathlib import Path

from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.vehicles import obj_text
from pose_refiner_ros.datasets.vehicles.collection import Collection, procedural_collection
from pose_refiner_ros.files.atomic import write_atomically

COLORS = {"sedan": "[0.80, 0.16, 0.13]", "suv": "[0.20, 0.42, 0.80]", "cargo": "[0.92, 0.70, 0.20]"}
# What detectors call vehicles of each cluster.
ALIASES = {
    "sedan": ["car", "saloon", "coupe", "taxi"],
    "suv": ["jeep", "crossover", "off-roader"],
    "cargo": ["van", "truck", "pickup", "bus", "minivan", "box_van", "ambulance"],
}


def write_library(folder: str | Path, collection: Collection) -> Path:
    """Writes CLUSTER.obj of each medoid and vehicles.yaml, which is returned."""
    folder = Path(folder)
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        f"# The medoid of each cluster of vehicles ({collection.source}).",
        "# Metres, x forward, y left, z up, origin on the ground below the box centre.",
        "# A category says that the mesh stands for every object of that kind.",
        "defaults:",
        "  unit: m",
        "",
        "objects:",
    ]
    for cluster, vehicle in collection.medoids.items():
        write_atomically(folder / f"{cluster}.obj", obj_text(vehicle.mesh).encode())
        lines += [
            f"  {cluster}:  # {vehicle.name}",
            f"    mesh: {cluster}.obj",
            f"    category: {cluster}",
            f"    color: {COLORS[cluster]}",
            f"    aliases: [{', '.join(ALIASES[cluster])}]",
        ]
    path = folder / shipped.OBJECTS.name
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


if __name__ == "__main__":
    from pose_refiner_ros.warp_start import start_warp_quietly

    start_warp_quietly()
    print(f"wrote {write_library(shipped.VEHICLES, procedural_collection())}")
