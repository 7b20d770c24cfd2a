# SPDX-License-Identifier: Apache-2.0
"""Measured points on an object against its surface: point to plane.

The surface is a grid of signed distances, so that a point costs one look into memory. Depth cameras
and laser scanners are off by an unknown few millimetres as a whole, beside the noise of each point:
that offset is solved along (`depth_kernel.py`), so a pose is never known better than it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import warp as wp

from pose_refiner_ros.objects.distance_grid import DistanceGrid, distance_grid
from pose_refiner_ros.objects.model import ObjectModel

from ..depth_points import MOST_POINTS
from ..host_buffer import HostBuffer, recorded
from ..hypotheses import Hypothesis
from ..normal_equations import NormalEquations, PoseBatch, allocate
from ..observation import Observation
from . import TermFit
from .depth_kernel import SECTORS, DepthPoints, linearize_depth
from .silhouette import outline_noise

BLOCK = 64
CUTOFF = 3.0  # standard deviations: a point farther off may be something else
COARSE_REACH = 0.1  # diameters: a point nearer than that may be the object's at the coarse scale
# How exactly a mesh is the object's surface, and one that stands for a category, in diameters.
SHAPE_SIGMA = 0.003
CATEGORY_SIGMA = 0.03
CATEGORY_PATCHES = 12  # of such a surface, each wrong for itself
# Every how manyth point is looked at, and whether points may still be far off.
SCALES = ((2, 1), (1, 0))
GRIDS = ("values", "grid_first", "nodes", "origin", "voxel")


class DepthTerm:
    """Measured points of up to `capacity` observations against the surfaces of up to `capacity`
    poses.

    pivots: (3,) of each object, object frame: the point that poses turn about. The grid of an
    object is made, or read from the cache, when the first point of it comes (`prepare`).
    """

    name = "depth"
    measures = True
    finest = len(SCALES) - 1

    def __init__(
        self,
        models: Mapping[str, ObjectModel],
        pivots: Mapping[str, np.ndarray],
        capacity: int,
        device: str = "cpu",
    ) -> None:
        self._models, self._pivots = models, pivots
        self._device = wp.get_device(device)
        self._grids: dict[str, DistanceGrid] = {}
        self._count = 0
        self.sees = np.zeros(0, bool)
        points = capacity * MOST_POINTS
        self._batch = allocate(
            DepthPoints,
            capacity + 1,
            device,
            **dict.fromkeys(GRIDS, 1),
            points=points,
            sectors=(capacity, SECTORS),
        )
        self._buffer = HostBuffer(self._batch, [n for n in DepthPoints.vars if n not in GRIDS])
        self._own = allocate(NormalEquations, capacity, device)
        self._own_buffer = HostBuffer(self._own, ["hessian", "cost"])
        self._kernels: dict[tuple[int, int], Callable[..., None]] = {}
        self._slots: dict[Observation, int] = {}
        self._units = np.zeros(0)  # of the poses: the mean of their observations'

    def prepare(self, names: Sequence[str]) -> None:
        """Have the grids of objects ready."""
        new = [name for name in dict.fromkeys(names) if name not in self._grids]
        if not new:
            return
        self._grids |= {name: distance_grid(self._models[name].mesh) for name in new}
        grids, sizes = self._grids.values(), [grid.values.size for grid in self._grids.values()]
        origins = [grid.origin - self._pivots[name] for name, grid in self._grids.items()]
        arrays = {
            "values": np.concatenate([grid.values.ravel() for grid in grids]),
            "grid_first": np.cumsum([0, *sizes[:-1]]),
            "nodes": np.array([grid.values.shape for grid in grids], np.int32),
            "origin": np.array(origins, np.float32),
            "voxel": np.array([grid.voxel for grid in grids]),
        }
        for name, values in arrays.items():
            dtype = DepthPoints.vars[name].type.dtype
            setattr(self._batch, name, wp.array(values, dtype=dtype, device=self._device))
        self._kernels = {}  # they hold the arrays of before

    def observe(self, observations: Sequence[Observation]) -> None:
        """Upload the points of observations that have some."""
        measured = [seen for seen in observations if seen.points is not None]
        self._slots = {seen: slot for slot, seen in enumerate(measured)}
        if not measured:
            return
        first = np.cumsum([0, *(len(seen.points) for seen in measured)])
        cameras = np.array([seen.crop_from_reference for seen in measured], np.float32)
        self._buffer.write("points", np.concatenate([seen.points for seen in measured]))
        self._buffer.write("point_first", first)
        self._buffer.write("offset_sigma", [seen.offset_sigma for seen in measured])
        self._buffer.write("rotation", cameras[:, :3, :3])
        self._buffer.write("translation", cameras[:, :3, 3])

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch; see `ResidualTerm`."""
        count = self._count = len(poses)
        rows = [(i, seen) for i, seen in rows if seen.points is not None]
        number = np.bincount([i for i, _ in rows], minlength=count)
        self.sees = number > 0
        if not rows:
            return
        self.prepare([poses[i].object for i, _ in rows])
        numbers = {name: i for i, name in enumerate(self._grids)}
        models = [self._models[pose.object] for pose in poses]
        diameters = np.array([model.diameter for model in models])
        exact = np.array([model.exact_shape for model in models])
        self._buffer.write("first", np.cumsum([0, *number]))
        self._buffer.write("observation", [self._slots[seen] for _, seen in rows])
        self._buffer.write("grid", [numbers.get(pose.object, 0) for pose in poses])
        self._buffer.write("alike", [_alike(seen, exact[i]) for i, seen in rows])
        units = np.array([_unit(seen, exact[i]) for i, seen in rows])
        self._buffer.write("unit", units)
        self._units = np.bincount([i for i, _ in rows], units, count) / np.maximum(number, 1)
        sigma = np.where(exact, SHAPE_SIGMA, CATEGORY_SIGMA) * diameters
        self._buffer.write("shape_sigma", sigma)
        self._buffer.write("reach", COARSE_REACH * diameters)

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """Nothing is prepared; see `ResidualTerm`."""

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add the points' normal equations; see `ResidualTerm`."""
        key = scale, id(out)
        if key not in self._kernels:
            stride, coarse = SCALES[scale]
            with_sectors = int(scale == self.finest)
            self._kernels[key] = recorded(
                linearize_depth,
                [self._batch, poses, stride, CUTOFF, coarse, with_sectors, self._own, out],
                self._device,
                lanes=1 if self._device.is_cpu else BLOCK,
            )
        self._kernels[key](self._count)

    def fit(self) -> TermFit:
        """How the points lie on the surfaces of the poses that were linearised last."""
        count = self._count
        points, agree, weight, square = self._buffer.read("measures", count).T.astype(np.float64)
        return TermFit(
            cost=np.where(self.sees, self._own_buffer.read("cost", count), 0.0),
            rms=np.sqrt(square / np.maximum(weight, 1e-9)),
            hessian=self._own_buffer.read("hessian", count).copy(),
            sectors=self._buffer.read("sectors", count).copy(),
            slope=np.ones(count),
            least_noise=self._units,
            covered=agree / np.maximum(points, 1.0),
        )


def _alike(seen: Observation, exact: bool) -> float:
    """Of how many points the noise is one."""
    return seen.points_alike if exact else max(len(seen.points) / CATEGORY_PATCHES, 1.0)


def _unit(seen: Observation, exact: bool) -> float:
    return 1.0 if seen.crop is None else outline_noise(seen, exact)
