#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a depth image, or a laser scanner, adds to the masks.

    python tools/measure_depth.py lmo DATASET [--image 3] [--repeats 10]
    python tools/measure_depth.py camera MESH[:UNIT] ... [--views 60]
    python tools/measure_depth.py scan [MESH[:UNIT] ...] [--views 60]
    python tools/measure_depth.py cost MESH[:UNIT] [--views 30]

lmo: a real image in BOP's layout with depth, masks with borders as a network draws them
(`evaluation/mask_noise.py`), starts 20 degrees and 5 cm off. camera: simulated depth as stereo
cameras have it: noise that grows with the distance squared and is alike over some pixels, edges
that bleed, holes, an offset of each picture. scan: 64 lines of a laser scanner over vehicles 8 to
30 m away, on the ground, of a known shape and, by the shipped encoder, of a known category; without
meshes generated ones. cost: of an object that is followed. Rows: with and without; median errors,
along the ray as well; the mean of the normalised squared error of the pose, 6 where covariances
are right; milliseconds for each object.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from measure_range_bias import read_mesh, view

from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.bop import BopDataset
from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.evaluation.bop import perturbed
from pose_refiner_ros.evaluation.mask_noise import move_border
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about, about_point, rotation_angle, twist_between
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.objects.surface import ranges_to_surface
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.rendering.scene import render_scene

CAMERA = Camera(np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]), (480, 640))
START = 20.0, 0.05  # degrees, metres
SIGMA = 1.0  # of the mask's border, pixels


class Table:
    """Errors with and without depth, by name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[float, ...]]] = {}

    def add(self, name: str, pose, truth: np.ndarray, model: ObjectModel, seconds: float) -> None:
        found = pose.camera_from_object
        nearest = model.symmetries.closest_equivalent(truth, found)
        middle, at = (about_point(one, model.box_center) for one in (found, nearest))
        twist = twist_between(at, middle)
        covariance = about(middle[:3, 3] - found[:3, 3], pose.covariance)
        ray = at[:3, 3] / np.linalg.norm(at[:3, 3])
        self.rows.setdefault(name, []).append(
            (
                np.degrees(rotation_angle(at[:3, :3].T @ middle[:3, :3])),
                1e3 * np.linalg.norm(twist[:3]),
                1e3 * twist[:3] @ ray,
                twist @ np.linalg.solve(covariance, twist),
                1e3 * seconds,
                pose.quality == "good",
            )
        )

    def print(self) -> None:
        print(f"{'':24} poses   deg     mm  along the ray: median, bias   squared error  ms   good")
        for name, rows in self.rows.items():
            degrees, metres, along, square, ms, good = np.array(rows, float).T
            near = (
                degrees < 10.0
            )  # errors of poses that are another are none of a normal distribution
            print(
                f"{name:24} {len(rows):5} {np.median(degrees):5.2f} {np.median(metres):6.1f}"
                f" {np.median(np.abs(along)):14.1f} {along[near].mean():14.1f}"
                f" {square[near].mean():15.1f} {np.median(ms):6.1f} {good.mean():5.2f}"
            )


def lmo(options: argparse.Namespace, table: Table) -> None:
    data = BopDataset(options.dataset, "test")
    library = ObjectLibrary.load(data.models_path)
    image = next(image for image in data if image.im_id == options.image)
    masks, labels, truths = np.zeros(image.camera.size, np.uint16), {}, {}
    for instance in image.instances:
        model = library.by_bop_id(instance.obj_id)
        if model is not None and (mask := image.mask(instance, "visib")) is not None:
            masks[mask] = instance.index + 1
            labels[instance.index + 1] = model.name
            truths[instance.index + 1] = instance.camera_from_object
    measure(options, table, library, image.camera, masks, labels, truths, image.depth())


def measure(options, table, library, camera, masks, labels, truths, depth) -> None:
    pipeline = Pipeline(library, device="cpu")
    pipeline.warm_up()
    for repeat in range(options.repeats):
        rng = np.random.default_rng(repeat)
        drawn = np.zeros_like(masks)
        for label in labels:
            own = move_border((masks == label).view(np.uint8), rng, SIGMA)
            drawn[(own > 0) & ((masks == 0) | (masks == label))] = label
        starts = {label: [perturbed(truths[label], *START, rng)] for label in labels}
        for name, given in (("without", None), ("with depth", depth)):
            frame = Frame(drawn, camera, labels, starts, depth=given)
            began = time.perf_counter()
            poses = pipeline.process(frame)
            seconds = (time.perf_counter() - began) / max(len(poses), 1)
            for pose in poses:
                truth = truths[pose.label]
                for row in (name, f"{name}, {pose.name}") if options.each else (name,):
                    table.add(row, pose, truth, library[pose.name], seconds)


def noisy_depth(depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As a stereo camera measures (H, W) metres, infinite where nothing is."""
    known = np.isfinite(depth)
    z = np.where(known, depth, 0.0).astype(np.float32)
    reach = int(rng.integers(1, 5))  # edges bleed: what is in front spreads over what is behind
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
    front = cv2.erode(np.where(known, z, np.float32(1e9)), kernel)
    ragged = cv2.GaussianBlur(rng.normal(size=z.shape), (0, 0), 3.0) > 0.0
    z = np.where(ragged & (front < 1e8), front, z)
    mean = cv2.blur(z, (3, 3))  # mixed pixels where the depth steps
    step = cv2.dilate(z, np.ones((3, 3))) - cv2.erode(z, np.ones((3, 3))) > 0.02
    z = np.where(step & (rng.random(z.shape) < 0.5), mean, z)
    noise = cv2.GaussianBlur(rng.normal(size=z.shape), (0, 0), 2.0)
    noise *= 1.0 / noise.std()
    z = z + noise * (0.001 + 0.002 * z * z) * (z > 0) + rng.normal(0.0, 0.004)
    holes = cv2.GaussianBlur(rng.normal(size=z.shape), (0, 0), 8.0)
    z[holes > 1.0 * holes.std()] = 0.0
    return np.where(z > 0.0, z, 0.0).astype(np.float32)


