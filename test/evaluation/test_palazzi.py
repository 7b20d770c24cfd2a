# SPDX-License-Identifier: Apache-2.0
import json

import cv2
import numpy as np
import pytest
import torch
import trimesh
from shapes import turned
from typer.testing import CliRunner

from pose_refiner_ros.baselines.gradient_refiner import GradientRefiner
from pose_refiner_ros.cli import app
from pose_refiner_ros.datasets.vehicles import KINDS
from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS, Collection, Vehicle
from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder, PoseHypothesis
from pose_refiner_ros.encoder.network import Encoder, EncoderSettings
from pose_refiner_ros.encoder.weights import save_encoder
from pose_refiner_ros.evaluation import palazzi, palazzi_bench, palazzi_blocks, palazzi_views
from pose_refiner_ros.evaluation.palazzi import PalazziCounts, run_palazzi
from pose_refiner_ros.evaluation.palazzi_tables import markdown
from pose_refiner_ros.evaluation.report import EvaluationError
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.refinement.observation import observe_mask

TINY = PalazziCounts(
    views=3, gradient=1, true_vehicles=2, true_views=2, true_gradient=1, table2=1, speed=1,
    repeats=1, foreign=1,
)  # fmt: skip
FIGURES = {
    "n", "accuracy", "miou", "mve_deg", "acc_pi_6", "median_translation_error_m", "ms_per_object",
}  # fmt: skip
ROWS = {"encoder", "gradient_pose", "gradient_encoder", "solver", "encoder_euler_cosine"}


def blocky(name: str, cluster: str, length: float) -> Vehicle:
    """A body and a cabin towards the rear: few faces, and no two sides alike."""
    height = {"sedan": 0.7, "suv": 0.9, "cargo": 1.2}.get(cluster, 0.8)
    body = trimesh.creation.box((length, 1.8, height)).apply_translation((0, 0, height / 2))
    cabin = trimesh.creation.box((length / 3, 1.6, height * 0.8))
    cabin.apply_translation((-length / 4, 0, height * 1.4))
    mesh = trimesh.util.concatenate([body, cabin])
    return Vehicle(name, cluster, Mesh(mesh.vertices, mesh.faces))


@pytest.fixture(scope="module")
def collection():
    vehicles = [
        blocky(f"{cluster}_{i}", cluster, 4.2 + 0.1 * i) for cluster in CLUSTERS for i in range(5)
    ]
    return Collection(vehicles, "blocks")


def network(head="continuous", window="crop") -> Encoder:
    torch.manual_seed(0)
    settings = EncoderSettings(CLUSTERS, head, "mask", window, 32, (4, 4, 8, 8, 8), 16)
    return Encoder(settings).eval()


@pytest.fixture(scope="module")
def results(collection, tmp_path_factory):
    """Everything, run once with networks that have learned nothing, and few gradient steps."""
    folder, told = tmp_path_factory.mktemp("palazzi"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientRefiner.__init__, "__defaults__", (64, 3, "cpu"))
        report = run_palazzi(
            folder, collection, PoseEncoder(network(), {"steps": 0}),
            network("euler_cosine", "image"), [blocky("stranger", "hatchback", 4.0)], TINY,
            progress=lambda *step: told.append(step),
        )  # fmt: skip
    return folder, report, told


def test_every_block_is_measured_and_written(results):
    folder, report, told = results
    written = json.loads((folder / "palazzi.json").read_text())
    assert written["table1"] == json.loads(json.dumps(report["table1"]))
    for block, more in (("medoid", {"solver_no_prior"}), ("true_mesh", set())):
        assert set(written["table1"][block]) == ROWS | more
        assert all(set(row) >= FIGURES for row in written["table1"][block].values())
    assert written["table1"]["medoid"]["encoder"]["n"] == 3
    assert written["table1"]["true_mesh"]["gradient_pose"]["n"] == 1
    for kind in ("medoid", "true_mesh"):
        for method in ("soft_rasterizer", "solver"):
            assert list(written["table2"][kind][method]) == ["16", "32", "64", "128", "256"]
        assert len(written["figures"]["6a"][kind]["solver"]) == 5
        assert len(written["figures"]["6c"][kind]["gradient_encoder"]) == 4
        assert written["speed"][kind]["speedup_solver_over_30_soft_steps_at_128"] > 0
    assert written["figures"]["6b"]["fast_silhouette_ms"][0] > 0
    assert written["vehicles"]["per_vehicle"]["stranger"]["medoid"]["n"] == 1
    assert written["machine"]["cores"] > 0 and written["seed"] == 0
    assert {t["met"] for t in written["targets"]} <= {True, False} and len(written["targets"]) == 8
    last = {block: (done, total) for block, done, total in told}
    assert all(done == total for done, total in last.values())


