# SPDX-License-Identifier: Apache-2.0
"""Poses from photos through a radiance field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from analytic_field import AnalyticField, as_grid, pinhole, view_from
from scipy.spatial.transform import Rotation

from pose_refiner_ros.fields.coarser import coarser
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.rays import camera_rays, image_pixels
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.evidence import EvidenceError, gather_evidence
from pose_refiner_ros.refinement.field_refiner import FieldRefiner, FieldSettings
from pose_refiner_ros.refinement.photo_evidence import masked_photo, whole_photo
from pose_refiner_ros.refinement.refiner import Refiner

SIZE = 160
CAMERA = Camera(pinhole(SIZE), (SIZE, SIZE))
WHITE = (1.0, 1.0, 1.0)
GREY = (0.5, 0.5, 0.5)
POSE = view_from((1.0, 0.4, 0.5))


@pytest.fixture(scope="module")
def field():
    return AnalyticField(density=40.0, chequers=6.0)


@pytest.fixture(scope="module")
def grid(field):
    return as_grid(field, count=96)


@pytest.fixture(scope="module")
def refiner(grid):
    return FieldRefiner({"blobs": grid}, FieldSettings(rays=512))


def photo(grid, pose, background=WHITE) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 and the opacity (H, W)."""
    origins, directions = camera_rays(CAMERA.intrinsics, pose, image_pixels((SIZE, SIZE)))
    seen = grid.render(origins.float(), directions.float())
    colour = seen.over(background).reshape(SIZE, SIZE, 3).numpy()
    return (255.0 * colour.clip(0, 1)).round().astype(np.uint8), seen.opacity.reshape(
        SIZE, SIZE
    ).numpy()


def moved(pose, degrees, shift, seed) -> np.ndarray:
    generator = np.random.default_rng(seed)
    axis = generator.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
    other = pose.copy()
    other[:3, :3] = turn @ pose[:3, :3]
    other[:3, 3] += generator.uniform(-shift, shift, 3)
    return other


def errors(found, pose) -> tuple[float, float]:
    """Degrees and metres."""
    turn = Rotation.from_matrix(found[:3, :3].T @ pose[:3, :3]).magnitude()
    return np.degrees(turn), float(np.linalg.norm(found[:3, 3] - pose[:3, 3]))


def test_colours_alone_bring_poses_back(refiner, grid):
    image, _ = photo(grid, POSE)
    evidence = whole_photo(image, CAMERA, WHITE)
    for seed in range(4):
        start = moved(POSE, 30.0, 0.08, seed)
        (found,) = refiner.refine([evidence], ["blobs"], [[start]])
        assert max(errors(found[0].camera_from_object, POSE)) < 0.3, seed
        assert found[0].rms < 0.02


def test_of_many_hypotheses_the_right_one_wins(refiner, grid):
    image, _ = photo(grid, POSE)
    hypotheses = []
    for k in range(12):
        other = POSE.copy()
        other[:3, :3] = POSE[:3, :3] @ Rotation.from_rotvec([0, 0, 0.2 + k * np.pi / 6]).as_matrix()
        hypotheses.append(other)
    (found,) = refiner.refine([whole_photo(image, CAMERA, WHITE)], ["blobs"], [hypotheses])
    assert max(errors(found[0].camera_from_object, POSE)) < 0.3
    assert [r.cost for r in found] == sorted(r.cost for r in found)


def test_objects_of_one_call_do_not_disturb_each_other(refiner, grid):
    other = view_from((0.2, -1.0, 0.4))
    photos = [whole_photo(photo(grid, pose)[0], CAMERA, WHITE) for pose in (POSE, other)]
    starts = [[moved(POSE, 15.0, 0.05, 1)], [moved(other, 15.0, 0.05, 2)]]
    both = refiner.refine(photos, ["blobs", "blobs"], starts)
    for i, pose in enumerate((POSE, other)):
        alone = refiner.refine(photos[i : i + 1], ["blobs"], starts[i : i + 1])[0][0]
        assert max(errors(both[i][0].camera_from_object, pose)) < 0.3
        assert max(errors(both[i][0].camera_from_object, alone.camera_from_object)) < 0.02


def test_colours_that_end_far_off_are_tried_again(refiner, grid):
    evidence = whole_photo(photo(grid, POSE)[0], CAMERA, WHITE)
    start = [[moved(POSE, 125.0, 0.05, 5)]]
    (once,) = refiner.refine([evidence], ["blobs"], start, restart=False)
    assert errors(once[0].camera_from_object, POSE)[0] > 90.0
    (again,) = refiner.refine([evidence], ["blobs"], start)
    assert max(errors(again[0].camera_from_object, POSE)) < 0.3


