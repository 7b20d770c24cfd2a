# SPDX-License-Identifier: Apache-2.0
"""The protocols of iNeRF's experiments: where refinements start, and when a result is right.

An object (section V-A): the true pose, turned by up to 40° about a random axis and moved by up to
0.2 along each, is refined again; RGB alone, in front of white, no mask. As in the authors' code the
camera is turned about the model's origin and moved along the model's axes. The error of the
translation is the distance between the cameras' positions in the model's frame, since the paper's
poses are those of cameras; that of the model's origin in the camera's frame, the measure of object
poses, is noted beside it.

A scene (section V-B): the camera is turned in its place by up to 40° and moved by up to 0.1 along
each of the scene's axes, in the frame and unit of `inerf_scene.py`. Whether it is right in the unit
of the field itself is noted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_refiner_ros.baselines.photometric_descent import DescentResult
from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.evaluation.inerf_scene import SceneFrame
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.evaluation.report import Counts, EvaluationError
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse, rotated
from pose_refiner_ros.refinement.hypotheses import Hypothesis

TURN = 40.0  # degrees
SHIFT = 0.2  # metres
SCENE_SHIFT = 0.1  # units
RIGHT_DEG, RIGHT_M = 5.0, 0.05  # m, or units of a scene
WHITE = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class InerfCounts(Counts):
    """How much of everything. Photos and starts of each, and steps of Adam.

    adam_views, adam_starts: of the runs that both methods do, of each cell of Fig. 6, and of each
    angle of the basin. mlp_training: steps, where no network is given. table1: photos of Table I,
    by what they are made smaller, and the training of its fields.
    """

    views: int = 8
    starts: int = 10
    adam_views: int = 5
    adam_starts: int = 5
    steps: int = 300
    mlp_runs: int = 8
    mlp_steps: int = 300
    mlp_training: int = 1000
    half_turn_starts: int = 5
    hypotheses: int = 12
    light_starts: int = 2
    light_adam_runs: int = 5
    batch_repeats: int = 5
    most_at_once: int = 100
    table1_photos: int = 100
    table1_factor: int = 2
    table1_steps: int = 300
    table1_rays: int = 16384


@dataclass(eq=False)
class Protocol:
    """Test photos, their true poses, and poses to start from.

    images: (N, H, W, 3) float32 RGB in [0, 1], in front of `background`, which a scene has not;
    truths: (N, 4, 4); starts: (N, S, 4, 4); all poses are camera_from_object; scene: the frame they
    are in, where it is one.
    """

    images: np.ndarray
    background: tuple[float, float, float] | None
    cameras: list[Camera]
    truths: np.ndarray
    starts: np.ndarray
    scene: SceneFrame | None = None

    @classmethod
    def of(
        cls,
        posed: PosedImages,
        field: RadianceField,
        starts: int,
        seed: int,
        scene: SceneFrame | None = None,
    ) -> Protocol:
        """From test photos. The starts of a view are the same, however many there are of others.

        scene: the frame that photos and field are in, if they are of a scene. Raises
        EvaluationError where what is behind an object is unknown.
        """
        images = posed.images.astype(np.float32) / 255.0
        background = None
        if scene is None:
            images, background = _in_front(images, posed, field)
        if posed.weight is not None:
            raise EvaluationError(
                "parts of the test photos are unknown (undistorted, or hidden); the protocol "
                "compares whole photos"
            )
        cameras = [Camera(K, posed.size) for K in posed.intrinsics]
        moved = perturbed if scene is None else perturbed_camera
        drawn = []
        for i, truth in enumerate(posed.camera_from_object):
            rng = np.random.default_rng((seed, i))
            drawn.append([moved(truth, rng) for _ in range(starts)])
        return cls(images, background, cameras, posed.camera_from_object, np.array(drawn), scene)

    def trials(self, views: int, starts: int) -> list[tuple[int, np.ndarray]]:
        """Number of the photo and pose to start from, of the first views and starts."""
        return [(v, start) for v, own in enumerate(self.starts[:views]) for start in own[:starts]]

    def spread(self, runs: int | None = None) -> list[tuple[int, np.ndarray]]:
        """As `trials`, of so many, or of all: the first start of each view, then the second, …"""
        by_start = np.swapaxes(self.starts, 0, 1)
        return [(v, start) for own in by_start for v, start in enumerate(own)][:runs]

    def start(
        self, view: int, rng: np.random.Generator, degrees: float = TURN, exactly: bool = False
    ) -> np.ndarray:
        """Another pose (4, 4) to start from, turned by up to so much, or by exactly that."""
        moved = perturbed if self.scene is None else perturbed_camera
        return moved(self.truths[view], rng, degrees, exactly=exactly)


def _in_front(
    images: np.ndarray, posed: PosedImages, field: RadianceField
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Photos of an object, and what is behind it."""
    if posed.alpha is not None:
        alpha = posed.alpha[..., None].astype(np.float32) / 255.0
        return images * alpha + (1.0 - alpha), WHITE
    if field.background is not None:
        return images, tuple(float(c) for c in field.background)
    raise EvaluationError(
        "the test photos have no alpha and the field no background, and it is not that of a scene: "
        "nothing says what is behind the object"
    )


