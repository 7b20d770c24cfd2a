# SPDX-License-Identifier: Apache-2.0
"""All of space in a box: the map, its inverse, and rays through a grid in it."""

import numpy as np
import torch

from pose_refiner_ros.fields.contraction import Contraction
from pose_refiner_ros.fields.grid import GridField

AROUND = Contraction((0.3, -0.2, 0.5), 1.5)


def points(count=500, far=4.0):
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return AROUND.middle + directions * 10.0 ** rng.uniform(-1, far, (count, 1))


def test_the_cube_stays_and_all_else_comes_near():
    p = points()
    x = AROUND.contract(p)
    inside = np.abs(p - AROUND.middle).max(axis=1) <= AROUND.half
    assert 50 < inside.sum() < 450
    np.testing.assert_allclose(x[inside], p[inside])
    assert (np.abs(x - AROUND.middle) < 2 * AROUND.half).all()
    np.testing.assert_allclose(AROUND.expand(x), p, rtol=1e-6, atol=1e-6)


def test_the_ends_of_space_are_finite():
    x = AROUND.expand(AROUND.box)
    assert np.isfinite(x).all() and np.abs(x).max() > 1e5


def test_lines_stay_lines_beyond_a_face():
    p = np.array([[4.0, 0.5, 1.0], [10.0, 3.0, -4.0]])
    line = p[0] + np.linspace(0, 1, 7)[:, None] * (p[1] - p[0])
    x = AROUND.contract(line)
    across = np.cross(x[1:] - x[0], x[-1] - x[0])
    assert np.abs(across).max() < 1e-9


def wall_of(distance):
    """A grid in which a wall that is red to the left and green to the right stands so far off."""
    voxel, box = 0.05, AROUND.box
    axes = [np.arange(box[0, a], box[1, a], voxel) for a in range(3)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    places = AROUND.expand(nodes.reshape(-1, 3)).reshape(nodes.shape)
    occupied = (np.abs(places[..., 2] / distance - 1.0) < 0.2) & (nodes[..., 2] > 0)
    values = np.zeros((np.count_nonzero(occupied), 4), np.float32)
    values[:, 0] = 60.0
    values[:, 1] = places[occupied][:, 0] < 0.0
    values[:, 2] = places[occupied][:, 0] >= 0.0
    return GridField.from_nodes(occupied, values, box[0], voxel, contraction=AROUND)


def test_rays_end_where_things_are_however_far():
    for distance in (3.0, 10.0):
        field = wall_of(distance)
        origins = torch.tensor([[0.3, -0.2, 0.5]] * 3)
        directions = torch.tensor([[0.0, 0.0, 1.0], [-0.3, 0.1, 1.0], [0.3, 0.1, 1.0]])
        directions = torch.nn.functional.normalize(directions, dim=1)
        seen = field.render(origins, directions)
        assert (seen.opacity > 0.99).all()
        reached = 0.5 + seen.depth * directions[:, 2]
        assert ((reached / distance - 0.9).abs() < 0.15).all()
        assert seen.colour[1, 0] > 0.6 > 0.4 > seen.colour[2, 0]
        back = field.render(origins[:1], -directions[:1])
        assert back.opacity < 1e-3
        shifted = field.shifted(np.array([1.0, 2.0, 3.0]))
        same = shifted.render(origins - torch.tensor([1.0, 2.0, 3.0]), directions)
        np.testing.assert_allclose(same.colour, seen.colour, atol=1e-3)
        larger = field.scaled(3.0).render(3.0 * origins, directions)
        np.testing.assert_allclose(larger.colour, seen.colour, atol=1e-3)
        np.testing.assert_allclose(larger.depth, 3.0 * seen.depth, rtol=1e-3)


def test_the_derivative_is_the_finite_difference():
    field = wall_of(4.0)
    rng = np.random.default_rng(1)
    values = field.values.copy()
    values[1:, 0] = 8.0 + 4.0 * rng.random(len(values) - 1)
    values[1:, 1:] = rng.random((len(values) - 1, 3))
    field = GridField(field.links, values, field.origin, field.voxel, contraction=AROUND)
    origins = torch.tensor(rng.uniform(-0.3, 0.3, (40, 3)) + AROUND.middle).float()
    directions = torch.tensor(rng.uniform(-0.4, 0.4, (40, 3)) + np.array([0, 0, 1])).float()
    directions = torch.nn.functional.normalize(directions, dim=1)
    origins.requires_grad_()
    (field.render(origins, directions, 0.1).colour).sum().backward()
    for axis in range(2):
        step = torch.zeros(3)
        step[axis] = 2e-3
        with torch.no_grad():
            ends = [field.render(origins + s * step, directions, 0.1).colour for s in (1, -1)]
        expected = (ends[0] - ends[1]).sum(dim=1) / 4e-3
        found = origins.grad[:, axis]
        assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.98
        assert 0.9 < float((found * expected).sum() / (expected**2).sum()) < 1.1
