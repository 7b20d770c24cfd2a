# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner`: the commands. Each imports what it needs when it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from pose_refiner_ros.cli_common import (
    Device,
    DeviceOption,
    console,
    errors,
    rich_table,
    start_warp,
    tell,
    user_errors,
    write_picture,
)
from pose_refiner_ros.cli_encoder import app as encoder
from pose_refiner_ros.cli_evaluate import app as evaluate
from pose_refiner_ros.cli_scene import scene
from pose_refiner_ros.cli_vehicles import app as vehicles

if TYPE_CHECKING:
    from pose_refiner_ros.frame import ObjectPose
    from pose_refiner_ros.objects.model import ObjectModel

app = typer.Typer(
    help="6-DoF poses of known objects from camera images and instance masks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(vehicles, name="vehicles")
app.add_typer(encoder, name="encoder")
app.add_typer(evaluate, name="evaluate")


class Start(str, Enum):
    codebook = "codebook"
    perturbed = "perturbed"


class Masks(str, Enum):
    visib = "visib"
    full = "full"


class Search(str, Enum):
    auto = "auto"
    always = "always"
    never = "never"


class Refinement(str, Enum):
    solver = "solver"
    gradient_pose = "gradient_pose"
    gradient_encoder = "gradient_encoder"


ObjectsOption = Annotated[
    Path | None,
    typer.Option(
        help="Object library YAML, or a BOP models/ folder; the package's sedan, suv and cargo if "
        "not given."
    ),
]
EncoderOption = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="Weights that name masks without a class, and guess first poses; the package's, where "
        "the library has a category that they know, if not given. none: no encoder.",
    ),
]
RefinementOption = Annotated[
    Refinement,
    typer.Option(help="solver: fast. The others are Palazzi et al.'s: seconds an object."),
]


@app.command()
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
    encoder: EncoderOption = "",
    refinement: RefinementOption = Refinement.solver,
    device: DeviceOption = Device.auto,
) -> None:
    """Estimate the poses of the objects in one image."""
    with user_errors():
        from pose_refiner_ros.single_image import Problem, read_inputs, to_json

        start_warp(device)
        from pose_refiner_ros.pipeline import Pipeline, Settings, choose_device

        place = choose_device(device.value)
        frame, library, knowing, problems = read_inputs(
            image, masks, camera, objects, label or [], init, encoder, place, refinement.value
        )
        from pose_refiner_ros.datasets.bop import write_atomically

        pipeline = Pipeline(library, Settings(refinement=refinement.value), place, knowing)
        poses = pipeline.process(frame, lambda where, text: problems.append(Problem(where, text)))
        write_atomically(out, to_json(frame, poses, problems, image).encode())
        if overlay is not None:
            from pose_refiner_ros.rendering.overlay import draw_overlay

            write_picture(overlay, draw_overlay(frame.image, frame.camera, library, poses))
    for problem in problems:
        tell(f"warning: {problem}", "yellow")
    console.print(pose_table(poses))
    for pose in poses:
        for doubt in doubts(pose, library[pose.name]):
            tell(f"warning: label {pose.label}: {doubt}", "yellow")
    console.print(f"Poses in {out}" + (f", drawn in {overlay}" if overlay else ""), highlight=False)
    if not poses:
        raise typer.Exit(1)


app.command()(scene)


