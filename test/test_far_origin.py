# SPDX-License-Identifier: Apache-2.0
"""Meshes whose origin lies far from the object: an assembly's, a plant's, a map's coordinates."""

import numpy as np
import pytest
from shapes import angle_deg, ell, model, pinhole_camera, pose, silhouette, turned

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.geometry.pose import about, about_point
from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.ros.markers import ObjectMarkers
from pose_refiner_ros.tracking.identity import IdentityTracker, observe

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
NEAR = ell()
FAR = [(0, 0, 0), (5, -3, 2), (-1000, 400, 30), (500_000, 5_400_000, 90)]
MIDDLE = NEAR.bounds.mean(axis=0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path))


def far_model(offset):
    return model("ell", Mesh(NEAR.vertices + np.asarray(offset, float), NEAR.faces))


@pytest.mark.parametrize("offset", FAR)
@pytest.mark.parametrize("started", [False, True])
def test_pose_is_the_same_wherever_the_origin_is(offset, started):
    shape = far_model(offset)
    pipeline = Pipeline({"ell": shape}, device="cpu")
    start = turned(TRUTH, (0.1, -0.1, 0.08), (0.005, 0.005, 0.02))
    # the same place of the object, told of another origin: it may well be behind the camera
    starts = [about_point(start, -np.array(offset, float))] if started else []
    mask = silhouette(NEAR, TRUTH, CAMERA)
    reports = []
    (found,) = pipeline.process(
        Frame(mask, CAMERA, {1: "ell"}, {1: starts}), lambda *text: reports.append(text)
    )
    assert reports == []
    assert found.quality == "good"
    assert angle_deg(found.camera_from_object, TRUTH) < 0.2
    of_object = about_point(found.camera_from_object, np.array(offset) + MIDDLE)
    np.testing.assert_allclose(of_object[:3, 3], about_point(TRUTH, MIDDLE)[:3, 3], atol=1e-3)
    # the covariance is about the origin, far as it is: told of the middle it is that of a near one
    arm = of_object[:3, 3] - found.camera_from_object[:3, 3]
    sigma = np.sqrt(np.diag(about(arm, found.covariance)))
    assert sigma[:3].max() < 0.01 and sigma[3:].max() < np.radians(3.0)


def test_mesh_file_in_map_coordinates(tmp_path):
    """`frame` is applied before anything is rounded."""
    offset = np.array(FAR[-1], float)
    lines = ["v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in NEAR.vertices + offset]
    lines += ["f {} {} {}".format(*face) for face in NEAR.faces + 1]
    (tmp_path / "ell.obj").write_text("\n".join(lines) + "\n")
    entry = "objects:\n  ell: {mesh: ell.obj, unit: m%s}\n"
    for frame, expected in (("", offset + MIDDLE), (", frame: {origin: center}", np.zeros(3))):
        (tmp_path / "objects.yaml").write_text(entry % frame)
        loaded = ObjectLibrary.load(tmp_path / "objects.yaml")["ell"]
        np.testing.assert_allclose(loaded.box_center, expected, atol=1e-5)
        np.testing.assert_allclose(loaded.box_size, np.ptp(NEAR.bounds, axis=0), atol=1e-5)
        assert loaded.diameter == pytest.approx(NEAR.diameter, abs=1e-5)


def test_objects_that_turn_are_followed_about_their_middle():
    """A quarter of a second ahead, not swung around a point a kilometre off."""
    shape = far_model(FAR[2])
    tracker = IdentityTracker({"ell": shape})
    mask = silhouette(NEAR, TRUTH, CAMERA)
    for k in range(4):
        seen = turned(TRUTH, (0, 0, 0.02 * k))
        tracker.begin_frame(0.1 * k, observe(mask, {1: "ell"}))
        tracker.end_frame({1: about_point(seen, -np.array(FAR[2], float))})
    track = tracker.begin_frame(0.4, observe(mask, {1: "ell"}))[1]
    (expected,) = track.initial_poses(0.4)
    middle = about_point(expected, shape.box_center)[:3, 3]
    at_last = about_point(turned(TRUTH, (0, 0, 0.06)), MIDDLE)[:3, 3]
    assert np.linalg.norm(middle - at_last) < 0.005


def test_triangles_for_rviz_are_told_of_the_middle():
    from std_msgs.msg import Header

    shape = far_model(FAR[-1])
    poses = {1: ("ell", about_point(TRUTH, -np.array(FAR[-1], float)))}
    array = ObjectMarkers({"ell": shape}).update(Header(), poses, {1: 1}, "triangles", 1.0)
    marker = array.markers[0]
    assert max(abs(p.x) + abs(p.y) + abs(p.z) for p in marker.points) < 1.0
    assert abs(marker.pose.position.z - about_point(TRUTH, MIDDLE)[2, 3]) < 1e-5
