# SPDX-License-Identifier: Apache-2.0
"""Features of the photos that a field was trained from, by which other photos find their pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .field import FieldError, taken_part


@dataclass(frozen=True, eq=False)
class FieldFeatures:
    """points: (N, 3) float32 metres, object frame; descriptors: (N, 128) uint8, SIFT; first:
    (V + 1,) where the features of each photo begin, and where the last one's end."""

    points: np.ndarray
    descriptors: np.ndarray
    first: np.ndarray

    def scaled(self, factor: float) -> FieldFeatures:
        """Where all lengths are so many times as large."""
        return FieldFeatures(np.float32(factor) * self.points, self.descriptors, self.first)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays of a file."""
        return {_PREFIX + name: getattr(self, name) for name in _SHAPES}

    @classmethod
    def taken_from(cls, state: dict[str, np.ndarray]) -> FieldFeatures | None:
        """Those of a file's arrays, which lose them; None where it has none. Raises FieldError."""
        own = taken_part(state, _PREFIX, _SHAPES)
        if own is None:
            return None
        ends, count = own["first"], len(own["points"])
        if len(own["descriptors"]) != count or len(ends) < 1 or ends[0] != 0 or ends[-1] != count:
            raise FieldError(f"{_PREFIX}* do not belong together")
        return cls(**own)


_PREFIX = "features."
_SHAPES = {"points": (3,), "descriptors": (128,), "first": ()}
