# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner scene`: the objects of an image in one common frame, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pose_refiner_ros.cli.common import (
    ObjectsOption,
    console,
    rich_table,
    start_warp,
    tell,
    user_errors,
    write_picture,
)
from pose_refiner_ros.files.atomic import write_atomically

Point = tuple[float, float, float]


def scene(
    poses: Annotated[Path, typer.Argument(metavar="POSES", help="JSON that refine has written.")],
    out: Annotated[Path, typer.Option(help="Where to draw the scene, PNG.")],
    objects: ObjectsOption = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Where to write the poses in the scene.")
    ] = None,
    camera_height: Annotated[
        float | None, typer.Option(help="Of the camera above the ground, metres; 1.5 if not given.")
    ] = None,
    camera_pitch: Annotated[
        float | None,
        typer.Option(help="By how many degrees the camera looks down; 0 if not given."),
    ] = None,
    camera_roll: Annotated[
        float | None,
        typer.Option(help="By how many degrees it leans to its right; 0 if not given."),
    ] = None,
    plane: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="A B C D",
            help="The ground instead: A x + B y + C z + D = 0 in camera axes (x right, y down, z "
            "forward), metres.",
        ),
    ] = None,
    view: Annotated[
        Literal["birds_eye", "chase", "camera", "custom"],
        typer.Option(
            help="birds_eye: from above. chase: from behind and above the camera. camera: through "
            "it. custom: --eye and --target."
        ),
    ] = "birds_eye",
    eye: Annotated[
        Point | None,
        typer.Option(
            metavar="X Y Z",
            help="Custom: where to look from; metres ahead of the camera, to its left, above the "
            "ground.",
        ),
    ] = None,
    target: Annotated[
        Point | None, typer.Option(metavar="X Y Z", help="Custom: what to look at, likewise.")
    ] = None,
    fov: Annotated[
        float, typer.Option(help="Custom: field of view across the picture, degrees.")
    ] = 50.0,
    size: Annotated[
        tuple[int, int], typer.Option(metavar="WIDTH HEIGHT", help="Of the picture, pixels.")
    ] = (1280, 960),
    labels: Annotated[bool, typer.Option(help="Write names and scale.")] = True,
) -> None:
    """Place the objects of an image in one scene, and draw it from any side."""
    with user_errors():
        start_warp("cpu")
        from pose_refiner_ros import shipped
        from pose_refiner_ros.cli import scene_command as command
        from pose_refiner_ros.drawing.scene_view import draw_scene
        from pose_refiner_ros.objects.library import ObjectLibrary

        ground = command.ground_plane(camera_height, camera_pitch, camera_roll, plane or ())
        picture_size = command.checked_size(size)
        shown = command.chosen_view(view, eye or (), target or (), fov, picture_size)
        camera, found, problems = command.read_poses(poses)
        library = ObjectLibrary.load(objects or shipped.OBJECTS)
        composed, left_out = command.make_scene(camera, found, ground)
        drawn, not_drawn = command.drawable(composed, library)
        problems += left_out + not_drawn + command.off_ground(drawn, library)
        write_picture(out, draw_scene(drawn, library, shown, picture_size, labels))
        if json_path is not None:
            write_atomically(json_path, command.to_json(composed, ground, problems).encode())
    for problem in problems:
        tell(f"warning: {problem}", "yellow")
    console.print(rich_table(command.table_rows(composed), total=False))
    console.print(f"Scene in {out}" + (f", poses in {json_path}" if json_path else ""))
    if not composed.objects:
        raise typer.Exit(1)
