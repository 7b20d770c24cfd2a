# SPDX-License-Identifier: Apache-2.0
"""Refining the hypotheses of many objects together, and judging the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.refinement.covariance import pose_covariance, symmetry_covariance
from pose_refiner_ros.refinement.evidence import ObjectEvidence
from pose_refiner_ros.refinement.prior_term import PosePrior, PriorTerm
from pose_refiner_ros.refinement.silhouette_term import SilhouetteTerm
from pose_refiner_ros.refinement.solver import Level, Reason, Solver
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

# Many hypotheses of an object: a few steps show which are worth following.
FIRST_LOOK = (Level(0, 4, 1.0),)
WORTH_FOLLOWING = 3  # times as many as are kept in the end
COARSE = (Level(0, 14, 1.0),)
ROUGH_PX = 4.0  # the outline error of the coarse level's meshes: one pixel of its pictures
FINE = (Level(1, 8, 0.15), Level(2, 3, 0.1))
FINEST = 2
# An outline that ends farther than this from the mask's border (robust RMS, share of the crop's
# side) may sit in a local minimum: starts turned by RESTART_ANGLE about each axis are tried too.
RESTART_RMS = 0.003
RESTART_ANGLE = np.radians(20.0)
# Hypotheses that end this near to each other are one.
SAME_ANGLE = np.radians(8.0)


@dataclass(eq=False)
class Refined:
    """A refined hypothesis of one object.

    camera_from_object (4, 4) and covariance (6, 6), about the object's origin, in the camera's
    axes; cost: robust area between silhouette and mask, crop pixels squared, 0 for a perfect fit;
    iou over the known pixels; contour_rms_px: robust RMS distance between outline and mask border,
    photo pixels; visible_fraction: share of the model's outline that lies on known pixels;
    photo_rms: see `ObjectPose`, filled in by who compares it with the photo.
    """

    camera_from_object: np.ndarray
    covariance: np.ndarray
    cost: float
    iou: float
    contour_rms_px: float
    visible_fraction: float
    iterations: int
    reason: Reason
    prior_cost: float = 0.0  # of being away from what was known before, in units of the cost
    photo_rms: float | None = None

    @property
    def total_cost(self) -> float:
        return self.cost + self.prior_cost


@dataclass(eq=False)
class Candidate:
    """A pose (4, 4) on its way, in the frame of its object's crop."""

    owner: int
    pose: np.ndarray
    prior: PosePrior | None = None
    cost: float = np.inf
    iterations: int = 0
    reason: Reason = Reason.RUNNING


