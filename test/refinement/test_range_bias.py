# SPDX-License-Identifier: Apache-2.0
"""Distances of small, detailed objects, from masks without errors."""

import numpy as np
import pytest
import trimesh
from shapes import model, pinhole_camera, random_rotation

from pose_refiner_ros.datasets.vehicles import VEHICLES, make_vehicle
from pose_refiner_ros.geometry.pose import rotated
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.outline import Rasterizer
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner

CAMERA = pinhole_camera(size=256, focal=400.0)
PIXELS = 100.0


def bumpy(amplitude: float = 0.02) -> Mesh:
    """An ellipsoid with a rough skin, as a scan has: outlines hide close behind its outline."""
    sphere = trimesh.creation.icosphere(4)
    rng = np.random.default_rng(0)
    rough = 1.0 + rng.uniform(-amplitude, amplitude, (len(sphere.vertices), 1))
    return Mesh(sphere.vertices * rough * [0.5, 0.35, 0.25], sphere.faces)


def comb(teeth: int = 8) -> Mesh:
    """Boxes side by side on a back, one in two of them lower: gaps that few pixels show."""
    parts = [trimesh.creation.box((1.0, 0.4, 0.1))]
    for i in range(teeth):
        tooth = trimesh.creation.box((0.5 / teeth, 0.4, 0.3 - 0.03 * (i % 2)))
        tooth.apply_translation(((i + 0.5) / teeth - 0.5, 0.0, 0.15))
        parts.append(tooth)
    joined = trimesh.util.concatenate(parts)
    return Mesh(joined.vertices, joined.faces)


def views(mesh: Mesh, count: int):
    """Random poses at which the mesh is at most PIXELS wide, and its masks at pixel centres."""
    rng = np.random.default_rng(0)
    rasterizer = Rasterizer(mesh.faces)
    center = mesh.bounds.mean(axis=0)
    for _ in range(count):
        truth = np.eye(4)
        truth[:3, :3] = random_rotation(rng)
        distance = CAMERA.fx * mesh.diameter / PIXELS
        truth[:3, 3] = distance * np.append(rng.uniform(-0.1, 0.1, 2), 1.0)
        truth[:3, 3] -= truth[:3, :3] @ center
        points = mesh.vertices @ truth[:3, :3].T + truth[:3, 3]
        yield truth, rasterizer.covered(CAMERA.project(points), CAMERA.size)


def from_truth(refiner: Refiner, seen, truth) -> Hypothesis:
    """The truth is where the refinement starts, and no result of its own."""
    start = [[Hypothesis("object", truth)]]
    return refiner.refine([[seen]], start, restart=False, given=False)[0][0]


@pytest.mark.parametrize("make", [bumpy, comb])
def test_detail_near_the_outline_does_not_pull_objects_nearer(make):
    mesh = make()
    refiner = Refiner([model("object", mesh, silhouette_mesh=mesh)], capacity=4)
    errors = []
    for truth, mask in views(mesh, 32):
        found = from_truth(refiner, observe_mask(mask, 1, CAMERA), truth)
        errors.append(found.reference_from_object[2, 3] / truth[2, 3] - 1.0)
    print(f"{make.__name__}: {100 * np.mean(errors):+.3f} %")
    assert abs(np.mean(errors)) < 0.002


def test_the_slope_is_how_fast_the_gradient_grows():
    """What the covariance takes for the growth of the gradient, against differences of it."""
    mesh = make_vehicle(VEHICLES["sedan"]).mesh
    refiner = Refiner([model("object", mesh)], capacity=4)
    scale = np.diag([mesh.diameter] * 3 + [1.0] * 3)
    slopes, ratios = [], []
    for truth, mask in views(mesh, 10):
        seen = observe_mask(mask, 1, CAMERA)
        found = from_truth(refiner, seen, truth)
        (found,) = refiner.evaluate([seen], [found])
        fit, pose = found.fits["silhouette"], found.reference_from_object
        slopes.append(fit.slope)
        hessian = fit.hessian.astype(np.float64)
        weight = refiner.solver.trial.weight.numpy()[0]
        arm = pose[:3, :3] @ mesh.bounds.mean(axis=0)  # of the middle, which the matrix is about
        for direction in np.linalg.eigh(scale @ hessian @ scale)[1].T:
            step = scale @ direction
            step *= 0.3 / np.sqrt(step @ hessian @ step / weight)  # 0.3 px of RMS motion
            pulls = []
            for sign in (1.0, -1.0):
                other = rotated(pose, sign * step[3:])
                turned_arm = other[:3, :3] @ mesh.bounds.mean(axis=0)
                other[:3, 3] += sign * step[:3] + arm - turned_arm
                refiner.evaluate([seen], [Hypothesis("object", other)])
                pulls.append(step @ refiner.solver.trial.gradient.numpy()[0])
            ratios.append(0.5 * (pulls[0] - pulls[1]) / (step @ hessian @ step))
    assert np.mean(slopes) == pytest.approx(np.mean(ratios), rel=0.1)
