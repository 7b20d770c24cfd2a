# SPDX-License-Identifier: Apache-2.0
"""One thread: several get in each other's way on machines that are busy."""

import pytest

from pose_refiner_ros import torch_threads


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    with torch_threads.one_thread():
        yield