def camera(options: argparse.Namespace, table: Table) -> None:
    for argument in options.meshes:
        mesh = read_mesh(argument)
        name = Path(argument.split(":")[0]).stem
        model = ObjectModel(name, mesh, simplify_for_silhouette(mesh))
        pipeline = Pipeline({name: model}, device="cpu")
        pipeline.warm_up()
        table_top = _sheet(4.0 * model.diameter)
        rng = np.random.default_rng(options.seed)
        for _ in range(options.views):
            truth = view(mesh, rng.uniform(80.0, 240.0), rng, street=False)
            behind = np.eye(4)
            behind[2, 3] = truth[2, 3] + rng.uniform(0.6, 1.5) * model.diameter
            scene = render_scene([mesh, table_top], np.stack([truth, behind]), CAMERA)
            mask = move_border((scene.labels == 1).astype(np.uint8), rng, SIGMA)
            depth = noisy_depth(scene.depth, rng)
            start = perturbed(truth, START[0], 0.3 * model.diameter, rng)
            compare(table, pipeline, model, truth, start, mask, name, depth=depth)


def cost(options: argparse.Namespace, table: Table) -> None:
    """Each view four times, of which the fastest counts."""
    (mesh,) = map(read_mesh, options.meshes)
    model = ObjectModel("object", mesh, simplify_for_silhouette(mesh))
    pipeline = Pipeline({"object": model}, device="cpu")
    pipeline.warm_up()
    rng = np.random.default_rng(options.seed)
    for _ in range(options.views):
        truth = view(mesh, rng.uniform(80.0, 240.0), rng, street=False)
        scene = render_scene([mesh], truth[None], CAMERA)
        mask = (scene.labels == 1).astype(np.uint8)
        start = perturbed(truth, 4.0, 0.02 * model.diameter, rng)
        for how, depth in (("without", None), ("with", noisy_depth(scene.depth, rng))):
            frame = Frame(mask, CAMERA, {1: "object"}, {1: [start]}, depth=depth, tracked=[1])
            seconds = []
            for _ in range(4):
                began = time.perf_counter()
                (pose,) = pipeline.process(frame)
                seconds.append(time.perf_counter() - began)
            table.add(how, pose, truth, model, min(seconds))


def compare(table, pipeline, model, truth, start, mask, name, **measured) -> None:
    for how, given in (("without", {}), ("with", measured)):
        frame = Frame(mask, CAMERA, {1: model.name}, {1: [start]}, **given)
        began = time.perf_counter()
        for pose in pipeline.process(frame):
            table.add(f"{name} {how}", pose, truth, model, time.perf_counter() - began)


LINES, STEP = 64, np.radians(0.2)  # of the scanner, and from point to point along a line
SCANNER_HEIGHT, SCAN_NOISE = 1.8, 0.02  # metres
STREET = Camera(np.array([[900.0, 0, 639.5], [0, 900.0, 359.5], [0, 0, 1]]), (720, 1280))


