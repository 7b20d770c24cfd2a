# SPDX-License-Identifier: Apache-2.0
"""What the trainings of all kinds of field share: the loop of steps, and what ends it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pose_refiner_ros.fields.field import FieldError, RadianceField

if TYPE_CHECKING:
    from pose_refiner_ros.datasets.posed_images.matched_points import MatchedPoints
from pose_refiner_ros.datasets.posed_images.views import PosedImages

Progress = Callable[[int, int, dict[str, float]], None]  # steps done, of how many, figures


class Training:
    """A training that can be interrupted: `step` as often as needed, `state` in between.

    A kind of field has `_step`, `_state`, `_resume`, and `finish(figures)`, which returns the field
    with the record of its training, and figures in it. Raises FieldError for less than two photos.
    """

    field: RadianceField  # what has been learned so far
    matched: MatchedPoints | None = None  # what photos have in common, where that was looked for

    def __init__(self, posed: PosedImages, options: Any) -> None:
        """options: a dataclass with `steps`, how many there are, of how many `rays`."""
        if len(posed) < 2:
            raise FieldError(f"{len(posed)} photo is too few for a field: give at least two")
        self.options, self.done, self.seconds = options, 0, 0.0
        self._photo_count = len(posed)

    def step(self) -> float | Tensor:
        """One batch of rays; returns its squared error."""
        begun = time.monotonic()
        error = self._step()
        self.done += 1
        self.seconds += time.monotonic() - begun
        return error

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: `torch.save` writes it, and reads it with weights_only."""
        return {**self._state(), "step": self.done, "seconds": self.seconds}

    def resume(self, state: dict[str, Any]) -> None:
        """Raises FieldError for a state that is none, or of another training."""
        try:
            self._resume(state)
            self.done, self.seconds = int(state["step"]), float(state["seconds"])
        except FieldError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise FieldError(f"the checkpoint cannot be used: {error!r}; start anew") from error

    def _record(self, device: str, threads: int | None, **more: Any) -> dict[str, Any]:
        return {
            "kind": self.field.kind,
            "steps": self.done,
            "rays": self.done * self.options.rays,
            "photos": self._photo_count,
            "seconds": round(self.seconds, 1),
            "device": device,
            "threads": threads,
            **more,
            "options": asdict(self.options),
        }


def quiet(done: int, total: int, figures: dict[str, float]) -> None:
    """No progress."""


def run(
    training: Training,
    progress: Progress = quiet,
    every: int = 10,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """All steps that are left.

    progress: called every so many steps, and after the last, with "psnr" of the last batches, in
    decibels. Returns what it got last. Raises FieldError where the training diverges.
    """
    total, errors = training.options.steps, []
    figures: dict[str, float] = {}
    while training.done < total:
        errors.append(training.step())
        if training.done % every == 0 or training.done == total:
            error = float(np.mean([float(e) for e in errors]))
            errors.clear()
            if not math.isfinite(error):
                raise FieldError(
                    f"the training diverged: its error is {error} at step {training.done}; lower "
                    "its rates, or give another seed"
                )
            figures = {"psnr": round(-10.0 * math.log10(max(error, 1e-10)), 2)}
            progress(training.done, total, figures)
        after_step()
    return figures
