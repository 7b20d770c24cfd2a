# SPDX-License-Identifier: Apache-2.0
"""Poses without any start: features of a photo, found again in the photos of a field's training.

A field keeps features of those photos, each at the depth that the field has there, so that it is a
point of the object. Features of another photo that resemble those of one of them tell the pose:
perspective from n points, with RANSAC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.geometry.sift import clear_matches, root_sift, sift_features

from .hypotheses import Hypothesis
from .terms.prior import PosePrior

if TYPE_CHECKING:  # torch is needed to look into a field
    from pose_refiner_ros.fields.features import FieldFeatures

SIDE = 640  # pixels of a photo's longer side, or of a mask's, in which features are looked for
DILATED = 2  # pixels by which a mask is made larger
RATIO = 0.85  # of distances to the best and second best match in a photo of the training
POOLED, ALONE = 12, 6  # photos, the most alike, whose matches go together, and each for itself
ERROR = 3.0  # pixels, at most,
SIGMA = 0.5  # and usually
ROUNDS, CONFIDENCE = 500, 0.999
LEAST = 8  # features that agree on a pose
BEHIND = 0.6  # of the features that agree on the best pose: poses with fewer are not worth trying
SURE = 30  # features that agree on one pose alone, by chance or on another one, never
HYPOTHESES = 6


@dataclass(frozen=True, eq=False)
class MatchedPose:
    """camera_from_object (4, 4), how many features of the photo agree on it, and the information
    (6, 6) that they have of it: twist order, camera axes, about the object's origin."""

    camera_from_object: np.ndarray
    features: int
    information: np.ndarray

    def hypothesis(self, name: str, reference_from_camera: np.ndarray | None = None) -> Hypothesis:
        """Of an object `name`, and with what the features know of it as its prior."""
        where = np.eye(4) if reference_from_camera is None else reference_from_camera
        turned = np.kron(np.eye(2), where[:3, :3])
        pose = where @ self.camera_from_object
        return Hypothesis(name, pose, PosePrior(pose, turned @ self.information @ turned.T))


def is_sure(found: Sequence[MatchedPose]) -> bool:
    """Whether features alone tell which pose is right."""
    return len(found) == 1 and found[0].features >= SURE


class FeatureMatcher:
    """Finds poses by the features of a field."""

    def __init__(self, features: FieldFeatures) -> None:
        self._points, self._first = features.points, features.first
        self._compared = root_sift(features.descriptors)

    def poses(
        self, image: np.ndarray, camera: Camera, mask: np.ndarray | None = None
    ) -> list[MatchedPose]:
        """Poses that a photo may have, the likeliest first; [] where too few features agree.

        image: (H, W, 3) uint8 RGB; mask: (H, W) bool or 0/1, where the object is; None: anywhere.
        Poses are within a few degrees, or wrong: refine them. Raises CameraError for an image that
        has not the camera's size.
        """
        camera.check_image(image, "photo")
        pixels, descriptors, pixel = _photo_features(image, mask)
        rays = camera.undistort(pixels) if len(pixels) else pixels
        known = np.isfinite(rays).all(axis=1)
        error = ERROR * pixel / (0.5 * (camera.fx + camera.fy))
        matched = self._matches(root_sift(descriptors[known]))
        return _agreeing(matched, self._points, rays[known], error)

    def _matches(self, descriptors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(features of a photo, features of one of the training), most matches first."""
        if not len(descriptors) or not len(self._points):
            return []
        alike, matches = descriptors @ self._compared.T, []
        for start, end in zip(self._first[:-1], self._first[1:], strict=True):
            rows, columns = clear_matches(alike[:, start:end], RATIO)
            matches.append((rows, start + columns))
        return sorted(matches, key=lambda match: -len(match[0]))


def _photo_features(
    image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Places in the photo, descriptors, and how many of its pixels one is of where they were
    found."""
    corner = np.zeros(2)
    if mask is not None:
        mask = (np.asarray(mask) > 0).astype(np.uint8)
        mask = cv2.dilate(mask, np.ones((3, 3), np.uint8), iterations=DILATED)
        left, top, width, height = cv2.boundingRect(mask)
        part = slice(top, top + height), slice(left, left + width)
        image, mask, corner = image[part], mask[part], np.array([left, top])
    if not image.size:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8), 1.0
    pixels, descriptors = sift_features(image, mask, side=SIDE)
    return pixels + corner, descriptors, max(1.0, max(image.shape[:2]) / SIDE)


