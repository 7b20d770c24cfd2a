# SPDX-License-Identifier: Apache-2.0
"""Many vehicles in three clusters, split by model into those to learn from and those to test on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.objects.mesh import Mesh

from .build import make_vehicle
from .shape import CLUSTERS, kinds_of, sample_shape

SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}  # shares of each cluster, without its medoid

# Procedural vehicles of a cluster that the shipped encoder, medoids and tables come from.
PER_CLUSTER = 400


class CollectionError(ValueError):
    """A collection of vehicles that cannot be used, with the reason and what to do."""


@dataclass(frozen=True, eq=False)
class Vehicle:
    """A vehicle model. mesh: metres, x forward, y left, z up, origin on the ground below the box
    centre. parts: (F,) the `Part` of each face, None where nothing is known of parts."""

    name: str
    cluster: str
    mesh: Mesh
    parts: np.ndarray | None = None


@dataclass(eq=False)
class Collection:
    """Vehicles and how they are split.

    source: says where they come from. seed: of the splits. skipped: models that were left out, and
    why.
    """

    vehicles: list[Vehicle]
    source: str
    seed: int = 0
    skipped: dict[str, str] = field(default_factory=dict)

    def cluster(self, name: str) -> list[Vehicle]:
        """The vehicles of one cluster, sorted by name."""
        return sorted((v for v in self.vehicles if v.cluster == name), key=lambda v: v.name)

    @cached_property
    def medoids(self) -> dict[str, Vehicle]:
        """Cluster -> the vehicle that stands for it (objects/medoid.py); kept on disk."""
        from pose_refiner_ros.objects import medoid

        chosen = {}
        for cluster in CLUSTERS:
            vehicles = self.cluster(cluster)
            if not vehicles:
                continue
            meshes = [v.mesh for v in vehicles]
            key = cache_key(medoid.VERSION, [mesh.content_hash for mesh in meshes])
            kept = cached_arrays(
                "medoid", key, lambda meshes=meshes: {"index": medoid.choose_medoid(meshes)}
            )
            chosen[cluster] = vehicles[int(kept["index"])]
        return chosen

    def split(self, name: str) -> list[Vehicle]:
        """The vehicles of "train", "val" or "test".

        A model is in one split, a medoid in none. The order in which models are dealt out depends
        on the seed and their names alone, so other models, or another medoid, move few of them.
        """
        if name not in SPLITS:
            raise CollectionError(f"split {name!r} is not known: use one of {', '.join(SPLITS)}")
        end = np.cumsum([0.0, *SPLITS.values()])
        place = list(SPLITS).index(name)
        members = []
        for cluster in CLUSTERS:
            medoid = self.medoids.get(cluster)
            vehicles = [v for v in self.cluster(cluster) if v is not medoid]
            vehicles.sort(key=lambda v: cache_key(self.seed, v.name))
            first, last = (round(len(vehicles) * share) for share in end[place : place + 2])
            members += vehicles[first:last]
        return members


def procedural_collection(per_cluster: int = PER_CLUSTER, seed: int = 0) -> Collection:
    """Vehicles made by the generator, the kinds of a cluster in turn.

    The same seed gives the same vehicles, and a larger collection contains the smaller one. Kept
    on disk.

    Raises:
        CollectionError: fewer than one vehicle per cluster.
    """
    if per_cluster < 1:
        raise CollectionError(f"per_cluster is {per_cluster}: a cluster needs a vehicle")
    arrays = cached_arrays(
        "vehicles",
        cache_key(_generator_version(), per_cluster, seed),
        lambda: _arrays(_generate(per_cluster, seed)),
    )
    return Collection(
        _vehicles(arrays), f"procedural, {per_cluster} per cluster, seed {seed}", seed
    )


def _generate(per_cluster: int, seed: int) -> list[Vehicle]:
    vehicles = []
    for number, cluster in enumerate(CLUSTERS):
        kinds = kinds_of(cluster)
        for i in range(per_cluster):
            kind = kinds[i % len(kinds)]
            made = make_vehicle(sample_shape(kind, np.random.default_rng((seed, number, i))))
            name = f"{cluster}_{i:04d}_{kind}"
            vehicles.append(Vehicle(name, cluster, made.mesh, np.asarray(made.parts)))
    return vehicles


def _generator_version() -> str:
    """Changes with the code of the generator."""
    folder = Path(__file__).parent
    digest = hashlib.blake2b(digest_size=16)
    for file in ("shape.py", "build.py", "collection.py"):
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()


def _arrays(vehicles: list[Vehicle]) -> dict[str, np.ndarray]:
    """Vehicles with parts, as arrays for the disk."""
    return {
        "names": np.array([v.name for v in vehicles]),
        "clusters": np.array([v.cluster for v in vehicles]),
        "vertices": np.concatenate([v.mesh.vertices for v in vehicles]),
        "faces": np.concatenate([v.mesh.faces for v in vehicles]),
        "parts": np.concatenate([v.parts for v in vehicles]),
        "vertex_count": np.array([len(v.mesh.vertices) for v in vehicles]),
        "face_count": np.array([len(v.mesh.faces) for v in vehicles]),
    }


def _vehicles(arrays: dict[str, np.ndarray]) -> list[Vehicle]:
    vertex_end, face_end = np.cumsum(arrays["vertex_count"]), np.cumsum(arrays["face_count"])
    vertices = np.split(arrays["vertices"], vertex_end[:-1])
    faces = np.split(arrays["faces"], face_end[:-1])
    parts = np.split(arrays["parts"], face_end[:-1])
    return [
        Vehicle(str(arrays["names"][i]), str(arrays["clusters"][i]), Mesh(v, f), p)
        for i, (v, f, p) in enumerate(zip(vertices, faces, parts, strict=True))
    ]
