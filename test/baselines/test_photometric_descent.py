# SPDX-License-Identifier: Apache-2.0
"""The paper's descent: poses come back, turned about the object, by the paper's rate."""

import numpy as np
import pytest
import torch
from analytic_field import AnalyticField, pinhole, view_from
from scipy.linalg import logm
from shapes import angle_deg

from pose_refiner_ros.baselines import se3
from pose_refiner_ros.baselines.photometric_descent import (
    PhotometricDescent,
    PhotometricDescentError,
    _moved,
)
from pose_refiner_ros.fields.picture import picture_over
from pose_refiner_ros.refinement.ray_sampling import pixels_to_draw

SIZE = (40, 40)
K = pinhole(SIZE[0])
TRUTH = view_from((1.0, 0.5, 0.4))


@pytest.fixture(scope="module")
def field() -> AnalyticField:
    return AnalyticField(samples=32)


@pytest.fixture(scope="module")
def photo(field) -> np.ndarray:
    return picture_over(field, K, TRUTH, SIZE)


def starts(count: int, degrees: float, metres: float, seed: int = 0) -> np.ndarray:
    """The truth, turned and shifted in the object's frame."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        axis = rng.normal(size=3)
        twist = [
            *rng.uniform(-metres, metres, 3),
            *np.radians(degrees) * axis / np.linalg.norm(axis),
        ]
        result.append(TRUTH @ se3.exp_se3(torch.tensor(twist)).numpy())
    return np.stack(result)


def errors(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Degrees, and metres between the cameras' positions."""
    centres = [-p[:3, :3].T @ p[:3, 3] for p in (TRUTH, *poses)]
    angles = [angle_deg(p[:3, :3], TRUTH[:3, :3]) for p in poses]
    return np.array(angles), np.linalg.norm(centres[1:] - centres[0], axis=1)


def test_a_known_offset_is_recovered(field, photo):
    start = starts(2, 12.0, 0.08)
    descent = PhotometricDescent(field, "random", rays=160)
    result = descent.run(photo, K, start, steps=120, record_every=50)

    before, after = errors(start), errors(result.camera_from_object)
    assert (before[0] > 11.9).all()
    assert (after[0] < 0.5).all() and (after[1] < 0.02).all()
    assert result.at_step.tolist() == [0, 50, 100, 120]
    assert result.history.shape == (4, 2, 4, 4) and result.losses.shape == (120, 2)
    assert np.array_equal(result.history[0], start)
    assert np.array_equal(result.history[-1], result.camera_from_object)
    assert (np.diff(result.seconds) > 0).all()
    assert (result.losses[-10:].mean(axis=0) < 0.1 * result.losses[:3].mean(axis=0)).all()


@pytest.mark.parametrize("sampling", ["interest_point", "interest_region"])
def test_rays_from_where_something_is_suffice(sampling):
    field = AnalyticField(samples=32, chequers=6.0, density=100.0)
    size, intrinsics = (64, 64), pinhole(64, 2.2)
    photo = picture_over(field, intrinsics, TRUTH, size)
    assert len(pixels_to_draw(photo, sampling)[0]) >= 20
    descent = PhotometricDescent(field, sampling, rays=160)
    result = descent.run(photo, intrinsics, starts(2, 5.0, 0.03), steps=100)
    angles, metres = errors(result.camera_from_object)
    assert (angles < 0.5).all() and (metres < 0.02).all()


def test_poses_stay_rigid(field, photo):
    result = PhotometricDescent(field, rays=64, rate=0.2).run(
        photo, K, starts(2, 40, 0.2), steps=20
    )
    R = result.camera_from_object[:, :3, :3]
    assert np.allclose(R @ R.transpose(0, 2, 1), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.det(R), 1.0)


def test_the_motion_is_the_papers_about_the_objects_origin():
    """T = exp([S]θ) T0 by equations 3 and 4, T from the camera to the model."""
    axis, v, theta = np.array([2.0, -1.0, 2.0]) / 3.0, np.array([0.3, 0.1, -0.2]), 0.7
    hat = se3.hat(torch.tensor(axis)).numpy()
    exponential = np.eye(4)
    exponential[:3, :3] += np.sin(theta) * hat + (1 - np.cos(theta)) * hat @ hat
    K = np.eye(3) * theta + (1 - np.cos(theta)) * hat + (theta - np.sin(theta)) * hat @ hat
    exponential[:3, 3] = K @ v
    expected = np.linalg.inv(exponential @ np.linalg.inv(TRUTH))

    twist = torch.tensor(np.concatenate((v, axis)) * theta)[None]
    assert np.allclose(_moved(torch.tensor(TRUTH)[None], twist)[0], expected)

    turn = torch.tensor([[0.0, 0, 0, *(theta * axis)]])
    turned = _moved(torch.tensor(TRUTH)[None], turn)[0].numpy()
    assert np.allclose(turned[:3, 3], TRUTH[:3, 3])  # the object's origin stays where it is seen


