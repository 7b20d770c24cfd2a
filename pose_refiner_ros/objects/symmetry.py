# SPDX-License-Identifier: Apache-2.0
"""Symmetries of an object: which poses look the same.

The symmetry transforms of an object are D · A: `discrete` ones D (a finite group) and turns A by
any angle about the continuous axis. A pose P of the object looks like P · S for each of them.
Two axes that cross make a sphere, with turns about any direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from pose_refiner_ros.geometry.pose import rotation_angle, skew

MAX_DISCRETE = 120  # twice the largest rotation group that is not cyclic or dihedral
SAME_ROTATION = np.radians(1.0)  # rotations nearer than this are one: lists are rounded


class SymmetryError(ValueError):
    """Symmetries that contradict themselves or cannot be read."""


@dataclass(frozen=True)
class Axis:
    """Continuous symmetry axis in the object frame: unit direction, a point on it in metres."""

    direction: tuple[float, float, float]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        direction = _vector(self.direction, "axis")
        length = np.linalg.norm(direction)
        if length == 0:
            raise SymmetryError("axis [0, 0, 0] has no direction")
        object.__setattr__(self, "direction", tuple((direction / length).tolist()))
        object.__setattr__(self, "offset", tuple(_vector(self.offset, "offset").tolist()))

    def turn(self, angle: np.ndarray | float) -> np.ndarray:
        """(..., 4, 4) transforms that turn by the angles (...) in radians about the axis."""
        rotation = axis_angle(np.array(self.direction), np.asarray(angle, np.float64))
        return about_point(rotation, np.array(self.offset))


@dataclass(frozen=True, eq=False)
class Symmetries:
    """Symmetry transforms of an object.

    discrete: (S, 4, 4) float64, a group; the first is the identity. Given as any generating list.
    axes: continuous axes; none, one, or (a sphere) two that cross.
    """

    discrete: np.ndarray = ()
    axes: tuple[Axis, ...] = ()

    def __post_init__(self):
        discrete = np.asarray(self.discrete, dtype=np.float64).reshape(-1, 4, 4)
        axes = _distinct_axes(self.axes)
        discrete = generate_group(discrete)
        if len(axes) == 1:
            discrete = _without_turns_about(discrete, axes[0])
        elif len(axes) == 2:  # a sphere: its centre must stay, and every rotation is in it already
            centre = np.append(axes[0].offset, 1.0)
            if np.abs(discrete @ centre - centre).max() > 1e-3 * max(1.0, np.abs(centre).max()):
                raise SymmetryError("a discrete symmetry moves the centre of the continuous axes")
            discrete = np.eye(4)[None]
        object.__setattr__(self, "discrete", discrete)
        object.__setattr__(self, "axes", axes)

    @property
    def any(self) -> bool:
        """Whether there is a symmetry other than the identity."""
        return len(self.discrete) > 1 or bool(self.axes)

    def transforms(self, steps: int = 36) -> np.ndarray:
        """(N, 4, 4) symmetry transforms, the identity first; `steps` turns about a continuous axis.

        A sphere gives `steps`² / 3 rotations spread evenly over all there are.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if not self.axes:
            return self.discrete.copy()
        if len(self.axes) == 1:
            turns = self.axes[0].turn(np.arange(steps) * (2 * np.pi / steps))
            return (self.discrete[:, None] @ turns[None]).reshape(-1, 4, 4)
        rotations = _spread_rotations(max(1, steps * steps // 3))
        rotations[0] = np.eye(3)
        return about_point(rotations, np.array(self.axes[0].offset))

    def closest_equivalent(
        self, camera_from_object: np.ndarray, reference: np.ndarray
    ) -> np.ndarray:
        """Of the poses that look like (..., 4, 4), the one turned least from the reference.

        Exact for continuous axes, no sampling. Keeps a symmetric object from flipping between
        frames. Both arguments broadcast.
        """
        pose, reference = np.broadcast_arrays(
            np.asarray(camera_from_object, np.float64), np.asarray(reference, np.float64)
        )
        relative = np.swapaxes(reference[..., :3, :3], -1, -2) @ pose[..., :3, :3]
        if len(self.axes) == 2:  # a sphere can be turned to the reference's very orientation
            centre = np.array(self.axes[0].offset)
            turn = about_point(np.swapaxes(relative, -1, -2), centre)
            return pose @ turn
        candidates = pose[..., None, :, :] @ self.discrete  # (..., S, 4, 4)
        relative = relative[..., None, :, :] @ self.discrete[:, :3, :3]
        if self.axes:
            angle = _best_angle(relative, np.array(self.axes[0].direction))
            turn = self.axes[0].turn(angle)
            candidates = candidates @ turn
            relative = relative @ turn[..., :3, :3]
        best = np.trace(relative, axis1=-2, axis2=-1).argmax(axis=-1)
        return np.take_along_axis(candidates, best[..., None, None, None], axis=-3)[..., 0, :, :]

    def reduced_rotation_error(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Smallest rotation angle in radians between poses (..., 4, 4) that look like a and b."""
        a = self.closest_equivalent(a, b)
        return rotation_angle(np.swapaxes(np.asarray(b)[..., :3, :3], -1, -2) @ a[..., :3, :3])

    @classmethod
    def from_bop(cls, info: dict) -> Symmetries:
        """From one object's entry of a BOP models_info.json (millimetres)."""
        discrete = []
        for entry in info.get("symmetries_discrete", ()):
            transform = _transform(entry, "symmetries_discrete")
            transform[:3, 3] *= 0.001
            discrete.append(transform)
        axes = []
        for entry in info.get("symmetries_continuous", ()):
            if not isinstance(entry, dict) or "axis" not in entry:
                raise SymmetryError(f"symmetries_continuous: {entry!r} has no 'axis'")
            offset = _vector(entry.get("offset", (0, 0, 0)), "offset") * 0.001
            axes.append(Axis(entry["axis"], tuple(offset)))
        return cls(np.array(discrete).reshape(-1, 4, 4), tuple(axes))

    @classmethod
    def from_config(cls, config) -> Symmetries:
        """From the `symmetries` entry of a library file (metres, object frame).

        Short form, one entry or a list: {axis: z, order: 2}, {axis: [0, 0, 1], order: continuous}.
        Long form: {discrete: [4x4 matrix or short entry, ...], continuous: [{axis, offset}, ...]}.
        """
        if config is None:
            return cls()
        if isinstance(config, dict) and not set(config) & {"discrete", "continuous"}:
            config = [config]
        discrete, axes = [], []
        if isinstance(config, dict):
            _only_keys(config, {"discrete", "continuous"}, "symmetries")
            entries = list(_list(config.get("discrete"), "symmetries.discrete"))
            for entry in _list(config.get("continuous"), "symmetries.continuous"):
                entry = entry if isinstance(entry, dict) else {"axis": entry}
                _only_keys(entry, {"axis", "offset"}, "symmetries.continuous")
                entries.append({**entry, "order": "continuous"})
        else:
            entries = _list(config, "symmetries")
        for entry in entries:
            if isinstance(entry, dict):
                axis, order = _short_form(entry)
                if order is None:
                    axes.append(axis)
                else:
                    discrete.append(axis.turn(2 * np.pi / order))
            else:
                discrete.append(_transform(entry, "symmetries.discrete"))
        return cls(np.array(discrete).reshape(-1, 4, 4), tuple(axes))


def generate_group(generators: np.ndarray) -> np.ndarray:
    """(S, 4, 4) group that the rigid transforms (N, 4, 4) generate, the identity first."""
    generators = [_rigid(transform) for transform in generators]
    reach = max([1e-3, *(float(np.abs(transform[:3, 3]).max()) for transform in generators)])
    group = [np.eye(4)]
    frontier = [np.eye(4)]
    while frontier:
        products = [_rigid(element @ g) for element in frontier for g in generators]
        frontier = []
        for product in products:
            relative = np.array(group)[:, :3, :3].transpose(0, 2, 1) @ product[:3, :3]
            angle = rotation_angle(relative)
            nearest = int(angle.argmin())
            if angle[nearest] > SAME_ROTATION:
                group.append(product)
                frontier.append(product)
                if len(group) > MAX_DISCRETE:
                    raise SymmetryError(
                        f"the discrete symmetries generate more than {MAX_DISCRETE} poses: an angle"
                        " that does not divide 360 degrees, or matrices rounded too much; for a"
                        " body of revolution use a continuous axis"
                    )
            elif np.abs(group[nearest][:3, 3] - product[:3, 3]).max() > 0.01 * reach:
                raise SymmetryError(
                    "the discrete symmetries add up to a shift of "
                    f"{np.round(product[:3, 3] - group[nearest][:3, 3], 4).tolist()} m without a"
                    " rotation, which no object has: their axes do not meet in one point"
                )
    return np.array(group)


def axis_angle(direction: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """(..., 3, 3) rotations about a unit direction (3,) by angles (...) in radians."""
    cross = skew(np.asarray(direction, np.float64))
    angle = np.asarray(angle, np.float64)[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def about_point(rotation: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(..., 4, 4) transforms that rotate by (..., 3, 3) and leave the point (3,) where it is."""
    transform = np.zeros((*rotation.shape[:-2], 4, 4))
    transform[..., :3, :3] = rotation
    transform[..., :3, 3] = point - rotation @ point
    transform[..., 3, 3] = 1.0
    return transform


def _best_angle(relative: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Angle of the turn A about the direction that brings relative @ A nearest to the identity.

    trace(M A(θ)) = a' M a + cos θ (trace M - a' M a) + sin θ trace(M [a]x), largest at the angle
    of the vector (cos coefficient, sin coefficient).
    """
    cross = skew(np.asarray(direction, np.float64))
    along = np.einsum("i,...ij,j->...", direction, relative, direction)
    cosine = np.trace(relative, axis1=-2, axis2=-1) - along
    sine = np.einsum("...ij,ji->...", relative, cross)
    return np.arctan2(sine, cosine)


def _distinct_axes(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axes without repeats: none, one, or two that cross (more add nothing to a sphere)."""
    distinct: list[Axis] = []
    for axis in axes:
        for known in distinct:
            a, b = np.array(known.direction), np.array(axis.direction)
            between = np.array(axis.offset) - np.array(known.offset)
            normal = np.cross(a, b)
            parallel = np.linalg.norm(normal) < np.sin(SAME_ROTATION)
            gap = np.linalg.norm(np.cross(a, between)) if parallel else abs(normal @ between)
            if gap > 1e-3 * max(1.0, float(np.linalg.norm(between))):
                raise SymmetryError(f"the continuous axes {known} and {axis} do not meet")
            if parallel:
                break
        else:
            distinct.append(axis)
    if len(distinct) < 2:
        return tuple(distinct)
    # Move both offsets to the point where the axes cross: the centre of the sphere.
    a, b = np.array(distinct[0].direction), np.array(distinct[1].direction)
    p, q = np.array(distinct[0].offset), np.array(distinct[1].offset)
    along, *_ = np.linalg.lstsq(np.stack([a, -b], axis=1), q - p, rcond=None)
    centre = tuple((p + along[0] * a).tolist())
    return Axis(distinct[0].direction, centre), Axis(distinct[1].direction, centre)


def _without_turns_about(discrete: np.ndarray, axis: Axis) -> np.ndarray:
    """The discrete transforms that are left once turns about the continuous axis count as one."""
    direction, point = np.array(axis.direction), np.array(axis.offset)
    kept: list[np.ndarray] = []
    for transform in discrete:
        moved = transform[:3, :3] @ direction
        gap = np.cross(direction, transform[:3, :3] @ point + transform[:3, 3] - point)
        tilted = np.linalg.norm(np.cross(direction, moved)) > np.sin(SAME_ROTATION)
        if tilted or np.linalg.norm(gap) > 1e-3 * max(1.0, float(np.linalg.norm(point))):
            raise SymmetryError(
                f"a discrete symmetry moves the continuous axis {axis.direction}: list a second "
                "continuous axis if the object is a sphere, or correct one of the two"
            )
        # Equal up to a turn: both keep the axis's direction or both reverse it.
        if not any((other[:3, :3] @ direction) @ moved > 0 for other in kept):
            kept.append(transform)
    return np.array(kept)


def _spread_rotations(count: int) -> np.ndarray:
    """(count, 3, 3) rotations spread evenly over SO(3): a super-Fibonacci spiral."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2), 2 * np.pi * s / 1.533751168755204288118041
    x, y = inner * np.sin(alpha), inner * np.cos(alpha)
    z, w = outer * np.sin(beta), outer * np.cos(beta)
    return Rotation.from_quat(np.stack([x, y, z, w], -1)).as_matrix()


def _rigid(transform: np.ndarray) -> np.ndarray:
    """The nearest rigid transform: undoes rounding, keeps products of many exact."""
    u, _, vt = np.linalg.svd(transform[:3, :3])
    result = transform.copy()
    result[:3, :3] = u @ vt
    return result


def _short_form(entry: dict) -> tuple[Axis, int | None]:
    """Axis and order of {axis, order, offset}; order None means continuous."""
    _only_keys(entry, {"axis", "order", "offset"}, "symmetries")
    if "axis" not in entry:
        raise SymmetryError(f"symmetries: {entry!r} has no 'axis' (x, y, z or [x, y, z])")
    axis = Axis(_direction(entry["axis"]), entry.get("offset", (0.0, 0.0, 0.0)))
    order = entry.get("order")
    if order == "continuous":
        return axis, None
    if isinstance(order, int) and not isinstance(order, bool) and 2 <= order <= MAX_DISCRETE:
        return axis, order
    raise SymmetryError(
        f"symmetries: order must be 'continuous' or a whole number from 2 to {MAX_DISCRETE} "
        f"(2 = looks the same after half a turn), not {order!r}"
    )


def _direction(value):
    named = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1)}
    if isinstance(value, str):
        if value.lower() not in named:
            raise SymmetryError(f"symmetries: axis {value!r} is not x, y, z or [x, y, z]")
        return named[value.lower()]
    return value


def _vector(value, name: str) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise SymmetryError(f"symmetries: {name} must be three numbers, not {value!r}")
    return vector


def _transform(value, name: str) -> np.ndarray:
    """A rigid (4, 4) transform from 16 numbers, flat or nested; checked."""
    try:
        transform = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        transform = np.empty(0)
    if transform.size != 16 or not np.isfinite(transform).all():
        raise SymmetryError(f"{name}: a transform is 16 numbers (4 rows of 4), not {value!r}")
    transform = transform.reshape(4, 4)
    rotation = transform[:3, :3]
    if np.abs(transform[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise SymmetryError(f"{name}: the last row must be 0 0 0 1, not {transform[3].tolist()}")
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2:
        raise SymmetryError(f"{name}: {np.round(rotation, 4).tolist()} is not a rotation")
    if np.linalg.det(rotation) < 0:
        raise SymmetryError(f"{name}: a mirror image is not a pose; list rotations only")
    return transform


def _list(value, name: str) -> list:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise SymmetryError(f"{name} must be a list, not {value!r}")
    return list(value)


def _only_keys(entry: dict, known: set[str], name: str) -> None:
    unknown = set(entry) - known
    if unknown:
        raise SymmetryError(
            f"{name}: unknown key {min(map(str, unknown))!r}; known: {', '.join(sorted(known))}"
        )
