# SPDX-License-Identifier: Apache-2.0
"""Test views of vehicles, estimates of their poses, and how good those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.vehicles.collection import Vehicle
from pose_refiner_ros.datasets.vehicles.views import PaperCamera, silhouettes
from pose_refiner_ros.encoder.inference import Estimate, PoseEncoder
from pose_refiner_ros.evaluation.metrics import iou, pose_errors
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.refinement.observation import Observation, ObservationError, observe_mask
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

LENS = PaperCamera()
PIXELS = LENS.size
PI_6 = 30.0  # degrees
LABEL = 1  # of the one object in each view
_ASKED_AT_ONCE = 64
# Where the generator and ShapeNet's taxonomy put it.
RIGHT_CLASSES = {"hatchback": ("sedan",)}


def paper_camera() -> Camera:
    """The camera that takes all views."""
    fx, fy, cx, cy = LENS.pinhole
    return Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), (PIXELS, PIXELS))


@dataclass(frozen=True, eq=False)
class View:
    """A vehicle, where it truly is (4, 4), and its whole silhouette (H, W) uint8 0/1."""

    vehicle: Vehicle
    truth: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Start:
    """A view, and what the encoder says of it."""

    view: View
    observation: Observation
    estimate: Estimate

    @property
    def pose(self) -> np.ndarray:
        """(4, 4) the encoder's likeliest pose."""
        return self.estimate.hypotheses[0].camera_from_object


@dataclass(frozen=True, eq=False)
class Attempt:
    """An estimate. name: its class; mesh: what it is drawn with; camera_from_object: None where no
    pose was found."""

    name: str | None
    mesh: Mesh
    camera_from_object: np.ndarray | None
    ms: float | None = None


def draw_views(vehicles: Sequence[Vehicle], count: int, rng: np.random.Generator) -> list[View]:
    """`count` views by the paper's camera, of each vehicle as many (or one more)."""
    vehicles = list(vehicles)
    index = np.arange(count) % len(vehicles)
    cameras = LENS.sample(count, rng)
    batch = MeshBatch([vehicle.mesh for vehicle in vehicles])
    masks = silhouettes(batch, index, cameras.camera_from_object, cameras.pinhole, PIXELS)
    return [
        View(vehicles[i], pose, mask)
        for i, pose, mask in zip(index, cameras.camera_from_object, masks, strict=True)
    ]


def mixed(vehicles: Sequence[Vehicle], rng: np.random.Generator) -> list[Vehicle]:
    """The vehicles in a random order in which clusters take turns, so that the first few are a
    fair sample."""
    clusters: dict[str, list[Vehicle]] = {}
    for place in rng.permutation(len(vehicles)):
        clusters.setdefault(vehicles[place].cluster, []).append(vehicles[place])
    turns = [
        ((turn + 0.5) / len(own), name, vehicle)
        for name, own in clusters.items()
        for turn, vehicle in enumerate(own)
    ]
    return [vehicle for _, _, vehicle in sorted(turns, key=lambda entry: entry[:2])]


def look(views: Sequence[View], encoder: PoseEncoder) -> list[Start | None]:
    """Ask the encoder about every view; None for one whose mask says nothing."""
    camera, seen = paper_camera(), []
    for view in views:
        try:
            seen.append(observe_mask(view.mask, LABEL, camera))
        except ObservationError:
            seen.append(None)
    usable = [i for i, observation in enumerate(seen) if observation is not None]
    starts: list[Start | None] = [None] * len(views)
    for first in range(0, len(usable), _ASKED_AT_ONCE):
        part = usable[first : first + _ASKED_AT_ONCE]
        for i, estimate in zip(part, encoder.estimate([seen[i] for i in part]), strict=True):
            starts[i] = Start(views[i], seen[i], estimate)
    return starts


def is_right(cluster: str, name: str | None) -> bool:
    return name in RIGHT_CLASSES.get(cluster, (cluster,))


def measure(views: Sequence[View], attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """What is right and wrong about each attempt.

    The silhouette of an attempt is drawn with its mesh and compared with the mask in the whole
    image. One without a pose is a miss: 180 degrees off, no overlap, and no translation.
    """
    meshes = list({id(a.mesh): a.mesh for a in attempts}.values())
    place = {id(mesh): i for i, mesh in enumerate(meshes)}
    found = [i for i, a in enumerate(attempts) if a.camera_from_object is not None]
    missed = {"iou": 0.0, "angle_deg": 180.0, "translation_m": None}
    rows = [
        {"right": is_right(view.vehicle.cluster, a.name), **missed, "ms": a.ms}
        for view, a in zip(views, attempts, strict=True)
    ]
    if not found:
        return rows
    poses = np.stack([attempts[i].camera_from_object for i in found])
    index = np.array([place[id(attempts[i].mesh)] for i in found])
    drawn = silhouettes(MeshBatch(meshes), index, poses, LENS.pinhole, PIXELS)
    overlap = iou(drawn, np.stack([views[i].mask for i in found]))
    angle, shift = pose_errors(poses, np.stack([views[i].truth for i in found]))
    for k, i in enumerate(found):
        rows[i] |= {
            "iou": float(overlap[k]),
            "angle_deg": float(np.degrees(angle[k])),
            "translation_m": float(shift[k]),
        }
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of many rows: `mve_deg` is eq. 6 of the paper, the median of the geodesic viewpoint
    error; `acc_pi_6` the share of views where it is below 30 degrees."""
    angle = np.array([row["angle_deg"] for row in rows])
    shift = [row["translation_m"] for row in rows if row["translation_m"] is not None]
    ms = [row["ms"] for row in rows if row["ms"] is not None]
    return {
        "n": len(rows),
        "failed": len(rows) - len(shift),
        "accuracy": float(np.mean([row["right"] for row in rows])),
        "miou": float(np.mean([row["iou"] for row in rows])),
        "mve_deg": float(np.median(angle)),
        "acc_pi_6": float(np.mean(angle < PI_6)),
        "median_translation_error_m": float(np.median(shift)) if shift else None,
        "ms_per_object": float(np.median(ms)) if ms else None,
    }
