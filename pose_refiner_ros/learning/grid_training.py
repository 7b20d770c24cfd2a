# SPDX-License-Identifier: Apache-2.0
"""Training of a sparse voxel grid from photos whose cameras are known.

Like Plenoxels (Fridovich-Keil et al. 2022): nodes are fitted directly, on a coarse grid first, and
nodes that stop no light are left out of the next, finer one. With masks the fit starts inside the
visual hull, and opacity is fitted to the mask, so that no background is learned. Photos without
masks are of a scene, all of it, however far: the grid is contracted. Differences: Adam, colours
without a rectifier, polynomials up to degree 2, nodes drawn to their neighbours in place of total
variation.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import warp as wp

from pose_refiner_ros.datasets.posed_images.matched_points import matched_points
from pose_refiner_ros.datasets.posed_images.views import PosedImages, View
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.grid import MAX_NODES, GridField
from pose_refiner_ros.fields.grid_kernels import (
    COEFFICIENTS,
    grid_functions,
)
from pose_refiner_ros.warp_start import start_warp_quietly
from pose_refiner_ros.warp_threads import cpu_threads, launch_over

from .grid_nodes import (
    contraction_around,
    cropped,
    finer_nodes,
    first_nodes,
    grown,
    nearest_to_cameras,
    pace_near_cameras,
    pixel_footprint,
)
from .grid_training_kernels import SAMPLES, Fit, Photos, training_kernels
from .training_loop import Progress, Training, quiet, run
from .training_rays import RayOrder

_STEP = 1.0  # between samples of a ray, in voxels; they lie anywhere, so no need for more
_LEVELS = 3  # each with half the voxel of the one before; more where the first would be too large
_EACH = 0.38  # share of the steps of a level and all before that are over when it begins
_FIRST_NODES = 500_000
_FIRST_SIDE = 200  # nodes along the box that the first grid has at most
_MOST_NODES = 3_000_000  # what a grid of the finest voxel may have
_FIRST_DENSITY = 0.1  # optical depth of a voxel at first, inside a visual hull
_FIRST_FOG = 3.0  # that of all nodes, where they are thinnest, where there are no masks
_FIRST_INSIDE = 0.03  # that among the cameras of a scene: what tells no depth is taken to be far
_WARM = 0.05  # share of the density's rate in the first step in a fog
_KEEP = 0.05  # of a ray's light: nodes that never stop so much are left out
_WATCHED = 0.5  # share of a level's steps at its end: before that there is fog
_UNUSED = 4.0  # times as large as what photos show a contracted scene's box may be
_CUDA_LANES = 16384
_COLOUR_EDGE = 0.1  # differences of neighbours that are more than noise: of colours,
_DENSITY_EDGE = 0.5  # and of the optical depth of a voxel
_EXPOSE_EVERY = 20  # steps
_EXPOSED = 0.05  # spread of the gains: less is what shadows and highlights do, not cameras
_EXPOSURE_PRIOR = 0.01  # that of a gain of one and no bias, as a squared colour for each ray
_PLAIN = 0.05  # what is behind is one colour if the photos' edges are mostly no farther from it
_MOSTLY = 0.75


@dataclass(frozen=True)
class GridOptions:
    """How a grid is trained.

    steps: of `rays` rays each; voxel: metres, None: what a pixel sees at the object's distance;
    degree: of the colours' polynomials in the viewing direction, 0 to 2; background: (r, g, b)
    behind the field, which photos without masks show; density_rate, colour_rate: Adam's first, of
    density times a voxel's length and of colours in [0, 1]; last_rate: the share of them that is
    left at the end; opacity_weight: of the squared error of opacity beside that of colour;
    sparsity: price of the light that a sample would stop alone, for photos without masks, against
    fog; smoothing: share by which nodes are drawn to their neighbours in each step, against noise;
    exposure: solve for a gain and a bias of each photo's channels along with the field; seed: of
    the rays.
    """

    steps: int = 1600
    rays: int = 16384
    voxel: float | None = None
    degree: int = 1
    background: tuple[float, float, float] | None = None
    density_rate: float = 0.1
    colour_rate: float = 0.012
    last_rate: float = 0.2
    opacity_weight: float = 3.0
    sparsity: float = 2e-3
    smoothing: float = 0.01
    exposure: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rays"):
            if getattr(self, name) < 1:
                raise FieldError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.degree not in COEFFICIENTS:
            raise FieldError(f"degree is {self.degree}; it must be 0, 1 or 2")
        if self.voxel is not None and not 0.0 < self.voxel < math.inf:
            raise FieldError(f"voxel is {self.voxel} m; it must be above 0")


DEFAULT = GridOptions()


class GridTraining(Training):
    """See `Training`. resume_state: what `state` returned, to go on from.

    Raises FieldError for photos that show nothing, a voxel that does not fit them, or a state of
    another training.
    """

    def __init__(
        self,
        posed: PosedImages,
        options: GridOptions = DEFAULT,
        device="cpu",
        resume_state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(posed, options)
        start_warp_quietly()
        self._device = str(device)
        self._masked = posed.alpha is not None
        self._background, self._contraction = options.background, None
        if self._background is None and not self._masked:
            self._background = plain_background(posed)
        if self._background is None and not self._masked:
            self.matched = matched_points(posed)
            if posed.near_far is None:
                posed = replace(posed, near_far=self.matched.near_far)
            self._contraction = contraction_around(posed)
            posed = replace(posed, bounds=self._contraction.box)
            self._near = nearest_to_cameras(posed, self._contraction)
        self._kernels = training_kernels(options.degree, self._contraction is not None)
        self._Row = grid_functions(options.degree).Row
        self._lanes = cpu_threads() if wp.get_device(self._device).is_cpu else _CUDA_LANES
        self._footprint = pixel_footprint(posed, self._contraction)
        self._positions = posed.camera_positions
        self._photos = _photos(posed, options, self._background, self._device)
        self._finest = _finest_voxel(
            posed.bounds, options.voxel, self._footprint, self._contraction is not None
        )
        self._ends: list[float] = []  # of each level, as shares of the steps
        self._level = 0
        if resume_state is None:
            self._start(posed)
        else:
            self.resume(resume_state)
        margin = math.ceil(1.5 * self._voxel_of(0) / self._footprint)
        self._order = RayOrder(posed, options.rays, margin, options.seed)

    def _step(self) -> float:
        """The squared error over white, as if over all pixels."""
        options, share = self.options, self.done / self.options.steps
        if share >= self._ends[self._level]:
            self._refine()
        first = self._ends[self._level - 1] if self._level else 0.0
        last = self._ends[self._level]
        pixels = wp.array(self._order.batch(self.done), dtype=wp.int32, device=self._device)
        fit = self._fit
        fit.errors.zero_()
        decay = options.last_rate**share
        follow = [
            self.field.arrays, self._photos, fit, pixels, _STEP, options.seed + self.done,
            int(share >= last - _WATCHED * (last - first)), self._lanes, self._gradient,
        ]  # fmt: skip
        launch_over(self._kernels["follow"], self._lanes, follow, self._device, least=1)
        rates = np.full(self._gradient_columns, options.colour_rate)
        rates[0] = options.density_rate / self.field.voxel
        if not self._masked and self._level == 0:
            # The fog is thinner than a step at full rate, and what is gone does not come back.
            rates[0] *= min(_WARM + share / last, 1.0)
        rates *= decay
        smooth = options.smoothing > 0.0
        values = self.field.arrays.values

        def of_rows(name: str, inputs: list) -> None:
            launch_over(self._kernels[name], len(self.field.values), inputs, self._device)

        adam = [values, self._gradient, self._mean, self._square, fit.touched, fit.pace]
        of_rows("adam", [*adam, self._Row(*rates), self.done % 4 if smooth else -1])
        if smooth:
            scale = np.full(self._gradient_columns, _COLOUR_EDGE)
            scale[0] = _DENSITY_EDGE / self.field.voxel
            share = [4.0 * options.smoothing, self._Row(*scale)]
            around = [fit.nodes, self.field.arrays.links]
            of_rows("smooth", [values, self._gradient, fit.touched, *around, *share])
            of_rows("move", [values, self._gradient, fit.touched])
        if options.exposure and self.done % _EXPOSE_EVERY == _EXPOSE_EVERY - 1:
            self._expose()
        shown, rays = fit.errors.numpy().sum(axis=0, dtype=np.float64)
        return float(shown / rays * self._order.share)

    def _expose(self) -> None:
        """Solve for gain and bias of each photo, if they differ; on average there is neither."""
        xx, xo, oo, xy, oy = self._fit.exposure.numpy().astype(np.float64).transpose(1, 0, 2)
        rays, oo = oo[:, 1:2], np.repeat(oo[:, :1], 3, axis=1)
        prior = _EXPOSURE_PRIOR * np.maximum(rays, 1.0)
        a, b, c = xx + prior, xo, oo + prior
        p, q = xy + prior, oy
        determinant = a * c - b * b
        gain, bias = (c * p - b * q) / determinant, (a * q - b * p) / determinant
        gain, bias = gain / gain.mean(axis=0), bias - bias.mean(axis=0)
        if np.median(gain.std(axis=0)) < _EXPOSED:
            gain, bias = np.ones_like(gain), np.zeros_like(bias)
        self._photos.gain.assign(gain.clip(0.3, 3.0).astype(np.float32))
        self._photos.bias.assign(bias.astype(np.float32))
        self._fit.exposure.zero_()

    def _arrays(self) -> dict[str, wp.array]:
        """What a state holds beside the nodes."""
        return {
            "values": self.field.arrays.values,
            "mean": self._mean,
            "square": self._square,
            "largest": self._fit.largest,
            "gain": self._photos.gain,
            "bias": self._photos.bias,
            "exposure": self._fit.exposure,
        }

    def _state(self) -> dict[str, Any]:
        arrays = {name: array.numpy() for name, array in self._arrays().items()}
        arrays |= {"occupied": self.field.links > 0, "origin": self.field.origin}
        return {
            "options": dataclasses.asdict(self.options),
            **{name: torch.from_numpy(np.array(a)) for name, a in arrays.items()},
            "voxel": self.field.voxel,
            "finest": self._finest,
            "ends": self._ends,
            "level": self._level,
        }

    def finish(self, figures: dict[str, Any] | None = None) -> GridField:
        """The field with the record of its training, without nodes that stop no light."""
        occupied = self._kept() & (self.field.links > 0)
        values = self.field.arrays.values.numpy()[self.field.links[occupied]]
        part = cropped(occupied)
        record = self._record(
            self._device,
            cpu_threads() if self._device == "cpu" else None,
            voxel=self.field.voxel,
            nodes=len(values),
        )
        return GridField.from_nodes(
            occupied[part],
            values,
            self.field.origin + self.field.voxel * np.array([s.start for s in part]),
            self.field.voxel,
            background=self._background,
            contraction=self._contraction,
            record={**record, **(figures or {})},
            device=self._device,
        )

    @property
    def _gradient_columns(self) -> int:
        return 1 + 3 * COEFFICIENTS[self.options.degree]

    def _voxel_of(self, level: int) -> float:
        return self._finest * 2.0 ** (len(self._ends) - 1 - level)

    def _start(self, posed: PosedImages) -> None:
        levels, size = _LEVELS, float((posed.bounds[1] - posed.bounds[0]).max())
        while size > _FIRST_SIDE * self._finest * 2.0 ** (levels - 1):
            levels += 1
        while True:
            voxel = self._finest * 2.0 ** (levels - 1)
            occupied, origin = first_nodes(posed, voxel, self._contraction)
            if np.count_nonzero(occupied) <= _FIRST_NODES or min(occupied.shape) < 16:
                break
            levels += 1
        self._ends = [_EACH ** (levels - 1 - level) for level in range(levels)]
        values = np.zeros((np.count_nonzero(occupied), self._gradient_columns), np.float32)
        if self._masked:
            values[:, 0] = _FIRST_DENSITY / voxel
        else:
            through = voxel * min(part.stop - part.start for part in cropped(occupied))
            if self._contraction is not None:
                through = min(through, self._contraction.half)
            values[:, 0] = _FIRST_FOG / through
        if self._contraction is not None:
            places = origin + voxel * np.argwhere(occupied) - np.array(self._contraction.middle)
            values[abs(places).max(axis=1) < self._contraction.half, 0] *= _FIRST_INSIDE
        values[:, 1:4] = 0.5
        self._set(self._grid(occupied, values, origin, voxel))

    def _refine(self) -> None:
        """Go on with half the voxel, where light was stopped."""
        field, kept = self.field, self._kept()
        self._level += 1
        voxel = self._voxel_of(self._level)
        while True:
            occupied = finer_nodes(kept, voxel / field.voxel)
            part = cropped(occupied)
            longest = max(slice_.stop - slice_.start for slice_ in part)
            excess = (np.count_nonzero(occupied) / _MOST_NODES) ** (1.0 / 3.0)
            excess = max(excess, longest / MAX_NODES)
            if excess <= 1.0:
                break
            voxel *= 1.02 * excess
        points = (np.argwhere(occupied) * (voxel / field.voxel)).astype(np.float32)
        rows = wp.zeros(len(points), dtype=self._Row, device=self._device)
        where = wp.array(points, dtype=wp.vec3, device=self._device)
        launch_over(
            self._kernels["resample"], len(points), [field.arrays, where, rows], self._device
        )
        origin = field.origin + voxel * np.array([s.start for s in part])
        self._set(self._grid(occupied[part], rows.numpy(), origin, voxel))

    def _kept(self) -> np.ndarray:
        """(X, Y, Z) bool: places where light was stopped, and their neighbours."""
        largest = self._fit.largest.numpy().copy()
        largest[0] = 0.0  # the row of all places without nodes
        kept = largest[self.field.links] > _KEEP
        if not kept.any():
            raise FieldError(
                f"after {self.done} steps nothing stops light any more: more steps, or check poses "
                "and masks"
            )
        return grown(kept)

    def _grid(self, occupied, values, origin, voxel: float) -> GridField:
        return GridField.from_nodes(
            occupied, values, origin, voxel, device=self._device, contraction=self._contraction
        )

    def _set(self, field: GridField) -> None:
        self.field = field
        rows, device = len(field.values), self._device
        self._gradient, self._mean, self._square = (
            wp.zeros(rows, dtype=self._Row, device=device) for _ in range(3)
        )
        self._fit = Fit()
        self._fit.touched = wp.zeros(rows, dtype=wp.uint8, device=device)
        self._fit.largest = wp.zeros(rows, dtype=float, device=device)
        self._fit.samples = wp.zeros((self._lanes, SAMPLES), dtype=wp.vec4, device=device)
        self._fit.places = wp.zeros((self._lanes, SAMPLES), dtype=float, device=device)
        self._fit.errors = wp.zeros(self._lanes, dtype=wp.vec2, device=device)
        self._fit.exposure = wp.zeros((self._photo_count, 5), dtype=wp.vec3, device=device)
        nodes = np.zeros((rows, 3), np.int32)
        nodes[1:] = np.argwhere(field.links)
        pace = np.ones(rows, np.float32)
        if self._contraction is not None:
            pace[1:] = pace_near_cameras(
                field.origin + field.voxel * nodes[1:],
                self._positions,
                self._near,
                self._contraction,
            )
        self._fit.pace = wp.array(pace, dtype=float, device=device)
        self._fit.nodes = wp.array(nodes, dtype=wp.vec3i, device=device)

    def _resume(self, state: dict[str, Any]) -> None:
        options = dataclasses.asdict(self.options)
        if state["options"] != options:
            name = next(n for n in options if state["options"].get(n) != options[n])
            raise FieldError(
                f"the checkpoint is of a training with {name} {state['options'].get(name)}, "
                f"not {options[name]}: give the same options, or start anew"
            )
        occupied, values, origin = (state[n].numpy() for n in ("occupied", "values", "origin"))
        self._set(self._grid(occupied, values[1:], origin, state["voxel"]))
        for name, array in self._arrays().items():
            array.assign(state[name].numpy())
        self._finest, self._ends = state["finest"], list(state["ends"])
        self._level = int(state["level"])


def train_grid(
    posed: PosedImages,
    options: GridOptions = DEFAULT,
    device="cpu",
    progress: Progress = quiet,
) -> GridField:
    """Train a grid from photos; the record of the training is in the field.

    progress: as for `run`; the PSNR is that over white. Raises FieldError.
    """
    training = GridTraining(posed, options, device)
    run(training, progress)
    return training.finish()


def _photos(posed: PosedImages, options: GridOptions, background, device: str) -> Photos:
    count, height, width = posed.images.shape[:3]
    if count * height * width >= 2**31:
        raise FieldError(
            f"{count} photos of {width}x{height} are too many pixels: make them smaller (--factor)"
        )
    alpha = posed.alpha
    if alpha is None:
        alpha = np.full((count, height, width), 255, np.uint8)
    rgba = np.concatenate([posed.images, alpha[..., None]], axis=-1).reshape(-1, 4)
    object_from_camera = posed.camera_from_object[:, :3, :3].transpose(0, 2, 1)
    rays = (object_from_camera @ np.linalg.inv(posed.intrinsics)).astype(np.float32)
    photos = Photos()
    photos.rgba = wp.array(rgba, dtype=wp.vec4ub, device=device)
    photos.ray_from_pixel = wp.array(rays, dtype=wp.mat33, device=device)
    positions = posed.camera_positions.astype(np.float32)
    photos.positions = wp.array(positions, dtype=wp.vec3, device=device)
    photos.height, photos.width = height, width
    photos.opacity_weight = options.opacity_weight
    photos.sparsity = 0.0 if posed.alpha is not None else options.sparsity
    if posed.alpha is None and background is not None:
        photos.opacity_weight = 0.0
        photos.background = wp.vec3(*(float(c) for c in background))
    photos.gain = wp.array(np.ones((count, 3), np.float32), dtype=wp.vec3, device=device)
    photos.bias = wp.zeros(count, dtype=wp.vec3, device=device)
    return photos


def _edge(view: View) -> np.ndarray:
    """(M, 3) uint8: the outermost rows and columns of a photo, as far as they count."""
    counts = np.ones(view.image.shape[:2], bool) if view.weight is None else view.weight
    rows, columns = np.flatnonzero(counts.any(1)), np.flatnonzero(counts.any(0))
    edge = np.zeros_like(counts)
    if len(rows):
        edge[rows[[0, -1]]] = edge[:, columns[[0, -1]]] = True
    return view.image[edge & counts]


def plain_background(posed: PosedImages) -> np.ndarray | None:
    """(3,) RGB of the edges of photos, if that is one colour."""
    edges = np.concatenate([_edge(view) for view in posed]) / 255.0
    colour = np.median(edges, axis=0)
    return colour if np.mean(abs(edges - colour).max(axis=1) < _PLAIN) > _MOSTLY else None


def _finest_voxel(
    bounds: np.ndarray, wanted: float | None, footprint: float, contracted: bool
) -> float:
    """Metres. Raises FieldError for one that makes too few or too many nodes."""
    longest = float((bounds[1] - bounds[0]).max())
    least = longest / (MAX_NODES - 8) / (_UNUSED if contracted else 1.0)
    if wanted is None:
        return min(max(footprint, least), longest / 16)
    if not least <= wanted <= longest / 16:
        raise FieldError(
            f"a voxel of {wanted:g} m does not suit a box of {longest:.3g} m: give {least:.2g} to "
            f"{longest / 16:.2g} m"
        )
    return wanted
