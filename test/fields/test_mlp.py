# SPDX-License-Identifier: Apache-2.0
"""The NeRF: its encoding, its samples, the sum along a ray, its gradients."""

import numpy as np
import pytest
import torch

from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.mlp import (
    PAPER,
    MlpField,
    MlpSettings,
    NerfNetwork,
    _importance,
    positional_encoding,
)

TINY = MlpSettings(width=16, depth=3, point_frequencies=2, direction_frequencies=1,
                   coarse_samples=8, fine_samples=8)  # fmt: skip
BOUNDS = [[-0.5, -0.4, -0.3], [0.7, 0.4, 0.5]]


def tiny_field(scale: float = 1.0) -> MlpField:
    """Weights at random, but dense enough to be seen."""
    field = MlpField(np.multiply(BOUNDS, scale), settings=TINY, seed=3)
    for network in (field.coarse, field.fine):
        network.density.bias += 0.5
        network.density.weight *= 4.0
    return field


def rays(count: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    origins = torch.randn(count, 3, generator=generator)
    origins = 2.0 * origins / origins.norm(dim=1, keepdim=True)
    targets = 0.2 * torch.randn(count, 3, generator=generator)
    directions = targets - origins
    return scale * origins, directions / directions.norm(dim=1, keepdim=True)


def test_positional_encoding_is_equation_4():
    p = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    expected = np.concatenate(
        [f(2.0**k * np.pi * p) for k in range(10) for f in (np.sin, np.cos)], axis=1
    )
    assert np.allclose(positional_encoding(torch.tensor(p), 10), expected, atol=1e-12)


def test_the_default_is_the_papers_network():
    network = NerfNetwork(PAPER)
    widths = [layer.in_features for layer in network.layers]
    assert widths == [60, 256, 256, 256, 256, 256 + 60, 256, 256]  # the input again after the fifth
    assert network.direction.in_features == 256 + 24 and network.direction.out_features == 128
    assert (PAPER.coarse_samples, PAPER.fine_samples) == (64, 128)


def test_a_ray_sums_up_what_lies_on_it():
    """Against the sum of equation 3, written out in numpy."""
    field = tiny_field()
    origins, directions = rays(6)
    near, far = torch.full((6,), 1.5), torch.full((6,), 2.4)
    at = near[:, None] + torch.linspace(0.05, 0.8, 7)
    found, _ = field._sum_up(field.fine, at, origins, directions, far, False, None)

    points = (origins[:, None] + at[..., None] * directions[:, None]).flatten(0, 1)
    density, colour = field._ask(field.fine, points, directions.repeat_interleave(7, 0))
    density, colour = density.view(6, 7).numpy(), colour.view(6, 7, 3).numpy()
    step = np.diff(at.numpy(), axis=1, append=far.numpy()[:, None])
    for r in range(6):
        light, result = 1.0, np.zeros(5)
        for s in range(7):
            w = light * (1.0 - np.exp(-density[r, s] * step[r, s]))
            result += w * np.array([*colour[r, s], 1.0, at[r, s]])
            light -= w
        result[4] /= result[3]
        assert np.allclose(found[r], result, atol=1e-5)


def test_a_field_twice_as_large_looks_the_same():
    small, large = tiny_field(), tiny_field(2.0)
    pictures = [field.render(*rays(50, s)) for field, s in ((small, 1.0), (large, 2.0))]
    assert 0.1 < float(pictures[0].opacity.mean()) < 0.95
    assert torch.allclose(pictures[0].colour, pictures[1].colour, atol=1e-4)
    assert torch.allclose(2.0 * pictures[0].depth, pictures[1].depth, atol=1e-3)


def test_rays_that_miss_the_box_see_nothing_and_others_are_not_moved():
    field = tiny_field()
    origins, directions = rays(4)
    alone = field.render(origins, directions)
    off = torch.tensor([[0.0, 0.0, 5.0]])
    mixed = field.render(
        torch.cat((off, origins)), torch.cat((-directions[:1] * 0 + off / 5, directions))
    )
    assert mixed.opacity[0] == 0 and mixed.colour[0].tolist() == [0, 0, 0] and mixed.depth[0] == 0
    assert torch.allclose(mixed.colour[1:], alone.colour, atol=1e-6)
    assert field.render(off, off / 5).colour.shape == (1, 3)  # no ray meets the box


def test_many_rays_go_through_in_parts(monkeypatch):
    field = tiny_field()
    whole = field.render(*rays(40))
    monkeypatch.setattr(MlpField, "_chunk", 50)
    parts = field.render(*rays(40))
    assert torch.allclose(whole.colour, parts.colour, atol=1e-6)
    assert torch.allclose(whole.depth, parts.depth, atol=1e-5)


def test_outside_the_box_is_nothing():
    field = tiny_field()
    points = torch.tensor([[0.6, 0.3, 0.4], [0.8, 0.0, 0.0], [0.0, -0.5, 0.0]])
    density, colour = field.query(points, torch.tensor([[0.0, 0.0, 1.0]] * 3))
    assert density[0] > 0 and density[1:].tolist() == [0, 0] and colour.shape == (3, 3)


def test_gradient_by_the_rays_is_that_of_finite_differences():
    """Samples stay where they are on their rays, so the sum of given samples is differentiated."""
    field = tiny_field().double()
    origins, directions = (x.double() for x in rays(8))
    at = (1.2 + torch.linspace(0.0, 1.4, 16)).double().expand(8, 16)
    far = torch.full((8,), 2.7).double()

    def colour(origins, directions):
        return field._sum_up(field.fine, at, origins, directions, far, False, None)[0][:, :4].sum()

    inputs = [origins.requires_grad_(), directions.requires_grad_()]
    found = torch.autograd.grad(colour(*inputs), inputs)
    h = 1e-6
    with torch.no_grad():
        for k in range(2):
            for r, c in ((0, 0), (3, 1), (7, 2)):
                shift = torch.zeros(8, 3, dtype=torch.float64)
                shift[r, c] = h
                moved = [inputs[i] + shift if i == k else inputs[i] for i in range(2)]
                back = [inputs[i] - shift if i == k else inputs[i] for i in range(2)]
                expected = (colour(*moved) - colour(*back)) / (2 * h)
                assert float(found[k][r, c]) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)