class Refiner:
    """Refines poses of a fixed set of objects against silhouettes.

    capacity: most poses in one batch; more are done in several. Kernels compile at the first use,
    which takes seconds: `Pipeline.warm_up` does it before the first frame.
    """

    def __init__(
        self, models: Sequence[ObjectModel], device: str = "cpu", capacity: int = 64
    ) -> None:
        self.models = list(models)
        self.index = {model.name: i for i, model in enumerate(self.models)}
        self.capacity = capacity
        fine = [model.silhouette_mesh for model in self.models]
        rough = [simplify_for_silhouette(mesh, tolerance_px=ROUGH_PX) for mesh in fine]
        self.term = SilhouetteTerm(MeshBatch(fine + rough, device), len(fine), capacity, capacity)
        self.prior_term = PriorTerm(capacity, device)
        self.solver = Solver(capacity, device)
        self.diameter = np.array([model.diameter for model in self.models])
        self._loaded: list[Candidate] = []  # whose poses the solver holds
        self.near = np.maximum(0.02 * self.diameter, 1e-3)

    def refine(
        self,
        evidence: Sequence[ObjectEvidence],
        names: Sequence[str],
        hypotheses: Sequence[Sequence[np.ndarray]],
        keep: int = 4,
        restart: bool | Sequence[bool] = True,
        priors: Sequence[Sequence[PosePrior | None]] | None = None,
    ) -> list[list[Refined]]:
        """Refine every object's hypotheses, poses (4, 4) in the camera frame; best result first.

        priors: one, or None, beside each hypothesis; it is held to it, as far as the prior's
        information says.

        All go through the coarse level; of each object the `keep` best that differ go on to the
        end. With `restart` (one for all, or one each), objects that end in a poor fit are tried
        again from starts around their first hypothesis. Objects without hypotheses get no result.
        """
        if isinstance(restart, bool):
            restart = [restart] * len(evidence)
        results: list[list[Refined]] = [[] for _ in evidence]
        for first in range(0, len(evidence), self.capacity):
            part = slice(first, first + self.capacity)
            results[part] = self._refine_part(
                evidence[part],
                names[part],
                hypotheses[part],
                keep,
                restart[part],
                None if priors is None else priors[part],
            )
        return results

    @staticmethod
    def candidate(
        owner: int,
        seen: ObjectEvidence,
        camera_from_object: np.ndarray,
        prior: PosePrior | None = None,
    ) -> Candidate:
        """A start pose (4, 4) of the batch's object number `owner`, taken to its crop's frame."""
        pose = _crop_transform(seen) @ np.asarray(camera_from_object, np.float64)
        if prior is not None:
            prior = prior.turned(seen.crop.crop_from_camera)
        return Candidate(owner, pose, prior)

    def evaluate(
        self, evidence: ObjectEvidence, name: str, camera_from_object: np.ndarray
    ) -> Refined:
        """Measure a pose (4, 4) as it is."""
        self._load_evidence([evidence])
        candidate = self.candidate(0, evidence, camera_from_object)
        return self._measure([candidate], [evidence], [self.index[name]])[0]

    def merge(self, name: str, found: Sequence[Refined]) -> list[Refined]:
        """Results of one object without repeats, best first."""
        found = sorted(found, key=lambda refined: refined.total_cost)
        return self._distinct(found, self.index[name])

    def outline_term(
        self, evidence: Sequence[ObjectEvidence], names: Sequence[str], owners: Sequence[int]
    ) -> SilhouetteTerm:
        """The silhouette as a term for poses (B) in the frames of their crops, to be solved with
        others: pose i is of object names[owners[i]], seen in evidence[owners[i]]."""
        self._loaded = []
        self._load_evidence(evidence)
        owners = np.asarray(owners, np.int32)
        index = np.array([self.index[names[owner]] for owner in owners], np.int32)
        self.term.load(index, owners, self.near[index])
        return self.term

    def _refine_part(self, evidence, names, hypotheses, keep, restart, priors):
        self._load_evidence(evidence)
        mesh = [self.index[name] for name in names]
        starts = [
            self.candidate(owner, seen, pose, priors[owner][i] if priors else None)
            for owner, seen in enumerate(evidence)
            for i, pose in enumerate(hypotheses[owner])
        ]
        results = self._from_starts(starts, evidence, mesh, keep)
        again = []
        for owner, found in enumerate(results):
            seen = evidence[owner]
            limit = RESTART_RMS * seen.crop.size / seen.crop.scale
            if restart[owner] and found and not found[0].contour_rms_px < limit:
                pose = self.candidate(owner, seen, hypotheses[owner][0]).pose
                again += [Candidate(owner, other) for other in turned(pose, RESTART_ANGLE)]
        if again:
            more = self._from_starts(again, evidence, mesh, 2)
            for owner, found in enumerate(more):
                if found:
                    results[owner] = self.merge(names[owner], results[owner] + found)[:keep]
        return results

    def _from_starts(self, starts, evidence, mesh, keep) -> list[list[Refined]]:
        if len({c.owner for c in starts}) == len(starts) <= self.capacity:
            finished = self._solve(starts, mesh, COARSE + FINE)  # one each: nothing to choose from
        else:
            several = WORTH_FOLLOWING * keep
            if len(starts) > several * len({c.owner for c in starts}):
                starts = self._best(self._solve(starts, mesh, FIRST_LOOK), mesh, several)
            kept = self._best(self._solve(starts, mesh, COARSE), mesh, keep)
            finished = self._solve(kept, mesh, FINE)
        results: list[list[Refined]] = [[] for _ in evidence]
        for candidate, refined in zip(
            finished, self._measure(finished, evidence, mesh), strict=True
        ):
            results[candidate.owner].append(refined)
        for owner, found in enumerate(results):
            found.sort(key=lambda refined: refined.total_cost)
            if len(found) > 1:
                results[owner] = self._distinct(found, mesh[owner])
        return results

    def _load_evidence(self, evidence: Sequence[ObjectEvidence]) -> None:
        self.term.load_evidence([seen.levels for seen in evidence])

    def _solve(self, candidates, mesh, levels) -> list[Candidate]:
        """Run candidates through levels, in batches of the solver's capacity."""
        for first in range(0, len(candidates), self.capacity):
            batch = candidates[first : first + self.capacity]
            self._load_batch(batch, mesh)
            self.solver.run(self._terms(batch), levels)
            result = self.solver.result()
            for i, candidate in enumerate(batch):
                candidate.pose = result["camera_from_object"][i]
                candidate.cost = float(result["cost"][i])
                candidate.iterations += int(result["iterations"][i])
                candidate.reason = Reason(int(result["reason"][i]))
        return candidates

    def _load_batch(self, batch, mesh) -> None:
        self._loaded = list(batch)
        index = np.array([mesh[c.owner] for c in batch], np.int32)
        owner = np.array([c.owner for c in batch], np.int32)
        self.term.load(index, owner, self.near[index])
        self.prior_term.load([c.prior for c in batch])
        self.solver.load(np.stack([c.pose for c in batch]), self.diameter[index])

    def _terms(self, batch) -> list:
        """The silhouette alone, where nothing was known before."""
        known = any(candidate.prior is not None for candidate in batch)
        return [self.term, self.prior_term] if known else [self.term]

    def _measure(self, candidates, evidence, mesh) -> list[Refined]:
        results = []
        for first in range(0, len(candidates), self.capacity):
            batch = candidates[first : first + self.capacity]
            if batch != self._loaded:
                self._load_batch(batch, mesh)
            # what the solver holds is the sum of all terms; the fit is the silhouette's alone
            alone = len(self._terms(batch)) == 1
            found = self.solver.evaluate(self.term, FINEST, known=alone)
            diameter = self.diameter[[mesh[c.owner] for c in batch]]
            covariance = pose_covariance(found.hessian, found.slope, found.sectors, diameter)
            for i, candidate in enumerate(batch):
                seen = evidence[candidate.owner]
                camera_from_crop = seen.crop.crop_from_camera.T
                turn = np.kron(np.eye(2), camera_from_crop)
                symmetries = self.models[mesh[candidate.owner]].symmetries
                covariance[i] += symmetry_covariance(symmetries, candidate.pose)
                pose = candidate.pose.copy()
                pose[:3] = camera_from_crop @ pose[:3]
                union = found.area[i] + seen.area - found.overlap[i]
                results.append(
                    Refined(
                        camera_from_object=pose,
                        covariance=turn @ covariance[i] @ turn.T,
                        cost=float(found.cost[i]) - seen.least_cost,
                        iou=float(found.overlap[i] / max(union, 1.0)),
                        contour_rms_px=float(found.rms[i] / seen.crop.scale),
                        visible_fraction=float(found.known_share[i]),
                        iterations=candidate.iterations,
                        reason=candidate.reason,
                        prior_cost=candidate.prior.cost(candidate.pose) if candidate.prior else 0.0,
                    )
                )
        return results

    def _best(self, candidates, mesh, keep) -> list[Candidate]:
        """Of each object the `keep` best candidates that differ from each other, without those so
        far behind the best that the finer levels cannot bring them back."""
        chosen: list[Candidate] = []
        by_owner: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            if np.isfinite(candidate.cost):
                by_owner.setdefault(candidate.owner, []).append(candidate)
        for owner, own in by_owner.items():
            own.sort(key=lambda c: c.cost)
            mine: list[Candidate] = []
            for candidate in own:
                behind = candidate.cost - own[0].cost
                if len(mine) == keep or behind > 0.3 * abs(own[0].cost):
                    break
                if not any(self._same(candidate.pose, c.pose, mesh[owner]) for c in mine):
                    mine.append(candidate)
            chosen += mine
        return chosen

    def _distinct(self, found: list[Refined], mesh: int) -> list[Refined]:
        chosen: list[Refined] = []
        for refined in found:
            pose = refined.camera_from_object
            if not any(self._same(pose, other.camera_from_object, mesh) for other in chosen):
                chosen.append(refined)
        return chosen

    def _same(self, a: np.ndarray, b: np.ndarray, mesh: int) -> bool:
        model = self.models[mesh]
        shift = np.linalg.norm(a[:3, 3] - b[:3, 3])
        if shift > 0.1 * model.diameter + 0.05 * abs(b[2, 3]):
            return False
        return float(model.symmetries.reduced_rotation_error(a, b)) < SAME_ANGLE


def _crop_transform(seen: ObjectEvidence) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3] = seen.crop.crop_from_camera
    return transform


def turned(pose: np.ndarray, angle: float) -> list[np.ndarray]:
    """The pose (4, 4) turned by an angle both ways about each camera axis through the object's
    origin."""
    poses = []
    for axis in np.concatenate([np.eye(3), -np.eye(3)]):
        other = pose.copy()
        other[:3, :3] = cv2.Rodrigues(axis * angle)[0] @ pose[:3, :3]
        poses.append(other)
    return poses
