# SPDX-License-Identifier: Apache-2.0
"""Fields from photos of which only some have poses: iNeRF (2021), section IV-C.

A field is trained on the photos with poses, the poses of the others are found in it, and a field is
trained on both. Unlike the paper's, the search starts from the cameras of the posed photos, and
only poses are kept that

- leave no other: the next best pose that differs costs at least twice as much (RIVAL);
- explain their photo as well as right poses do: the RMS difference of colour is at most 1.5 times
  (SLACK) the median of what is believed, which is the RMS of held-out posed photos at their true
  poses, and that of all poses that passed the first test;
- are certain: the standard deviation of the direction of view is below 2 degrees (SIGMA).

Some posed photos are held out of the fields that poses are found in. Poses are found for them in
the same way, which tells how right those are that are kept; if none of them is found, or kept ones
are wrong, no pose is kept. The last field is trained on them as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pose_refiner_ros.datasets.posed_images.views import PosedImages, View
from pose_refiner_ros.fields.field import FieldError
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import camera_rays
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import about, rotation_angle
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import Observation, observe_image
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.scene_localiser import field_model

RIVAL = 0.5
SLACK = 1.5
SIGMA = np.radians(3.0)  # of a covariance that counts errors alike over a third of the image
HYPOTHESES = 32
# A pose is another one, and not the same found twice, if it differs by more than this: turned, or
# moved by that share of the field's diameter, of a scene by that of how far cameras see.
OTHER_ANGLE = np.radians(15.0)
OTHER_SHIFT = 0.25
# Found, of photos whose poses are known.
FOUND_ANGLE = np.radians(5.0)
FOUND_SHIFT = 0.1  # of the field's diameter
MOST_WRONG = 0.25  # of the poses of held-out photos that seem good
LEAST_POSED = 4
_MOST_HELD = 8
_KEEP = 3  # results of a photo, so that there is a rival
_LATTICE = 16  # rays along each side of a photo
_NAME = "field"

Progress = Callable[[str, int, int], None]  # what is done, how many, of how many


@dataclass(eq=False)
class Estimate:
    """The pose found for a photo.

    camera_from_object: (4, 4); rms: of colours in [0, 1]; rival: its cost, divided by that of the
    next best pose that differs, 0 if there was none; sigma: radians, standard deviation of the
    direction to the object; reason: why it is not accepted, or "".
    """

    name: str
    camera_from_object: np.ndarray
    rms: float
    rival: float
    sigma: float
    reason: str = ""

    @property
    def accepted(self) -> bool:
        return not self.reason


@dataclass(eq=False)
class SelfSupervision:
    """What was found out about the photos without poses.

    estimates: one for each of them; held_out: for the posed photos that were held out; errors: of
    those of them that are accepted, (K, 2): radians, metres; limit: the largest RMS accepted.
    """

    estimates: list[Estimate]
    held_out: list[Estimate]
    errors: np.ndarray
    limit: float
    posed: int

    @property
    def poses(self) -> dict[int, np.ndarray]:
        """Of the photos without poses those that are accepted: (4, 4) by their number."""
        return {i: e.camera_from_object for i, e in enumerate(self.estimates) if e.accepted}

    def record(self) -> dict[str, Any]:
        """JSON-able, for `field.record["self_supervision"]`."""
        errors = np.median(self.errors, axis=0) if len(self.errors) else (np.nan, np.nan)
        return {
            "posed": self.posed,
            "unposed": len(self.estimates),
            "accepted": len(self.poses),
            "limits": {
                "rms": _figure(self.limit),
                "rival": RIVAL,
                "sigma_deg": _figure(np.degrees(SIGMA)),
            },
            "held_out": {
                "photos": len(self.held_out),
                "accepted": len(self.errors),
                "median_rotation_error_deg": _figure(np.degrees(errors[0])),
                "median_translation_error_m": _figure(errors[1]),
            },
            "pictures": [
                {
                    "name": e.name,
                    "accepted": e.accepted,
                    "reason": e.reason or "good",
                    "rms": _figure(e.rms),
                    "rival": _figure(e.rival),
                    "sigma_deg": _figure(np.degrees(e.sigma)),
                    "camera_from_object": e.camera_from_object.tolist(),
                }
                for e in self.estimates
            ],
        }


def self_supervise(
    posed: PosedImages,
    unposed: PosedImages,
    train: Callable[[PosedImages], GridField],
    *,
    background: Sequence[float] | None = None,
    progress: Progress = lambda what, done, total: None,
    **search: Any,
) -> tuple[GridField, SelfSupervision]:
    """A field from photos with poses and photos without: `find_poses`, and training on both.

    The photos need not be `alike`. `train` is called once more than by `find_poses`, whose
    arguments the others are.

    Returns:
        The field, with `record["self_supervision"]`, and how it went. Where no pose was accepted
        the field is that of the posed photos.

    Raises:
        FieldError: photos do not go together, are too few, or have no start.
    """
    posed, unposed = alike(posed, unposed, background)
    found = find_poses(posed, unposed, train, background=background, progress=progress, **search)
    field = _trained(train, joined(posed, unposed, found.poses), progress)
    field.record["self_supervision"] = found.record()
    return field, found


def find_poses(
    posed: PosedImages,
    unposed: PosedImages,
    train: Callable[[PosedImages], GridField],
    *,
    hypotheses: int = HYPOTHESES,
    background: Sequence[float] | None = None,
    device: str = "cpu",
    progress: Progress = lambda what, done, total: None,
) -> SelfSupervision:
    """Poses of photos in a field of others, and which of them are good.

    Args:
        posed: at least 4 photos.
        unposed: photos that go with them (`alike`); `camera_from_object` is a rough start, or NaN.
        train: makes a field of photos.
        hypotheses: at most so many posed cameras, well spread, are tried as starts; 0: only the
            rough start of a photo, which then must have one.
        background: behind the photos, where they have no alpha; `train` has to use it, too.
        progress: gets the name of a stage, how much of it is done, and of how much.

    Raises:
        FieldError: photos are too few, or have no start.
    """
    held = held_out(len(posed))
    others = posed.subset(np.setdiff1d(np.arange(len(posed)), held))
    held = posed.subset(held)
    search = PoseSearch(_trained(train, others, progress), others, background, device)
    cameras = others.camera_from_object
    cameras = [cameras[i] for i in farthest_apart(cameras, HYPOTHESES, search.middle)]
    what, total = f"Poses of {len(unposed)} photos", len(held) + len(unposed)
    checks, known_rms, estimates = [], [], []
    for view in held:
        progress(what, len(checks), total)
        checks.append(search.find(view, cameras))
        known_rms.append(search.follow(view, view.camera_from_object).rms)
    for i, view in enumerate(unposed):
        progress(what, len(held) + i, total)
        rough = [view.camera_from_object] if np.isfinite(view.camera_from_object).all() else []
        estimates.append(search.find(view, [*rough, *cameras[:hypotheses]]))
    progress(what, total, total)
    limit = rms_limit([*checks, *estimates], known_rms)
    found = SelfSupervision(estimates, checks, np.zeros((0, 2)), limit, len(posed))
    _judge(found, held.camera_from_object, search)
    return found


def _trained(
    train: Callable[[PosedImages], GridField], photos: PosedImages, progress: Progress
) -> GridField:
    what = f"Field of {len(photos)} photos"
    progress(what, 0, 1)
    field = train(photos)
    progress(what, 1, 1)
    return field


def held_out(count: int) -> np.ndarray:
    """Which of so many posed photos are held out: an eighth, evenly spread, at least two if they
    are eight.

    Raises FieldError for too few photos.
    """
    if count < LEAST_POSED:
        raise FieldError(
            f"{count} photos with poses are too few to find those of others: give at least "
            f"{LEAST_POSED}"
        )
    held = min(max(count // 8, 2), _MOST_HELD) if count >= 8 else 1
    return ((np.arange(held) + 0.5) * count / held).astype(int)


class PoseSearch:
    """Finds the poses of photos in a field.

    middle: (3,) of what the field holds; diameter: metres. Of a scene without an end: the middle of
    the cameras `posed` that have seen it, and how far off they see things, so that it is cameras
    that poses are compared by. Raises FieldError for a field that is no grid.
    """

    def __init__(
        self,
        field: GridField,
        posed: PosedImages,
        background: Sequence[float] | None = None,
        device: str = "cpu",
    ) -> None:
        if field.kind != GridField.kind:
            raise FieldError(f"poses are found in grids, and this field is of kind {field.kind!r}")
        self._refiner = Refiner([field_model(_NAME, field)], device)
        # of photos without alpha: a field may have learned it
        self._background = field.background if background is None else background
        self._is_scene = field.contraction is not None
        if self._is_scene:
            self.middle = posed.camera_positions.mean(axis=0)
            self.diameter = distance_seen(field, posed)
        else:
            self.middle, self.diameter = field.occupied_bounds.mean(axis=0), field.diameter

    def find(self, view: View, starts: Sequence[np.ndarray]) -> Estimate:
        """The pose of a photo from poses (4, 4) anywhere."""
        if not len(starts):
            raise FieldError(f"{view.name} has no pose to start from")
        seen = observe(view, self._background)
        for keep in (_KEEP, 2 * _KEEP):
            estimate = self._estimate(view, self._refine(seen, starts, keep))
            # all may end at one pose; then look farther for another
            if estimate.rival > 0.0 or len(starts) <= keep:
                break
        return estimate

    def follow(self, view: View, near: np.ndarray) -> Estimate:
        """The pose of a photo from one (4, 4) that is nearly right."""
        seen = observe(view, self._background)
        return self._estimate(view, self._refine(seen, [near], 1, tracked=True))

    def _refine(
        self, seen: Observation, starts: Sequence[np.ndarray], keep: int, tracked: bool = False
    ) -> list[Hypothesis]:
        hypotheses = [Hypothesis(_NAME, start) for start in starts]
        return self._refiner.refine([[seen]], [hypotheses], keep, tracked, given=False)[0]

    def _estimate(self, view: View, found: Sequence[Hypothesis]) -> Estimate:
        best, *others = found
        rivals = []
        for other in others:
            poses = other.reference_from_object, best.reference_from_object
            turn, shift = pose_error(*poses, self.middle)
            if turn > OTHER_ANGLE or shift > OTHER_SHIFT * self.diameter:
                rivals.append(other.cost)
        return Estimate(
            view.name,
            best.reference_from_object,
            float(best.fits["radiance"].rms),
            best.cost / max(min(rivals), 1e-9) if rivals else 0.0,
            self._sigma(best),
        )

    def _sigma(self, found: Hypothesis) -> float:
        T = found.reference_from_object
        variance = np.diag(about(T[:3, :3] @ self.middle, found.covariance))
        if not np.isfinite(variance).all():
            return np.pi
        distance = np.linalg.norm(T[:3, :3] @ self.middle + T[:3, 3])
        if self._is_scene:  # a camera in the middle is not the less certain
            distance = max(distance, self.diameter)
        return float(np.sqrt(max(variance[3:].sum(), variance[:3].sum() / distance**2)))


@torch.no_grad()
def distance_seen(field: GridField, posed: PosedImages) -> float:
    """Metres from cameras to what they see in a field, the median of a lattice of rays."""
    height, width = posed.size
    x, y = (torch.linspace(0.0, n - 1.0, _LATTICE, dtype=torch.float64) for n in (width, height))
    pixels = torch.cartesian_prod(x, y).expand(len(posed), -1, 2)
    rays = camera_rays(posed.intrinsics, posed.camera_from_object, pixels)
    origins, directions = (r.reshape(-1, 3).float().to(field.device) for r in rays)
    return float(field.render(origins, directions).depth.median())


def observe(view: View, background: Sequence[float] | None = None) -> Observation:
    """A photo with what is known of its mask.

    With alpha: colours inside it and the mask. Without: the object in front of `background`, or,
    where that is None, a scene that fills the photo.
    """
    camera = Camera(view.intrinsics, view.image.shape[:2])
    seen = observe_image(view.image, camera, background if view.alpha is None else np.zeros(3))
    image = seen.whole_image
    if view.alpha is not None:
        opacity = view.alpha.astype(np.float32) / 255.0
        image = replace(image, colour=image.colour * opacity[..., None], opacity=opacity)
    if view.weight is not None:
        image = replace(image, weight=view.weight.astype(np.float32))
    return replace(seen, whole_image=image)


def farthest_apart(poses: np.ndarray, count: int, middle: np.ndarray) -> np.ndarray:
    """Which of the poses (N, 4, 4) differ most from each other: at most `count` indices.

    The farthest from those chosen is chosen next, by turn and by how far it moves `middle`, (3,),
    compared with its distance.
    """
    if len(poses) <= count:
        return np.arange(len(poses))
    distance = np.median(np.linalg.norm(poses[:, :3, :3] @ middle + poses[:, :3, 3], axis=1))
    least, chosen = np.full(len(poses), np.inf), []
    for _ in range(count):
        chosen.append(int(np.argmax(least)))
        turn, shift = pose_error(poses, poses[chosen[-1]], middle)
        least = np.minimum(least, turn + shift / max(distance, 1e-9))
        least[chosen] = -1.0
    return np.array(chosen, np.intp)


def pose_error(a: np.ndarray, b: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radians and metres between poses (..., 4, 4): turn, and how far `point`, (3,), is moved."""
    turn = rotation_angle(np.swapaxes(b[..., :3, :3], -1, -2) @ a[..., :3, :3])
    moved = (a[..., :3, :3] - b[..., :3, :3]) @ point + a[..., :3, 3] - b[..., :3, 3]
    return turn, np.linalg.norm(moved, axis=-1)


