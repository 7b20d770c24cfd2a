# SPDX-License-Identifier: Apache-2.0
"""Which of an object's rival poses is right, as far as all frames so far tell.

One silhouette often fits two poses (a pickup from the front and from behind). The frames of a
moving object or camera together do not: each rival's belief is carried on and multiplied with what
the next frame says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAME = np.radians(25.0)  # rivals nearer than this from frame to frame are the same
# Errors of a mask and of a mesh repeat from frame to frame, so each frame counts only in part.
EVIDENCE = 0.5
NEWCOMER = 0.05  # belief in a pose that no frame before had
FORGOTTEN = 0.02  # a rival believed in less is followed no longer
MAX_RIVALS = 3


def rivals(
    found: Sequence[tuple[np.ndarray, float]], beliefs: np.ndarray, symmetries
) -> list[tuple[np.ndarray, float]]:
    """The poses to follow, best first, with their beliefs: those that differ by more than SAME."""
    chosen: list[tuple[np.ndarray, float]] = []
    for i in np.argsort(-beliefs):
        if beliefs[i] < FORGOTTEN or len(chosen) == MAX_RIVALS:
            break
        pose = np.array(found[i][0], np.float64)
        if all(symmetries.reduced_rotation_error(pose, other) > SAME for other, _ in chosen):
            chosen.append((pose, float(beliefs[i])))
    return chosen


def weigh(
    found: Sequence[tuple[np.ndarray, float]],
    known: Sequence[tuple[np.ndarray, float]],
    symmetries,
) -> np.ndarray:
    """Beliefs (N,), summing to 1, in the poses found in a frame.

    found: camera_from_object (4, 4) and the frame's own belief of each; known: poses predicted for
    this frame and the beliefs so far (none: a new object); symmetries: of the object.
    """
    belief = np.array([share for _, share in found], np.float64)
    if not known:
        return belief / belief.sum()
    prior = np.full(len(found), NEWCOMER)
    expected = np.stack([pose for pose, _ in known])
    share = np.array([weight for _, weight in known])
    for i, (pose, _) in enumerate(found):
        turned = symmetries.reduced_rotation_error(pose[None], expected)
        nearest = int(turned.argmin())
        if turned[nearest] < SAME:
            prior[i] = max(share[nearest], NEWCOMER)
    posterior = prior * np.maximum(belief, 1e-6) ** EVIDENCE
    return posterior / posterior.sum()
