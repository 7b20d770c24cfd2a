# SPDX-License-Identifier: Apache-2.0
"""From what is seen of objects to their refined poses: what is tried, and in which order.

1. The starts: given ones, or the encoder's, and, of what is not tracked, those by features.
2. All views of the codebook, where there is no start or none that fits (`needs_views`).
3. What could be mistaken for what was found (`rivals_to_look_at`).
4. Once more those that stand in front of another, whose masks hide nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pose_refiner_ros.frame import POOR_IOU, Frame
from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.codebook import VIEW_DISTANCE, ViewCodebook, is_cut
from pose_refiner_ros.refinement.depth_points import at_measured_distance
from pose_refiner_ros.refinement.feature_matches import FeatureMatcher, is_sure
from pose_refiner_ros.refinement.hypotheses import Hypothesis, around, same_pose
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.occlusion import labels_behind
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import (
    CUT_RESTART,
    fits_to_the_pixel,
    needs_views,
    restart_angle,
    rivals_to_look_at,
)
from pose_refiner_ros.refinement.sighting import Sighting
from pose_refiner_ros.settings import Settings

# With a field the image tells views apart that silhouettes do not: more are followed, for it to
# choose from. A cube has 24.
FIELD_VIEWS = 48
FIELD_KEEP = 24
# Of what is cut by the image's border or hidden, more views fit about as well at first.
CUT_KEEP = 6
RIVALS, RIVAL_OVERLAP = 6, 0.8  # of a pose: views at most, and how alike their silhouettes are
RIVALS_KEEP = 3
OTHER_DISTANCE, LEAST_LIKELY = 0.15, 4  # a share of the distance; views that are left at least
CLEARLY = 0.25  # of what a pose lacks of the overlap: by so much less another fits clearly better

Found = list[list[Hypothesis]]  # of each object, best first


@dataclass(frozen=True, eq=False)
class Target:
    """An object that is to be found: what is seen of it, which it is, where to start.

    seen: (number of a frame, what it shows), the largest mask first. estimate: the encoder's, if
    any; is_category: the mesh stands for a category and is not its own; starts: of these the first
    `given` come from outside; tracked: they are those of the frame before; due: a fresh look at all
    views is asked for; earlier, still: see `Frame`; by_features: the last starts are by features
    of the photo; sure: these tell which pose is right.
    """

    label: int
    seen: tuple[tuple[int, Observation], ...]
    name: str
    class_probability: float
    estimate: Any
    is_category: bool
    starts: tuple[Hypothesis, ...]
    given: int
    tracked: bool
    due: bool
    earlier: tuple[Sighting, ...] = ()
    still: bool = False
    by_features: bool = False
    sure: bool = False

    def looking_again(self, number: int, seen: Observation) -> Target:
        """The same with another observation of a frame."""
        own = tuple((k, seen if k == number else one) for k, one in self.seen)
        return replace(self, seen=own)

    @cached_property
    def observations(self) -> list[Observation]:
        return [seen for _, seen in self.seen]


class PoseSearch:
    """Finds the poses of objects by a refiner. Codebooks are made when they are first needed."""

    def __init__(self, library: Mapping[str, ObjectModel], refiner: Refiner) -> None:
        self.library, self.refiner = library, refiner
        self._codebooks: dict[str, ViewCodebook] = {}
        fields = {name: model.field for name, model in library.items() if model.field is not None}
        self._features = {
            name: FeatureMatcher(field.features)
            for name, field in fields.items()
            if field.features is not None
        }

    def codebook(self, name: str) -> ViewCodebook:
        """The views of an object."""
        if name not in self._codebooks:
            self._codebooks[name] = ViewCodebook(self.library[name])
        return self._codebooks[name]

    def by_features(
        self, frames: Sequence[Frame], target: Target, settings: Settings
    ) -> tuple[list[Hypothesis], bool]:
        """Poses by features of the photo with the largest mask, the likeliest first, and whether
        these alone tell which is right."""
        usable = settings.init != "views" and settings.search != "never"
        if not (usable and self._has_features(target)):
            return [], False
        number, seen = next(own for own in target.seen if own[1].colours is not None)
        frame, mask = frames[number], np.asarray(frames[number].masks) == seen.label
        found = self._features[target.name].poses(frame.image, frame.camera, mask)
        where = seen.reference_from_camera
        return [one.hypothesis(target.name, where) for one in found], is_sure(found)

    def views(
        self, target: Target, settings: Settings, look_beyond: bool = True
    ) -> list[Hypothesis]:
        """Poses from the codebook's views; look_beyond: see `ViewCodebook.match`."""
        seen = target.observations[0]
        count = max(settings.hypotheses, FIELD_VIEWS if self._has_colours(target) else 0)
        guesses = self.codebook(target.name).match(seen, count, look_beyond)
        poses = seen.reference_from_crop @ np.array(guesses).reshape(-1, 4, 4)
        measured = next((one for one in target.observations if one.points is not None), None)
        if measured is not None and len(poses):
            model, camera = self.library[target.name], measured.crop_from_reference
            before = camera @ poses
            moved = at_measured_distance(before, measured.points, model)
            # A view whose size tells another distance than what was measured is another view. That
            # distance is the outline's, up to half a diameter before or behind the middle, which
            # from nearer or farther than the stored views are from makes another difference.
            near, far = (
                np.linalg.norm(about_point(one, model.box_center)[:, :3, 3], axis=1)
                for one in (moved, before)
            )
            perspective = 0.5 * np.abs(model.diameter / near - 1.0 / VIEW_DISTANCE)
            likely = np.abs(np.log(near / far)) < OTHER_DISTANCE + perspective
            moved = moved[likely] if np.count_nonzero(likely) >= LEAST_LIKELY else moved
            poses = measured.reference_from_crop @ moved
        return [Hypothesis(target.name, pose) for pose in poses]

    def find(self, frames: Sequence[Frame], targets: Sequence[Target], settings: Settings) -> Found:
        """The refined hypotheses of each object of frames that belong together."""
        targets = [
            target if target.tracked else self._begun(frames, target, settings)
            for target in targets
        ]
        starts = [self._at_measured_distance(target) for target in targets]
        found = self._refine(targets, starts, settings.keep)
        for i, target in enumerate(targets):
            found[i] = self._with_starts(target, found[i], starts[i])
        again = [
            i for i, target in enumerate(targets) if self._needs_views(target, found[i], settings)
        ]
        cut = {i: self._is_worth_looking_beyond(targets[i], found[i], settings) for i in again}
        views = self.refiner.refine(
            [targets[i].observations for i in again],
            [self._guesses(targets[i], settings, cut[i]) for i in again],
            [max(settings.keep, self._keep(targets[i], cut[i])) for i in again],
            restart=[not cut[i] for i in again],
            given=False,
        )
        for i, own in zip(again, views, strict=True):
            found[i] = self.refiner.merge(found[i] + own, targets[i].observations)
        self._add_rivals(targets, found, cut, settings.search == "never")
        self._clear_of_what_is_behind(frames, targets, found, settings.keep)
        return found

    def _begun(self, frames: Sequence[Frame], target: Target, settings: Settings) -> Target:
        """The same with starts by features as well, where they tell any. Where they tell one alone,
        what they know of it is evidence for and against all poses."""
        found, sure = self.by_features(frames, target, settings)
        if not found:
            return target
        known = found[0].prior if sure else None
        given = [replace(one, prior=one.prior or known) for one in target.starts]
        found = [replace(one, prior=known) for one in found]
        return replace(target, starts=(*given, *found), by_features=True, sure=sure)

    def _guesses(self, target: Target, settings: Settings, look_beyond: bool) -> list[Hypothesis]:
        """What is tried where the starts fit badly."""
        if settings.init == "features" and self._has_features(target):
            return []
        views = self.views(target, settings, look_beyond)
        known = target.starts[-1].prior if target.sure else None
        return [replace(one, prior=known) for one in views]

    def _has_features(self, target: Target) -> bool:
        return self._has_colours(target) and target.name in self._features

    def _at_measured_distance(self, target: Target) -> Sequence[Hypothesis]:
        """Its starts, where they are by the points that were measured on it."""
        seen = next((one for one in target.observations if one.points is not None), None)
        if seen is None or not target.starts or target.tracked:
            return target.starts
        poses = [seen.crop_from_reference @ one.reference_from_object for one in target.starts]
        moved = at_measured_distance(np.array(poses), seen.points, self.library[target.name])
        return [
            replace(one, reference_from_object=seen.reference_from_crop @ pose)
            for one, pose in zip(target.starts, moved, strict=True)
        ]

    def _with_starts(
        self, target: Target, found: list[Hypothesis], tried: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """What was found from other starts than the given ones, beside these where they may be
        better."""
        seen = target.observations
        if tried is target.starts or (found and fits_to_the_pixel(found[0], seen)):
            return found
        return self.refiner.merge(found + self.refiner.evaluate(seen, target.starts), seen)

    def _refine(self, targets: Sequence[Target], starts, keep: int) -> Found:
        return self.refiner.refine(
            [target.observations for target in targets],
            starts,
            keep,
            [target.tracked for target in targets],
            # a mesh that stands for a category never fits well enough to leave it at that
            [not (one.tracked or one.is_category or one.sure) for one in targets],
        )

    def _needs_views(self, target: Target, found: Sequence[Hypothesis], settings: Settings) -> bool:
        if target.is_category and found:  # the encoder knows more than the codebook
            return False
        if target.sure and found and settings.search != "always":
            return float(found[0].fits["silhouette"].iou) < settings.confirm_iou
        model = self.library[target.name]
        starts = [one.reference_from_object for one in target.starts]
        start = starts[0] if starts else None
        if target.by_features and found and starts:  # any of them may be right
            best = found[0].reference_from_object
            start = min(starts, key=lambda s: model.symmetries.reduced_rotation_error(best, s))
        return needs_views(
            found, target.observations, start, model, settings, target.tracked, target.due
        )

    def _is_worth_looking_beyond(self, target: Target, found, settings: Settings) -> bool:
        """Whether part of it is missing, and it is no track that fits and gets a fresh look: those
        come every third of a second, and cost a frame."""
        overlap = float(found[0].fits["silhouette"].iou) if target.tracked and found else 0.0
        # another camera may see what one misses
        cut = all(is_cut(seen) for seen in target.observations)
        return overlap < settings.confirm_iou and cut

    def _has_colours(self, target: Target) -> bool:
        has_field = self.library[target.name].field is not None
        return has_field and any(seen.colours is not None for seen in target.observations)

    def _keep(self, target: Target, cut: bool) -> int:
        """How many views are followed to the end at least."""
        by_colour = FIELD_KEEP if self._has_colours(target) else 0
        return max(by_colour, CUT_KEEP if cut else 0)

    def _add_rivals(
        self, targets: Sequence[Target], found: Found, cut: Mapping[int, bool], never: bool
    ) -> None:
        """Refine what could be mistaken for what was found: of poses that were given and believed
        without a search, so that `good` does not depend on the start; and of objects that are cut,
        whose views are less distinct, then their best pose, turned.

        cut: of the targets whose views were all tried, whether what is missing was thought of.
        """
        starts = []
        for i, target in enumerate(targets):
            vouched_for = never or target.is_category or target.tracked or target.sure
            several = rivals_to_look_at(found[i], cut.get(i), vouched_for)
            seen, poses = target.observations[0], []
            for best in found[i][:several]:
                pose = seen.crop_from_reference @ best.reference_from_object
                poses += self.codebook(target.name).similar_views(pose, RIVALS, RIVAL_OVERLAP)
            starts.append([seen.reference_from_crop @ pose for pose in poses])
        self._add_from(starts, targets, found)
        starts = [[] for _ in targets]
        for i, is_cut_off in cut.items():
            if is_cut_off and found[i]:
                best, middle = found[i][0], self.library[targets[i].name].box_center
                angle = restart_angle(best, targets[i].observations, CUT_RESTART)
                if angle is not None:
                    starts[i] = around(best.reference_from_object, angle, middle)
        self._add_from(starts, targets, found)

    def _add_from(self, starts, targets: Sequence[Target], found: Found) -> None:
        """Refine more poses of some objects, and add them. Of an object with a given start what was
        found stays unless the same pose fits clearly better: by less, a rough mask cannot tell."""
        chosen = [i for i, poses in enumerate(starts) if len(poses)]
        more = self.refiner.refine(
            [targets[i].observations for i in chosen],
            [[Hypothesis(targets[i].name, pose) for pose in starts[i]] for i in chosen],
            RIVALS_KEEP,
            restart=False,
            given=False,
        )
        for i, own in zip(chosen, more, strict=True):
            if targets[i].given:
                own = [one for one in own if self._is_news(one, targets[i], found[i])]
            found[i] = self.refiner.merge(found[i] + own, targets[i].observations)

    def _is_news(self, one: Hypothesis, target: Target, found: Sequence[Hypothesis]) -> bool:
        model, camera = self.library[target.name], target.observations[0].crop_from_reference
        enough = (1.0 + CLEARLY) * (1.0 - one.fits["silhouette"].iou)
        return not any(
            1.0 - other.fits["silhouette"].iou < enough
            and same_pose(one.reference_from_object, other.reference_from_object, model, camera)
            for other in found
        )

    def _clear_of_what_is_behind(
        self, frames: Sequence[Frame], targets: Sequence[Target], found: Found, keep: int
    ) -> None:
        """Refine once more those that are found to stand in front of another."""
        front: dict[int, Target] = {}
        for number, frame in enumerate(frames):
            there = {
                seen.label: (i, seen)
                for i, target in enumerate(targets)
                for k, seen in target.seen
                if k == number and found[i] and found[i][0].fits["silhouette"].iou >= POOR_IOU
            }
            touched = {label for label, (_, seen) in there.items() if seen.unknown is not None}
            if len(there) < 2 or not touched:
                continue
            poses = {
                label: (
                    self.library[targets[i].name],
                    seen.camera_from_reference @ found[i][0].reference_from_object,
                )
                for label, (i, seen) in there.items()
            }
            behind = labels_behind(frame.masks, frame.camera, poses)
            for label in touched & set(behind):
                i, seen = there[label]
                masks = np.where(np.isin(frame.masks, list(behind[label])), 0, frame.masks)
                front[i] = front.get(i, targets[i]).looking_again(number, seen.with_masks(masks))
        again = sorted(front)
        # what half an outline has led astray may find its way from the start
        starts = [[*found[i], *targets[i].starts] for i in again]
        for i, own in zip(
            again, self._refine([front[i] for i in again], starts, keep), strict=True
        ):
            found[i] = own or found[i]
