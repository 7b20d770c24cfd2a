#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the search by views finds of objects that the image's border cuts, or another one hides.

    python tools/measure_cut_objects.py [--count 200] [--seed 1] [--kinds van,pickup] [--noise 0]
    python tools/measure_cut_objects.py --meshes mug.obj drill.ply --unit mm

Generated vehicles, or meshes from files, are seen from all around, from 0 to 35 degrees above, in
images of 640x480 with several focal lengths. In the first block the camera is turned until a border
or a corner of the image cuts off 20 to 60 % of the silhouette's area; in the second a rectangle
with another label hides as much; in the third all of it is seen. Masks are drawn from the full
meshes, no pose is given. The overlap (over known pixels) is compared with that of the true pose, as
it is or refined, whichever is larger.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pose_refiner_ros.datasets.vehicles import KINDS, make_vehicle, sample_shape
from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.views import look_at
from pose_refiner_ros.objects.mesh import Mesh, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline, Settings
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

HEIGHT, WIDTH = 480, 640
CANVAS = 2048  # a picture that shows what lies beyond the image, the image in its middle
FOCALS = (450.0, 600.0, 800.0, 1100.0)
EXTENT = (150.0, 600.0)  # pixels that the object's diameter takes
CUT = (0.2, 0.6)  # share of the silhouette that is not seen
LIMIT = 0.002  # a loss of overlap that does not matter
NEAR = np.radians(5.0)


class Case(NamedTuple):
    name: str
    camera: Camera
    masks: np.ndarray  # (H, W) int32, the object's label is 1
    truth: np.ndarray  # (4, 4) camera_from_object


class Result(NamedTuple):
    lost: float  # overlap of the true pose less that of the pose found
    angle: float  # between them, radians
    seconds: float  # of CPU, for all of Pipeline.process
    known: float  # overlap of the true pose


def vehicles(kinds: list[str], per_kind: int, rng: np.random.Generator) -> dict[str, Mesh]:
    return {
        f"{kind}_{i}": make_vehicle(sample_shape(kind, rng)).mesh
        for kind in kinds
        for i in range(per_kind)
    }


def view_of(model: ObjectModel, rng: np.random.Generator) -> tuple[np.ndarray, Camera]:
    """A camera, and a pose (4, 4) of an object in front of it."""
    focal = rng.choice(FOCALS)
    intrinsics = np.array([[focal, 0, (WIDTH - 1) / 2], [0, focal, (HEIGHT - 1) / 2], [0, 0, 1]])
    away = max(focal / np.exp(rng.uniform(*np.log(EXTENT))), 1.3) * model.diameter
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(0.0, np.radians(35.0))
    flat = np.cos(elevation)
    seat = np.array([[flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)]])
    pose = np.eye(4)
    roll = np.array([0, 0, rng.normal(0.0, np.radians(3.0))])
    pose[:3, :3] = cv2.Rodrigues(roll)[0] @ look_at(seat)[0]
    pose[:3, 3] = [0, 0, away] - pose[:3, :3] @ model.box_center
    return pose, Camera(intrinsics, (HEIGHT, WIDTH))


def turned(pose: np.ndarray, aside: np.ndarray) -> np.ndarray:
    """The pose as a camera sees it that is turned so that the object's middle moves to where the
    optical axis met the image plane plus aside (2,), in focal lengths."""
    angle = np.arctan(np.linalg.norm(aside))
    axis = np.array([-aside[1], aside[0], 0.0]) / max(np.linalg.norm(aside), 1e-9)
    turn = np.eye(4)
    turn[:3, :3] = cv2.Rodrigues(axis * angle)[0]
    return turn @ pose


