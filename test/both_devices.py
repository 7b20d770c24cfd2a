# SPDX-License-Identifier: Apache-2.0
"""What the kernels of each family say on a device, and how far that is from another device's.

`test/refinement/test_cuda.py` and `tools/gpu_check.py` hold CUDA against the CPU with it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import posed_scene
import torch
from analytic_field import AnalyticField, as_grid, view_from
from painted import painted_block, photo
from shapes import box, ell, model, pinhole_camera, pose, random_rotation, silhouette, turned

from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.drawing.scene_view import draw_scene
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import camera_rays, image_pixels
from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.learning.grid_training import GridOptions, GridTraining
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.host_buffer import HostBuffer
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.normal_equations import NormalEquations, PoseBatch, allocate
from pose_refiner_ros.refinement.observation import observe_image, observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.terms import ResidualTerm
from pose_refiner_ros.refinement.terms.appearance import AppearanceTerm
from pose_refiner_ros.refinement.terms.depth import DepthTerm
from pose_refiner_ros.refinement.terms.prior import PosePrior, PriorTerm
from pose_refiner_ros.refinement.terms.radiance import RadianceTerm
from pose_refiner_ros.refinement.terms.silhouette import SilhouetteTerm
from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch
from pose_refiner_ros.rendering.scene import render_scene
from pose_refiner_ros.scene import GroundPlane, Scene, SceneObject, scene_from_camera

Figures = dict[str, np.ndarray]

# Of the largest value of a figure; of whole numbers (pixels, labels) the share that differs. Sums
# are made in another order on CUDA and sines are not the same, so that now and then a pixel at an
# outline is covered on one and not on the other.
TOLERANCE = 0.01
OWN_TOLERANCE = {
    "sectors": 0.05,  # an edge in the border of two goes to either
    "training": 0.1,  # other rays at a time: Adam's steps at the first rays depend on the signs
    "pose": 0.02,
}
ELL, BOX = model("ell", ell()), model("box", box(0.3, 0.5, 0.1))
CAMERA = pinhole_camera(320, 400.0)
FRONT = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.6))
BACK = pose((0.2, 0.3, 0.1), (0.12, 0.03, 1.0))
PICTURE = pinhole_camera(96, 150.0)


def differences(found: Figures, expected: Figures) -> dict[str, float]:
    """Of each figure how far the two are apart, in units of its tolerance: 1 is just allowed."""
    assert found.keys() == expected.keys()
    apart = {}
    for name, there in expected.items():
        here, tolerance = found[name], OWN_TOLERANCE.get(name.split()[0], TOLERANCE)
        if np.issubdtype(there.dtype, np.integer):
            off = float((here != there).mean())
        elif np.isfinite(here).all():
            off = float(np.abs(here - there).max() / max(np.abs(there).max(), 1e-9))
        else:
            off = np.inf
        apart[name] = off / tolerance
    return apart


def _silhouette(device: str) -> Figures:
    """Two objects of which one hides part of the other, six poses each."""
    models = [ELL, BOX]
    pivots = {one.name: one.box_center for one in models}
    term = SilhouetteTerm(models, pivots, 16, device)
    seen = [observe_mask(_label_image(), label, CAMERA) for label in (1, 2)]
    starts = _about(Hypothesis("ell", FRONT), 6) + _about(Hypothesis("box", BACK), 6)
    return _looked(term, starts, [(i, seen[i // 6]) for i in range(12)], pivots, device)


def _depth(device: str) -> Figures:
    """Measured points on two objects, some of them far off."""
    models = {"ell": ELL, "box": BOX}
    pivots = {name: one.box_center for name, one in models.items()}
    term = DepthTerm(models, pivots, 16, device)
    rng = np.random.default_rng(3)
    seen = []
    for label, thing, at in ((1, ELL, FRONT), (2, BOX, BACK)):
        points = thing.mesh.vertices[rng.integers(len(thing.mesh.vertices), size=200)]
        points = points @ at[:3, :3].T + at[:3, 3] + rng.normal(0.0, 0.01, (200, 3))
        points = np.column_stack([points, np.full(200, 0.003)]).astype(np.float32)
        seen.append(observe_mask(_label_image(), label, CAMERA).with_points(points, 0.005))
    starts = _about(Hypothesis("ell", FRONT), 6) + _about(Hypothesis("box", BACK), 6)
    return _looked(term, starts, [(i, seen[i // 6]) for i in range(12)], pivots, device)


def _prior(device: str) -> Figures:
    """Poses with and without a prior."""
    pivots = {"ell": ELL.box_center}
    term = PriorTerm(pivots, 8, device)
    information = np.diag([1e4, 2e4, 1e4, 100.0, 50.0, 200.0])
    starts = _about(Hypothesis("ell", FRONT, PosePrior(FRONT, information)), 6)
    starts[3].prior = None
    return _looked(term, starts, [], pivots, device)


def _fields(term_of: Callable[..., ResidualTerm], exposure: bool) -> Callable[[str], Figures]:
    def looked(device: str) -> Figures:
        """Fields of two degrees at all scales, with a mask and without."""
        block, blobs = painted_block(), as_grid(AnalyticField(density=40.0, chequers=6.0))
        at_block, at_blobs = view_from((1, 0.5, 0.4), 0.8), view_from((1, 0.4, 0.5), 2.5)
        pivots = {"block": np.zeros(3), "blobs": np.zeros(3)}
        fields = {"block": block, "blobs": blobs}
        term = term_of(fields, pivots, 8, exposure=exposure, device=device)
        image, mask = photo(block, at_block, PICTURE)
        masked = observe_mask(mask, 1, PICTURE).with_image(image)
        white = (1.0, 1.0, 1.0)
        whole = observe_image(photo(blobs, at_blobs, PICTURE, white)[0], PICTURE, white)
        starts = _about(Hypothesis("block", at_block), 4)
        starts += _about(Hypothesis("blobs", at_blobs, index=1), 4)
        rows = [(i, masked if i < 4 else whole) for i in range(8)]
        return _looked(term, starts, rows, pivots, device)

    return looked


def _looked(term, starts, rows, pivots, device: str) -> Figures:
    """What a term says of poses at each of its scales, and how they fit."""
    term.observe(list(dict.fromkeys(seen for _, seen in rows)))
    term.load(starts, rows)
    count = len(starts)
    batch = allocate(PoseBatch, count, device)
    out = allocate(NormalEquations, count, device)
    buffer = HostBuffer(batch, list(PoseBatch.vars))
    poses = [about_point(one.reference_from_object, pivots[one.object]) for one in starts]
    poses = np.array(poses, np.float32)
    buffer.write("active", np.ones(count, np.int32))
    buffer.write("rotation", poses[:, :3, :3])
    buffer.write("translation", poses[:, :3, 3])
    figures: Figures = {}
    for scale in range(term.finest + 1):
        for name in NormalEquations.vars:
            getattr(out, name).zero_()
        term.begin_level(batch, scale)
        term.linearize(batch, scale, out)
        for name in NormalEquations.vars:
            figures[f"{name} {scale}"] = getattr(out, name).numpy().copy()
    fit = {name: getattr(term.fit(), name) for name in ("rms", "sectors", "iou", "gain", "bias")}
    return figures | {name: value for name, value in fit.items() if value is not None}


def _march(degree: int) -> Callable[[str], Figures]:
    def looked(device: str) -> Figures:
        """Rays through a grid, and the derivatives by where they begin and go."""
        grid = as_grid(AnalyticField(density=12.0), 48, min(degree, 1))
        if degree == 2:
            more = 0.05 * np.random.default_rng(0).normal(size=(len(grid.values), 15))
            values = np.hstack([grid.values, more * (grid.values[:, :1] > 0)])
            grid = GridField(grid.links, values, grid.origin, grid.voxel)
        grid = grid.to(device)
        view = view_from((1.0, 0.4, 0.5))
        origins, along = camera_rays(PICTURE.intrinsics.copy(), view, image_pixels((96, 96)))
        origins, along = (x.float().to(device).requires_grad_() for x in (origins, along))
        seen = grid.render(origins, along)
        (seen.colour.sum() + 2.0 * seen.opacity.sum()).backward()
        points = torch.from_numpy(np.random.default_rng(1).uniform(-0.6, 0.6, (500, 3))).float()
        density, colour = grid.query(points.to(device), along[:500].detach())
        result = {
            "colour": seen.colour, "opacity": seen.opacity, "by_origin": origins.grad,
            "by_direction": along.grad, "density": density, "at points": colour,
        }  # fmt: skip
        return {name: value.detach().cpu().numpy() for name, value in result.items()}

    return looked


def _training(masked: bool) -> Callable[[str], Figures]:
    def looked(device: str) -> Figures:
        """Squared errors of a training's steps, over two levels of its grid."""
        with TemporaryDirectory() as folder:
            posed_scene.write_nerf_synthetic(Path(folder), posed_scene.orbit(10))
            posed = load_posed_images(Path(folder))
        if not masked:
            posed.images[posed.alpha == 0] = (230, 200, 30)
            posed.alpha = None
        training = GridTraining(posed, GridOptions(steps=16, rays=2048), device)
        errors = [training.step() for _ in range(16)]
        return {"training errors": np.array(errors)}

    return looked


