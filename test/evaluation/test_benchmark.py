# SPDX-License-Identifier: Apache-2.0
"""The bench command's meshes, trials and figures, on a small scale."""

import json

import numpy as np
import pytest
from shapes import angle_deg, model

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.evaluation import benchmark
from pose_refiner_ros.evaluation.benchmark import (
    MAX_DISTANCE_SHARE,
    MAX_ROTATION_DEG,
    benchmark_mesh,
    make_trials,
)
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner


@pytest.fixture(scope="module")
def sedan():
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    return model("sedan", mesh, silhouette_mesh=simplify_for_silhouette(mesh))


def signed_volume(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(float) for k in range(3))
    return np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6


@pytest.mark.parametrize("faces", [1000, 3000, 8000])
def test_finer_meshes_have_the_same_shape(faces):
    coarse, fine = make_vehicle(VEHICLES["sedan"]).mesh, benchmark_mesh(faces)
    assert faces <= len(fine.faces) < max(1.1 * faces, len(coarse.faces) + 1)
    assert fine.watertight
    assert signed_volume(fine) == pytest.approx(signed_volume(coarse), rel=1e-4)
    np.testing.assert_allclose(fine.bounds, coarse.bounds, atol=1e-6)


def test_trials_are_what_they_say(sedan):
    trials = make_trials(sedan.mesh, 12, seed=5, crop=128)
    again = make_trials(sedan.mesh, 12, seed=5, crop=128)
    other = make_trials(sedan.mesh, 1, seed=6, crop=128)[0]
    center = sedan.mesh.bounds.mean(axis=0)
    sides = []
    for trial, same in zip(trials, again, strict=True):
        np.testing.assert_array_equal(trial.truth, same.truth)
        np.testing.assert_array_equal(trial.start, same.start)
        assert set(np.unique(trial.masks)) == {0, 1}
        assert trial.masks.shape == trial.camera.size == (256, 256)
        assert not trial.masks[[0, -1]].any() and not trial.masks[:, [0, -1]].any()
        assert angle_deg(trial.start, trial.truth) <= MAX_ROTATION_DEG + 1e-6
        true, start = (p[:3, :3] @ center + p[:3, 3] for p in (trial.truth, trial.start))
        assert abs(start[2] / true[2] - 1) < MAX_DISTANCE_SHARE + 0.05
        seen = observe_mask(trial.masks, 1, trial.camera)
        sides.append(seen.crop.size)
        # the mask is that of the truth
        (measured,) = Refiner([sedan], capacity=1).evaluate(
            [seen], [Hypothesis("sedan", trial.truth)]
        )
        assert measured.fits["silhouette"].iou > 0.98
    assert not np.array_equal(other.truth, trials[0].truth)
    assert 90 < np.median(sides) < 200


def test_one_object_is_refined_as_exactly_as_promised(sedan):
    """At half the resolution of the main figures: their double is allowed."""
    refiner = Refiner([sedan], capacity=16)
    result = benchmark.single(sedan, refiner, make_trials(sedan.mesh, 60, seed=1, crop=128))
    assert result["trials"] == 60
    assert result["share_under_5deg"] >= 0.95
    assert result["median_rotation_error_deg"] < 0.4
    assert result["median_ms"] < result["p95_ms"]
    full = benchmark.single(sedan, refiner, make_trials(sedan.mesh, 60, seed=2))
    assert full["share_under_5deg"] >= 0.97
    assert full["median_rotation_error_deg"] < 0.2


def test_stages_and_iterations_are_timed(sedan):
    refiner = Refiner([sedan], capacity=16)
    trials = make_trials(sedan.mesh, 3, crop=128)
    for times in (
        benchmark.stages(sedan, refiner, trials),
        benchmark.per_iteration(refiner, trials),
    ):
        assert len(times) >= 3
        assert all(0 < value < 1000 for value in times.values())


def test_a_batch_is_timed_together_and_alone(sedan):
    refiner = Refiner([sedan], capacity=16)
    together, alone = benchmark.batch(refiner, "sedan", make_trials(sedan.mesh, 2, crop=128), 2, 2)
    assert together > 0 and alone > 0


def test_the_plain_workload_takes_time():
    assert 0.1 < benchmark.reference_ms(repeats=2) < 5000


def test_a_report_holds_the_promised_figures(sedan, tmp_path, monkeypatch):
    """The whole command, with fewer trials and without its slowest parts."""
    few = make_trials
    monkeypatch.setattr(
        benchmark, "make_trials", lambda mesh, count, **more: few(mesh, min(count, 10), **more)
    )
    monkeypatch.setattr(benchmark, "vehicle_model", lambda: sedan)
    monkeypatch.setattr(benchmark, "benchmark_mesh", lambda faces: sedan.mesh)
    monkeypatch.setattr(benchmark, "reference_ms", lambda: 10.0)
    monkeypatch.setattr(benchmark, "cold_start", lambda: {"full caches: ready s": 1.0})
    report = benchmark.run_benchmark(tmp_path / "bench.json", "cpu", quick=True)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written.keys() == report.keys()
    assert written["single"].keys() >= {
        "median_ms",
        "median_rotation_error_deg",
        "share_under_5deg",
    }
    assert written["batch_10x4_ms"] > 0 and written["reference_ms"] == 10.0
    assert not list(tmp_path.glob("*.part"))
