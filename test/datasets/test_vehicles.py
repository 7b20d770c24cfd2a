# SPDX-License-Identifier: Apache-2.0
"""The procedural vehicles and the demo's object library."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from pose_refiner_ros.datasets import vehicles
from pose_refiner_ros.datasets.vehicles import (
    CLUSTERS,
    KINDS,
    VEHICLES,
    Part,
    kinds_of,
    make_vehicle,
    sample_shape,
)
from pose_refiner_ros.objects.library import ObjectLibrary


def drawn(kind, count=12, seed=3):
    rng = np.random.default_rng(seed)
    return [sample_shape(kind, rng) for _ in range(count)]


def corners(mesh):
    return mesh.vertices[mesh.faces].astype(float)  # (F, 3, 3)


def volumes(mesh):
    """Signed volume of each connected piece."""
    a, b = mesh.faces[:, 0], mesh.faces[:, 1:]
    links = coo_matrix((np.ones(b.size), (np.repeat(a, 2), b.ravel())), (len(mesh.vertices),) * 2)
    count, piece = connected_components(links, directed=False)
    p, q, r = corners(mesh).transpose(1, 0, 2)
    six = np.einsum("ij,ij->i", p, np.cross(q, r))
    return np.bincount(piece[a], six, minlength=count) / 6


def farthest(vehicle, part, axis):
    return np.abs(corners(vehicle.mesh)[vehicle.parts == part][..., axis]).max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_is_closed_and_faces_outwards(kind):
    for shape in drawn(kind):
        vehicle = make_vehicle(shape)
        mesh = vehicle.mesh
        assert mesh.watertight
        assert 1000 <= len(mesh.faces) <= 6000 and len(vehicle.parts) == len(mesh.faces)
        assert (volumes(mesh) > 0).all()
        p, q, r = corners(mesh).transpose(1, 0, 2)
        assert np.linalg.norm(np.cross(q - p, r - p), axis=1).min() > 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_a_vehicle_is_as_large_as_its_shape_says(kind):
    for shape in drawn(kind):
        vehicle = make_vehicle(shape)
        low, high = vehicle.mesh.bounds
        np.testing.assert_allclose(
            [low[0], high[0]], [-shape.length / 2, shape.length / 2], atol=2e-3
        )
        assert low[2] == pytest.approx(0, abs=2e-3)
        assert 2 * farthest(vehicle, Part.PAINT, 1) == pytest.approx(shape.width, abs=2e-3)
        roof = Part.LOAD if shape.load in ("box", "tarp") else Part.PAINT
        assert farthest(vehicle, roof, 2) == pytest.approx(shape.height, abs=2e-3)
        assert high[2] < shape.height + 0.06  # rails
        widest = max(shape.width, shape.load_width if shape.load else 0.0)
        assert -2e-3 < high[1] - low[1] - widest < 0.35  # mirrors
        # wheels touch the ground below their axles
        tyres = corners(vehicle.mesh)[vehicle.parts == Part.TYRE].reshape(-1, 3)
        contact = np.unique(tyres[tyres[:, 2] < 0.01, 0].round(1))
        assert np.ptp(contact) == pytest.approx(shape.wheelbase, abs=0.11)


@pytest.mark.parametrize("kind", KINDS)
def test_left_mirrors_right(kind):
    for shape in drawn(kind, 4):
        millimetres = np.round(make_vehicle(shape).mesh.vertices.astype(float) * 1000).astype(int)
        points = {tuple(p) for p in millimetres}
        assert points == {(x, -y, z) for x, y, z in points}


@pytest.mark.parametrize("kind", KINDS)
def test_lamps_show_front_and_rear(kind):
    for shape in drawn(kind, 4):
        vehicle = make_vehicle(shape)
        middles = corners(vehicle.mesh).mean(1)
        front = middles[vehicle.parts == Part.HEADLAMP]
        rear = middles[vehicle.parts == Part.TAIL_LAMP]
        assert front[:, 0].min() > 0.38 * shape.length
        assert rear[:, 0].max() < -0.38 * shape.length
        for lamps in (front, rear):  # on both sides
            assert lamps[:, 1].min() < -0.3 * shape.width and lamps[:, 1].max() > 0.3 * shape.width
        assert set(vehicle.parts) >= {Part.PAINT, Part.GLASS, Part.TYRE, Part.RIM, Part.TRIM}


def test_shapes_are_drawn_within_their_ranges_and_fit_together():
    for kind, table in KINDS.items():
        for shape in drawn(kind, 30):
            for name in ("length", "width", "wheel_radius", "front_overhang"):
                low, high = table.size[name]
                assert low - 1e-3 <= getattr(shape, name) <= high + 1e-3, (kind, name)
            assert shape.roof_length >= 0.45, kind
            assert shape.length - shape.front_overhang - shape.wheelbase > shape.wheel_radius


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_a_cluster_has_200_different_models(cluster):
    kinds = kinds_of(cluster)

    def models():
        rng = np.random.default_rng(0)
        return [sample_shape(kinds[i % len(kinds)], rng) for i in range(200)]

    shapes = models()
    assert len(set(shapes)) == 200 and models() == shapes
    sizes = np.array([[s.length, s.height, s.wheelbase, s.hood_length] for s in shapes])
    assert (sizes.std(0) / sizes.mean(0) > [0.05, 0.02, 0.05, 0.07]).all()
    first, second = make_vehicle(shapes[0]), make_vehicle(replace(shapes[0]))
    assert first.mesh.content_hash == second.mesh.content_hash
    assert len(kinds) >= 4


def test_unknown_names():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="'tank' is not known: use one of compact_sedan"):
        sample_shape("tank", rng)
    with pytest.raises(ValueError, match="'boat' is not known: use one of sedan, suv, cargo"):
        kinds_of("boat")


@pytest.mark.parametrize("name", VEHICLES)
def test_the_demos_vehicles_are_small_meshes_of_the_size_stated(name):
    shape = VEHICLES[name]
    mesh = make_vehicle(shape).mesh
    size = np.ptp(mesh.bounds, axis=0)
    assert mesh.watertight and (volumes(mesh) > 0).all()
    assert 1000 <= len(mesh.faces) <= 3000
    np.testing.assert_allclose(size[[0, 2]], [shape.length, shape.height], atol=3e-3)


def test_the_paint_is_used():
    vehicle = make_vehicle(VEHICLES["sedan"])
    colors = vehicle.colors((1.0, 0.0, 0.0))
    assert np.array_equal(np.unique(colors[vehicle.parts == Part.PAINT], axis=0), [[1, 0, 0]])


def test_the_committed_meshes_are_those_that_the_code_makes(tmp_path):
    for path in vehicles.write_demo_meshes(tmp_path):
        committed = (vehicles.DATA / path.name).read_text()
        assert committed == path.read_text(), (
            f"{path.name} is old: run python -m pose_refiner_ros.datasets.vehicles"
        )


def test_the_demo_library_holds_every_vehicle():
    library = ObjectLibrary.load(vehicles.LIBRARY)
    assert not library.problems and not library.warnings
    assert set(library) == set(VEHICLES)
    for name, model in library.items():
        made = make_vehicle(VEHICLES[name]).mesh
        np.testing.assert_allclose(model.mesh.bounds, made.bounds, atol=1e-6)
