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
from .report import Tick

ROWS = {  # of table 1 -> Settings.refinement
    "encoder": "none",
    "gradient_pose": "gradient_pose",
    "gradient_encoder": "gradient_encoder",
    "solver": "solver",
}
# Where the generator and ShapeNet's taxonomy put it.
RIGHT_CLASSES = {"hatchback": ("sedan",)}


@dataclass(frozen=True, eq=False)
class Tools:
    """What all blocks need. medoids: class of the encoder -> the model that stands for it."""

    encoder: PoseEncoder
    medoids: dict[str, ObjectModel]
    device: str = "cpu"


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


def is_right(cluster: str, name: str | None) -> bool:
    return name in RIGHT_CLASSES.get(cluster, (cluster,))


# Table 1


def table1_medoid(
    tools: Tools, views: Sequence[View], counts: dict[str, int], euler: Encoder | None, tick: Tick
) -> dict[str, Any]:
    """Rows of table 1 with the medoid of the class that the encoder gave.

    counts: row -> how many of the views; the rows beyond `ROWS` are `solver_no_prior`, which trusts
    the medoid's outline alone, and `encoder_euler_cosine`, the paper's head (`euler`).
    """
    rows = {}
    for row, refinement in {**ROWS, "solver_no_prior": "solver"}.items():
        library = tools.medoids
        if row == "solver_no_prior":
            library = {k: replace(m, exact_shape=True) for k, m in library.items()}
        some = views[: counts[row]]
        pipeline = Pipeline(library, Settings(refinement=refinement), tools.device, tools.encoder)
        attempts = _processed(pipeline, some, None, tick)
        rows[row] = summary(measure(some, attempts, is_right))
    if euler is not None:
        some = views[: counts["encoder"]]
        meshes = {cluster: model.mesh for cluster, model in tools.medoids.items()}
        attempts = _by_network(euler, some, lambda view, name: meshes[name], tick)
        rows["encoder_euler_cosine"] = summary(measure(some, attempts))
    return rows


def table1_true_mesh(
    tools: Tools, views: Sequence[View], counts: dict[str, int], euler: Encoder | None, tick: Tick
) -> dict[str, Any]:
    """The same with every vehicle's own mesh, whatever class the encoder gave."""
    views = sorted(views, key=lambda view: view.vehicle.name)
    rows = {}
    for row, refinement in ROWS.items():
        some = _spread(views, counts[row])
        attempts = true_mesh_attempts(tools, some, refinement, tick)
        rows[row] = summary(measure(some, attempts, is_right))
    if euler is not None:
        some = _spread(views, counts["encoder"])
        attempts = _by_network(euler, some, lambda view, name: view.vehicle.mesh, tick)
        rows["encoder_euler_cosine"] = summary(measure(some, attempts))
    return rows


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
        library = {vehicle.name: true_model(vehicle, category)}
        pipeline = Pipeline(library, Settings(refinement=refinement), tools.device, tools.encoder)
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
    tools: Tools, vehicles: Sequence[Vehicle], count: int, rng: np.random.Generator, tick: Tick
) -> dict[str, Any]:
    """Class by the encoder, pose by the pipeline with the solver: with the medoids of the library,
    and with each vehicle's own mesh."""
    result: dict[str, Any] = {
        "views_each": count,
        "rule": "a hatchback is a sedan here, as in the generator and in ShapeNet's taxonomy",
        "per_vehicle": {},
    }
    all_rows: dict[str, list] = {"encoder": [], "medoid": [], "true_mesh": []}
    for vehicle in vehicles:
        views = draw_views([vehicle], count, rng)
        attempts = {}
        for key, refinement in (("encoder", "none"), ("medoid", "solver")):
            pipeline = Pipeline(
                tools.medoids, Settings(refinement=refinement), tools.device, tools.encoder
            )
            attempts[key] = _processed(pipeline, views, None, tick)
        attempts["true_mesh"] = true_mesh_attempts(tools, views, "solver", tick)
        named = [attempt.name for attempt in attempts["medoid"]]
        entry: dict[str, Any] = {
            "class": vehicle.cluster,
            "named": {name: named.count(name) for name in sorted({n for n in named if n})},
        }
        for key, found in attempts.items():
            rows = measure(views, found, is_right)
            all_rows[key] += rows
            entry[key] = summary(rows)
        result["per_vehicle"][vehicle.name] = entry
    result["total"] = {key: summary(rows) for key, rows in all_rows.items()}
    return result
