# SPDX-License-Identifier: Apache-2.0
"""The initialiser that needs no training: views of a mesh, compared with a mask.

A few hundred silhouettes of the mesh are described by what they cover in polar coordinates about
their centroid, scaled by their area, as a camera sees them that looks straight at that centroid.
Correlating a mask's description with all of them over all in-plane rotations (one FFT) gives
overlap over union for every view and rotation at once; distance and direction follow from the
mask's area and centroid.

Of an object that the photo's border cuts, or that another one hides in part, neither area nor
centroid is known. Then some sixty places and sizes of the whole silhouette are tried for each view,
compared with views from as near as the size says, since what is cut is often near. The likeliest
few hundred are drawn as the camera would see them, and what counts is their true overlap over the
known pixels.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
from threadpoolctl import ThreadpoolController

from pose_refiner_ros.files.cache import cache_key, cached_arrays
from pose_refiner_ros.geometry.pose import about_point, rigid
from pose_refiner_ros.geometry.views import look_at, view_directions
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.refinement.observation import Observation
from pose_refiner_ros.refinement.signed_distance import shrink_pinhole
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

_VERSION = 4  # of what is stored
VIEWS = 400
RINGS, RAYS = 16, 64
REACH = 3.0  # outermost ring, in radii of the circle with the silhouette's area
_PICTURE = 96
VIEW_DISTANCE = 4.0  # of the stored views, in diameters: near enough to show perspective

# Views for masks that are cut, which are often near: distances in diameters, the first as above.
_DISTANCES = (VIEW_DISTANCE, 2.3, 1.5)
_CUT_RAYS = 32  # rotations that are tried of them
_SIZE_CLASSES = 4  # views of about the same size: their distance is that of one book for all
# Where the whole silhouette may lie: its radius and its centroid's shifts towards the hidden side
# and across, in radii of the circle with the mask's area.
_CUT_PLACES = (
    (1.0, (0.0,), (0.0,)),
    (1.12, (0.12, 0.38), (-0.1, 0.1)),
    (1.25, (0.2, 0.45, 0.7), (-0.18, 0.0, 0.18)),
    (1.4, (0.35, 0.65, 0.95, 1.25), (-0.18, 0.0, 0.18)),
    (1.55, (0.45, 0.75, 1.05, 1.35, 1.65), (-0.18, 0.0, 0.18)),
    (1.75, (0.6, 1.0, 1.4, 1.8), (-0.18, 0.0, 0.18)),
    (2.1, (0.9, 1.4, 1.9), (-0.18, 0.0, 0.18)),
)
_CUT_DRAWN, _CUT_EACH = 256, 2  # views, turned, that are drawn, and places of each
_CUT_PICTURE = 64  # side of what is drawn, pixels
_CUT_COARSE_PX = 4.0  # outline error of the mesh that is drawn: the refiner's coarse one
CUT_MORE = 7  # times as many hypotheses as of a whole mask

# Where a silhouette is and how large: crop_from_view (3, 3) of a camera that looks straight at its
# centroid, and the radius of the circle of its area there, at unit depth.
Place = tuple[np.ndarray, float]


class ViewCodebook:
    """Silhouettes of one object from all around."""

    def __init__(self, model: ObjectModel) -> None:
        mesh = model.silhouette_mesh
        self.symmetries: Symmetries = model.symmetries
        self.diameter = model.diameter
        self.center = np.asarray(mesh.bounds, np.float64).mean(axis=0)
        key = cache_key(
            _VERSION, mesh.content_hash, VIEWS, RINGS, RAYS, REACH, _PICTURE, _DISTANCES
        )
        stored = cached_arrays("codebook", key, lambda: _build(mesh, self.center, self.diameter))
        # Of each of `_DISTANCES` (D) and each view (V), as seen by a camera that looks straight at
        # the silhouette's centroid: camera_from_object (D, V, 3, 3); radius (D, V) of the circle of
        # equal area, at unit depth; direction (D, V, 3) of the object's centre, at unit depth;
        # spectrum (D, V, RINGS, RAYS / 2 + 1) of the coverage; its weighted sum (D, V).
        self.rotations, self.radius, self.direction = (
            stored[name][0] for name in ("rotations", "radius", "direction")
        )
        spectrum = stored["spectrum"].conj()
        self._conjugate = np.ascontiguousarray(spectrum[0].transpose(2, 0, 1))
        self.area = stored["area"][0]
        # for masks that are cut: views of about the same size side by side
        order = np.argsort(self.radius)
        self._cut_rotations, self._cut_radius, self._cut_direction = (
            stored[name][:, order] for name in ("rotations", "radius", "direction")
        )
        spectrum = spectrum[:, order, :, : _CUT_RAYS // 2 + 1]
        self._cut_conjugate = np.ascontiguousarray(spectrum.transpose(0, 3, 1, 2))
        coarse = simplify_for_silhouette(mesh, tolerance_px=_CUT_COARSE_PX)
        self._drawn, self._coarse = MeshBatch([mesh]), MeshBatch([coarse])

    def match(
        self, observation: Observation, count: int, look_beyond: bool = True
    ) -> list[np.ndarray]:
        """The best `count` poses (4, 4), in the axes of the observation's crop, that differ clearly
        from each other, best first.

        Of a mask that is cut (`is_cut`) there are up to `CUT_MORE` times as many, for all that may
        lie beyond the cut, in several times the time. Without look_beyond, what is seen is all.
        """
        # These matrices are small: a second thread of the BLAS library gains nothing on an idle
        # machine and costs ten times the whole on a busy one, where it has to be waited for.
        with _thread_pools().limit(limits=1, user_api="blas"):
            return self._match(observation, count, look_beyond)

    def similar_views(
        self, camera_from_object: np.ndarray, count: int, least: float = 0.85
    ) -> list[np.ndarray]:
        """Poses (4, 4) whose silhouettes can be mistaken for that of a pose, likest first.

        At most `count`, none of them near the given one or its symmetries, each with an overlap of
        at least `least` by the codebook's coarse views.
        """
        pose = np.asarray(camera_from_object, np.float64)
        center = pose[:3, :3] @ self.center + pose[:3, 3]
        away = max(float(np.linalg.norm(center)), 0.6 * self.diameter)
        camera_from_view = _look_rotation(center / max(float(np.linalg.norm(center)), 1e-9))
        straight = rigid(camera_from_view.T @ pose[:3, :3], (0.0, 0.0, away))
        straight = about_point(straight, -self.center)
        pinhole = _pinhole(away / self.diameter)
        picture = draw(self._drawn, [0], straight[None], pinhole, _PICTURE)[0]
        place = _place(*_centroid_and_area(picture, pinhole), pinhole)
        polar = _polar([picture], pinhole, [place])[0]
        with _thread_pools().limit(limits=1, user_api="blas"):
            overlap = self._correlate(polar)[0]
            union = self.area[:, None] + _weighted_sum(polar) - overlap
            found = self._distinct(overlap / np.maximum(union, 1e-6), place, count + 2)
        rivals = [
            rigid(camera_from_view) @ other
            for overlap, other in found
            if overlap >= least and self.symmetries.reduced_rotation_error(other, straight) > _APART
        ]
        return rivals[:count]

    def _match(self, observation: Observation, count: int, look_beyond: bool) -> list[np.ndarray]:
        if look_beyond and observation.unknown is not None:
            places = _cut_places(observation)
            if places:
                return self._match_cut(observation, places, CUT_MORE * count)
        pinhole = observation.crop.pinhole
        place = _place(*_centroid_and_area(observation.mask, pinhole), pinhole)
        if observation.unknown is None:
            mask = _polar([observation.mask], pinhole, [place])[0]
            overlap = self._correlate(mask)[0]
            seen = self.area[:, None]
        else:
            mask, hidden = _polar([observation.mask, observation.unknown], pinhole, [place])
            overlap, seen = self._correlate(np.concatenate([mask, 1.0 - hidden]))
        union = seen + _weighted_sum(mask) - overlap
        found = self._distinct(overlap / np.maximum(union, 1e-6), place, count)
        return [pose for _, pose in found]

    def _correlate(self, polar: np.ndarray) -> np.ndarray:
        """(N, V, RAYS) weighted overlap of each view, turned by each angle, with polar images (N,
        RINGS, RAYS)."""
        spectrum = np.fft.rfft(polar * _RING_WEIGHT[:, None], axis=2).astype(np.complex64)
        product = self._conjugate @ spectrum.transpose(2, 1, 0)  # (frequency, V, N)
        return np.fft.irfft(product.transpose(2, 1, 0), n=RAYS, axis=2)

    def _distinct(self, score, place: Place, count: int) -> list[tuple[float, np.ndarray]]:
        """Greedy choice, best first, of poses at least `_APART` from those already chosen, by the
        scores (V, RAYS) at a place."""
        angle = score.argmax(axis=1)
        views = np.arange(len(score))
        top = score[views, angle]
        # each view once more, turned far from its best: half a turn often fits nearly as well
        turned = score.copy()
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
        crop_from_view, radius = place
        views = views[chosen]
        poses = self._poses(
            crop_from_view @ _turn_z(angle[chosen] * (2.0 * np.pi / RAYS)),
            self.rotations[views],
            self.direction[views] * (self.radius[views] / radius)[:, None],
        )
        return list(zip(top[chosen].tolist(), poses, strict=True))

    def _poses(self, crop_from_view, rotations, centers) -> np.ndarray:
        """(N, 4, 4) of views' rotations (N, 3, 3) and the object's centre (N, 3) in them, turned by
        crop_from_view (N, 3, 3)."""
        poses = np.tile(np.eye(4), (len(rotations), 1, 1))
        poses[:, :3, :3] = crop_from_view @ rotations
        center = np.einsum("nij,nj->ni", crop_from_view, centers)
        poses[:, :3, 3] = center - poses[:, :3, :3] @ self.center
        return poses

    def _match_cut(
        self, observation: Observation, places: list[Place], count: int
    ) -> list[np.ndarray]:
        score, sheet = self._score_cut(observation, places)
        # of each view the angles that fit better than those beside them, at their best places
        best = score.max(axis=0)
        peak = (best >= np.roll(best, 1, axis=1)) & (best > np.roll(best, -1, axis=1))
        turned = np.flatnonzero(peak)
        turned = turned[np.argsort(-best.ravel()[turned])[:_CUT_DRAWN]]
        by_place = score.reshape(len(places), -1)[:, turned]
        place = np.argpartition(-by_place, _CUT_EACH, axis=0)[:_CUT_EACH].ravel()
        view, angle = np.divmod(np.tile(turned, _CUT_EACH), _CUT_RAYS)
        at = sheet[place, view], view
        crop_from_view, radius = (np.stack(own)[place] for own in zip(*places, strict=True))
        poses = self._poses(
            crop_from_view @ _turn_z(angle * (2.0 * np.pi / _CUT_RAYS)),
            self._cut_rotations[at],
            self._cut_direction[at] * (self._cut_radius[at] / radius)[:, None],
        )
        overlap = self._overlap(observation, poses)
        return [poses[i] for i in self._farthest_apart(poses, overlap, count)]

    def _score_cut(
        self, observation: Observation, places: list[Place]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Overlap over union of known pixels (places, V, _CUT_RAYS) of each view at each place, and
        from which of `_DISTANCES` the view is (places, V)."""
        mask, hidden = _polar(
            [observation.mask, observation.unknown], observation.crop.pinhole, places
        )
        area = np.einsum("nra,r->n", mask, _RING_WEIGHT)[:, None, None] * (_CUT_RAYS / RAYS)
        both = np.stack([mask, 1.0 - hidden], axis=1) * _RING_WEIGHT[:, None]
        spectrum = np.fft.rfft(both, axis=3)[..., : _CUT_RAYS // 2 + 1].astype(np.complex64)
        spectrum = np.ascontiguousarray(spectrum.transpose(3, 2, 0, 1))  # frequency, ring, place, 2
        radius = np.array([radius for _, radius in places])
        score = np.empty((len(places), VIEWS, _CUT_RAYS), np.float32)
        sheet = np.empty((len(places), VIEWS), np.int32)
        for views in np.array_split(np.arange(VIEWS), _SIZE_CLASSES):
            part = slice(views[0], views[-1] + 1)
            away = np.exp(np.log(self._cut_radius[0, part]).mean()) / (radius * self.diameter)
            nearest = np.abs(np.log(away[:, None] / _DISTANCES)).argmin(axis=1)
            sheet[:, part] = nearest[:, None]
            for index in np.unique(nearest):
                at = np.flatnonzero(nearest == index)
                seen = spectrum[:, :, at].reshape(*spectrum.shape[:2], -1)
                product = self._cut_conjugate[index, :, part] @ seen
                product = np.ascontiguousarray(product.transpose(2, 1, 0))
                found = np.fft.irfft(product, n=_CUT_RAYS, axis=2)
                overlap, known = found.reshape(len(at), 2, -1, _CUT_RAYS).swapaxes(0, 1)
                union = np.maximum(area[at] + known - overlap, 1e-6)
                score[at, part] = overlap / union
        return score, sheet

    def _overlap(self, observation: Observation, poses: np.ndarray) -> np.ndarray:
        """(N,) overlap over union, in the known pixels, of the mask and the silhouettes at poses
        (N, 4, 4), drawn small."""
        size = _CUT_PICTURE
        pinhole = shrink_pinhole(observation.crop.pinhole, observation.crop.size / size)
        near = max(0.02 * self.diameter, 1e-3)
        drawn = draw(self._coarse, np.zeros(len(poses)), poses, pinhole, size, near)
        mask, hidden = (
            cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
            for image in (observation.mask, observation.unknown)
        )
        sums = np.stack([mask.ravel(), 1.0 - hidden.ravel()], axis=1)
        overlap, known = (drawn.reshape(len(poses), -1).astype(np.float32) @ sums).T
        return overlap / np.maximum(known + mask.sum() - overlap, 1e-6)

    def _farthest_apart(self, poses: np.ndarray, score: np.ndarray, count: int) -> list[int]:
        """Which of poses (N, 4, 4) to follow, best first: none is near another in rotation and in
        distance. How much is hidden is not known, so the same view may be there at several."""
        order = np.argsort(-score)
        flat = poses[order, :3, :3].reshape(-1, 9)
        center = poses[order, :3, :3] @ self.center + poses[order, :3, 3]
        away = np.log(np.maximum(np.linalg.norm(center, axis=1), 1e-9))
        alike = self.symmetries.transforms(12)[:, :3, :3]
        free = np.ones(len(order), bool)
        chosen: list[int] = []
        while len(chosen) < count and free.any():
            pick = int(free.argmax())
            chosen.append(int(order[pick]))
            same = (flat[pick].reshape(3, 3) @ alike).reshape(-1, 9)
            turned = (flat @ same.T).max(axis=1) < 1.0 + 2.0 * np.cos(_CUT_APART)
            free &= turned | (np.abs(away - away[pick]) > _CUT_FARTHER)
            free[pick] = False
        return chosen


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()


_APART = np.radians(25.0)
_CUT_APART, _CUT_FARTHER = np.radians(15.0), 0.12
_RING_RADIUS = (np.arange(RINGS) + 0.5) / RINGS * REACH
_TURN = np.arange(RAYS) * (2.0 * np.pi / RAYS)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)])[:, None]  # (2, 1, RAYS)
_RING_WEIGHT = (_RING_RADIUS / _RING_RADIUS.sum()).astype(np.float32)


