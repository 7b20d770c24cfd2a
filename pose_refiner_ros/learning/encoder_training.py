# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder: one command for a CPU, a GPU or several (Lightning Fabric)."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pose_refiner_ros.encoder.network import Encoder, EncoderError, EncoderSettings

CHECKPOINT = "checkpoint.ckpt"


@dataclass(frozen=True)
class TrainingOptions:
    """steps: of `batch` samples each; learning_rate: its peak, after `warm_up` steps, from which it
    falls to 0 by a cosine; weight_decay: of the convolutions; precision: Fabric's, or auto (bf16
    where the processor has it); workers: processes that draw; seed."""

    steps: int = 30_000
    batch: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 500
    weight_decay: float = 1e-5
    precision: str = "auto"
    workers: int = 1
    seed: int = 0
    checkpoint_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise EncoderError(f"{name} is {getattr(self, name)}; it must be at least 1")


DEFAULT = TrainingOptions()


def train_encoder(
    settings: EncoderSettings,
    training: torch.utils.data.IterableDataset,
    validation: Iterable[tuple[Tensor, ...]],
    folder: Path,
    options: TrainingOptions = DEFAULT,
    devices: int | str = "auto",
    accelerator: str = "auto",
    resume: bool = False,
    progress: Callable[[int, int, dict[str, float]], None] = lambda step, total, figures: None,
) -> tuple[Encoder, dict]:
    """Train an encoder with Adam; returns it and the record of its training.

    training: batches (windows, pinhole, camera_from_object, class_index) without end; validation:
    a few fixed ones. folder: where the checkpoint and TensorBoard's files go; resume: go on from
    the checkpoint there. Raises EncoderError where that is missing or of other settings, where one
    is there without `resume`, and for a training that diverges.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import TensorBoardLogger
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    checkpoint = folder / CHECKPOINT
    if resume and not checkpoint.exists():
        raise EncoderError(
            f"{checkpoint} does not exist: leave out --resume, or choose the folder of the "
            "training to go on with"
        )
    if checkpoint.exists() and not resume:
        raise EncoderError(
            f"{checkpoint} is of an earlier training: go on from it with --resume, remove it, or "
            "choose another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices if accelerator != "cpu" or devices != "auto" else 1,
            precision=_precision(options.precision, accelerator),
            loggers=TensorBoardLogger(folder, name=None, version=""),
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise EncoderError(f"training cannot start: {error}") from error
    fabric.launch()
    fabric.seed_everything(options.seed, verbose=False)
    encoder = Encoder(settings).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(
        [
            {"params": encoder.features.parameters(), "weight_decay": options.weight_decay},
            {"params": [*encoder.class_branch.parameters(), *encoder.pose_branch.parameters(),
                        *encoder.pose_head.parameters()]},
        ],
        lr=options.learning_rate,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _rate(step, options))
    network, optimizer = fabric.setup(encoder, adam)
    network.mark_forward_method("loss")
    start, seconds = 0, 0.0
    if resume:
        start, seconds = _resume(fabric, checkpoint, options, network, optimizer, schedule)
    # another seed for each resumption and each process, so that no picture comes twice
    training.seed = int(
        np.random.SeedSequence([options.seed, start, fabric.global_rank]).generate_state(1)[0]
    )
    loader = torch.utils.data.DataLoader(
        training,
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=8 if options.workers else None,
        multiprocessing_context="spawn" if options.workers else None,
    )
    batches = iter(fabric.setup_dataloaders(loader))
    figures: dict[str, float] = {}
    begun = time.monotonic()
    for step in range(start, options.steps):
        windows, pinhole, pose, index = next(batches)
        parts = network.loss(network(windows, pinhole), index, pose, pinhole)
        loss = sum(parts.values())
        if step % options.log_every == 0:
            figures.update({name: value.item() for name, value in parts.items()})
            if not math.isfinite(loss.item()):
                raise _diverged(f"the loss is {loss.item()}", step, options, checkpoint)
            fabric.log_dict({f"loss/{name}": figures[name] for name in parts}, step)
        optimizer.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(network, optimizer, max_norm=5.0, error_if_nonfinite=False)
        optimizer.step()
        schedule.step()
        done = step + 1
        if done % options.checkpoint_every == 0 or done == options.steps:
            # a checkpoint with NaN would be of no use to anybody
            if not all(weight.isfinite().all() for weight in encoder.parameters()):
                raise _diverged("weights are NaN or infinite", done, options, checkpoint)
            if fabric.is_global_zero:
                measured = validate(encoder, validation, fabric.device)
                fabric.log_dict({f"validation/{k}": v for k, v in measured.items()}, done)
                figures.update(measured)
            state = {
                "network": network, "optimizer": optimizer, "schedule": schedule.state_dict(),
                "step": done, "seconds": seconds + time.monotonic() - begun,
                "settings": dataclasses.asdict(settings),
            }  # fmt: skip
            _save(fabric, checkpoint, state)
        if fabric.is_global_zero and (done % options.log_every == 0 or done == options.steps):
            progress(done, options.steps, figures)
    record = {
        "steps": options.steps,
        "batch": options.batch * fabric.world_size,
        "samples": options.steps * options.batch * fabric.world_size,
        "seconds": round(seconds + time.monotonic() - begun),
        "device": f"{fabric.world_size} x {fabric.device.type}",
        "threads": torch.get_num_threads(),
        "precision": _precision(options.precision, accelerator),
        "options": dataclasses.asdict(options),
        "validation": {k: figures[k] for k in figures if k.startswith("val_")},
    }
    return encoder.eval(), record


@torch.no_grad()
def validate(
    encoder: Encoder, batches: Iterable[tuple[Tensor, ...]], device: torch.device
) -> dict[str, float]:
    """Accuracy and median viewpoint error of the likeliest and of the best hypothesis."""
    encoder.eval()
    angles, best, hits = [], [], []
    for windows, pinhole, pose, index in batches:
        found = encoder(windows.to(device), pinhole.to(device))
        R = found.poses.camera_from_object[..., :3, :3]
        difference = R.transpose(2, 3) @ pose.to(device)[:, None, :3, :3]
        trace = difference.diagonal(dim1=2, dim2=3).sum(-1)
        angle = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
        chosen = found.poses.logits.argmax(1)
        angles.append(angle.gather(1, chosen[:, None])[:, 0])
        best.append(angle.min(1).values)
        hits.append(found.class_logits.argmax(1) == index.to(device))
    encoder.train()
    angle, best, hits = torch.cat(angles), torch.cat(best), torch.cat(hits)
    return {
        "val_accuracy": float(hits.float().mean()),
        "val_mve_deg": float(angle.median()),
        "val_acc_pi_6": float((angle < 30).float().mean()),
        "val_best_mve_deg": float(best.median()),
        "val_best_acc_pi_6": float((best < 30).float().mean()),
    }


def _rate(step: int, options: TrainingOptions) -> float:
    rise = min(1.0, (step + 1) / max(options.warm_up, 1))
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(step / options.steps, 1.0)))


def _precision(wanted: str, accelerator: str) -> str:
    if wanted != "auto":
        return wanted
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    flags = torch.backends.cpu.get_cpu_capability()
    fast = "AVX512" in flags and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16-mixed" if fast else "32-true"


def _diverged(what: str, step: int, options: TrainingOptions, checkpoint: Path) -> EncoderError:
    text = f"{what} at step {step}: lower the learning rate ({options.learning_rate})"
    return EncoderError(f"{text} and resume from {checkpoint}" if checkpoint.exists() else text)


def _save(fabric, checkpoint: Path, state: dict) -> None:
    new = checkpoint.with_suffix(".new")
    fabric.save(new, state)
    if fabric.is_global_zero:
        os.replace(new, checkpoint)


def _resume(fabric, checkpoint, options, network, optimizer, schedule):
    """(steps done, seconds spent); the state goes into network, optimizer and schedule."""
    settings = network.module.settings
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        stored = {key: stored[key] for key in ("settings", "step", "seconds", "schedule")}
    except Exception as error:  # zip, pickle and torch have a kind each
        raise EncoderError(
            f"{checkpoint} is no whole checkpoint ({type(error).__name__}): remove it, or "
            "choose another folder"
        ) from error
    if stored["settings"] != dataclasses.asdict(settings):
        raise EncoderError(
            f"{checkpoint} is of another architecture: {stored['settings']}, not "
            f"{dataclasses.asdict(settings)}; remove it, or choose another folder"
        )
    if stored["step"] >= options.steps:
        raise EncoderError(
            f"{checkpoint} has done {stored['step']} steps already; ask for more than that"
        )
    state = {"network": network, "optimizer": optimizer}
    fabric.load(checkpoint, state, strict=False)
    # where the schedule stands is the checkpoint's to say, how high the rate is the options'
    schedule.load_state_dict(stored["schedule"])
    schedule.base_lrs = [options.learning_rate] * len(schedule.base_lrs)
    for group in schedule.optimizer.param_groups:
        group["lr"] = options.learning_rate * _rate(stored["step"], options)
    return stored["step"], stored["seconds"]
