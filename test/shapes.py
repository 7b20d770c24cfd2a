# SPDX-License-Identifier: Apache-2.0
"""Small meshes, poses and label images for the tests of the core."""

from __future__ import annotations

import cv2
import numpy as np
import trimesh

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch


def box(x: float = 0.2, y: float = 0.12, z: float = 0.08) -> Mesh:
    return _mesh(trimesh.creation.box((x, y, z)))


def ell(foot: float = 0.1, height: float = 0.2, depth: float = 0.08) -> Mesh:
    """An L, one closed surface: a post along z on a foot along x, and no two ends alike."""
    outline = np.array(
        [(0, 0), (0.05 + foot, 0), (0.05 + foot, 0.03), (0.05, 0.06), (0.05, height), (0, height)]
    )
    outline -= outline.mean(axis=0)
    n = len(outline)
    front = np.column_stack([outline[:, 0], np.full(n, -depth / 2), outline[:, 1]])
    back = front + np.array([0, depth, 0])
    back[n - 1, 1] += depth / 3  # leans back at the top: no mirror symmetry
    caps = np.array([(0, 1, 3), (1, 2, 3), (0, 3, 5), (3, 4, 5)])
    i = np.arange(n)
    j = (i + 1) % n
    sides = np.concatenate([np.column_stack([i, n + i, j]), np.column_stack([j, n + i, n + j])])
    faces = np.concatenate([caps, n + caps[:, ::-1], sides])
    return Mesh(np.concatenate([front, back]), faces)


def cylinder(radius: float = 0.05, height: float = 0.2, sections: int = 48) -> Mesh:
    return _mesh(trimesh.creation.cylinder(radius, height, sections=sections))


def plate(side: float = 0.2) -> Mesh:
    """A square sheet: open borders, no inside."""
    corner = np.array([(-1, -1, 0), (1, -1, 0), (1, 1, 0), (-1, 1, 0)]) * side / 2
    return Mesh(corner, np.array([(0, 1, 2), (0, 2, 3)]))


def model(name: str, mesh: Mesh, **more) -> ObjectModel:
    return ObjectModel(name, mesh, **more)


def pose(rotation_vector=(0, 0, 0), translation=(0, 0, 1.0)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = cv2.Rodrigues(np.asarray(rotation_vector, np.float64))[0]
    result[:3, 3] = translation
    return result


def turned(camera_from_object: np.ndarray, rotation_vector, shift=(0, 0, 0)) -> np.ndarray:
    """Turned about the object's origin and shifted, both along camera axes."""
    result = camera_from_object.copy()
    result[:3, :3] = cv2.Rodrigues(np.asarray(rotation_vector, np.float64))[0] @ result[:3, :3]
    result[:3, 3] += shift
    return result


def guesses(name: str, *poses: np.ndarray) -> list[Hypothesis]:
    """Poses that an object may have."""
    return [Hypothesis(name, one) for one in poses]


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """(3, 3), any orientation as likely as any other."""
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def random_poses(count: int, seed: int, distance: float = 0.5) -> np.ndarray:
    """(count, 4, 4) of a small object near the optical axis."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    for k in range(count):
        poses[k, :3, :3] = random_rotation(rng)
        poses[k, :3, 3] = rng.uniform(-0.04, 0.04, 3) + np.array([0, 0, distance])
    return poses


def random_turn(rng: np.random.Generator, angle: float) -> np.ndarray:
    """(3,) rotation vector of this angle about any axis."""
    axis = rng.normal(size=3)
    return axis * angle / np.linalg.norm(axis)


def pinhole_camera(size: int = 256, focal: float = 300.0) -> Camera:
    middle = (size - 1) / 2
    return Camera(np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1.0]]), (size, size))


def silhouette(mesh: Mesh, camera_from_object: np.ndarray, camera: Camera) -> np.ndarray:
    """(H, W) uint8 0/1 of a mesh alone, for a camera without distortion."""
    height, width = camera.size
    pinhole = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    picture = draw(MeshBatch([mesh]), [0], camera_from_object[None], pinhole, max(height, width))
    return picture[0, :height, :width]


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1.0) / 2.0
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))


def shift_between(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def _mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(shape.vertices, shape.faces)
