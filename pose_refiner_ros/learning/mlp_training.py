# SPDX-License-Identifier: Apache-2.0
"""Training of a NeRF from photos whose cameras are known.

Mildenhall et al. (2020), sections 5.2 and 5.3: Adam, rate falling exponentially from 5e-4 to 5e-5,
batches of rays from all photos, squared error of the coarse and of the fine picture.

Photos with masks are put in front of a random colour, anew for each ray, and so is the picture. The
paper puts them in front of white, which leaves open whether white is the object's or what is
behind it: a field may fill empty space with white. With random colours only what is empty where the
mask is fits, and the field can be put in front of anything afterwards.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.mlp import PAPER, MlpField, MlpSettings
from pose_refiner_ros.fields.rays import camera_rays

from .training_loop import Progress, Training, quiet, run

if TYPE_CHECKING:
    from pose_refiner_ros.datasets.posed_images.views import PosedImages

_LAST_RATE = 0.1  # share of the rate that is left at the last step


@dataclass(frozen=True)
class MlpOptions:
    """steps: of `rays` rays each; learning_rate: the first; background: (r, g, b) behind photos
    with masks, instead of random colours, or behind the whole scene where there are no masks."""

    steps: int = 200_000
    rays: int = 1024
    learning_rate: float = 5e-4
    background: tuple[float, float, float] | None = None
    seed: int = 0
    log_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "rays", "log_every"):
            if getattr(self, name) < 1:
                raise FieldError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.learning_rate < math.inf:
            raise FieldError(f"learning_rate is {self.learning_rate}; it must be above 0")


DEFAULT = MlpOptions()


class MlpTraining(Training):
    """See `Training`. resume_state: what `state` returned, to go on from.

    Raises FieldError for photos that show nothing, or a state of another field.
    """

    def __init__(
        self,
        posed: PosedImages,
        settings: MlpSettings = PAPER,
        options: MlpOptions = DEFAULT,
        device="cpu",
        resume_state: dict[str, Any] | None = None,
    ):
        super().__init__(posed, options)
        background = options.background
        if background is None and posed.alpha is None:
            background = (0.0, 0.0, 0.0)
        self.field = MlpField(posed.bounds, background, settings, seed=options.seed).to(device)
        self.field.requires_grad_(True)
        self._photos = _Photos(posed, device)
        self._adam = torch.optim.Adam(self.field.parameters(), lr=options.learning_rate)
        self._generator = torch.Generator(device).manual_seed(options.seed)
        if resume_state is not None:
            self.resume(resume_state)

    def _step(self) -> Tensor:
        """The squared error of the fine picture."""
        origins, directions, colour, alpha = self._photos.draw(self.options.rays, self._generator)
        behind = self.field.background
        if behind is None:
            behind = torch.rand((len(origins), 3), generator=self._generator, device=origins.device)
        behind = torch.as_tensor(behind).to(colour)
        observed = alpha * colour + (1.0 - alpha) * behind
        pictures = self.field.render_both(origins, directions, True, self._generator)
        errors = [(picture.over(behind) - observed).square().mean() for picture in pictures]
        for group in self._adam.param_groups:
            share = min(self.done / self.options.steps, 1.0)
            group["lr"] = self.options.learning_rate * _LAST_RATE**share
        self._adam.zero_grad()
        sum(errors).backward()
        self._adam.step()
        return errors[1].detach()

    def _state(self) -> dict[str, Any]:
        return {
            "settings": dataclasses.asdict(self.field.settings),
            "bounds": self.field.bounds.tolist(),
            "weights": self.field.state_dict(),
            "adam": self._adam.state_dict(),
            "generator": self._generator.get_state(),
        }

    def finish(self, figures: dict[str, Any] | None = None) -> MlpField:
        """The field with the record of its training, its weights frozen."""
        record = self._record(str(self.field.device), torch.get_num_threads())
        self.field.record = {**record, **(figures or {})}
        return self.field.requires_grad_(False)

    def _resume(self, state: dict[str, Any]) -> None:
        own = self._state()
        for name in ("settings", "bounds"):
            if state[name] != own[name]:
                raise FieldError(
                    f"the checkpoint is of a field with {name} {state[name]}; choose another place "
                    "for this training, or start anew"
                )
        self.field.load_state_dict(state["weights"])
        self._adam.load_state_dict(state["adam"])
        self._generator.set_state(state["generator"].cpu())


def train_mlp(
    posed: PosedImages,
    settings: MlpSettings = PAPER,
    options: MlpOptions = DEFAULT,
    device="cpu",
    progress: Progress = quiet,
) -> MlpField:
    """Train a NeRF from photos; the record of the training is in the field.

    progress: as for `run`, every `log_every` steps. Raises FieldError, also where the training
    diverges.
    """
    training = MlpTraining(posed, settings, options, device)
    return training.finish(run(training, progress, options.log_every))


class _Photos:
    """Pixels of all photos, drawn as rays."""

    def __init__(self, posed: PosedImages, device):
        self._size = tuple(posed.images.shape[1:3])
        self._colour = torch.as_tensor(posed.images, device=device).flatten(0, 2)
        self._alpha = None
        if posed.alpha is not None:
            self._alpha = torch.as_tensor(posed.alpha, device=device).flatten()
        self._chosen = None
        if posed.weight is not None:
            self._chosen = torch.as_tensor(posed.weight, device=device).flatten().nonzero()[:, 0]
            if len(self._chosen) == 0:
                raise FieldError("no pixel of the photos counts: all are hidden or unknown")
        self._K = torch.as_tensor(posed.intrinsics, device=device)
        self._pose = torch.as_tensor(posed.camera_from_object, device=device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Origins, directions, straight colours (R, 3) and alpha (R, 1) of pixels of all photos."""
        total = len(self._colour if self._chosen is None else self._chosen)
        index = torch.randint(total, (count,), generator=generator, device=self._colour.device)
        if self._chosen is not None:
            index = self._chosen[index]
        colour = self._colour[index].float() / 255.0
        alpha = torch.ones_like(colour[:, :1])
        if self._alpha is not None:
            alpha = self._alpha[index, None].float() / 255.0
        height, width = self._size
        image, pixel = index // (height * width), index % (height * width)
        pixels = torch.stack((pixel % width, pixel // width), -1)[:, None]
        rays = camera_rays(self._K[image], self._pose[image], pixels)
        return *(x[:, 0].float() for x in rays), colour, alpha
