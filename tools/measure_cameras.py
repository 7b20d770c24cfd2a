#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a second camera, or a camera that has moved, adds.

    python tools/measure_cameras.py simulated [MESH[:UNIT] ...] [--apart 0.5] [--views 60]
    python tools/measure_cameras.py moving [MESH[:UNIT] ...] [--views 60]
    python tools/measure_cameras.py lmo DATASET [--images 703 968] [--objects 5 6 8 10 12]
    python tools/measure_cameras.py lmo-moving DATASET

simulated: one camera, and two side by side (metres apart, both turned towards the object); masks
with borders as a network draws them. moving: a camera that goes past an object that stands still, a
tenth of the distance from frame to frame, by 1, 2, 3 and 5 frames as the node joins them; and the
share of frames that are joined although the object moves by a hundredth of the distance a frame.
lmo: objects that stand still in several images whose cameras are known (views.json of the example
data), by 1, 2, 4 and 8 images at once. Poses are those of the first camera. lmo-moving: all of its
images one after the other, as the node joins them: each by itself, and by all that were offered.
Columns as tools/measure_depth.py has them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure_depth import CAMERA, SIGMA, START, Table
from measure_range_bias import read_mesh, view

from pose_refiner_ros.datasets.bop import BopDataset
from pose_refiner_ros.evaluation.bop import perturbed
from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.pose import inverse, rigid, rotated
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.tracking.sighting_memory import SightingMemory

MESHES = ("vehicle:sedan", "vehicle:van")


def made_for(argument: str) -> tuple[str, Mesh, ObjectModel, Pipeline]:
    """Name, mesh and model of an object, and a pipeline for it."""
    mesh = read_mesh(argument)
    name = Path(argument.split(":")[1 if argument.startswith("vehicle") else 0]).stem
    model = ObjectModel(name, mesh, simplify_for_silhouette(mesh))
    pipeline = Pipeline({name: model}, device="cpu")
    pipeline.warm_up()
    return name, mesh, model, pipeline


def simulated(options: argparse.Namespace, table: Table) -> None:
    for argument in options.meshes or MESHES:
        name, mesh, model, pipeline = made_for(argument)
        rng = np.random.default_rng(options.seed)
        for _ in range(options.views):
            truth = view(mesh, rng.uniform(80.0, 240.0), rng, street=False)
            second = rigid(np.eye(3), (options.apart, 0.0, 0.0))
            ahead = truth[2, 3]
            turn = np.arctan2(options.apart, ahead)
            c, s = np.cos(turn), np.sin(turn)
            second[:3, :3] = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
            start = perturbed(truth, START[0], 0.3 * model.diameter, rng)
            frames = []
            for where in (np.eye(4), second):
                drawn = render_scene([mesh], (inverse(where) @ truth)[None], CAMERA)
                mask = move_border((drawn.labels == 1).astype(np.uint8), rng, SIGMA)
                frames.append(Frame(mask, CAMERA, {1: name}, reference_from_camera=where))
            frames[0].initial_poses = {1: [start]}
            for count in (1, 2):
                began = time.perf_counter()
                for pose in pipeline.process(frames[:count]):
                    seconds = time.perf_counter() - began
                    table.add(f"{name}, {count} cameras", pose, truth, model, seconds)


