# SPDX-License-Identifier: Apache-2.0
"""Outlines of simplified meshes must stay where they were, measured by a rasteriser of its own."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import trimesh
from conftest import mesh_of, open_plate, subdivided
from hypothesis import given
from hypothesis import strategies as st

from pose_refiner_ros.objects import simplify
from pose_refiner_ros.objects.mesh import Mesh, load_mesh
from pose_refiner_ros.objects.outline import EXACT, SUBPIXELS, OutlineError, Outlines, Rasterizer
from pose_refiner_ros.objects.simplify import (
    simplify_and_measure,
    simplify_for_silhouette,
    without_hidden_parts,
)


def combined(*shapes: trimesh.Trimesh) -> Mesh:
    return mesh_of(trimesh.util.concatenate(shapes))


def fail(text):
    raise AssertionError(text)


@given(seed=st.integers(0, 10**6))
def test_rasterizer_against_a_plain_inside_test(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-10, 50, (9, 2))
    faces = rng.permutation(9).reshape(3, 3)
    filled = Rasterizer(faces).covered(points, (40, 44))
    y, x = np.mgrid[:40, :44].astype(float)
    expected = np.zeros((40, 44), bool)
    for a, b, c in points[faces]:
        sides = [
            (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
            for p, q in ((a, b), (b, c), (c, a))
        ]
        expected |= (np.min(sides, axis=0) >= 0) | (np.max(sides, axis=0) <= 0)
    np.testing.assert_array_equal(filled, expected)


def test_rasterizer_leaves_no_gap_between_neighbours():
    plate = open_plate(16)
    points = plate.vertices[:, :2].astype(np.float64) @ [[21.3, 4.7], [-4.7, 21.3]] + 8
    filled = Rasterizer(plate.faces).covered(points, (48, 48))
    whole = Rasterizer(np.array([[0, 16, 288], [0, 288, 272]])).covered(points, (48, 48))
    np.testing.assert_array_equal(filled, whole)


def test_error_of_a_ball_that_is_too_large():
    """A ball grown by 1 %: the outline lies 0.01 · 128 px further out everywhere."""
    ball = trimesh.creation.icosphere(4)
    error = Outlines(mesh_of(ball), 256, 8).error_of(Mesh(ball.vertices * 1.01, ball.faces))
    assert error.mean_px == pytest.approx(1.28, abs=0.02)
    assert error.bias_px == pytest.approx(1.28, abs=0.02)
    assert error.max_px == pytest.approx(1.28, abs=0.5 / SUBPIXELS + 0.1)


def test_error_sees_a_missing_antenna():
    """Thin, so that hardly any area is missing; the largest distance tells."""
    body = trimesh.creation.box((1, 0.6, 0.4))
    antenna = trimesh.creation.box((0.004, 0.004, 0.2)).apply_translation((0, 0, 0.29))
    outlines = Outlines(combined(body, antenna), 256, 8)
    error = outlines.error_of(mesh_of(body))
    assert error.mean_px < 0.1
    assert error.max_px > 20
    assert not outlines.within(mesh_of(body), OutlineError(0.1, 0.1, 0.5))


def limit(error, **changes):
    """The error, a little larger; then with these changes."""
    larger = OutlineError(error.mean_px + 1e-9, abs(error.bias_px) + 1e-9, error.max_px + 0.02)
    return replace(larger, **changes)


def test_within_agrees_with_error_of():
    ball = trimesh.creation.icosphere(3)
    outlines = Outlines(mesh_of(ball), 256, 8)
    for size in (1.0, 1.002, 1.01):
        other = Mesh(ball.vertices * size, ball.faces)
        error = outlines.error_of(other)
        assert outlines.within(other, limit(error))
        if size > 1:
            assert not outlines.within(other, limit(error, mean_px=error.mean_px * 0.99))
            assert not outlines.within(other, limit(error, bias_px=error.bias_px * 0.99))
        if size > 1.005:
            assert not outlines.within(other, limit(error, max_px=error.max_px - 0.5))


def test_subdivided_box_becomes_twelve_faces():
    mesh = subdivided(trimesh.creation.box((1.0, 0.6, 0.4)), 4)
    simple, error = simplify_and_measure(mesh, warn=fail)
    assert len(mesh.faces) == 3072
    assert len(simple.faces) == 12
    assert simple.watertight
    assert error == EXACT


def test_curved_body_keeps_its_outline():
    mesh = mesh_of(trimesh.creation.torus(0.3, 0.1, 64, 64))
    simple, error = simplify_and_measure(mesh, warn=fail)
    assert len(simple.faces) < len(mesh.faces) / 2
    assert error.max_px <= 0.5
    assert error.mean_px <= 0.05
    # From other directions and with another resolution than the search used.
    again = Outlines(mesh, 300, 37).error_of(simple)
    assert again.max_px < 0.9
    assert again.mean_px < 0.1


def test_open_sheet_keeps_its_corners():
    sheet = open_plate(24)
    simple, error = simplify_and_measure(sheet, warn=fail)
    assert len(simple.faces) < len(sheet.faces) / 2
    assert error.max_px <= 0.5
    np.testing.assert_allclose(simple.bounds, sheet.bounds, atol=1e-3)


def test_open_shell_with_separate_wheels():
    body = trimesh.creation.box((2, 1, 0.5))
    for _ in range(3):
        body = body.subdivide()
    body.update_faces(body.triangles_center[:, 2] > -0.24)  # open underneath
    wheels = [
        trimesh.creation.cylinder(0.2, 0.1, sections=24).apply_translation((x, y, -0.35))
        for x in (-0.6, 0.6)
        for y in (-0.4, 0.4)
    ]
    mesh = combined(body, *wheels)
    simple, error = simplify_and_measure(mesh, warn=fail)
    assert len(simple.faces) < len(mesh.faces) / 2
    assert error.max_px <= 0.5
    assert simplify._parts(simple)[1] == 5


def test_hidden_parts_go():
    shell = trimesh.creation.box((1, 1, 1))
    engine = trimesh.creation.icosphere(3).apply_scale(0.2)
    handle = trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation((0.52, 0, 0))
    mesh = combined(shell, engine, handle)
    visible = without_hidden_parts(mesh)
    assert len(visible.faces) == 24
    np.testing.assert_allclose(visible.bounds, mesh.bounds)


def test_of_two_parts_that_hide_each_other_one_stays():
    box = trimesh.creation.box((1, 1, 1))
    mesh = combined(box, box.subdivide())  # the same surface twice
    visible = without_hidden_parts(mesh)
    assert len(visible.faces) == 48
    assert Outlines(mesh, 128, 6).error_of(visible) == EXACT


def test_part_seen_through_a_hole_stays():
    ring = trimesh.creation.annulus(0.3, 0.5, 0.2)
    ball = trimesh.creation.icosphere(2).apply_scale(0.1)
    mesh = combined(ring, ball)
    assert len(without_hidden_parts(mesh).faces) == len(mesh.faces)


def test_more_faces_than_allowed_are_said():
    said = []
    ball = mesh_of(trimesh.creation.icosphere(4))
    simple = simplify_for_silhouette(ball, max_faces=100, warn=said.append)
    assert len(simple.faces) > 100
    assert len(said) == 1
    assert f"needs {len(simple.faces)} faces" in said[0]
    assert "measured" in said[0]


def test_a_huge_mesh_is_simplified_and_that_is_said(monkeypatch):
    monkeypatch.setattr(simplify, "HUGE", 5000)
    said = []
    ball = mesh_of(trimesh.creation.icosphere(4))
    simple = simplify_for_silhouette(ball, warn=said.append)
    assert len(simple.faces) < 5000
    assert said[0].startswith(f"its 5,120 faces are simplified to {len(simple.faces):,}")
    assert len(said) == 1


@pytest.mark.slow
def test_half_a_million_faces():
    around, across = np.meshgrid(*[np.arange(500)] * 2, indexing="ij")
    a, b = np.pi * around / 250, np.pi * across / 250
    ring = 1 + 0.3 * np.cos(b)
    points = np.stack([ring * np.cos(a), ring * np.sin(a), 0.3 * np.sin(b)], axis=-1)
    corner = (around * 500 + across).ravel()
    ahead = ((around + 1) % 500 * 500 + across).ravel()
    both = ((around + 1) % 500 * 500 + (across + 1) % 500).ravel()
    beside = (around * 500 + (across + 1) % 500).ravel()
    faces = np.concatenate(
        [np.stack([corner, ahead, both], axis=1), np.stack([corner, both, beside], axis=1)]
    )
    said = []
    simple = simplify_for_silhouette(Mesh(points.reshape(-1, 3), faces), warn=said.append)
    assert len(simple.faces) < 5000
    assert "its 500,000 faces are simplified to" in said[0]


def test_larger_tolerance_gives_fewer_faces():
    ball = mesh_of(trimesh.creation.icosphere(4))
    counts = [len(simplify_for_silhouette(ball, tolerance_px=t).faces) for t in (0.25, 1.0)]
    assert counts[1] < 0.6 * counts[0]


def test_small_meshes_are_left_alone():
    box = mesh_of(trimesh.creation.box())
    assert simplify_for_silhouette(box) is box


def test_result_is_kept_on_disk(monkeypatch):
    mesh = subdivided(trimesh.creation.box(), 2)
    first = simplify_for_silhouette(mesh)
    monkeypatch.setattr(simplify, "_simplify", lambda *_: fail("built a second time"))
    again = simplify_for_silhouette(mesh)
    assert again.content_hash == first.content_hash
    with pytest.raises(AssertionError, match="second time"):
        simplify_for_silhouette(mesh, tolerance_px=0.4)


def test_unit_does_not_matter():
    """The collapse works on a mesh scaled to size 1: metres or kilometres give the same."""
    shape = trimesh.creation.torus(0.3, 0.1, 32, 32)
    counts = [
        len(simplify_for_silhouette(Mesh(shape.vertices * s + 3 * s, shape.faces)).faces)
        for s in (0.01, 1.0)
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


@pytest.mark.data
@pytest.mark.parametrize("name", ["prius_hybrid", "suv"])
def test_real_vehicles(example_data, name):
    mesh = load_mesh(example_data(f"vehicles/{name}.obj"), "m", warn=fail)
    simple, error = simplify_and_measure(mesh, warn=fail)
    assert len(simple.faces) < len(mesh.faces)
    assert error.max_px <= 0.5
    assert error.mean_px <= 0.05


@pytest.mark.data
def test_real_bottle(example_data):
    mesh = load_mesh(example_data("bop/schauma/models/obj_000001.ply"), "mm", warn=fail)
    simple, error = simplify_and_measure(mesh, warn=fail)
    assert len(simple.faces) < 2000
    assert error.max_px <= 0.5
    # The same by OpenCV's own filling, without what is shared with the search.
    turn, _ = cv2.Rodrigues(np.array([0.4, -0.9, 0.2]))
    masks = []
    for one in (mesh, simple):
        pixels = one.vertices.astype(np.float64) @ turn.T[:, :2] * (1024 / mesh.diameter) + 600
        mask = np.zeros((1200, 1200), np.uint8)
        for face in one.faces:
            cv2.fillConvexPoly(mask, np.round(pixels[face] * 16).astype(np.int32), 1, shift=4)
        masks.append(mask)
    outline = cv2.countNonZero(cv2.Canny(masks[0] * 255, 50, 150))
    assert cv2.countNonZero(cv2.bitwise_xor(*masks)) / outline / 4 < 0.1
