# SPDX-License-Identifier: Apache-2.0
"""What a camera says along its own axes, told along those of the reference."""

import numpy as np
import warp as wp
from shapes import random_rotation

from pose_refiner_ros.refinement.normal_equations import (
    NormalEquations,
    PoseBatch,
    add_all,
    add_normal_equations,
    allocate,
    clear,
    vector_in_reference,
)

COUNT = 12


@wp.kernel
def add_twice(
    out: NormalEquations,
    cameras: wp.array(dtype=wp.mat33),
    hessians: wp.array(dtype=wp.spatial_matrix),
    gradients: wp.array(dtype=wp.spatial_vector),
    turned: wp.array(dtype=wp.spatial_vector),
):
    """What each two cameras in turn say of a pose."""
    i = wp.tid()
    add_normal_equations(out, i / 2, cameras[i], hessians[i], gradients[i], float(i), 1.0)
    turned[i] = vector_in_reference(cameras[i], gradients[i])


def test_two_cameras_add_up_along_the_axes_of_the_reference():
    rng = np.random.default_rng(0)
    cameras = np.array([random_rotation(rng) for _ in range(2 * COUNT)])
    roots = rng.normal(size=(2 * COUNT, 6, 6))
    hessians, gradients = roots @ np.swapaxes(roots, 1, 2), rng.normal(size=(2 * COUNT, 6))
    out = allocate(NormalEquations, COUNT, "cpu")
    turned = wp.zeros(2 * COUNT, dtype=wp.spatial_vector)
    arrays = [
        wp.array(cameras.astype(np.float32), dtype=wp.mat33),
        wp.array(hessians.astype(np.float32), dtype=wp.spatial_matrix),
        wp.array(gradients.astype(np.float32), dtype=wp.spatial_vector),
    ]
    wp.launch(add_twice, 2 * COUNT, [out, *arrays, turned])
    B = np.zeros((2 * COUNT, 6, 6))
    B[:, :3, :3] = B[:, 3:, 3:] = cameras  # camera_from_reference
    transposed = np.swapaxes(B, 1, 2)

    def in_pairs(each):
        return each.reshape(COUNT, 2, *each.shape[1:]).sum(axis=1)

    each = np.einsum("nij,nj->ni", transposed, gradients)
    np.testing.assert_allclose(turned.numpy(), each, atol=1e-5)
    np.testing.assert_allclose(out.gradient.numpy(), in_pairs(each), atol=1e-5)
    np.testing.assert_allclose(
        out.hessian.numpy(), in_pairs(transposed @ hessians @ B), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(out.cost.numpy(), in_pairs(np.arange(2.0 * COUNT)))
    np.testing.assert_array_equal(out.weight.numpy(), 2.0)


def test_the_twist_of_the_reference_is_that_twist_along_the_cameras_axes():
    """(v, w) about the object moves it in the camera by (R v, R w): without a lever arm."""
    rng = np.random.default_rng(1)
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = random_rotation(rng), rng.normal(size=3)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = random_rotation(rng), rng.normal(size=3)
    from scipy.spatial.transform import Rotation

    def moved(at, twist):
        other = at.copy()
        other[:3, :3] = Rotation.from_rotvec(twist[3:]).as_matrix() @ at[:3, :3]
        other[:3, 3] += twist[:3]
        return other

    twist = rng.normal(size=6)
    R = camera[:3, :3]
    along_camera = np.concatenate([R @ twist[:3], R @ twist[3:]])
    np.testing.assert_allclose(
        camera @ moved(pose, twist), moved(camera @ pose, along_camera), atol=1e-12
    )


def test_equations_of_the_active_are_cleared_and_added():
    rng = np.random.default_rng(2)
    poses = allocate(PoseBatch, 3, "cpu")
    poses.active.numpy()[:] = [1, 0, 1]
    own, total = allocate(NormalEquations, 3, "cpu"), allocate(NormalEquations, 3, "cpu")
    before = {}
    for name in NormalEquations.vars:
        for equations in (own, total):
            values = getattr(equations, name).numpy()
            values[:] = rng.normal(size=values.shape)
        before[name] = getattr(own, name).numpy().copy(), getattr(total, name).numpy().copy()
    wp.launch(add_all, 3, [poses, own, total])
    for name, (mine, sums) in before.items():
        found = getattr(total, name).numpy()
        np.testing.assert_array_equal(found[[0, 2]], (mine + sums)[[0, 2]])
        np.testing.assert_array_equal(found[1], sums[1])
    wp.launch(clear, 3, [poses, own])
    for name, (mine, _) in before.items():
        found = getattr(own, name).numpy()
        assert not found[[0, 2]].any()
        np.testing.assert_array_equal(found[1], mine[1])
