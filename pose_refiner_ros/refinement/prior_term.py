# SPDX-License-Identifier: Apache-2.0
"""What was known of a pose before anything was compared, as a term of the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import warp as wp
from scipy.spatial.transform import Rotation

from .mirror import Mirror
from .solver import State

wp.set_module_options({"enable_backward": False})


@dataclass(frozen=True, eq=False)
class PosePrior:
    """A normal distribution of poses: camera_from_object (4, 4) and its information (6, 6), the
    inverse of a covariance in twist order, camera axes, about the object's origin, in the units of
    the cost that it is added to."""

    camera_from_object: np.ndarray
    information: np.ndarray

    def turned(self, crop_from_camera: np.ndarray) -> PosePrior:
        """The same in the axes of a camera turned by (3, 3)."""
        transform = np.eye(4)
        transform[:3, :3] = crop_from_camera
        twice = np.kron(np.eye(2), crop_from_camera)
        return PosePrior(transform @ self.camera_from_object, twice @ self.information @ twice.T)

    def cost(self, camera_from_object: np.ndarray) -> float:
        """Half the squared Mahalanobis distance of a pose (4, 4)."""
        away = self.twist_to(camera_from_object)
        return float(0.5 * away @ self.information @ away)

    def twist_to(self, camera_from_object: np.ndarray) -> np.ndarray:
        """(6,) the twist that takes the mean to a pose (4, 4): R' = exp(w) R, t' = t + v."""
        mean = self.camera_from_object
        w = Rotation.from_matrix(camera_from_object[:3, :3] @ mean[:3, :3].T).as_rotvec()
        return np.concatenate([camera_from_object[:3, 3] - mean[:3, 3], w])


@wp.func
def log_so3(R: wp.mat33):
    """Rotation vector of a rotation matrix, by its quaternion."""
    q = wp.quat_from_matrix(R)
    v = wp.vec3(q[0], q[1], q[2])
    w = q[3]
    if w < 0.0:
        v = -v
        w = -w
    sine = wp.length(v)
    factor = float(2.0)
    if sine > 1.0e-6:
        factor = 2.0 * wp.atan2(sine, w) / sine
    return factor * v


@wp.kernel
def add_priors(
    mean_rotation: wp.array(dtype=wp.mat33),
    mean_translation: wp.array(dtype=wp.vec3),
    information: wp.array(dtype=wp.spatial_matrix),
    state: State,
):
    i = wp.tid()
    if state.active[i] == 0:
        return
    w = log_so3(state.trial_rotation[i] * wp.transpose(mean_rotation[i]))
    v = state.trial_translation[i] - mean_translation[i]
    away = wp.spatial_vector(v[0], v[1], v[2], w[0], w[1], w[2])
    # d away / d update: the identity for v, the inverse left Jacobian of SO(3) for w
    hat = wp.skew(w)
    angle = wp.length(w)
    third = float(1.0 / 12.0)
    if angle > 0.1:
        third = (1.0 - 0.5 * angle / wp.tan(0.5 * angle)) / (angle * angle)
    inverse = wp.identity(n=3, dtype=wp.float32) - 0.5 * hat + third * (hat * hat)
    J = wp.spatial_matrix()
    for r in range(3):
        J[r, r] = 1.0
        for c in range(3):
            J[r + 3, c + 3] = inverse[r, c]
    pull = information[i] * away
    state.trial_cost[i] = state.trial_cost[i] + 0.5 * wp.dot(away, pull)
    state.trial_gradient[i] = state.trial_gradient[i] + wp.transpose(J) * pull
    state.trial_hessian[i] = state.trial_hessian[i] + wp.transpose(J) * information[i] * J


class PriorTerm:
    """Pulls each of up to `capacity` poses towards what was known of it."""

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self.device = device
        self.level = 0
        self.count = 0
        self.mean_rotation = wp.zeros(capacity, dtype=wp.mat33, device=device)
        self.mean_translation = wp.zeros(capacity, dtype=wp.vec3, device=device)
        self.information = wp.zeros(capacity, dtype=wp.spatial_matrix, device=device)
        self._launches: dict[int, wp.Launch] = {}
        self._dims: dict[int, int] = {}
        self._rows = Mirror(self, ["mean_rotation", "mean_translation", "information"])

    def load(self, priors: Sequence[PosePrior | None]) -> None:
        """One prior, or None, for each pose of the batch, in the frame of its crop."""
        self.count = len(priors)
        means = np.tile(np.eye(4, dtype=np.float32), (self.count, 1, 1))
        information = np.zeros((self.count, 6, 6), np.float32)
        for i, prior in enumerate(priors):
            if prior is not None:
                means[i] = prior.camera_from_object
                information[i] = prior.information
        self._rows.write("mean_rotation", means[:, :3, :3])
        self._rows.write("mean_translation", means[:, :3, 3])
        self._rows.write("information", information)

    def set_level(self, index: int) -> None:
        self.level = index

    def accumulate(self, state: State) -> None:
        """Add the priors' cost and derivatives at the trial poses of the state."""
        # a launch that was recorded costs a fraction of a new one
        launch = self._launches.get(id(state))
        if launch is None:
            launch = self._launches[id(state)] = wp.launch(
                add_priors,
                len(self.information),
                [self.mean_rotation, self.mean_translation, self.information, state],
                device=self.device,
                record_cmd=True,
            )
        if self._dims.get(id(state)) != self.count:
            launch.set_dim(self.count)
            self._dims[id(state)] = self.count
        launch.launch()

    def fit(self, state: State) -> None:
        """Priors have nothing to say beyond their cost."""
