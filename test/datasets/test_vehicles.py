# SPDX-License-Identifier: Apache-2.0
"""The procedural vehicles and the demo's object library."""

import numpy as np
import pytest

from pose_refiner_ros.datasets import vehicles
from pose_refiner_ros.datasets.vehicles import VEHICLES, Part, make_vehicle
from pose_refiner_ros.objects.library import ObjectLibrary


@pytest.mark.parametrize("name", VEHICLES)
def test_a_vehicle_is_closed_and_as_large_as_stated(name):
    shape = VEHICLES[name]
    vehicle = make_vehicle(shape)
    low, high = vehicle.mesh.bounds
    assert vehicle.mesh.watertight
    assert 1000 <= len(vehicle.mesh.faces) <= 3200
    assert len(vehicle.parts) == len(vehicle.mesh.faces)
    np.testing.assert_allclose(low + high, [0, 0, high[2]], atol=2e-3)  # origin below the middle
    np.testing.assert_allclose(high[0] - low[0], shape.length, atol=2e-3)
    np.testing.assert_allclose(high[2] - low[2], shape.height, atol=0.03)
    assert shape.width < high[1] - low[1] < shape.width + 0.4  # with mirrors


@pytest.mark.parametrize("name", VEHICLES)
def test_faces_point_outwards(name):
    mesh = make_vehicle(VEHICLES[name]).mesh
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(float) for k in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    box = np.prod(mesh.bounds[1] - mesh.bounds[0])
    assert 0.4 * box < volume < 0.9 * box


def test_front_lies_in_x_and_the_paint_is_used():
    vehicle = make_vehicle(VEHICLES["sedan"])
    middles = vehicle.mesh.vertices[vehicle.mesh.faces].mean(1)
    assert middles[vehicle.parts == Part.HEADLAMP, 0].min() > 2.0
    assert middles[vehicle.parts == Part.TAIL_LAMP, 0].max() < -2.0
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