def test_no_hypothesis_no_result(refiner, grid):
    evidence = whole_photo(photo(grid, POSE)[0], CAMERA, WHITE)
    assert refiner.refine([evidence, evidence], ["blobs", "blobs"], [[], [POSE]])[0] == []


def test_a_track_takes_few_iterations(refiner, grid):
    evidence = whole_photo(photo(grid, POSE)[0], CAMERA, WHITE)
    start = moved(POSE, 2.0, 0.01, 0)
    (found,) = refiner.refine([evidence], ["blobs"], [[start]], tracked=True)
    assert max(errors(found[0].camera_from_object, POSE)) < 0.2
    assert found[0].iterations <= 14


@pytest.fixture(scope="module")
def ball(grid):
    """A ball of radius 0.5 whose colours vary with place."""
    axis = np.linspace(-0.6, 0.6, 64)
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    radius = np.linalg.norm(place, axis=-1)
    occupied = radius < 0.56
    values = np.zeros((np.count_nonzero(occupied), 4), np.float32)
    values[:, 0] = 2000.0 * (0.5 - radius[occupied]).clip(-0.02, 0.1)
    values[:, 1:] = 0.5 + 0.5 * np.sin(6.0 * place[occupied] + np.array([0.0, 1.0, 2.0]))
    return GridField.from_nodes(occupied, values, np.full(3, -0.6), axis[1] - axis[0])


def masked_ball(ball):
    """Evidence of the ball in front of noise."""
    noise = np.random.default_rng(0).uniform(size=(SIZE * SIZE, 3))
    image, opacity = photo(ball, POSE, torch.as_tensor(noise))
    seen = gather_evidence((opacity > 0.5).astype(np.uint8), 1, CAMERA)
    return replace(seen, photo=seen.crop.cut_photo(image))


def test_a_mask_stands_in_for_a_known_background(ball):
    """A ball's silhouette says nothing of how it is turned; its colours do."""
    refiner = FieldRefiner({"ball": ball}, FieldSettings(rays=512))
    start = moved(POSE, 25.0, 0.06, 3)
    (found,) = refiner.refine([masked_photo(masked_ball(ball))], ["ball"], [[start]])
    turn, shift = errors(found[0].camera_from_object, POSE)
    assert turn < 0.2
    assert shift < 0.003 * POSE[2, 3]


def test_no_ray_goes_to_the_border_of_a_mask(ball):
    """Pixels there show partly what is behind the object."""
    seen = masked_photo(masked_ball(ball)).cropped()
    inside = seen.opacity > 0.5
    for sampling in ("random", "interest_region"):
        x, y = seen.sampler(sampling).draw(500, np.random.default_rng(0)).T
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            beside = inside[
                (y + dy).clip(0, inside.shape[0] - 1), (x + dx).clip(0, inside.shape[1] - 1)
            ]
            assert (beside == inside[y, x]).all()
    sliver = replace(seen, mixed=np.ones(seen.size, bool))
    assert sliver.sampler("random").draw(5, np.random.default_rng(0)).shape == (5, 2)


def test_silhouettes_pull_as_well(ball):
    # a mesh somewhat too large: the outline asks for a place farther away
    shape = trimesh.creation.icosphere(subdivisions=3, radius=0.52)
    mesh = Mesh(np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int32))
    outlines = Refiner([ObjectModel("ball", mesh)])
    seen = masked_ball(ball)
    start = moved(POSE, 8.0, 0.04, 4)
    distances = []
    for given in (None, outlines):
        refiner = FieldRefiner({"ball": ball}, FieldSettings(rays=512), outlines=given)
        (found,) = refiner.refine([masked_photo(seen)], ["ball"], [[start]], masks=[seen])
        assert errors(found[0].camera_from_object, POSE)[0] < 1.0
        distances.append(found[0].camera_from_object[2, 3])
    assert distances[0] + 0.01 < distances[1] < POSE[2, 3] * 0.52 / 0.5


