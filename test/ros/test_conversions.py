# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from geometry_msgs.msg import Pose
from hypothesis import given
from hypothesis import strategies as st
from ros_messages import camera_info, header
from scipy.spatial.transform import Rotation

from pose_refiner_ros.geometry.pose import in_axes
from pose_refiner_ros.ros import compat, conversions
from pose_refiner_ros.ros.bad_input import BadInput

angles = st.floats(-10, 10)
numbers = st.floats(-1e3, 1e3)


@given(st.tuples(angles, angles, angles), st.tuples(numbers, numbers, numbers))
def test_pose_and_back(turn, position):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    matrix[:3, 3] = position
    pose = conversions.pose_from_matrix(matrix)
    assert type(pose.position.x) is float and type(pose.orientation.w) is float
    np.testing.assert_allclose(conversions.matrix_from_pose(pose), matrix, atol=1e-9)


def test_poses_that_are_none():
    pose = Pose()
    pose.orientation.w = 0.0
    with pytest.raises(ValueError, match="no unit quaternion"):
        conversions.matrix_from_pose(pose)
    pose = Pose()
    pose.position.x = float("nan")
    with pytest.raises(ValueError, match="position"):
        conversions.matrix_from_pose(pose)


def test_camera_of_a_full_image():
    info = camera_info((120, 160))
    info.d = [0.1, -0.05, 0.001, 0.002, 0.0]
    camera = conversions.camera_from_info(info, (120, 160))
    np.testing.assert_allclose(camera.intrinsics, np.reshape(info.k, (3, 3)))
    assert camera.size == (120, 160)
    assert camera.distortion_model == "plumb_bob"
    np.testing.assert_allclose(camera.distortion, info.d)


def test_camera_of_a_binned_region():
    info = camera_info((480, 640))
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 40, 320, 240
    info.binning_x = info.binning_y = 2
    camera = conversions.camera_from_info(info, (120, 160))
    assert camera.size == (120, 160)
    assert camera.intrinsics[0, 0] == pytest.approx(info.k[0] / 2)


def test_camera_of_a_rectified_image_uses_p():
    info = camera_info()
    info.d = [0.1, -0.05, 0.001, 0.002, 0.0]
    info.p = [180.0, 0.0, 70.0, -9.0, 0.0, 180.0, 50.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    camera = conversions.camera_from_info(info, (120, 160), rectified=True)
    assert camera.distortion_model == "none"
    assert camera.intrinsics[0, 2] == 70.0


def test_size_left_to_the_image():
    info = camera_info()
    info.width = info.height = 0
    assert conversions.camera_from_info(info, (120, 160)).size == (120, 160)


NAN = float("nan")


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"k": [0.0] * 9}, "camera_info", "all zero.*not calibrated"),
        ({"k": [NAN] * 9}, "camera_info", "nan"),
        ({"k": [NAN, 0.0, 80.0, 0.0, 200.0, 60.0, 0.0, 0.0, 1.0]}, "camera_info", "nan"),
        ({"d": [NAN] * 5}, "camera_info", "nan"),
        ({"d": [0.1, 0.2]}, "camera_info", "2"),
        ({"distortion_model": "wobbly"}, "camera_info", "wobbly"),
        ({"width": 640, "height": 480}, "masks size", "160x120.*640x480"),
        ({"binning_x": 2, "binning_y": 2}, "masks size", "160x120.*80x60"),
    ],
)
def test_bad_camera_info_is_explained(change, kind, words):
    info = camera_info()
    for name, value in change.items():
        setattr(info, name, value)
    with pytest.raises(BadInput, match=f"(?i){words}") as error:
        conversions.camera_from_info(info, (120, 160))
    assert error.value.kind == kind


def result(**changes):
    values = {
        "label": 1,
        "name": "mug",
        "camera_from_object": np.eye(4),
        "covariance": np.arange(36.0).reshape(6, 6),
        "score": np.float32(0.75),
        "belief": 0.75,
        "alternatives": [],
    }
    return SimpleNamespace(**{**values, **changes})


def test_detection_of_a_pose():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("x", 90, degrees=True).as_matrix()
    matrix[:3, 3] = (0.1, 0.2, 2.0)
    model = SimpleNamespace(box_center=np.array([0, 0, 0.5]), box_size=np.array([0.1, 0.2, 1.0]))
    where = header(stamp=5 * 10**9 + 7)
    message = conversions.detection_from_pose(result(camera_from_object=matrix), model, 12, where)
    assert message.header == where
    assert message.id == "12"
    assert len(message.results) == 1
    hypothesis = message.results[0]
    assert hypothesis.hypothesis.class_id == "mug"
    assert hypothesis.hypothesis.score == 0.75
    np.testing.assert_allclose(
        conversions.matrix_from_pose(hypothesis.pose.pose), matrix, atol=1e-12
    )
    np.testing.assert_array_equal(hypothesis.pose.covariance, np.arange(36.0))  # row-major
    # The object's z points to the camera's -y, so its box is centred half a metre that way.
    center = message.bbox.center.position
    np.testing.assert_allclose([center.x, center.y, center.z], [0.1, -0.3, 2.0], atol=1e-12)
    assert (message.bbox.size.x, message.bbox.size.z) == (0.1, 1.0)


def test_alternatives_follow_on_demand():
    other = result(score=0.5, covariance=np.eye(6))
    model = SimpleNamespace(box_center=np.zeros(3), box_size=np.ones(3))
    pose = result(alternatives=[other, result(score=0.005, belief=0.005)])
    args = (pose, model, 1, header())
    assert len(conversions.detection_from_pose(*args).results) == 1
    results = conversions.detection_from_pose(*args, with_alternatives=True).results
    assert [r.hypothesis.score for r in results] == [0.75, 0.5]
    assert results[1].pose.covariance[0] == 1.0


def test_covariance_turns_with_its_axes():
    covariance = np.diag([1.0, 2, 3, 4, 5, 6])
    turn = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    turned = in_axes(turn, covariance)
    np.testing.assert_allclose(np.diag(turned), [2, 1, 3, 5, 4, 6])


@pytest.mark.parametrize(
    "args, name",
    [(("", "mug", 3), "mug_3"), (("left/", "coffee mug", 3), "left/coffee_mug_3")],
)
def test_frame_names_are_legal(args, name):
    assert conversions.frame_name(*args) == name


def test_quaternions_there_and_back():
    rotation = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    quaternion = compat.quaternion_from_matrix(rotation)
    assert all(type(value) is float for value in quaternion)
    np.testing.assert_allclose(compat.matrix_from_quaternion(*quaternion), rotation, atol=1e-12)
    expected = Rotation.from_matrix(rotation).as_quat()
    assert abs(np.dot(quaternion, expected)) == pytest.approx(1.0)