def _pinhole(distance: float) -> np.ndarray:
    """(4,) fx, fy, cx, cy of a picture of which the bounding sphere fills 0.9 from that distance,
    in diameters."""
    focal = 0.45 * _PICTURE * np.sqrt(distance**2 - 0.25) / 0.5
    return np.array([focal, focal, (_PICTURE - 1) / 2, (_PICTURE - 1) / 2])


def _build(mesh, center: np.ndarray, diameter: float) -> dict[str, np.ndarray]:
    """See ViewCodebook.__init__."""
    made = [_build_from(mesh, center, diameter, distance) for distance in _DISTANCES]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}


def _build_from(
    mesh, center: np.ndarray, diameter: float, distance: float
) -> dict[str, np.ndarray]:
    rotations = look_at(view_directions(VIEWS))
    depth = distance * diameter
    pinhole = _pinhole(distance)
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, :3, :3] = rotations
    poses[:, :3, 3] = np.array([0.0, 0.0, depth]) - rotations @ center
    pictures = draw(MeshBatch([mesh]), np.zeros(VIEWS), poses, pinhole, _PICTURE)
    places = [_place(*_centroid_and_area(picture, pinhole), pinhole) for picture in pictures]
    polar = np.concatenate(
        [_polar([p], pinhole, [place])[0] for p, place in zip(pictures, places, strict=True)]
    )
    view_from_camera = np.stack([crop_from_view.T for crop_from_view, _ in places])
    direction = view_from_camera[:, :, 2]  # the object's centre is on the optical axis
    return {
        "rotations": view_from_camera @ rotations,
        "radius": np.array([radius for _, radius in places]) * depth * direction[:, 2],
        "direction": direction / direction[:, 2:],
        "spectrum": np.fft.rfft(polar, axis=2).astype(np.complex64),
        "area": np.einsum("nra,r->n", polar, _RING_WEIGHT),
    }


