# SPDX-License-Identifier: Apache-2.0
"""Batched Levenberg-Marquardt on SE(3).

Terms add their cost, gradient and Gauss-Newton matrix at a batch of trial poses; one kernel then
accepts or rejects each trial, adapts its damping and makes the next one. On CUDA nothing returns to
Python within a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import warp as wp

from pose_refiner_ros.geometry.pose_kernels import exp_so3, orthonormal

from .host_buffer import HostBuffer, recorded
from .normal_equations import NormalEquations, PoseBatch, allocate
from .terms import ResidualTerm, TermFit

wp.set_module_options({"enable_backward": False})

# Why a pose stopped moving: its step moves the outline by less than the tolerance, no step however
# short lowers the cost, or nothing of the object meets known pixels.
REASONS = ("running", "converged", "stalled", "max_iterations", "no_evidence")
CONVERGED = wp.constant(REASONS.index("converged"))
STALLED = wp.constant(REASONS.index("stalled"))
NO_EVIDENCE = wp.constant(REASONS.index("no_evidence"))


@dataclass(frozen=True)
class Level:
    """A rung of coarse to fine.

    iterations: the most that are made; tolerance: RMS motion of the residuals (pixels of full
    resolution for the silhouette) below which a pose has converged; scales: which terms take part,
    by name, and at which of their scales; integrate_below: RMS motion below which the change of
    cost is judged by the gradients at both ends of a step, for terms whose cost moves in steps (0:
    by the cost alone). Poses of which none of its terms has seen anything pass through it.
    """

    iterations: int
    tolerance: float
    scales: Mapping[str, int]
    integrate_below: float = 0.5


@wp.struct
class State:
    """Of each pose (B): the best so far with its derivatives, and the step that is being tried."""

    reason: wp.array(dtype=wp.int32)
    iterations: wp.array(dtype=wp.int32)
    rotation: wp.array(dtype=wp.mat33)
    translation: wp.array(dtype=wp.vec3)
    step: wp.array(dtype=wp.spatial_vector)
    included: wp.array(dtype=wp.int32)  # in the level
    fresh: wp.array(dtype=wp.int32)  # 1: the trial is the start of a level, taken as it is
    settled: wp.array(dtype=wp.int32)  # 1: the trial is the best pose, its derivatives are current
    damping: wp.array(dtype=wp.float32)
    diameter: wp.array(dtype=wp.float32)
    eye: wp.array(dtype=wp.vec3)  # where a camera is that sees it


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
def advance(
    state: State,
    best: NormalEquations,
    poses: PoseBatch,
    trial: NormalEquations,
    tolerance: float,
    integrate_below: float,
):
    """Judge each trial, then make the next."""
    i = wp.tid()
    if poses.active[i] == 0:
        return
    gradient = trial.gradient[i]
    cost = trial.cost[i]
    weight = trial.weight[i]
    damping = state.damping[i]
    state.iterations[i] = state.iterations[i] + 1

    accepted = False
    motion = float(1.0e9)  # RMS motion of the residuals by the step just tried
    if state.fresh[i] == 1:
        state.fresh[i] = 0
        accepted = True
    else:
        step = state.step[i]
        old_weight = wp.max(best.weight[i], 1.0e-9)
        curvature = wp.dot(step, best.hessian[i] * step)
        motion = wp.sqrt(wp.max(curvature, 0.0) / old_weight)
        change = cost - best.cost[i]
        if motion < integrate_below:
            # A silhouette's cost is a sum over whole pixels; below half a pixel the integral of
            # its gradient along the step (trapezoid rule) measures the change far better.
            change = 0.5 * wp.dot(step, best.gradient[i] + gradient)
        accepted = change <= 0.0 and weight > 0.25 * old_weight
        if wp.isnan(cost) or wp.isnan(change):
            accepted = False
    if accepted:
        state.rotation[i] = poses.rotation[i]
        state.translation[i] = poses.translation[i]
        best.cost[i] = cost
        best.hessian[i] = trial.hessian[i]
        best.gradient[i] = gradient
        best.weight[i] = weight
        damping = wp.max(0.2 * damping, 1.0e-6)
    else:
        damping = wp.max(8.0 * damping, 1.0e-4)
    state.damping[i] = damping

    known = wp.isfinite(best.cost[i]) and wp.isfinite(wp.length(best.gradient[i]))
    if best.weight[i] <= 0.0 or not known:
        state.reason[i] = NO_EVIDENCE
        poses.active[i] = 0
        return
    if accepted and motion < tolerance:
        state.reason[i] = CONVERGED
        state.settled[i] = 1
        poses.active[i] = 0
        return

    step = solve_damped(best.hessian[i], best.gradient[i], damping)
    v = wp.vec3(step[0], step[1], step[2])
    w = wp.vec3(step[3], step[4], step[5])
    t = state.translation[i]
    shrink = float(1.0)
    shrink = wp.min(shrink, 0.35 / wp.max(wp.length(w), 1.0e-9))
    reach = 0.5 * state.diameter[i] + 0.1 * wp.length(t - state.eye[i])
    shrink = wp.min(shrink, reach / wp.max(wp.length(v), 1.0e-9))
    step = shrink * step
    curvature = wp.dot(step, best.hessian[i] * step)
    planned = wp.sqrt(wp.max(curvature, 0.0) / best.weight[i])
    if planned < 0.1 * tolerance:
        # a rejected trial led to a step too short to matter, or the gradient is all but zero
        if accepted:
            state.reason[i] = CONVERGED
            state.settled[i] = 1
        else:
            state.reason[i] = STALLED
        poses.active[i] = 0
        return
    state.step[i] = step
    poses.rotation[i] = orthonormal(exp_so3(shrink * w) * state.rotation[i])
    poses.translation[i] = t + shrink * v
    trial.hessian[i] = wp.spatial_matrix()
    trial.gradient[i] = wp.spatial_vector()
    trial.cost[i] = 0.0
    trial.weight[i] = 0.0


@wp.kernel
def begin_level(
    state: State, poses: PoseBatch, trial: NormalEquations, damping: float, look_only: int
):
    """Try the best pose so far again, at another resolution; look_only: those alone whose
    derivatives are not current, whether or not the level includes them."""
    i = wp.tid()
    begins = state.included[i]
    if look_only == 1:
        begins = 1 - state.settled[i]
    poses.active[i] = begins
    if begins == 0:
        return
    state.fresh[i] = 1
    state.settled[i] = 0
    if look_only == 0:
        state.reason[i] = 0
    state.damping[i] = damping
    poses.rotation[i] = state.rotation[i]
    poses.translation[i] = state.translation[i]
    trial.hessian[i] = wp.spatial_matrix()
    trial.gradient[i] = wp.spatial_vector()
    trial.cost[i] = 0.0
    trial.weight[i] = 0.0


class Solver:
    """Levenberg-Marquardt for up to ``capacity`` poses at once.

    Arrays and launches are made once; a run of B <= capacity poses re-uses them.
    """

    def __init__(self, capacity: int, device: str = "cpu") -> None:
        self.capacity = capacity
        self.device = wp.get_device(device)
        self.count = 0
        self.state = allocate(State, capacity, device)
        self.poses = allocate(PoseBatch, capacity, device)  # the trials
        self.trial = allocate(NormalEquations, capacity, device)
        best = allocate(NormalEquations, capacity, device)
        self._rows = HostBuffer(self.state, list(State.vars))
        self._active = HostBuffer(self.poses, ["active"])
        self._best = HostBuffer(best, ["cost"])
        self._moved = np.zeros(0, bool)  # poses that some level has included
        self._scales: dict[str, int] = {}  # at which terms looked in the last level
        common = [self.state, self.poses, self.trial, 0.0, 0]
        self._begin = recorded(begin_level, common, device)
        self._advance = recorded(
            advance, [self.state, best, self.poses, self.trial, 0.0, 0.0], device
        )

    def load(
        self,
        reference_from_object: np.ndarray,
        diameter: np.ndarray,
        eye: np.ndarray | None = None,
    ) -> None:
        """Set the start poses (B, 4, 4) and the objects' diameters (B,) in metres.

        eye: (B, 3) where a camera is that sees each, the reference's origin if not given.
        """
        count = len(reference_from_object)
        if count > self.capacity:
            raise ValueError(f"{count} poses for a solver of capacity {self.capacity}")
        self.count = count
        poses = np.asarray(reference_from_object, np.float32)
        self._rows.write("rotation", poses[:, :3, :3])
        self._rows.write("translation", poses[:, :3, 3])
        self._rows.write("diameter", np.asarray(diameter, np.float32))
        self._rows.write("eye", np.zeros((count, 3), np.float32) if eye is None else eye)
        zeros = np.zeros(count, np.int32)
        for name in ("settled", "iterations", "reason"):
            self._rows.write(name, zeros)
        self._scales, self._moved = {}, np.zeros(count, bool)

    def run(
        self, terms: Sequence[ResidualTerm], levels: Sequence[Level], damping: float = 1e-2
    ) -> None:
        """Refine the loaded poses through the levels."""
        terms = [term for term in terms if term.sees.any()]
        for level in levels:
            taking_part = [term for term in terms if term.name in level.scales]
            if not taking_part:
                continue
            included = taking_part[0].sees
            for term in taking_part[1:]:
                included = included | term.sees
            self._moved |= included
            self._rows.write("included", included)
            self._scales = {term.name: level.scales[term.name] for term in taking_part}
            self._begin(self.count, damping=damping, look_only=0)
            for term in taking_part:
                term.begin_level(self.poses, level.scales[term.name])
            for _ in range(level.iterations):
                for term in taking_part:
                    term.linearize(self.poses, level.scales[term.name], self.trial)
                self._advance(
                    self.count, tolerance=level.tolerance, integrate_below=level.integrate_below
                )
                # reading the flags would make CUDA wait; there the launches just do nothing
                if self.device.is_cpu and not self._active.read("active", self.count).any():
                    break
            damping = 1e-4

    def evaluate(self, terms: Sequence[ResidualTerm]) -> dict[str, TermFit]:
        """How the poses as they are fit each term at its finest scale, by the terms' names.

        Poses that a run has just left there need no second look.
        """
        terms = [term for term in terms if term.sees.any()]
        if any(self._scales.get(term.name) != term.finest for term in terms):
            self._rows.write("settled", np.zeros(self.count, np.int32))
        if not self._rows.read("settled", self.count).all():
            self._begin(self.count, look_only=1)
            for term in terms:
                term.linearize(self.poses, term.finest, self.trial)
        return {term.name: term.fit() for term in terms}

    def result(self) -> dict[str, np.ndarray]:
        """Poses (B, 4, 4), iterations, reason and the cost at which each stopped."""
        count = self.count
        poses = np.zeros((count, 4, 4))
        poses[:, 3, 3] = 1.0
        poses[:, :3, :3] = self._rows.read("rotation", count)
        poses[:, :3, 3] = self._rows.read("translation", count)
        reason = self._rows.read("reason", count).copy()
        reason[(reason == 0) & self._moved] = REASONS.index("max_iterations")
        return {
            "reference_from_object": poses,
            "cost": self._best.read("cost", count).copy(),
            "iterations": self._rows.read("iterations", count).copy(),
            "reason": np.array(REASONS)[reason],
        }
