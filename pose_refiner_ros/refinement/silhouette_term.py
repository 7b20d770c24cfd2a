# SPDX-License-Identifier: Apache-2.0
"""The silhouette as a term of the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import warp as wp

from ..rendering.coverage import Scratch, coverage_shape
from ..rendering.mesh_batch import MeshBatch
from ..rendering.silhouette import SECTORS, Evidence, Linearisation, linearise_silhouette, vec7
from .evidence import LEVEL_SIZES, EvidenceLevel
from .mirror import Mirror
from .solver import State

BLOCK = 128


@dataclass(frozen=True)
class Stage:
    """How closely a level looks: which resolution of the evidence it compares with, how many of its
    pixels (grain x grain) one pixel of the drawn silhouette stands for, and whether a rough version
    of the mesh will do."""

    resolution: int
    grain: int
    rough: bool = False


# Coarse pixels are enough to tell which edges are outline; the outline itself is never rounded.
STAGES = (Stage(0, 2, rough=True), Stage(1, 2), Stage(1, 1))


@dataclass(frozen=True, eq=False)
class Fit:
    """How silhouettes (B) lie on their masks; lengths in crop pixels.

    hessian: (B, 6, 6) Gauss-Newton matrix; slope: (B,) mean of d psi / d phi along the outline,
    relative to the weights in the matrix; sectors: (B, S, 6) gradient by direction; cost: (B,);
    area, overlap: (B,) known covered pixels and those of them in the mask; rms: (B,) robust RMS
    distance between outline and mask border, infinite without an outline; known_share: (B,) of
    the outline on known pixels.
    """

    hessian: np.ndarray
    slope: np.ndarray
    sectors: np.ndarray
    cost: np.ndarray
    area: np.ndarray
    overlap: np.ndarray
    rms: np.ndarray
    known_share: np.ndarray


class SilhouetteTerm:
    """Silhouettes of up to ``capacity`` poses against the masks of up to ``objects`` objects.

    rough_offset: what to add to a mesh's index in the batch for its rough version (0: none).
    sizes: side in pixels of the evidence at each resolution, the full one last; spacing: of the
    samples along the outline, pixels of the resolution.
    """

    def __init__(
        self,
        meshes: MeshBatch,
        rough_offset: int,
        capacity: int,
        objects: int,
        sizes: tuple[int, ...] = LEVEL_SIZES,
        spacing: float = 1.5,
        stages: tuple[Stage, ...] = STAGES,
    ) -> None:
        device = meshes.device
        self.meshes = meshes
        self.rough_offset = rough_offset
        self.device = wp.get_device(device)
        self.sizes = sizes
        self.spacing = spacing
        self.stages = stages
        self.resolutions = []
        for size in sizes:
            evidence = Evidence()
            evidence.distance = wp.zeros((objects, size, size), dtype=wp.float32, device=device)
            evidence.scale = wp.zeros(objects, dtype=wp.float32, device=device)
            evidence.size = wp.zeros(objects, dtype=wp.int32, device=device)
            evidence.camera = wp.zeros(objects, dtype=wp.vec4, device=device)
            evidence.image_bounds = wp.zeros(objects, dtype=wp.vec4, device=device)
            evidence.pixel = wp.zeros(objects, dtype=wp.float32, device=device)
            self.resolutions.append(evidence)
        self.mesh_of_pose = wp.zeros(capacity, dtype=wp.int32, device=device)
        self.evidence_of_pose = wp.zeros(capacity, dtype=wp.int32, device=device)
        self.near = wp.zeros(capacity, dtype=wp.float32, device=device)
        scratch = Scratch()
        scratch.projected = wp.zeros((capacity, meshes.max_vertices), dtype=wp.vec3, device=device)
        scratch.facing = wp.zeros((capacity, meshes.max_faces), dtype=wp.uint8, device=device)
        shape = coverage_shape(capacity, sizes[-1])
        scratch.coverage = wp.zeros(shape, dtype=wp.uint32, device=device)
        self.scratch = scratch
        self.measures = wp.zeros(capacity, dtype=vec7, device=device)
        self.sectors = wp.zeros((capacity, SECTORS), dtype=wp.spatial_vector, device=device)
        self._rows = Mirror(
            self, ["mesh_of_pose", "evidence_of_pose", "near", "measures", "sectors"]
        )
        self._resolution_rows = [
            Mirror(evidence, list(Evidence.vars)) for evidence in self.resolutions
        ]
        self._launches = {}
        self._dims = {}
        self.level = 0
        self.count = 0

    def load(self, mesh_of_pose, evidence_of_pose, near) -> None:
        """Say which mesh and which evidence (B,) each pose has, and its near plane in metres."""
        self.count = len(mesh_of_pose)
        self._rows.write("mesh_of_pose", np.asarray(mesh_of_pose, np.int32))
        self._rows.write("evidence_of_pose", np.asarray(evidence_of_pose, np.int32))
        self._rows.write("near", np.asarray(near, np.float32))

    def load_evidence(self, pyramids: Sequence[Sequence[EvidenceLevel]]) -> None:
        """Upload what was observed: the resolutions of one object after another."""
        for index, rows in enumerate(self._resolution_rows):
            levels = [pyramid[index] for pyramid in pyramids]
            for row, level in enumerate(levels):
                size = level.distance.shape[0]
                if self.device.is_cpu:
                    rows.read("distance", row + 1)[row, :size, :size] = level.distance
                else:
                    target = self.resolutions[index].distance[row, :size, :size]
                    wp.copy(target, wp.array(level.distance, device=self.device))
            rows.write("size", np.array([len(level.distance) for level in levels], np.int32))
            rows.write("scale", np.array([level.scale for level in levels], np.float32))
            rows.write("camera", np.array([level.camera for level in levels], np.float32))
            rows.write("image_bounds", np.array([level.bounds for level in levels], np.float32))
            rows.write("pixel", np.array([level.pixel for level in levels], np.float32))

    def set_level(self, index: int) -> None:
        self.level = index

    def accumulate(self, state: State) -> None:
        """Add the silhouettes' cost and derivatives at the trial poses of the state."""
        finest = self.level == len(self.stages) - 1
        self._launch(state, with_sectors=int(finest))

    def fit(self, state: State) -> Fit:
        """How the poses that were looked at last lie on their masks."""
        count = self.count
        measures = self._rows.read("measures", count).astype(np.float64)
        area, overlap, square, length, unknown, weight, slope = measures.T
        return Fit(
            hessian=state.trial_hessian.numpy()[:count],
            slope=slope / np.maximum(weight, 1e-9),
            sectors=self._rows.read("sectors", count),
            cost=state.trial_cost.numpy()[:count],
            area=area,
            overlap=overlap,
            rms=np.sqrt(square / np.maximum(weight, 1e-9)) + np.where(weight > 0, 0.0, np.inf),
            known_share=1.0 - unknown / np.maximum(length, 1e-9),
        )

    def _launch(self, state: State, with_sectors: int) -> None:
        key = (self.level, with_sectors, id(state))
        launch = self._launches.get(key)
        if launch is None:
            stage = self.stages[self.level]
            out = Linearisation()
            out.hessian = state.trial_hessian
            out.gradient = state.trial_gradient
            out.cost = state.trial_cost
            out.weight = state.trial_weight
            out.measures = self.measures
            out.sectors = self.sectors
            lanes = 1 if self.device.is_cpu else BLOCK
            launch = wp.launch(
                linearise_silhouette,
                dim=(self.mesh_of_pose.shape[0], lanes),
                inputs=[
                    self.meshes.arrays,
                    self.resolutions[stage.resolution],
                    self.mesh_of_pose,
                    self.evidence_of_pose,
                    state.active,
                    state.trial_rotation,
                    state.trial_translation,
                    self.near,
                    self.spacing,
                    stage.grain,
                    self.rough_offset if stage.rough else 0,
                    with_sectors,
                    self.scratch,
                    out,
                ],
                device=self.device,
                block_dim=lanes,
                record_cmd=True,
            )
            self._launches[key] = launch
        if self._dims.get(key) != self.count:  # setting it costs more than the launch
            launch.set_dim((self.count, 1 if self.device.is_cpu else BLOCK))
            self._dims[key] = self.count
        launch.launch()
