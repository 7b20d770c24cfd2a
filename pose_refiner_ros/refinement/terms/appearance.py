# SPDX-License-Identifier: Apache-2.0
"""What an object or a scene looks like, rendered once, against the image, aligned by the image's
own gradients.

A field is rendered at the poses with which a level begins: colours and depths of a lattice of rays.
These are blurred as the image is, and moved over it as points. What is smooth is the image: its
derivative reaches as far as its blur, while that of a ray through a sharp field is that of the
millimetres about its samples (docs/architecture.md). Poses are rendered anew in the next level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import warp as wp

from pose_refiner_ros.rendering.radiance import view_kernel
from pose_refiner_ros.warp_threads import recorded_over

from ..colours import ColourImage, Photo, Rays, blurred_photo, lattice_rays
from ..host_buffer import HostBuffer, recorded
from ..normal_equations import NormalEquations, PoseBatch, add_all, allocate, clear
from . import TermFit
from .appearance_kernel import (
    add_appearance,
    blur_lattice,
    match_exposure,
    place_points,
)
from .field_blocks import FieldBlock, field_blocks, seen_in

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

    from ..hypotheses import Hypothesis
    from ..observation import Observation

BLOCK = 128
# From coarse to fine: sigma of the blur, in sides of a square as large as the image; the same in
# steps of the lattice that rays form; between samples of a ray, voxels; residuals far larger than
# this (colour) count by their size, not its square (Fair's function).
SCALES = (
    (0.072, 2.0, 2.0, 0.2),
    (0.031, 1.2, 2.0, 0.15),
    (0.0145, 0.8, 1.0, 0.1),
)


class AppearanceTerm:
    """Images of objects and scenes against their fields, for up to `capacity` poses.

    fields: by the objects' names; pivots: (3,) of each object, object frame: the point that poses
    turn about. exposure: give what is rendered the image's mean and contrast in each colour channel
    first.
    """

    name = "appearance"
    measures = False
    finest = len(SCALES) - 1

    def __init__(
        self,
        fields: Mapping[str, GridField],
        pivots: Mapping[str, np.ndarray],
        capacity: int,
        exposure: bool = False,
        device: str = "cpu",
    ) -> None:
        self._device = wp.get_device(device)
        self._grids = {
            name: field.to(str(self._device)).shifted(pivots[name])
            for name, field in fields.items()
        }
        self.exposure = exposure
        self._images: dict[Observation, ColourImage] = {}
        self._lattices: dict[tuple[Observation, int], tuple[Rays, Photo]] = {}
        self._blocks: list[FieldBlock] = []
        self._begin: dict[int, list[Callable[[], None]]] = {}
        self._commands: dict[int, list[Callable[[], None]]] = {}
        self._count = 0
        self.sees = np.zeros(0, bool)

        shape = capacity, max(_rays_of(scale) for scale in SCALES)
        self._sharp = wp.zeros(shape, dtype=wp.vec4, device=device)
        self._depths = wp.zeros(shape, dtype=wp.float32, device=device)
        self._half = [wp.zeros_like(self._sharp), wp.zeros_like(self._depths)]
        self._blurred = [wp.zeros_like(self._sharp), wp.zeros_like(self._depths)]
        self._points = wp.zeros(shape, dtype=wp.vec3, device=device)
        self._own = allocate(NormalEquations, capacity, device)
        self._own_buffer = HostBuffer(self._own, ["hessian", "cost"])
        self.gain = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.bias = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self._buffer = HostBuffer(self, ["gain", "bias"])

    def observe(self, observations: Sequence[Observation]) -> None:
        """Take in images; they are blurred when they are first looked at."""
        self._images, self._lattices = {}, {}

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch, the poses of an object side by side; see `ResidualTerm`."""
        count = self._count = len(poses)
        self._blocks = field_blocks(poses, rows, self._grids)
        self.sees = np.zeros(count, bool)
        self.sees[seen_in(self._blocks)] = True
        self._begin, self._commands = {}, {}
        number = sum(block.count for block in self._blocks)
        self._buffer.write("gain", np.ones((number, 3), np.float32))
        self._buffer.write("bias", np.zeros((number, 3), np.float32))

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """Render the poses that a level begins with; see `ResidualTerm`."""
        if scale not in self._begin:
            self._begin[scale] = [
                command
                for block in self._blocks
                for command in self._rendered(poses, scale, *block)
            ]
        for command in self._begin[scale]:
            command()

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add cost and derivatives of what was rendered; see `ResidualTerm`."""
        if scale not in self._commands:
            self._commands[scale] = list(self._compared(poses, scale, out))
        for command in self._commands[scale]:
            command()

    def fit(self) -> TermFit:
        """How the images fit the poses that were linearised last."""
        count = self._count
        cost = np.where(self.sees, self._own_buffer.read("cost", count), 0.0)
        return TermFit(cost=cost, rms=np.zeros(count))

    def _lattice(self, observation: Observation, scale: int) -> tuple[Rays, Photo]:
        if observation not in self._images:
            self._images[observation] = observation.colours.cropped()
        if (observation, scale) not in self._lattices:
            sigma = SCALES[scale][1]
            image, device = self._images[observation], str(self._device)
            rays = lattice_rays(image, _rays_of(SCALES[scale]) // 2, sigma, device)
            photo = blurred_photo(image, sigma * rays.spacing, device)
            self._lattices[observation, scale] = rays, photo
        return self._lattices[observation, scale]

    def _launch(self, kernel, size, inputs: list, **more) -> Callable[[], None]:
        launch = wp.launch(kernel, size, inputs, device=self._device, record_cmd=True, **more)
        return launch.launch

    def _rendered(
        self,
        poses: PoseBatch,
        scale: int,
        observation: Observation,
        name: str,
        first: int,
        count: int,
        rows: slice,
    ) -> Iterator[Callable[[], None]]:
        """What is launched when a level begins: rays of one image, blurred as it is."""
        _, sigma, step, _ = SCALES[scale]
        rays, _ = self._lattice(observation, scale)
        grid, number = self._grids[name], len(rays.weight)
        camera = _camera(observation)
        sharp, place = [self._sharp, self._depths], [first, rows.start - first]
        yield recorded_over(
            view_kernel(*grid.form),
            count * number,
            [
                grid.arrays,
                poses.active,
                poses.rotation,
                poses.translation,
                *camera,
                *place,
                number,
                rays.directions,
                step,
                *sharp,
            ],
            self._device,
        )
        radius = int(np.ceil(2.5 * sigma))
        for stride, source, target in (
            (1, sharp, self._half),
            (rays.columns, self._half, self._blurred),
        ):
            lattice = [*place, rays.rows, rays.columns, stride, radius, sigma]
            yield recorded_over(
                blur_lattice,
                count * number,
                [poses.active, *lattice, *source, *target],
                self._device,
            )
        arrays = [rays, *sharp, *self._blurred, self._points]
        yield self._launch(place_points, (count, number), [poses, *place, *camera, *arrays])
        if self.exposure:
            exposed = [rays, self._blurred[0], self.gain, self.bias]
            yield self._launch(match_exposure, count, [poses.active, *place, *exposed])

    def _compared(self, poses: PoseBatch, scale: int, out) -> Iterator[Callable[[], None]]:
        """What is launched in every iteration of a level."""

        def of_all(kernel, inputs: list) -> Callable[[], None]:
            launch = recorded(kernel, inputs, self._device)
            return lambda: launch(self._count)

        yield of_all(clear, [poses, self._own])
        lanes = 1 if self._device.is_cpu else BLOCK
        for observation, _, first, count, rows in self._blocks:
            yield self._launch(
                add_appearance,
                (count, lanes),
                [
                    poses,
                    self._own,
                    first,
                    rows.start - first,
                    *_camera(observation),
                    *self._lattice(observation, scale),
                    SCALES[scale][-1],
                    self._blurred[0],
                    self._points,
                    self.gain,
                    self.bias,
                    lanes,
                ],
                block_dim=lanes,
            )
        yield of_all(add_all, [poses, self._own, out])


def _rays_of(scale: tuple[float, float, float, float]) -> int:
    """The most rays of a lattice: twice those of a square, which a narrow image may have."""
    share, steps, *_ = scale
    return 2 * round((steps / share) ** 2)


def _camera(observation: Observation) -> tuple[wp.mat33, wp.vec3]:
    """Rotation and translation of crop_from_reference."""
    move = observation.crop_from_reference.astype(np.float32)
    return wp.mat33(*move[:3, :3].ravel().tolist()), wp.vec3(*move[:3, 3].tolist())
