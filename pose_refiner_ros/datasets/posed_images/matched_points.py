# SPDX-License-Identifier: Apache-2.0
"""Points that photos have in common, matched by features: how far things are, and whether the poses
fit the photos."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_refiner_ros.datasets.posed_images.views import PosedImages
from pose_refiner_ros.geometry.epipolar import depths_of_both, epipolar_distance, rays_through
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.geometry.sift import clear_matches, root_sift, sift_features

_SIDE = 640  # pixels of a photo's longer side in which features are found
_FEATURES = 1000  # of a photo
_NEIGHBOURS = (1, 2, 4)  # with which a photo is matched: the nearest, …
_TURNED = 0.7  # cosine of the angle between viewing axes beyond which few features match
_RATIO = 0.8  # of distances to the best and second best match (Lowe 2004)
_OFF = 2.5  # pixels that a feature may lie off the line on which the other photo's pose puts it
_FEWEST = 30  # points of a photo that say how far things are
_NEAR, _FAR = 2.0, 98.0  # percentiles of depths,
_SLACK = 0.8  # and what may be nearer than that


@dataclass(frozen=True, eq=False)
class MatchedPoints:
    """matches: of all pairs of photos; agreeing: how many of them lie where the poses say. Of each
    photo: pixels (n, 2) and descriptors (n, 128) of its features (`sift_features`), and their
    depths (n,), metres along the camera's z, NaN where no neighbour tells."""

    matches: int
    agreeing: int
    pixels: list[np.ndarray]
    descriptors: list[np.ndarray]
    depths: list[np.ndarray]

    @property
    def near_far(self) -> np.ndarray | None:
        """(N, 2) metres along the cameras' z; None where no photo has enough points."""
        return near_and_far([own[np.isfinite(own)] for own in self.depths])


def near_and_far(depths: Sequence[np.ndarray]) -> np.ndarray | None:
    """(N, 2) between which things are, by the depths (n,) of points in each of N photos, with room
    for what no point is on. A photo of few points is as the others are; None where all are."""
    told = [
        np.percentile(own, (_NEAR, _FAR)) if len(own) >= _FEWEST else (np.nan, np.nan)
        for own in depths
    ]
    told = np.array(told) * (_SLACK, 1.0 / _SLACK)
    if np.isnan(told).all():
        return None
    return np.where(np.isnan(told), np.nanmedian(told, axis=0), told)


def matched_points(posed: PosedImages) -> MatchedPoints:
    """Of photos and their neighbours, inside their masks."""
    scale = min(1.0, _SIDE / max(posed.size))
    features = [sift_features(view.image, view.shown, _FEATURES, _SIDE) for view in posed]
    pixels, descriptors = (list(part) for part in zip(*features, strict=True))
    roots = [root_sift(own) for own in descriptors]
    told = [[np.full(len(own), np.nan)] for own in pixels]  # depths of each photo, pair by pair
    matches = agreeing = 0
    for i, j in _pairs(posed):
        a, b = _matched(roots[i], roots[j])
        matches += len(a)
        rays = [rays_through(pixels[k][c], posed.intrinsics[k]) for k, c in ((i, a), (j, b))]
        other_from_one = posed.camera_from_object[j] @ inverse(posed.camera_from_object[i])
        on = scale * epipolar_distance(*rays, other_from_one, posed.intrinsics[j]) < _OFF
        agreeing += int(np.count_nonzero(on))
        both = depths_of_both(*rays, other_from_one)
        before = on & (both[0] > 0.0) & (both[1] > 0.0)
        for k, chosen, depth in ((i, a, both[0]), (j, b, both[1])):
            own = np.full(len(pixels[k]), np.nan)
            own[chosen[before]] = depth[before]
            told[k].append(own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # features that no neighbour tells of
        depths = [np.nanmedian(own, axis=0) for own in told]
    return MatchedPoints(matches, agreeing, pixels, descriptors, depths)


def _pairs(posed: PosedImages) -> list[tuple[int, int]]:
    positions, axes = posed.camera_positions, posed.camera_from_object[:, 2, :3]
    pairs = set()
    for i in range(len(posed)):
        order = np.argsort(np.linalg.norm(positions - positions[i], axis=1))
        order = [int(j) for j in order if j != i and axes[i] @ axes[j] > _TURNED]
        pairs |= {tuple(sorted((i, order[n - 1]))) for n in _NEIGHBOURS if n <= len(order)}
    return sorted(pairs)


def _matched(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of descriptors (`root_sift`) that are each other's best match, and clearly."""
    if not len(one) or not len(other):
        return np.zeros(0, int), np.zeros(0, int)
    alike = one @ other.T
    a, b = clear_matches(alike, _RATIO)
    mutual = alike.argmax(axis=0)[b] == a
    return a[mutual], b[mutual]
