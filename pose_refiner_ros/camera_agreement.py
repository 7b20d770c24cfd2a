# SPDX-License-Identifier: Apache-2.0
"""Whether several cameras are where they are said to be, by what they show of an object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pose_refiner_ros.frame import Report
from pose_refiner_ros.pose_search import Target
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import is_astray, restart_angle


def leave_out_contradictions(
    refiner: Refiner,
    targets: list[Target],
    found: Sequence[Sequence[Hypothesis]],
    cameras: Sequence[str],
    report: Report,
) -> bool:
    """Where no pose fits what several cameras show of an object, and one fits each of them, they
    are not where they are said to be: only the first one's view is left in the target, and the
    answer is True. found: the results by all cameras, best first; cameras: their
    names."""
    doubtful = [
        i
        for i, (target, own) in enumerate(zip(targets, found, strict=True))
        if len(target.seen) > 1 and own and restart_angle(own[0], target.observations) is not None
    ]
    parts = [
        (i, replace(targets[i], seen=(own,)))
        for i in doubtful
        for own in sorted(targets[i].seen, key=lambda one: one[0])
    ]
    alone = refiner.refine(
        [part.observations for _, part in parts],
        [
            [Hypothesis(one.object, one.reference_from_object, one.prior) for one in found[i]]
            for i, _ in parts
        ],
        keep=1,
        restart=False,
    )
    astray = False
    for i in doubtful:
        own = [(part, best) for (k, part), best in zip(parts, alone, strict=True) if k == i]
        each = max(best[0].fits["silhouette"].rms if best else np.inf for _, best in own)
        together = found[i][0].fits["silhouette"].rms
        if not is_astray(together, each):
            continue
        astray, targets[i] = True, own[0][0]
        names = " and ".join(cameras[part.seen[0][0]] for part, _ in own)
        report(
            targets[i].label,
            f"cameras {names} do not agree on where {targets[i].name} is (its outline is off by "
            f"{together:.1f} pixels by all, at most {each:.1f} by each alone): the first of them "
            "places it; are the transforms between them and their clocks right?",
        )
    return astray
