# SPDX-License-Identifier: Apache-2.0
"""Refining with a mesh that stands for a category and is not the object's own.

Such an outline is wrong by some percent all over, and alike over long stretches. A silhouette fit
would turn and shift the object to make up for it, so the encoder's opinion is held against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.search import WRONG_DEPTH, depth_agrees
from pose_refiner_ros.refinement.terms.prior import PosePrior
from pose_refiner_ros.refinement.terms.silhouette import outline_noise

if TYPE_CHECKING:
    from .inference import Estimate


def category_prior(
    observation: Observation, estimate: Estimate, camera_from_object: np.ndarray
) -> PosePrior:
    """The encoder's hypothesis nearest to a pose (4, 4), in units of the silhouette's cost."""
    hypothesis = estimate.nearest(camera_from_object)
    scale = outline_noise(observation, exact_shape=False)
    information = np.linalg.inv(hypothesis.covariance) * scale
    return PosePrior(hypothesis.camera_from_object, 0.5 * (information + information.T))


def known_as_category(
    found: Hypothesis, estimate: Estimate, eye: np.ndarray, diameter: float
) -> np.ndarray:
    """Covariance (6, 6) of a pose refined with a category's mesh: outline and encoder together, and
    along the ray no better than the encoder has it, since the object's size is not known: its
    distance, or, where that was measured, how far its middle is behind its surface. eye: (3,) where
    the camera is; diameter: of the mesh, metres."""
    hypothesis = estimate.nearest(found.reference_from_object)
    together = np.linalg.inv(np.linalg.inv(found.covariance) + np.linalg.inv(hypothesis.covariance))
    t = found.reference_from_object[:3, 3] - eye
    if (depth_agrees(found) or 0.0) > WRONG_DEPTH:
        t *= 0.5 * diameter / np.linalg.norm(t)
    together[:3, :3] += hypothesis.distance_sigma**2 * np.outer(t, t)
    return 0.5 * (together + together.T)
