# SPDX-License-Identifier: Apache-2.0
"""The initialiser that needs no training: views of a mesh, compared with a mask.

A few hundred silhouettes of the mesh are described by what they cover in polar coordinates about
their centroid, scaled by their area. Correlating a mask's description with all of them over all
in-plane rotations (one FFT) gives overlap over union for every view and rotation at once; distance
and direction follow from the mask's area and centroid.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pose_refiner_ros.cache import cache_key, cached_arrays
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.refinement.evidence import ObjectEvidence
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

_VERSION = 1  # of what is stored
VIEWS = 400
RINGS, RAYS = 16, 64
REACH = 3.0  # outermost ring, in radii of the circle with the silhouette's area
_PICTURE = 96
_DISTANCE = 4.0  # of the stored views, in diameters: near enough to show perspective

# Where other instances may hide part of an object, its centroid and area are not those of its
# mask: these shifts towards the hidden side (in radii) and scales of the radius are tried too.
_HIDDEN_VARIANTS = (
    (0.0, 1.0),
    (0.0, 1.15),
    (0.25, 1.1),
    (0.4, 1.25),
    (0.6, 1.4),
    (0.8, 1.6),
    (1.1, 1.9),
    (1.4, 2.3),
)
PLACES = 3  # of them, for each view


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A guess of a pose: camera_from_object (4, 4) in the evidence's crop frame, and how well the
    silhouettes overlap (0 to 1)."""

    camera_from_object: np.ndarray
    score: float


