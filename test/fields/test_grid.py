# SPDX-License-Identifier: Apache-2.0
"""The voxel grid: what it renders, its derivatives, its state."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.grid import GridField, empty_blocks
from pose_refiner_ros.fields.grid_kernels import BLOCK

COUNT = 40
VOXEL = 2.0 / (COUNT - 1)


def ball(radius=0.6, coefficients=9) -> GridField:
    """A soft ball whose colours vary with place and direction."""
    generator = np.random.default_rng(0)
    axis = np.linspace(-1, 1, COUNT)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    occupied = np.linalg.norm(points, axis=-1) < radius + 0.2
    points = points[occupied]
    values = np.zeros((len(points), 1 + 3 * coefficients), np.float32)
    values[:, 0] = 24 * (radius - np.linalg.norm(points, axis=-1)).clip(min=-0.1)
    for k in range(coefficients):
        for channel in range(3):
            wave = np.sin(3 * points @ generator.normal(size=3) + k)
            values[:, 1 + 3 * k + channel] = (0.2 if k else 0.5) * wave + (0.0 if k else 0.5)
    return GridField.from_nodes(occupied, values, -np.ones(3), VOXEL, record={"scale": 2.0})


@pytest.fixture(scope="module")
def field():
    return ball()


def rays(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """From before the ball, most of them through it."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.tensor([0.0, 0.0, -3.0])
    origins = 0.15 * torch.randn((count, 3), generator=generator) + offset
    towards = 0.12 * torch.randn((count, 3), generator=generator) + torch.tensor([0.0, 0.0, 1.0])
    return origins, torch.nn.functional.normalize(towards, dim=-1)


def test_one_ray_is_the_sum_over_its_samples(field):
    origin, direction = torch.tensor([[0.1, -0.2, -3.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    step = 0.5 * VOXEL
    t = (torch.arange(int(5.0 / step)) + 0.5) * step
    points = origin + t[:, None] * direction
    density, colour = field.query(points, direction.expand_as(points))
    stopped = 1.0 - torch.exp(-density * step)
    left = torch.cumprod(torch.cat([torch.ones(1), 1.0 - stopped[:-1]]), 0)
    weight = left * stopped
    seen = field.render(origin, direction)
    assert seen.opacity.item() == pytest.approx(weight.sum().item(), abs=2e-3)
    assert torch.allclose(seen.colour[0], weight @ colour, atol=3e-3)
    assert seen.depth.item() == pytest.approx((weight @ t / weight.sum()).item(), abs=1e-2)


def test_the_derivative_is_that_of_finite_differences(field):
    origins, directions = rays(500)
    pull = torch.randn((500, 4), generator=torch.Generator().manual_seed(2))

    def loss(o, d):
        seen = field.render(o, d)
        return (seen.colour * pull[:, :3]).sum(-1) + seen.opacity * pull[:, 3]

    o, d = origins.clone().requires_grad_(), directions.clone().requires_grad_()
    loss(o, d).sum().backward()
    for axis in range(3):
        small = torch.zeros(3)
        small[axis] = 5e-4
        by_origin = (loss(origins + small, directions) - loss(origins - small, directions)) / 1e-3
        by_direction = (
            loss(origins, directions + small) - loss(origins, directions - small)
        ) / 1e-3
        for numeric, analytic in ((by_origin, o.grad[:, axis]), (by_direction, d.grad[:, axis])):
            # interpolation has kinks, and density begins at one: nearly, not exactly
            error = (numeric - analytic).abs().mean() / numeric.abs().mean()
            assert error < 0.03, (axis, float(error))
            assert np.corrcoef(numeric, analytic)[0, 1] > 0.995


def test_skipping_empty_space_changes_nothing(field):
    origins, directions = rays(300)
    with torch.no_grad():
        skipped = field.render(origins, directions)
        slow = field.shifted(np.zeros(3))
        slow.arrays.skip = type(slow.arrays.skip)(
            np.zeros_like(slow.arrays.skip.numpy()), dtype=slow.arrays.skip.dtype
        )
        walked = slow.render(origins, directions)
    assert 0.5 < float((walked.opacity > 0.5).float().mean()) < 1.0
    assert torch.allclose(skipped.colour, walked.colour, atol=1e-6)
    assert torch.allclose(skipped.opacity, walked.opacity, atol=1e-6)


def test_empty_blocks_count_the_way_to_the_next_full_one():
    occupied = np.zeros((4 * BLOCK, BLOCK, BLOCK), bool)
    occupied[BLOCK + 1, 1, 1] = True
    assert empty_blocks(occupied)[:, 0, 0].tolist() == [1, 0, 1, 2]
    # the first node of a block is a corner of the last cell of the block before
    occupied[:] = False
    occupied[2 * BLOCK, 1, 1] = True
    assert empty_blocks(occupied)[:, 0, 0].tolist() == [1, 0, 0, 1]
    assert (empty_blocks(np.zeros((9, 9, 9), bool)) == 255).all()


def test_a_ray_past_the_grid_or_away_from_it_sees_nothing(field):
    origins = torch.tensor([[0.0, 0.0, -3.0], [5.0, 0.0, -3.0], [0.0, 0.0, 0.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    seen = field.render(origins, directions)
    assert seen.opacity[:2].tolist() == [0.0, 0.0]
    assert (seen.colour[:2] == 0).all()
    assert seen.opacity[2] > 0.9  # from within


def test_no_ray_sees_nothing(field):
    seen = field.render(torch.zeros((0, 3)), torch.zeros((0, 3)))
    assert seen.colour.shape == (0, 3) and seen.opacity.shape == (0,)


def test_a_state_makes_the_same_field(field):
    header = {"settings": dataclasses.asdict(field.settings), "background": None, "record": {}}
    again = GridField.from_state(field.state(), header)
    assert np.array_equal(again.links, field.links)
    assert np.allclose(again.values, field.values, rtol=1e-3, atol=1e-3)
    assert np.allclose(again.bounds, field.bounds)
    assert again.degree == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": np.zeros((2, 3), np.uint16)}, "do not match"),
        ({"nodes": np.zeros((0, 3), np.uint16)}, "holds nothing"),
        ({"values": np.zeros((5, 27), np.float16)}, "shape"),
        ({"settings": {"shape": (4, 4, 4), "voxel": 0.1, "degree": 2}}, "lies outside"),
        ({"nodes": np.full((1, 3), -1), "values": np.zeros((1, 28), np.float16)}, "lies outside"),
        ({"settings": {"shape": (40, 40, 40), "voxel": 0.1, "degree": 3}}, "settings"),
    ],
)
def test_a_wrong_state_is_refused(field, change, message):
    header = {"settings": dataclasses.asdict(field.settings), "background": None, "record": {}}
    header["settings"] = change.get("settings", header["settings"])
    state = {**field.state(), **{n: v for n, v in change.items() if n != "settings"}}
    with pytest.raises(FieldError, match=message):
        GridField.from_state(state, header)
