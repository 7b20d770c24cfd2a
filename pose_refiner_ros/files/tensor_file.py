# SPDX-License-Identifier: Apache-2.0
"""Reading safetensors files, with messages that say what is wrong with one and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np


class TensorFileError(ValueError):
    """A file of tensors that is not there or cannot be read, with the reason."""


def read_tensors(
    path: str | Path, what: str, remedy: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    what: the file holds, a plural, for messages ("encoder weights"); remedy: the command that makes
    a new one. Raises TensorFileError.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        raise TensorFileError(f"{what} {path} are a folder: give the .safetensors file")
    if not path.is_file():
        raise TensorFileError(f"{what} {path} do not exist")
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise TensorFileError(f"{what} {path} cannot be read: {error}") from error
    except (SafetensorError, TypeError) as error:  # TypeError: types that NumPy has not
        raise TensorFileError(
            f"{path} is not a whole safetensors file ({path.stat().st_size:,} bytes: {error}): cut "
            f"short? copy it again, or train it with `{remedy}`"
        ) from error
