# SPDX-License-Identifier: Apache-2.0
"""NeRF: a radiance field in the weights of two networks, coarse and fine.

Mildenhall et al. (2020), the field that iNeRF (2021) inverts. Section 5.1: positional encoding,
10 frequencies for points and 4 for directions. Section 5.2: 64 stratified samples of each ray go
through the coarse network, whose weights say where the 128 samples lie that the fine network is
asked for besides. Appendix A: 8 layers of 256, the input again after the fifth, a branch of 128 for
the direction; a rectifier makes the density and a sigmoid the colour.

Three things are the package's own. Near and far are where a ray crosses the field's box, and points
are counted from its centre in halves of its longest side, so that a field of any size is encoded
alike. The last sample of a ray reaches to the far end, not to infinity: what lies behind the box
is seen through it. Samples move rigidly with their ray when the pose changes: no gradient goes
through where on the ray they lie, just as the paper lets none through the importance samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .features import FieldFeatures
from .field import FieldError, RenderedRays, check_bounds, check_state
from .rays import cross_box
from .surface import FieldSurface

_CHUNK = {"cpu": 2**15, "cuda": 2**20}  # points that are in the networks at once


@dataclass(frozen=True)
class MlpSettings:
    """The size of both networks and the samples of a ray; by default the paper's.

    width: of the layers; the direction's branch has half of it. depth: layers before density;
    the input joins again after layer depth // 2 + 1. density_noise: standard deviation of what is
    added to the density's raw value in training (appendix A: for photos, 1; for clean data, 0).
    """

    width: int = 256
    depth: int = 8
    point_frequencies: int = 10
    direction_frequencies: int = 4
    coarse_samples: int = 64
    fine_samples: int = 128
    density_noise: float = 0.0

    def __post_init__(self) -> None:
        least = {"width": 2, "depth": 3, "coarse_samples": 2, "fine_samples": 1}
        for setting in dataclasses.fields(self):
            value, low = getattr(self, setting.name), least.get(setting.name, 0)
            kind = (int, float) if setting.name == "density_noise" else int
            if not isinstance(value, kind) or not low <= value <= 4096:
                raise FieldError(f"{setting.name} is {value!r}; it must be from {low} to 4096")


SMALL = MlpSettings(width=64, depth=4, coarse_samples=32, fine_samples=32)  # for a CPU
PAPER = MlpSettings()


def positional_encoding(x: Tensor, frequencies: int) -> Tensor:
    """(sin πx, cos πx, sin 2πx, cos 2πx, sin 4πx, …), equation 4. (..., 3) -> (..., 6 L)."""
    powers = 2.0 ** torch.arange(frequencies, dtype=x.dtype, device=x.device)
    scaled = x[..., None, :] * (math.pi * powers)[:, None]
    return torch.stack((scaled.sin(), scaled.cos()), -2).flatten(-3)


class NerfNetwork(nn.Module):
    """Encoded points and directions -> raw density (N,) and colour (N, 3); figure 7."""

    def __init__(self, settings: MlpSettings):
        super().__init__()
        width, depth = settings.width, settings.depth
        points, directions = 6 * settings.point_frequencies, 6 * settings.direction_frequencies
        self._joins = depth // 2 + 1
        inputs = [points] + [width] * (depth - 1)
        inputs[self._joins] += points
        self.layers = nn.ModuleList(nn.Linear(n, width) for n in inputs)
        self.density = nn.Linear(width, 1)
        self.feature = nn.Linear(width, width)
        self.direction = nn.Linear(width + directions, width // 2)
        self.colour = nn.Linear(width // 2, 3)

    def forward(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        x = points
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(torch.cat((points, x), -1) if i == self._joins else x))
        density = self.density(x)[:, 0]
        x = torch.relu(self.direction(torch.cat((self.feature(x), directions), -1)))
        return density, torch.sigmoid(self.colour(x))


class MlpField(nn.Module):
    """A NeRF as a RadianceField (`field.py`). Its weights take gradients only while it is trained.

    Raises FieldError for bounds or a background that are none.
    """

    kind: ClassVar[str] = "mlp"

    def __init__(
        self,
        bounds,
        background=None,
        settings: MlpSettings = PAPER,
        record: dict | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.bounds = check_bounds(bounds)
        self.background = None if background is None else np.asarray(background, np.float64)
        if self.background is not None and self.background.shape != (3,):
            raise FieldError(f"background is {self.background.tolist()}; give (r, g, b)")
        self.settings = settings
        self.record = {} if record is None else record
        self.features: FieldFeatures | None = None
        self.surface: FieldSurface | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.coarse, self.fine = NerfNetwork(settings), NerfNetwork(settings)
        self.requires_grad_(False)
        box = torch.tensor(self.bounds, dtype=torch.float32)
        self.register_buffer("_box", box, persistent=False)
        self._half = float((self.bounds[1] - self.bounds[0]).max()) / 2.0

    @property
    def device(self) -> torch.device:
        return self._box.device

    def query(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) points, (N, 3) unit directions -> density (N,) 1/m, 0 outside the box, colour."""
        parts = [
            self._ask(self.fine, p, d)
            for p, d in zip(points.split(self._chunk), directions.split(self._chunk), strict=True)
        ]
        density, colour = (torch.cat(part) for part in zip(*parts, strict=True))
        inside = ((points >= self._box[0]) & (points <= self._box[1])).all(-1)
        return density * inside, colour

    def render(self, origins: Tensor, directions: Tensor) -> RenderedRays:
        """Rays (R, 3), (R, 3), unit directions -> what the fine network shows. Deterministic."""
        return self.render_both(origins, directions)[1]

    def render_both(
        self,
        origins: Tensor,
        directions: Tensor,
        training: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[RenderedRays, RenderedRays]:
        """What coarse and fine network show of rays (R, 3), (R, 3).

        training: samples are drawn at random in their bins, and the density is noisy, by the
        generator; otherwise samples are the middles of their bins, and the coarse network's picture
        has no gradient.
        """
        near, far = cross_box(origins.detach(), directions.detach(), self._box)
        hit = (far > near).nonzero()[:, 0]
        shape = (len(origins), 5)
        pictures = [torch.zeros(shape, device=self.device) for _ in range(2)]
        rays = (origins, directions, near, far)
        per_chunk = self._chunk // (self.settings.coarse_samples + self.settings.fine_samples)
        parts = [
            self._march(*(x[chosen] for x in rays), training, generator)
            for chosen in hit.split(max(per_chunk, 1))
        ]
        if len(hit):
            pictures = [
                picture.index_copy(0, hit, torch.cat(part))
                for picture, part in zip(pictures, zip(*parts, strict=True), strict=True)
            ]
        coarse, fine = (RenderedRays(x[:, :3], x[:, 3], x[:, 4]) for x in pictures)
        return coarse, fine

    def state(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self.state_dict().items()}

    @classmethod
    def from_state(
        cls, state: Mapping[str, np.ndarray], header: Mapping[str, Any], device="cpu"
    ) -> MlpField:
        """The field of a file (`field_file.py`). Raises FieldError where it does not fit."""
        try:
            settings = MlpSettings(**header["settings"])
        except TypeError as error:
            raise FieldError(
                f"its settings {header['settings']} cannot be used: {error}"
            ) from error
        field = cls(header["bounds"], header["background"], settings, header["record"])
        check_state(state, {name: tuple(x.shape) for name, x in field.state_dict().items()})
        field.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
        return field.to(device)

    @property
    def _chunk(self) -> int:
        return _CHUNK.get(self.device.type, 2**15)

    def _march(self, origins, directions, near, far, training, generator):
        """(R, 5) colour, opacity, depth of both networks, of rays that cross the box."""
        settings = self.settings
        edges = torch.linspace(0.0, 1.0, settings.coarse_samples + 1, device=near.device)
        edges = near[:, None] + (far - near)[:, None] * edges
        where = self._uniform(edges[:, :-1].shape, training, generator)
        coarse_at = edges[:, :-1] + (edges[:, 1:] - edges[:, :-1]) * where
        rays = (origins, directions, far, training, generator)
        # without training the coarse network only says where to look: it needs no gradient
        with torch.set_grad_enabled(training and torch.is_grad_enabled()):
            coarse, weights = self._sum_up(self.coarse, coarse_at, *rays)
        u = self._uniform((len(near), settings.fine_samples), training, generator)
        u = (torch.arange(settings.fine_samples, device=near.device) + u) / settings.fine_samples
        fine_at = _importance(edges, weights.detach(), u)
        fine_at = torch.cat((coarse_at, fine_at), 1).sort(dim=1).values
        return coarse, self._sum_up(self.fine, fine_at, *rays)[0]

    def _sum_up(self, network, at, origins, directions, far, training, generator):
        """(R, 5) and the weights (R, S) of samples at distances (R, S), equation 3."""
        points = origins[:, None] + at[..., None] * directions[:, None]
        noise = None
        if training and self.settings.density_noise > 0:
            noise = torch.randn(at.shape, generator=generator, device=at.device)
            noise = noise.flatten() * self.settings.density_noise
        density, colour = self._ask(
            network, points.flatten(0, 1), directions.repeat_interleave(at.shape[1], 0), noise
        )
        step = torch.diff(at, dim=1, append=far[:, None])
        passed = density.view_as(at) * step
        light = torch.exp(-(passed.cumsum(1) - passed))
        weights = light * -torch.expm1(-passed)
        opacity = weights.sum(1)
        colour = (weights[..., None] * colour.view(*at.shape, 3)).sum(1)
        depth = (weights * at).sum(1) / opacity.clamp(min=1e-6)
        return torch.cat((colour, opacity[:, None], depth[:, None]), 1), weights

    def _ask(self, network, points, directions, noise=None) -> tuple[Tensor, Tensor]:
        points = (points - self._box.mean(0)) / self._half
        raw, colour = network(
            positional_encoding(points, self.settings.point_frequencies),
            positional_encoding(directions, self.settings.direction_frequencies),
        )
        if noise is not None:
            raw = raw + noise
        return torch.relu(raw) / self._half, colour

    def _uniform(self, shape, training, generator) -> Tensor:
        if training:
            return torch.rand(shape, generator=generator, device=self.device)
        return torch.full(shape, 0.5, device=self.device)


def _importance(edges: Tensor, weights: Tensor, u: Tensor) -> Tensor:
    """(R, F) distances by the inverse of the distribution that weights (R, C) are, section 5.2.

    edges: (R, C + 1) of the bins; u: (R, F) in [0, 1].
    """
    weights = weights + 1e-5  # an empty ray is sampled evenly
    total = weights.cumsum(1)
    total = nn.functional.pad(total / total[:, -1:], (1, 0))
    bin_of = torch.searchsorted(total, u.contiguous(), right=True)
    bin_of = bin_of.clamp(1, weights.shape[1]) - 1
    low, high = total.gather(1, bin_of), total.gather(1, bin_of + 1)
    start, end = edges.gather(1, bin_of), edges.gather(1, bin_of + 1)
    return start + (end - start) * ((u - low) / (high - low).clamp(min=1e-12)).clamp(0.0, 1.0)
