# SPDX-License-Identifier: Apache-2.0
"""Objects that stand still before a camera that moves: one pose by several frames.

Each frame is solved for itself first, as ever. Then its poses are refined once more by what earlier
frames showed as well; what contradicts them has moved, and keeps the pose of its own frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pose_refiner_ros.encoder.category import category_prior, known_as_category
from pose_refiner_ros.frame import ObjectPose, likely_alternatives
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.pose_search import Target
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.sighting import Sighting, stands_still


def by_earlier_frames(
    refiner: Refiner,
    library: Mapping[str, ObjectModel],
    targets: Sequence[Target],
    poses: Sequence[ObjectPose],
) -> list[ObjectPose]:
    """The poses of a frame's targets, by the sightings of earlier frames as well where these agree;
    each with its own sighting. Alternatives that are worth telling likewise."""
    poses = [
        replace(
            _with_sighting(target, pose),
            alternatives=[_with_sighting(target, one) for one in pose.alternatives],
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
    better = {
        id(one): _joined(target, one, own[0], library[one.name])
        for (target, one), own in zip(rivals, together, strict=True)
        if own
    }
    return [
        replace(
            better.get(id(pose), pose),
            alternatives=[better.get(id(one), one) for one in pose.alternatives],
        )
        for pose in poses
    ]


def _with_sighting(target: Target, pose: ObjectPose) -> ObjectPose:
    seen = tuple(target.observations)
    return replace(pose, sighting=Sighting(seen, pose.camera_from_object, pose.covariance))


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
    target: Target, pose: ObjectPose, together: Hypothesis, model: ObjectModel
) -> ObjectPose:
    """The pose by all frames, or as it was where the object has moved."""
    sightings = (*target.earlier, pose.sighting)
    place = together.reference_from_object
    if not (target.still or stands_still(place, sightings, model.symmetries)):
        return pose
    covariance = together.covariance
    if target.is_category:
        eye = target.observations[0].eye
        covariance = known_as_category(together, target.estimate, eye, model.diameter)
    return replace(pose, camera_from_object=place, covariance=covariance, frames=len(sightings))
