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

from ..colours import TILES, ColourImage, Rays, chosen_rays, lattice_rays
from ..host_buffer import HostBuffer, recorded
from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_all,
    allocate,
    clear,
)
from . import TermFit
from .radiance_kernel import (
    Comparison,
    add_residuals,
    clear_fit,
    eliminate_exposure,
    solve_exposure,
    sum_for_exposure,
    vec6,
)

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

    from ..hypotheses import Hypothesis
    from ..observation import Observation

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
        self._resolutions: dict[str, list[GridField]] = {}
        self._images: dict[Observation, ColourImage] = {}
        self._rays: dict[tuple[Observation, int], Rays] = {}
        self._distances: dict[tuple[str, Observation], float] = {}
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
        self._images, self._rays, self._distances = {}, {}, {}

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch, the poses of an object side by side; see `ResidualTerm`."""
        count = self._count = len(poses)
        masked = np.zeros(count, bool)
        masked[[i for i, seen in rows if seen.distances and seen.colours is None]] = True
        self._has_masks = ~masked
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
                WITHIN * self._fields[name].diameter,
            )
            # once for all batches: costs are compared, and versions of a field change them
            distance = self._distances.setdefault((name, observation), distance)
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
            has_masks=self._has_masks,
            covered=np.where(enough, covered / np.maximum(masked, 1.0), 0.0),
            gain=gain,
            bias=bias,
        )

    def _field_for(self, name: str, pixel: float) -> GridField:
        """The field of an object, its nodes about the pivot, at the resolution for pixels that are
        so many metres wide where the object is."""
        if name not in self._resolutions:
            grid = self._fields[name].to(str(self._device))
            self._resolutions[name] = [
                coarser(grid, factor).shifted(self._pivots[name]) for factor in FACTORS
            ]
        grids = self._resolutions[name]
        factor = pixel / grids[0].voxel
        return grids[int(np.searchsorted(FACTORS[1:], factor, side="right"))]

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
                rays = chosen_rays(image, image.draw(self._sampling, count, rng))
            self._rays[observation, scale] = rays
        return self._rays[observation, scale]

    def _record(self, poses: PoseBatch, scale: int, out) -> Iterator[Callable[[], None]]:
        """What is launched at a scale in every iteration."""

        def of_all(kernel, inputs: list) -> Callable[[], None]:
            launch = recorded(kernel, inputs, self._device)
            return lambda: launch(self._count)

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
        field = self._field_for(block.object, look.cell * pixel)

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