def picture(batch: MeshBatch, pose: np.ndarray, camera: Camera, shrink: int) -> np.ndarray:
    """(CANVAS / shrink, CANVAS / shrink) 0/1, the whole silhouette."""
    corner = (np.array([CANVAS, CANVAS]) - [WIDTH, HEIGHT]) / 2
    center = np.array([camera.cx, camera.cy]) + corner
    pinhole = np.append([camera.fx / shrink] * 2, (center + 0.5) / shrink - 0.5)
    return draw(batch, [0], pose[None], pinhole, CANVAS // shrink)[0]


def in_image(image: np.ndarray) -> np.ndarray:
    shrink = CANVAS // len(image)
    top, left = (CANVAS - HEIGHT) // 2 // shrink, (CANVAS - WIDTH) // 2 // shrink
    return image[top : top + HEIGHT // shrink, left : left + WIDTH // shrink]


def cut_by_border(batch: MeshBatch, model: ObjectModel, rng: np.random.Generator) -> Case:
    while True:
        pose, camera = view_of(model, rng)
        wanted = rng.uniform(*CUT)
        side = rng.integers(8)  # each border, and once in three a corner
        angle = side * np.pi / 2 if side < 4 else rng.uniform(-np.pi, np.pi)
        along = np.array([np.cos(angle), np.sin(angle)])
        if side >= 6:
            along = np.sign(along) * [WIDTH, HEIGHT] / np.hypot(WIDTH, HEIGHT)
        least, most = 0.0, 1.6 * np.hypot(WIDTH, HEIGHT) / 2 / camera.fx
        for _ in range(9):
            middle = 0.5 * (least + most)
            whole = picture(batch, turned(pose, along * middle), camera, 8)
            cut = 1.0 - in_image(whole).sum() / max(whole.sum(), 1)
            least, most = (middle, most) if cut < wanted else (least, middle)
        pose = turned(pose, along * middle)
        whole = picture(batch, pose, camera, 1)
        seen = in_image(whole)
        if CUT[0] <= 1.0 - seen.sum() / max(whole.sum(), 1) <= CUT[1] and seen.sum() > 800:
            return Case(model.name, camera, seen.astype(np.int32), pose)


def whole(batch: MeshBatch, model: ObjectModel, rng: np.random.Generator) -> Case:
    while True:
        pose, camera = view_of(model, rng)
        pose = turned(pose, rng.uniform(-0.3, 0.3, 2) * WIDTH / camera.fx)
        picture_of_all = picture(batch, pose, camera, 1)
        seen = in_image(picture_of_all)
        if seen.sum() == picture_of_all.sum() > 800:
            return Case(model.name, camera, seen.astype(np.int32), pose)


def hidden_by_another(batch: MeshBatch, model: ObjectModel, rng: np.random.Generator) -> Case:
    while True:
        pose, camera = view_of(model, rng)
        pose = turned(pose, rng.uniform(-0.15, 0.15, 2) * WIDTH / camera.fx)
        whole = picture(batch, pose, camera, 1)
        seen = in_image(whole).astype(np.int32)
        if seen.sum() < max(whole.sum(), 1600):
            continue
        places = np.stack(np.nonzero(seen))
        low, high = places.min(axis=1), places.max(axis=1) + 1
        room = ((high - low) * rng.uniform(0.05, 0.4, 2)).astype(int)
        box = np.stack([np.maximum(low - room, 0), high + room])
        axis, end = rng.integers(2), rng.integers(2)
        share = rng.uniform(*CUT)
        box[1 - end, axis] = np.quantile(places[axis], share if end == 0 else 1.0 - share)
        if rng.random() < 0.3:  # not all of that side
            other = 1 - axis
            box[rng.integers(2), other] = np.quantile(places[other], rng.uniform(0.2, 0.8))
        hidden = np.zeros(seen.shape, bool)
        hidden[box[0, 0] : box[1, 0], box[0, 1] : box[1, 1]] = True
        if CUT[0] <= seen[hidden].sum() / seen.sum() <= CUT[1]:
            seen[hidden] = 2
            return Case(model.name, camera, seen, pose)


def measured(pipeline: Pipeline, case: Case) -> Result | None:
    """None where nothing is found."""
    seen, truth = observe_mask(case.masks, 1, case.camera), Hypothesis(case.name, case.truth)
    refined = pipeline.refiner.refine([[seen]], [[truth]], restart=False, given=False)[0]
    known = pipeline.refiner.evaluate([seen], [truth]) + refined
    best = max(float(one.fits["silhouette"].iou) for one in known)
    start = time.process_time()
    found = pipeline.process(Frame(case.masks, case.camera, {1: case.name}))
    seconds = time.process_time() - start
    if not found:
        return Result(best, np.pi, seconds, best)
    symmetries = pipeline.library[case.name].symmetries
    pose = found[0].camera_from_object
    angle = float(symmetries.reduced_rotation_error(pose, case.truth))
    return Result(best - found[0].iou, angle, seconds, best)


def report(title: str, results: list[Result]) -> None:
    lost, angle, seconds, known = np.array(results).T
    print(f"{title}: {len(results)} cases, median overlap of the true pose {np.median(known):.4f}")
    print(f"  within {LIMIT} of it: {np.mean(lost <= LIMIT):.1%}", end="")
    print(f"; within 5 degrees: {np.mean(angle < NEAR):.1%}")
    quantiles = np.quantile(lost, [0.5, 0.9, 0.95, 0.99, 1.0])
    print("  overlap lost: " + ", ".join(f"{q:.4f}" for q in quantiles), end="")
    print(" (median, 90, 95, 99 %, most)")
    print(f"  ms of CPU an object: {1e3 * np.median(seconds):.0f} median,", end="")
    print(f" {1e3 * np.quantile(seconds, 0.95):.0f} at 95 %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="cases in each block")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of vehicles, comma-separated")
    parser.add_argument("--per-kind", type=int, default=2, help="vehicles of each kind")
    parser.add_argument("--meshes", nargs="*", type=Path, default=[], help="instead of vehicles")
    parser.add_argument("--unit", default="m", help="of the meshes' files")
    parser.add_argument("--noise", type=float, default=0.0, help="error of a mask's edge, pixels")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    if options.meshes:
        meshes = {path.stem: load_mesh(path, options.unit) for path in options.meshes}
    else:
        meshes = vehicles(options.kinds.split(","), options.per_kind, rng)
    models = {
        name: ObjectModel(name, mesh, simplify_for_silhouette(mesh))
        for name, mesh in meshes.items()
    }
    batches = {name: MeshBatch([mesh]) for name, mesh in meshes.items()}
    pipeline = Pipeline(models, Settings(), "cpu")
    pipeline.warm_up()
    blocks = {"cut by the border": cut_by_border, "hidden": hidden_by_another, "whole": whole}
    for title, make in blocks.items():
        results = []
        for i in range(options.count):
            name = list(models)[i % len(models)]
            case = make(batches[name], models[name], rng)
            if options.noise:
                own = move_border((case.masks == 1).astype(np.uint8), rng, options.noise)
                case = case._replace(masks=np.where(case.masks == 2, 2, own).astype(np.int32))
            results.append(measured(pipeline, case))
        report(title, results)


if __name__ == "__main__":
    main()