def test_the_first_step_is_the_rate_and_the_rate_falls(field, photo):
    """Adam's first step is the rate in each of the six numbers."""
    start = starts(1, 12.0, 0.08)
    for rate, unit in ((0.01, 1.0), (0.002, 1.0), (0.01, 0.3)):
        descent = PhotometricDescent(field, rays=64, rate=rate, unit=unit)
        result = descent.run(photo, K, start, steps=1)
        moved = np.linalg.inv(result.camera_from_object[0]) @ start[0]
        log = np.abs(logm(moved))
        twist = [*log[:3, 3], log[2, 1], log[0, 2], log[1, 0]]
        assert twist == pytest.approx([rate * unit] * 3 + [rate] * 3, rel=1e-2)


def test_poses_do_not_reach_each_other(field, photo):
    class Spoiled(AnalyticField):
        """NaN for rays that come from far away."""

        def render(self, origins, directions):
            seen = super().render(origins, directions)
            seen.colour[origins.detach().norm(dim=1) > 4.0] = torch.nan
            return seen

    start = starts(2, 8.0, 0.03)
    far = start.copy()
    far[1, 2, 3] += 3.0
    found = PhotometricDescent(Spoiled(samples=32), rays=64).run(photo, K, far, steps=15)
    assert np.isfinite(found.camera_from_object).all()
    assert np.allclose(found.camera_from_object[1], far[1], atol=1e-4)
    assert np.isnan(found.losses[:, 1]).all() and np.isfinite(found.losses[:, 0]).all()
    both = PhotometricDescent(field, rays=64).run(photo, K, start, steps=15)
    assert np.allclose(both.camera_from_object[0], found.camera_from_object[0], atol=1e-6)


def test_runs_are_repeatable_and_seeds_differ(field, photo):
    runs = [
        PhotometricDescent(field, rays=64, seed=seed).run(photo, K, starts(1, 8, 0.03), steps=5)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(runs[0].camera_from_object, runs[1].camera_from_object)
    assert not np.array_equal(runs[0].camera_from_object, runs[2].camera_from_object)


def test_in_brighter_light_chroma_finds_the_pose():
    """Section VIII: without Y, brightness does not matter."""
    field = AnalyticField(background=(0.2, 0.2, 0.2), samples=32)
    bright = picture_over(field, K, TRUTH, SIZE) + 0.1
    start = starts(2, 8.0, 0.04)
    found = {}
    for loss in ("rgb", "uv"):
        descent = PhotometricDescent(field, "random", rays=160, loss=loss)
        found[loss] = errors(descent.run(bright, K, start, steps=120).camera_from_object)
    assert (found["uv"][0] < 0.5).all() and (found["uv"][1] < 0.02).all()
    assert (found["rgb"][1] > 0.05).any()


def test_the_background_is_the_callers_or_the_fields(photo):
    unknown = AnalyticField(background=None)
    with pytest.raises(PhotometricDescentError, match="give the background's colour"):
        PhotometricDescent(unknown)
    given = PhotometricDescent(unknown, background=(1, 1, 1), rays=64)
    own = PhotometricDescent(AnalyticField(), rays=64)
    poses = [d.run(photo, K, starts(1, 5, 0.02), steps=3).camera_from_object for d in (given, own)]
    assert np.array_equal(*poses)


def test_hidden_pixels_do_not_pull(field, photo):
    weight = np.ones(SIZE)
    weight[:, :18] = 0
    hidden = photo.copy()
    hidden[:, :18] = np.nan
    start = starts(1, 8.0, 0.03)
    result = PhotometricDescent(field, "random", rays=160).run(
        hidden, K, start, steps=120, weight=weight
    )
    angles, metres = errors(result.camera_from_object)
    assert angles[0] < 1.5 and metres[0] < 0.08


def test_what_cannot_be_refined_is_refused(field, photo):
    away = TRUTH.copy()
    away[2, 3] = -2.5
    cases = [
        ({"camera_from_object": away[None]}, "no camera to start from looks at the field"),
        ({"camera_from_object": TRUTH}, r"shape \(4, 4\); give \(B, 4, 4\)"),
        ({"camera_from_object": TRUTH[None] * np.nan}, "NaN or infinite"),
        ({"intrinsics": np.eye(2)}, r"give \(3, 3\)"),
        ({"intrinsics": np.diag([0.0, 1, 1])}, "positive focal lengths"),
        ({"steps": -1}, "steps is -1"),
    ]
    arguments = {"image": photo, "intrinsics": K, "camera_from_object": TRUTH[None]}
    for change, message in cases:
        with pytest.raises(PhotometricDescentError, match=message):
            PhotometricDescent(field, rays=16).run(**{**arguments, **change})
    for change, message in (
        ({"loss": "l1"}, "loss is 'l1'"),
        ({"rays": 0}, "rays is 0"),
        ({"rate": float("nan")}, "rate nan"),
        ({"background": (1, 1)}, "give"),
    ):
        with pytest.raises(PhotometricDescentError, match=message):
            PhotometricDescent(field, **change)
