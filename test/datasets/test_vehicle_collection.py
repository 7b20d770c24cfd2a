# SPDX-License-Identifier: Apache-2.0
"""Collections of vehicles: splits, medoids, and the object library that is made of them."""

import re

import numpy as np
import pytest
from shapes import box

from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.vehicles import collection as module
from pose_refiner_ros.datasets.vehicles import make_vehicle, obj_text, sample_shape
from pose_refiner_ros.datasets.vehicles.collection import (
    CLUSTERS,
    Collection,
    CollectionError,
    Vehicle,
    procedural_collection,
)
from pose_refiner_ros.learning.vehicle_library import write_library
from pose_refiner_ros.objects.library import ObjectLibrary


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def boxes(monkeypatch):
    """21 boxes a cluster, the medoid always the first."""
    from pose_refiner_ros.objects import medoid

    monkeypatch.setattr(medoid, "choose_medoid", lambda meshes: 0)
    return [
        Vehicle(f"{cluster}_{i:02d}", cluster, box(4 + 0.01 * i, 2, 1.5 + 0.2 * k))
        for k, cluster in enumerate(CLUSTERS)
        for i in range(21)
    ]


def names(vehicles):
    return [v.name for v in vehicles]


def test_splits_have_their_shares_and_no_medoid(boxes):
    some = Collection(boxes, "boxes")
    splits = {name: some.split(name) for name in ("train", "val", "test")}
    for cluster in CLUSTERS:
        counts = [sum(v.cluster == cluster for v in split) for split in splits.values()]
        assert counts == [12, 4, 4]
    everything = [name for split in splits.values() for name in names(split)]
    assert len(set(everything)) == len(everything) == 60
    medoids = {v.name for v in some.medoids.values()}
    assert medoids == {"sedan_00", "suv_00", "cargo_00"}
    assert medoids.isdisjoint(everything)


def test_splits_depend_on_the_seed_and_hardly_on_other_models(boxes):
    def train(vehicles, seed=0):
        return set(names(Collection(vehicles, "boxes", seed).split("train")))

    assert train(boxes) == train(boxes[::-1])
    assert train(boxes) != train(boxes, seed=1)
    fewer = [v for v in boxes if v.name != "suv_07"]
    assert len(train(boxes) ^ train(fewer)) <= 3


def test_an_unknown_split_is_named(boxes):
    with pytest.raises(CollectionError, match="split 'dev' is not known: use one of train, val"):
        Collection(boxes, "boxes").split("dev")


def test_procedural_vehicles_are_seeded_and_kept(monkeypatch):
    few = procedural_collection(per_cluster=4)
    assert [len(few.cluster(c)) for c in CLUSTERS] == [4, 4, 4]
    more = {v.name: v for v in procedural_collection(per_cluster=5).vehicles}
    for vehicle in few.vehicles:  # a larger collection contains the smaller one
        assert more[vehicle.name].mesh.content_hash == vehicle.mesh.content_hash
    other = procedural_collection(per_cluster=4, seed=1)
    assert few.vehicles[0].mesh.content_hash != other.vehicles[0].mesh.content_hash

    monkeypatch.setattr(module, "_generate", None)  # from the disk now
    again = procedural_collection(per_cluster=4)
    for a, b in zip(few.vehicles, again.vehicles, strict=True):
        assert (a.name, a.cluster, a.mesh.content_hash) == (b.name, b.cluster, b.mesh.content_hash)
        assert np.array_equal(a.parts, b.parts)
    with pytest.raises(CollectionError, match="per_cluster is 0"):
        procedural_collection(0)


def test_medoids_are_chosen_from_their_cluster_and_kept(monkeypatch):
    from pose_refiner_ros.objects import medoid

    chosen = procedural_collection(per_cluster=4).medoids
    assert [v.cluster for v in chosen.values()] == list(chosen) == list(CLUSTERS)
    monkeypatch.setattr(medoid, "choose_medoid", None)
    assert names(procedural_collection(per_cluster=4).medoids.values()) == names(chosen.values())


def test_a_library_is_written_of_the_medoids(tmp_path):
    collection = procedural_collection(per_cluster=2)
    library = ObjectLibrary.load(write_library(tmp_path / "out", collection))
    assert not library.problems and not library.warnings
    for cluster, vehicle in collection.medoids.items():
        np.testing.assert_allclose(library[cluster].mesh.bounds, vehicle.mesh.bounds, atol=6e-4)


def test_the_default_library_stands_for_each_cluster():
    library = ObjectLibrary.load(shipped.OBJECTS)
    assert not library.problems and not library.warnings
    assert tuple(library) == CLUSTERS
    for name, model in library.items():
        assert model.category == name
        assert len(model.mesh.faces) <= 6000
        low, high = model.mesh.bounds
        np.testing.assert_allclose(low + high, [0, 0, high[2]], atol=2e-3)
    assert library.resolve("Car").name == "sedan"
    assert library.resolve("truck").name == library.resolve("van").name == "cargo"


def test_the_default_library_is_what_the_generator_makes():
    made = re.findall(
        r"^  (\w+):  # (\w+?)_(\d+)_(\w+)$", shipped.OBJECTS.read_text(), re.MULTILINE
    )
    assert [name for name, *_ in made] == list(CLUSTERS)
    for name, cluster, index, kind in made:
        assert cluster == name
        rng = np.random.default_rng((0, CLUSTERS.index(cluster), int(index)))
        text = obj_text(make_vehicle(sample_shape(kind, rng)).mesh)
        assert text == shipped.OBJECTS.with_name(f"{name}.obj").read_text(), (
            f"{name}.obj is old: run python -m pose_refiner_ros.learning.vehicle_library"
        )
