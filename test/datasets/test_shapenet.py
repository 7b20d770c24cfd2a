# SPDX-License-Identifier: Apache-2.0
"""Reading ShapeNetCore, on a folder in its layout that the test writes."""

import numpy as np
import pytest

from pose_refiner_ros.datasets.vehicles.collection import CollectionError
from pose_refiner_ros.datasets.vehicles.shapenet import load_shapenet

SYNSET = "02958343"
SIZE = np.array([0.2, 0.15, 0.5])  # of a model in its file: x is width, y height, z length


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))


def wedge(size=SIZE) -> str:
    """A car as ShapeNet has it: y up, and the pointed hood towards -z."""
    x, y, z = size / 2
    corners = [(-x, -y, -z), (x, -y, -z), (x, -y, z), (-x, -y, z), (-x, y, z), (x, y, z)]
    faces = [(1, 2, 3), (1, 3, 4), (4, 3, 6), (4, 6, 5), (1, 5, 6), (1, 6, 2), (1, 4, 5), (2, 6, 3)]
    return "".join(f"v {a:.4f} {b:.4f} {c:.4f}\n" for a, b, c in corners) + "".join(
        f"f {a} {b} {c}\n" for a, b, c in faces
    )


def put(folder, model, text):
    path = folder / SYNSET / model / "models" / "model_normalized.obj"
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.fixture
def shapenet(tmp_path):
    """Twelve cars and four that cannot be used."""
    folder = tmp_path / "ShapeNetCore.v2"
    for i in range(12):
        put(folder, f"car{i:02d}", wedge(SIZE * [1, 1 + 0.05 * i, 1]))
    put(folder, "points", "v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    put(folder, "nan", wedge().replace("0.1000", "nan"))
    (folder / SYNSET / "empty").mkdir()
    put(folder, "racer", wedge())
    return folder


SUBSYNSETS = ["04166281", "04285965", "03770679"]
CLUSTERS = ["sedan", "suv", "cargo"]


def write_all_csv(folder):
    rows = [f"{i},{SYNSET},{SUBSYNSETS[i % 3]},car{i:02d},train" for i in range(12)]
    rows += [f"{20 + i},{SYNSET},4166281,{m},val" for i, m in enumerate(("points", "nan", "empty"))]
    rows += [f"30,{SYNSET},04037443,racer,test"]
    text = "id,synsetId,subSynsetId,modelId,split\n" + "\n".join(rows) + "\n"
    (folder / "all.csv").write_text(text)


def test_models_are_turned_scaled_and_put_on_the_ground(shapenet):
    write_all_csv(shapenet)
    car = load_shapenet(shapenet).vehicles[0]
    assert (car.name, car.cluster, car.parts) == ("car00", "sedan", None)
    low, high = car.mesh.bounds
    np.testing.assert_allclose(high - low, SIZE[[2, 0, 1]] * 12, rtol=1e-5)  # longest side 6
    np.testing.assert_allclose([low[0] + high[0], low[1] + high[1], low[2]], 0, atol=1e-5)
    front = car.mesh.vertices[car.mesh.vertices[:, 0] > 2.9]
    assert front[:, 2].max() < 1e-5  # the hood, low, lies in +x
    # a point on the model's right (+x in the file, seen with y up and looking to -z) is at -y
    a, b, c = (car.mesh.vertices[car.mesh.faces[:, k]].astype(float) for k in range(3))
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() > 0  # not mirrored: faces still outward


def test_clusters_come_from_all_csv(shapenet):
    write_all_csv(shapenet)
    seen = []
    collection = load_shapenet(shapenet, progress=lambda done, total: seen.append((done, total)))
    assert {v.name: v.cluster for v in collection.vehicles} == {
        f"car{i:02d}": CLUSTERS[i % 3] for i in range(12)
    }
    assert seen[-1] == (16, 16)
    assert set(collection.skipped) == {"points", "nan", "empty", "racer"}
    assert "no faces" in collection.skipped["points"]
    assert "NaN" in collection.skipped["nan"]
    assert "model_normalized.obj is missing" in collection.skipped["empty"]
    assert "none of the clusters" in collection.skipped["racer"]
    assert sum(len(collection.split(s)) for s in ("train", "val", "test")) == 9
    assert load_shapenet(shapenet / SYNSET).vehicles[3].name == "car03"  # the synset's folder


def test_clusters_come_from_words_of_the_metadata(shapenet):
    (shapenet / f"{SYNSET}.csv").write_text(
        "fullId,category,wnsynset,wnlemmas,up,front\n"
        '3dw.car00,Car,n02958343,"car,auto,automobile,machine,motorcar,sedan,saloon",,\n'
        '3dw.car01,Car,n02958343,"sport utility,sport utility vehicle,S.U.V.,SUV",,\n'
        '3dw.car02,Car,"n02958343,n03770679",car,,\n'
        '3dw.car03,Car,n02958343,"car,minivan,sedan",,\n'  # of two clusters: of none
    )
    collection = load_shapenet(shapenet)
    assert {v.name: v.cluster for v in collection.vehicles} == {
        "car00": "sedan", "car01": "suv", "car02": "cargo"
    }  # fmt: skip


def test_clusters_come_from_the_user(shapenet, tmp_path):
    write_all_csv(shapenet)
    path = tmp_path / "mine.csv"
    path.write_text("model,cluster\ncar05,Cargo\ncar06,\n")
    assert [(v.name, v.cluster) for v in load_shapenet(shapenet, path).vehicles] == [
        ("car05", "cargo")
    ]
    path.write_text("model,cluster\ncar05,cargo\ncar06,boat\n")
    with pytest.raises(CollectionError, match=r"line 3: cluster 'boat' is none of sedan, suv"):
        load_shapenet(shapenet, path)
    path.write_text("car,kind\n")
    with pytest.raises(CollectionError, match="has the columns car, kind: needed are model and"):
        load_shapenet(shapenet, path)


def test_what_is_wrong_with_the_folder_is_said(shapenet, tmp_path):
    with pytest.raises(CollectionError, match="nothing says which of the cars"):
        load_shapenet(shapenet)
    with pytest.raises(CollectionError, match="nowhere does not exist"):
        load_shapenet(tmp_path / "nowhere")
    with pytest.raises(CollectionError, match="has no 02958343/"):
        load_shapenet(tmp_path)
    with pytest.raises(CollectionError, match="file of clusters"):
        load_shapenet(shapenet, tmp_path / "no.csv")
    (shapenet / "clusters.csv").write_text("model,cluster\npoints,suv\n")
    with pytest.raises(CollectionError, match="none of 16 models can be used"):
        load_shapenet(shapenet)


def test_large_meshes_are_simplified(shapenet):
    import trimesh

    sphere = trimesh.creation.icosphere(4)
    put(shapenet, "sphere", trimesh.exchange.obj.export_obj(sphere))
    (shapenet / "clusters.csv").write_text("model,cluster\nsphere,suv\n")
    (vehicle,) = load_shapenet(shapenet, max_faces=1000).vehicles
    assert 500 < len(vehicle.mesh.faces) < 1100