def _agreeing(
    matches: list[tuple[np.ndarray, np.ndarray]], points: np.ndarray, rays: np.ndarray, error: float
) -> list[MatchedPose]:
    """Poses that matches agree on, those of the most features first.

    rays: (F, 2), x/z and y/z of the photo's features; error: of them in a right pose.
    """
    if not matches:
        return []
    seen, met = (np.concatenate(part) for part in zip(*matches, strict=True))
    seen_rays, met_points = rays[seen], points[met].astype(np.float64)
    pooled = np.concatenate([np.full(len(m[0]), i) for i, m in enumerate(matches)]) < POOLED
    ends = np.cumsum([0, *(len(match[0]) for match in matches)])
    sets = [pooled] + [slice(*ends[i : i + 2]) for i in range(min(ALONE, len(matches)))]
    found = []
    for own in sets:
        if any(agree[own].mean() > 0.5 for _, agree, _ in found):  # it would find that again
            continue
        pose = _by_ransac(met_points[own], seen_rays[own], error)
        for _ in range(2):  # all matches that agree, whatever picture they are of
            if pose is None:
                break
            agree = _agrees(pose, met_points, seen_rays, 2.0 * error)
            pose = _refined(pose, met_points[agree], seen_rays[agree])
        if pose is not None:
            agree = _agrees(pose, met_points, seen_rays, 2.0 * error)
            found.append((len(np.unique(seen[agree])), agree, pose))
    found.sort(key=lambda one: -one[0])
    chosen: list[tuple[int, np.ndarray, np.ndarray]] = []
    for one in found:
        count, agree, _ = one
        same = any(np.count_nonzero(agree & other) > 0.5 * agree.sum() for _, other, _ in chosen)
        if count >= max(LEAST, BEHIND * found[0][0]) and not same:
            chosen.append(one)
    sigma = SIGMA * error / ERROR
    return [
        # a feature that several photos of the training have counts once
        MatchedPose(pose, count, count / agree.sum() * _information(pose, met_points[agree], sigma))
        for count, agree, pose in chosen[:HYPOTHESES]
    ]


def _information(pose: np.ndarray, points: np.ndarray, sigma: float) -> np.ndarray:
    """(6, 6) of points (N, 3) that are seen along the right rays (x/z, y/z) to `sigma`."""
    arms = points @ pose[:3, :3].T
    x, y, z = (arms + pose[:3, 3]).T
    zero = np.zeros_like(z)
    by_point = (
        np.stack(
            [np.stack([1 / z, zero, -x / z**2], -1), np.stack([zero, 1 / z, -y / z**2], -1)], axis=1
        )
        / sigma
    )  # (N, 2, 3)
    J = np.concatenate([by_point, np.cross(arms[:, None], by_point)], axis=-1)
    return np.einsum("nia,nib->ab", J, J)


def _by_ransac(points: np.ndarray, rays: np.ndarray, error: float) -> np.ndarray | None:
    if len(points) < LEAST:
        return None
    try:
        good, turn, shift, agree = cv2.solvePnPRansac(
            points, rays, np.eye(3), None, iterationsCount=ROUNDS, reprojectionError=error,
            confidence=CONFIDENCE, flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
    except cv2.error:  # points that no pose can be told from
        return None
    if not good or agree is None or len(agree) < LEAST // 2:
        return None
    return _as_pose(turn, shift)


def _refined(pose: np.ndarray, points: np.ndarray, rays: np.ndarray) -> np.ndarray | None:
    if len(points) < LEAST // 2:
        return None
    turn, shift = cv2.Rodrigues(pose[:3, :3])[0], pose[:3, 3].copy()
    turn, shift = cv2.solvePnPRefineLM(points, rays, np.eye(3), None, turn, shift)
    return _as_pose(turn, shift)


def _as_pose(turn: np.ndarray, shift: np.ndarray) -> np.ndarray | None:
    pose = rigid(cv2.Rodrigues(turn)[0], np.ravel(shift))
    return pose if np.isfinite(pose).all() else None


def _agrees(pose: np.ndarray, points: np.ndarray, rays: np.ndarray, error: float) -> np.ndarray:
    """(N,) bool: points before the camera that are seen along rays (N, 2)."""
    there = points @ pose[:3, :3].T + pose[:3, 3]
    before = there[:, 2] > 1e-9
    off = there[:, :2] / np.where(before, there[:, 2], 1.0)[:, None] - rays
    return before & (np.square(off).sum(axis=1) < error**2)
