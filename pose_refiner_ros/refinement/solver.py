# SPDX-License-Identifier: Apache-2.0
"""Batched Levenberg-Marquardt on SE(3).

Terms add their cost, gradient and Gauss-Newton matrix at a batch of trial poses; one kernel then
accepts or rejects each trial, adapts its damping and makes the next one. Nothing returns to Python
inside an iteration, so on CUDA a level can be captured as a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
import warp as wp

from .mirror import Mirror

wp.set_module_options({"enable_backward": False})


class Reason(IntEnum):
    """Why a pose stopped moving."""

    RUNNING = 0
    CONVERGED = 1  # the step moves the outline by less than the tolerance
    STALLED = 2  # no step however short lowers the cost
    MAX_ITERATIONS = 3
    NO_EVIDENCE = 4  # nothing of the object meets known pixels


# the same for kernels
CONVERGED = wp.constant(int(Reason.CONVERGED))
STALLED = wp.constant(int(Reason.STALLED))
NO_EVIDENCE = wp.constant(int(Reason.NO_EVIDENCE))


@dataclass(frozen=True)
class Level:
    """One rung of the coarse-to-fine ladder.

    index: which resolution the terms use; iterations: the most that are made; tolerance: RMS
    motion of the residuals (pixels of full resolution for the silhouette) below which a pose
    has converged; integrate_below: RMS motion below which the change of cost is judged by the
    gradients at both ends of a step, for terms whose cost moves in steps (0: by the cost alone).
    """

    index: int
    iterations: int
    tolerance: float
    integrate_below: float = 0.5


@wp.struct
class State:
    """Per-pose state (B,) of the optimisation: the best pose, the trial and its derivatives."""

    active: wp.array(dtype=wp.int32)
    reason: wp.array(dtype=wp.int32)
    iterations: wp.array(dtype=wp.int32)
    rotation: wp.array(dtype=wp.mat33)
    translation: wp.array(dtype=wp.vec3)
    trial_rotation: wp.array(dtype=wp.mat33)
    trial_translation: wp.array(dtype=wp.vec3)
    step: wp.array(dtype=wp.spatial_vector)
    fresh: wp.array(dtype=wp.int32)  # 1: the trial is the start of a level, taken as it is
    settled: wp.array(dtype=wp.int32)  # 1: the trial is the best pose, its derivatives are current
    damping: wp.array(dtype=wp.float32)
    cost: wp.array(dtype=wp.float32)
    hessian: wp.array(dtype=wp.spatial_matrix)
    gradient: wp.array(dtype=wp.spatial_vector)
    weight: wp.array(dtype=wp.float32)
    diameter: wp.array(dtype=wp.float32)
    # what the terms add to at the trial poses
    trial_hessian: wp.array(dtype=wp.spatial_matrix)
    trial_gradient: wp.array(dtype=wp.spatial_vector)
    trial_cost: wp.array(dtype=wp.float32)
    trial_weight: wp.array(dtype=wp.float32)


class Term(Protocol):
    """Evidence that pulls on poses."""

    level: int

    def set_level(self, index: int) -> None:
        """Choose the resolution."""

    def accumulate(self, state: State) -> None:
        """Add cost, gradient, Gauss-Newton matrix and weight at the trial poses to the state."""

    def fit(self, state: State) -> Any:
        """What the term has to say, beyond their cost, of the poses it saw last."""


@wp.func
def exp_so3(w: wp.vec3):
    """Rotation matrix of a rotation vector (Rodrigues)."""
    angle_squared = wp.dot(w, w)
    a = float(1.0)
    b = float(0.5)
    if angle_squared > 1.0e-8:
        angle = wp.sqrt(angle_squared)
        a = wp.sin(angle) / angle
        b = (1.0 - wp.cos(angle)) / angle_squared
    hat = wp.skew(w)
    return wp.identity(n=3, dtype=wp.float32) + a * hat + b * (hat * hat)


@wp.func
def orthonormal(m: wp.mat33):
    """Pull a matrix that drifted by rounding back to a rotation (Gram-Schmidt on rows)."""
    x = wp.normalize(wp.vec3(m[0, 0], m[0, 1], m[0, 2]))
    y = wp.vec3(m[1, 0], m[1, 1], m[1, 2])
    y = wp.normalize(y - wp.dot(x, y) * x)
    z = wp.cross(x, y)
    return wp.mat33(x[0], x[1], x[2], y[0], y[1], y[2], z[0], z[1], z[2])


@wp.func
def solve_damped(hessian: wp.spatial_matrix, gradient: wp.spatial_vector, damping: float):
    """-(H + damping D)^-1 g by Cholesky; D is the diagonal of H with a floor per block, so that a
    direction without evidence (the axis of a bottle) stays where it is."""
    A = hessian
    floor_v = 1.0e-3 * wp.max(A[0, 0], wp.max(A[1, 1], A[2, 2])) + 1.0e-12
    floor_w = 1.0e-3 * wp.max(A[3, 3], wp.max(A[4, 4], A[5, 5])) + 1.0e-12
    for i in range(6):
        floor = floor_v
        if i > 2:
            floor = floor_w
        A[i, i] = A[i, i] + damping * wp.max(A[i, i], floor) + 1.0e-2 * floor
    x = -gradient
    for j in range(6):
        d = A[j, j]
        for k in range(j):
            d = d - A[j, k] * A[j, k]
        d = wp.sqrt(wp.max(d, 1.0e-20))
        A[j, j] = d
        for i in range(j + 1, 6):
            s = A[i, j]
            for k in range(j):
                s = s - A[i, k] * A[j, k]
            A[i, j] = s / d
    for i in range(6):
        s = x[i]
        for k in range(i):
            s = s - A[i, k] * x[k]
        x[i] = s / A[i, i]
    for r in range(6):
        i = 5 - r
        s = x[i]
        for k in range(i + 1, 6):
            s = s - A[k, i] * x[k]
        x[i] = s / A[i, i]
    return x


@wp.kernel
def advance(state: State, tolerance: float, integrate_below: float):
    """Judge each trial, then make the next."""
    i = wp.tid()
    if state.active[i] == 0:
        return
    gradient = state.trial_gradient[i]
    cost = state.trial_cost[i]
    weight = state.trial_weight[i]
    damping = state.damping[i]
    state.iterations[i] = state.iterations[i] + 1

    accepted = False
    motion = float(1.0e9)  # RMS motion of the residuals by the step just tried
    if state.fresh[i] == 1:
        state.fresh[i] = 0
        accepted = True
    else:
        step = state.step[i]
        old_weight = wp.max(state.weight[i], 1.0e-9)
        curvature = wp.dot(step, state.hessian[i] * step)
        motion = wp.sqrt(wp.max(curvature, 0.0) / old_weight)
        change = cost - state.cost[i]
        if motion < integrate_below:
            # A silhouette's cost is a sum over whole pixels; below half a pixel the integral of
            # its gradient along the step (trapezoid rule) measures the change far better.
            change = 0.5 * wp.dot(step, state.gradient[i] + gradient)
        accepted = change <= 0.0 and weight > 0.25 * old_weight
        if wp.isnan(cost) or wp.isnan(change):
            accepted = False
    if accepted:
        state.rotation[i] = state.trial_rotation[i]
        state.translation[i] = state.trial_translation[i]
        state.cost[i] = cost
        state.hessian[i] = state.trial_hessian[i]
        state.gradient[i] = gradient
        state.weight[i] = weight
        damping = wp.max(0.2 * damping, 1.0e-6)
    else:
        damping = wp.max(8.0 * damping, 1.0e-4)
    state.damping[i] = damping

    known = wp.isfinite(state.cost[i]) and wp.isfinite(wp.length(state.gradient[i]))
    if state.weight[i] <= 0.0 or not known:
        state.reason[i] = NO_EVIDENCE
        state.active[i] = 0
        return
    if accepted and motion < tolerance:
        state.reason[i] = CONVERGED
        state.settled[i] = 1
        state.active[i] = 0
        return

    step = solve_damped(state.hessian[i], state.gradient[i], damping)
    v = wp.vec3(step[0], step[1], step[2])
    w = wp.vec3(step[3], step[4], step[5])
    t = state.translation[i]
    shrink = float(1.0)
    shrink = wp.min(shrink, 0.35 / wp.max(wp.length(w), 1.0e-9))
    reach = 0.5 * state.diameter[i] + 0.1 * wp.length(t)
    shrink = wp.min(shrink, reach / wp.max(wp.length(v), 1.0e-9))
    step = shrink * step
    curvature = wp.dot(step, state.hessian[i] * step)
    planned = wp.sqrt(wp.max(curvature, 0.0) / state.weight[i])
    if planned < 0.1 * tolerance:
        # a rejected trial led to a step too short to matter, or the gradient is all but zero
        if accepted:
            state.reason[i] = CONVERGED
            state.settled[i] = 1
        else:
            state.reason[i] = STALLED
        state.active[i] = 0
        return
    state.step[i] = step
    state.trial_rotation[i] = orthonormal(exp_so3(shrink * w) * state.rotation[i])
    state.trial_translation[i] = t + shrink * v
    state.trial_hessian[i] = wp.spatial_matrix()
    state.trial_gradient[i] = wp.spatial_vector()
    state.trial_cost[i] = 0.0
    state.trial_weight[i] = 0.0


@wp.kernel
def begin_level(state: State, damping: float):
    """Try the best pose so far again, at another resolution."""
    i = wp.tid()
    state.active[i] = 1
    state.fresh[i] = 1
    state.settled[i] = 0
    state.reason[i] = 0
    state.damping[i] = damping
    state.trial_rotation[i] = state.rotation[i]
    state.trial_translation[i] = state.translation[i]
    state.trial_hessian[i] = wp.spatial_matrix()
    state.trial_gradient[i] = wp.spatial_vector()
    state.trial_cost[i] = 0.0
    state.trial_weight[i] = 0.0


class Solver:
    """Levenberg-Marquardt for up to ``capacity`` poses at once.

    Arrays and launches are made once; a run of B <= capacity poses re-uses them.
    """

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self.capacity = capacity
        self.device = wp.get_device(device)
        state = State()
        for name, variable in State.vars.items():
            setattr(state, name, wp.zeros(capacity, dtype=variable.type.dtype, device=device))
        self.state = state
        self.count = capacity
        self._rows = Mirror(state, list(State.vars))
        self._begin = wp.launch(begin_level, capacity, [state, 0.0], device=device, record_cmd=True)
        self._advance = wp.launch(
            advance, capacity, [state, 0.0, 0.0], device=device, record_cmd=True
        )

    def load(self, camera_from_object: np.ndarray, diameter: np.ndarray) -> None:
        """Set the start poses (B, 4, 4) and the objects' diameters (B,) in metres."""
        count = len(camera_from_object)
        if count > self.capacity:
            raise ValueError(f"{count} poses for a solver of capacity {self.capacity}")
        if count != self.count:
            self.count = count
            self._begin.set_dim(count)
            self._advance.set_dim(count)
        poses = np.asarray(camera_from_object, np.float32)
        self._rows.write("rotation", poses[:, :3, :3])
        self._rows.write("translation", poses[:, :3, 3])
        self._rows.write("diameter", np.asarray(diameter, np.float32))
        for name in ("settled", "iterations", "reason"):
            self._rows.write(name, np.zeros(count, np.int32))

    def run(self, terms: Sequence[Term], levels: Sequence[Level], damping: float = 1e-2) -> None:
        """Refine the loaded poses through the levels."""
        for level in levels:
            for term in terms:
                term.set_level(level.index)
            self._begin.set_param_by_name("damping", damping)
            self._begin.launch()
            self._advance.set_param_by_name("tolerance", level.tolerance)
            self._advance.set_param_by_name("integrate_below", level.integrate_below)
            for _ in range(level.iterations):
                for term in terms:
                    term.accumulate(self.state)
                self._advance.launch()
                # reading the flags would make CUDA wait; there the launches just do nothing
                if self.device.is_cpu and not self._rows.read("active", self.count).any():
                    break
            damping = 1e-4

    def evaluate(self, term: Term, level: int, known: bool = True) -> Any:
        """Look at the poses as they are, through one term at one level.

        Poses that the run before left at this very level need no second look, if `known`: if that
        term was the only one.
        """
        if not known or term.level != level or not self._rows.read("settled", self.count).all():
            term.set_level(level)
            self._begin.launch()
            term.accumulate(self.state)
        return term.fit(self.state)

    def result(self) -> dict[str, np.ndarray]:
        """Poses (B, 4, 4), cost, iterations and reason of the loaded batch."""
        count = self.count
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, :3, :3] = self._rows.read("rotation", count)
        poses[:, :3, 3] = self._rows.read("translation", count)
        reason = self._rows.read("reason", count).copy()
        reason[reason == Reason.RUNNING] = Reason.MAX_ITERATIONS
        return {
            "camera_from_object": poses,
            "cost": self._rows.read("cost", count).copy(),
            "iterations": self._rows.read("iterations", count).copy(),
            "reason": reason,
        }
