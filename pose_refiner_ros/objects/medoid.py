# SPDX-License-Identifier: Apache-2.0
"""The medoid of a group of meshes: the one that stands for all of them.

As in Palazzi et al. 2018, a mesh is described by histograms of oriented gradients (HOG) of its
front and its side, and the medoid is the mesh with the least mean L2 distance to the others. The
views are shaded, so that windows and wheels count besides the outline.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.scene import render_scene

SIZE = 128  # pixels of a view
SPAN = 112  # of those, what the longest side of the mesh's box spans
DISTANCE = 100.0  # of the camera, in longest sides: nearly orthographic
VERSION = 1  # of the descriptor; raise it when it changes: medoids that were kept are chosen anew

# camera_from_object rotations of the views: seen from the front (+x) and from the left (+y)
FRONT = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])
SIDE = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, -1.0, 0.0]])


class MedoidError(ValueError):
    """A medoid that cannot be chosen, with the reason and what to do."""


def hog_descriptor(mesh: Mesh) -> np.ndarray:
    """(D,) float32: HOG of the front and of the side of a mesh (x forward, z up).

    The mesh is scaled so that the longest side of its box is 1, and both views have that scale:
    proportions count, size does not. The box's centre is the middle of the picture.

    Raises:
        MedoidError: scikit-image is not there.
    """
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise MedoidError(
            f"choosing medoids needs scikit-image, which cannot be imported ({error}); "
            "it is among requirements/training.txt"
        ) from error

    return np.concatenate(
        [
            hog(view, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
            for view in medoid_views(mesh)
        ]
    ).astype(np.float32)


def medoid_views(mesh: Mesh) -> list[np.ndarray]:
    """Front and side, each (128, 128) uint8 grey, black where the mesh is not."""
    low, high = mesh.bounds
    unit = Mesh((mesh.vertices - (low + high) / 2) / (high - low).max(), mesh.faces)
    centre = (SIZE - 1) / 2
    K = [[SPAN * DISTANCE, 0, centre], [0, SPAN * DISTANCE, centre], [0, 0, 1]]
    camera = Camera(np.array(K), (SIZE, SIZE))
    views = []
    for rotation in (FRONT, SIDE):
        pose = rigid(rotation, (0.0, 0.0, DISTANCE))
        views.append(render_scene([unit], pose[None], camera, background=(0, 0, 0)).rgb[..., 0])
    return views


def medoid(descriptors: np.ndarray) -> int:
    """Index of the row of (N, D) with the least mean L2 distance to the others."""
    descriptors = np.asarray(descriptors, np.float64)
    if descriptors.ndim != 2 or len(descriptors) == 0:
        raise MedoidError(f"descriptors must have shape (N, D), not {descriptors.shape}")
    mean_distance = [
        np.linalg.norm(descriptors - descriptor, axis=1).mean() for descriptor in descriptors
    ]
    return int(np.argmin(mean_distance))


def choose_medoid(meshes: Sequence[Mesh]) -> int:
    """Index of the mesh that stands for all."""
    return medoid(np.stack([hog_descriptor(mesh) for mesh in meshes]))
