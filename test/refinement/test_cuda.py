# SPDX-License-Identifier: Apache-2.0
"""CUDA says what the CPU says: each kind of evidence, each family of kernels, levels as graphs.

Where there is no GPU, what the host does for one is tried on the CPU: copies instead of shared
memory, captured levels (Warp replays those of a CPU as well).
"""

from __future__ import annotations

import numpy as np
import pytest
import warp as wp
from both_devices import CASES, Figures, differences
from shapes import ell, guesses, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.refinement import host_buffer, solver
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.warp_start import start_warp_quietly

start_warp_quietly()
CUDA = [pytest.mark.gpu, pytest.mark.skipif(not wp.is_cuda_available(), reason="no CUDA here")]
EVERYWHERE = ["cpu", pytest.param("cuda:0", marks=CUDA)]
OBJECT = model("ell", ell())
CAMERA = pinhole_camera(256, 350.0)
TRUTHS = [pose((0.6, -0.7, 0.4 + 0.5 * k), (0.02, -0.01, 0.6)) for k in range(3)]
STARTS = [turned(truth, (0.15, -0.1, 0.12), (0.01, -0.02, 0.03)) for truth in TRUTHS]


@pytest.fixture
def copies(monkeypatch):
    """The host copies what it writes and reads, as it must on CUDA."""
    whole = host_buffer.HostBuffer.__init__

    def without_views(self, owner, names):
        whole(self, owner, names)
        self._views = {}

    monkeypatch.setattr(host_buffer.HostBuffer, "__init__", without_views)


def refined(refiner: Refiner, order=(0, 1, 2)) -> np.ndarray:
    """(3, 4, 4)."""
    seen = [[observe_mask(silhouette(OBJECT.mesh, TRUTHS[k], CAMERA), 1, CAMERA)] for k in order]
    found = refiner.refine(seen, [guesses("ell", STARTS[k]) for k in order], restart=False)
    return np.array([own[0].reference_from_object for own in found])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.gpu
@pytest.mark.skipif(not wp.is_cuda_available(), reason="no CUDA here")
def test_cuda_says_what_the_cpu_says(case):
    apart = differences(CASES[case]("cuda:0"), CASES[case]("cpu"))
    assert not {name: off for name, off in apart.items() if not off <= 1.0}


# what reads and writes arrays from the host
HOST = ["silhouette", "prior", "radiance with exposure", "refiner"]


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


@pytest.mark.parametrize("device", EVERYWHERE)
def test_graphs_change_no_pose(device):
    plain = refined(Refiner([OBJECT], device, 4))
    with_graphs = Refiner([OBJECT], device, 4, graphs=True)
    for _ in range(4):  # as usual, captured, replayed
        np.testing.assert_allclose(refined(with_graphs), plain, atol=1e-6)


@pytest.fixture
def captured(monkeypatch):
    """A refiner whose levels are captured on the CPU; all iterations are in a graph."""
    refiner = Refiner([OBJECT], "cpu", 4)
    own = refiner.solver
    if not hasattr(wp, "capture_launch"):
        pytest.skip("this Warp has no graphs")
    monkeypatch.setattr(own, "_with_graphs", True)
    monkeypatch.setattr(own._active, "read", lambda name, count: np.ones(count))
    return refiner


def test_a_captured_level_is_what_it_was(captured):
    plain = refined(Refiner([OBJECT], "cpu", 4))
    for _ in range(2):
        np.testing.assert_array_equal(refined(captured), plain)
    graphs = captured.solver._graphs
    assert len(graphs) == 3 and all(graphs.values())
    # other poses and masks in the same arrays
    np.testing.assert_array_equal(refined(captured, (2, 0, 1)), plain[[2, 0, 1]])
    assert captured.solver._graphs == graphs


def test_a_graph_is_of_a_number_of_poses(captured):
    plain = Refiner([OBJECT], "cpu", 4)
    for order in [(0, 1, 2), (1, 2), (0, 1, 2), (1, 2), (2, 1), (0,), (1, 0, 2)]:
        np.testing.assert_array_equal(refined(captured, order), refined(plain, order))


def test_few_graphs_are_kept(captured, monkeypatch):
    monkeypatch.setattr(solver, "MOST_GRAPHS", 4)
    plain = Refiner([OBJECT], "cpu", 4)
    for order in [(0, 1, 2), (0, 1, 2), (1, 2), (1, 2), (0, 1, 2)]:
        np.testing.assert_array_equal(refined(captured, order), refined(plain, order))
        assert len(captured.solver._graphs) <= 4


def test_terms_whose_launches_change_are_not_captured(captured):
    captured.terms[0].fixed_launches = False
    refined(captured)
    assert not captured.solver._graphs
    seen = observe_mask(silhouette(OBJECT.mesh, TRUTHS[0], CAMERA), 1, CAMERA)
    (found,) = captured.evaluate([seen], [Hypothesis("ell", TRUTHS[0])])
    assert found.fits["silhouette"].iou > 0.99
