# SPDX-License-Identifier: Apache-2.0
"""Table 1 of Palazzi et al. 2018 through the whole pipeline, and the same on other vehicles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from pose_refiner_ros.datasets.vehicles.collection import Vehicle
from pose_refiner_ros.encoder.inference import PoseEncoder
from pose_refiner_ros.encoder.network import Encoder
from pose_refiner_ros.encoder.window import mask_window, window_at
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline, Settings
from pose_refiner_ros.torch_threads import one_thread

from .palazzi_views import (
    LABEL,
    LENS,
    PIXELS,
    Attempt,
    View,
    draw_views,
    look,
    measure,
    paper_camera,
    summary,
)
from .report import Progress, Tick, counted, silent

ROWS = {  # of table 1 -> Settings.refinement
    "encoder": "none",
    "gradient_pose": "gradient_pose",
    "gradient_encoder": "gradient_encoder",
    "solver": "solver",
}


@dataclass(frozen=True, eq=False)
class Tools:
    """What all blocks need. medoids: class of the encoder -> the model that stands for it."""

    encoder: PoseEncoder
    medoids: dict[str, ObjectModel]
    device: str = "cpu"
    progress: Progress = silent

    def pipeline(self, refinement: str, library: dict[str, ObjectModel] | None = None) -> Pipeline:
        """Of the medoids, or other models."""
        settings = Settings(refinement=refinement)
        return Pipeline(library or self.medoids, settings, self.device, self.encoder)


def medoid_models(medoids: dict[str, Vehicle]) -> dict[str, ObjectModel]:
    """Cluster -> a model that stands for all of the cluster."""
    return {
        cluster: replace(true_model(vehicle, cluster), name=cluster, exact_shape=False)
        for cluster, vehicle in medoids.items()
    }


def true_model(vehicle: Vehicle, category: str | None = None) -> ObjectModel:
    """A vehicle's own mesh as an object of a library."""
    return ObjectModel(
        name=vehicle.name,
        mesh=vehicle.mesh,
        silhouette_mesh=simplify_for_silhouette(vehicle.mesh, warn=lambda text: None),
        category=category,
        exact_shape=True,
    )


# Table 1


def table1(
    tools: Tools, views: Sequence[View], gradient: int, euler: Encoder | None, true_mesh: bool
) -> dict[str, Any]:
    """Rows of table 1 with the medoid of the class that the encoder gave, or with every vehicle's
    own mesh, whatever the class.

    gradient: of so many views are all rows but those of the encoder and the solver. The rows beyond
    `ROWS` are `solver_no_prior`, which trusts the medoid's outline alone, and
    `encoder_euler_cosine`, the paper's head (`euler`).
    """
    rows = dict(ROWS)
    if true_mesh:
        views = sorted(views, key=lambda view: view.vehicle.name)
        few = _spread(views, gradient)
    else:
        rows["solver_no_prior"] = "solver"
        few = views[:gradient]
    seen = {row: views if row in ("encoder", "solver") else few for row in rows}
    total = sum(map(len, seen.values())) + (0 if euler is None else len(views))
    tick = counted(tools.progress, f"Table 1, {'true meshes' if true_mesh else 'medoids'}", total)
    found = {}
    for row, refinement in rows.items():
        if true_mesh:
            attempts = true_mesh_attempts(tools, seen[row], refinement, tick)
        else:
            library = tools.medoids
            if row == "solver_no_prior":
                library = {k: replace(m, exact_shape=True) for k, m in library.items()}
            attempts = _processed(tools.pipeline(refinement, library), seen[row], None, tick)
        found[row] = summary(measure(seen[row], attempts))
    if euler is not None:

        def mesh_of(view: View, name: str) -> Mesh:
            return view.vehicle.mesh if true_mesh else tools.medoids[name].mesh

        attempts = _by_network(euler, views, mesh_of, tick)
        found["encoder_euler_cosine"] = summary(measure(views, attempts))
    return found


