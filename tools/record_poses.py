#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the pipeline answers to fixed inputs, to hold a change of the code against.

    python tools/record_poses.py before.json --bop DATASET... [--field FILE PHOTOS]
    python tools/record_poses.py after.json  --bop ... --against before.json

Inputs: the simulated drive, objects followed from frame to frame; every image of data sets in the
BOP layout, each object from a start 20 degrees and 5 cm off and from none; photos of an object
that has a radiance field, the same way. Prints how many poses are equal to the bit, and the largest
differences; poses, qualities and errors of both are in the files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.bop import BopDataset
from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.datasets.street import Street
from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.evaluation.bop import perturbed
from pose_refiner_ros.fields.field_file import load_field
from pose_refiner_ros.frame import Frame, ObjectPose
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.field_mesh import field_mesh
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.pipeline import Pipeline

Entry = dict[str, object]
START = 20.0, 0.05  # degrees, metres


def entry(
    key: str, pose: ObjectPose | None, truth: np.ndarray | None, milliseconds: float
) -> Entry:
    """A row of the record."""
    if pose is None:
        return {"key": key, "pose": None, "ms": milliseconds}
    row: Entry = {
        "key": key,
        "pose": pose.camera_from_object.tolist(),
        "quality": pose.quality,
        "iou": pose.iou,
        "score": pose.score,
        "sigma": np.sqrt(np.diag(pose.covariance)).tolist(),
        "rivals": len(pose.alternatives),
        "ms": milliseconds,
    }
    if truth is not None:
        row["degrees"], row["metres"] = difference(pose.camera_from_object, truth)
    return row


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Degrees and metres between two poses (4, 4)."""
    turn = a[:3, :3].T @ b[:3, :3]
    sine = 0.5 * np.linalg.norm(turn - turn.T) / np.sqrt(2.0)
    angle = np.degrees(np.arctan2(sine, (np.trace(turn) - 1.0) / 2.0))
    return float(angle), float(np.linalg.norm(a[:3, 3] - b[:3, 3]))


def answers(pipeline: Pipeline, name: str, frame: Frame, truths) -> Iterator[Entry]:
    """A row for every label of a frame."""
    begin = time.perf_counter()
    poses = {pose.label: pose for pose in pipeline.process(frame, lambda *_: None)}
    share = 1e3 * (time.perf_counter() - begin) / max(len(frame.labels), 1)
    for label in sorted(frame.labels):
        yield entry(f"{name}/{label}", poses.get(label), truths.get(label), share)


def drive(frames: int = 30, device: str = "cpu") -> Iterator[Entry]:
    """The demo's street at 10 Hz; a vehicle's start is what was found in the frame before."""
    camera = Camera(np.array([[500.0, 0, 319.5], [0, 500.0, 239.5], [0, 0, 1]]), (480, 640))
    street = Street(camera, samples=1)
    meshes = {kind: make_vehicle(shape).mesh for kind, shape in VEHICLES.items()}
    library = {kind: ObjectModel(kind, mesh) for kind, mesh in meshes.items()}
    pipeline, last = Pipeline(library, device=device), {}
    pipeline.warm_up()
    for i in range(frames):
        seen = street.frame(4.0 + 0.1 * i)
        truths = seen.camera_from_objects
        labels = {label: street.kinds[label] for label in truths}
        starts = {label: [last[label]] for label in labels if label in last}
        frame = Frame(seen.masks, camera, labels, starts, tracked=set(starts))
        for row in answers(pipeline, f"drive/{i}", frame, truths):
            label = int(row["key"].rsplit("/", 1)[1])
            if row["pose"] is not None and row["quality"] != "poor":
                last[label] = np.array(row["pose"])
            yield row


def bop(folder: Path, device: str = "cpu") -> Iterator[Entry]:
    """All images of a data set."""
    data = BopDataset(folder, "test")
    library = ObjectLibrary.load(data.models_path)
    pipeline = Pipeline(library, device=device)
    pipeline.warm_up()
    for image in data:
        masks, labels, starts, truths = np.zeros(image.camera.size, np.uint16), {}, {}, {}
        for instance in image.instances:
            model = None if instance.obj_id is None else library.by_bop_id(instance.obj_id)
            mask = image.mask(instance, "visib")
            if model is None or mask is None or mask.sum() < 200:
                continue
            label = instance.index + 1
            masks[mask], labels[label] = label, model.name
            if instance.camera_from_object is not None:
                rng = np.random.default_rng((image.im_id, label))
                truths[label] = instance.camera_from_object
                starts[label] = [perturbed(instance.camera_from_object, *START, rng)]
        name = f"{folder.name}/{image.scene_id}/{image.im_id}"
        for how, given in (("near", starts), ("none", {})):
            if labels and (starts or how == "none"):
                frame = Frame(masks, image.camera, labels, given)
                yield from answers(pipeline, f"{name}/{how}", frame, truths)


def field(file: Path, photos: Path, device: str = "cpu") -> Iterator[Entry]:
    """An object with a radiance field."""
    grid, posed = load_field(str(file)), load_posed_images(photos, "test")
    mesh = field_mesh(grid)
    shape = simplify_for_silhouette(mesh, tolerance_px=1.0, warn=lambda _: None)
    pipeline = Pipeline({"object": ObjectModel("object", mesh, shape, field=grid)}, device=device)
    pipeline.warm_up()
    views = zip(posed.images, posed.alpha, posed.intrinsics, posed.camera_from_object, strict=True)
    for i, (image, alpha, K, truth) in enumerate(views):
        mask, camera = (alpha > 127).view(np.uint8), Camera(K, posed.size)
        near = [perturbed(truth, *START, np.random.default_rng(i))]
        for how, given, tracked in (
            ("near", near, ()),
            ("none", [], ()),
            ("tracked", [truth], {1}),
        ):
            frame = Frame(mask, camera, {1: "object"}, {1: given}, image, tracked)
            yield from answers(pipeline, f"field/{i}/{how}", frame, {1: truth})


def compare(after: list[Entry], before: list[Entry]) -> None:
    """Print what differs, by the first part of the keys."""
    old, groups = {row["key"]: row for row in before}, {}
    for row in after:
        groups.setdefault(row["key"].split("/")[0], []).append((row, old.get(row["key"])))
    for group, pairs in groups.items():
        both = [(a, b) for a, b in pairs if b and a["pose"] and b["pose"]]
        apart = [difference(np.array(a["pose"]), np.array(b["pose"])) for a, b in both]
        same = sum(a["pose"] == b["pose"] for a, b in both)
        changed = sum(a["quality"] != b["quality"] for a, b in both)
        degrees, metres = np.array(apart).T
        print(
            f"{group}: {len(both)} of {len(pairs)} poses in both, {same} equal to the bit; largest "
            f"difference {degrees.max():.3g} deg, {metres.max():.3g} m; 95 % within "
            f"{np.quantile(degrees, 0.95):.3g} deg, {np.quantile(metres, 0.95):.3g} m; "
            f"{changed} qualities changed"
        )


def summarise(rows: list[Entry]) -> None:
    """Errors by group and kind of start, where the truth is known."""
    groups: dict[str, list[Entry]] = {}
    for row in rows:
        parts = row["key"].split("/")
        groups.setdefault(f"{parts[0]} {parts[-2] if len(parts) > 3 else ''}", []).append(row)
    for group, own in groups.items():
        known = [row for row in own if row.get("degrees") is not None]
        if known:
            degrees, metres, ms = np.array([(r["degrees"], r["metres"], r["ms"]) for r in known]).T
            print(
                f"{group}: {len(known)} of {len(own)}, median {np.median(degrees):.3f} deg, "
                f"{1e3 * np.median(metres):.2f} mm; {(degrees < 5.0).mean():.1%} under 5 deg; "
                f"{np.median(ms):.1f} ms each"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("--bop", type=Path, nargs="*", default=[])
    parser.add_argument("--field", type=Path, nargs=2, metavar=("FILE", "PHOTOS"))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    options = parser.parse_args()
    rows = list(drive(device=options.device))
    for folder in options.bop:
        rows += bop(folder, options.device)
    if options.field:
        rows += field(*options.field, options.device)
    part = options.record.with_suffix(".part")
    part.write_text(json.dumps(rows, indent=1) + "\n")
    part.replace(options.record)
    summarise(rows)
    if options.against:
        compare(rows, json.loads(options.against.read_text()))


if __name__ == "__main__":
    main()
