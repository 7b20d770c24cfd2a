# SPDX-License-Identifier: Apache-2.0
"""Starts Warp without its greeting, and without its news that there is no NVIDIA driver."""

import os
import sys


def start_warp_quietly() -> None:
    """Initialise Warp; a terminal or a log sees nothing of it but warnings that come later."""
    import warp

    warp.config.quiet = True
    if hasattr(warp.config, "log_level"):  # takes the place of quiet in newer versions
        warp.config.log_level = warp.LOG_WARNING
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)  # the native library writes there itself
        warp.init()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