def rms_limit(estimates: Sequence[Estimate], known_rms: Sequence[float]) -> float:
    """Of what is accepted. known_rms: of photos at their true poses."""
    clear = [e.rms for e in estimates if e.rival <= RIVAL and e.sigma <= SIGMA]
    return SLACK * float(np.median([*known_rms, *clear]))


def _judge(report: SelfSupervision, truths: np.ndarray, search: PoseSearch) -> None:
    """Say which estimates are good; truths: (K, 4, 4) of the held-out photos."""
    for e in (*report.estimates, *report.held_out):
        e.reason = _reason(e, report.limit)
    poses = np.stack([e.camera_from_object for e in report.held_out])
    turn, shift = pose_error(poses, truths, search.middle)
    right = (turn <= FOUND_ANGLE) & (shift <= FOUND_SHIFT * search.diameter)
    kept = np.array([e.accepted for e in report.held_out])
    report.errors = np.stack([turn, shift], axis=1)[kept]
    count, wrong = np.count_nonzero(kept), np.count_nonzero(kept & ~right)
    doubt = ""
    if not right.any():
        doubt = f"none of {len(right)} held-out photos is found: the field is not good enough"
    elif wrong > MOST_WRONG * count:
        doubt = f"of {count} good poses of held-out photos {wrong} are wrong"
    for e in report.estimates:
        e.reason = e.reason or doubt