def moving(options: argparse.Namespace, table: Table) -> None:
    joined = []
    for argument in options.meshes or MESHES:
        name, mesh, model, pipeline = made_for(argument)
        rng = np.random.default_rng(options.seed)
        for _ in range(options.views):
            truth = view(mesh, rng.uniform(80.0, 240.0), rng, street=False)
            walk = rng.normal(size=3) * (1.0, 0.5, 0.2)
            step = 0.12 * truth[2, 3] * walk / np.linalg.norm(walk)
            drift = 0.01 * truth[2, 3] * rng.permutation((1.0, 0.0, 0.0))
            for speed in (0.0, 1.0):
                memory = SightingMemory()
                for frame in range(5):
                    fixed_from_camera = looking_at(truth[:3, 3], frame * step)
                    at = rigid(np.eye(3), speed * frame * drift) @ truth
                    at = inverse(fixed_from_camera) @ at
                    masks = render_scene([mesh], at[None], CAMERA).labels == 1
                    masks = move_border(masks.astype(np.uint8), rng, SIGMA)
                    start = [perturbed(at, 5.0, 0.03 * model.diameter, rng)]
                    seen = Frame(masks, CAMERA, {1: name}, {1: start}, tracked={1})
                    for pose, seconds in joined_with_earlier(
                        pipeline, seen, {1: memory}, frame / 10, fixed_from_camera
                    ):
                        offered = len(seen.earlier[1]) + 1
                        if speed and offered > 1:
                            joined.append((offered, pose.frames > 1))
                        elif not speed and offered in (1, 2, 3, 5):
                            table.add(f"{name}, {offered} frames", pose, at, model, seconds)
    for offered in range(2, 6):
        yes = [one for number, one in joined if number == offered]
        share = f"{np.mean(yes):.2f} of {len(yes)}" if yes else "never offered"
        print(f"moving objects, offered as {offered} frames, joined: {share}")


def joined_with_earlier(pipeline, frame: Frame, memories, stamp, fixed_from_camera):
    """Poses of a frame, and the seconds that each took, by what the memories (label -> memory)
    hold; what it shows is added to them."""
    frame.earlier = {
        label: memory.earlier(stamp, fixed_from_camera, 4) for label, memory in memories.items()
    }
    began = time.perf_counter()
    poses = pipeline.process(frame, report=lambda label, text: None)
    seconds = (time.perf_counter() - began) / max(len(poses), 1)
    for pose in poses:
        memories[pose.label].add(stamp, pose.sighting.told_in(fixed_from_camera))
    return [(pose, seconds) for pose in poses]


