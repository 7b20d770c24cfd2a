# SPDX-License-Identifier: Apache-2.0
"""Warp arrays as the host uses them: rows read and written from numpy, launches recorded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import warp as wp


class HostBuffer:
    """Reads and writes the array fields of a Warp struct, or of any object with such attributes:
    the same memory on the CPU, copies on CUDA."""

    def __init__(self, owner: Any, names: Sequence[str]) -> None:
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


class RecordedKernel:
    """A kernel with its arguments: launching what was recorded costs a fraction of a new launch."""

    def __init__(
        self, kernel: Any, inputs: Sequence[Any], device: Any, lanes: int | None = None
    ) -> None:
        """lanes: threads of the block that each item has, where the kernel is one of blocks."""
        self._lanes = lanes
        self._count = 1
        self._scalars: dict[str, Any] = {}
        blocks = {} if lanes is None else {"block_dim": lanes}
        self._launch = wp.launch(
            kernel, self._dim(1), list(inputs), device=device, record_cmd=True, **blocks
        )

    def _dim(self, count: int) -> int | tuple[int, int]:
        return count if self._lanes is None else (count, self._lanes)

    def set(self, name: str, value: Any) -> None:
        """Change a scalar argument."""
        if self._scalars.get(name) != value:  # to set it takes as long as a launch
            self._launch.set_param_by_name(name, value)
            self._scalars[name] = value

    def __call__(self, count: int) -> None:
        """Launch for so many items."""
        if count != self._count:  # setting it costs more than the launch
            self._launch.set_dim(self._dim(count))
            self._count = count
        self._launch.launch()
