# SPDX-License-Identifier: Apache-2.0
"""All of space in a box: what is beyond a cube, however far, comes near (MERF, Reiser et al. 2023,
eq. 2). `grid_kernels.py` has the same for kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Contraction:
    """middle: (3,) metres, object frame, of the cube that stays as it is; half: half its side."""

    middle: tuple[float, float, float]
    half: float

    @property
    def box(self) -> np.ndarray:
        """(2, 3) in which all of space lies."""
        return np.array(self.middle) + 2.0 * self.half * np.array([[-1.0], [1.0]])

    def contract(self, points: np.ndarray) -> np.ndarray:
        """Where points (N, 3) come to lie."""
        p = np.asarray(points, np.float64) - self.middle
        far = np.abs(p).max(axis=-1, keepdims=True)
        beyond = np.maximum(far, self.half)
        along = np.abs(p) == far
        shrunk = self.half / beyond
        return self.middle + p * shrunk * np.where(along, 2.0 - shrunk, 1.0)

    def expand(self, points: np.ndarray) -> np.ndarray:
        """What `contract` makes points (N, 3) of; those beyond all of space lie very far off."""
        p = np.asarray(points, np.float64) - self.middle
        near = np.abs(p).max(axis=-1, keepdims=True)
        left = np.maximum(2.0 * self.half - near, 1e-6 * self.half)
        far = np.where(near > self.half, self.half**2 / left, near)  # of the largest coordinate
        along = np.abs(p) == near
        beyond = np.maximum(far, self.half) / self.half
        return self.middle + np.where(along, p * (far / np.maximum(near, 1e-300)), p * beyond)

    def shifted(self, offset: np.ndarray) -> Contraction:
        """The same in a frame whose origin lies at `offset` (3,)."""
        return replace(self, middle=tuple((np.array(self.middle) - offset).tolist()))

    def scaled(self, factor: float) -> Contraction:
        """The same where all lengths are so many times as large."""
        return Contraction(tuple((factor * np.array(self.middle)).tolist()), factor * self.half)
