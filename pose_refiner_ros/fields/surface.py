# SPDX-License-Identifier: Apache-2.0
"""The surface of an object's field as triangles, made when it is trained: that takes a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .field import FieldError, taken_part


@dataclass(frozen=True, eq=False)
class FieldSurface:
    """vertices: (V, 3) float32 metres, object frame; faces: (F, 3) int32; iou: (1,) overlap of its
    silhouettes and what the field renders."""

    vertices: np.ndarray
    faces: np.ndarray
    iou: np.ndarray

    def scaled(self, factor: float) -> FieldSurface:
        """Where all lengths are so many times as large."""
        return FieldSurface(np.float32(factor) * self.vertices, self.faces, self.iou)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays of a file."""
        return {_PREFIX + name: getattr(self, name) for name in _SHAPES}

    @classmethod
    def taken_from(cls, state: dict[str, np.ndarray]) -> FieldSurface | None:
        """That of a file's arrays, which lose it; None where it has none. Raises FieldError."""
        own = taken_part(state, _PREFIX, _SHAPES)
        if own is None:
            return None
        faces = own["faces"]
        if len(faces) and not 0 <= faces.min() <= faces.max() < len(own["vertices"]):
            raise FieldError(f"{_PREFIX}faces name vertices that are not there")
        return cls(**own)


_PREFIX = "surface."
_SHAPES = {"vertices": (3,), "faces": (3,), "iou": ()}
