# SPDX-License-Identifier: Apache-2.0
"""The initialiser that needs no training: views of a mesh, compared with a mask.

A few hundred silhouettes of the mesh are described by what they cover in polar coordinates about
their centroid, scaled by their area, as a camera sees them that looks straight at that centroid.
Correlating a mask's description with all of them over all in-plane rotations (one FFT) gives
overlap over union for every view and rotation at once; distance and direction follow from the
mask's area and centroid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.geometry.views import look_at, view_directions
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

_VERSION = 2  # of what is stored
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


class ViewCodebook:
    """Silhouettes of one object from all around."""

    def __init__(self, model: ObjectModel) -> None:
        mesh = model.silhouette_mesh
        self.symmetries: Symmetries = model.symmetries
        self.diameter = model.diameter
        self.center = np.asarray(mesh.bounds, np.float64).mean(axis=0)
        key = cache_key(_VERSION, mesh.content_hash, VIEWS, RINGS, RAYS, REACH, _PICTURE, _DISTANCE)
        stored = cached_arrays("codebook", key, lambda: _build(mesh, self.center, self.diameter))
        # all as seen by a camera that looks straight at the silhouette's centroid
        self.rotations = stored["rotations"]  # (V, 3, 3) camera_from_object of each view
        self.radius = stored["radius"]  # (V,) of the circle of equal area, at unit depth
        self.direction = stored["direction"]  # (V, 3) of the object's centre, at unit depth
        spectrum = stored["spectrum"]  # (V, RINGS, RAYS / 2 + 1) of the coverage
        self._conjugate = np.ascontiguousarray(spectrum.conj().transpose(2, 0, 1))
        self.area = stored["area"]  # (V,) sum of the weighted coverage

    def match(self, observation: Observation, count: int) -> list[np.ndarray]:
        """The best `count` poses (4, 4), in the axes of the observation's crop, that differ clearly
        from each other, best first; each at its likeliest places."""
        # These matrices are small: a second thread of the BLAS library gains nothing on an idle
        # machine and costs ten times the whole on a busy one, where it has to be waited for.
        with _thread_pools().limit(limits=1, user_api="blas"):
            return self._match(observation, count)

    def _match(self, observation: Observation, count: int) -> list[np.ndarray]:
        places = _places(observation)
        pinhole = observation.crop.pinhole
        mask = np.stack([_polar(observation.mask, pinhole, place) for place in places])
        mask_area = np.einsum("nra,r->n", mask, _RING_WEIGHT)[:, None, None]
        if observation.unknown is None:
            overlap = self._correlate(mask)
            union = self.area[:, None] + mask_area - overlap
        else:
            hidden = np.stack([_polar(observation.unknown, pinhole, place) for place in places])
            known = 1.0 - hidden
            overlap, seen = np.split(self._correlate(np.concatenate([mask, known])), 2)
            union = seen + mask_area - overlap
        return self._distinct(overlap / np.maximum(union, 1e-6), places, count)

    def _correlate(self, polar: np.ndarray) -> np.ndarray:
        """(N, V, RAYS) weighted overlap of each view, turned by each angle, with polar images (N,
        RINGS, RAYS)."""
        spectrum = np.fft.rfft(polar * _RING_WEIGHT[:, None], axis=2).astype(np.complex64)
        product = self._conjugate @ spectrum.transpose(2, 1, 0)  # (frequency, V, N)
        return np.fft.irfft(product.transpose(2, 1, 0), n=RAYS, axis=2)

    def _distinct(self, score, places: list[Place], count: int) -> list[np.ndarray]:
        """Greedy choice, best first, of poses at least `_APART` from those already chosen, by the
        scores (places, V, RAYS)."""
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
        poses = []
        for pick in chosen:
            # how much is hidden is not known: the same view is also tried at its next best places
            for place in np.argsort(-score[:, views[pick], angle[pick]])[:PLACES]:
                poses.append(self._pose(rotation[pick], views[pick], angle[pick], places[place]))
        return poses

    def _pose(self, rotation, view: int, angle: int, place: Place) -> np.ndarray:
        """(4, 4) pose whose silhouette lies at this place; rotation: of the view, turned."""
        turn = _turn_z(np.array([angle * (2.0 * np.pi / RAYS)]))[0]
        depth = self.radius[view] / place.radius
        pose = np.eye(4)
        pose[:3, :3] = place.crop_from_view @ rotation
        center = place.crop_from_view @ turn @ self.direction[view] * depth
        pose[:3, 3] = center - pose[:3, :3] @ self.center
        return pose


@dataclass(frozen=True, eq=False)
class Place:
    """Where a silhouette is and how large: crop_from_view (3, 3) of a camera that looks straight at
    its centroid, and the radius of the circle of its area there, at unit depth."""

    crop_from_view: np.ndarray
    radius: float


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


_APART = np.radians(25.0)
_RING_RADIUS = (np.arange(RINGS) + 0.5) / RINGS * REACH
_RING_WEIGHT = (_RING_RADIUS / _RING_RADIUS.sum()).astype(np.float32)


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
    places = [_place(*_centroid_and_area(picture, pinhole), pinhole) for picture in pictures]
    polar = np.stack([_polar(p, pinhole, place) for p, place in zip(pictures, places, strict=True)])
    view_from_camera = np.stack([place.crop_from_view.T for place in places])
    direction = view_from_camera[:, :, 2]  # the object's centre is on the optical axis
    return {
        "rotations": view_from_camera @ rotations,
        "radius": np.array([place.radius for place in places]) * depth * direction[:, 2],
        "direction": direction / direction[:, 2:],
        "spectrum": np.fft.rfft(polar, axis=2).astype(np.complex64),
        "area": np.array([_weighted_sum(image) for image in polar], np.float32),
    }


def _centroid_and_area(mask: np.ndarray, pinhole: np.ndarray) -> tuple[np.ndarray, float]:
    """Centroid (2,) and area in pixels of a mask (S, S) 0/1; of an empty one (a sheet seen edge-on
    covers no pixel centre) the middle and a pixel."""
    moments = cv2.moments(mask, binaryImage=True)
    if moments["m00"] == 0:
        return pinhole[2:], 1.0
    return np.array([moments["m10"], moments["m01"]]) / moments["m00"], moments["m00"]


def _place(centroid: np.ndarray, area: float, pinhole: np.ndarray) -> Place:
    """The place of a silhouette with this centroid (2,) and area in pixels of a pinhole camera."""
    ray = np.append((centroid - pinhole[2:]) / pinhole[:2], 1.0)
    length = np.linalg.norm(ray)
    # solid angle: an area far off the axis is stretched by 1 / cos^3 of the angle to it
    solid = area / (pinhole[0] * pinhole[1]) / length**3
    return Place(_look_rotation(ray / length), float(np.sqrt(solid / np.pi)))


def _polar(image: np.ndarray, pinhole: np.ndarray, place: Place) -> np.ndarray:
    """(RINGS, RAYS) coverage of a binary image (S, S) in polar coordinates about a place."""
    turn = np.arange(RAYS) * (2.0 * np.pi / RAYS)
    reach = _RING_RADIUS[:, None] * place.radius
    rays = np.stack(
        [reach * np.cos(turn), reach * np.sin(turn), np.ones((RINGS, RAYS))], axis=-1
    ) @ (place.crop_from_view.T)
    depth = np.maximum(rays[..., 2], 1e-3)
    x = (pinhole[0] * rays[..., 0] / depth + pinhole[2]).astype(np.float32)
    y = (pinhole[1] * rays[..., 1] / depth + pinhole[3]).astype(np.float32)
    return cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR)


def _weighted_sum(polar: np.ndarray) -> float:
    return float((polar * _RING_WEIGHT[:, None]).sum())


def _places(observation: Observation) -> list[Place]:
    """Where the whole silhouette may be, and how large."""
    pinhole = observation.crop.pinhole
    centroid, area = _centroid_and_area(observation.mask, pinhole)
    hidden = _hidden_side(observation, centroid)
    if hidden is None:
        return [_place(centroid, area, pinhole)]
    radius = np.sqrt(area / np.pi)
    return [
        _place(centroid + shift * radius * hidden, area * scale**2, pinhole)
        for shift, scale in _HIDDEN_VARIANTS
    ]


def _hidden_side(observation: Observation, centroid: np.ndarray) -> np.ndarray | None:
    """Unit direction (2,) from the centroid to where the mask's border meets unknown pixels; None
    where less than a twentieth of the border does."""
    if observation.unknown is None:
        return None
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(observation.mask, kernel) - observation.mask
    touching = border & cv2.dilate(observation.unknown, kernel)
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
