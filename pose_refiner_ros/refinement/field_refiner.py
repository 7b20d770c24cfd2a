# SPDX-License-Identifier: Apache-2.0
"""Refining poses against photos through radiance fields: the fast way.

The paper's loss (iNeRF, 2021, eq. 1) by Levenberg-Marquardt with the exact derivative of every ray,
first of pictures that are blurred far, then less and less so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from pose_refiner_ros.fields.coarser import coarser
from pose_refiner_ros.fields.grid import GridField

from .covariance import pose_covariance
from .evidence import ObjectEvidence
from .photo_evidence import PhotoEvidence, Rays, chosen_rays, lattice_rays
from .radiance_term import ObjectRays, RadianceStage, RadianceTerm
from .refiner import FINEST as SILHOUETTE_FINEST
from .refiner import SAME_ANGLE, WORTH_FOLLOWING, Refiner, turned
from .silhouette_term import Fit, SilhouetteTerm
from .solver import Level, Reason, Solver, State

# From coarse to fine: pictures of few rays, blurred far, then pixels of the photo itself.
STAGES = (
    RadianceStage(0.75, 2.0, 0.5, 0.3),
    RadianceStage(1.5, 1.2, 0.5, 0.2),
    RadianceStage(2.0, 0.8, 0.5, 0.15),
    RadianceStage(1.0, 0.0, 1.0, 0.15),
)
FINEST = len(STAGES) - 1
FACTORS = (1, 2, 4, 8, 16)  # by which a field is made coarser, where pixels are as large
# Tolerances are RMS changes of colour in units of COLOUR_OF_PIXEL. Where samples lie makes the cost
# tremble, so that the gradients of both ends judge short steps better.
FIRST_LOOK = (Level(0, 5, 0.1, 0.0),)
COARSE = (Level(0, 12, 0.1, 0.0), Level(1, 8, 0.1, 0.0))
FINE = (Level(2, 10, 0.05, 0.1), Level(3, 40, 0.03, 0.1))
TRACKED = (Level(2, 6, 0.1, 0.1), Level(3, 10, 0.02, 0.1))
# Colours that end this far off (robust RMS) may be those of a local minimum.
RESTART_RMS = 0.08
RESTART_ANGLE = np.radians(25.0)
OPACITY_WEIGHT = 1.0
WITHIN = 0.25  # diameters: the least distance for which a field is made coarser
EXPOSURE_ROUNDS = 3  # of reweighting, until gain and bias of a pose are known


@dataclass(frozen=True)
class FieldSettings:
    """What a user may tune of photometric refinement.

    sampling: which rays the finest level follows: random, interest_point or interest_region; rays:
    how many of each object there, and about as many, up to twice, at the others; exposure: solve
    for a gain and a bias of each colour channel as well, where the light is not that of the
    training photos; seed: of the rays.
    """

    sampling: str = "interest_region"
    rays: int = 1024
    exposure: bool = False
    seed: int = 0


@dataclass(eq=False)
class PhotoRefined:
    """A hypothesis refined against a photo.

    camera_from_object (4, 4) and covariance (6, 6), twist order, camera's axes, about the object's
    origin; cost: robust sum over rays; rms: robust RMS difference of colour, in [0, 1], where the
    photo or the field in this pose shows more than the background; gain, bias:
    (3,) from the field's colours to the photo's.
    """

    camera_from_object: np.ndarray
    covariance: np.ndarray
    cost: float
    rms: float
    gain: np.ndarray
    bias: np.ndarray
    iterations: int
    reason: Reason


@dataclass(eq=False)
class _Candidate:
    """A pose (4, 4) of object number `owner` on its way, camera_from_pivot in its photo's axes."""

    owner: int
    pose: np.ndarray
    cost: float = np.inf
    iterations: int = 0
    reason: Reason = Reason.RUNNING


