# SPDX-License-Identifier: Apache-2.0
"""One thread: several get in each other's way on machines that are busy."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
