# SPDX-License-Identifier: Apache-2.0
"""Colours of a radiance field against those of the image.

What iNeRF (2021) descends with Adam, eq. 1, as a least-squares problem with the exact derivative of
each ray: the residual is the field's colour in front of a background, and its opacity where there
is a mask, minus what was observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import warp as wp

from pose_refiner_ros.fields.coarser import coarser
from pose_refiner_ros.rendering.radiance import mat46, trace_kernel
from pose_refiner_ros.warp_threads import recorded_over

from ..colours import TILES, ColourImage, Rays, chosen_rays
from ..host_buffer import HostBuffer, recorded
from ..normal_equations import (
    NormalEquations,
    PoseBatch,
    add_all,
    allocate,
    clear,
)
from . import TermFit
from .field_blocks import FieldBlock, field_blocks, seen_in
from .radiance_kernel import (
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
# Standard deviations of gain and bias beforehand, as one ray would measure them: little, so that
# they are only felt where an image is too plain to tell the two apart.
GAIN_SIGMA = 1.0
BIAS_SIGMA = 0.5
FACTORS = (1, 2, 4, 8, 16)  # by which a field is made coarser, where pixels are as large
WITHIN = 0.25  # diameters: the least distance for which a field is made coarser
LEAST_CONTRAST = 0.01  # standard deviation of a tile: below that there is no pattern
LEAST_COMPARED = 20  # rays whose colours say whether an object has the field's


# Residuals far larger than this (colour) count by their size, not its square (Fair's function):
# shadows, what hides the object, what the field never learned.
ROBUST = 0.15
# Of a whole image, a scene, that many times more rays are followed in the end: its parts are wrong
# each for itself.
OF_A_SCENE = 4


class RadianceTerm:
    """Images of objects against their fields, for up to `capacity` poses.

    fields: by the objects' names; pivots: (3,) of each object, object frame: the point that poses
    turn about. rays: how many are followed; sampling: which: random, interest_point or
    interest_region; exposure: also solve for a gain and a bias of each colour channel, per pose and
    image; seed: of the rays. Making a field coarser, for an object far off, takes a second or two
    when it is first needed.
    """

    name = "radiance"
    measures = True
    finest = 1

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
        robust: float = ROBUST,
    ) -> None:
        self._robust = robust
        self._fields, self._pivots = fields, pivots
        self._ray_count, self._sampling, self._seed = rays, sampling, seed
        self.exposure = exposure
        self._device = wp.get_device(device)
        self._resolutions: dict[tuple[str, int], GridField] = {}
        self._images: dict[Observation, ColourImage] = {}
        self._rays: dict[tuple[Observation, int], Rays] = {}
        self._distances: dict[tuple[str, Observation], float] = {}
        self._blocks: list[FieldBlock] = []
        self._commands: dict[int, list[Callable[[], None]]] = {}
        self._count = 0
        self.sees = np.zeros(0, bool)

        shape = capacity, OF_A_SCENE * rays
        self._colours = wp.zeros(shape, dtype=wp.vec4, device=device)
        self._jacobians = wp.zeros(shape, dtype=mat46, device=device)
        self._own = allocate(NormalEquations, capacity, device)
        self.measures = wp.zeros(capacity, dtype=vec6, device=device)
        tiles = capacity, TILES * TILES
        self.sectors = wp.zeros(tiles, dtype=wp.spatial_vector, device=device)
        self.patterns = wp.zeros(tiles, dtype=vec6, device=device)
        # by row
        self.gain = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.bias = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self._sums = wp.zeros((capacity, 15), dtype=wp.float32, device=device)
        self._inverse = wp.zeros((capacity, 3), dtype=wp.vec3, device=device)
        self._coupling = wp.zeros((capacity, 6), dtype=wp.spatial_vector, device=device)
        self._buffer = HostBuffer(self, ["gain", "bias", "measures", "sectors", "patterns"])
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
        self._blocks = field_blocks(poses, rows, self._fields)
        self.sees = np.zeros(count, bool)
        self.sees[seen_in(self._blocks)] = True
        self._commands = {}
        for observation, name, first, number, _ in self._blocks:
            crop_from_reference = observation.crop_from_reference
            places = [
                pose.reference_from_object[:3] @ [*self._pivots[name], 1]
                for pose in poses[first : first + number]
            ]
            places = np.array(places) @ crop_from_reference[:3, :3].T + crop_from_reference[:3, 3]
            # a camera within a scene is as far from its walls as that is large
            distance = max(
                float(np.median(np.linalg.norm(places, axis=1))),
                WITHIN * self._fields[name].diameter,
            )
            # once for all batches: costs are compared, and versions of a field change them
            self._distances.setdefault((name, observation), distance)
        number = sum(block.count for block in self._blocks)
        self._buffer.write("gain", np.ones((number, 3), np.float32))
        self._buffer.write("bias", np.zeros((number, 3), np.float32))

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """Nothing is prepared; see `ResidualTerm`."""

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
        usual = np.full(count, np.nan)
        for _, name, first, number, rows in self._blocks:
            usual[first : first + number] = self._fields[name].record.get("usual_rms", np.nan)
            gain[first : first + number] = self._buffer.read("gain", rows.stop)[rows]
            bias[first : first + number] = self._buffer.read("bias", rows.stop)[rows]
        enough = covered >= LEAST_COMPARED
        colour_rms = np.sqrt(covered_square / np.maximum(covered_weight, 1e-9))
        return TermFit(
            cost=np.where(self.sees, self._own_buffer.read("cost", count), 0.0),
            rms=np.sqrt(square / np.maximum(weight, 1e-9)),
            hessian=self._own_buffer.read("hessian", count).copy(),
            sectors=self._buffer.read("sectors", count).copy(),
            slope=np.ones(count),
            colour_rms=np.where(enough, colour_rms, 1.0),
            correlation=correlation(self._buffer.read("patterns", count)),
            has_masks=self._has_masks,
            usual_rms=usual,
            covered=np.where(enough, covered / np.maximum(masked, 1.0), 0.0),
            gain=gain,
            bias=bias,
        )

    def _field_for(self, name: str, pixel: float) -> GridField:
        """The field of an object, its nodes about the pivot, at the resolution for pixels that are
        so many metres wide where the object is."""
        field = self._fields[name]
        # nodes of a contracted field are as far apart as pixels are wherever they lie
        coarsest = 1.0 if field.contraction is not None else pixel / field.voxel
        factor = FACTORS[int(np.searchsorted(FACTORS[1:], coarsest, side="right"))]
        if (name, factor) not in self._resolutions:
            grid = self._fields[name].to(str(self._device))
            self._resolutions[name, factor] = coarser(grid, factor).shifted(self._pivots[name])
        return self._resolutions[name, factor]

    def _rays_of(self, observation: Observation, scale: int) -> Rays:
        """Where the image is interesting; of an object the same at both scales."""
        if observation not in self._images:
            self._images[observation] = observation.colours.cropped()
        image = self._images[observation]
        scale = scale if image.is_scene else 0
        if (observation, scale) not in self._rays:
            rng = np.random.default_rng((self._seed, 3))
            count = self._ray_count * (OF_A_SCENE if scale else 1)
            pixels = image.draw(self._sampling, count, rng)
            rays = chosen_rays(image, pixels, device=str(self._device))
            self._rays[observation, scale] = rays
        return self._rays[observation, scale]

    def _record(self, poses: PoseBatch, scale: int, out) -> Iterator[Callable[[], None]]:
        """What is launched at a scale in every iteration."""

        def of_all(kernel, inputs: list) -> Callable[[], None]:
            launch = recorded(kernel, inputs, self._device)
            return lambda: launch(self._count)

        yield of_all(clear, [poses, self._own])
        yield of_all(clear_fit, [poses, self.measures, self.sectors, self.patterns])
        for block in self._blocks:
            yield from self._record_block(poses, scale, *block)
        yield of_all(add_all, [poses, self._own, out])

    def _record_block(
        self,
        poses: PoseBatch,
        scale: int,
        observation: Observation,
        name: str,
        first: int,
        count: int,
        rows: slice,
    ) -> Iterator[Callable[[], None]]:
        """Render the rays of one image, and compare them."""
        rays = self._rays_of(observation, scale)
        pixel = self._distances[name, observation] / self._images[observation].pinhole[0]
        field = self._field_for(name, pixel)
        camera_from_reference = observation.crop_from_reference.astype(np.float32)
        rotation = wp.mat33(*camera_from_reference[:3, :3].ravel().tolist())
        number = len(rays.weight)

        yield recorded_over(
            trace_kernel(*field.form),
            count * number,
            [
                field.arrays,
                poses.active,
                poses.rotation,
                poses.translation,
                rotation,
                wp.vec3(*camera_from_reference[:3, 3].tolist()),
                first,
                number,
                rays.directions,
                STEP,
                self._colours,
                self._jacobians,
            ],
            self._device,
        )
        lanes = 1 if self._device.is_cpu else BLOCK
        prior = wp.vec2(GAIN_SIGMA**-2, BIAS_SIGMA**-2)
        place = [first, rows.start - first]
        exposed = [self.gain, self.bias]

        def launch(kernel, size, inputs: list) -> Callable[[], None]:
            return wp.launch(kernel, size, inputs, device=self._device, record_cmd=True).launch

        if self.exposure:
            yield self._sums.zero_
            yield self._coupling.zero_
            yield launch(
                sum_for_exposure,
                (count, lanes),
                [
                    poses.active,
                    *place,
                    rays,
                    self._robust,
                    self._colours,
                    *exposed,
                    self._sums,
                    lanes,
                ],
            )
            yield launch(
                solve_exposure,
                count,
                [poses.active, *place, self._sums, prior, *exposed, self._inverse],
            )
        yield launch(
            add_residuals,
            (count, lanes),
            [
                poses,
                self._own,
                *place,
                rotation,
                rays,
                self._robust,
                self._colours,
                self._jacobians,
                *exposed,
                self._coupling,
                int(self.exposure),
                self.measures,
                self.sectors,
                self.patterns,
                int(scale == self.finest),
                lanes,
            ],
        )
        if self.exposure:
            yield launch(
                eliminate_exposure,
                count,
                [poses, self._own, *place, self._coupling, self._inverse, prior, *exposed],
            )


def correlation(patterns: np.ndarray) -> np.ndarray:
    """(B,) in [-1, 1]: of what is rendered and the image, each without the mean of every tile, so
    that light that changes slowly over the image takes nothing away. patterns: (B, tiles, 6) sums
    of 1, x, y, xx, yy and xy."""
    count, x, y, xx, yy, xy = np.moveaxis(patterns.astype(np.float64), -1, 0)
    number = np.maximum(count, 1.0)
    flat = LEAST_CONTRAST**2 * count.sum(axis=1) + 1e-12
    own = np.sum(xx - x * x / number, axis=1) + flat
    its = np.sum(yy - y * y / number, axis=1) + flat
    return np.sum(xy - x * y / number, axis=1) / np.sqrt(own * its)
