# SPDX-License-Identifier: Apache-2.0
"""The scene rasteriser against a slow numpy twin, analytic pictures and its own contracts."""

import numpy as np
import pytest
import warp as wp

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.scene import render_scene

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not wp.is_cuda_available(), reason="no CUDA here")]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def pinhole(height=60, width=80, focal=70.0, distortion=()):
    matrix = np.array([[focal, 0, width / 2 - 0.3], [0, focal, height / 2 + 0.2], [0, 0, 1]])
    model = "plumb_bob" if len(distortion) else "none"
    return Camera(matrix, (height, width), model, np.array(distortion, float))


def box(size=(1.0, 1.0, 1.0)):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.5
    faces = [
        [0, 1, 3],
        [0, 3, 2],
        [4, 6, 7],
        [4, 7, 5],
        [0, 4, 5],
        [0, 5, 1],
        [2, 3, 7],
        [2, 7, 6],
        [0, 2, 6],
        [0, 6, 4],
        [1, 5, 7],
        [1, 7, 3],
    ]
    return Mesh((corners * size).astype(np.float32), np.array(faces, np.int32))


def pose(rng, distance):
    """A random rotation at about the given distance, (4, 4)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    q[:, 0] *= np.linalg.det(q)
    transform = np.eye(4)
    transform[:3, :3] = q
    transform[:3, 3] = [*rng.uniform(-0.4, 0.4, 2), distance]
    return transform


def shift(x, y, z):
    transform = np.eye(4)
    transform[:3, 3] = x, y, z
    return transform


def rays_through_faces(meshes, poses, camera, near=0.05):
    """Labels and depth by intersecting each pixel's ray with each face: the slow twin.

    Also the pixels too near an edge for float32 to decide, which a comparison leaves out."""
    height, width = camera.size
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    normalised = camera.undistort(np.stack([u, v], -1).reshape(-1, 2).astype(float))
    rays = np.concatenate([normalised, np.ones((len(normalised), 1))], 1)
    depth = np.full(len(rays), np.inf)
    labels = np.zeros(len(rays), int)
    close = np.zeros(len(rays), bool)
    for label, (mesh, transform) in enumerate(zip(meshes, poses, strict=True), 1):
        points = mesh.vertices @ transform[:3, :3].T + transform[:3, 3]
        for face in mesh.faces:
            a, b, c = points[face]
            normal = np.cross(b - a, c - a)
            with np.errstate(divide="ignore", invalid="ignore"):
                z = (normal @ a) / (rays @ normal)  # the ray's z component is 1
            hit = rays * z[:, None]
            area = normal @ normal
            weights = (
                np.stack(
                    [
                        np.cross(c - b, hit - b) @ normal,
                        np.cross(a - c, hit - c) @ normal,
                        np.cross(b - a, hit - a) @ normal,
                    ],
                    1,
                )
                / area
            )
            inside = (weights.min(1) >= 0) & (z > near) & np.isfinite(z)
            close |= (np.abs(weights.min(1)) < 2e-4) & (z > near)
            nearer = inside & (z < depth)
            depth[nearer] = z[nearer]
            labels[nearer] = label
    shape = (height, width)
    return labels.reshape(shape), depth.reshape(shape), close.reshape(shape)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(4))
def test_labels_and_depth_agree_with_ray_casting(seed, device):
    rng = np.random.default_rng(seed)
    camera = pinhole()
    meshes = [box((1.0, 0.6, 0.4)), box((0.5, 0.5, 1.4)), box((0.3, 1.2, 0.2))]
    poses = np.stack([pose(rng, 3.0), pose(rng, 2.4), pose(rng, 0.2)])
    poses[2, 0, 3] = 0.65  # beside the camera, reaching through its plane
    picture = render_scene(meshes, poses, camera, device=device)
    labels, depth, close = rays_through_faces(meshes, poses, camera)
    assert close.mean() < 0.05
    assert np.array_equal(picture.labels[~close], labels[~close])
    np.testing.assert_allclose(picture.depth[~close], depth[~close], rtol=1e-4)
    assert set(np.unique(labels)) >= {0, 1} and labels.max() >= 2


def test_pixel_zero_is_the_centre_of_the_first_pixel():
    camera = Camera(np.eye(3), (4, 6), "none", np.zeros(0))
    square = Mesh(
        np.array([[0.9, 0.9, 1], [3.1, 0.9, 1], [3.1, 2.1, 1], [0.9, 2.1, 1]], "f4"),
        np.array([[0, 1, 2], [0, 2, 3]], "i4"),
    )
    for samples in (1, 3):
        picture = render_scene([square], np.eye(4)[None], camera, samples=samples)
        rows, columns = np.nonzero(picture.labels)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 2, 1, 3)


def test_no_gaps_between_faces():
    """A plane of many faces has no hole, wherever its vertices fall."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-3, 3, 40), np.linspace(-3, 3, 40))
    grid = np.stack([x, y, np.zeros_like(x)], -1)
    grid[..., :2] += rng.uniform(-0.06, 0.06, (40, 40, 2))
    corner = (np.arange(39)[:, None] * 40 + np.arange(39)).ravel()
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + 40], 1),
            np.stack([corner + 1, corner + 41, corner + 40], 1),
        ]
    )
    plane = Mesh(grid.reshape(-1, 3).astype("f4"), faces.astype("i4"))
    for distance in (1.0, 1.37, 2.0):
        picture = render_scene([plane], shift(0.01, 0, distance)[None], pinhole(480, 640, 600.0))
        assert np.all(picture.labels == 1)
        np.testing.assert_allclose(picture.depth, distance, rtol=1e-5)


