# SPDX-License-Identifier: Apache-2.0
"""The photo as a term of the solver: colours of a radiance field against those of pixels.

What iNeRF (2021) descends with Adam, eq. 1, as a least-squares problem with the exact derivative of
each ray: the residual is the field's colour in front of a background, and its opacity where there
is a mask, minus what was observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import warp as wp

from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.grid_kernels import recorded_over
from pose_refiner_ros.rendering.radiance import blur_lattice, mat46, trace_kernel

from .mirror import Mirror
from .photo_evidence import DIFFERENT, TILES, Rays
from .solver import State

wp.set_module_options({"enable_backward": False})

BLOCK = 128
STEP = 1.0  # between samples of a ray, voxels
# The difference of colour that counts as one pixel of an outline counts in the silhouette term:
# what a textured picture changes by from pixel to pixel.
COLOUR_OF_PIXEL = 0.1
# Standard deviations of gain and bias beforehand, as one ray would measure them: little, so that
# they are only felt where a photo is too plain to tell the two apart.
GAIN_SIGMA = 1.0
BIAS_SIGMA = 0.5

vec15 = wp.types.vector(length=15, dtype=wp.float32)
vec18 = wp.types.vector(length=18, dtype=wp.float32)


@dataclass(frozen=True)
class RadianceStage:
    """How closely a level looks.

    rays: how many, times those that the user asked for; sigma: of the blur of pictures, in steps
    of the lattice that the rays form, 0: rays are where the photo is interesting; grain: size of
    what the field still shows, in steps from ray to ray; robust: residuals far larger than this
    (colour) count by their size, not its square (Fair's function): shadows, what hides the object,
    what the field never learned.
    """

    rays: float
    sigma: float
    grain: float
    robust: float


@dataclass(eq=False)
class ObjectRays:
    """What one object of the batch is compared with, and how many poses of it there are.

    look: the field and the rays of a level, asked for only where that level is used; background:
    (3,) behind the field; opacity: weight of the residual of opacity beside those of colour; count:
    of poses.
    """

    look: Callable[[int], tuple[GridField, Rays]]
    background: np.ndarray
    opacity: float
    count: int


@dataclass(eq=False)
class _Uploaded:
    """One object at one level, on the device."""

    field: GridField
    compare: Comparison
    directions: wp.array
    lattice: tuple[int, int] | None
    count: int


@dataclass(frozen=True, eq=False)
class PhotoFit:
    """How fields in poses (B) fit their photos.

    hessian: (B, 6, 6) Gauss-Newton matrix; sectors: (B, S, 6) gradient by tile of the picture;
    cost: (B,); rms: (B,) robust RMS difference of colour where the photo or the field shows more
    than the background; gain, bias: (B, 3) by which the field's colours become the photo's, 1 and 0
    unless asked for.
    """

    hessian: np.ndarray
    sectors: np.ndarray
    cost: np.ndarray
    rms: np.ndarray
    gain: np.ndarray
    bias: np.ndarray


@wp.struct
class Comparison:
    """Rays of one object: what was observed, and how it counts."""

    observed: wp.array(dtype=wp.vec4)
    weight: wp.array(dtype=wp.float32)
    tile: wp.array(dtype=wp.int32)
    background: wp.vec3
    opacity: wp.float32
    robust: wp.float32
    unit: wp.float32  # of the cost: one over the colour of a pixel, squared
    rays: wp.int32
    pose_first: wp.int32


@wp.func
def over(colour: wp.vec4, background: wp.vec3):
    """A premultiplied colour in front of a background."""
    left = 1.0 - colour[3]
    return wp.vec3(
        colour[0] + left * background[0],
        colour[1] + left * background[1],
        colour[2] + left * background[2],
    )


@wp.func
def lit(colour: wp.vec4, opacity: float):
    """How much of a bias a pixel gets: all, or, where a mask has made what is behind the object
    black, the object's share."""
    if opacity > 0.0:
        return colour[3]
    return 1.0


@wp.func
def residual_of(
    colour: wp.vec4,
    seen: wp.vec4,
    background: wp.vec3,
    gain: wp.vec3,
    bias: wp.vec3,
    opacity: float,
):
    """(red, green, blue, opacity) of what is rendered minus what was observed."""
    rgb = wp.cw_mul(gain, over(colour, background)) + lit(colour, opacity) * bias
    return wp.vec4(
        rgb[0] - seen[0], rgb[1] - seen[1], rgb[2] - seen[2], opacity * (colour[3] - seen[3])
    )


@wp.kernel
def sum_for_exposure(
    active: wp.array(dtype=wp.int32),
    compare: Comparison,
    colours: wp.array2d(dtype=wp.vec4),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    sums: wp.array2d(dtype=wp.float32),
    lanes: int,
):
    """Sums of weighted regressions observed = gain * rendered + bias, five for each channel."""
    block, lane = wp.tid()
    i = compare.pose_first + block
    if active[i] == 0:
        return
    total = vec15()
    for ray in range(lane, compare.rays, lanes):
        colour = colours[i, ray]
        seen = compare.observed[ray]
        r = residual_of(colour, seen, compare.background, gain[i], bias[i], compare.opacity)
        w = compare.weight[ray] / (1.0 + wp.length(r) / compare.robust)
        rgb = over(colour, compare.background)
        one = lit(colour, compare.opacity)
        for k in range(3):
            total[5 * k] = total[5 * k] + w * one * one
            total[5 * k + 1] = total[5 * k + 1] + w * one * rgb[k]
            total[5 * k + 2] = total[5 * k + 2] + w * rgb[k] * rgb[k]
            total[5 * k + 3] = total[5 * k + 3] + w * one * seen[k]
            total[5 * k + 4] = total[5 * k + 4] + w * rgb[k] * seen[k]
    for k in range(15):
        wp.atomic_add(sums, i, k, total[k])


@wp.kernel
def solve_exposure(
    active: wp.array(dtype=wp.int32),
    pose_first: int,
    sums: wp.array2d(dtype=wp.float32),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    inverse: wp.array2d(dtype=wp.vec3),
):
    """Gain and bias of each channel, and the inverse of their normal equations (a, b, c of a
    symmetric 2x2)."""
    i = pose_first + wp.tid()
    if active[i] == 0:
        return
    g = wp.vec3()
    b = wp.vec3()
    for k in range(3):
        one = sums[i, 5 * k] + prior[1]
        x = sums[i, 5 * k + 1]
        xx = sums[i, 5 * k + 2] + prior[0]
        y = sums[i, 5 * k + 3]
        xy = sums[i, 5 * k + 4] + prior[0]
        determinant = wp.max(xx * one - x * x, 1.0e-12)
        g[k] = (one * xy - x * y) / determinant
        b[k] = (xx * y - x * xy) / determinant
        inverse[i, k] = wp.vec3(one, -x, xx) / determinant
    gain[i] = g
    bias[i] = b


@wp.func
def is_object(seen: wp.vec4, ground: wp.vec3, compare: Comparison):
    """Whether a pixel, observed or rendered, shows more than the ground behind the object."""
    off = wp.vec3(seen[0], seen[1], seen[2]) - ground
    return wp.max(wp.abs(off)) > DIFFERENT or (compare.opacity > 0.0 and seen[3] > 0.5)


@wp.func
def jacobian_row(J: mat46, channel: int, gain: wp.vec3, bias: wp.vec3, compare: Comparison):
    """Of a residual by the pose."""
    row = wp.spatial_vector()
    for a in range(6):
        if channel < 3:
            row[a] = gain[channel] * (J[channel, a] - compare.background[channel] * J[3, a])
            if compare.opacity > 0.0:
                row[a] = row[a] + bias[channel] * J[3, a]
        else:
            row[a] = compare.opacity * J[3, a]
    return row


@wp.kernel
def add_residuals(
    state: State,
    compare: Comparison,
    colours: wp.array2d(dtype=wp.vec4),
    jacobians: wp.array2d(dtype=mat46),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    coupling: wp.array2d(dtype=wp.spatial_vector),
    with_coupling: int,
    measures: wp.array(dtype=wp.vec2),
    sectors: wp.array2d(dtype=wp.spatial_vector),
    with_sectors: int,
    lanes: int,
):
    """Cost, gradient and Gauss-Newton matrix of all rays of a pose."""
    block, lane = wp.tid()
    i = compare.pose_first + block
    if state.active[i] == 0:
        return
    H = wp.spatial_matrix()
    g = wp.spatial_vector()
    cost = float(0.0)
    weight = float(0.0)
    on_object = float(0.0)
    square = float(0.0)
    by_gain = vec18()
    by_bias = vec18()
    for ray in range(lane, compare.rays, lanes):
        known = compare.weight[ray]
        if known == 0.0:
            continue
        colour = colours[i, ray]
        r = residual_of(
            colour, compare.observed[ray], compare.background, gain[i], bias[i], compare.opacity
        )
        size = wp.length(r)
        ratio = size / compare.robust
        w = known / (1.0 + ratio)
        # Fair's function ratio - log(1 + ratio), by its series where that would cancel
        fair = ratio - wp.log(1.0 + ratio)
        if ratio < 0.1:
            fair = ratio * ratio * (0.5 - ratio * (1.0 / 3.0 - ratio * (0.25 - 0.2 * ratio)))
        cost += known * compare.robust * compare.robust * fair
        weight += w
        behind = over(colour, compare.background)
        drawn = wp.vec4(behind[0], behind[1], behind[2], colour[3])
        ground = compare.background
        if compare.opacity == 0.0:  # in the photo it is in the photo's light
            ground = wp.cw_mul(gain[i], ground) + bias[i]
        if is_object(compare.observed[ray], ground, compare) or is_object(
            drawn, compare.background, compare
        ):
            on_object += w
            square += w * (r[0] * r[0] + r[1] * r[1] + r[2] * r[2]) / 3.0
        if colour[3] == 0.0:
            continue  # nothing there that could move
        J = jacobians[i, ray]
        here = wp.spatial_vector()
        for channel in range(4):
            row = jacobian_row(J, channel, gain[i], bias[i], compare)
            here += (w * r[channel]) * row
            for a in range(6):
                for b in range(a, 6):
                    H[a, b] = H[a, b] + w * row[a] * row[b]
        # Along the residual the robust function bends less than its weight says.
        along = here / wp.max(w * size, 1.0e-12)
        less = w * ratio / (1.0 + ratio)
        for a in range(6):
            for b in range(a, 6):
                H[a, b] = H[a, b] - less * along[a] * along[b]
        if with_coupling == 1:
            left = 1.0 - colour[3]
            share = lit(colour, compare.opacity)
            for channel in range(3):
                row = w * jacobian_row(J, channel, gain[i], bias[i], compare)
                row -= (less * r[channel] / wp.max(size, 1.0e-12)) * along
                x = colour[channel] + left * compare.background[channel]
                for a in range(6):
                    by_gain[6 * channel + a] = by_gain[6 * channel + a] + row[a] * x
                    by_bias[6 * channel + a] = by_bias[6 * channel + a] + row[a] * share
        g += here
        if with_sectors == 1:
            wp.atomic_add(sectors, i, compare.tile[ray], compare.unit * here)
    for a in range(6):
        for b in range(a):
            H[a, b] = H[b, a]
    wp.atomic_add(state.trial_hessian, i, compare.unit * H)
    wp.atomic_add(state.trial_gradient, i, compare.unit * g)
    wp.atomic_add(state.trial_cost, i, compare.unit * cost)
    wp.atomic_add(state.trial_weight, i, weight)
    wp.atomic_add(measures, i, wp.vec2(square, on_object))
    if with_coupling == 1:
        for channel in range(3):
            one = wp.spatial_vector()
            other = wp.spatial_vector()
            for a in range(6):
                one[a] = by_gain[6 * channel + a]
                other[a] = by_bias[6 * channel + a]
            wp.atomic_add(coupling, i, 2 * channel, one)
            wp.atomic_add(coupling, i, 2 * channel + 1, other)


@wp.kernel
def eliminate_exposure(
    state: State,
    pose_first: int,
    unit: float,
    coupling: wp.array2d(dtype=wp.spatial_vector),
    inverse: wp.array2d(dtype=wp.vec3),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
):
    """Take from the normal equations what a change of exposure would explain as well (Schur)."""
    i = pose_first + wp.tid()
    if state.active[i] == 0:
        return
    taken = wp.spatial_matrix()
    cost = float(0.0)
    for k in range(3):
        u = coupling[i, 2 * k]
        v = coupling[i, 2 * k + 1]
        q = inverse[i, k]
        taken += q[0] * wp.outer(u, u) + q[1] * (wp.outer(u, v) + wp.outer(v, u))
        taken += q[2] * wp.outer(v, v)
        away = gain[i][k] - 1.0
        cost += 0.5 * (prior[0] * away * away + prior[1] * bias[i][k] * bias[i][k])
    state.trial_hessian[i] = state.trial_hessian[i] - unit * taken
    state.trial_cost[i] = state.trial_cost[i] + unit * cost


class RadianceTerm:
    """Photos of objects against their fields, for up to `capacity` poses of up to `rays` rays each.

    exposure: also solve for a gain and a bias of each colour channel, per pose.
    """

    def __init__(
        self,
        stages: Sequence[RadianceStage],
        capacity: int,
        rays: int,
        exposure: bool = False,
        device: str = "cpu",
    ) -> None:
        self.stages = tuple(stages)
        self.exposure = exposure
        self.device = wp.get_device(device)
        self.level = 0
        self.count = 0
        self._objects: list[ObjectRays] = []
        self._state: State | None = None  # what the commands of each level are recorded for
        self._commands: dict[int, list[Callable[[], None]]] = {}
        self.colours = wp.zeros((capacity, rays), dtype=wp.vec4, device=device)
        self.jacobians = wp.zeros((capacity, rays), dtype=mat46, device=device)
        self._scratch = [wp.zeros_like(self.colours), wp.zeros_like(self.jacobians)]
        self.gain = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.bias = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.sums = wp.zeros((capacity, 15), dtype=wp.float32, device=device)
        self.inverse = wp.zeros((capacity, 3), dtype=wp.vec3, device=device)
        self.coupling = wp.zeros((capacity, 6), dtype=wp.spatial_vector, device=device)
        self.measures = wp.zeros(capacity, dtype=wp.vec2, device=device)
        self.sectors = wp.zeros((capacity, TILES * TILES), dtype=wp.spatial_vector, device=device)
        self._rows = Mirror(self, ["gain", "bias", "measures", "sectors"])

    def load(self, objects: Sequence[ObjectRays]) -> None:
        """What the poses of the batch are compared with; those of an object lie side by side."""
        self._objects = list(objects)
        self._commands = {}
        self.count = sum(seen.count for seen in self._objects)
        self._rows.write("gain", np.ones((self.count, 3), np.float32))
        self._rows.write("bias", np.zeros((self.count, 3), np.float32))

    def _upload(self, level: int) -> list[_Uploaded]:
        """All objects at a level."""
        uploaded, first, device = [], 0, self.device
        for seen in self._objects:
            field, rays = seen.look(level)
            compare = Comparison()
            compare.observed = wp.array(rays.observed, dtype=wp.vec4, device=device)
            compare.weight = wp.array(rays.weight, dtype=wp.float32, device=device)
            compare.tile = wp.array(rays.tile, dtype=wp.int32, device=device)
            compare.background = wp.vec3(*(float(c) for c in seen.background))
            compare.opacity = float(np.sqrt(seen.opacity))
            compare.robust = self.stages[level].robust
            compare.unit = 1.0 / COLOUR_OF_PIXEL**2
            compare.rays = len(rays.directions)
            compare.pose_first = first
            directions = wp.array(rays.directions, dtype=wp.vec3, device=device)
            uploaded.append(_Uploaded(field, compare, directions, rays.lattice, seen.count))
            first += seen.count
        return uploaded

    def set_level(self, index: int) -> None:
        self.level = index

    def accumulate(self, state: State) -> None:
        """Add cost and derivatives of all rays at the trial poses of the state."""
        self.measures.zero_()
        if self.level == len(self.stages) - 1:
            self.sectors.zero_()
        if state is not self._state:
            self._state, self._commands = state, {}
        if self.level not in self._commands:
            self._commands[self.level] = [
                command
                for seen in self._upload(self.level)
                for command in self._record(state, seen)
            ]
        for command in self._commands[self.level]:
            command()

    def _record(self, state: State, seen: _Uploaded) -> Iterator[Callable[[], None]]:
        """What is launched for an object at this level in every iteration."""
        yield self._trace(state, seen)
        if self.stages[self.level].sigma > 0.0:
            yield from self._blur(state, seen)
        yield from self._compare(state, seen.count, seen.compare)

    def _trace(self, state, seen: _Uploaded) -> Callable[[], None]:
        field, compare = seen.field, seen.compare
        return recorded_over(
            trace_kernel(field.degree),
            seen.count * compare.rays,
            [
                field.arrays,
                state.active,
                state.trial_rotation,
                state.trial_translation,
                compare.pose_first,
                compare.rays,
                seen.directions,
                STEP,
                self.colours,
                self.jacobians,
            ],
            self.device,
        )

    def _blur(self, state, seen: _Uploaded) -> Iterator[Callable[[], None]]:
        rows, columns = seen.lattice
        first = seen.compare.pose_first
        sigma = self.stages[self.level].sigma
        radius = int(np.ceil(2.5 * sigma))
        sharp, scratch = [self.colours, self.jacobians], self._scratch
        for stride, source, target in ((1, sharp, scratch), (columns, scratch, sharp)):
            yield recorded_over(
                blur_lattice,
                seen.count * rows * columns,
                [state.active, first, rows, columns, stride, radius, sigma, *source, *target],
                self.device,
            )

    def _compare(self, state, count: int, compare: Comparison) -> Iterator[Callable[[], None]]:
        lanes = 1 if self.device.is_cpu else BLOCK
        prior = wp.vec2(GAIN_SIGMA**-2, BIAS_SIGMA**-2)
        first = compare.pose_first
        with_sectors = int(self.level == len(self.stages) - 1)
        exposed = [self.gain, self.bias]

        def recorded(kernel: Any, size: Any, inputs: list) -> Callable[[], None]:
            return wp.launch(kernel, size, inputs, device=self.device, record_cmd=True).launch

        if self.exposure:
            yield self.sums.zero_
            yield self.coupling.zero_
            yield recorded(
                sum_for_exposure,
                (count, lanes),
                [state.active, compare, self.colours, *exposed, self.sums, lanes],
            )
            yield recorded(
                solve_exposure,
                count,
                [state.active, first, self.sums, prior, *exposed, self.inverse],
            )
        yield recorded(
            add_residuals,
            (count, lanes),
            [
                state,
                compare,
                self.colours,
                self.jacobians,
                *exposed,
                self.coupling,
                int(self.exposure),
                self.measures,
                self.sectors,
                with_sectors,
                lanes,
            ],
        )
        if self.exposure:
            yield recorded(
                eliminate_exposure,
                count,
                [state, first, compare.unit, self.coupling, self.inverse, prior, *exposed],
            )

    def fit(self, state: State) -> PhotoFit:
        """How the poses that were looked at last fit their photos."""
        count = self.count
        square, weight = self._rows.read("measures", count).astype(np.float64).T
        return PhotoFit(
            hessian=state.trial_hessian.numpy()[:count].copy(),
            sectors=self._rows.read("sectors", count).copy(),
            cost=state.trial_cost.numpy()[:count].copy(),
            rms=np.sqrt(square / np.maximum(weight, 1e-9)),
            gain=self._rows.read("gain", count).copy(),
            bias=self._rows.read("bias", count).copy(),
        )
