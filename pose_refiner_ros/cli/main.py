# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner`: the list of its commands, and those that are short."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pose_refiner_ros.cli.common import (
    DeviceOption,
    EncoderOption,
    ExposureOption,
    ObjectsOption,
    RefinementOption,
    console,
    progress_bar,
    rich_table,
    start_warp,
    tell,
    user_errors,
)
from pose_refiner_ros.cli.encoder import app as encoder
from pose_refiner_ros.cli.evaluate import app as evaluate
from pose_refiner_ros.cli.field import app as field
from pose_refiner_ros.cli.refine import refine
from pose_refiner_ros.cli.scene import scene
from pose_refiner_ros.cli.vehicles import app as vehicles

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
app.add_typer(field, name="field")


app.command()(refine)
app.command()(scene)


@app.command()
def bop(
    dataset: Annotated[Path, typer.Argument(help="Folder in BOP's layout, with models/.")],
    out: Annotated[Path, typer.Option(help="Folder for results, report and overlays.")],
    split: Annotated[str, typer.Option(help="Folder of scenes.")] = "test",
    start: Annotated[
        Literal["codebook", "perturbed"],
        typer.Option(help="From nothing but the mask, or from the true pose made wrong."),
    ] = "codebook",
    rotation_deg: Annotated[
        float, typer.Option(min=0, max=180, help="Perturbed: angle about a random axis, degrees.")
    ] = 20.0,
    translation: Annotated[
        float, typer.Option(min=0, help="Perturbed: shift in a random direction, metres.")
    ] = 0.1,
    repeats: Annotated[int, typer.Option(min=1, help="Estimates per target.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the perturbations.")] = 0,
    masks: Annotated[
        Literal["visib", "full"], typer.Option(help="What is visible of an object, or all of it.")
    ] = "visib",
    search: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Perturbed: search all views as well; auto does where the start fails."),
    ] = "auto",
    depth: Annotated[
        Literal["auto", "never"], typer.Option(help="Use the depth images, where there are some.")
    ] = "auto",
    overlays: Annotated[int, typer.Option(min=0, help="Draw at most so many images.")] = 100,
    device: DeviceOption = "auto",
) -> None:
    """Run on a data set in BOP's layout; write results CSV, report and overlays."""
    with user_errors():
        start_warp(device)
        from pose_refiner_ros.evaluation.bop import Options, run_bop
        from pose_refiner_ros.evaluation.bop_report import table

        options = Options(
            split=split, start=start, rotation_deg=rotation_deg, translation=translation,
            repeats=repeats, seed=seed, masks=masks, search=search, depth=depth,
            overlays=overlays, device=device,
        )  # fmt: skip
        with progress_bar("Estimating poses") as progress:
            report = run_bop(dataset, out, options, progress)
    for skipped in report["skipped"]:
        tell(f"warning: {skipped}", "yellow")
    console.print(rich_table(table(report)))
    console.print(f"Results, report.json and overlays in {out}")


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
    depth: TopicOption = "",
    points: TopicOption = "",
    rectified: Annotated[
        bool, typer.Option("--rectified", help="Image and masks are rectified: use P, not K and D.")
    ] = False,
    overlay: Annotated[bool, typer.Option(help="Write pictures of the poses as well.")] = True,
    namespace: Annotated[str, typer.Option(help="Of the new topics.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    encoder: EncoderOption = "",
    refinement: RefinementOption = "solver",
    exposure: ExposureOption = True,
    fixed_frame: Annotated[
        str,
        typer.Option(
            metavar="FRAME", help="In which the world stands still, such as odom: the camera moves."
        ),
    ] = "",
    still: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Objects that never move.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Add poses, TF and overlay to a recorded bag. Needs no ROS."""
    with user_errors():
        start_warp(device)
        from pose_refiner_ros.ros.bag import BagOptions, run_bag, summary_lines

        topics = {
            "masks": masks, "camera_info": camera_info, "image": image, "detections": detections,
            "initial_poses": initial_poses, "depth": depth, "points": points,
        }  # fmt: skip
        options = BagOptions(
            objects, topics, device, overlay, overwrite, rectified, namespace, encoder,
            refinement, exposure, fixed_frame, still or [],
        )  # fmt: skip
        with progress_bar("Estimating poses") as progress:
            summary = run_bag(source, target, options, progress)
    for line in summary_lines(summary):
        console.print(line, markup=False, soft_wrap=True)
    if not summary.poses:
        raise typer.Exit(1)


@app.command()
def bench(
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Where to write the figures.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure how long a refinement takes on this machine."""
    with user_errors():
        start_warp(device)
        from pose_refiner_ros.evaluation.benchmark import run_benchmark

        run_benchmark(json_path, device=device)


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


def main() -> None:
    app(prog_name="pose-refiner")
