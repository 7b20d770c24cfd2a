# SPDX-License-Identifier: Apache-2.0
"""Rays to the surfaces of objects. They are few, and on a GPU would be there later than here."""

from __future__ import annotations

import numpy as np
import warp as wp

from pose_refiner_ros.geometry.pose import about_point

from .model import ObjectModel

wp.set_module_options({"enable_backward": False})


@wp.kernel
def cast_rays(
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array2d(dtype=wp.vec3),
    ranges: wp.array2d(dtype=wp.float32),
):
    pose, ray = wp.tid()
    hit = wp.mesh_query_ray(mesh, origins[pose], directions[pose, ray], 1.0e9)
    ranges[pose, ray] = wp.where(hit.result, hit.t, wp.inf)


def ranges_to_surface(
    model: ObjectModel, camera_from_object: np.ndarray, rays: np.ndarray
) -> np.ndarray:
    """(N, R) metres along unit rays (R, 3) of a camera to an object at poses (N, 4, 4), infinite
    beside it."""
    poses = about_point(camera_from_object, model.box_center)
    object_from_camera = np.swapaxes(poses[:, :3, :3], 1, 2)
    origins = -(object_from_camera @ poses[:, :3, 3:])[..., 0]
    directions = rays @ poses[:, :3, :3]
    ranges = wp.empty(directions.shape[:2], dtype=wp.float32, device="cpu")
    inputs = [
        model.surface.id,
        wp.array(origins.astype(np.float32), dtype=wp.vec3, device="cpu"),
        wp.array(directions.astype(np.float32), dtype=wp.vec3, device="cpu"),
        ranges,
    ]
    wp.launch(cast_rays, ranges.shape, inputs, device="cpu")
    return ranges.numpy()
