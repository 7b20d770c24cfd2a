#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What simplification does to outlines and poses; the table of docs/objects.md.

    python tools/measure_simplification.py pose_refiner_ros/data/demo_objects.yaml [BOP folder ...]

For each object: faces, time to simplify, error of the outline, and the errors of poses refined from
the exact mask of the full mesh, with the full mesh and with the simplified one: 640×480 pixels, the
object spanning about 300, starts 8° off.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import warp as wp
from scipy.spatial.transform import Rotation

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about_point, rigid, rotated
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.outline import Rasterizer
from pose_refiner_ros.objects.simplify import DEFAULT_TOLERANCE_PX, WORKING_RESOLUTION, _simplify
from pose_refiner_ros.pipeline import Frame, Pipeline, Settings

CAMERA = Camera(np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]), (480, 640))
TRIALS = 40


def trial(model: ObjectModel, rasterizer: Rasterizer, seed: int):
    """True pose, start pose, and the mask of the full mesh at the true pose."""
    rng = np.random.default_rng(seed)
    center = model.box_center
    offset = [*rng.uniform(-0.1, 0.1, 2), 1.7 * rng.uniform(0.9, 1.3)]
    middle = rigid(
        Rotation.random(random_state=seed).as_matrix(), np.array(offset) * model.diameter
    )
    axis = rng.normal(size=3)
    turned = rotated(middle, np.radians(8) * axis / np.linalg.norm(axis))
    truth, start = (about_point(pose, -center) for pose in (middle, turned))
    points = model.mesh.vertices @ truth[:3, :3].T + truth[:3, 3]
    return truth, start, rasterizer.covered(CAMERA.project(points), CAMERA.size)


def measure(model: ObjectModel, mesh) -> tuple[float, float]:
    """Median rotation error in degrees and median time in ms with that silhouette mesh."""
    candidate = ObjectModel(model.name, model.mesh, mesh, model.symmetries)
    pipeline = Pipeline({model.name: candidate}, Settings(search="never"), "cpu")
    pipeline.warm_up()
    rasterizer = Rasterizer(model.mesh.faces)
    angles, times = [], []
    for seed in range(TRIALS):
        truth, start, mask = trial(model, rasterizer, seed)
        frame = Frame(mask, CAMERA, {1: model.name}, {1: [start]})
        begin = time.process_time()
        found = pipeline.process(frame, report=lambda *_: None)
        times.append(time.process_time() - begin)
        pose = found[0].camera_from_object if found else start
        angles.append(float(model.symmetries.reduced_rotation_error(pose, truth)))
    return float(np.degrees(np.median(angles))), 1e3 * float(np.median(times))


def main(paths: list[str]) -> None:
    wp.config.quiet = True
    print(
        "| object | faces | → | simplified in s | outline error px: mean, bias, max "
        "| rotation error °: full, simplified | ms per pose: full, simplified |"
    )
    print("|---|---|---|---|---|---|---|")
    for path in paths:
        for model in ObjectLibrary.load(path).values():
            begin = time.process_time()
            simple, error = _simplify(model.mesh, DEFAULT_TOLERANCE_PX, WORKING_RESOLUTION)
            seconds = time.process_time() - begin
            (angle, ms), (simple_angle, simple_ms) = (
                measure(model, mesh) for mesh in (model.mesh, simple)
            )
            print(
                f"| {model.name} | {len(model.mesh.faces):,} | {len(simple.faces):,} "
                f"| {seconds:.1f} | {error.mean_px:.3f}, {error.bias_px:+.3f}, {error.max_px:.2f} "
                f"| {angle:.2f}, {simple_angle:.2f} | {ms:.1f}, {simple_ms:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