def test_render_is_differentiable_by_rays_and_weights():
    field = tiny_field()
    origins, directions = rays(30)
    origins.requires_grad_()
    field.render(origins, directions).colour.sum().backward()
    assert origins.grad.isfinite().all() and origins.grad.abs().max() > 1e-3

    field.requires_grad_(True)
    coarse, fine = field.render_both(*rays(30), training=True)
    (coarse.colour.sum() + fine.colour.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in field.parameters())


def test_samples_are_repeatable_unless_in_training():
    field = tiny_field()
    first, second = (field.render(*rays(10)).colour for _ in range(2))
    assert torch.equal(first, second)
    drawn = [
        field.render_both(*rays(10), True, torch.Generator().manual_seed(seed))[1].colour
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2], atol=1e-5)


def test_importance_samples_lie_where_the_weights_are():
    edges = torch.linspace(0.0, 1.0, 11)[None]
    weights = torch.zeros(1, 10)
    weights[0, 3], weights[0, 7] = 0.3, 0.1
    u = (torch.arange(400) + 0.5)[None] / 400
    at = _importance(edges, weights, u)[0]
    assert (at.diff() >= 0).all() and at.min() >= 0 and at.max() <= 1
    share = [float(((at >= low) & (at < low + 0.1)).float().mean()) for low in (0.3, 0.7)]
    assert share == pytest.approx([0.75, 0.25], abs=0.01)

    even = _importance(edges, torch.zeros(1, 10), u)[0]  # an empty ray
    assert torch.allclose(even, u[0], atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width is 0; it must be from 2"),
        ({"fine_samples": 2.5}, "fine_samples is 2.5"),
        ({"density_noise": -1.0}, "density_noise is -1.0"),
    ],
)
def test_sizes_that_are_none_are_refused(changes, message):
    with pytest.raises(FieldError, match=message):
        MlpSettings(**changes)


def test_bounds_that_are_none_are_refused():
    with pytest.raises(FieldError, match="corner"):
        MlpField([[0, 0, 0], [1, 0, 1]])
    with pytest.raises(FieldError, match="background"):
        MlpField(BOUNDS, background=(1.0, 1.0))
