# SPDX-License-Identifier: Apache-2.0
"""The soft rasteriser against its formula written out, and its gradients against differences."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shapes import box, ell, pose, random_rotation
from soft_rasterizer_twin import soft_picture

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.baselines.soft_rasterizer import SoftRasterizer, SoftRasterizerError


@pytest.fixture(autouse=True)
def one_thread():
    """Two that wait for each other on a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def at_random(rng: np.random.Generator, count: int, distance: float = 0.5) -> torch.Tensor:
    """(count, 4, 4) float64 poses in front of the camera."""
    poses = np.stack([pose(translation=(0.02, -0.03, distance)) for _ in range(count)])
    for one in poses:
        one[:3, :3] = random_rotation(rng)
    return torch.tensor(poses)


def pinhole_of(size: tuple[int, int], focal: float = 1.5) -> torch.Tensor:
    height, width = size
    focal *= max(size)
    return torch.tensor([focal, 1.1 * focal, (width - 1) / 2, (height - 1) / 2]).double()


def of_triangles(vertices, faces, size=(16, 16), *options, **named) -> SoftRasterizer:
    return SoftRasterizer(
        [SimpleNamespace(vertices=vertices, faces=faces)], size, *options, **named
    )


def blob(rng: np.random.Generator, faces: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of all shapes, wound either way."""
    vertices = rng.normal(scale=0.08, size=(faces, 3))
    return vertices, np.stack([rng.permutation(faces)[:3] for _ in range(faces)])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16), (33, 20), (64, 64)])
@pytest.mark.parametrize("pairs_per_tile", [1 << 20, 100])
def test_the_pictures_and_gradients_are_those_of_the_formula(size, pairs_per_tile):
    rng = np.random.default_rng(1)
    rasterizer = of_triangles(*blob(rng), size, pairs_per_tile=pairs_per_tile)
    poses, pinhole = at_random(rng, 3), pinhole_of(size)
    weight = torch.tensor(rng.normal(size=(3, *size)))

    ours = poses.clone().requires_grad_()
    picture = rasterizer(ours, pinhole)
    (picture * weight).sum().backward()

    theirs = poses.clone().requires_grad_()
    expected = torch.stack([soft_picture(rasterizer.corners[0], T, pinhole, size) for T in theirs])
    (expected * weight).sum().backward()

    torch.testing.assert_close(picture, expected, atol=1e-5, rtol=0)
    scale = theirs.grad.abs().max().clamp(min=1.0)
    torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, atol=1e-7, rtol=0)


def test_single_precision_is_enough():
    rng = np.random.default_rng(2)
    size = (48, 48)
    rasterizer = of_triangles(*blob(rng), size)
    poses = at_random(rng, 2).float()
    picture = rasterizer(poses, pinhole_of(size))
    assert picture.dtype == torch.float32
    expected = rasterizer(poses.double(), pinhole_of(size))
    torch.testing.assert_close(picture.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_a_triangle_over_the_whole_picture_is_normalised_by_its_least_pixel(size):
    vertices = np.array([(-3.0, -2.0, 0.0), (4.0, -2.5, 0.2), (0.3, 5.0, 0.1)])
    rasterizer = of_triangles(vertices, [(0, 1, 2)], size)
    poses, pinhole = torch.tensor(pose())[None], pinhole_of(size)
    ours, theirs = poses.clone().requires_grad_(), poses.clone().requires_grad_()
    picture = rasterizer(ours, pinhole)
    expected = soft_picture(rasterizer.corners[0], theirs[0], pinhole, size)[None]
    assert float(picture.detach().min()) == 0.0  # the least pixel, although it is covered
    torch.testing.assert_close(picture, expected)
    weight = torch.tensor(np.random.default_rng(0).normal(size=picture.shape))
    (picture * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("pairs_per_tile", [1 << 20, 300])
def test_gradients_are_finite_differences(pairs_per_tile):
    size = (40, 40)
    mesh = ell()
    rasterizer = SoftRasterizer([mesh], size, pairs_per_tile=pairs_per_tile)
    rng = np.random.default_rng(3)
    poses, pinhole = at_random(rng, 4), pinhole_of(size)
    weight = torch.tensor(rng.normal(size=(4, *size)))

    def value(twist, scale):
        return (rasterizer(se3.perturb(poses, twist), pinhole * scale) * weight).sum(dim=(1, 2))

    twist = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    value(twist, scale).sum().backward()

    step = 1e-7
    for i in range(6):
        moved = torch.zeros(4, 6, dtype=torch.float64)
        moved[:, i] = step
        difference = (value(moved, scale) - value(-moved, scale)).detach() / (2 * step)
        torch.testing.assert_close(twist.grad[:, i], difference, rtol=1e-4, atol=1e-3)
    total = torch.zeros(4, dtype=torch.float64)
    for i in range(4):
        moved = torch.zeros(4, dtype=torch.float64)
        moved[i] = step
        difference = (value(twist, 1 + moved) - value(twist, 1 - moved)).detach() / (2 * step)
        total[i] = difference.sum()
    torch.testing.assert_close(scale.grad, total, rtol=1e-4, atol=1e-3)


def test_winding_does_not_matter_and_both_sides_add():
    vertices = np.array([(-0.1, -0.1, 0), (0.1, -0.1, 0), (0.0, 0.1, 0)])
    size, poses = (16, 16), torch.tensor(pose())[None]
    one = of_triangles(vertices, [(0, 1, 2)], size)(poses, pinhole_of(size))
    other = of_triangles(vertices, [(0, 2, 1)], size)(poses, pinhole_of(size))
    both = of_triangles(vertices, [(0, 1, 2), (0, 2, 1)], size)(poses, pinhole_of(size))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(both, 2 * one)
    assert float(one.max()) == pytest.approx(np.tanh(1.0), abs=1e-6)


def test_only_the_largest_triangles_are_drawn():
    mesh = box(0.3, 0.1, 0.02)  # the two largest sides are those across z
    size, poses = (16, 16), torch.tensor(pose((0.4, 0.3, 0)))[None]
    largest = np.flatnonzero(np.ptp(mesh.vertices[mesh.faces][..., 2], axis=1) == 0)
    assert len(largest) == 4
    few = SoftRasterizer([mesh], size, max_faces=4)
    expected = of_triangles(mesh.vertices, mesh.faces[largest], size)
    torch.testing.assert_close(few(poses, pinhole_of(size)), expected(poses, pinhole_of(size)))


def test_several_meshes_in_one_batch():
    meshes = [box(), ell()]
    size = (24, 24)
    poses, pinhole = at_random(np.random.default_rng(4), 3), pinhole_of(size)
    pinhole = pinhole * torch.tensor([[1.0], [0.9], [0.8]])
    both = SoftRasterizer(meshes, size)
    pictures = both(poses, pinhole, [1, 0, 1])
    for i, m in enumerate((1, 0, 1)):
        alone = SoftRasterizer([meshes[m]], size)
        torch.testing.assert_close(pictures[i : i + 1], alone(poses[i : i + 1], pinhole[i]))
    assert both.radius.tolist() == pytest.approx(
        [np.linalg.norm(mesh.vertices, axis=1).max() for mesh in meshes]
    )


@pytest.mark.parametrize(
    "hidden",
    [
        pose(translation=(0, 0, -1.0)),  # behind the camera
        pose(translation=(5.0, 0, 1.0)),  # beside the picture
        np.full((4, 4), np.nan),
    ],
)
def test_what_is_not_in_view_shows_nothing_and_harms_nobody(hidden):
    mesh, size = ell(), (24, 24)
    rasterizer = SoftRasterizer([mesh], size)
    seen = pose((0.3, 0.2, 0.1))
    poses = torch.tensor(np.stack([hidden, seen])).requires_grad_()
    pictures = rasterizer(poses, pinhole_of(size))
    pictures.square().sum().backward()
    assert not pictures[0].any()
    alone = torch.tensor(seen)[None].requires_grad_()
    picture = rasterizer(alone, pinhole_of(size))
    picture.square().sum().backward()
    torch.testing.assert_close(pictures[1:], picture)
    torch.testing.assert_close(poses.grad[1:], alone.grad)


def test_a_camera_inside_the_mesh_gives_finite_pictures_and_gradients():
    mesh, size = ell(), (32, 32)
    rasterizer = SoftRasterizer([mesh], size)
    poses = at_random(np.random.default_rng(5), 20, distance=0.03).float().requires_grad_()
    pictures = rasterizer(poses, pinhole_of(size))
    pictures.square().sum().backward()
    assert pictures.isfinite().all() and pictures.detach().max() > 0
    assert poses.grad.isfinite().all()


def test_the_limit_shortens_gradients_and_leaves_pictures_alone():
    rng = np.random.default_rng(6)
    size = (32, 32)
    rasterizer = of_triangles(*blob(rng), size)
    poses, pinhole = at_random(rng, 1), pinhole_of(size)
    gradients, pictures = [], []
    for limit in (None, 1e9, 0.1):
        own = poses.clone().requires_grad_()
        pictures.append(rasterizer(own, pinhole, gradient_limit=limit))
        pictures[-1].sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(pictures[0], pictures[2])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[2].norm() < 0.5 * gradients[0].norm()


def test_large_pictures_and_no_poses():
    mesh = box()
    rasterizer = SoftRasterizer([mesh], (512, 512))
    poses = at_random(np.random.default_rng(7), 1)
    assert rasterizer(poses, pinhole_of((512, 512))).max() > 1
    assert rasterizer(poses[:0], pinhole_of((512, 512))).shape == (0, 512, 512)


VERTICES = np.array([(-0.1, -0.1, 0), (0.1, -0.1, 0), (0.0, 0.1, 0)])
FACES = np.array([(0, 1, 2)])


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ((VERTICES, FACES[:0]), "at least one face"),
        ((VERTICES[:, :2], FACES), "vertices have shape"),
        ((VERTICES * np.nan, FACES), "NaN or infinite"),
        ((VERTICES, FACES + 1), "there are 3"),
        ((VERTICES, FACES, (0, 16)), "at least 1 pixel"),
        ((VERTICES, FACES, (16, 16), 0), "max_faces is 0"),
    ],
)
def test_a_mesh_that_cannot_be_drawn_is_named(mesh, message):
    with pytest.raises(SoftRasterizerError, match=message):
        of_triangles(*mesh)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(4), torch.ones(4)), "poses \\(B, 4, 4\\)"),
        ((np.eye(4)[None], torch.ones(4)), "give a tensor"),
        ((torch.eye(4, dtype=torch.int64)[None], torch.ones(4)), "float32 or float64"),
        ((torch.eye(4)[None], torch.ones(3)), "pinhole has shape"),
        ((torch.eye(4)[None], torch.ones(4), 1), "meshes 0 to 0"),
        ((torch.eye(4)[None], torch.ones(4), [0, 0]), "mesh has shape"),
    ],
)
def test_a_call_that_cannot_be_drawn_is_named(arguments, message):
    rasterizer = of_triangles(VERTICES, FACES, (16, 16))
    with pytest.raises(SoftRasterizerError, match=message):
        rasterizer(*arguments)
    with pytest.raises(SoftRasterizerError, match="no meshes"):
        SoftRasterizer([], (16, 16))