def true_mesh_attempts(
    tools: Tools, views: Sequence[View], refinement: str, tick: Tick
) -> list[Attempt]:
    """Poses from the pipeline that knows each vehicle's own mesh; classes from the encoder. Views
    of a vehicle lie behind one another."""
    attempts: list[Attempt] = []
    for _, group in groupby(views, key=lambda view: view.vehicle.name):
        own = list(group)
        vehicle = own[0].vehicle
        # its category only says that the encoder may be asked for poses: it knows all as vehicles
        known = vehicle.cluster in tools.encoder.classes
        category = vehicle.cluster if known else tools.encoder.classes[0]
        pipeline = tools.pipeline(refinement, {vehicle.name: true_model(vehicle, category)})
        found = _processed(pipeline, own, vehicle.name, tick)
        for start, attempt in zip(look(own, tools.encoder), found, strict=True):
            attempts.append(replace(attempt, name=start and start.estimate.best_class))
    return attempts


def _processed(
    pipeline: Pipeline, views: Sequence[View], name: str | None, tick: Tick
) -> list[Attempt]:
    """Each view as a frame of its own; timed after one that is not. name: None = unknown."""
    camera, attempts = paper_camera(), []
    for i, view in enumerate(views):
        frame = Frame(view.mask, camera, {LABEL: name})
        if i == 0:
            pipeline.process(frame, lambda label, text: None)
        began = time.perf_counter()
        poses = pipeline.process(frame, lambda label, text: None)
        ms = 1e3 * (time.perf_counter() - began)
        if poses:
            mesh = pipeline.library[poses[0].name].mesh
            attempts.append(Attempt(poses[0].name, mesh, poses[0].camera_from_object, ms))
        else:
            attempts.append(Attempt(None, next(iter(pipeline.library.values())).mesh, None, ms))
        tick()
    return attempts


def _by_network(
    network: Encoder, views: Sequence[View], mesh_of: Callable, tick: Tick
) -> list[Attempt]:
    """Class and likeliest pose straight from a network: one that looks at the whole photo cannot be
    used in the pipeline, as it knows one camera only."""
    settings, attempts = network.settings, []
    for view in views:
        began = time.perf_counter()
        if settings.window == "image":
            window, pinhole = window_at(view.mask, None, LENS.pinhole, settings.size, 0, 0, PIXELS)
        else:
            window, pinhole = mask_window(view.mask, None, LENS.pinhole, settings.size)
        with torch.inference_mode(), one_thread():
            found = network(
                torch.from_numpy(window)[None], torch.from_numpy(pinhole.astype(np.float32))[None]
            )
        name = settings.classes[int(found.class_logits[0].argmax())]
        best = int(found.poses.logits[0].argmax())
        pose = found.poses.camera_from_object[0, best].double().numpy()
        ms = 1e3 * (time.perf_counter() - began)
        attempts.append(Attempt(name, mesh_of(view, name), pose, ms))
        tick()
    return attempts


def _spread(views: Sequence[View], count: int) -> list[View]:
    """`count` of the views, evenly over all."""
    count = min(count, len(views))
    return [views[i] for i in np.linspace(0, len(views) - 1, count).round().astype(int)]


# Vehicles that the encoder has never seen the like of


def foreign_vehicles(
    tools: Tools, vehicles: Sequence[Vehicle], count: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Class by the encoder, pose by the pipeline with the solver: with the medoids of the library,
    and with each vehicle's own mesh."""
    result: dict[str, Any] = {
        "views_each": count,
        "rule": "a hatchback is a sedan here, as in the generator and in ShapeNet's taxonomy",
        "per_vehicle": {},
    }
    all_rows: dict[str, list] = {"encoder": [], "medoid": [], "true_mesh": []}
    tick = counted(tools.progress, "Vehicles from elsewhere", 3 * count * len(vehicles))
    for vehicle in vehicles:
        views = draw_views([vehicle], count, rng)
        attempts = {
            "encoder": _processed(tools.pipeline("none"), views, None, tick),
            "medoid": _processed(tools.pipeline("solver"), views, None, tick),
            "true_mesh": true_mesh_attempts(tools, views, "solver", tick),
        }
        named = [attempt.name for attempt in attempts["medoid"]]
        entry: dict[str, Any] = {
            "class": vehicle.cluster,
            "named": {name: named.count(name) for name in sorted({n for n in named if n})},
        }
        for key, found in attempts.items():
            rows = measure(views, found)
            all_rows[key] += rows
            entry[key] = summary(rows)
        result["per_vehicle"][vehicle.name] = entry
    result["total"] = {key: summary(rows) for key, rows in all_rows.items()}
    return result