@app.command()
def bop(
    dataset: Annotated[Path, typer.Argument(help="Folder in BOP's layout, with models/.")],
    out: Annotated[Path, typer.Option(help="Folder for results, report and overlays.")],
    split: Annotated[str, typer.Option(help="Folder of scenes.")] = "test",
    start: Annotated[
        Start, typer.Option(help="From nothing but the mask, or from the true pose made wrong.")
    ] = Start.codebook,
    rotation_deg: Annotated[
        float, typer.Option(min=0, max=180, help="Perturbed: angle about a random axis, degrees.")
    ] = 20.0,
    translation: Annotated[
        float, typer.Option(min=0, help="Perturbed: shift in a random direction, metres.")
    ] = 0.1,
    repeats: Annotated[int, typer.Option(min=1, help="Estimates per target.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the perturbations.")] = 0,
    masks: Annotated[
        Masks, typer.Option(help="What is visible of an object, or all of it.")
    ] = Masks.visib,
    search: Annotated[
        Search,
        typer.Option(help="Perturbed: search all views as well; auto does where the start fails."),
    ] = Search.auto,
    overlays: Annotated[int, typer.Option(min=0, help="Draw at most so many images.")] = 100,
    device: DeviceOption = Device.auto,
) -> None:
    """Run on a data set in BOP's layout; write results CSV, report and overlays."""
    with user_errors():
        start_warp(device)
        from rich.progress import Progress

        from pose_refiner_ros.evaluation.bop import Options, run_bop
        from pose_refiner_ros.evaluation.bop_report import table

        options = Options(
            split=split, start=start.value, rotation_deg=rotation_deg, translation=translation,
            repeats=repeats, seed=seed, masks=masks.value, search=search.value, overlays=overlays,
            device=device.value,
        )  # fmt: skip
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("Estimating poses", total=None)
            report = run_bop(
                dataset, out, options,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    for skipped in report["skipped"]:
        tell(f"warning: {skipped}", "yellow")
    console.print(rich_table(table(report)))
    console.print(f"Results, report.json and overlays in {out}", highlight=False)


TopicOption = Annotated[
    str, typer.Option(metavar="TOPIC", help="Found by itself if there is only one.")
]


@app.command()
def bag(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="ROS 2 bag: folder, .mcap or .db3 file.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="Bag to write (MCAP), with all topics of IN.")
    ],
    objects: ObjectsOption = None,
    masks: TopicOption = "",
    camera_info: TopicOption = "",
    image: TopicOption = "",
    detections: TopicOption = "",
    initial_poses: TopicOption = "",
    rectified: Annotated[
        bool, typer.Option("--rectified", help="Image and masks are rectified: use P, not K and D.")
    ] = False,
    overlay: Annotated[bool, typer.Option(help="Write pictures of the poses as well.")] = True,
    namespace: Annotated[str, typer.Option(help="Of the new topics.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    encoder: EncoderOption = "",
    refinement: RefinementOption = Refinement.solver,
    device: DeviceOption = Device.auto,
) -> None:
    """Add poses, TF and overlay to a recorded bag. Needs no ROS."""
    with user_errors():
        start_warp(device)
        from rich.progress import Progress

        from pose_refiner_ros.ros.bag import BagOptions, run_bag, summary_lines

        topics = {
            "masks": masks, "camera_info": camera_info, "image": image, "detections": detections,
            "initial_poses": initial_poses,
        }  # fmt: skip
        options = BagOptions(
            objects, topics, device.value, overlay, overwrite, rectified, namespace, encoder,
            refinement.value,
        )  # fmt: skip
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
            task = progress.add_task("Estimating poses", total=None)
            summary = run_bag(
                source, target, options,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )  # fmt: skip
    for line in summary_lines(summary):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if not summary.poses:
        raise typer.Exit(1)


@app.command()
def bench(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures.")
    ] = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Measure how long a refinement takes on this machine."""
    with user_errors():
        start_warp(device)
        from pose_refiner_ros.evaluation.benchmark import run_benchmark

        run_benchmark(json_path, device=device.value)


@app.command()
def objects(
    library: Annotated[
        Path, typer.Argument(metavar="FILE", help="Object library YAML, or a BOP models/ folder.")
    ],
) -> None:
    """Check an object library and show what was read.

    The exit code is 1 where an object had to be left out.
    """
    with user_errors():
        from pose_refiner_ros.objects.inspect import describe
        from pose_refiner_ros.objects.library import ObjectLibrary

        loaded = ObjectLibrary.load(library)
    console.print(describe(loaded))
    if loaded.problems:
        raise typer.Exit(1)


def doubts(pose: ObjectPose, model: ObjectModel) -> Iterator[str]:
    """What makes a pose ambiguous, and what to do about it."""
    from pose_refiner_ros.frame import AMBIGUOUS_BELIEF

    some = math.sqrt(AMBIGUOUS_BELIEF)  # one of the two shares is below where their product is
    if pose.quality == "ambiguous" and pose.belief < some:
        yield rival_of(pose, model)
    if pose.quality in ("ambiguous", "poor") and pose.class_probability < some:
        yield (
            f"{pose.name} with a probability of {pose.class_probability:.0%} only; say what it is "
            "with --label"
        )


def rival_of(pose: ObjectPose, model: ObjectModel) -> str:
    """The other pose that fits, and what to do where it should not."""
    from pose_refiner_ros.objects.symmetry import rotation_angle

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
    columns = ["label", "object", "x, y, z in m", "score", "IoU", "quality"]
    for column in columns + ["class"] * guessed:
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
            pose.quality,
            *([f"{pose.class_probability:.0%}" if pose.class_probability < 1.0 else ""] * guessed),
        )
    return table


def main() -> None:
    app(prog_name="pose-refiner")


if __name__ == "__main__":
    main()
