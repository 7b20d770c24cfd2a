# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner refine`: the poses of the objects in one image, and what to say about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pose_refiner_ros.cli.common import (
    DeviceOption,
    EncoderOption,
    ExposureOption,
    ObjectsOption,
    RefinementOption,
    console,
    start_warp,
    tell,
    user_errors,
    write_picture,
)
from pose_refiner_ros.files.atomic import write_atomically

if TYPE_CHECKING:
    from pose_refiner_ros.frame import ObjectPose
    from pose_refiner_ros.objects.model import ObjectModel


def refine(
    image: Annotated[Path, typer.Option(help="The photo.")],
    masks: Annotated[Path, typer.Option(help="Label image, 8 or 16 bit grey; 0 = background.")],
    camera: Annotated[
        Path,
        typer.Option(help="BOP camera.json, ROS camera_info YAML, or 'fx fy cx cy width height'."),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the poses, JSON.")],
    objects: ObjectsOption = None,
    overlay: Annotated[Path | None, typer.Option(help="Where to draw the poses, PNG.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=NAME",
            help="Which object a label of the mask is; repeat for more. Not needed where the "
            "library has one object, gives its objects labels, or the encoder knows them.",
        ),
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start poses: a file that this command has written.")
    ] = None,
    depth: Annotated[
        Path | None,
        typer.Option(help="Depth image of the camera, registered to the photo: PNG, TIFF, .npy."),
    ] = None,
    depth_scale: Annotated[
        float, typer.Option(min=0, help="Metres per unit, where depths are whole numbers.")
    ] = 0.001,
    points: Annotated[
        Path | None,
        typer.Option(help="Points that were measured, metres: .pcd, .ply, .bin (KITTI), .npy."),
    ] = None,
    camera_from_points: Annotated[
        Path | None,
        typer.Option(help="Text file, 4x4: from the axes of the points to those of the camera."),
    ] = None,
    encoder: EncoderOption = "",
    refinement: RefinementOption = "solver",
    exposure: ExposureOption = True,
    device: DeviceOption = "auto",
) -> None:
    """Estimate the poses of the objects in one image."""
    with user_errors():
        from pose_refiner_ros.cli.single_image import Problem, read_inputs, to_json

        place = start_warp(device)
        from pose_refiner_ros.datasets.measured import read_depth, read_points, read_transform
        from pose_refiner_ros.pipeline import Pipeline, Settings

        frame, library, knowing, problems = read_inputs(
            image, masks, camera, objects, label or [], init, encoder, place, refinement
        )
        if depth is not None:
            frame.depth, frame.depth_scale = read_depth(depth), depth_scale
        if points is not None:
            frame.scan = read_points(points)
            if camera_from_points is not None:
                move = read_transform(camera_from_points)
                frame.scan = frame.scan @ move[:3, :3].T + move[:3, 3]
        settings = Settings(refinement=refinement, exposure=exposure)
        pipeline = Pipeline(library, settings, place, knowing)
        poses = pipeline.process(frame, lambda where, text: problems.append(Problem(where, text)))
        write_atomically(out, to_json(frame, poses, problems, image).encode())
        if overlay is not None:
            from pose_refiner_ros.drawing.overlay import draw_overlay

            write_picture(overlay, draw_overlay(frame.image, frame.camera, library, poses))
    for problem in problems:
        tell(f"warning: {problem}", "yellow")
    console.print(pose_table(poses))
    for pose in poses:
        for doubt in doubts(pose, library[pose.name]):
            tell(f"warning: label {pose.label}: {doubt}", "yellow")
    console.print(f"Poses in {out}" + (f", drawn in {overlay}" if overlay else ""))
    if not poses:
        raise typer.Exit(1)


def doubts(pose: ObjectPose, model: ObjectModel) -> Iterator[str]:
    """What makes a pose ambiguous, and what to do about it."""
    from pose_refiner_ros.frame import AMBIGUOUS_BELIEF
    from pose_refiner_ros.refinement.search import colours_differ

    some = math.sqrt(AMBIGUOUS_BELIEF)  # one of the two shares is below where their product is
    # in all poses: no symmetry explains that
    wrong = colours_differ(pose.photo_rms, pose.photo_correlation)
    if pose.quality == "ambiguous" and pose.belief < some and not wrong:
        yield rival_of(pose, model)
    if pose.quality in ("ambiguous", "poor") and pose.class_probability < some:
        yield (
            f"{pose.name} with a probability of {pose.class_probability:.0%} only; say what it is "
            "with --label"
        )


def rival_of(pose: ObjectPose, model: ObjectModel) -> str:
    """The other pose that fits, and what to do where it should not."""
    from pose_refiner_ros.geometry.pose import rotation_angle

    other = pose.alternatives[0]
    relative = pose.camera_from_object[:3, :3].T @ other.camera_from_object[:3, :3]
    degrees = math.degrees(float(rotation_angle(relative)))
    text = f"{pose.name} turned by {degrees:.0f} degrees fits about as well (IoU {other.iou:.3f})"
    if model.exact_shape:
        return f"{text}; if it looks the same then, give it that symmetry in the object library"
    ends = "front and rear" if degrees > 150.0 else "the two"
    return (
        f"{text}: {ends} cannot be told apart from this mask; a start pose (--init) or more frames "
        "decide"
    )


def pose_table(poses) -> Table:
    table = Table(box=None, header_style="bold")
    guessed = any(pose.class_probability < 1.0 for pose in poses)
    coloured = any(pose.photo_rms is not None for pose in poses)
    measured = any(pose.depth_agrees is not None for pose in poses)
    columns = ["label", "object", "x, y, z in m", "score", "IoU", *["colour RMS"] * coloured]
    columns += ["depth agrees"] * measured
    for column in [*columns, "quality", *["class"] * guessed]:
        justify = "left" if column in ("object", "quality") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for pose in poses:
        position = "  ".join(f"{x:+.3f}" for x in pose.camera_from_object[:3, 3])
        table.add_row(
            str(pose.label),
            pose.name,
            position,
            f"{pose.score:.2f}",
            f"{pose.iou:.3f}",
            *(["" if pose.photo_rms is None else f"{pose.photo_rms:.3f}"] * coloured),
            *(["" if pose.depth_agrees is None else f"{pose.depth_agrees:.0%}"] * measured),
            pose.quality,
            *([f"{pose.class_probability:.0%}" if pose.class_probability < 1.0 else ""] * guessed),
        )
    return table
