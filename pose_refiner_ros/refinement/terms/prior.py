# SPDX-License-Identifier: Apache-2.0
"""What was known of a pose before anything was compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import warp as wp

from pose_refiner_ros.geometry.pose import about_point, information_about
from pose_refiner_ros.geometry.pose_kernels import log_so3

from ..host_buffer import HostBuffer, recorded
from ..normal_equations import NormalEquations, PoseBatch, allocate
from . import TermFit

if TYPE_CHECKING:
    from ..hypotheses import Hypothesis
    from ..observation import Observation

wp.set_module_options({"enable_backward": False})


@dataclass(frozen=True, eq=False)
class PosePrior:
    """A normal distribution of poses: reference_from_object (4, 4) and its information (6, 6), the
    inverse of a covariance in twist order, the reference's axes, about the object's origin, in the
    units of the cost that it is added to."""

    reference_from_object: np.ndarray
    information: np.ndarray


@wp.kernel
def add_priors(
    mean: PoseBatch,
    information: wp.array(dtype=wp.spatial_matrix),
    costs: wp.array(dtype=wp.float32),
    poses: PoseBatch,
    out: NormalEquations,
):
    i = wp.tid()
    if poses.active[i] == 0:
        return
    w = log_so3(poses.rotation[i] * wp.transpose(mean.rotation[i]))
    v = poses.translation[i] - mean.translation[i]
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
    cost = 0.5 * wp.dot(away, pull)
    costs[i] = cost
    out.cost[i] = out.cost[i] + cost
    out.gradient[i] = out.gradient[i] + wp.transpose(J) * pull
    out.hessian[i] = out.hessian[i] + wp.transpose(J) * information[i] * J


class PriorTerm:
    """Pulls each of up to `capacity` poses towards what was known of it.

    pivots: (3,) of each object, object frame: the point that poses turn about.
    """

    name = "prior"
    measures = True
    finest = 0

    def __init__(
        self, pivots: Mapping[str, np.ndarray], capacity: int, device: str = "cpu"
    ) -> None:
        self._pivots = pivots
        self._device = device
        self._mean = allocate(PoseBatch, capacity, device)
        self.information = wp.zeros(capacity, dtype=wp.spatial_matrix, device=device)
        self.cost = wp.zeros(capacity, dtype=wp.float32, device=device)
        self._means = HostBuffer(self._mean, ["rotation", "translation"])
        self._buffer = HostBuffer(self, ["information", "cost"])
        self._kernels: dict[int, Callable[..., None]] = {}
        self.sees = np.zeros(0, bool)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing: what was known is with the poses."""

    def load(self, poses: Sequence[Hypothesis], rows: Sequence[tuple[int, Observation]]) -> None:
        """The batch; see `ResidualTerm`."""
        self.sees = np.array([pose.prior is not None for pose in poses], bool)
        if not self.sees.any():
            return
        means = np.tile(np.eye(4), (len(poses), 1, 1))
        information = np.zeros((len(poses), 6, 6))
        for i in np.flatnonzero(self.sees):
            prior, pivot = poses[i].prior, self._pivots[poses[i].object]
            means[i] = about_point(prior.reference_from_object, pivot)
            arm = means[i, :3, :3] @ pivot
            information[i] = information_about(arm, prior.information)
        self._means.write("rotation", means[:, :3, :3])
        self._means.write("translation", means[:, :3, 3])
        self._buffer.write("information", information)

    def begin_level(self, poses: PoseBatch, scale: int) -> None:
        """Nothing is prepared; see `ResidualTerm`."""

    def linearize(self, poses: PoseBatch, scale: int, out: NormalEquations) -> None:
        """Add the priors' cost and derivatives; see `ResidualTerm`."""
        if id(out) not in self._kernels:
            self._kernels[id(out)] = recorded(
                add_priors, [self._mean, self.information, self.cost, poses, out], self._device
            )
        self._kernels[id(out)](len(self.sees))

    def fit(self) -> TermFit:
        """Half the squared Mahalanobis distances from what was known."""
        cost = self._buffer.read("cost", len(self.sees)).astype(np.float64)
        return TermFit(cost=np.where(self.sees, cost, 0.0), rms=np.sqrt(2.0 * cost))