def test_plots_and_tables_can_be_read(results):
    folder, report, _ = results
    text = (folder / "palazzi.md").read_text()
    assert text == markdown(report)
    for name in ("palazzi_6a_iou.png", "palazzi_6b_time.png", "palazzi_6c_steps.png"):
        assert f"({name})" in text
        assert cv2.imread(str(folder / name)).std() > 1
    assert "**missed**" in text and "0.89" in text
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def bench(collection):
    """True meshes from starts 8 degrees and some centimetres off."""
    views = palazzi_views.draw_views(collection.split("test"), 3, np.random.default_rng(1))
    camera, starts = palazzi_views.paper_camera(), []
    for view in views:
        pose = turned(view.truth, (0, np.radians(8), 0), (0.1, 0, 0.2))
        guess = PoseHypothesis(pose, 1.0, np.eye(6) * 0.02, 0.05)
        estimate = Estimate({view.vehicle.cluster: 1.0}, [guess])
        seen = observe_mask(view.mask, palazzi_views.LABEL, camera)
        starts.append(palazzi_views.Start(view, seen, estimate))
    medoids = palazzi_blocks.medoid_models(collection.medoids)
    tools = palazzi_blocks.Tools(PoseEncoder(network()), medoids)
    return palazzi_bench.Bench(tools, starts, True)


def test_the_solver_gains_more_at_more_pixels(bench):
    table = palazzi_bench.table2(bench)
    assert table["start"]["mve_deg"] == pytest.approx(8.0, abs=1e-3)
    fine, coarse = table["solver"]["256"], table["solver"]["32"]
    assert fine["viewpoint_gain_deg"] > 7.5 and fine["iou_gain"] > 0.02
    assert fine["translation_gain_m"] > 0.15
    assert fine["miou"] >= coarse["miou"]
    assert table["soft_rasterizer"]["128"]["iou_gain"] > 0


def test_steps_begin_at_the_start_and_end_as_refined(bench):
    curves = palazzi_bench.figure_6c(bench)
    for name in ("gradient_pose", "solver"):
        assert curves[name][0] == pytest.approx(8.0, abs=1e-3)
    assert curves["solver"][-1] < 0.5 < curves["solver"][1]


def test_measure_and_summary(collection):
    vehicles = collection.split("test")[:3]
    views = palazzi_views.draw_views(vehicles, 3, np.random.default_rng(0))
    poses = [views[0].truth, turned(views[1].truth, (0, np.radians(40), 0), (0, 0, 0.5)), None]
    attempts = [
        palazzi_views.Attempt(name, view.vehicle.mesh, pose, 2.0)
        for name, view, pose in zip(("sedan", "sedan", None), views, poses, strict=True)
    ]
    rows = palazzi_views.measure(views, attempts)
    assert [row["right"] for row in rows] == [
        view.vehicle.cluster == a.name for view, a in zip(views, attempts, strict=True)
    ]
    assert rows[0]["iou"] == 1.0 and rows[0]["angle_deg"] == pytest.approx(0.0, abs=1e-4)
    assert rows[1]["angle_deg"] == pytest.approx(40.0) and rows[1]["translation_m"] > 0.49
    assert rows[2] == {
        "right": False, "iou": 0.0, "angle_deg": 180.0, "translation_m": None, "ms": 2.0
    }  # fmt: skip
    found = palazzi_views.summary(rows)
    assert found["n"] == 3 and found["failed"] == 1 and found["mve_deg"] == pytest.approx(40.0)
    assert found["acc_pi_6"] == pytest.approx(1 / 3) and found["ms_per_object"] == 2.0
    assert found["median_translation_error_m"] == pytest.approx(0.25)