def _reason(estimate: Estimate, limit: float) -> str:
    """Why it is not good, or ""."""
    if estimate.rms > limit:
        return f"colours differ by {estimate.rms:.3f} RMS, more than {limit:.3f}"
    if estimate.rival > RIVAL:
        return f"another pose costs only {1.0 / estimate.rival:.2f} times as much"
    if estimate.sigma > SIGMA:
        return f"uncertain by {np.degrees(estimate.sigma):.1f} degrees"
    return ""


def alike(
    posed: PosedImages, unposed: PosedImages, background: Sequence[float] | None
) -> tuple[PosedImages, PosedImages]:
    """Both with alpha or both without. Raises FieldError where they do not go together."""
    if posed.size != unposed.size:
        (h, w), (rows, columns) = posed.size, unposed.size
        raise FieldError(
            f"the photos without poses are {columns}x{rows} pixels, those with poses {w}x{h} "
            "(width x height): give photos of one size"
        )
    if (posed.alpha is None) == (unposed.alpha is None):
        return posed, unposed
    if background is None:
        bare, masked = ("with", "without") if posed.alpha is None else ("without", "with")
        raise FieldError(
            f"the photos {masked} poses have masks, those {bare} have none: give masks to all, or "
            "say which colour is behind them (--background)"
        )
    return _in_front(posed, background), _in_front(unposed, background)


