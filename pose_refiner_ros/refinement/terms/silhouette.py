# SPDX-License-Identifier: Apache-2.0
"""The silhouette's outline against the mask's border.

The cost is the integral over the covered pixels of a robust signed distance to the mask; by
Reynolds' transport theorem its derivative is an integral along the outline (docs/architecture.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import warp as wp

from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.rendering.coverage import Scratch, coverage_shape
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

from ..host_buffer import HostBuffer, recorded
from ..hypotheses import Hypothesis
from ..normal_equations import NormalEquations, PoseBatch, allocate
from ..observation import Observation
from ..signed_distance import ROBUST_SHARE, SCALE_SIZES, shrink_pinhole, shrink_points
from . import TermFit
from .silhouette_kernel import SECTORS, Silhouettes, linearize_silhouette

BLOCK = 128
COARSE_PX = 4.0  # the outline error of the coarse scale's meshes: one pixel of its pictures
SPACING = 1.5  # of the samples along the outline, pixels of the resolution
# What a resolution has of its own; the rest is the same for all.
AT_A_RESOLUTION = {"distance", "scale", "size", "pinhole", "image_bounds", "pixel"}

# How closely the term looks at each scale: which resolution of the masks it compares with, how many
# of its pixels (stride x stride) one pixel of the drawn silhouette stands for, and whether a coarse
# version of the mesh will do. Coarse pixels are enough to tell which edges are outline; the outline
# itself is never rounded.
SCALES = ((0, 2, True), (1, 2, False), (1, 1, False))

# How wrong an outline is, in variance times the stretch of the border along which it is alike: that
# of a usual mask, photo pixels; and of a mesh that stands for a category, shares of the crop's side
# (2.5 % of it, along 15 %).
MASK_NOISE = 10.0
CATEGORY_NOISE = 0.025**2 * 0.15


def outline_noise(observation: Observation, exact_shape: bool) -> float:
    """The cost of an outline of which nothing is known but its noise: of one d crop pixels off, all
    along, the cost is d^2/2 a pixel, and dividing that by variance times stretch makes it a log
    likelihood, comparable with other evidence."""
    if exact_shape:
        return max(MASK_NOISE * observation.crop.scale**3, 1.0)
    return CATEGORY_NOISE * observation.crop.size**3


class SilhouetteTerm:
    """Silhouettes of up to `capacity` poses against up to `capacity` masks at a time.

    pivots: (3,) of each object, object frame: the point that poses turn about.
    """

    name = "silhouette"
    measures = True
    finest = len(SCALES) - 1

    def __init__(
        self,
        models: Sequence[ObjectModel],
        pivots: Mapping[str, np.ndarray],
        capacity: int,
        device: str = "cpu",
    ) -> None:
        fine = [model.silhouette_mesh for model in models]
        coarse = [simplify_for_silhouette(mesh, tolerance_px=COARSE_PX) for mesh in fine]
        self._mesh_of = {model.name: i for i, model in enumerate(models)}
        self._near = {model.name: max(0.02 * model.diameter, 1e-3) for model in models}
        middle = np.array([pivots[model.name] for model in models])
        self._meshes = MeshBatch(fine + coarse, device, np.concatenate([middle, middle]))
        self._device = wp.get_device(device)
        self._count = 0
        self.sees = np.zeros(0, bool)

        self._silhouettes = [
            allocate(
                Silhouettes,
                capacity + 1,
                device,
                distance=(capacity, size, size),
                sectors=(capacity, SECTORS),
            )
            for size in SCALE_SIZES
        ]
        finest = self._silhouettes[-1]
        for coarser in self._silhouettes[:-1]:
            for name in set(Silhouettes.vars) - AT_A_RESOLUTION:
                setattr(coarser, name, getattr(finest, name))
        self._mask_buffers = [HostBuffer(s, list(AT_A_RESOLUTION)) for s in self._silhouettes]
        self._buffer = HostBuffer(finest, list(set(Silhouettes.vars) - AT_A_RESOLUTION))
        self._own = allocate(NormalEquations, capacity, device)
        self._own_buffer = HostBuffer(self._own, ["hessian", "cost"])
        self._scratch = allocate(
            Scratch,
            capacity,
            device,
            projected=(capacity, self._meshes.max_vertices),
            facing=(capacity, self._meshes.max_faces),
            coverage=coverage_shape(capacity, SCALE_SIZES[-1]),
        )
        self._kernels: dict[tuple[int, int], Callable[..., None]] = {}

        self._slots: dict[Observation, int] = {}
        # least cost, area of the mask and scale of the crop, of the observations (N, 3) and of the
        # poses (B, 3): sums over what is seen of each, but the mean of the scales
        self._of_masks = self._of_poses = np.zeros((0, 3))

    def observe(self, observations: Sequence[Observation]) -> None:
        """Upload the signed distances of observations that have a mask."""
        masked = [seen for seen in observations if seen.distances]
        self._slots = {seen: slot for slot, seen in enumerate(masked)}
        if not masked:
            return
        pinholes = np.array([seen.crop.pinhole for seen in masked])
        bounds = np.array([seen.crop.bounds for seen in masked])
        sides = np.array([seen.crop.size for seen in masked])
        for index, rows in enumerate(self._mask_buffers):
            maps = [seen.distances[index] for seen in masked]
            packed = rows.read("distance", len(maps))  # the arrays themselves, or a copy of them
            for target, one in zip(packed, maps, strict=True):
                target[: len(one), : len(one)] = one
            if self._device.is_cuda:
                rows.write("distance", packed)
            sizes = np.array([len(one) for one in maps])
            factors = sides / sizes
            rows.write("size", sizes)
            rows.write("scale", ROBUST_SHARE[index] * sides)
            rows.write("pixel", factors)
            rows.write("pinhole", shrink_pinhole(pinholes, factors[:, None]))
            rows.write("image_bounds", shrink_points(bounds, factors[:, None]))
        self._of_masks = np.array(
            [(seen.least_cost, seen.area, seen.crop.scale) for seen in masked]
        )
        cameras = np.array([seen.crop_from_reference for seen in masked], np.float32)
        self._buffer.write("rotation", cameras[:, :3, :3])
        self._buffer.write("translation", cameras[:, :3, 3])

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch; see `ResidualTerm`."""
        count = self._count = len(poses)
        rows = [(i, seen) for i, seen in rows if seen.distances]
        slots = np.array([self._slots[seen] for _, seen in rows], np.int32)
        pose_of_row = np.array([i for i, _ in rows], np.int64)
        number = np.bincount(pose_of_row, minlength=count)
        self.sees = number > 0
        first = np.zeros(count + 1, np.int32)
        np.cumsum(number, out=first[1:])
        self._buffer.write("observation", slots)
        self._buffer.write("first", first)
        self._buffer.write("mesh", [self._mesh_of[pose.object] for pose in poses])
        self._buffer.write("near", [self._near[pose.object] for pose in poses])
        if len(rows) == count and self.sees.all():
            self._of_poses = self._of_masks[slots]
        else:
            self._of_poses = np.zeros((count, 3))
            np.add.at(self._of_poses, pose_of_row, self._of_masks[slots])
            self._of_poses[:, 2] /= np.maximum(number, 1)

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """Nothing is prepared; see `ResidualTerm`."""

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add the silhouettes' normal equations; see `ResidualTerm`."""
        key = scale, id(out)
        if key not in self._kernels:
            resolution, stride, coarse_mesh = SCALES[scale]
            self._kernels[key] = recorded(
                linearize_silhouette,
                [
                    self._meshes.arrays,
                    self._silhouettes[resolution],
                    poses,
                    SPACING,
                    stride,
                    len(self._mesh_of) if coarse_mesh else 0,
                    int(scale == self.finest),
                    self._scratch,
                    self._own,
                    out,
                ],
                self._device,
                lanes=1 if self._device.is_cpu else BLOCK,
            )
        self._kernels[key](self._count)

    def fit(self) -> TermFit:
        """How the silhouettes that were drawn last lie on their masks."""
        count = self._count
        measures = self._buffer.read("measures", count).astype(np.float64)
        area, overlap, square, length, unknown, weight, slope = measures.T
        rms = np.sqrt(square / np.maximum(weight, 1e-9)) + np.where(weight > 0, 0.0, np.inf)
        least_cost, mask_area, crop_scale = self._of_poses.T
        return TermFit(
            cost=self._own_buffer.read("cost", count) - least_cost,
            rms=rms / np.maximum(crop_scale, 1e-9),
            hessian=self._own_buffer.read("hessian", count).copy(),
            sectors=self._buffer.read("sectors", count).copy(),
            slope=slope / np.maximum(weight, 1e-9),
            iou=overlap / np.maximum(area + mask_area - overlap, 1.0),
            visible=1.0 - unknown / np.maximum(length, 1e-9),
        )