def test_distortion_bends_the_silhouette():
    distortion = (-0.25, 0.08, 0.001, -0.002, 0.0)
    camera = pinhole(120, 160, 130.0, distortion)
    mesh = box((0.05, 0.05, 0.05))
    centre = np.array([0.62, 0.45, 1.2])
    picture = render_scene([mesh], shift(*centre)[None], camera)
    rows, columns = np.nonzero(picture.labels)
    expected = camera.project(centre[None])[0]
    assert np.hypot(columns.mean() - expected[0], rows.mean() - expected[1]) < 1.0
    straight = pinhole(120, 160, 130.0).project(centre[None])[0]
    assert np.hypot(*(straight - expected)) > 3.0


def test_strong_distortion_does_not_fold_the_surroundings_into_the_picture():
    camera = pinhole(120, 160, 130.0, (-0.3, 0.05, 0.0, 0.0, 0.0))
    far_aside = shift(9.0, 0.0, 2.0)[None]
    assert not render_scene([box()], far_aside, camera).labels.any()


def test_behind_the_camera_is_nothing():
    picture = render_scene([box()], shift(0, 0, -3.0)[None], pinhole())
    assert not picture.labels.any()
    assert np.isinf(picture.depth).all()


def test_empty_scene_shows_the_background():
    background = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
    picture = render_scene([], np.empty((0, 4, 4)), pinhole(), background=background)
    assert np.array_equal(picture.rgb, background)
    picture = render_scene([], np.empty((0, 4, 4)), pinhole(), background=(1.0, 0.0, 0.5))
    assert np.array_equal(picture.rgb[0, 0], [255, 0, 128])


def test_label_zero_is_drawn_but_is_background():
    poses = np.stack([shift(0, 0, 3.0), shift(0.3, 0, 2.0)])
    picture = render_scene(
        [box((9, 9, 0.1)), box((0.3, 0.3, 0.3))],
        poses,
        pinhole(),
        labels=[0, 500],
        colors=[(1, 0, 0), (0, 1, 0)],
    )
    assert set(np.unique(picture.labels)) == {0, 500}
    assert np.isfinite(picture.depth).all()
    assert picture.rgb[0, 0, 0] > 100 and picture.rgb[0, 0, 1] == 0


def test_a_color_for_each_face():
    mesh = box()
    colors = np.zeros((12, 3))
    colors[:, 2] = 1.0
    picture = render_scene([mesh], shift(0, 0, 3.0)[None], pinhole(), colors=[colors])
    assert picture.rgb[30, 40, 2] > 100 and picture.rgb[30, 40, 0] == 0


def test_light_comes_from_above_on_both_sides_of_a_face():
    floor = Mesh(
        np.array([[-1, 0.5, 2], [1, 0.5, 2], [1, 0.5, 4], [-1, 0.5, 4]], "f4"),
        np.array([[0, 1, 2], [0, 2, 3]], "i4"),
    )
    turned = Mesh(floor.vertices, floor.faces[:, ::-1])
    up, down = (
        render_scene([m], np.eye(4)[None], pinhole(), background=(0, 0, 0)).rgb
        for m in (floor, turned)
    )
    assert np.array_equal(up, down)
    ceiling = render_scene(
        [floor], np.diag([1.0, -1, 1, 1])[None], pinhole(), background=(0, 0, 0)
    ).rgb
    assert up.max() > ceiling.max() > 0


def test_samples_smooth_the_edges_and_leave_the_labels():
    poses = pose(np.random.default_rng(3), 3.0)[None]
    one = render_scene([box()], poses, pinhole(), colors=[(1, 1, 1)], background=(0, 0, 0))
    many = render_scene(
        [box()], poses, pinhole(), colors=[(1, 1, 1)], background=(0, 0, 0), samples=5
    )
    assert (one.labels != many.labels).mean() < 2e-3
    assert len(np.unique(many.rgb[..., 0])) > 2 * len(np.unique(one.rgb[..., 0]))


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"samples": 2}, "odd"),
        ({"camera_from_objects": np.eye(4)[None].repeat(2, 0)}, "one pose per mesh"),
        ({"labels": [1, 2]}, "one per mesh"),
        ({"background": np.zeros((3, 3, 3), np.uint8)}, "background"),
    ],
)
def test_wrong_arguments_are_named(wrong, text):
    arguments = {
        "meshes": [box()],
        "camera_from_objects": shift(0, 0, 3)[None],
        "camera": pinhole(),
    } | wrong
    with pytest.raises(ValueError, match=text):
        render_scene(**arguments)