class _FieldLevels:
    """A field at several resolutions, about the point that poses turn about: the object's origin,
    or, where that lies far outside, the field's middle."""

    def __init__(self, grid: GridField) -> None:
        self.diameter = grid.diameter
        middle = grid.occupied_bounds.mean(axis=0)
        far = np.linalg.norm(middle) > 0.5 * grid.diameter
        self.pivot = middle if far else np.zeros(3)
        self._levels = [coarser(grid, factor).shifted(self.pivot) for factor in FACTORS]

    def for_pixels(self, pixel: float) -> GridField:
        """The version for pixels that are so many metres wide where the object is."""
        factor = pixel / self._levels[0].voxel
        return self._levels[int(np.searchsorted(np.array(FACTORS[1:]), factor, side="right"))]


@dataclass(eq=False)
class _Seen:
    """An object in its photo. Poses on their way are crop_from_pivot: in the crop's axes, about the
    field's pivot."""

    photo: PhotoEvidence
    field: _FieldLevels
    settings: FieldSettings
    name: str
    mask: ObjectEvidence | None
    _rays: dict[int, Rays] = field(default_factory=dict)

    def rays(self, level: int) -> Rays:
        """Evenly over the picture at coarse levels, then where the photo is interesting."""
        if level not in self._rays:
            stage = STAGES[level]
            count = round(stage.rays * self.settings.rays)
            if stage.sigma:
                self._rays[level] = lattice_rays(self.photo, count, stage.sigma)
            else:
                rng = np.random.default_rng((self.settings.seed, level))
                pixels = self.photo.sampler(self.settings.sampling).draw(count, rng)
                self._rays[level] = chosen_rays(self.photo, pixels)
        return self._rays[level]

    def look(self, distance: float) -> Callable[[int], tuple[GridField, Rays]]:
        """What RadianceTerm asks for, the object being about so many metres away."""

        def at(level: int) -> tuple[GridField, Rays]:
            rays = self.rays(level)
            pixel = rays.spacing * distance / self.photo.pinhole[0]
            return self.field.for_pixels(STAGES[level].grain * pixel), rays

        return at

    @property
    def has_outline(self) -> bool:
        """Meshes are drawn about the object's origin: it must be what poses turn about, too."""
        return self.mask is not None and not self.field.pivot.any()

    def to_pivot(self, pose: np.ndarray) -> np.ndarray:
        """camera_from_object (4, 4) as crop_from_pivot."""
        moved = np.array(pose, np.float64)
        moved[:3, 3] += moved[:3, :3] @ self.field.pivot
        moved[:3] = self.photo.crop_from_camera @ moved[:3]
        return moved

    def from_pivot(self, pose, covariance) -> tuple[np.ndarray, np.ndarray]:
        """camera_from_object (4, 4) and its covariance (6, 6) from those about the pivot."""
        camera_from_crop = self.photo.crop_from_camera.T
        pose = pose.copy()
        pose[:3] = camera_from_crop @ pose[:3]
        turn = np.kron(np.eye(2), camera_from_crop)
        x, y, z = arm = pose[:3, :3] @ self.field.pivot
        pose[:3, 3] -= arm
        # a turn w about the pivot moves the object's origin by w x -arm
        move = np.eye(6)
        move[:3, 3:] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
        turn = move @ turn
        return pose, turn @ covariance @ turn.T


class AtFinest:
    """A term that looks as closely as it can, whatever the level of the others."""

    def __init__(self, term: SilhouetteTerm) -> None:
        self.term = term
        self.level = SILHOUETTE_FINEST

    def set_level(self, index: int) -> None:
        self.term.set_level(SILHOUETTE_FINEST)

    def accumulate(self, state: State) -> None:
        self.term.accumulate(state)

    def fit(self, state: State) -> Fit:
        return self.term.fit(state)