def _centroid_and_area(mask: np.ndarray, pinhole: np.ndarray) -> tuple[np.ndarray, float]:
    """Centroid (2,) and area in pixels of a mask (S, S) 0/1; of an empty one (a sheet seen edge-on
    covers no pixel centre) the middle and a pixel."""
    moments = cv2.moments(mask, binaryImage=True)
    if moments["m00"] == 0:
        return pinhole[2:], 1.0
    return np.array([moments["m10"], moments["m01"]]) / moments["m00"], moments["m00"]


def _place(centroid: np.ndarray, area: float, pinhole: np.ndarray) -> Place:
    """Of a silhouette with this centroid (2,) and area in pixels of a pinhole camera."""
    ray = np.append((centroid - pinhole[2:]) / pinhole[:2], 1.0)
    length = np.linalg.norm(ray)
    # solid angle: an area far off the axis is stretched by 1 / cos^3 of the angle to it
    solid = area / (pinhole[0] * pinhole[1]) / length**3
    return _look_rotation(ray / length), float(np.sqrt(solid / np.pi))


def _polar(images, pinhole: np.ndarray, places: list[Place]) -> list[np.ndarray]:
    """Coverage (places, RINGS, RAYS) of each binary image (S, S) in polar coordinates about all
    places."""
    crop_from_view, radius = (np.stack(own) for own in zip(*places, strict=True))
    disc = _RING_RADIUS[:, None] * radius[:, None, None, None] * _CIRCLE  # (places, 2, RINGS, RAYS)
    rays = crop_from_view[:, :, :2] @ disc.reshape(len(places), 2, -1) + crop_from_view[:, :, 2:]
    x, y, depth = rays.swapaxes(0, 1)
    depth = np.maximum(depth, 1e-3)
    x = (pinhole[0] * x / depth + pinhole[2]).astype(np.float32)
    y = (pinhole[1] * y / depth + pinhole[3]).astype(np.float32)
    return [
        cv2.remap(image.astype(np.float32), x, y, cv2.INTER_LINEAR).reshape(-1, RINGS, RAYS)
        for image in images
    ]


def _weighted_sum(polar: np.ndarray) -> np.float32:
    return (polar * _RING_WEIGHT[:, None]).sum(dtype=np.float32)


def is_cut(observation: Observation) -> bool:
    """Whether part of the object is beyond the photo or behind others, by its mask."""
    return bool(_cut_places(observation))


def _cut_places(observation: Observation) -> list[Place]:
    """Where the whole silhouette may be, and how large; none of a mask that is not cut."""
    pinhole = observation.crop.pinhole
    centroid, area = _centroid_and_area(observation.mask, pinhole)
    hidden = _hidden_side(observation, centroid)
    if hidden is None:
        return []
    across = np.array([-hidden[1], hidden[0]])
    radius = np.sqrt(area / np.pi)
    return [
        _place(centroid + radius * (shift * hidden + aside * across), area * scale**2, pinhole)
        for scale, shifts, asides in _CUT_PLACES
        for shift in shifts
        for aside in asides
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