class ViewCodebook:
    """Silhouettes of one object from all around."""

    def __init__(self, model: ObjectModel) -> None:
        mesh = model.silhouette_mesh
        self.symmetries: Symmetries = model.symmetries
        self.diameter = model.diameter
        self.center = np.asarray(mesh.bounds, np.float64).mean(axis=0)
        key = cache_key(_VERSION, mesh.content_hash, VIEWS, RINGS, RAYS, REACH, _PICTURE, _DISTANCE)
        stored = cached_arrays("codebook", key, lambda: _build(mesh, self.center, self.diameter))
        self.rotations = stored["rotations"]  # (V, 3, 3) camera_from_object of each view
        self.radius = stored["radius"]  # (V,) of the circle of equal area, over depth
        self.offset = stored["offset"]  # (V, 2) silhouette centroid from the centre, over depth
        spectrum = stored["spectrum"]  # (V, RINGS, RAYS / 2 + 1) of the coverage
        self._conjugate = np.ascontiguousarray(spectrum.conj().transpose(2, 0, 1))
        self.area = stored["area"]  # (V,) sum of the weighted coverage

    def match(self, evidence: ObjectEvidence, count: int) -> list[Hypothesis]:
        """The best `count` poses that differ clearly from each other, best first."""
        centres = _centres(evidence)
        mask = np.stack([_polar(evidence.mask, *centre) for centre in centres])
        mask_area = np.einsum("nra,r->n", mask, _RING_WEIGHT)[:, None, None]
        if evidence.unknown is None:
            overlap = self._correlate(mask)
            union = self.area[:, None] + mask_area - overlap
        else:
            known = 1.0 - np.stack([_polar(evidence.unknown, *centre) for centre in centres])
            overlap, seen = np.split(self._correlate(np.concatenate([mask, known])), 2)
            union = seen + mask_area - overlap
        return self._distinct(evidence, overlap / np.maximum(union, 1e-6), centres, count)

    def _correlate(self, polar: np.ndarray) -> np.ndarray:
        """(N, V, RAYS) weighted overlap of each view, turned by each angle, with polar images (N,
        RINGS, RAYS)."""
        spectrum = np.fft.rfft(polar * _RING_WEIGHT[:, None], axis=2).astype(np.complex64)
        product = self._conjugate @ spectrum.transpose(2, 1, 0)  # (frequency, V, N)
        return np.fft.irfft(product.transpose(2, 1, 0), n=RAYS, axis=2)

    def _distinct(self, evidence, score, centres, count: int) -> list[Hypothesis]:
        """Greedy choice, best first, of poses at least `_APART` from those already chosen, by the
        scores (centres, V, RAYS)."""
        best = score.max(axis=0)
        angle = best.argmax(axis=1)
        views = np.arange(len(best))
        top = best[views, angle]
        # each view once more, turned far from its best: half a turn often fits nearly as well
        turned = best.copy()
        gap = np.abs((np.arange(RAYS)[None] - angle[:, None] + RAYS // 2) % RAYS - RAYS // 2)
        turned[gap < RAYS // 6] = -1.0
        angle = np.concatenate([angle, turned.argmax(axis=1)])
        views = np.concatenate([views, views])
        top = np.concatenate([top, turned.max(axis=1)])

        order = np.argsort(-top)[: 40 * count]
        views, angle, top = views[order], angle[order], top[order]
        alike = self.symmetries.transforms(12)[:, :3, :3]
        rotation = _turn_z(angle * (2.0 * np.pi / RAYS)) @ self.rotations[views]
        flat = rotation.reshape(-1, 9)
        chosen: list[int] = []
        free = np.ones(len(order), bool)
        while len(chosen) < count and free.any():
            pick = int(np.flatnonzero(free)[0])
            chosen.append(pick)
            same = (rotation[pick] @ alike).reshape(-1, 9)
            trace = (flat @ same.T).max(axis=1)  # 1 + 2 cos of the angle between them
            free &= trace < 1.0 + 2.0 * np.cos(_APART)
        hypotheses = []
        for pick in chosen:
            # how much is hidden is not known: the same view is also tried at its next best place
            places = np.argsort(-score[:, views[pick], angle[pick]])[:PLACES]
            for place in places:
                pose = self._pose(
                    evidence, rotation[pick], views[pick], angle[pick], *centres[place]
                )
                hypotheses.append(Hypothesis(pose, float(top[pick])))
        return hypotheses

    def _pose(self, evidence, rotation, view, angle, centroid, radius) -> np.ndarray:
        """(4, 4) pose whose silhouette has this centroid and radius (crop pixels)."""
        focal = evidence.crop.pinhole[:2]
        apparent = radius / focal.mean()
        depth = self.radius[view] / apparent  # the stored radius is that at unit depth
        turn = 2.0 * np.pi * angle / RAYS
        cosine, sine = np.cos(turn), np.sin(turn)
        offset = np.array([[cosine, -sine], [sine, cosine]]) @ self.offset[view] / depth
        direction = (centroid - evidence.crop.pinhole[2:]) / focal - offset
        ray = np.append(direction, 1.0)
        pose = np.eye(4)
        pose[:3, :3] = _look_rotation(ray / np.linalg.norm(ray)) @ rotation
        pose[:3, 3] = ray * depth - pose[:3, :3] @ self.center
        return pose


_APART = np.radians(25.0)
_RING_RADIUS = (np.arange(RINGS) + 0.5) / RINGS * REACH
_RING_WEIGHT = (_RING_RADIUS / _RING_RADIUS.sum()).astype(np.float32)


def view_directions(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the sphere (Fibonacci spiral)."""
    index = np.arange(count) + 0.5
    z = 1.0 - 2.0 * index / count
    turn = np.pi * (1.0 + 5.0**0.5) * index
    ring = np.sqrt(1.0 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)


def look_at(direction: np.ndarray) -> np.ndarray:
    """(N, 3, 3) camera_from_object of cameras that sit in the directions (N, 3) and look back."""
    z = -direction
    up = np.where(np.abs(direction[:, 2:]) < 0.99, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    x = np.cross(z, up)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _build(mesh, center: np.ndarray, diameter: float) -> dict[str, np.ndarray]:
    rotations = look_at(view_directions(VIEWS))
    depth = _DISTANCE * diameter
    # the bounding sphere fills 0.9 of the picture
    focal = 0.45 * _PICTURE * np.sqrt(_DISTANCE**2 - 0.25) / 0.5
    pinhole = np.array([focal, focal, (_PICTURE - 1) / 2, (_PICTURE - 1) / 2])
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = np.array([0.0, 0.0, depth]) - rotations @ center
    pictures = draw(MeshBatch([mesh]), np.zeros(VIEWS), poses, pinhole, _PICTURE)
    radius, offset, polar = [], [], []
    for picture in pictures:
        moments = cv2.moments(picture, binaryImage=True)
        if moments["m00"] == 0:  # a sheet seen edge-on covers no pixel centre
            moments = {"m00": 1.0, "m10": pinhole[2], "m01": pinhole[3]}
        centroid = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
        pixels = np.sqrt(moments["m00"] / np.pi)
        radius.append(pixels / focal * depth)
        offset.append((centroid - pinhole[2:]) / focal * depth)
        polar.append(_polar(picture, centroid, pixels))
    polar = np.stack(polar)
    return {
        "rotations": rotations,
        "radius": np.array(radius),
        "offset": np.array(offset),
        "spectrum": np.fft.rfft(polar, axis=2).astype(np.complex64),
        "area": np.array([_weighted_sum(image) for image in polar], np.float32),
    }


def _polar(image: np.ndarray, centroid: np.ndarray, radius: float) -> np.ndarray:
    """(RINGS, RAYS) coverage of a binary image (S, S) in polar coordinates."""
    turn = np.arange(RAYS) * (2.0 * np.pi / RAYS)
    reach = _RING_RADIUS[:, None] * radius
    x = (centroid[0] + reach * np.cos(turn)).astype(np.float32)
    y = (centroid[1] + reach * np.sin(turn)).astype(np.float32)
    return cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR)


def _weighted_sum(polar: np.ndarray) -> float:
    return float((polar * _RING_WEIGHT[:, None]).sum())


def _centres(evidence: ObjectEvidence) -> list[tuple[np.ndarray, float]]:
    """Centroids (2,) and radii in crop pixels that the whole silhouette may have."""
    moments = cv2.moments(evidence.mask, binaryImage=True)
    centroid = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    radius = float(np.sqrt(moments["m00"] / np.pi))
    hidden = _hidden_side(evidence, centroid)
    if hidden is None:
        return [(centroid, radius)]
    return [
        (centroid + shift * radius * hidden, radius * scale) for shift, scale in _HIDDEN_VARIANTS
    ]


def _hidden_side(evidence: ObjectEvidence, centroid: np.ndarray) -> np.ndarray | None:
    """Unit direction (2,) from the centroid to where the mask's border meets unknown pixels; None
    where less than a twentieth of the border does."""
    if evidence.unknown is None:
        return None
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(evidence.mask, kernel) - evidence.mask
    touching = border & cv2.dilate(evidence.unknown, kernel)
    if cv2.countNonZero(touching) < 0.05 * cv2.countNonZero(border):
        return None
    y, x = np.nonzero(touching)
    side = np.array([x.mean(), y.mean()]) - centroid
    return side / max(float(np.linalg.norm(side)), 1e-9)


def _turn_z(angle: np.ndarray) -> np.ndarray:
    """(N, 3, 3) turns about the optical axis."""
    rotation = np.zeros((len(angle), 3, 3))
    rotation[:, 0, 0] = rotation[:, 1, 1] = np.cos(angle)
    rotation[:, 1, 0] = np.sin(angle)
    rotation[:, 0, 1] = -rotation[:, 1, 0]
    rotation[:, 2, 2] = 1.0
    return rotation


def _look_rotation(ray: np.ndarray) -> np.ndarray:
    """(3, 3) least rotation that takes the optical axis to a unit ray."""
    axis = np.cross([0.0, 0.0, 1.0], ray)
    sine = np.linalg.norm(axis)
    if sine < 1e-12:
        return np.eye(3)
    return cv2.Rodrigues(axis / sine * np.arctan2(sine, ray[2]))[0]
