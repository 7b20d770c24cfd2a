# SPDX-License-Identifier: Apache-2.0
"""Cars of a user's copy of ShapeNetCore v2 (synset 02958343), the source of Palazzi et al. 2018.

Nothing is downloaded: get the data set from https://shapenet.org under its terms. The layout is

    DIR/02958343/<model id>/models/model_normalized.obj

ShapeNetCore v2 aligns its models with y up and the front towards -z. Its folders do not say which
car is a sedan; one of these files has to, in this order:

    the file given as `clusters`         a CSV with the columns model and cluster
    clusters.csv                         the same, beside the models or their synset's folder
    all.csv                              of ShapeNetCore's split; has the sub-synset of each model
    02958343.csv, metadata.csv           ShapeNet's metadata: fullId, wnsynset, wnlemmas
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.objects.mesh import Mesh, MeshError, load_mesh
from pose_refiner_ros.objects.simplify import collapse_edges

from .collection import CLUSTERS, Collection, CollectionError, Vehicle

SYNSET = "02958343"
LONGEST_SIDE = 6.0  # the paper's scale
MAX_FACES = 10_000  # ShapeNet's cars have up to a million; what is finer than a pixel is left out
VERSION = 1  # of the meshes kept on disk

# WordNet 3.0 synsets whose bodies are of one of the clusters. The others that ShapeNet has below
# "car" (sports cars, convertibles, station wagons, limousines, racers ...) belong to none.
CLUSTER_OF_SYNSET = {
    "04166281": "sedan",  # sedan, saloon
    "02930766": "sedan",  # cab, taxi
    "03141065": "sedan",  # police cruiser
    "03881534": "sedan",  # panda car
    "03119396": "sedan",  # coupe
    "03498781": "sedan",  # hatchback
    "04285965": "suv",  # sport utility vehicle
    "03594945": "suv",  # jeep, landrover
    "03770679": "cargo",  # minivan
    "02701002": "cargo",  # ambulance
    "03930630": "cargo",  # pickup truck
    "04520170": "cargo",  # van
    "04490091": "cargo",  # truck
}
CLUSTER_OF_WORD = {
    "sedan": "sedan", "saloon": "sedan", "cab": "sedan", "taxi": "sedan", "police car": "sedan",
    "coupe": "sedan", "hatchback": "sedan",
    "sport utility": "suv", "suv": "suv", "s.u.v.": "suv", "jeep": "suv", "landrover": "suv",
    "pickup": "cargo", "pickup truck": "cargo", "van": "cargo", "minivan": "cargo",
    "truck": "cargo", "ambulance": "cargo", "delivery truck": "cargo", "cargo": "cargo",
}  # fmt: skip

# object_from_shapenet: x forward is -z there, y left is -x, z up is y
ROTATION = np.array([[0.0, 0.0, -1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def load_shapenet(
    folder: str | Path,
    clusters: str | Path | None = None,
    seed: int = 0,
    longest_side: float = LONGEST_SIDE,
    max_faces: int = MAX_FACES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Collection:
    """The cars of a copy of ShapeNetCore v2 as a collection.

    Each is turned to x forward, y left, z up, scaled so that the longest side of its box is
    `longest_side`, and put on the ground below its box's centre. Meshes of more than `max_faces`
    faces are simplified. The result is kept on disk per model.

    Args:
        folder: holds 02958343/, or is it.
        clusters: CSV with the columns model and cluster; see the top of the module.
        seed: of the splits.
        progress: called with how many models are loaded, and of how many.

    Returns:
        A collection whose `skipped` names each model that was left out, and why: no cluster, or a
        file that is missing, has no faces, or has NaN in it.

    Raises:
        CollectionError: not such a folder, no file that tells the clusters, or no usable model.
    """
    folder = _synset_folder(Path(folder).expanduser())
    models = sorted(path for path in folder.iterdir() if path.is_dir())
    if not models:
        raise CollectionError(f"{folder} has no models (folders with models/model_normalized.obj)")
    source, cluster_of = _read_clusters(folder, clusters)
    vehicles, skipped = [], {}
    for done, model in enumerate(models, start=1):
        cluster = cluster_of.get(model.name)
        if cluster is None:
            skipped[model.name] = f"{source.name} gives it none of the clusters"
        else:
            try:
                mesh = _load(model / "models" / "model_normalized.obj", longest_side, max_faces)
                vehicles.append(Vehicle(model.name, cluster, mesh))
            except MeshError as error:
                skipped[model.name] = str(error)
        progress(done, len(models))
    if not vehicles:
        name, reason = next(iter(skipped.items()))
        raise CollectionError(
            f"{folder}: none of {len(models)} models can be used; the first, {name}: {reason}"
        )
    return Collection(vehicles, f"ShapeNetCore, {len(vehicles)} models", seed, skipped)


def aligned(mesh: Mesh, longest_side: float = LONGEST_SIDE) -> Mesh:
    """A ShapeNet mesh turned to x forward and z up, scaled, and put on the ground."""
    points = mesh.vertices.astype(np.float64) @ ROTATION.T
    used = points[mesh.used_vertices]
    low, high = used.min(0), used.max(0)
    origin = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]]
    return Mesh((points - origin) * (longest_side / (high - low).max()), mesh.faces)


def _synset_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise CollectionError(f"ShapeNet folder {folder} does not exist")
    if (folder / SYNSET).is_dir():
        return folder / SYNSET
    if folder.name == SYNSET or any(folder.glob("*/models/model_normalized.obj")):
        return folder
    raise CollectionError(
        f"{folder} has no {SYNSET}/ (the cars of ShapeNetCore v2): give the folder that holds it"
    )


def _load(path: Path, longest_side: float, max_faces: int) -> Mesh:
    if not path.is_file():
        raise MeshError(f"{path} is missing")
    info = path.stat()

    def build():
        mesh = load_mesh(path, "m", warn=lambda text: None)  # its scale is made up: no warning
        if len(mesh.faces) > max_faces:
            mesh = collapse_edges(mesh, max_faces)
        return {"vertices": mesh.vertices, "faces": mesh.faces}

    key = cache_key(VERSION, str(path.resolve()), info.st_size, info.st_mtime_ns, max_faces)
    kept = cached_arrays("shapenet", key, build)
    return aligned(Mesh(kept["vertices"], kept["faces"]), longest_side)


def _read_clusters(folder: Path, given: str | Path | None) -> tuple[Path, dict[str, str]]:
    """The file that tells the clusters, and model -> cluster."""
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise CollectionError(f"the file of clusters {path} does not exist")
        return path, _from_csv(path)
    names = ("clusters.csv", "all.csv", f"{SYNSET}.csv", "metadata.csv")
    for name in names:
        for place in (folder, folder.parent):
            if (place / name).is_file():
                return place / name, _from_csv(place / name)
    raise CollectionError(
        f"nothing says which of the cars in {folder} is a sedan, SUV or cargo: put ShapeNetCore's "
        "all.csv there, or a clusters.csv with the columns model and cluster (sedan, suv, cargo)"
    )


def _from_csv(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.DictReader(file)
        columns = set(rows.fieldnames or ())
        if {"model", "cluster"} <= columns:
            return _checked(path, ((row["model"], row["cluster"]) for row in rows))
        if {"modelId", "subSynsetId"} <= columns:
            return _known((row["modelId"], row["subSynsetId"], "") for row in rows)
        if "fullId" in columns and columns & {"wnsynset", "wnlemmas"}:
            return _known(
                (row["fullId"], row.get("wnsynset") or "", row.get("wnlemmas") or "")
                for row in rows
            )
    raise CollectionError(
        f"{path} has the columns {', '.join(sorted(columns)) or '(none)'}: needed are model and "
        "cluster, or modelId and subSynsetId, or fullId and wnsynset or wnlemmas"
    )


def _checked(path: Path, rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    found = {}
    for line, (model, cluster) in enumerate(rows, start=2):
        name = (cluster or "").strip().lower()
        if name and name not in CLUSTERS:
            raise CollectionError(
                f"{path}, line {line}: cluster {cluster!r} is none of {', '.join(CLUSTERS)}"
            )
        if name:
            found[(model or "").strip()] = name
    return found


def _known(rows: Iterable[tuple[str | None, str | None, str]]) -> dict[str, str]:
    """Clusters from (model, synsets, lemmas); a model of two clusters belongs to neither."""
    found = {}
    for model, synsets, lemmas in rows:
        numbers = [n.zfill(8) for n in re.findall(r"\d+", synsets or "")]
        words = [word.strip().lower() for word in lemmas.split(",")]
        clusters = {CLUSTER_OF_SYNSET[n] for n in numbers if n in CLUSTER_OF_SYNSET}
        clusters |= {CLUSTER_OF_WORD[w] for w in words if w in CLUSTER_OF_WORD}
        if len(clusters) == 1:
            # ShapeNet's search writes 3dw.<model id>
            found[(model or "").strip().rpartition(".")[2]] = clusters.pop()
    return found
