# SPDX-License-Identifier: Apache-2.0
"""`pose-refiner encoder`: train the network that guesses class and pose from a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pose_refiner_ros.cli.common import (
    ClustersOption,
    Device,
    PerClusterOption,
    ShapeNetOption,
    collection_of,
    console,
    counting_bar,
    errors,
    tell,
    user_errors,
)

app = typer.Typer(help="The network that guesses class and pose from a mask.", no_args_is_help=True)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Weights to write, safetensors; a card beside them.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="For checkpoint and TensorBoard; OUT with the ending .training if not."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam.")] = 30_000,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=1e-7, max=1.0, help="At its peak.")] = 1e-3,
    pose_head: Annotated[
        Literal["continuous", "euler_cosine"],
        typer.Option(help="euler_cosine is the paper's, for comparison."),
    ] = "continuous",
    input_: Annotated[
        Literal["mask", "rgb_mask"], typer.Option("--input", help="What the network sees.")
    ] = "mask",
    window: Annotated[
        Literal["crop", "image"],
        typer.Option(help="Around the mask, or the whole photo as in the paper."),
    ] = "crop",
    size: Annotated[int, typer.Option(help="Side of the input, a multiple of 32.")] = 64,
    shapenet: ShapeNetOption = None,
    clusters: ClustersOption = None,
    per_cluster: PerClusterOption = None,
    accelerator: Annotated[Device, typer.Option(help="Where to train.")] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="How many GPUs or CPU processes.")] = 1,
    precision: Annotated[
        str, typer.Option(help="auto, 32-true, bf16-mixed, 16-mixed ...: Fabric's names.")
    ] = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw, each device.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and pictures.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in FOLDER.")
    ] = False,
) -> None:
    """Train the encoder on vehicles that are drawn as they are needed."""
    with user_errors():
        from pose_refiner_ros.datasets.vehicles.collection import CLUSTERS
        from pose_refiner_ros.encoder.network import EncoderSettings

        settings = EncoderSettings(CLUSTERS, pose_head, input_, window, size)
        collection = collection_of(shapenet, clusters, per_cluster)
        from lightning_fabric.utilities.rank_zero import rank_zero_only

        from pose_refiner_ros.encoder.weights import save_encoder
        from pose_refiner_ros.learning.encoder_training import TrainingOptions
        from pose_refiner_ros.learning.model_card import write_card
        from pose_refiner_ros.learning.vehicle_training import train_on

        options = TrainingOptions(
            steps, batch, learning_rate, precision=precision, workers=workers, seed=seed
        )
        with counting_bar() as bar:
            task = bar.add_task("Training", total=steps)

            def show(done: int, total: int, figures: dict[str, float]) -> None:
                angle = figures.get("val_mve_deg")
                text = "Training" if angle is None else f"Training, median {angle:.1f} deg off"
                bar.update(task, completed=done, description=text)
                if not errors.is_terminal and done % options.checkpoint_every == 0:
                    rounded = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
                    errors.print(f"step {done}/{total}  {rounded}", soft_wrap=True)

            encoder, record = train_on(
                collection, settings, folder or out.with_suffix(".training"), options,
                devices, accelerator, resume, show,
            )  # fmt: skip
        if rank_zero_only.rank:
            return  # the first of several processes writes
        save_encoder(encoder, out, record)
        card = write_card(out, settings, record)
    console.print(f"Weights in {out}, how they were made in {card}")


@app.command()
def info(
    weights: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Encoder weights; the package's if not given."),
    ] = None,
) -> None:
    """Say what an encoder is and how it was trained."""
    with user_errors():
        from rich.markdown import Markdown

        from pose_refiner_ros.encoder.weights import load_encoder
        from pose_refiner_ros.learning.model_card import card_text
        from pose_refiner_ros.shipped import ENCODER

        weights = weights or ENCODER
        encoder, record = load_encoder(weights)
    try:
        card = card_text(weights.name, encoder.settings, record)
    except (AttributeError, TypeError, ValueError):  # the record is of other people's making
        tell(f"warning: the record of its training in {weights} cannot be read", "yellow")
        card = card_text(weights.name, encoder.settings, {})
    console.print(Markdown(card))
