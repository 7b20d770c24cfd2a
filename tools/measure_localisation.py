#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How often, and how fast, test photos are found in a radiance field: from starts that are off, and
from none.

    python tools/measure_localisation.py SOURCE FIELD [--factor 2] [--angles 15,40] [--starts 5]

SOURCE: posed photos as `pose-refiner field train` reads them; those of its split test are looked
for, through `SceneLocaliser` where they have no masks, else through `Pipeline`. Starts are turned
by up to so many degrees about a random axis (through the camera in a scene, through the middle of
an object) and moved by up to --shift along each axis; "none" is without a start, by features.
Right: below 5 degrees and --near units. Lost: said to be so (of an object: not found, or its
quality is not good). The first photo is looked for once before time is taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images import PosedImages, load_posed_images
from pose_refiner_ros.evaluation.inerf_protocol import errors, perturbed, perturbed_camera
from pose_refiner_ros.fields.field_file import load_field
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point, inverse
from pose_refiner_ros.objects.field_mesh import field_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.scene_localiser import LocalisationError, SceneLocaliser
from pose_refiner_ros.settings import CHOICES, Settings

NAME = "object"
DEGREES = 5.0  # off that are still right
# number of a photo and a start, or None -> camera_from_object or None, and why it is not believed
Find = Callable[[int, np.ndarray | None], tuple[np.ndarray | None, str]]


def in_scene(field: GridField, photos: PosedImages, settings: Settings) -> Find:
    localiser = SceneLocaliser(field, settings)
    localiser.warm_up()

    def find(i: int, start: np.ndarray | None) -> tuple[np.ndarray | None, str]:
        camera = Camera(photos.intrinsics[i], photos.size)
        starts = [] if start is None else [inverse(start)]
        try:
            found = localiser.locate(photos.images[i], camera, starts)
        except LocalisationError as error:
            return None, str(error)
        return inverse(found.scene_from_camera), found.lost

    return find


def of_object(field: GridField, photos: PosedImages, settings: Settings) -> Find:
    mesh = field_mesh(field)
    simple = simplify_for_silhouette(mesh, tolerance_px=1.0, warn=lambda _: None)
    pipeline = Pipeline({NAME: ObjectModel(NAME, mesh, simple, field=field)}, settings, "cpu")
    pipeline.warm_up()

    def find(i: int, start: np.ndarray | None) -> tuple[np.ndarray | None, str]:
        mask = (photos.alpha[i] > 127).astype(np.uint8)
        camera = Camera(photos.intrinsics[i], photos.size)
        starts = {} if start is None else {1: [start]}
        found = pipeline.process(
            Frame(mask, camera, {1: NAME}, starts, photos.images[i]), lambda *_: None
        )
        if not found:
            return None, "not found"
        return found[0].camera_from_object, found[0].quality.replace("good", "")

    return find


def measure(
    find: Find, photos: PosedImages, starts: list[list[np.ndarray | None]], near: float
) -> str:
    """A row of the table. starts: of each photo."""
    found, truths, told, seconds = [], [], [], []
    for i, own in enumerate(starts):
        for start in own:
            began = time.perf_counter()
            pose, doubt = find(i, start)
            seconds.append(time.perf_counter() - began)
            found.append(np.full((4, 4), np.inf) if pose is None else pose)
            truths.append(photos.camera_from_object[i])
            told.append(bool(doubt))
    there = np.isfinite(found).all(axis=(1, 2))
    off = errors(np.where(there[:, None, None], found, np.eye(4)), np.array(truths))
    degrees, away = (np.where(there, off[n], np.inf) for n in ("rotation_deg", "translation_m"))
    is_right, told = (degrees < DEGREES) & (away < near), np.array(told)
    return (
        f"{len(told)} | {is_right.mean():.2f} | {told.mean():.2f} | {(~is_right & ~told).sum()} | "
        f"{np.median(degrees):.2f} | {np.median(away):.3f} | "
        f"{np.median(seconds):.2f} | {np.max(seconds):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("source", type=Path)
    parser.add_argument("field", type=Path)
    parser.add_argument("--factor", type=int, default=1, help="by which photos are made smaller")
    parser.add_argument("--split", default="test", help="train, test or all")
    parser.add_argument("--photos", type=int, default=None, help="at most")
    parser.add_argument("--angles", default="15,40", help="degrees, of starts")
    parser.add_argument("--shift", type=float, default=0.1, help="units, of starts")
    parser.add_argument("--starts", type=int, default=5, help="of each photo and angle")
    parser.add_argument("--init", default="auto", choices=CHOICES["init"])
    parser.add_argument("--near", type=float, default=0.05, help="units off that are still right")
    options = parser.parse_args()
    field = load_field(options.field)
    scale = float(field.record.get("scale", 1.0))
    photos = load_posed_images(options.source, options.split, scale, options.factor)
    if options.photos is not None:
        photos = photos.subset(range(min(options.photos, len(photos))))
    is_scene = photos.alpha is None
    begin = in_scene if is_scene else of_object
    began = time.perf_counter()
    find = begin(field, photos, Settings(init=options.init))
    find(0, photos.camera_from_object[0])
    print(f"{len(photos)} photos of {photos.size[1]}x{photos.size[0]}, ready in", end=" ")
    print(f"{time.perf_counter() - began:.1f} s", flush=True)
    print(
        "| start | n | right | lost | wrong, not told | median deg | median | median s | most s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    none = [[None]] * len(photos)
    print(f"| none | {measure(find, photos, none, options.near)}", flush=True)
    middle = field.occupied_bounds.mean(axis=0)
    for angle in (float(text) for text in options.angles.split(",") if text):
        rng = np.random.default_rng(int(angle))

        def start(pose: np.ndarray, rng=rng, angle=angle) -> np.ndarray:
            if is_scene:
                return perturbed_camera(pose, rng, angle, options.shift)
            moved = perturbed(about_point(pose, middle), rng, angle, options.shift)
            return about_point(moved, -middle)

        truths = photos.camera_from_object
        starts = [[start(pose) for _ in range(options.starts)] for pose in truths]
        print(f"| ±{angle:g}° | {measure(find, photos, starts, options.near)}", flush=True)


if __name__ == "__main__":
    main()
