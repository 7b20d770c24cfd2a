# SPDX-License-Identifier: Apache-2.0
"""Colours of a radiance field against those of the image.

What iNeRF (2021) descends with Adam, eq. 1, as a least-squares problem with the exact derivative of
each ray: the residual is the field's colour in front of a background, and its opacity where there
is a mask, minus what was observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import warp as wp

from pose_refiner_ros.fields.coarser import coarser
from pose_refiner_ros.fields.grid_kernels import recorded_over
from pose_refiner_ros.rendering.radiance import blur_lattice, mat46, trace_kernel

from ..colours import DIFFERENT, TILES, ColourImage, Rays, chosen_rays, lattice_rays
from ..host_buffer import HostBuffer, RecordedKernel
from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_all,
    add_normal_equations,
    allocate,
    clear,
    vector_in_reference,
)
from . import TermFit

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

    from ..hypotheses import Hypothesis
    from ..observation import Observation

wp.set_module_options({"enable_backward": False})

BLOCK = 128
STEP = 1.0  # between samples of a ray, voxels
# The difference of colour that counts as one pixel of an outline counts in the silhouette term:
# what a textured picture changes by from pixel to pixel.
COLOUR_OF_PIXEL = 0.1
# Standard deviations of gain and bias beforehand, as one ray would measure them: little, so that
# they are only felt where an image is too plain to tell the two apart.
GAIN_SIGMA = 1.0
BIAS_SIGMA = 0.5
OPACITY_WEIGHT = 1.0  # of the residual of opacity beside those of colour, where there is a mask
FACTORS = (1, 2, 4, 8, 16)  # by which a field is made coarser, where pixels are as large
WITHIN = 0.25  # diameters: the least distance for which a field is made coarser
LEAST_COMPARED = 20  # rays whose colours say whether an object has the field's

vec6 = wp.types.vector(length=6, dtype=wp.float32)
vec15 = wp.types.vector(length=15, dtype=wp.float32)
vec18 = wp.types.vector(length=18, dtype=wp.float32)


@dataclass(frozen=True)
class Scale:
    """How closely the term looks.

    rays: how many, times those that the user asked for; sigma: of the blur of pictures, in steps
    of the lattice that the rays form, 0: rays are where the image is interesting; cell: size of
    what the field still shows, in steps from ray to ray; robust: residuals far larger than this
    (colour) count by their size, not its square (Fair's function): shadows, what hides the object,
    what the field never learned.
    """

    rays: float
    sigma: float
    cell: float
    robust: float


# From coarse to fine: pictures of few rays, blurred far, then pixels of the image itself.
SCALES = (
    Scale(0.75, 2.0, 0.5, 0.3),
    Scale(1.5, 1.2, 0.5, 0.2),
    Scale(2.0, 0.8, 0.5, 0.15),
    Scale(1.0, 0.0, 1.0, 0.15),
)


class _Resolutions:
    """A field at several resolutions, its nodes about the pivot (3,) of its object."""

    def __init__(self, grid: GridField, pivot: np.ndarray) -> None:
        self.diameter = grid.diameter
        self._grids = [coarser(grid, factor).shifted(pivot) for factor in FACTORS]

    def for_pixels(self, pixel: float) -> GridField:
        """The version for pixels that are so many metres wide where the object is."""
        factor = pixel / self._grids[0].voxel
        return self._grids[int(np.searchsorted(np.array(FACTORS[1:]), factor, side="right"))]


@dataclass(frozen=True, eq=False)
class _Block:
    """Poses of an object, side by side in the batch, that one observation is of: how many, from
    which on, where their rows begin, and how far away they are."""

    observation: Observation
    object: str
    first: int
    count: int
    row: int
    distance: float


@wp.struct
class Comparison:
    """Rays of one observation: what was seen, and how it counts."""

    observed: wp.array(dtype=wp.vec4)
    weight: wp.array(dtype=wp.float32)
    tile: wp.array(dtype=wp.int32)
    background: wp.vec3
    opacity: wp.float32
    robust: wp.float32
    unit: wp.float32  # of the cost: one over the colour of a pixel, squared
    rays: wp.int32
    pose_first: wp.int32
    row_offset: wp.int32  # from a pose to its row, of those that this image is compared with
    camera_from_reference: wp.mat33


@wp.func
def composite(colour: wp.vec4, background: wp.vec3):
    """A premultiplied colour in front of a background."""
    left = 1.0 - colour[3]
    return wp.vec3(
        colour[0] + left * background[0],
        colour[1] + left * background[1],
        colour[2] + left * background[2],
    )


@wp.func
def bias_weight(colour: wp.vec4, opacity: float):
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
    rgb = wp.cw_mul(gain, composite(colour, background)) + bias_weight(colour, opacity) * bias
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
    pose = compare.pose_first + block
    if active[pose] == 0:
        return
    i = pose + compare.row_offset
    total = vec15()
    for ray in range(lane, compare.rays, lanes):
        colour = colours[pose, ray]
        seen = compare.observed[ray]
        r = residual_of(colour, seen, compare.background, gain[i], bias[i], compare.opacity)
        w = compare.weight[ray] / (1.0 + wp.length(r) / compare.robust)
        rgb = composite(colour, compare.background)
        one = bias_weight(colour, compare.opacity)
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
    row_offset: int,
    sums: wp.array2d(dtype=wp.float32),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    inverse: wp.array2d(dtype=wp.vec3),
):
    """Gain and bias of each channel, and the inverse of their normal equations (a, b, c of a
    symmetric 2x2)."""
    pose = pose_first + wp.tid()
    if active[pose] == 0:
        return
    i = pose + row_offset
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
    poses: PoseBatch,
    out: NormalEquations,
    compare: Comparison,
    colours: wp.array2d(dtype=wp.vec4),
    jacobians: wp.array2d(dtype=mat46),
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
    coupling: wp.array2d(dtype=wp.spatial_vector),
    with_coupling: int,
    measures: wp.array(dtype=vec6),
    sectors: wp.array2d(dtype=wp.spatial_vector),
    with_sectors: int,
    lanes: int,
):
    """Cost, gradient and Gauss-Newton matrix of all rays of a pose."""
    block, lane = wp.tid()
    pose = compare.pose_first + block
    if poses.active[pose] == 0:
        return
    i = pose + compare.row_offset
    R = compare.camera_from_reference
    H = wp.spatial_matrix()
    g = wp.spatial_vector()
    cost = float(0.0)
    weight = float(0.0)
    on_object = float(0.0)
    square = float(0.0)
    masked = float(0.0)
    covered = float(0.0)
    covered_weight = float(0.0)
    covered_square = float(0.0)
    by_gain = vec18()
    by_bias = vec18()
    for ray in range(lane, compare.rays, lanes):
        known = compare.weight[ray]
        if known == 0.0:
            continue
        colour = colours[pose, ray]
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
        rgb_square = (r[0] * r[0] + r[1] * r[1] + r[2] * r[2]) / 3.0
        if compare.observed[ray][3] > 0.5:
            masked += 1.0
            if colour[3] > 0.5:  # of the colours alone, not of where the object ends
                covered += 1.0
                v = 1.0 / (1.0 + wp.sqrt(rgb_square) / compare.robust)
                covered_weight += v
                covered_square += v * rgb_square
        behind = composite(colour, compare.background)
        drawn = wp.vec4(behind[0], behind[1], behind[2], colour[3])
        ground = compare.background
        if compare.opacity == 0.0:  # in the photo it is in the photo's light
            ground = wp.cw_mul(gain[i], ground) + bias[i]
        if is_object(compare.observed[ray], ground, compare) or is_object(
            drawn, compare.background, compare
        ):
            on_object += w
            square += w * rgb_square
        if colour[3] == 0.0:
            continue  # nothing there that could move
        J = jacobians[pose, ray]
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
            share = bias_weight(colour, compare.opacity)
            for channel in range(3):
                row = w * jacobian_row(J, channel, gain[i], bias[i], compare)
                row -= (less * r[channel] / wp.max(size, 1.0e-12)) * along
                x = colour[channel] + left * compare.background[channel]
                for a in range(6):
                    by_gain[6 * channel + a] = by_gain[6 * channel + a] + row[a] * x
                    by_bias[6 * channel + a] = by_bias[6 * channel + a] + row[a] * share
        g += here
        if with_sectors == 1:
            wp.atomic_add(
                sectors, pose, compare.tile[ray], vector_in_reference(R, compare.unit * here)
            )
    for a in range(6):
        for b in range(a):
            H[a, b] = H[b, a]
    unit = compare.unit
    add_normal_equations(out, pose, R, unit * H, unit * g, unit * cost, weight)
    wp.atomic_add(
        measures, pose, vec6(square, on_object, masked, covered, covered_weight, covered_square)
    )
    if with_coupling == 1:
        for channel in range(3):
            one = wp.spatial_vector()
            other = wp.spatial_vector()
            for a in range(6):
                one[a] = by_gain[6 * channel + a]
                other[a] = by_bias[6 * channel + a]
            wp.atomic_add(coupling, i, 2 * channel, vector_in_reference(R, one))
            wp.atomic_add(coupling, i, 2 * channel + 1, vector_in_reference(R, other))


@wp.kernel
def eliminate_exposure(
    poses: PoseBatch,
    out: NormalEquations,
    pose_first: int,
    row_offset: int,
    unit: float,
    coupling: wp.array2d(dtype=wp.spatial_vector),
    inverse: wp.array2d(dtype=wp.vec3),
    prior: wp.vec2,
    gain: wp.array(dtype=wp.vec3),
    bias: wp.array(dtype=wp.vec3),
):
    """Take from the normal equations what a change of exposure would explain as well (Schur)."""
    pose = pose_first + wp.tid()
    if poses.active[pose] == 0:
        return
    i = pose + row_offset
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
    out.hessian[pose] = out.hessian[pose] - unit * taken
    out.cost[pose] = out.cost[pose] + unit * cost


@wp.kernel
def clear_fit(
    poses: PoseBatch,
    measures: wp.array(dtype=vec6),
    sectors: wp.array2d(dtype=wp.spatial_vector),
):
    """Zero what poses are told of beside their normal equations."""
    i = wp.tid()
    if poses.active[i] == 0:
        return
    measures[i] = vec6()
    for k in range(sectors.shape[1]):
        sectors[i, k] = wp.spatial_vector()


class RadianceTerm:
    """Images of objects against their fields, for up to `capacity` poses.

    fields: by the objects' names; pivots: (3,) of each object, object frame: the point that poses
    turn about. rays: how many are followed at the finest scale, and about as many, up to twice, at
    the others; sampling: which, at the finest: random, interest_point or interest_region;
    exposure: also solve for a gain and a bias of each colour channel, per pose and image; seed: of
    the rays. Making a field coarser takes a second or two, when it is first needed.
    """

    name = "radiance"
    finest = len(SCALES) - 1
    fixed_launches = False  # each batch has rays of its own

    def __init__(
        self,
        fields: Mapping[str, GridField],
        pivots: Mapping[str, np.ndarray],
        capacity: int,
        rays: int = 1024,
        sampling: str = "interest_region",
        exposure: bool = False,
        seed: int = 0,
        device: str = "cpu",
        scales: Sequence[Scale] = SCALES,
    ) -> None:
        self.scales = tuple(scales)
        self.finest = len(self.scales) - 1
        self._fields, self._pivots = fields, pivots
        self._ray_count, self._sampling, self._seed = rays, sampling, seed
        self.exposure = exposure
        self._device = wp.get_device(device)
        self._resolutions: dict[str, _Resolutions] = {}
        self._images: dict[Observation, ColourImage] = {}
        self._rays: dict[tuple[Observation, int], Rays] = {}
        self._blocks: list[_Block] = []
        self._commands: dict[int, list[Callable[[], None]]] = {}
        self._count = 0
        self.sees = np.zeros(0, bool)

        # A lattice over a narrow image may have twice as many as the coarse scales ask for.
        shape = capacity, 4 * rays
        self._colours = wp.zeros(shape, dtype=wp.vec4, device=device)
        self._jacobians = wp.zeros(shape, dtype=mat46, device=device)
        self._blurred = [wp.zeros_like(self._colours), wp.zeros_like(self._jacobians)]
        self._own = allocate(NormalEquations, capacity, device)
        self.measures = wp.zeros(capacity, dtype=vec6, device=device)
        tiles = capacity, TILES * TILES
        self.sectors = wp.zeros(tiles, dtype=wp.spatial_vector, device=device)
        # by row
        self.gain = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.bias = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self._sums = wp.zeros((capacity, 15), dtype=wp.float32, device=device)
        self._inverse = wp.zeros((capacity, 3), dtype=wp.vec3, device=device)
        self._coupling = wp.zeros((capacity, 6), dtype=wp.spatial_vector, device=device)
        self._buffer = HostBuffer(self, ["gain", "bias", "measures", "sectors"])
        self._own_buffer = HostBuffer(self._own, ["hessian", "cost"])

    def observe(self, observations: Sequence[Observation]) -> None:
        """Take in images; their rays are chosen when they are first looked at."""
        self._images, self._rays = {}, {}

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch, the poses of an object side by side; see `ResidualTerm`."""
        count = self._count = len(poses)
        rows = [
            (i, seen)
            for i, seen in rows
            if poses[i].object in self._fields and seen.colours is not None
        ]
        self.sees = np.zeros(count, bool)
        self.sees[[i for i, _ in rows]] = True
        self._commands, self._blocks = {}, []
        together: dict[tuple[int, Observation], list[int]] = {}
        for i, seen in rows:
            together.setdefault((poses[i].index, seen), []).append(i)
        row = 0
        for (_, observation), numbers in together.items():
            name = poses[numbers[0]].object
            crop_from_reference = observation.crop_from_reference
            places = [
                poses[i].reference_from_object[:3] @ [*self._pivots[name], 1] for i in numbers
            ]
            places = np.array(places) @ crop_from_reference[:3, :3].T + crop_from_reference[:3, 3]
            # a camera within a scene is as far from its walls as that is large
            distance = max(
                float(np.median(np.linalg.norm(places, axis=1))),
                WITHIN * self._resolutions_of(name).diameter,
            )
            block = _Block(observation, name, numbers[0], len(numbers), row, distance)
            self._blocks.append(block)
            row += len(numbers)
        self._buffer.write("gain", np.ones((row, 3), np.float32))
        self._buffer.write("bias", np.zeros((row, 3), np.float32))

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add cost and derivatives of all rays; see `ResidualTerm`."""
        if scale not in self._commands:
            self._commands[scale] = list(self._record(poses, scale, out))
        for command in self._commands[scale]:
            command()

    def fit(self) -> TermFit:
        """How the fields fit the images in the poses that were linearised last."""
        count = self._count
        measures = self._buffer.read("measures", count).astype(np.float64)
        square, weight, masked, covered, covered_weight, covered_square = measures.T
        gain, bias = np.ones((count, 3)), np.zeros((count, 3))
        for block in self._blocks:
            rows = slice(block.row, block.row + block.count)
            of_poses = slice(block.first, block.first + block.count)
            gain[of_poses] = self._buffer.read("gain", rows.stop)[rows]
            bias[of_poses] = self._buffer.read("bias", rows.stop)[rows]
        enough = covered >= LEAST_COMPARED
        colour_rms = np.sqrt(covered_square / np.maximum(covered_weight, 1e-9))
        return TermFit(
            cost=np.where(self.sees, self._own_buffer.read("cost", count), 0.0),
            rms=np.sqrt(square / np.maximum(weight, 1e-9)),
            hessian=self._own_buffer.read("hessian", count).copy(),
            sectors=self._buffer.read("sectors", count).copy(),
            slope=np.ones(count),
            colour_rms=np.where(enough, colour_rms, 1.0),
            covered=np.where(enough, covered / np.maximum(masked, 1.0), 0.0),
            gain=gain,
            bias=bias,
        )

    def _resolutions_of(self, name: str) -> _Resolutions:
        if name not in self._resolutions:
            grid = self._fields[name].to(str(self._device))
            self._resolutions[name] = _Resolutions(grid, self._pivots[name])
        return self._resolutions[name]

    def _rays_of(self, observation: Observation, scale: int) -> Rays:
        """Evenly over the image at coarse scales, then where it is interesting."""
        if observation not in self._images:
            self._images[observation] = observation.colours.cropped()
        image = self._images[observation]
        if (observation, scale) not in self._rays:
            look = self.scales[scale]
            count = round(look.rays * self._ray_count)
            if look.sigma:
                rays = lattice_rays(image, count, look.sigma)
            else:
                rng = np.random.default_rng((self._seed, scale))
                rays = chosen_rays(image, image.sampler(self._sampling).draw(count, rng))
            self._rays[observation, scale] = rays
        return self._rays[observation, scale]

    def _record(self, poses: PoseBatch, scale: int, out) -> Iterator[Callable[[], None]]:
        """What is launched at a scale in every iteration."""

        def of_all(kernel, inputs: list) -> Callable[[], None]:
            recorded = RecordedKernel(kernel, inputs, self._device)
            return lambda: recorded(self._count)

        yield of_all(clear, [poses, self._own])
        yield of_all(clear_fit, [poses, self.measures, self.sectors])
        for block in self._blocks:
            yield from self._record_block(poses, scale, block)
        yield of_all(add_all, [poses, self._own, out])

    def _record_block(
        self, poses: PoseBatch, scale: int, block: _Block
    ) -> Iterator[Callable[[], None]]:
        """Render the rays of one image, blur them, compare them."""
        look, device = self.scales[scale], self._device
        rays = self._rays_of(block.observation, scale)
        image = self._images[block.observation]
        camera_from_reference = block.observation.crop_from_reference.astype(np.float32)
        pixel = rays.spacing * block.distance / image.pinhole[0]
        field = self._resolutions_of(block.object).for_pixels(look.cell * pixel)

        compare = Comparison()
        compare.observed = wp.array(rays.observed, dtype=wp.vec4, device=device)
        compare.weight = wp.array(rays.weight, dtype=wp.float32, device=device)
        compare.tile = wp.array(rays.tile, dtype=wp.int32, device=device)
        compare.background = wp.vec3(*(float(c) for c in image.background))
        opacity = OPACITY_WEIGHT if image.opacity is not None else 0.0
        compare.opacity = float(np.sqrt(opacity))
        compare.robust = look.robust
        compare.unit = 1.0 / COLOUR_OF_PIXEL**2
        compare.rays = len(rays.directions)
        compare.pose_first = block.first
        compare.row_offset = block.row - block.first
        compare.camera_from_reference = wp.mat33(*camera_from_reference[:3, :3].ravel().tolist())

        yield recorded_over(
            trace_kernel(field.degree),
            block.count * compare.rays,
            [
                field.arrays,
                poses.active,
                poses.rotation,
                poses.translation,
                compare.camera_from_reference,
                wp.vec3(*camera_from_reference[:3, 3].tolist()),
                compare.pose_first,
                compare.rays,
                wp.array(rays.directions, dtype=wp.vec3, device=device),
                STEP,
                self._colours,
                self._jacobians,
            ],
            device,
        )
        if look.sigma > 0.0:
            yield from self._blur(poses, look.sigma, rays.lattice, block)
        yield from self._compare(poses, block, compare, int(scale == self.finest))

    def _blur(self, poses, sigma, lattice, block: _Block) -> Iterator[Callable[[], None]]:
        rows, columns = lattice
        radius = int(np.ceil(2.5 * sigma))
        sharp, blurred = [self._colours, self._jacobians], self._blurred
        for stride, source, target in ((1, sharp, blurred), (columns, blurred, sharp)):
            yield recorded_over(
                blur_lattice,
                block.count * rows * columns,
                [poses.active, block.first, rows, columns, stride, radius, sigma, *source, *target],
                self._device,
            )

    def _compare(
        self, poses: PoseBatch, block: _Block, compare: Comparison, with_sectors: int
    ) -> Iterator[Callable[[], None]]:
        lanes = 1 if self._device.is_cpu else BLOCK
        prior = wp.vec2(GAIN_SIGMA**-2, BIAS_SIGMA**-2)
        place = [block.first, compare.row_offset]
        exposed = [self.gain, self.bias]

        def recorded(kernel, size, inputs: list) -> Callable[[], None]:
            return wp.launch(kernel, size, inputs, device=self._device, record_cmd=True).launch

        if self.exposure:
            yield self._sums.zero_
            yield self._coupling.zero_
            yield recorded(
                sum_for_exposure,
                (block.count, lanes),
                [poses.active, compare, self._colours, *exposed, self._sums, lanes],
            )
            yield recorded(
                solve_exposure,
                block.count,
                [poses.active, *place, self._sums, prior, *exposed, self._inverse],
            )
        yield recorded(
            add_residuals,
            (block.count, lanes),
            [
                poses,
                self._own,
                compare,
                self._colours,
                self._jacobians,
                *exposed,
                self._coupling,
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
                block.count,
                [
                    poses,
                    self._own,
                    *place,
                    compare.unit,
                    self._coupling,
                    self._inverse,
                    prior,
                    *exposed,
                ],
            )
