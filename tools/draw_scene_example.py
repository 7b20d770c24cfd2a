#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/images/scene.png: the demo's street, its masks without names, and the scene in it."""

import sys
from pathlib import Path

import cv2
import numpy as np

from pose_refiner_ros import shipped
from pose_refiner_ros.datasets.street import Street
from pose_refiner_ros.drawing.overlay import draw_overlay
from pose_refiner_ros.drawing.scene_view import draw_scene
from pose_refiner_ros.encoder.inference import PoseEncoder
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.scene import Scene, compose

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "scene.png"
REACH = 40.0  # metres: vehicles farther away are left out, they would make the scene too small


def main(time: float = 5.5, target: Path = TARGET) -> None:
    camera = Camera(np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]), (480, 640))
    street = Street(camera)
    seen = street.frame(time)
    library = ObjectLibrary.load(shipped.OBJECTS)
    encoder = PoseEncoder.load(shipped.ENCODER)
    labels = {int(label): None for label in np.unique(seen.masks) if label}
    frame = Frame(seen.masks, camera, labels)
    poses = Pipeline(library, device="cpu", encoder=encoder).process(frame)
    poses = [pose for pose in poses if pose.camera_from_object[2, 3] < REACH]
    photo = draw_overlay(seen.rgb, camera, library, poses)
    world_from_camera = street.world_from_camera(time)
    scene = Scene(compose(poses, world_from_camera), world_from_camera, camera)
    above = draw_scene(scene, library, size=(480, 640))

    cv2.imwrite(str(target), np.concatenate([photo, above], axis=1)[..., ::-1])
    print(f"wrote {target}: {', '.join(f'{p.name} {p.quality}' for p in poses)}")


if __name__ == "__main__":
    main(*(float(value) for value in sys.argv[1:]))
