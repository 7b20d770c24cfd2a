# SPDX-License-Identifier: Apache-2.0
"""Objects that stand still before a camera that moves: one pose by several frames.

Each frame is solved for itself first, as ever. Then its poses are refined once more by what earlier
frames showed as well; what contradicts them has moved, and keeps the pose of its own frame. So does
what is declared to stand still, where no pose fits all frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pose_refiner_ros.encoder.category import category_prior, known_as_category
from pose_refiner_ros.frame import ObjectPose, Report, likely_alternatives, weighed
from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.pose_search import Target
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import (
    colour_rms,
    correlation,
    depth_agrees,
    is_astray,
    restart_angle,
)
from pose_refiner_ros.refinement.sighting import Sighting, stands_still


def by_earlier_frames(
    refiner: Refiner,
    library: Mapping[str, ObjectModel],
    targets: Sequence[Target],
    poses: Sequence[ObjectPose],
    report: Report,
) -> list[ObjectPose]:
    """The poses of a frame's targets, by the sightings of earlier frames as well where these agree;
    each with its own sighting. Alternatives that are worth telling likewise."""
    poses = [
        replace(
            _with_sighting(target, pose, library),
            alternatives=[_with_sighting(target, one, library) for one in pose.alternatives],
        )
        for target, pose in zip(targets, poses, strict=True)
    ]
    rivals = [
        (target, one)
        for target, pose in zip(targets, poses, strict=True)
        if target.earlier
        for one in (pose, *likely_alternatives(pose))
    ]
    together = refiner.refine(
        [_evidence(target, refiner.capacity) for target, _ in rivals],
        [[_start(target, one)] for target, one in rivals],
        keep=1,
        tracked=True,
        restart=False,
    )
    now = refiner.evaluate_all([target.observations for target, _ in rivals], together)
    joined = {
        id(one): _joined(target, one, by_all[0], by_all_now[0], library[one.name], report)
        for (target, one), by_all, by_all_now in zip(rivals, together, now, strict=True)
        if by_all
    }
    return [_judged_anew(pose, joined) for pose in poses]


def _judged_anew(pose: ObjectPose, joined: Mapping[int, ObjectPose]) -> ObjectPose:
    """With the poses that have been joined, and the scores and qualities that follow."""
    rivals = [pose, *pose.alternatives]
    if not any(id(one) in joined for one in rivals):
        return pose
    beliefs = [one.belief for one in rivals]
    return weighed([joined.get(id(one), one) for one in rivals], beliefs, 0)


def _with_sighting(
    target: Target, pose: ObjectPose, library: Mapping[str, ObjectModel]
) -> ObjectPose:
    place, seen = pose.camera_from_object, tuple(target.observations)
    middle = about_point(place, library[pose.name].box_center)[:3, 3]
    return replace(pose, sighting=Sighting(seen, place, pose.covariance, middle))


def _evidence(target: Target, most: int) -> list[Observation]:
    """This frame's, then the newest of the others."""
    before = [seen for sighting in reversed(target.earlier) for seen in sighting.observations]
    return [*target.observations, *before][:most]


def _start(target: Target, pose: ObjectPose) -> Hypothesis:
    prior = None
    if target.is_category:
        seen = target.observations[0]
        prior = category_prior(seen, target.estimate, pose.camera_from_object)
    return Hypothesis(pose.name, pose.camera_from_object, prior)


def _joined(
    target: Target,
    pose: ObjectPose,
    together: Hypothesis,
    now: Hypothesis,
    model: ObjectModel,
    report: Report,
) -> ObjectPose:
    """The pose by all frames, or as it was where the object has moved. now: how the first fits what
    this frame shows."""
    sightings = (*target.earlier, pose.sighting)
    place, outline = together.reference_from_object, now.fits["silhouette"]
    agrees = target.still or stands_still(place, sightings, model.symmetries)
    is_off = restart_angle(now, target.observations) is not None
    if agrees and is_off and is_astray(outline.rms, pose.contour_rms_px):
        agrees = False
        if target.still:
            report(
                target.label,
                f"{target.name} is said to stand still, but is not where earlier frames have it "
                f"(its outline would be off by {outline.rms:.1f} pixels, and is by "
                f"{pose.contour_rms_px:.1f}): this frame alone places it; has it been moved, or is "
                "the transform of the camera wrong?",
            )
    if not agrees:
        return replace(pose, sighting=replace(pose.sighting, contradicts=True))
    covariance = together.covariance
    if target.is_category:
        eye = target.observations[0].eye
        covariance = known_as_category(together, target.estimate, eye, model.diameter)
    return replace(
        pose,
        camera_from_object=place,
        covariance=covariance,
        frames=len(sightings),
        iou=float(outline.iou),
        contour_rms_px=float(outline.rms),
        visible_fraction=float(outline.visible),
        cost=float(outline.cost),
        photo_rms=colour_rms(now),
        photo_correlation=correlation(now),
        depth_agrees=depth_agrees(now),
    )
