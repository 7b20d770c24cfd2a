# SPDX-License-Identifier: Apache-2.0
"""What is known of an object beforehand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.outline import EXACT, OutlineError
from pose_refiner_ros.objects.symmetry import Symmetries

if TYPE_CHECKING:  # fields need torch, and most objects have none
    import warp as wp

    from pose_refiner_ros.fields.grid import GridField


@dataclass(frozen=True, eq=False)
class ObjectModel:
    """An object: its shape, what looks the same, and how it is named.

    The object frame is the mesh file's, turned by `object_from_mesh` where the library says so.
    """

    name: str
    mesh: Mesh  # full mesh, metres, object frame
    silhouette_mesh: Mesh | None = None  # simplified for outlines; the full mesh if not given
    symmetries: Symmetries = dataclasses.field(default_factory=Symmetries)
    color: tuple[float, float, float] = (0.6, 0.6, 0.6)  # red, green, blue in [0, 1]
    mesh_path: Path | None = None
    bop_id: int | None = None
    aliases: tuple[str, ...] = ()  # other names that detectors use for it
    outline_error: OutlineError = EXACT  # of silhouette_mesh against mesh
    label: int | None = None  # its value in label images, for when no detections come

    # The category, such as "sedan", by which the encoder knows the object; and whether the mesh is
    # the object's own or stands for all of the category, as a medoid does.
    category: str | None = None
    exact_shape: bool = True

    # Its colours from all sides, in the object frame; mesh may be made of it (`field_mesh`).
    field: GridField | None = None
    field_path: Path | None = None

    # For RViz, which reads the file itself: a URI, the factor to metres, and where the file's
    # axes lie in the object frame.
    mesh_resource: str | None = None
    mesh_resource_scale: float = 1.0
    object_from_mesh: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(4))  # (4, 4)

    def __post_init__(self):
        if self.silhouette_mesh is None:
            object.__setattr__(self, "silhouette_mesh", self.mesh)

    @property
    def diameter(self) -> float:
        """Largest distance between two points of the object, metres."""
        return self.mesh.diameter

    @cached_property
    def box_size(self) -> np.ndarray:
        """(3,) size of the box along the object's axes, metres."""
        return self.mesh.bounds[1] - self.mesh.bounds[0]

    @cached_property
    def box_center(self) -> np.ndarray:
        """(3,) centre of that box, object frame, metres."""
        return self.mesh.bounds.mean(axis=0)

    @cached_property
    def surface(self) -> wp.Mesh:
        """The silhouette mesh about the box's centre, for rays on the CPU."""
        import warp as wp

        points = (self.silhouette_mesh.vertices - self.box_center).astype(np.float32)
        faces = self.silhouette_mesh.faces.ravel()
        return wp.Mesh(
            wp.array(points, dtype=wp.vec3, device="cpu"),
            wp.array(faces, dtype=wp.int32, device="cpu"),
        )