def scan_of(model: ObjectModel, truth: np.ndarray, ground: float, rng) -> np.ndarray:
    """(N, 3) points of a scanner above the camera, 0.3 m: rays to the object and to the ground,
    `ground` metres below the camera, whichever is nearer."""
    azimuth = np.arange(-np.radians(45.0), np.radians(45.0), STEP)
    height = np.radians(np.linspace(-24.9, 2.0, LINES))
    a, h = (grid.ravel() for grid in np.meshgrid(azimuth, height))
    rays = np.stack([np.cos(h) * np.sin(a), -np.sin(h), np.cos(h) * np.cos(a)], axis=1)
    above = np.array([0.0, -0.3, 0.0])
    seen_from = truth.copy()
    seen_from[:3, 3] -= above
    ranges = ranges_to_surface(model, seen_from[None], rays)[0]
    to_ground = np.where(rays[:, 1] > 1e-3, (ground + 0.3) / np.maximum(rays[:, 1], 1e-3), np.inf)
    ranges = np.minimum(ranges, to_ground) + rng.normal(0.0, SCAN_NOISE, len(rays))
    offset = rng.normal(0.0, 0.01)
    hit = np.isfinite(ranges) & (ranges < 100.0) & (rng.random(len(rays)) < 0.9)
    return (above + (ranges + offset)[:, None] * rays)[hit].astype(np.float32)


def scan(options: argparse.Namespace, table: Table) -> None:
    meshes = {Path(a.split(":")[-1]).stem: read_mesh(a) for a in options.meshes} or {
        name: make_vehicle(VEHICLES[name]).mesh for name in ("sedan", "suv", "van", "pickup")
    }
    library = ObjectLibrary.load(shipped.OBJECTS)
    encoder = shipped.choose_encoder(library, "", "cpu", "solver")
    by_category = Pipeline(library, device="cpu", encoder=encoder)
    by_category.warm_up()
    for name, mesh in meshes.items():
        model = ObjectModel(name, mesh, simplify_for_silhouette(mesh))
        known = Pipeline({name: model}, device="cpu")
        known.warm_up()
        rng = np.random.default_rng(options.seed)
        for _ in range(options.views):
            truth = np.eye(4)
            turn = rng.uniform(0.0, 2.0 * np.pi)  # z of the vehicle is up: minus y of the camera
            c, s = np.cos(turn), np.sin(turn)
            truth[:3, :3] = np.array([[s, c, 0], [0, 0, -1], [-c, s, 0]])
            away, aside = rng.uniform(8.0, 30.0), rng.uniform(-0.4, 0.4)
            truth[:3, 3] = aside * away, 1.5, away
            mask = (render_scene([mesh], truth[None], STREET).labels == 1).astype(np.uint8)
            mask = move_border(mask, rng, SIGMA)
            measured = scan_of(model, truth, 1.5 - mesh.bounds[0][2], rng)
            start = perturbed(truth, START[0], 0.3, rng)
            for how, points in (("without", None), ("with", measured)):
                for kind, pipeline, labels, starts in (
                    ("known", known, {1: name}, {1: [start]}),
                    ("category", by_category, {1: None}, {}),
                ):
                    frame = Frame(mask, STREET, labels, starts, scan=points)
                    began = time.perf_counter()
                    for pose in pipeline.process(frame, report=lambda label, text: None):
                        seconds = time.perf_counter() - began
                        table.add(f"{name} {kind} {how}", pose, truth, model, seconds)
                        if kind == "category":
                            table.add(f"all {kind} {how}", pose, truth, model, seconds)


def _sheet(size: float) -> Mesh:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * size
    return Mesh(corners.astype(np.float32), np.array([[0, 1, 2], [0, 2, 3]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(required=True, dest="kind")
    one = kinds.add_parser("lmo")
    one.add_argument("dataset", type=Path)
    one.add_argument("--image", type=int, default=3)
    one.add_argument("--repeats", type=int, default=10)
    one.add_argument("--each", action="store_true", help="a row for each object as well")
    one.set_defaults(run=lmo)
    one = kinds.add_parser("camera")
    one.add_argument("meshes", nargs="+")
    one.add_argument("--views", type=int, default=60)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=camera)
    one = kinds.add_parser("cost")
    one.add_argument("meshes", nargs=1)
    one.add_argument("--views", type=int, default=30)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=cost)
    one = kinds.add_parser("scan")
    one.add_argument("meshes", nargs="*")
    one.add_argument("--views", type=int, default=60)
    one.add_argument("--seed", type=int, default=1)
    one.set_defaults(run=scan)
    options = parser.parse_args()
    table = Table()
    options.run(options, table)
    table.print()


if __name__ == "__main__":
    main()
