# SPDX-License-Identifier: Apache-2.0
"""What the tests share: the example data's place, a small BOP data set, hypothesis's settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blocks import write_bop
from hypothesis import settings

# Deadlines measure the machine, not the code; a fixed seed keeps a failure a failure.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def data_folder() -> Path:
    """Real example data: $POSE_REFINER_DATA, else ../shared/data beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("POSE_REFINER_DATA", beside))


@pytest.fixture(scope="session")
def example_data() -> Callable[[str], Path]:
    """`example_data("bop/schauma")` is that path, or skips the test where it is absent."""

    def find(name: str) -> Path:
        path = data_folder() / name
        if not path.exists():
            pytest.skip(f"no example data at {path}; set POSE_REFINER_DATA to its folder")
        return path

    return find


@pytest.fixture
def bop_folder(tmp_path) -> Path:
    """A small BOP data set: a wedge (1) and an L (4), two images of scene 3, one of scene 8 that
    has masks and no ground truth. See blocks.py."""
    return write_bop(tmp_path / "blocks")
