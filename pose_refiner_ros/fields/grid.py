# SPDX-License-Identifier: Apache-2.0
"""A radiance field as a sparse voxel grid: density and colour at nodes, linear between them.

Like Plenoxels (Fridovich-Keil et al. 2022) it is an explicit field without a network, so that the
derivatives along a ray are by-products of interpolation. Empty space has no nodes and is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import warp as wp
from scipy import ndimage
from torch import Tensor

from pose_refiner_ros.warp_start import start_warp_quietly
from pose_refiner_ros.warp_threads import launch_over

from .contraction import Contraction
from .features import FieldFeatures
from .field import FieldError, RenderedRays, check_state
from .grid_kernels import BLOCK, COEFFICIENTS, grid_functions
from .grid_march import march_kernels
from .surface import FieldSurface

STEP = 0.5  # between samples of a ray, in voxels
MAX_NODES = 512  # along an axis: more would overflow the map of nodes' memory


@dataclass(frozen=True)
class GridSettings:
    """shape: nodes along x, y, z; voxel: their distance in metres; degree of the polynomials by
    which colour depends on the viewing direction, 0 (not at all) to 2; contraction: of a scene
    without an end."""

    shape: tuple[int, int, int]
    voxel: float
    degree: int = 2
    contraction: Contraction | None = None


class GridField:
    """A sparse grid of nodes; see RadianceField for what a field is.

    Args:
        links: (X, Y, Z) int32, the row of each node in `values`; 0 where there is none.
        values: (M + 1, 1 + 3K) float32: density in 1/m, then red, green and blue of each of the K
            basis functions; row 0 is zero.
        origin: (3,) metres, object frame, of node (0, 0, 0).
        voxel: metres between nodes.
        contraction: of a scene without an end: nodes lie where it brings space to.
    """

    kind: ClassVar[str] = "grid"

    def __init__(
        self,
        links: np.ndarray,
        values: np.ndarray,
        origin: np.ndarray,
        voxel: float,
        background: np.ndarray | None = None,
        record: dict | None = None,
        device: str = "cpu",
        contraction: Contraction | None = None,
    ) -> None:
        start_warp_quietly()
        self.links = np.ascontiguousarray(links, np.int32)
        self.values = np.ascontiguousarray(values, np.float32)
        self.origin = np.asarray(origin, np.float64)
        self.voxel = float(voxel)
        self.background = None if background is None else np.asarray(background, np.float64)
        self.record = record or {}
        self.device = torch.device(device)
        self.degree = _degree(self.values.shape[1])
        self.contraction = contraction
        self.features: FieldFeatures | None = None
        self.surface: FieldSurface | None = None

    @property
    def form(self) -> tuple[int, bool]:
        """What kernels are made for: the degree, and whether it is contracted."""
        return self.degree, self.contraction is not None

    @classmethod
    def from_nodes(
        cls, occupied: np.ndarray, values: np.ndarray, origin: np.ndarray, voxel: float, **more
    ) -> GridField:
        """From occupied (X, Y, Z) bool and the values (M, 1 + 3K) of those nodes, in C order."""
        return cls(
            links_of(occupied),
            np.vstack([np.zeros_like(values[:1]), values]),
            origin,
            voxel,
            **more,
        )

    @property
    def bounds(self) -> np.ndarray:
        """(2, 3) metres, object frame: the first and the last node."""
        last = (np.array(self.links.shape) - 1) * self.voxel
        return self._expanded(np.stack([self.origin, self.origin + last]))

    @cached_property
    def occupied_bounds(self) -> np.ndarray:
        """(2, 3) metres, object frame: the box around the nodes whose density counts; of a scene
        without an end, around nearly all of them."""
        index = np.argwhere(self.links)
        dense = self.values[self.links[tuple(index.T)], 0] * self.voxel > 0.01
        index = index[dense] if dense.any() else index
        if self.contraction is None:
            return self.origin + self.voxel * np.stack([index.min(axis=0), index.max(axis=0)])
        return np.percentile(self._expanded(self.origin + self.voxel * index), (5, 95), axis=0)

    def _expanded(self, points: np.ndarray) -> np.ndarray:
        return points if self.contraction is None else self.contraction.expand(points)

    @property
    def diameter(self) -> float:
        """Metres, of the box around what is there."""
        low, high = self.occupied_bounds
        return float(np.linalg.norm(high - low))

    @property
    def settings(self) -> GridSettings:
        shape = tuple(int(n) for n in self.links.shape)
        return GridSettings(shape, self.voxel, self.degree, self.contraction)

    @cached_property
    def arrays(self) -> Any:
        """The grid as kernels of its degree take it, on the field's device."""
        device = str(self.device)
        arrays = grid_functions(*self.form).Arrays()
        arrays.links = wp.array(self.links, dtype=wp.int32, device=device)
        arrays.skip = wp.array(empty_blocks(self.links != 0), dtype=wp.uint8, device=device)
        arrays.values = wp.array(self.values, dtype=grid_functions(*self.form).Row, device=device)
        arrays.voxel = self.voxel
        self._say_where(arrays)
        return arrays

    def _say_where(self, arrays: Any) -> None:
        arrays.origin = wp.vec3(*self.origin)
        if self.contraction is not None:
            arrays.middle = wp.vec3(*self.contraction.middle)
            arrays.half = self.contraction.half

    def to(self, device: str) -> GridField:
        """The same field on another device."""
        if torch.device(device) == self.device:
            return self
        other = self._copy()
        other.device = torch.device(device)
        return other

    def _copy(self) -> GridField:
        """Without what is computed from it."""
        other = copy(self)
        for name in ("arrays", "occupied_bounds"):
            other.__dict__.pop(name, None)
        return other

    def shifted(self, offset: np.ndarray) -> GridField:
        """The same field in a frame whose origin lies at `offset` (3,), sharing all nodes; without
        features and surface."""
        other = self._copy()
        other.features = other.surface = None
        other.origin = self.origin - np.asarray(offset, np.float64)
        if self.contraction is not None:
            other.contraction = self.contraction.shifted(offset)
        arrays = grid_functions(*self.form).Arrays()
        for name in ("links", "skip", "values", "voxel"):
            setattr(arrays, name, getattr(self.arrays, name))
        other._say_where(arrays)
        other.__dict__["arrays"] = arrays
        return other

    def scaled(self, factor: float) -> GridField:
        """The same field where all lengths are so many times as large."""
        other = self._copy()
        other.values = self.values.copy()
        other.values[:, 0] /= factor
        other.origin, other.voxel = factor * self.origin, factor * self.voxel
        for name in ("contraction", "features", "surface"):
            part = getattr(self, name)
            setattr(other, name, None if part is None else part.scaled(factor))
        return other

    def query(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) in 1/m and colour (N, 3) at points (N, 3) seen along (N, 3); 0 outside."""
        out = torch.zeros((len(points), 4), device=self.device)
        launch_over(
            march_kernels(*self.form)["query"],
            len(points),
            [self.arrays, _vec3(points), _vec3(directions), wp.from_torch(out, dtype=wp.vec4)],
            str(self.device),
        )
        return out[:, 3], out[:, :3]

    def render(self, origins: Tensor, directions: Tensor, step: float = STEP) -> RenderedRays:
        """What rays (R, 3), (R, 3) see, object frame, unit directions; differentiable by both.

        step: between samples, in voxels. Samples lie at fixed distances from the origin, so that
        the derivative is that of what is computed.
        """
        colour, opacity, depth = _March.apply(origins.float(), directions.float(), self, step)
        return RenderedRays(colour, opacity, depth)

    def state(self) -> dict[str, np.ndarray]:
        """Node indices and values; halves, which is finer than training can tell."""
        index = np.argwhere(self.links)
        rows = self.links[tuple(index.T)]
        return {
            "nodes": index.astype(np.uint16),
            "values": self.values[rows].astype(np.float16),
            "origin": self.origin,
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, np.ndarray], header: Mapping[str, Any], device: str = "cpu"
    ) -> GridField:
        """Raises FieldError where arrays and header do not belong together."""
        settings = header["settings"]
        try:
            shape = tuple(int(n) for n in settings["shape"])
            voxel, degree = float(settings["voxel"]), int(settings["degree"])
            contraction = settings.get("contraction")
            if contraction is not None:
                middle = tuple(float(x) for x in contraction["middle"])
                contraction = Contraction(middle, float(contraction["half"]))
                if len(middle) != 3 or not contraction.half > 0.0:
                    raise ValueError(f"contraction {settings['contraction']}")
            columns = 1 + 3 * COEFFICIENTS[degree]
        except (KeyError, TypeError, ValueError) as error:
            raise FieldError(f"its settings cannot be used ({error!r})") from error
        check_state(state, {"nodes": (None, 3), "values": (None, columns), "origin": (3,)})
        nodes = np.asarray(state["nodes"], np.int64)
        if len(shape) != 3 or min(shape) < 2 or max(shape) > MAX_NODES or not voxel > 0.0:
            raise FieldError(f"a grid of {shape} nodes, {voxel:g} m apart, cannot be")
        if not len(nodes):
            raise FieldError("it holds nothing: train it again, and look at its previews")
        if len(nodes) != len(state["values"]):
            raise FieldError(f"{len(nodes)} nodes and {len(state['values'])} values do not match")
        if nodes.min() < 0 or (nodes >= shape).any():
            raise FieldError(f"a node lies outside of its {shape} nodes")
        occupied = np.zeros(shape, bool)
        occupied[tuple(nodes.T)] = True
        if np.count_nonzero(occupied) != len(nodes):
            raise FieldError("a node stands in it twice")
        order = np.ravel_multi_index(tuple(nodes.T), shape).argsort()
        return cls.from_nodes(
            occupied,
            np.asarray(state["values"], np.float32)[order],
            np.asarray(state["origin"], np.float64),
            voxel,
            background=header["background"],
            record=header["record"],
            device=device,
            contraction=contraction,
        )


def links_of(occupied: np.ndarray) -> np.ndarray:
    """(X, Y, Z) int32: rows 1, 2, ... for the occupied nodes in C order, 0 for the others."""
    links = np.zeros(occupied.shape, np.int32)
    links[occupied] = np.arange(1, np.count_nonzero(occupied) + 1)
    return links


def empty_blocks(occupied: np.ndarray) -> np.ndarray:
    """Blocks (x, y, z) of BLOCK cells a side: how many blocks, along the axis where it is most, to
    the nearest one with a node at one of its cells' corners; uint8."""
    blocks = [-(-n // BLOCK) for n in occupied.shape]
    padded = np.zeros([BLOCK * n + 1 for n in blocks], bool)
    padded[tuple(slice(n) for n in occupied.shape)] = occupied
    # a block's cells have corners from its first node to the first of the next block
    reach = np.ones(3 * (BLOCK + 1,), bool)
    near = ndimage.maximum_filter(padded, footprint=reach, origin=-(BLOCK // 2))
    full = near[tuple(slice(0, BLOCK * n, BLOCK) for n in blocks)]
    if not full.any():
        return np.full(blocks, 255, np.uint8)
    return np.minimum(ndimage.distance_transform_cdt(~full, "chessboard"), 255).astype(np.uint8)


def _degree(columns: int) -> int:
    for degree, count in COEFFICIENTS.items():
        if columns == 1 + 3 * count:
            return degree
    raise FieldError(f"nodes of {columns} numbers: 4, 13 or 28 are colours of degree 0, 1 or 2")


def _vec3(tensor: Tensor) -> wp.array:
    return wp.from_torch(tensor.detach().float().contiguous(), dtype=wp.vec3)


class _March(torch.autograd.Function):
    """Rays through a grid; the derivative by their origins and directions."""

    @staticmethod
    def forward(ctx, origins: Tensor, directions: Tensor, field: GridField, step: float):
        count, device = len(origins), str(field.device)
        colour = torch.zeros((count, 3), device=origins.device)
        opacity_depth = torch.zeros((count, 2), device=origins.device)
        rays = [_vec3(origins), _vec3(directions)]
        out = [wp.from_torch(colour, dtype=wp.vec3), wp.from_torch(opacity_depth, dtype=wp.vec2)]
        launch_over(
            march_kernels(*field.form)["march"], count, [field.arrays, *rays, step, *out], device
        )
        opacity, depth = opacity_depth.unbind(-1)
        ctx.save_for_backward(origins, directions, colour, opacity)
        ctx.field, ctx.step = field, step
        ctx.mark_non_differentiable(depth)
        return colour, opacity, depth

    @staticmethod
    def backward(ctx, by_colour: Tensor, by_opacity: Tensor, by_depth: Tensor):
        origins, directions, colour, opacity = ctx.saved_tensors
        known = torch.cat([colour, opacity[:, None]], -1)
        pull = torch.cat([by_colour, by_opacity[:, None]], -1)
        by_origin, by_direction = torch.zeros_like(colour), torch.zeros_like(colour)
        launch_over(
            march_kernels(*ctx.field.form)["march_back"],
            len(origins),
            [
                ctx.field.arrays,
                _vec3(origins),
                _vec3(directions),
                ctx.step,
                wp.from_torch(known.contiguous(), dtype=wp.vec4),
                wp.from_torch(pull.float().contiguous(), dtype=wp.vec4),
                wp.from_torch(by_origin, dtype=wp.vec3),
                wp.from_torch(by_direction, dtype=wp.vec3),
            ],
            str(ctx.field.device),
        )
        return by_origin, by_direction, None, None