class FieldRefiner:
    """Refines poses of objects that have radiance fields.

    fields: by name. Making them coarser takes a second or two each, once. capacity: most poses at
    once. outlines: refines the same objects by their meshes; its silhouette then pulls as well,
    where masks are given.
    """

    def __init__(
        self,
        fields: Mapping[str, GridField],
        settings: FieldSettings | None = None,
        device: str = "cpu",
        capacity: int = 64,
        outlines: Refiner | None = None,
    ) -> None:
        if outlines is not None:
            capacity = min(capacity, outlines.capacity)
        self.outlines = outlines
        self.settings = settings or FieldSettings()
        self.capacity = capacity
        self._fields = {name: _FieldLevels(grid.to(device)) for name, grid in fields.items()}
        # At most twice as many as the user asked for; a lattice over a narrow photo may have twice
        # as many as that.
        self.term = RadianceTerm(
            STAGES, capacity, 4 * self.settings.rays, self.settings.exposure, device
        )
        self.solver = Solver(capacity, device)

    def refine(
        self,
        photos: Sequence[PhotoEvidence],
        names: Sequence[str],
        hypotheses: Sequence[Sequence[np.ndarray]],
        keep: int = 2,
        tracked: bool = False,
        restart: bool = True,
        masks: Sequence[ObjectEvidence] | None = None,
    ) -> list[list[PhotoRefined]]:
        """Refine every object's hypotheses, poses (4, 4) in the camera frame; best result first.

        All are looked at in the coarsest level; of each object the best few go through the coarse
        levels, and the `keep` best that differ to the end.
        tracked: poses are those of the frame before: only the fine levels, a few iterations.
        restart: an object whose colours end far off is tried again from starts turned about its
        first hypothesis. masks: the crops that `masked_photo` made the photos of; in the fine
        levels the silhouettes of the objects' meshes are to fit them, too.
        """
        photos = [photo.cropped() for photo in photos]
        seen = [
            _Seen(
                photo,
                self._fields[name],
                self.settings,
                name,
                None if masks is None or self.outlines is None else masks[i],
            )
            for i, (photo, name) in enumerate(zip(photos, names, strict=True))
        ]
        starts = [
            _Candidate(owner, seen[owner].to_pivot(pose))
            for owner, poses in enumerate(hypotheses)
            for pose in poses
        ]
        results = self._from_starts(starts, seen, keep, tracked)
        if restart and not tracked:
            best = [min(found, key=lambda refined: refined.cost, default=None) for found in results]
            poor = [i for i, one in enumerate(best) if one and not one.rms <= RESTART_RMS]
            again = [
                _Candidate(owner, pose)
                for owner in poor
                for pose in turned(seen[owner].to_pivot(hypotheses[owner][0]), RESTART_ANGLE)
            ]
            for i, found in enumerate(self._from_starts(again, seen, keep, tracked)):
                results[i] += found
        return [_distinct(found, one)[:keep] for found, one in zip(results, seen, strict=True)]

    def _from_starts(self, starts, seen, keep, tracked) -> list[list[PhotoRefined]]:
        if not tracked:
            several = WORTH_FOLLOWING * keep
            if len(starts) > several * len({c.owner for c in starts}):
                starts = _best(self._solve(starts, seen, FIRST_LOOK), seen, several)
            starts = _best(self._solve(starts, seen, COARSE), seen, keep)
        finished = self._solve(starts, seen, TRACKED if tracked else FINE, outlines=True)
        results: list[list[PhotoRefined]] = [[] for _ in seen]
        for candidate, refined in self._measure(finished, seen):
            results[candidate.owner].append(refined)
        return results

    def _solve(self, candidates, seen, levels, outlines=False) -> list[_Candidate]:
        for batch in self._batches(candidates, seen):
            self._load(batch, seen)
            terms = [self.term]
            if outlines and seen[batch[0].owner].has_outline:
                terms.append(self._outline(batch, seen))
            self.solver.run(terms, levels)
            result = self.solver.result()
            for i, candidate in enumerate(batch):
                candidate.pose = result["camera_from_object"][i]
                candidate.cost = float(result["cost"][i])
                candidate.iterations += int(result["iterations"][i])
                candidate.reason = Reason(int(result["reason"][i]))
        return candidates

    def _batches(self, candidates, seen):
        """Those of an object side by side, and none with an outline beside one without."""

        def outlined(candidate: _Candidate) -> bool:
            return seen[candidate.owner].has_outline

        candidates.sort(key=lambda c: (outlined(c), c.owner))
        for _, group in groupby(candidates, outlined):
            alike = list(group)
            for first in range(0, len(alike), self.capacity):
                yield alike[first : first + self.capacity]

    def _outline(self, batch, seen) -> AtFinest:
        owners = sorted({c.owner for c in batch})
        masks = [seen[owner].mask for owner in owners]
        names = [seen[owner].name for owner in owners]
        return AtFinest(
            self.outlines.outline_term(masks, names, [owners.index(c.owner) for c in batch])
        )

    def _load(self, batch, seen) -> None:
        objects = []
        for owner in sorted({c.owner for c in batch}):
            one = seen[owner]
            opacity = OPACITY_WEIGHT if one.photo.opacity is not None else 0.0
            own = [c for c in batch if c.owner == owner]
            # a camera within a scene is as far from its walls as that is large
            distance = max(
                float(np.median([np.linalg.norm(c.pose[:3, 3]) for c in own])),
                WITHIN * one.field.diameter,
            )
            objects.append(ObjectRays(one.look(distance), one.photo.background, opacity, len(own)))
        self.term.load(objects)
        self.solver.load(
            np.stack([c.pose for c in batch]),
            np.array([seen[c.owner].field.diameter for c in batch]),
        )

    def _measure(self, candidates, seen):
        for batch in self._batches(candidates, seen):
            self._load(batch, seen)
            for _ in range(EXPOSURE_ROUNDS if self.settings.exposure else 1):
                fit = self.solver.evaluate(self.term, FINEST, known=False)
            diameter = np.array([seen[c.owner].field.diameter for c in batch])
            covariance = pose_covariance(fit.hessian, np.ones(len(batch)), fit.sectors, diameter)
            for i, candidate in enumerate(batch):
                pose, about_origin = seen[candidate.owner].from_pivot(candidate.pose, covariance[i])
                yield (
                    candidate,
                    PhotoRefined(
                        camera_from_object=pose,
                        covariance=about_origin,
                        cost=float(fit.cost[i]),
                        rms=float(fit.rms[i]),
                        gain=fit.gain[i],
                        bias=fit.bias[i],
                        iterations=candidate.iterations,
                        reason=candidate.reason,
                    ),
                )


