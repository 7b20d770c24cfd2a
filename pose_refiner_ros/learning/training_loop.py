# SPDX-License-Identifier: Apache-2.0
"""What the trainings of all kinds of field share: the loop of steps, and what ends it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from pose_refiner_ros.fields.field import FieldError, RadianceField

if TYPE_CHECKING:
    from pose_refiner_ros.datasets.posed_images.views import PosedImages

Progress = Callable[[int, int, dict[str, float]], None]  # steps done, of how many, figures


class Training(Protocol):
    """A training that can be interrupted: `step` as often as needed, `state` in between."""

    options: Any  # a dataclass with `steps`, how many there are
    done: int  # steps
    field: RadianceField  # what has been learned so far

    def step(self) -> float | Tensor:
        """One batch of rays; returns its squared error."""

    def state(self) -> dict[str, Any]:
        """All that is needed to go on: `torch.save` writes it, and reads it with weights_only."""

    def finish(self, figures: dict[str, Any] | None = None) -> RadianceField:
        """The field with the record of its training, and figures in it."""


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


def check_several(posed: PosedImages) -> None:
    """Raises FieldError for less than two photos."""
    if len(posed) < 2:
        raise FieldError(f"{len(posed)} photo is too few for a field: give at least two")


@contextlib.contextmanager
def state_errors() -> Iterator[None]:
    """Turns what a state that is none raises into FieldError."""
    try:
        yield
    except FieldError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FieldError(f"the checkpoint cannot be used: {error!r}; start anew") from error
