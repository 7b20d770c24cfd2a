# SPDX-License-Identifier: Apache-2.0
"""Poses without any start: features of a photo, found again in pictures of a field.

The field is rendered as its training cameras saw it. A SIFT feature of such a picture (Lowe 2004;
compared as RootSIFT, Arandjelovic and Zisserman 2012) lies at the depth that was rendered, so that
it is a point of the object. Features of a photo that resemble those of a picture tell the pose:
perspective from n points, with RANSAC.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import rigid

if TYPE_CHECKING:  # torch is needed to look into a field
    from pose_refiner_ros.fields.grid import GridField

log = logging.getLogger(__name__)

VERSION = 1  # of what is cached
SIDE = 640  # pixels at most, of a picture's longer side, and of what is looked at of a photo
FEATURES, CONTRAST = 1000, 0.02  # of a picture
OPAQUE = 0.8  # where a feature has a depth
EDGE = 0.1  # a feature whose depths differ by more than that share may lie before or behind an edge
DILATED = 2  # pixels by which a mask is made larger
RATIO = 0.85  # of the distances of the nearest and of the second nearest descriptor of a picture
POOLED, ALONE = 12, 6  # pictures, the most alike, whose matches go together, and each for itself
ERROR = 3.0  # pixels
ROUNDS, CONFIDENCE = 500, 0.999
LEAST = 8  # features that agree on a pose
BEHIND = 0.6  # of the features that agree on the best pose: poses with fewer are not worth trying
SURE = 30  # features that agree on one pose alone, by chance or on another one, never
HYPOTHESES = 6


class NoFeatures(ValueError):
    """A field that features cannot be taken of, with the reason."""


@dataclass(frozen=True, eq=False)
class MatchedPose:
    """camera_from_object (4, 4), and how many features of the photo agree on it."""

    camera_from_object: np.ndarray
    features: int


def is_sure(found: Sequence[MatchedPose]) -> bool:
    """Whether features alone tell which pose is right."""
    return len(found) == 1 and found[0].features >= SURE


@dataclass(frozen=True, eq=False)
class FieldFeatures:
    """Features of a field.

    points: (N, 3) float32 metres, object frame; descriptors: (N, 128) uint8; first: (V + 1,) where
    the features of each picture begin, and where the last one's end.
    """

    points: np.ndarray
    descriptors: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, field: GridField) -> FieldFeatures:
        """From pictures of a field; a second or so a picture on a CPU, and kept on disk.

        Raises NoFeatures for a field whose record has not the cameras of its training.
        """
        cameras = training_cameras(field)
        digest = hashlib.blake2b(digest_size=16)
        for array in (field.links, field.values, field.origin):
            digest.update(np.ascontiguousarray(array).tobytes())
        where = [field.links.shape, field.voxel, field.contraction, field.record["cameras"]]
        limits = [SIDE, FEATURES, CONTRAST, OPAQUE, EDGE]
        key = cache_key(VERSION, digest.hexdigest(), where, limits)
        arrays = cached_arrays("field_features", key, lambda: _features(field, cameras))
        return cls(**arrays)

    @cached_property
    def _compared(self) -> np.ndarray:
        return _root(self.descriptors)

    def poses(
        self, image: np.ndarray, camera: Camera, mask: np.ndarray | None = None
    ) -> list[MatchedPose]:
        """Poses that a photo may have, the likeliest first; [] where too few features agree.

        image: (H, W, 3) uint8 RGB; mask: (H, W) bool or 0/1, where the object is; None: anywhere.
        Poses are within a few degrees, or wrong: refine them. Raises CameraError for an image that
        has not the camera's size.
        """
        camera.check_image(image, "photo")
        pixels, descriptors, shrunk = _photo_features(image, mask)
        rays = camera.undistort(pixels) if len(pixels) else pixels
        known = np.isfinite(rays).all(axis=1)
        focal = shrunk * 0.5 * (camera.fx + camera.fy)
        matched = self._matches(_root(descriptors[known]))
        return _agreeing(matched, self.points, rays[known], ERROR / focal)

    def _matches(self, descriptors: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """(features of a photo, features of a picture) for each picture, most matches first."""
        if not len(descriptors) or not len(self.points):
            return []
        rows, matches = np.arange(len(descriptors)), []
        alike = descriptors @ self._compared.T
        for start, end in zip(self.first[:-1], self.first[1:], strict=True):
            if end - start < 2:
                continue
            own = alike[:, start:end]
            nearest = own.argmax(axis=1)
            best = own[rows, nearest].copy()
            own[rows, nearest] = -1.0
            clear = 1.0 - best < RATIO**2 * (1.0 - own.max(axis=1))  # half of squared distances
            matches.append((rows[clear], start + nearest[clear]))
        return sorted(matches, key=lambda match: -len(match[0]))


def training_cameras(field: Any) -> dict[str, np.ndarray]:
    """Cameras of a field's training: intrinsics (V, 3, 3), camera_from_object (V, 4, 4), size (2,).

    Raises NoFeatures where its record has none.
    """
    stored: Mapping[str, Any] | None = field.record.get("cameras")
    if stored is None:
        raise NoFeatures(
            "the field does not say from where its photos were taken, so that no features can be "
            "looked for: train it anew with `pose-refiner field train`"
        )
    try:
        pinholes = np.array(stored["pinholes"], np.float64).reshape(-1, 4)
        poses = np.array(stored["camera_from_object"], np.float64).reshape(-1, 3, 4)
        height, width = (int(n) for n in stored["size"])
        intrinsics = np.tile(np.eye(3), (len(pinholes), 1, 1))
        intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]] = pinholes
        whole = np.tile(np.eye(4), (len(poses), 1, 1))
        whole[:, :3] = poses
        if len(poses) != len(pinholes) or not len(poses):
            raise ValueError(f"{len(poses)} poses and {len(pinholes)} pinholes")
    except (KeyError, TypeError, ValueError) as error:
        raise NoFeatures(
            f"the cameras in the field's record cannot be used ({error!r}): train it anew with "
            "`pose-refiner field train`"
        ) from None
    return {
        "intrinsics": intrinsics,
        "camera_from_object": whole,
        "size": np.array([height, width]),
    }


def _features(field: GridField, cameras: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `FieldFeatures` consists of, by its names."""
    from pose_refiner_ros.fields.picture import behind, render_picture

    count, size = len(cameras["intrinsics"]), cameras["size"]
    log.info("features of a field are taken from %d pictures of it: once, and kept", count)
    scale = min(1.0, SIDE / size.max())
    height, width = (int(n) for n in np.maximum(np.rint(scale * size), 1))
    factor = np.array([width / size[1], height / size[0]])
    points, descriptors = [], []
    for intrinsics, pose in zip(cameras["intrinsics"], cameras["camera_from_object"], strict=True):
        K = np.diag((*factor, 1.0)) @ intrinsics
        K[:2, 2] += 0.5 * (factor - 1.0)  # pixel centres are integers
        seen = render_picture(field, K, pose, (height, width))
        colour = seen.over(behind(field)).clamp(0.0, 1.0).cpu().numpy().reshape(height, width, 3)
        opacity, depth = (
            array.cpu().numpy().reshape(height, width) for array in (seen.opacity, seen.depth)
        )
        pixels, described = _sift(np.rint(255.0 * colour).astype(np.uint8))
        column, row = np.rint(pixels).astype(int).T
        near, far = cv2.erode(depth, _AROUND), cv2.dilate(depth, _AROUND)
        sure = (opacity > OPAQUE) & (far - near < EDGE * depth)
        sure = sure[row, column]
        rays = (pixels[sure] - K[[0, 1], 2]) / K[[0, 1], [0, 1]]
        rays = np.column_stack([rays, np.ones(len(rays))])
        rays *= (depth[row, column][sure] / np.linalg.norm(rays, axis=1))[:, None]
        points.append((rays - pose[:3, 3]) @ pose[:3, :3])
        descriptors.append(described[sure])
    return {
        "points": np.concatenate(points).astype(np.float32),
        "descriptors": np.concatenate(descriptors),
        "first": np.cumsum([0, *(len(own) for own in points)]),
    }


