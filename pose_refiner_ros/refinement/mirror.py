# SPDX-License-Identifier: Apache-2.0
"""Rows of Warp arrays seen from numpy: the same memory on the CPU, copies on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import warp as wp


class Mirror:
    """Reads and writes the array fields of a Warp struct, or any object with such attributes."""

    def __init__(self, owner: Any, names: list[str]) -> None:
        self._arrays = {name: getattr(owner, name) for name in names}
        # asking Warp for a view costs more than copying a batch's worth of rows
        self._views = {
            name: array.numpy() for name, array in self._arrays.items() if array.device.is_cpu
        }

    def write(self, name: str, values: Any) -> None:
        """Copy values into the first rows."""
        if name in self._views:
            self._views[name][: len(values)] = values
            return
        array = self._arrays[name]
        source = wp.array(np.ascontiguousarray(values), dtype=array.dtype, device=array.device)
        wp.copy(array, source, count=len(values))

    def read(self, name: str, count: int) -> np.ndarray:
        """The first rows; on the CPU they change with the array."""
        view = self._views.get(name)
        return (self._arrays[name].numpy() if view is None else view)[:count]