def _in_front(photos: PosedImages, background: Sequence[float]) -> PosedImages:
    """Without alpha, in front of a colour."""
    if photos.alpha is None:
        return photos
    images = np.empty_like(photos.images)
    for i, view in enumerate(photos):
        images[i] = np.rint(255.0 * view.over(background))
    return replace(photos, images=images, alpha=None)


def joined(
    posed: PosedImages, unposed: PosedImages, poses: Mapping[int, np.ndarray]
) -> PosedImages:
    """The posed photos, and those of the others that have poses (4, 4), given by their number."""
    if not poses:
        return posed
    more = unposed.subset(list(poses))
    more.camera_from_object = np.stack(list(poses.values()))
    both = (posed, more)
    weight = alpha = near_far = None
    if posed.weight is not None or more.weight is not None:
        counts = [np.ones(p.images.shape[:3], bool) if p.weight is None else p.weight for p in both]
        weight = np.concatenate(counts)
    if posed.alpha is not None:
        alpha = np.concatenate([posed.alpha, more.alpha])
    if posed.near_far is not None:
        widest = (posed.near_far[:, 0].min(), posed.near_far[:, 1].max())
        near_far = np.concatenate([posed.near_far, np.tile(widest, (len(more), 1))])
    names = ("images", "intrinsics", "camera_from_object")
    known = {name: np.concatenate([getattr(p, name) for p in both]) for name in names}
    names = [*posed.names, *more.names]
    return replace(posed, names=names, alpha=alpha, near_far=near_far, weight=weight, **known)


def _figure(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
