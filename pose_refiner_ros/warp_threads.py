# SPDX-License-Identifier: Apache-2.0
"""Warp launches over all cores of the CPU: Warp itself runs a launch on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import warp as wp

_threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="grid")


def cpu_threads() -> int:
    """That launches are shared out among."""
    return _threads._max_workers


def launch_over(
    kernel: Any, count: int, inputs: Sequence[Any], device: Any, least: int = 256
) -> None:
    """Launch a kernel over `count` items; its last parameter is the first item of its share.

    Warp runs a launch on one CPU core, so there the items are shared out among threads, to each at
    least `least`.
    """
    recorded_over(kernel, count, inputs, device, least)()


def recorded_over(
    kernel: Any, count: int, inputs: Sequence[Any], device: Any, least: int = 256
) -> Callable[[], None]:
    """What does `launch_over` with these very arrays, whenever it is called."""
    if count == 0:
        return lambda: None
    device = wp.get_device(device)
    shares = min(cpu_threads(), max(count // least, 1)) if device.is_cpu else 1
    starts = [count * i // shares for i in range(shares + 1)]
    launches = [
        wp.launch(kernel, end - start, [*inputs, start], device=device, record_cmd=True).launch
        for start, end in pairwise(starts)
    ]
    if shares == 1:
        return launches[0]

    def run() -> None:
        for job in [_threads.submit(launch) for launch in launches]:
            job.result()

    return run