def test_a_hatchback_is_a_sedan_as_in_the_generator():
    assert palazzi_views.is_right("hatchback", KINDS["hatchback"].cluster)
    assert not palazzi_views.is_right("hatchback", "suv")
    assert not palazzi_views.is_right("hatchback", "cargo")
    assert not palazzi_views.is_right("sedan", "suv")


def test_clusters_take_turns(collection):
    order = palazzi_views.mixed(collection.vehicles, np.random.default_rng(0))
    assert len({v.name for v in order}) == len(collection.vehicles)
    assert {v.cluster for v in order[:3]} == set(CLUSTERS)


def test_targets_say_what_is_missed():
    row = {"accuracy": 0.94, "mve_deg": 2.0, "acc_pi_6": 0.97, "miou": 0.9}
    rows = {"encoder": row, "solver": row}
    key = "speedup_solver_over_30_soft_steps_at_128"
    report = {"table1": {"medoid": rows, "true_mesh": rows}, "speed": {"medoid": {key: 99.0}}}
    found = palazzi.targets(report, palazzi.TARGETS)
    assert len(found) == len(palazzi.TARGETS)
    met = {entry["from"]: entry["met"] for entry in found}
    assert not met["table1.medoid.encoder.accuracy"] and not met[f"speed.medoid.{key}"]
    assert met["table1.medoid.solver.acc_pi_6"] and met["table1.medoid.solver.mve_deg"]
    assert not met["table1.true_mesh.solver.mve_deg"]


def test_the_collection_must_be_the_one_trained_on(collection):
    models = dict.fromkeys(CLUSTERS, 7)
    record = {"data": {"source": "procedural, 7 per cluster, seed 3", "models": models, "seed": 3}}
    assert palazzi.recorded_collection(record) == (7, 3)
    assert palazzi.recorded_collection({}) == (palazzi.PER_CLUSTER, 0)
    with pytest.raises(EvaluationError, match="another collection"):
        palazzi.check_collection(collection, record)
    models = {"sedan": 3, "suv": 3, "cargo": 1}
    with pytest.raises(EvaluationError, match="not the same"):
        palazzi.check_collection(
            collection, {"data": {"source": "blocks", "training_models": models}}
        )


def test_an_encoder_of_other_classes_is_refused(collection, tmp_path):
    settings = EncoderSettings(("cup", "bowl"), size=32, channels=(4, 4, 8, 8, 8), dense=16)
    with pytest.raises(EvaluationError, match="cup, bowl"):
        run_palazzi(tmp_path, collection, PoseEncoder(Encoder(settings)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("cars: []", "must have a list"),
        ("vehicles: []", "lists no vehicles"),
        ("vehicles: [{name: a, class: boat, file: a.obj}]", "class of a is 'boat'"),
        ("vehicles: [{name: a, class: suv, file: none.obj}]", "none.obj"),
    ],
)
def test_a_folder_of_vehicles_that_is_wrong(tmp_path, text, message):
    if text is not None:
        (tmp_path / "vehicles.yaml").write_text(text)
    with pytest.raises((ValueError, OSError), match=message):
        palazzi.load_foreign(tmp_path)


def test_the_command(results, collection, tmp_path, monkeypatch):
    _, report, _ = results
    asked = []

    def stub(out, of, encoder, euler, foreign, counts, *rest):
        asked.append((out, encoder.encoder.settings.size, counts.views, counts.gradient))
        assert euler.settings.pose_head == "euler_cosine"  # the package's own
        *_, progress, _ = rest
        progress("Vehicles", 0, 2)
        return report

    monkeypatch.setattr(palazzi, "run_palazzi", stub)
    monkeypatch.setattr("pose_refiner_ros.cli.evaluate.collection_of", lambda *args: collection)
    save_encoder(network(), tmp_path / "e.safetensors", {"steps": 0})
    options = ["evaluate", "palazzi", "--out", str(tmp_path), "--device", "cpu", "--encoder"]
    done = CliRunner().invoke(app, [*options, str(tmp_path / "e.safetensors"), "--objects", "50"])
    assert done.exit_code == 0, done.output
    assert asked == [(tmp_path, 32, 50, 50)]
    assert "solver" in done.output and "target missed" in done.output
    done = CliRunner().invoke(app, [*options, str(tmp_path / "none.safetensors")])
    assert done.exit_code == 2 and "do not exist" in " ".join(done.output.split())