def _best(candidates, seen, keep) -> list[_Candidate]:
    """Of each object the `keep` best candidates that differ from each other."""
    chosen: list[_Candidate] = []
    for owner in sorted({c.owner for c in candidates}):
        own = sorted(
            (c for c in candidates if c.owner == owner and np.isfinite(c.cost)),
            key=lambda c: c.cost,
        )
        mine: list[_Candidate] = []
        for candidate in own:
            if len(mine) == keep:
                break
            if not any(_same(candidate.pose, c.pose, seen[owner].field.diameter) for c in mine):
                mine.append(candidate)
        chosen += mine
    return chosen


def _distinct(found: list[PhotoRefined], seen: _Seen) -> list[PhotoRefined]:
    """Results of one object without repeats, best first."""
    chosen: list[PhotoRefined] = []
    for refined in sorted(found, key=lambda refined: refined.cost):
        pose = refined.camera_from_object
        if not any(_same(pose, c.camera_from_object, seen.field.diameter) for c in chosen):
            chosen.append(refined)
    return chosen


def _same(a: np.ndarray, b: np.ndarray, diameter: float) -> bool:
    if np.linalg.norm(a[:3, 3] - b[:3, 3]) > 0.1 * diameter:
        return False
    cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1.0) / 2.0
    return bool(np.arccos(np.clip(cosine, -1.0, 1.0)) < SAME_ANGLE)
