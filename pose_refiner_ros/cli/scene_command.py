# SPDX-License-Identifier: Apache-2.0
"""The `scene` command: poses that `refine` has written, in one common frame and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pose_refiner_ros.cli.single_image import (
    InputError,
    Problem,
    read_json,
    readable_json,
    wrong_form,
)
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.scene import (
    GroundPlane,
    Scene,
    View,
    compose,
    look_at,
    scene_from_camera,
)

if TYPE_CHECKING:
    from pose_refiner_ros.objects.library import ObjectLibrary

DEFAULT_HEIGHT = 1.5  # metres: the camera's of the paper
OFF_GROUND = 0.3  # metres above or below; what is farther off does not stand on the ground


@dataclass
class FilePose:
    """An object in a file of poses."""

    label: int
    name: str
    camera_from_object: np.ndarray
    quality: str = ""


def ground_plane(
    height: float | None, pitch_deg: float | None, roll_deg: float | None, plane: Sequence[float]
) -> GroundPlane:
    """The ground from the command's options; a camera at the paper's height if there are none."""
    if not plane:
        height = DEFAULT_HEIGHT if height is None else height
        return GroundPlane.from_height_and_pitch(
            height, math.radians(pitch_deg or 0.0), math.radians(roll_deg or 0.0)
        )
    if (height, pitch_deg, roll_deg) != (None, None, None):
        raise InputError("give either --plane, or --camera-height, --camera-pitch, --camera-roll")
    return GroundPlane.from_plane(plane[:3], plane[3])


def checked_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) from the command's width and height."""
    width, height = size
    if not (64 <= width <= 8192 and 64 <= height <= 8192):
        raise InputError(f"--size is {width} {height}: give 64 to 8192 pixels each")
    return height, width


def chosen_view(
    name: str,
    eye: Sequence[float],
    target: Sequence[float],
    fov_deg: float,
    size: tuple[int, int],
) -> str | View:
    """What `draw_scene` takes as view, from the command's options."""
    if name != "custom":
        if eye or target:
            raise InputError("--eye and --target are for --view custom")
        return name
    if not eye or not target:
        raise InputError("--view custom needs --eye X Y Z and --target X Y Z, in the scene's axes")
    return look_at(eye, target, size, math.radians(fov_deg))


def read_poses(path: Path) -> tuple[Camera, list[FilePose], list[Problem]]:
    """Camera and poses of a file that `refine` has written, and which of them cannot be read.

    Raises:
        InputError, CameraError: nothing of the file can be used.
    """
    content = read_json(path, "poses")
    try:
        camera, entries = content["camera"], content["objects"]
        size = camera["height"], camera["width"]
        if not isinstance(entries, list):
            raise TypeError("objects is no list")
        calibration = (size, camera["K"], camera.get("D", ()), camera["distortion_model"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"poses {path} are not in the form that refine writes, "
            f'{{"camera": ..., "objects": [{{"label": 1, "name": "mug", "camera_from_object": '
            f"4x4}}]}}: {wrong_form(error)}"
        ) from error
    poses, problems = [], []
    for index, entry in enumerate(entries, start=1):
        try:
            poses.append(_pose(entry, index))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"object {index} of {path} left out: {wrong_form(error)}"
            problems.append(Problem(None, text))
    return Camera.from_calibration(*calibration), poses, problems


def make_scene(
    camera: Camera, poses: Sequence[FilePose], plane: GroundPlane
) -> tuple[Scene, list[Problem]]:
    """The scene of a file's poses, and what had to be left out."""
    problems: list[Problem] = []
    transform = scene_from_camera(plane)
    objects = compose(
        poses, transform, report=lambda label, text: problems.append(Problem(label, text))
    )
    return Scene(objects, transform, camera), problems


def drawable(scene: Scene, library: ObjectLibrary) -> tuple[Scene, list[Problem]]:
    """What of a scene the library has meshes for, and what not."""
    known = [one for one in scene.objects if one.name in library]
    problems = [
        Problem(
            one.id,
            f"{one.name} is not drawn: the object library has none of that name (it has "
            f"{', '.join(library)}); give the library that the poses belong to",
        )
        for one in scene.objects
        if one.name not in library
    ]
    return Scene(known, scene.scene_from_camera, scene.camera), problems


def off_ground(scene: Scene, library: ObjectLibrary) -> list[Problem]:
    """The objects of a drawable scene that float over the ground or are sunk into it."""
    problems = []
    for one in scene.objects:
        up, height = one.scene_from_object[2, :3], one.scene_from_object[2, 3]
        lowest = float((library[one.name].mesh.vertices @ up).min() + height)
        if abs(lowest) > OFF_GROUND:
            text = (
                f"{one.name} stands {abs(lowest):.2f} m {'above' if lowest > 0 else 'below'} the "
                "ground: its pose is wrong, or the camera's height, pitch or roll, or --plane"
            )
            problems.append(Problem(one.id, text))
    return problems


def to_json(scene: Scene, plane: GroundPlane, problems: Sequence[Problem]) -> str:
    """What `scene` writes, as JSON: metres, radians."""
    content: dict[str, Any] = {
        "frame": "x forward, y left, z up; origin on the ground under the camera",
        "ground": {"normal": plane.normal.tolist(), "camera_height": plane.height},
        "scene_from_camera": scene.scene_from_camera.tolist(),
        "objects": [
            {
                "label": one.id,
                "name": one.name,
                "quality": one.quality,
                "position": one.position.tolist(),
                "heading": one.heading,
                "scene_from_object": one.scene_from_object.tolist(),
            }
            for one in scene.objects
        ],
        "problems": [{"label": problem.label, "text": problem.text} for problem in problems],
    }
    return readable_json(content)


def table_rows(scene: Scene) -> list[list[str]]:
    """Header and a row for each object."""
    rows = [["label", "object", "ahead m", "left m", "height m", "heading deg"]]
    for one in scene.objects:
        x, y, z = one.position
        heading = f"{math.degrees(one.heading):+.1f}"
        rows.append([str(one.id), one.name, f"{x:+.2f}", f"{y:+.2f}", f"{z:+.2f}", heading])
    return rows


def _pose(entry: Any, index: int) -> FilePose:
    matrix = np.array(entry["camera_from_object"], np.float64)
    label = int(entry.get("label", index))
    return FilePose(label, str(entry["name"]), matrix, str(entry.get("quality", "")))
