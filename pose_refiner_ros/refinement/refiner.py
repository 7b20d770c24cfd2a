# SPDX-License-Identifier: Apache-2.0
"""Refining the hypotheses of many objects together, by all that is seen of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isnan

import numpy as np

from pose_refiner_ros.geometry.pose import about, about_point
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.settings import Settings

from .covariance import MIN_NOISE, pose_covariance, symmetry_covariance
from .hypotheses import Hypothesis, around, best_distinct
from .observation import Observation
from .search import contradicts, fits_to_the_pixel, restart_angle
from .solver import Level, Solver
from .terms import ResidualTerm, TermFit
from .terms.depth import DepthTerm
from .terms.prior import PriorTerm
from .terms.silhouette import SilhouetteTerm

Levels = tuple[Level, ...]
# More candidates than this, times those that are kept, get a first look before the coarse levels.
WORTH_FOLLOWING = 3


@dataclass(frozen=True)
class Stage:
    """Evidence that poses are refined by, coarse to fine; objects of which `term` has seen nothing
    pass through.

    Of many candidates the `first_look` shows which are worth the `coarse` levels, and these which
    are worth the `fine` ones. tracked: the levels of a pose that was right a frame ago, where they
    are fewer. behind: candidates whose cost is behind the best one's by more than this share of it
    are given up. Of an object that an earlier stage has sifted, at most `promising` enter, and
    `keep` are followed to the end.
    """

    term: str
    first_look: Levels
    coarse: Levels
    fine: Levels
    tracked: Levels | None = None
    promising: int | None = None
    keep: int | None = None
    behind: float = np.inf

    @cached_property
    def terms(self) -> set[str]:
        """Names of those that take part."""
        levels = *self.first_look, *self.coarse, *self.fine
        return {name for level in levels for name in level.scales}


def _outline(iterations: int, tolerance: float, scale: int) -> Level:
    scales = {"silhouette": scale, "depth": min(scale, DepthTerm.finest), "prior": 0}
    return Level(iterations, tolerance, scales)


FINEST = {"silhouette": SilhouetteTerm.finest, "depth": DepthTerm.finest, "prior": 0}


def _view(iterations: int, tolerance: float, scale: int) -> Level:
    more = FINEST if scale == 2 else {}
    return Level(iterations, tolerance, {"appearance": scale, **more}, 0.0)


def _rays(iterations: int, tolerance: float, scale: int) -> Level:
    """Where samples lie makes the cost tremble, so that short steps are judged by the gradients of
    both ends."""
    return Level(iterations, tolerance, {"radiance": scale, **FINEST}, 0.1)


# Tolerances are pixels of the outline, or changes of colour in units of what counts as one.
OUTLINE = Stage(
    "silhouette",
    first_look=(_outline(4, 1.0, 0),),
    coarse=(_outline(14, 1.0, 0),),
    fine=(_outline(8, 0.15, 1), _outline(3, 0.1, 2)),
    behind=0.3,
)
COLOURS = Stage(
    "radiance",
    first_look=(_view(8, 0.1, 0),),
    coarse=(_view(8, 0.1, 0),) * 3 + (_view(8, 0.1, 1),) * 3,
    fine=(_view(8, 0.05, 2),) * 2 + (_rays(40, 0.03, 0), _rays(10, 0.03, 1)),
    tracked=(_view(6, 0.1, 2), _rays(10, 0.02, 0), _rays(5, 0.02, 1)),
    promising=6,
    keep=2,
)
STAGES = (OUTLINE, COLOURS)


class Refiner:
    """Refines poses of a fixed set of objects: a list of terms, and one way from coarse to fine.

    models: an object without a mask is refined by its field alone, one without a field by its
    silhouette alone. capacity: most poses in one batch; more are done in several. settings,
    seed: of the rays. Kernels compile at the first use, which takes seconds: `Pipeline.warm_up`
    does it before the first frame.
    """

    def __init__(
        self,
        models: Sequence[ObjectModel],
        device: str = "cpu",
        capacity: int = 64,
        settings: Settings | None = None,
        seed: int = 0,
    ) -> None:
        settings = settings or Settings()
        self.models = {model.name: model for model in models}
        self.capacity = capacity
        # All terms turn poses about the middle of the object: about an origin far off, a small turn
        # would be a large shift.
        self._pivot = {model.name: model.box_center for model in models}
        self.terms: list[ResidualTerm] = [
            SilhouetteTerm(models, self._pivot, capacity, device),
            DepthTerm(self.models, self._pivot, capacity, device),
            PriorTerm(self._pivot, capacity, device),
        ]
        fields = {model.name: model.field for model in models if model.field is not None}
        if fields:
            from .terms.appearance import AppearanceTerm
            from .terms.radiance import RadianceTerm

            self.terms.append(
                AppearanceTerm(fields, self._pivot, capacity, settings.exposure, device)
            )
            self.terms.append(
                RadianceTerm(
                    fields,
                    self._pivot,
                    capacity,
                    settings.photo_rays,
                    settings.sampling,
                    settings.exposure,
                    seed,
                    device,
                )
            )
        self._has_field = set(fields)
        self.solver = Solver(capacity, device)

    def refine(
        self,
        observations: Sequence[Sequence[Observation]],
        hypotheses: Sequence[Sequence[Hypothesis]],
        keep: int | Sequence[int] = 4,
        tracked: bool | Sequence[bool] = False,
        restart: bool | Sequence[bool] = True,
        given: bool = True,
    ) -> list[list[Hypothesis]]:
        """Refine every object's hypotheses by all observations of it; best result first.

        Of each object the `keep` best that differ are followed to the end. tracked: they are those
        of the frame before (this, `keep` and `restart`: one for all, or one each). With `restart`,
        objects that end in a poor fit are tried again from starts around their first hypothesis.
        given: the hypotheses are results themselves where nothing that was reached fits better, by
        all evidence at the finest scale. Objects without hypotheses get no result.
        """
        count = len(observations)
        keep = [keep] * count if isinstance(keep, int) else keep
        tracked = [tracked] * count if isinstance(tracked, bool) else tracked
        restart = [restart] * count if isinstance(restart, bool) else restart
        results: list[list[Hypothesis]] = []
        for part in self._parts(observations):
            seen = list(observations[part])
            self._observe(seen)
            starts = [(i, one) for i, own in enumerate(hypotheses[part]) for one in own]
            kept = starts if given else []
            found = self._from_starts(starts, seen, keep[part], tracked[part], kept)
            again = []
            for i, own in enumerate(found):
                if not (own and restart[part][i]) or tracked[part][i]:
                    continue
                angle = restart_angle(min(own, key=lambda one: one.cost), seen[i])
                if angle is not None:
                    first = hypotheses[part][i][0]
                    pivot = self._turned_about(first, seen[i])
                    again += [
                        (i, Hypothesis(first.object, pose, first.prior))
                        for pose in around(first.reference_from_object, angle, pivot)
                    ]
            if again:
                more = self._from_starts(again, seen, [2] * len(seen), tracked[part], [])
                found = [a + b for a, b in zip(found, more, strict=True)]
            for own, of_object, most in zip(found, seen, keep[part], strict=True):
                results.append(self.merge(own, of_object)[:most])
        self._add_covariances([one for own in results for one in own])
        return results

    def _turned_about(self, one: Hypothesis, seen: Sequence[Observation]) -> np.ndarray:
        """(3,) of the object's frame, about which other starts are turned: its pivot, or the camera
        that is in its midst, as it is in that of a scene."""
        pose, pivot, eye = one.reference_from_object, self._pivot[one.object], seen[0].eye
        away = np.linalg.norm(about_point(pose, pivot)[:3, 3] - eye)
        if away < 0.5 * self.models[one.object].diameter and not any(o.distances for o in seen):
            return pose[:3, :3].T @ (eye - pose[:3, 3])
        return pivot

    def evaluate(
        self, observations: Sequence[Observation], hypotheses: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """Measure hypotheses of one object as they are."""
        return self.evaluate_all([observations], [hypotheses])[0]

    def evaluate_all(
        self,
        observations: Sequence[Sequence[Observation]],
        hypotheses: Sequence[Sequence[Hypothesis]],
    ) -> list[list[Hypothesis]]:
        """Measure hypotheses of several objects as they are."""
        results: list[list[Hypothesis]] = []
        for part in self._parts(observations):
            seen = observations[part]
            starts = [[_begun(i, one) for one in own] for i, own in enumerate(hypotheses[part])]
            shown = [one for own in starts for one in own if seen[one.index]]
            if shown:
                self._observe(seen)
                self._measure(shown, seen, (), self.terms)
            results += starts
        self._add_covariances([one for own in results for one in own if one.fits])
        return results

    def merge(
        self, found: Sequence[Hypothesis], observations: Sequence[Observation]
    ) -> list[Hypothesis]:
        """Results of one object without repeats, best first, by all the evidence.

        Where the colours fit in no pose they are not those of the object (or the light is another),
        and the rest of the evidence decides.
        """
        if not found or not observations:
            return []
        masked = any(seen.distances for seen in observations)
        without = masked and all(contradicts(one) for one in found)
        for one in found:
            one.cost = sum(
                float(fit.cost)
                for name, fit in one.fits.items()
                if not (without and name == "radiance")
            )
        return self._distinct(found, observations, len(found))

    def _distinct(self, found, observations, keep, behind=np.inf) -> list[Hypothesis]:
        model = self.models[found[0].object]
        return best_distinct(found, model, observations[0].crop_from_reference, keep, behind)

    def _parts(self, observations) -> list[slice]:
        """Objects whose observations the terms can hold at once."""
        parts, first, held = [], 0, 0
        for i, own in enumerate(observations):
            if len(own) > self.capacity:
                raise ValueError(
                    f"{len(own)} observations of an object for a refiner of capacity "
                    f"{self.capacity}: give it a larger batch"
                )
            if held + len(own) > self.capacity:
                parts.append(slice(first, i))
                first, held = i, 0
            held += len(own)
        return [*parts, slice(first, len(observations))]

    def _observe(self, seen: Sequence[Sequence[Observation]]) -> None:
        every = [observation for own in seen for observation in own]
        for term in self.terms:
            term.observe(every)

    def _from_starts(self, starts, seen, keep, tracked, given) -> list[list[Hypothesis]]:
        """Through the stages; results of each object, in no order. starts, given: (index of the
        object, hypothesis)."""
        going = [_begun(i, one) for i, one in starts]
        names = {one.index: one.object for one in going}
        members = [self._members(stage, names, seen) for stage in STAGES]
        kept, sifted = list(given), set()
        for number, stage in enumerate(STAGES):
            now, later = members[number], set().union(*members[number + 1 :])
            if not now:
                continue
            done: list[Hypothesis] = []
            for fast in (False, True) if stage.tracked else (False,):
                group = {i for i in now if not stage.tracked or tracked[i] == fast}
                if group:
                    own = [one for one in going if one.index in group]
                    last = [(i, one) for i, one in kept if i in group and i not in later]
                    done += self._through(stage, own, last, seen, keep, fast, sifted)
            going = [one for one in going if one.index not in now] + done
            # what one kind of evidence has found is a start for the next, and a result as well
            kept += [(one.index, replace(one)) for one in done if one.index in later]
            sifted |= now
        results: list[list[Hypothesis]] = [[] for _ in seen]
        for one in going:
            results[one.index].append(one)
        return results

    def _members(self, stage: Stage, names: Mapping[int, str], seen) -> set[int]:
        """The objects that a stage is for, of those with a name."""
        if stage.term == "silhouette":
            return {i for i in names if any(o.distances for o in seen[i])}
        has_field = {i for i, name in names.items() if name in self._has_field}
        return {i for i in has_field if any(o.colours is not None for o in seen[i])}

    def _through(self, stage, candidates, given, seen, keep, fast, sifted) -> list[Hypothesis]:
        """Candidates through a stage, and the starts given that are better."""
        objects = {one.index for one in candidates}
        terms = [term for term in self.terms if term.name in stage.terms]
        if fast:
            return self._finish(candidates, given, seen, stage.tracked, terms)
        if stage.promising is not None:
            glance = (replace(stage.first_look[0], iterations=1),)
            most = [stage.promising if i in sifted else np.inf for i in range(len(seen))]
            candidates = self._thin_out(candidates, seen, glance, terms, most)
            keep = [stage.keep if i in sifted else most for i, most in enumerate(keep)]
        if len(objects) == len(candidates) <= self.capacity:  # one each: nothing to choose from
            return self._finish(candidates, given, seen, stage.coarse + stage.fine, terms)
        several = [WORTH_FOLLOWING * most for most in keep]
        candidates = self._thin_out(
            candidates, seen, stage.first_look, terms, several, stage.behind
        )
        candidates = self._solve(candidates, seen, stage.coarse, terms)
        candidates = self._best(candidates, seen, keep, stage.behind)
        return self._finish(candidates, given, seen, stage.fine, terms)

    def _thin_out(self, candidates, seen, levels, terms, most, behind=np.inf) -> list[Hypothesis]:
        """Of objects with more than `most` candidates those that are best after the levels."""
        number = np.bincount([one.index for one in candidates], minlength=len(seen))
        crowd = [one for one in candidates if number[one.index] > most[one.index]]
        rest = [one for one in candidates if number[one.index] <= most[one.index]]
        return rest + self._best(self._solve(crowd, seen, levels, terms), seen, most, behind)

    def _best(self, candidates, seen, keep, behind=np.inf) -> list[Hypothesis]:
        by_object: dict[int, list[Hypothesis]] = {}
        for one in candidates:
            by_object.setdefault(one.index, []).append(one)
        return [
            best
            for i, own in by_object.items()
            for best in self._distinct(own, seen[i], keep[i], behind)
        ]

    def _solve(self, candidates, seen, levels, terms) -> list[Hypothesis]:
        """Run candidates through levels; their costs are those of the last."""
        for batch in self._batches(candidates, seen):
            self._load(batch, seen, terms)
            self.solver.run(terms, levels)
            self._take(batch)
        return candidates

    def _finish(self, candidates, given, seen, levels, terms) -> list[Hypothesis]:
        """Candidates after the last levels, and of `given` those that are better than all
        candidates of their object: no result is worse than its start, as far as pixels can tell
        (`fits_to_the_pixel`)."""
        self._measure(candidates, seen, levels, terms)
        best: dict[int, Hypothesis] = {}
        for one in sorted(candidates, key=lambda one: np.inf if isnan(one.cost) else one.cost):
            best.setdefault(one.index, one)
        doubtful = {i for i, one in best.items() if not fits_to_the_pixel(one, seen[i])}
        starts = [_begun(i, one) for i, one in given if i in doubtful]
        self._measure(starts, seen, (), terms)
        # where colours differ `merge` may leave them out, and another start is the best one
        return candidates + [
            one
            for one in starts
            if not one.cost >= best[one.index].cost or contradicts(best[one.index])
        ]

    def _measure(self, candidates, seen, levels, terms) -> None:
        """Run candidates through levels, and see how they fit all terms at their finest scale."""
        for batch in self._batches(candidates, seen):
            self._load(batch, seen, terms)
            self.solver.run(terms, levels)
            measuring = [term for term in terms if term.measures]
            fits = self.solver.evaluate(measuring)
            self._take(batch)
            for i, one in enumerate(batch):
                one.fits = {t.name: fits[t.name].at(i) for t in measuring if t.sees[i]}
                one.cost = sum(float(fit.cost) for fit in one.fits.values())

    def _batches(self, candidates, seen):
        """Of at most `capacity` poses and observations of them; those of an object side by side."""
        batch: list[Hypothesis] = []
        rows = 0
        for one in sorted(candidates, key=lambda one: one.index):
            more = max(len(seen[one.index]), 1)
            if batch and rows + more > self.capacity:
                yield batch
                batch, rows = [], 0
            batch.append(one)
            rows += more
        if batch:
            yield batch

    def _load(self, batch, seen, terms) -> None:
        rows = [(i, o) for i, one in enumerate(batch) for o in seen[one.index]]
        for term in terms:
            term.load(batch, rows)
        pivots = np.array([self._pivot[one.object] for one in batch])
        poses = about_point([one.reference_from_object for one in batch], pivots)
        eyes = np.array([seen[one.index][0].eye for one in batch])
        diameters = np.array([self.models[one.object].diameter for one in batch])
        self.solver.load(poses, diameters, eyes)

    def _take(self, batch) -> None:
        """The batch as the solver has left it."""
        result = self.solver.result()
        pivots = np.array([self._pivot[one.object] for one in batch])
        poses = about_point(result["reference_from_object"], -pivots)
        for i, one in enumerate(batch):
            one.reference_from_object = poses[i]
            one.cost = float(result["cost"][i])
            one.iterations += int(result["iterations"][i])
            one.reason = str(result["reason"][i])

    def _add_covariances(self, found: Sequence[Hypothesis]) -> None:
        together: dict[tuple[str, ...], list[Hypothesis]] = {}
        for one in found:
            together.setdefault(self._telling(one), []).append(one)
        for names, own in together.items():
            if not names:
                continue
            models = [self.models[one.object] for one in own]
            evidence = [_evidence([one.fits[name] for one in own]) for name in names]
            covariances = pose_covariance(evidence, np.array([m.diameter for m in models]))
            pivots = np.array([self._pivot[one.object] for one in own])
            arms = [one.reference_from_object[:3, :3] for one in own] @ pivots[..., None]
            covariances = about(-arms[..., 0], covariances)
            for one, model, covariance in zip(own, models, covariances, strict=True):
                one.covariance = covariance
                if model.symmetries.axes:
                    one.covariance = covariance + symmetry_covariance(
                        model.symmetries, one.reference_from_object
                    )

    def _telling(self, one: Hypothesis) -> tuple[str, ...]:
        """Names of the terms by which a pose is known, none of them twice."""
        names = [name for name, fit in one.fits.items() if fit.hessian is not None]
        if "silhouette" not in names:
            return tuple(names)
        if contradicts(one):
            names.remove("radiance")
        if any(one.fits[name].has_masks for name in names):
            names.remove("silhouette")
        return tuple(names)


def _evidence(fits: Sequence[TermFit]) -> list[np.ndarray]:
    """What `pose_covariance` takes of one kind."""
    parts = [[getattr(fit, part) for fit in fits] for part in ("hessian", "slope", "sectors")]
    least = [MIN_NOISE if fit.least_noise is None else fit.least_noise for fit in fits]
    return [np.array(values, np.float64) for values in (*parts, least)]


def _begun(index: int, one: Hypothesis) -> Hypothesis:
    """A copy on its way, of the object with this number."""
    return Hypothesis(one.object, one.reference_from_object, one.prior, index=index)
