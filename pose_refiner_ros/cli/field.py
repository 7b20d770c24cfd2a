# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner field`: radiance fields from photos, and pictures of them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pose_refiner_ros.cli.common import (
    DeviceOption,
    console,
    counting_bar,
    errors,
    progress_bar,
    start_warp,
    tell,
    user_errors,
)
from pose_refiner_ros.cli.photo_poses import (
    Matching,
    ScaleFrom,
    are_photos_alone,
    find_poses,
    known_size,
    poses_beside,
)

if TYPE_CHECKING:
    import numpy as np

    from pose_refiner_ros.fields.field import RadianceField

app = typer.Typer(help="Radiance fields from photos.", no_args_is_help=True)
_INTERRUPTED = 130
_NAMED = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}


Kind = Literal["grid", "mlp"]
Network = Literal["auto", "small", "paper"]


@app.command()
def train(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder or file of photos with cameras: NeRF-synthetic, instant-ngp, LLFF, COLMAP "
            "or BOP; or a folder of photos alone, whose poses are found first (pycolmap)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Field to write, safetensors.")],
    unposed: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="More photos of the same camera, without poses: they are found in a field of the "
            "others, and those that fit well are used.",
        ),
    ] = None,
    poses: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Photos alone: where their poses are written; OUT_transforms.json if not given.",
        ),
    ] = None,
    matching: Annotated[
        Matching,
        typer.Option(help="Photos alone: which pairs are compared; sequential for video frames."),
    ] = "auto",
    scale_from: Annotated[
        ScaleFrom | None,
        typer.Option(help="Photos alone: what says how long a unit is."),
    ] = None,
    tag_size: Annotated[
        float | None,
        typer.Option(help="Metres; the black square of AprilTags or ArUco markers in the photos."),
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHOTO:X,Y;X,Y",
            help="Pixels of two points in a photo; give it for two photos or more.",
        ),
    ] = None,
    length: Annotated[float | None, typer.Option(help="Metres between the two points.")] = None,
    height: Annotated[
        float | None, typer.Option(help="Metres; of the object that masks show, along up.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="grid: minutes on a CPU. mlp: NeRF.")] = "grid",
    scale: Annotated[float, typer.Option(help="Metres per unit of the source's positions.")] = 1.0,
    factor: Annotated[int, typer.Option(min=1, help="Make photos smaller by this.")] = 1,
    object_id: Annotated[int | None, typer.Option(help="Of a BOP scene.")] = None,
    voxel: Annotated[
        float | None, typer.Option(help="Grid: metres between nodes; a pixel's width if not given.")
    ] = None,
    degree: Annotated[
        int | None,
        typer.Option(min=0, max=2, help="Grid: how much colours depend on the direction of view."),
    ] = None,
    background: Annotated[
        str | None,
        typer.Option(
            metavar="white|black|R,G,B",
            help="Colour behind photos, numbers from 0 to 1. Without it, photos without masks are "
            "taken to be filled to their edges.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches of rays.")] = None,
    network: Annotated[
        Network, typer.Option(help="MLP: its size; auto is paper on a GPU, else small.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of the rays.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint beside OUT.")
    ] = False,
    previews: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For PNG: test photo beside the field.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a field from photos, whose cameras are known or are found first."""
    begun = time.monotonic()
    with user_errors():
        from pose_refiner_ros.cli.single_image import InputError

        if kind == "mlp" and (voxel is not None or degree is not None):
            raise InputError("--voxel and --degree belong to --kind grid")
        if kind == "grid" and network != "auto":
            raise InputError("--network belongs to --kind mlp")
        where = start_warp(device)
        from pose_refiner_ros.learning.field_training import Source, train_field, training_folder

        chosen = {
            "steps": steps, "seed": seed, "voxel": voxel, "degree": degree,
            "background": _colour(background),
        }  # fmt: skip
        chosen = {name: value for name, value in chosen.items() if value is not None}
        options, settings = _options(kind, network, where, chosen)
        alone = are_photos_alone(source)
        known = known_size(scale_from, tag_size, points or [], length, height)
        if not alone and (known is not None or poses is not None or matching != "auto"):
            raise InputError(
                f"{source} says its poses: --poses, --matching and --scale-from are for photos "
                "alone; --scale says how many metres a unit is"
            )
        if alone:
            source = find_poses(source, poses or poses_beside(out), known, matching, scale, resume)
        with counting_bar() as bar:
            task = bar.add_task("Training", total=options.steps)

            def show(done: int, total: int, figures: dict[str, float]) -> None:
                text = f"PSNR of training rays {figures['psnr']:.1f} dB"
                bar.update(task, completed=done, total=total, description=text)
                if not errors.is_terminal and (done % max(total // 10, 1) == 0 or done == total):
                    errors.print(f"step {done}/{total}  {text}", soft_wrap=True)

            def search(what: str, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, description=what)
                if not errors.is_terminal and done in (0, total):
                    errors.print(f"{what}: {done}/{total}", soft_wrap=True)

            try:
                field = train_field(
                    Source(source, scale, factor, object_id, unposed), out, options, settings,
                    where, resume, previews, show,
                    lambda text: tell(f"warning: {text}", "yellow"), search,
                )  # fmt: skip
            except KeyboardInterrupt:
                bar.stop()
                there = training_folder(out).is_dir()
                advice = "go on with --resume" if there else "nothing was saved yet"
                tell(f"pose-refiner: interrupted; {advice}", "red")
                raise typer.Exit(_INTERRUPTED) from None
    _tell_found(field)
    console.print(
        f"{out}: {_quality(field)}{out.stat().st_size / 1e6:.1f} MB, "
        f"{time.monotonic() - begun:.0f} s",
        soft_wrap=True,
    )
    if alone:
        again = f"pose-refiner field train {source} --out {out}"
        console.print(f"to train again from these poses: {again}", soft_wrap=True)


@app.command()
def render(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A field.")],
    out: Annotated[Path, typer.Option(help="PNG, or MP4 of an orbit.")],
    pose: Annotated[
        Path | None,
        typer.Option(
            help="JSON: camera_from_object, 4x4, or a file that `refine` has written. Without it "
            "the camera looks at the field's middle, as the photos did."
        ),
    ] = None,
    orbit: Annotated[bool, typer.Option("--orbit", help="Go once around the field.")] = False,
    azimuth: Annotated[float, typer.Option(help="Degrees; where an orbit begins.")] = 0.0,
    elevation: Annotated[float, typer.Option(min=-90, max=90, help="Degrees.")] = 25.0,
    distance: Annotated[
        float | None, typer.Option(help="Metres to the middle; that of the photos if not given.")
    ] = None,
    frames: Annotated[int, typer.Option(min=2, max=10_000, help="Of the orbit.")] = 90,
    fps: Annotated[float, typer.Option(min=1, max=240, help="Pictures a second.")] = 30.0,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Pixels; that of the photos if not given.")
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(min=1, max=170, help="Degrees from top to bottom; as the photos' by default."),
    ] = None,
    camera: Annotated[
        Path | None,
        typer.Option(help="Instead of size and fov: as for `refine`; its distortion is left out."),
    ] = None,
    background: Annotated[
        str | None, typer.Option(metavar="white|black|R,G,B", help="Numbers from 0 to 1.")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Picture of a field from any side, or a film around it.

    Without a background a PNG is transparent where the field is.
    """
    with user_errors():
        from pose_refiner_ros.cli.single_image import InputError
        from pose_refiner_ros.fields.field_file import load_field
        from pose_refiner_ros.fields.orbit import (
            check_in_view,
            film,
            straight_picture,
            view_of,
            write_png,
        )
        from pose_refiner_ros.fields.orbit import orbit as orbit_poses

        suffix = ".mp4" if orbit else ".png"
        if out.suffix.lower() != suffix:
            raise InputError(
                f"--out {out} must end in {suffix} {'with' if orbit else 'without'} --orbit"
            )
        if orbit and pose is not None:
            raise InputError("--orbit and --pose exclude each other")
        colour = _colour(background)
        field = load_field(path, start_warp(device))
        view = view_of(field)
        K, pixels = _intrinsics(view, size, fov, camera)
        if pose is not None:
            poses = [_read_pose(pose)]
        else:
            poses = orbit_poses(
                view["centre"], view["up"], distance or view["distance"], elevation,
                frames if orbit else 1, math.radians(azimuth),
            )  # fmt: skip
        for one in poses:
            check_in_view(field, K, one, pixels)
        if not orbit:
            write_png(out, straight_picture(field, K, poses[0], pixels, colour))
        else:
            colour = colour or _NAMED["white"]
            with progress_bar("Rendering") as progress, film(out, pixels, fps) as add:
                for i, one in enumerate(poses):
                    add(straight_picture(field, K, one, pixels, colour))
                    progress(i + 1, frames)
    console.print(f"{out}: {len(poses)} x {pixels[1]}x{pixels[0]} pixels")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A field.")],
) -> None:
    """Say what a field is and how it was trained."""
    with user_errors():
        from pose_refiner_ros.cli.single_image import readable_json
        from pose_refiner_ros.fields.field_file import load_field

        field = load_field(path)
        background = field.background
        content = {
            "kind": field.kind,
            "bounds": field.bounds.tolist(),
            "background": None if background is None else background.tolist(),
            "features": 0 if field.features is None else len(field.features.points),
            **field.record,
        }
    console.print(readable_json(content), markup=False, soft_wrap=True)


def _options(kind: Kind, network: Network, where: str, chosen: dict):
    if kind == "grid":
        from pose_refiner_ros.learning.grid_training import GridOptions

        return GridOptions(**chosen), None
    from pose_refiner_ros.fields.mlp import PAPER, SMALL
    from pose_refiner_ros.learning.mlp_training import MlpOptions

    small = network == "small" or (network == "auto" and where == "cpu")
    return MlpOptions(**chosen), SMALL if small else PAPER


def _tell_found(field: RadianceField) -> None:
    """What became of photos without poses."""
    found = field.record.get("self_supervision")
    if found is None:
        return
    for picture in found["pictures"]:
        if not picture["accepted"]:
            tell(f"not used: {picture['name']}: {picture['reason']}", "yellow")
    console.print(
        f"{found['accepted']} of {found['unposed']} photos without poses used",
        soft_wrap=True,
    )


def _quality(field: RadianceField) -> str:
    test = field.record.get("test")
    if test is None:
        return "not measured on test photos, "
    count, (height, width) = len(test["psnr"]), test["size"]
    return f"test PSNR {test['mean_psnr']:.2f} dB over {count} photos of {width}x{height}, "


def _colour(text: str | None) -> tuple[float, float, float] | None:
    from pose_refiner_ros.cli.single_image import InputError

    if text is None or text in _NAMED:
        return _NAMED.get(text)
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 3 or not all(0.0 <= n <= 1.0 for n in numbers):
        raise InputError(
            f"--background {text!r}: give white, black or three numbers from 0 to 1, as 0.2,0.5,1"
        )
    return numbers


def _intrinsics(view: dict, size: str | None, fov: float | None, camera: Path | None):
    """(3, 3) and (height, width)."""
    import numpy as np

    from pose_refiner_ros.cli.single_image import InputError
    from pose_refiner_ros.fields.orbit import pinhole

    if camera is not None:
        from pose_refiner_ros.geometry.camera_file import load_camera

        if size is not None or fov is not None:
            raise InputError("--camera says size and angle already: leave out --size and --fov")
        loaded = load_camera(camera)
        return np.array(loaded.intrinsics), loaded.size
    pixels = tuple(view["size"])
    if size is not None:
        parts = size.lower().split("x")
        if len(parts) != 2 or not all(p.isdigit() and 1 <= int(p) <= 8192 for p in parts):
            raise InputError(f"--size {size!r}: give height x width in pixels, such as 480x640")
        pixels = int(parts[0]), int(parts[1])
    return pinhole(pixels, fov or view["fov_deg"]), pixels


def _read_pose(path: Path) -> np.ndarray:
    """(4, 4) camera_from_object: the matrix, an object with it, or the first object of a file."""
    import numpy as np

    from pose_refiner_ros.cli.single_image import InputError, read_json

    content = read_json(path, "pose")
    if isinstance(content, dict) and content.get("objects"):
        content = content["objects"][0]
    if isinstance(content, dict):
        content = content.get("camera_from_object")
    try:
        pose = np.array(content, np.float64).reshape(4, 4)
    except (TypeError, ValueError):
        raise InputError(
            f"pose {path} has no camera_from_object of 4x4 numbers: give that, or a file that "
            "`refine` has written"
        ) from None
    R = pose[:3, :3]
    rigid = np.isfinite(pose).all() and np.allclose(pose[3], (0, 0, 0, 1), atol=1e-6)
    if not (rigid and np.allclose(R @ R.T, np.eye(3), atol=1e-3) and np.linalg.det(R) > 0):
        raise InputError(f"pose {path} is no rotation and translation: {pose.tolist()}")
    return pose
