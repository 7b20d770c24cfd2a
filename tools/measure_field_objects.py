#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a radiance field does for an object's poses; the tables of docs/objects.md.

    python tools/measure_field_objects.py chair.safetensors DATA

DATA: posed photos with masks that the field was not trained on (as `pose-refiner field train` reads
them; the split test). Prints how well the mesh that is made of the field fits the masks, how far
colours are off in right and in wrong poses, and the errors of poses by silhouettes alone and with
the photo, from exact masks and from masks as a segmentation network draws them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.evaluation.metrics import pose_errors
from pose_refiner_ros.fields.field_file import load_field
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rotated
from pose_refiner_ros.objects.field_mesh import field_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.search import colour_rms
from pose_refiner_ros.settings import Settings
from pose_refiner_ros.torch_threads import one_thread

NAME = "object"
SIGMA = 1.5  # pixels by which the border of a drawn mask is wrong
MOVED = np.radians(3.0)  # since the last frame
NEAR, FAR = np.radians(20.0), (np.radians(60.0), np.radians(180.0))


def moved(pose: np.ndarray, angle: float, rng, shift: float = 0.0) -> np.ndarray:
    axis = rng.normal(size=3)
    other = rotated(pose, axis * angle / np.linalg.norm(axis))
    other[:3, 3] += shift * rng.uniform(-1.0, 1.0, 3)
    return other


def outline_table(pipeline: Pipeline, views, diameter: float) -> None:
    ious = []
    for _, mask, camera, truth in views:
        seen = observe_mask(mask, 1, camera)
        (found,) = pipeline.refiner.evaluate([seen], [Hypothesis(NAME, truth)])
        ious.append(found.fits["silhouette"].iou)
    model = pipeline.library[NAME]
    print(f"{len(model.mesh.faces)} faces, {len(model.silhouette_mesh.faces)} for outlines,")
    print(f"diameter {diameter:.3f} m")
    print(f"IoU of silhouettes in true poses: mean {np.mean(ious):.3f}, least {np.min(ious):.3f}")


def colour_table(pipeline: Pipeline, views) -> None:
    """Colours in poses where refinement ends, from right and from wrong starts."""
    rng, right, wrong = np.random.default_rng(0), [], []
    for image, mask, camera, truth in views:
        seen = observe_mask(mask, 1, camera).with_image(image)
        for start in [truth] + [moved(truth, rng.uniform(*FAR), rng) for _ in range(4)]:
            ((found,),) = pipeline.refiner.refine(
                [[seen]], [[Hypothesis(NAME, start)]], 1, restart=False, given=False
            )
            angle, _ = pose_errors(found.reference_from_object, truth)
            (right if angle < np.radians(5.0) else wrong).append(colour_rms(found))
    print(f"colour RMS in {len(right)} right poses: at most {max(right):.3f}")
    print(f"colour RMS in {len(wrong)} wrong poses: at least {min(wrong):.3f}")


def pose_table(pipeline: Pipeline, views) -> None:
    print("| masks | start | by | median error deg | cm | worst deg | cm | ms |")
    print("|---|---|---|---|---|---|---|---|")
    for drawn in (False, True):
        for start in ("last frame's", "20 deg off", "none"):
            for photometric in ("never", "auto"):
                pipeline.settings = Settings(photometric=photometric)
                errors, times = [], []
                for i, (image, mask, camera, truth) in enumerate(views):
                    rng = np.random.default_rng(i)
                    mask = move_border(mask, rng, SIGMA) if drawn else mask
                    tracked = {1} if start == "last frame's" else set()
                    angle, shift = (MOVED, 0.02) if tracked else (NEAR, 0.1)
                    near = moved(truth, angle, rng, shift)
                    initial = {1: [near]} if start != "none" else {}
                    begin = time.process_time()
                    frame = Frame(mask, camera, {1: NAME}, initial, image, tracked)
                    (found,) = pipeline.process(frame, lambda *_: None)
                    times.append(time.process_time() - begin)
                    angle, away = pose_errors(found.camera_from_object[None], truth)
                    errors.append((np.degrees(angle[0]), 100.0 * away[0]))
                middle, worst = np.median(errors, axis=0), np.max(errors, axis=0)
                print(
                    f"| {f'{SIGMA:g} px off' if drawn else 'exact'} | {start} | "
                    f"{'silhouette' if photometric == 'never' else 'and photo'} | "
                    f"{middle[0]:.2f} | {middle[1]:.2f} | {worst[0]:.2f} | {worst[1]:.2f} | "
                    f"{1e3 * np.median(times):.0f} |"
                )


def main(field_file: str, data: str) -> None:
    field, posed = load_field(field_file), load_posed_images(Path(data), "test")
    mesh = field_mesh(field)
    simple = simplify_for_silhouette(mesh, tolerance_px=1.0, warn=lambda _: None)
    model = ObjectModel(NAME, mesh, simple, field=field)
    pipeline = Pipeline({NAME: model}, device="cpu")
    pipeline.warm_up()
    views = [
        (image, (alpha > 127).view(np.uint8), Camera(K, posed.size), truth)
        for image, alpha, K, truth in zip(
            posed.images, posed.alpha, posed.intrinsics, posed.camera_from_object, strict=True
        )
    ]
    outline_table(pipeline, views, mesh.diameter)
    colour_table(pipeline, views)
    pose_table(pipeline, views)


if __name__ == "__main__":
    with one_thread():
        main(*sys.argv[1:])