def looking_at(point: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """fixed_from_camera (4, 4) of a camera that sees a point where it was seen from the origin."""
    before, now = (v / np.linalg.norm(v) for v in (point, point - eye))
    axis = np.cross(before, now)
    sine = np.linalg.norm(axis)
    turn = axis * (np.arctan2(sine, before @ now) / max(sine, 1e-12))
    return rotated(rigid(np.eye(3), eye), turn)


def lmo(options: argparse.Namespace, table: Table) -> None:
    images, library, pipeline = lmo_images(options.dataset)
    first, last = options.images
    cameras, still = {}, {}
    for arrangement in still_views(images):
        for key, (reference_from_camera, names) in arrangement.items():
            if first <= key <= last:
                cameras[key], still[key] = reference_from_camera, names
    order = sorted(cameras)
    for repeat in range(options.repeats):
        for anchor in order:
            rng = np.random.default_rng((repeat, anchor))
            others = [key for key in order if key != anchor]
            chosen = [anchor, *rng.permutation(others)]
            frames = [degraded(images[key], library, options.objects, rng) for key in chosen]
            for frame, key in zip(frames, chosen, strict=True):
                frame.reference_from_camera = inverse(cameras[anchor]) @ cameras[key]
                frame.labels = {n: m for n, m in frame.labels.items() if n in still[key]}
            truths = {one.obj_id: one.camera_from_object for one in images[anchor].instances}
            starts = {n: [perturbed(truths[n], *START, rng)] for n in frames[0].labels}
            frames[0].initial_poses = starts
            for count in (1, 2, 4, 8):
                began = time.perf_counter()
                poses = pipeline.process(frames[:count], report=lambda label, text: None)
                seconds = (time.perf_counter() - began) / max(len(poses), 1)
                for pose in poses:
                    if pose.label in starts:
                        model = library[pose.name]
                        table.add(f"{count} images", pose, truths[pose.label], model, seconds)


def lmo_moving(options: argparse.Namespace, table: Table) -> None:
    images, library, pipeline = lmo_images(options.dataset)
    joined: dict[str, list[bool]] = {}
    for repeat in range(options.repeats):
        for arrangement in still_views(images):
            memories: dict[int, SightingMemory] = {}
            for count, (key, (fixed_from_camera, still)) in enumerate(arrangement.items()):
                rng = np.random.default_rng((repeat, key))
                frame = degraded(images[key], library, still, rng)
                truths = {one.obj_id: one.camera_from_object for one in images[key].instances}
                frame.initial_poses = {n: [perturbed(truths[n], *START, rng)] for n in frame.labels}
                own = {n: memories.setdefault(n, SightingMemory()) for n in frame.labels}
                for pose, seconds in joined_with_earlier(
                    pipeline, frame, own, count / 10, fixed_from_camera
                ):
                    offered = f"{len(frame.earlier[pose.label]) + 1} frames"
                    alone = replace(
                        pose,
                        camera_from_object=pose.sighting.reference_from_object,
                        covariance=pose.sighting.covariance,
                    )
                    model, truth = library[pose.name], truths[pose.label]
                    table.add(f"{offered}, the last", alone, truth, model, seconds)
                    table.add(f"{offered}, joined", pose, truth, model, seconds)
                    if frame.earlier[pose.label]:
                        joined.setdefault(offered, []).append(pose.frames > 1)
    for offered, yes in sorted(joined.items()):
        print(f"of those offered as {offered}, joined: {np.mean(yes):.2f}")


def lmo_images(dataset: Path):
    data = BopDataset(dataset, "test")
    library = ObjectLibrary.load(data.models_path)
    pipeline = Pipeline(library, device="cpu")
    pipeline.warm_up()
    return {image.im_id: image for image in data}, library, pipeline


def still_views(images) -> list[dict[int, tuple[np.ndarray, set[int]]]]:
    """Of each arrangement of the objects: image -> (reference_from_camera, which stand still)."""
    scene = next(iter(images.values())).scene
    arrangements = []
    for arrangement in json.loads((scene / "views.json").read_text()):
        views = {}
        for key, one in sorted(arrangement["images"].items(), key=lambda item: int(item[0])):
            if int(key) in images:
                rotation = np.reshape(one["cam_R_w2c"], (3, 3))
                move = rigid(rotation, 1e-3 * np.array(one["cam_t_w2c"]))
                views[int(key)] = inverse(move), set(one["still"])
        arrangements.append(views)
    return arrangements


def degraded(image, library: ObjectLibrary, objects, rng) -> Frame:
    """Masks of objects as a network draws them; labels are BOP's numbers."""
    masks = np.zeros(image.camera.size, np.uint16)
    labels = {}
    for instance in image.instances:
        mask = image.mask(instance, "visib")
        if mask is not None:
            own = move_border(mask.astype(np.uint8), rng, SIGMA)
            masks[(own > 0) & (masks == 0)] = instance.obj_id
            model = library.by_bop_id(instance.obj_id)
            if model is not None and instance.obj_id in objects and mask.sum() > 200:
                labels[instance.obj_id] = model.name
    return Frame(masks, image.camera, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("simulated")
    one.add_argument("meshes", nargs="*")
    one.add_argument("--apart", type=float, default=0.5)
    one.add_argument("--views", type=int, default=60)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=simulated)
    one = kinds.add_parser("moving")
    one.add_argument("meshes", nargs="*")
    one.add_argument("--views", type=int, default=60)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=moving)
    one = kinds.add_parser("lmo")
    one.add_argument("dataset", type=Path)
    one.add_argument("--images", type=int, nargs=2, default=(703, 968))
    one.add_argument("--objects", type=int, nargs="+", default=(5, 6, 8, 10, 12))
    one.add_argument("--repeats", type=int, default=2)
    one.set_defaults(run=lmo)
    one = kinds.add_parser("lmo-moving")
    one.add_argument("dataset", type=Path)
    one.add_argument("--repeats", type=int, default=2)
    one.set_defaults(run=lmo_moving)
    options = parser.parse_args()
    table = Table()
    options.run(options, table)
    table.print()


if __name__ == "__main__":
    main()