def test_outlines_pull_whatever_the_other_objects_are(ball):
    """Also beside one whose origin is far off, and with more objects than go into a batch."""
    shape = trimesh.creation.icosphere(subdivisions=3, radius=0.52)
    mesh = Mesh(np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int32))
    offset = np.array([4.0, 0.0, 0.0])
    far_mesh = Mesh(mesh.vertices + offset.astype(np.float32), mesh.faces)
    outlines = Refiner([ObjectModel("ball", mesh), ObjectModel("far", far_mesh)])
    fields = {"ball": ball, "far": ball.shifted(-offset)}
    seen, start = masked_ball(ball), moved(POSE, 8.0, 0.04, 4)
    far_start = start.copy()
    far_start[:3, 3] -= start[:3, :3] @ offset
    found = {}
    for capacity, names in ((64, ["ball"]), (64, ["ball", "far"]), (1, ["ball", "ball"])):
        refiner = FieldRefiner(
            fields, FieldSettings(rays=512), capacity=capacity, outlines=outlines
        )
        starts = [[start if name == "ball" else far_start] for name in names]
        count = len(names)
        all_found = refiner.refine(
            [masked_photo(seen)] * count, names, starts, masks=[seen] * count
        )
        found[(capacity, *names)] = [one[0].camera_from_object[2, 3] for one in all_found]
    (alone,) = found[64, "ball"]
    assert alone > POSE[2, 3] + 0.01
    assert found[64, "ball", "far"][0] == pytest.approx(alone, abs=1e-3)
    assert found[1, "ball", "ball"] == pytest.approx([alone, alone], abs=1e-3)


def test_a_scene_far_from_its_origin_is_the_same_scene(refiner, grid):
    offset = np.array([40.0, -30.0, 5.0])
    far = grid.shifted(-offset)
    pose, start = POSE.copy(), moved(POSE, 10.0, 0.03, 5)
    for transform in (pose, start):
        transform[:3, 3] -= transform[:3, :3] @ offset
    image, _ = photo(grid, POSE)
    evidence = whole_photo(image, CAMERA, WHITE)
    (found,) = FieldRefiner({"scene": far}, FieldSettings(rays=512)).refine(
        [evidence], ["scene"], [[start]]
    )
    near_origin = found[0].camera_from_object.copy()
    near_origin[:3, 3] += near_origin[:3, :3] @ offset
    assert max(errors(near_origin, POSE)) < 0.3
    # its position is as uncertain as 50 m times the angle, along with it
    sigma = np.sqrt(np.diag(found[0].covariance))
    assert sigma[:3].max() > 10.0 * sigma[3:].min()


def test_the_covariance_is_what_noise_makes_of_poses(refiner, grid):
    """The mean squared Mahalanobis distance is 6 for a covariance that is right."""
    clean = photo(grid, POSE, GREY)[0].astype(np.float32) / 255.0
    generator = np.random.default_rng(7)
    distances = []
    for _ in range(30):
        noisy = clean + generator.normal(scale=0.05, size=clean.shape)
        evidence = whole_photo(noisy.clip(0, 1).astype(np.float32), CAMERA, GREY)
        (found,) = refiner.refine([evidence], ["blobs"], [[POSE]], restart=False)
        pose, covariance = found[0].camera_from_object, found[0].covariance
        w = Rotation.from_matrix(pose[:3, :3] @ POSE[:3, :3].T).as_rotvec()
        away = np.concatenate([pose[:3, 3] - POSE[:3, 3], w])
        distances.append(away @ np.linalg.solve(covariance, away))
    assert 3.0 < np.mean(distances) < 12.0


def test_broken_pixels_are_left_out(refiner, grid):
    image = photo(grid, POSE)[0].astype(np.float32) / 255.0
    image[40:70, 60:90] = np.nan
    (found,) = refiner.refine(
        [whole_photo(image, CAMERA, WHITE)], ["blobs"], [[moved(POSE, 10.0, 0.04, 6)]]
    )
    assert max(errors(found[0].camera_from_object, POSE)) < 0.3


@pytest.mark.parametrize(
    "image, error, words",
    [
        (np.zeros((SIZE, SIZE + 1, 3), np.uint8), CameraError, "161"),
        (np.zeros((SIZE, SIZE), np.uint8), EvidenceError, "RGB"),
        (np.full((SIZE, SIZE, 3), np.nan, np.float32), EvidenceError, "NaN"),
    ],
    ids=["size", "grey", "nan"],
)
def test_photos_that_are_none_are_named(image, error, words):
    with pytest.raises(error, match=words):
        whole_photo(image, CAMERA, WHITE)


def test_a_mask_without_a_photo_is_told():
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[40:90, 50:100] = 1
    with pytest.raises(EvidenceError, match="photo"):
        masked_photo(gather_evidence(labels, 1, CAMERA))


def test_coarser_fields_look_alike(grid):
    origins, directions = camera_rays(CAMERA.intrinsics, POSE, image_pixels((SIZE, SIZE)))
    sharp = grid.render(origins.float(), directions.float()).over(WHITE).numpy()
    rough = coarser(grid, 3).render(origins.float(), directions.float()).over(WHITE).numpy()
    assert coarser(grid, 1) is grid
    assert len(coarser(grid, 3).values) < 0.15 * len(grid.values)
    assert np.sqrt(((sharp - rough) ** 2).mean()) < 0.06
    assert abs(sharp.mean() - rough.mean()) < 0.01
