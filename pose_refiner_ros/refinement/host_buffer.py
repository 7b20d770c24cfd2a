# SPDX-License-Identifier: Apache-2.0
"""Warp arrays as the host uses them: rows read and written from numpy, launches recorded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        wp.copy(array, source, count=source.size)

    def read(self, name: str, count: int) -> np.ndarray:
        """The first rows; on the CPU they are those of the array, on CUDA a copy."""
        view = self._views.get(name)
        return self._arrays[name][:count].numpy() if view is None else view[:count]


def recorded(
    kernel: Any, inputs: Sequence[Any], device: Any, lanes: int | None = None
) -> Callable[..., None]:
    """What launches a kernel with these arguments for `count` items, given scalars by their names
    changed: launching what was recorded costs a fraction of a new launch.

    lanes: threads of the block that each item has, where the kernel is one of blocks.
    """

    def size(count: int) -> int | tuple[int, int]:
        return count if lanes is None else (count, lanes)

    blocks = {} if lanes is None else {"block_dim": lanes}
    launch = wp.launch(kernel, size(1), list(inputs), device=device, record_cmd=True, **blocks)
    last: dict[str, Any] = {"count": 1}  # to set anything costs more than the launch

    def run(count: int, **scalars: Any) -> None:
        for name, value in scalars.items():
            if last.get(name) != value:
                launch.set_param_by_name(name, value)
                last[name] = value
        if count != last["count"]:
            launch.set_dim(size(count))
            last["count"] = count
        launch.launch()

    return run
