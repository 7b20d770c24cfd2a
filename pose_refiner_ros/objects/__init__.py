# SPDX-License-Identifier: Apache-2.0
"""What is known of the objects beforehand: shapes, symmetries, names."""

from pose_refiner_ros.objects.library import ObjectLibrary, ObjectLibraryError
from pose_refiner_ros.objects.mesh import Mesh, MeshError, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Axis, Symmetries, SymmetryError

__all__ = [
    "Axis",
    "Mesh",
    "MeshError",
    "ObjectLibrary",
    "ObjectLibraryError",
    "ObjectModel",
    "Symmetries",
    "SymmetryError",
    "load_mesh",
]