def _z_buffer(device: str) -> Figures:
    images = render_scene([ELL.mesh, BOX.mesh], [FRONT, BACK], CAMERA, device=device, samples=3)
    depth = np.where(np.isfinite(images.depth), images.depth, 0.0)
    return {
        "labels": images.labels,
        "rgb": (images.rgb.astype(np.int32) + 4) // 8,
        "depth mm": np.rint(1e3 * depth).astype(np.int32),
    }


def _scene_view(device: str) -> Figures:
    """The ground, its shadows and what stands on it."""
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0.1))
    one = SceneObject("ell", 1, pose((0.1, 0.2, 0.3), (1.5, 0.2, 0.2)), "good")
    picture = draw_scene(Scene([one], frame, CAMERA), {"ell": ELL}, size=(120, 160), device=device)
    return {"picture": (picture.astype(np.int32) + 4) // 8}


def _coverage(device: str) -> Figures:
    """Silhouettes of two meshes from all sides."""
    rng = np.random.default_rng(2)
    poses = np.tile(FRONT, (16, 1, 1))
    for one in poses:
        one[:3, :3] = random_rotation(rng)
    batch = MeshBatch([ELL.mesh, BOX.mesh], device)
    return {"masks": draw(batch, np.arange(16) % 2, poses, np.array([400.0, 400, 99, 99]), 200)}


def _refiner(device: str) -> Figures:
    """Poses that silhouettes and colours end in."""
    grid, truth = painted_block((0.1, 0.07, 0.05)), view_from((1, 0.5, 0.4), 0.8)
    block = model("block", box(0.2, 0.14, 0.1), field=grid)
    image, mask = photo(grid, truth, PICTURE)
    seen = observe_mask(mask, 1, PICTURE).with_image(image)
    of_ell = observe_mask(_label_image(), 1, CAMERA)
    refiner = Refiner([block, ELL], device, 16)
    start = turned(truth, (0.1, -0.08, 0.06), (0.01, -0.01, 0.02))
    other = turned(FRONT, (0.1, 0.05, -0.1), (0.01, 0.01, 0.03))
    hypotheses = [[Hypothesis("block", start)], [Hypothesis("ell", other)]]
    found = refiner.refine([[seen], [of_ell]], hypotheses, keep=1, restart=False)
    return {f"pose of {one[0].object}": one[0].reference_from_object for one in found}


def _pipeline(device: str) -> Figures:
    """The same from a frame, without starts."""
    pipeline = Pipeline({"ell": ELL, "box": BOX}, device=device)
    frame = Frame(_label_image(), CAMERA, {1: "ell", 2: "box"}, {1: [FRONT], 2: [BACK]})
    found = pipeline.process(frame, lambda *_: None)
    return {f"pose {one.label}": one.camera_from_object for one in found}


def _label_image() -> np.ndarray:
    masks = 2 * silhouette(BOX.mesh, BACK, CAMERA)
    masks[silhouette(ELL.mesh, FRONT, CAMERA) > 0] = 1
    return masks


def _about(one: Hypothesis, count: int) -> list[Hypothesis]:
    """Poses up to some degrees and two percent of the distance beside one."""
    rng = np.random.default_rng(count)
    truth = one.reference_from_object
    return [
        Hypothesis(
            one.object,
            turned(truth, 0.1 * rng.normal(size=3), 0.02 * truth[2, 3] * rng.normal(size=3)),
            one.prior,
            index=one.index,
        )
        for _ in range(count)
    ]


CASES: dict[str, Callable[[str], Figures]] = {
    "silhouette": _silhouette,
    "depth": _depth,
    "prior": _prior,
    "appearance": _fields(AppearanceTerm, exposure=False),
    "appearance with exposure": _fields(AppearanceTerm, exposure=True),
    "radiance": _fields(partial(RadianceTerm, rays=256), exposure=False),
    "radiance with exposure": _fields(partial(RadianceTerm, rays=256), exposure=True),
    "march, degree 0": _march(0),
    "march, degree 1": _march(1),
    "march, degree 2": _march(2),
    "training with masks": _training(masked=True),
    "training without masks": _training(masked=False),
    "z-buffer": _z_buffer,
    "scene view": _scene_view,
    "coverage": _coverage,
    "refiner": _refiner,
    "pipeline": _pipeline,
}
