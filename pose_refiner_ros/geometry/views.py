# SPDX-License-Identifier: Apache-2.0
"""Views from all around, and the rotation of a camera that looks back at the origin."""

from __future__ import annotations

import numpy as np


def view_directions(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the sphere (Fibonacci spiral)."""
    index = np.arange(count) + 0.5
    z = 1.0 - 2.0 * index / count
    turn = np.pi * (1.0 + 5.0**0.5) * index
    ring = np.sqrt(1.0 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)


def look_at(direction: np.ndarray) -> np.ndarray:
    """(N, 3, 3) camera_from_object of cameras that sit in the directions (N, 3) and look back."""
    z = -direction
    up = np.where(np.abs(direction[:, 2:]) < 0.99, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    x = np.cross(z, up)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=1)
