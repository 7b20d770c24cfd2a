#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether refinement measures distances without bias, and states its errors truly.

    python tools/measure_range_bias.py MESH[:UNIT] ... [--sizes 60 80 120 200] [--views 60]

For each mesh file (unit m unless given, as in drill.ply:mm; `vehicle:NAME` is a procedural one) and
each size of its silhouette (longest side of the box around it, in pixels): the full mesh is drawn
from random sides, a pixel being set where its centre is covered, and refined from the true pose.
--street: seen as a robot sees a vehicle, whose z points up. --full: refined with the full mesh.
Columns: mean of the relative error of the range (of the box's centre; negative: too near) and its
standard error, its standard deviation, the mean that is stated, and the mean of the normalised
squared error of the pose, 6 where covariances are right.
"""

from __future__ import annotations

import argparse

import numpy as np
import warp as wp
from scipy.spatial.transform import Rotation

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import twist_between
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.mesh import Mesh, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.outline import Rasterizer
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner

CAMERA = Camera(np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]), (480, 640))


def read_mesh(argument: str) -> Mesh:
    """The mesh that an argument of the command line names."""
    head, _, tail = argument.rpartition(":")
    if head == "vehicle":
        return make_vehicle(VEHICLES[tail]).mesh
    return load_mesh(head, tail) if head else load_mesh(tail, "m")


def view(mesh: Mesh, size: float, rng: np.random.Generator, street: bool) -> np.ndarray:
    """A random pose (4, 4) at which the box around the silhouette is `size` pixels long."""
    center = mesh.bounds.mean(axis=0)
    pose = np.eye(4)
    if street:
        azimuth, height = rng.uniform(0.0, 2.0 * np.pi), np.sin(rng.uniform(0.02, 0.4))
        level = np.sqrt(1.0 - height**2)
        direction = np.array([np.cos(azimuth) * level, np.sin(azimuth) * level, height])
        pose[:3, :3] = look_at(direction[None])[0]
    else:
        pose[:3, :3] = Rotation.random(random_state=rng).as_matrix()
    ray = np.append(rng.uniform(-0.2, 0.2, 2), 1.0)
    low, high = 0.5 * mesh.diameter, 1e3 * mesh.diameter
    while high / low > 1.0 + 1e-6:
        middle = np.sqrt(low * high)
        pose[:3, 3] = middle * ray - pose[:3, :3] @ center
        points = mesh.vertices[mesh.used_vertices] @ pose[:3, :3].T + pose[:3, 3]
        near = points[:, 2].min() < 0.1 * mesh.diameter
        if near or np.ptp(CAMERA.project(points), axis=0).max() > size:
            low = middle
        else:
            high = middle
    return pose


def measure(
    mesh: Mesh,
    silhouette_mesh: Mesh,
    sizes: list[float],
    views: int,
    seed: int = 0,
    street: bool = False,
) -> dict[float, np.ndarray]:
    """Of each size (views, 3): relative error of the range, its stated sigma, squared error."""
    model = ObjectModel("object", mesh, silhouette_mesh)
    refiner = Refiner([model], capacity=8)
    rasterizer = Rasterizer(mesh.faces)
    center = np.append(mesh.bounds.mean(axis=0), 1.0)
    result = {}
    for size in sizes:
        rng = np.random.default_rng(seed)
        rows = []
        for _ in range(views):
            truth = view(mesh, size, rng, street)
            points = mesh.vertices @ truth[:3, :3].T + truth[:3, 3]
            mask = rasterizer.covered(CAMERA.project(points), CAMERA.size)
            start = [[Hypothesis("object", truth)]]
            seen = [[observe_mask(mask, 1, CAMERA)]]
            # the truth is where it starts, and no result of its own
            found = refiner.refine(seen, start, restart=False, given=False)[0][0]
            place, other = (truth @ center)[:3], (found.reference_from_object @ center)[:3]
            distance = np.linalg.norm(place)
            arm = place - truth[:3, 3]
            # of the centre's range by shift and turn about the origin
            row = np.concatenate([place, np.cross(arm, place)]) / distance**2
            error = twist_between(truth, found.reference_from_object)
            rows.append(
                [
                    np.linalg.norm(other) / distance - 1.0,
                    np.sqrt(row @ found.covariance @ row),
                    error @ np.linalg.solve(found.covariance, error),
                ]
            )
        result[size] = np.array(rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("meshes", nargs="+", metavar="MESH")
    parser.add_argument("--sizes", nargs="+", type=float, default=[60, 80, 120, 200])
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--street", action="store_true")
    parser.add_argument("--full", action="store_true", help="refine with the full mesh")
    arguments = parser.parse_args()
    wp.config.quiet = True
    print(f"{'mesh':28} {'px':>4} {'range %':>8} {'+-':>5} {'sd %':>6} {'stated %':>8} {'NEES':>6}")
    for name in arguments.meshes:
        mesh = read_mesh(name)
        found = measure(
            mesh,
            mesh if arguments.full else simplify_for_silhouette(mesh),
            arguments.sizes,
            arguments.views,
            arguments.seed,
            arguments.street,
        )
        for size, rows in found.items():
            error, stated, squared = rows.T
            spread = error.std(ddof=1)
            print(
                f"{name[-28:]:28} {size:4.0f} {100 * error.mean():+8.3f} "
                f"{100 * spread / np.sqrt(len(error)):5.3f} {100 * spread:6.3f} "
                f"{100 * stated.mean():8.3f} {squared.mean():6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
