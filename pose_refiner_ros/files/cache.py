# SPDX-License-Identifier: Apache-2.0
"""Arrays that are costly to build, kept on disk under a key that says what they were built from.

The folder is $POSE_REFINER_CACHE, else $XDG_CACHE_HOME/pose_refiner_ros, else
~/.cache/pose_refiner_ros. It may be deleted at any time. Where it cannot be written everything
works, only slower.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pose_refiner_ros.files.atomic import write_atomically

log = logging.getLogger(__name__)
_warned_about: set[str] = set()


def cache_folder() -> Path:
    """Where cached arrays lie; not made until something is written."""
    chosen = os.environ.get("POSE_REFINER_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pose_refiner_ros"


def cache_key(*parts: object) -> str:
    """Key of content hashes and settings: any numbers, strings, lists or dicts of them."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def cached_arrays(
    kind: str, key: str, build: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `build()` gives, from disk when they were built before.

    `kind` names the sub-folder (such as "silhouette_mesh"). `key` must change with everything that
    the result depends on, the version of the code that builds it included: see `cache_key`. A
    damaged file is built anew; the arrays come back writable and owned by the caller.
    """
    try:
        path = cache_folder() / kind / f"{key}.npz"
    except RuntimeError as error:  # no home directory
        _warn_once(Path("~"), error)
        return {name: np.asarray(array) for name, array in build().items()}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        pass
    except Exception as error:  # zip, zlib, numpy and the OS each have errors of their own
        log.info("cache file %s is damaged and will be rebuilt: %s", path, error)
    arrays = {name: np.asarray(array) for name, array in build().items()}
    _write(path, arrays)
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        _warn_once(path.parent, error)


def _warn_once(folder: Path, error: Exception) -> None:
    if "unwritable" not in _warned_about:
        _warned_about.add("unwritable")
        log.warning(
            "cannot write the cache %s (%s): everything is rebuilt at each start; "
            "set POSE_REFINER_CACHE to a folder that can be written",
            folder,
            error,
        )