def perturbed(
    truth: np.ndarray,
    rng: np.random.Generator,
    degrees: float = TURN,
    shift: float = SHIFT,
    exactly: bool = False,
) -> np.ndarray:
    """camera_from_object (4, 4) with the camera turned about the model's origin by up to `degrees`,
    or by exactly that, about a random axis, then moved by up to `shift` metres along each of the
    model's axes."""
    motion = _random_turn(rng, degrees, exactly)
    motion[:3, 3] = rng.uniform(-shift, shift, 3)
    return truth @ inverse(motion)


def perturbed_camera(
    truth: np.ndarray,
    rng: np.random.Generator,
    degrees: float = TURN,
    shift: float = SCENE_SHIFT,
    exactly: bool = False,
) -> np.ndarray:
    """camera_from_scene (4, 4) with the camera turned in its place by up to `degrees`, or by
    exactly that, about a random axis, and moved by up to `shift` units along each of the scene's
    axes."""
    scene_from_camera = inverse(truth) @ _random_turn(rng, degrees, exactly)
    scene_from_camera[:3, 3] += rng.uniform(-shift, shift, 3)
    return inverse(scene_from_camera)


def _random_turn(rng: np.random.Generator, degrees: float, exactly: bool) -> np.ndarray:
    axis = rng.normal(size=3)
    angle = np.radians(degrees if exactly else rng.uniform(-degrees, degrees))
    return rotated(np.eye(4), axis / np.linalg.norm(axis) * angle)


def errors(estimates: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
    """Of poses (..., 4, 4): rotation_deg; translation_m, of the camera in the model's frame;
    origin_m, of the model's origin in the camera's frame. Arrays (...)."""
    estimates, truths = np.broadcast_arrays(estimates, truths)
    found = pose_errors(estimates.reshape(-1, 4, 4), truths.reshape(-1, 4, 4))
    turned, moved = (error.reshape(estimates.shape[:-2]) for error in found)
    between = np.linalg.norm(_position(estimates) - _position(truths), axis=-1)
    return {"rotation_deg": np.degrees(turned), "translation_m": between, "origin_m": moved}


def _position(camera_from_object: np.ndarray) -> np.ndarray:
    """(..., 3) of the camera in the object's frame."""
    R, t = camera_from_object[..., :3, :3], camera_from_object[..., :3, 3]
    return -np.einsum("...ji,...j->...i", R, t)


def right(
    found: dict[str, np.ndarray], moved: str = "translation_m", limit: float = RIGHT_M
) -> np.ndarray:
    """Which errors are below 5° and 5 cm, 0.05 units of a scene, or another limit."""
    return (found["rotation_deg"] < RIGHT_DEG) & (found[moved] < limit)


def shares(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of errors (N, ...): shares below 5°, below 5 cm, and below both, over the first axis."""
    return {
        "share_5deg": (found["rotation_deg"] < RIGHT_DEG).mean(axis=0),
        "share_5cm": (found["translation_m"] < RIGHT_M).mean(axis=0),
        "share_both": right(found).mean(axis=0),
    }


@dataclass(eq=False)
class Run:
    """A refined pose (4, 4), how it came about, and how long it took."""

    truth: np.ndarray
    pose: np.ndarray
    seconds: float
    result: Hypothesis | DescentResult


def errors_of(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    return errors(np.array([run.pose for run in runs]), np.array([run.truth for run in runs]))


def summary(runs: Sequence[Run], scene: SceneFrame | None = None) -> dict[str, Any]:
    """What a table says of N refined poses; of a scene also whether they are right in the unit of
    the field itself, of an object by the place of its origin."""
    found, seconds = errors_of(runs), [run.seconds for run in runs]
    row = {
        "n": len(runs),
        **{name: float(share) for name, share in shares(found).items()},
        "median_rotation_error_deg": float(np.median(found["rotation_deg"])),
        "median_translation_error_m": float(np.median(found["translation_m"])),
        "seconds_per_pose": float(np.mean(seconds)),
        "slowest_seconds": float(np.max(seconds)),
    }
    if scene is not None:
        in_field = right(found, limit=RIGHT_M * scene.scale)
        return {**row, "share_both_field_unit": float(in_field.mean())}
    return {
        **row,
        "share_both_origin": float(right(found, "origin_m").mean()),
        "median_origin_error_m": float(np.median(found["origin_m"])),
    }


def listed(found: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Errors as JSON has them."""
    return {name: [round(float(x), 5) for x in values] for name, values in found.items()}