_AROUND = np.ones((3, 3), np.uint8)


def _sift(image: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Places (N, 2), x and y in pixels, and descriptors (N, 128) uint8 of an RGB image."""
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    sift = cv2.SIFT_create(nfeatures=FEATURES, contrastThreshold=CONTRAST)
    found, descriptors = sift.detectAndCompute(grey, mask)
    if not found:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    pixels = np.array([one.pt for one in found], np.float64)
    return pixels.clip(0.0, np.array(grey.shape[::-1]) - 1.0), descriptors.astype(np.uint8)


def _root(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors (N, 128) float32."""
    whole = descriptors.astype(np.float32)
    return np.sqrt(whole / np.maximum(whole.sum(axis=1, keepdims=True), 1.0))


def _photo_features(
    image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Places in the photo and descriptors as `_sift`, and by what the photo was made smaller."""
    left = top = 0
    if mask is not None:
        mask = cv2.dilate((np.asarray(mask) > 0).astype(np.uint8), _AROUND, iterations=DILATED)
        left, top, width, height = cv2.boundingRect(mask)
        part = slice(top, top + height), slice(left, left + width)
        image, mask = image[part], mask[part]
    if not image.size:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8), 1.0
    size = np.array(image.shape[1::-1])
    scale = min(1.0, SIDE / size.max())
    if scale < 1.0:
        small = tuple(int(n) for n in np.maximum(np.rint(scale * size), 1))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, small, interpolation=cv2.INTER_NEAREST)
    pixels, descriptors = _sift(image, mask)
    factor = size / image.shape[1::-1]
    return (pixels + 0.5) * factor - 0.5 + (left, top), descriptors, scale


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
    return [MatchedPose(pose, count) for count, _, pose in chosen[:HYPOTHESES]]


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
