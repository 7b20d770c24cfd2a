# SPDX-License-Identifier: Apache-2.0
"""How the encoder of vehicles is trained: models, cameras, masks. `pose-refiner encoder train`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS, Collection, Vehicle
from pose_refiner_ros.datasets.vehicles.views import PaperCamera, RobotCamera
from pose_refiner_ros.encoder.network import Encoder, EncoderError, EncoderSettings

from .encoder_training import DEFAULT, TrainingOptions, train_encoder
from .encoder_training_data import CLEAN, ROUGH, Disturbance, VehicleWindows

VALIDATION_BATCHES = 32
VALIDATION_SEED = 1_000_003


@dataclass(frozen=True)
class Cameras:
    """Draws poses as one kind of camera sees them; a class, so that it can go to a worker."""

    settings: PaperCamera | RobotCamera

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return self.settings.sample(count, rng).camera_from_object


@dataclass(frozen=True)
class Painter:
    """Paints photos of vehicles; a class, so that it can go to a worker."""

    vehicles: Sequence[Vehicle]

    def __call__(self, index, camera_from_object, pinhole, size, rng) -> np.ndarray:
        from pose_refiner_ros.datasets.vehicles.pictures import render_picture

        vehicle = self.vehicles[index]
        return render_picture(vehicle, camera_from_object, pinhole, size, rng, samples=1)[0]


PAPER = Cameras(PaperCamera())
# Half of the training pictures are taken by the paper's camera, moved off its grid points so that
# all directions are seen; half by cameras of all kinds, so that the encoder is of use on a robot.
TRAINING_CAMERAS = ((Cameras(PaperCamera(jitter=1.0)), 0.5), (Cameras(RobotCamera()), 0.5))


def vehicle_windows(
    settings: EncoderSettings,
    vehicles: Sequence[Vehicle],
    batch: int,
    seed: int = 0,
    cameras: Sequence = TRAINING_CAMERAS,
    disturbance: Disturbance = ROUGH,
) -> VehicleWindows:
    """Endless batches for an encoder, of these vehicles."""
    paper = PAPER.settings
    whole = settings.window == "image"
    return VehicleWindows(
        settings,
        [vehicle.mesh for vehicle in vehicles],
        [settings.classes.index(vehicle.cluster) for vehicle in vehicles],
        # an encoder of whole photos knows one camera only
        [(Cameras(PaperCamera(jitter=1.0)), 1.0)] if whole else cameras,
        batch,
        seed,
        disturbance,
        photo=(paper.size, paper.pinhole) if whole else None,
        paint=Painter(vehicles) if settings.input == "rgb_mask" else None,
    )


def train_on(
    collection: Collection,
    settings: EncoderSettings,
    folder: Path,
    options: TrainingOptions = DEFAULT,
    devices: int | str = "auto",
    accelerator: str = "auto",
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, figures: None,
    validation_batches: int = VALIDATION_BATCHES,
) -> tuple[Encoder, dict]:
    """Train on a collection's training split, validated by the paper's camera on clean masks of its
    validation split; returns the encoder and the record of its training. Raises EncoderError where
    a class has no vehicles in one of them, and as `train_encoder`."""
    training = collection.split("train")
    for vehicles, purpose in ((training, "train"), (collection.split("val"), "validate")):
        for name in settings.classes:
            if all(vehicle.cluster != name for vehicle in vehicles):
                raise EncoderError(
                    f"there is no {name} to {purpose} on ({collection.source}): 5 per cluster are "
                    "enough for all splits"
                )
    windows = vehicle_windows(settings, training, options.batch)
    judged = vehicle_windows(
        settings, collection.split("val"), 64, VALIDATION_SEED, ((PAPER, 1.0),), CLEAN
    )
    validation = list(islice(judged, validation_batches))
    encoder, record = train_encoder(
        settings, windows, validation, folder, options, devices, accelerator, resume, progress
    )
    record["data"] = {
        "source": collection.source,
        "seed": collection.seed,
        "models": {c: len(collection.cluster(c)) for c in CLUSTERS},
        "training_models": {c: sum(v.cluster == c for v in training) for c in CLUSTERS},
    }
    return encoder, record
