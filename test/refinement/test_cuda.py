# SPDX-License-Identifier: Apache-2.0
"""CUDA says what the CPU says: each kind of evidence, each family of kernels.

Where there is no GPU, what the host does for one is tried on the CPU: copies instead of shared
memory.
"""

from __future__ import annotations

import numpy as np
import pytest
import warp as wp
from both_devices import CASES, Figures, differences

from pose_refiner_ros.refinement import host_buffer
from pose_refiner_ros.warp_start import start_warp_quietly

start_warp_quietly()


@pytest.fixture
def copies(monkeypatch):
    """The host copies what it writes and reads, as it must on CUDA."""
    whole = host_buffer.HostBuffer.__init__

    def without_views(self, owner, names):
        whole(self, owner, names)
        self._views = {}

    monkeypatch.setattr(host_buffer.HostBuffer, "__init__", without_views)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.gpu
@pytest.mark.skipif(not wp.is_cuda_available(), reason="no CUDA here")
def test_cuda_says_what_the_cpu_says(case):
    apart = differences(CASES[case]("cuda:0"), CASES[case]("cpu"))
    assert not {name: off for name, off in apart.items() if not off <= 1.0}


# what reads and writes arrays from the host
HOST = ["silhouette", "depth", "prior", "radiance with exposure", "refiner"]


@pytest.mark.parametrize("case", [case for case in CASES if case not in HOST])
def test_each_case_can_be_compared(case):
    figures = CASES[case]("cpu")
    assert any(values.any() for values in figures.values())
    assert not max(differences(figures, figures).values())


@pytest.mark.parametrize("case", HOST)
def test_copies_between_host_and_device_change_nothing(case, copies, monkeypatch):
    found = CASES[case]("cpu")
    monkeypatch.undo()
    for name, expected in CASES[case]("cpu").items():
        np.testing.assert_array_equal(found[name], expected, name)


def test_what_differs_is_told():
    a: Figures = {"gradient": np.array([1.0, 2.0, -4.0]), "labels": np.array([0, 1, 2, 3])}
    b: Figures = {"gradient": np.array([1.0, 2.2, -4.0]), "labels": np.array([0, 1, 2, 2])}
    assert differences(a, b) == pytest.approx({"gradient": 5.0, "labels": 25.0})
    assert differences({"cost": np.array([np.nan])}, {"cost": np.ones(1)}) == {"cost": np.inf}
