# SPDX-License-Identifier: Apache-2.0
"""The node with radiance fields: of an object, and of the scene that the camera is in."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from node_bench import REAL_NODE, stamp_of
from painted import painted_block, painted_room, photo
from ros_messages import camera_info, header, image, picture
from shapes import angle_deg, pose, shift_between, turned

from pose_refiner_ros.fields.field_file import save_field
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.ros import diagnostics, parameters
from pose_refiner_ros.ros.bad_input import BadInput, TransformError
from pose_refiner_ros.ros.conversions import matrix_from_pose, pose_from_matrix
from pose_refiner_ros.ros.scene_camera import SceneCamera, initial_pose
from pose_refiner_ros.scene_localiser import CameraPose, LocalisationError

SIZE = (120, 160)
K = [150.0, 0.0, 79.5, 0.0, 150.0, 59.5, 0.0, 0.0, 1.0]
CAMERA = Camera(np.reshape(K, (3, 3)), SIZE)
ROOM, CUBE = painted_room(), painted_block()
OBJECT = pose((0.6, -0.7, 0.4), (0.02, 0.0, 0.6))  # camera_from_object


def standing(x, y, heading):
    """scene_from_camera, optical axes."""
    result = np.eye(4)
    cos, sin = np.cos(heading), np.sin(heading)
    result[:3, :3] = np.array([[sin, 0, cos], [-cos, 0, sin], [0, -1, 0]])
    result[:3, 3] = (x, y, 0.0)
    return result


HERE, THERE = standing(0.2, -0.1, 0.5), standing(-0.4, 0.3, 2.8)


@pytest.fixture(scope="module")
def client(start_nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fields")
    save_field(ROOM, folder / "room.safetensors")
    save_field(CUBE, folder / "cube.safetensors")
    (folder / "objects.yaml").write_text("objects:\n  cube: {field: cube.safetensors, label: 1}\n")
    start = pose_from_matrix(turned(HERE, (0.03, -0.05, 0.0), (0.03, 0.02, 0.0)))
    client = start_nodes(
        REAL_NODE,
        device="cpu",
        objects_file=folder / "objects.yaml",
        scene_field=folder / "room.safetensors",
        scene_field_frame="lab",
        scene_initial_pose=[
            *(round(getattr(start.position, a), 6) for a in "xyz"),
            *(round(getattr(start.orientation, a), 6) for a in "xyzw"),
        ],
        photo_rays=512,
        watchdog_seconds=2.0,
    )
    client.camera_poses = []
    client.node.create_subscription(
        PoseWithCovarianceStamped, "pose_refiner/camera_pose", client.camera_poses.append, 20
    )
    client.initialpose = client.node.create_publisher(PoseWithCovarianceStamped, "initialpose", 5)
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    client.wait_until(
        lambda: (
            client.publishers["image"].get_subscription_count()
            and client.publishers["camera_info"].get_subscription_count()
            and client.initialpose.get_subscription_count()
        ),
        "the node to subscribe",
    )
    return client


def look(client, pixels):
    """The camera's pose for an image without masks, sent until it is answered."""
    stamp = 0

    def answered():
        nonlocal stamp
        stamp = client.next_stamp()
        client.publishers["camera_info"].publish(camera_info(SIZE, K, stamp=stamp))
        client.publishers["image"].publish(image(pixels, "rgb8", stamp=stamp))
        return any(stamp_of(one) == stamp for one in wait_a_moment(client.camera_poses, stamp))

    client.wait_until(answered, "the camera's pose")
    return next(one for one in client.camera_poses if stamp_of(one) == stamp)


def wait_a_moment(messages, stamp):
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and not any(stamp_of(one) == stamp for one in messages):
        time.sleep(0.01)
    return list(messages)


@pytest.mark.ros
def test_camera_in_the_scene_and_in_tf(client):
    found = look(client, photo(ROOM, np.linalg.inv(HERE), CAMERA)[0])
    assert found.header.frame_id == "lab"
    matrix = matrix_from_pose(found.pose.pose)
    assert angle_deg(matrix, HERE) < 1.0 and shift_between(matrix, HERE) < 0.03
    covariance = np.reshape(found.pose.covariance, (6, 6))
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    sent = [t for message in client.transforms for t in message.transforms]
    (frame,) = (t for t in sent if stamp_of(t) == stamp_of(found))
    assert (frame.header.frame_id, frame.child_frame_id) == ("lab", "camera_optical_frame")
    assert frame.transform.translation.x == found.pose.pose.position.x
    client.wait_until(lambda: client.status("scene").level == DiagnosticStatus.OK, "the status")


@pytest.mark.ros
def test_no_image_is_said(client):
    client.process.wait_for_log("no image for the camera's pose for some seconds: ", timeout=15)
    client.wait_until(lambda: client.status("scene").level == DiagnosticStatus.WARN, "the status")
    assert "no image has arrived lately on" in client.status("scene").message


@pytest.mark.ros
def test_lost_says_so_and_initialpose_helps(client):
    pixels = photo(ROOM, np.linalg.inv(THERE), CAMERA)[0]
    stamp = client.next_stamp()
    client.publishers["camera_info"].publish(camera_info(SIZE, K, stamp=stamp))
    client.publishers["image"].publish(image(pixels, "rgb8", stamp=stamp))
    client.process.wait_for_log("the camera is lost in the scene: the colours are off by")
    client.wait_until(lambda: client.status("scene").level == DiagnosticStatus.WARN, "the status")
    assert not any(stamp_of(one) == stamp for one in client.camera_poses)
    told = PoseWithCovarianceStamped(header=header(frame_id="lab"))
    told.pose.pose = pose_from_matrix(turned(THERE, (0.0, 0.05, 0.0), (0.03, 0.0, 0.0)))
    client.initialpose.publish(told)
    matrix = matrix_from_pose(look(client, pixels).pose.pose)
    assert angle_deg(matrix, THERE) < 1.0 and shift_between(matrix, THERE) < 0.03


@pytest.mark.ros
def test_object_with_a_field(client):
    pixels, mask = photo(CUBE, OBJECT, CAMERA)
    client.wait_connected()

    def send(with_image):
        stamp = client.next_stamp()
        return client.ask(
            stamp=stamp,
            with_image=with_image,
            mask=image(mask, "mono8", stamp=stamp),
            info=camera_info(SIZE, K, stamp=stamp),
            image=image(pixels, "rgb8", stamp=stamp),
        )

    (detection,) = send(True).detections
    (result,) = detection.results
    assert result.hypothesis.class_id == "cube" and result.hypothesis.score > 0.9
    assert angle_deg(matrix_from_pose(result.pose.pose), OBJECT) < 2.0
    client.wait_until(lambda: any(message.markers for message in client.markers), "its marker")
    (marker,) = next(message.markers for message in client.markers if message.markers)
    assert len(marker.points) > 30  # there is no file that RViz could read


@pytest.mark.ros
def test_scene_field_that_cannot_be_used(start_node, tmp_path):
    client = start_node(REAL_NODE, device="cpu", scene_field="/nowhere/room.safetensors")
    client.process.wait_for_log("scene_field cannot be used: .*room.safetensors do not exist")
    assert "Traceback" not in client.process.log
    assert client.state() == "unconfigured"


# --- without a node -----------------------------------------------------------------------------


class Recorder(list):
    def publish(self, message):
        self.append(message)

    def send(self, where, poses):
        self.append((where, poses))


class Tracker:
    """Finds the camera where it is told to begin, or fails."""

    def __init__(self, error=None):
        self.first, self.begun, self.error = None, None, error

    def begin_at(self, scene_from_camera):
        self.begun = scene_from_camera

    def follow(self, pixels, camera):
        if self.error:
            raise self.error
        where = self.begun if self.begun is not None else self.first
        return CameraPose(where, 1e-4 * np.eye(6), 0.02)


class Transforms:
    """camera <- base and scene <- map, as matrices."""

    def __init__(self, **known):
        self.known = known

    def matrix(self, target, source, stamp, timeout=0.1):
        if f"{target}_{source}" not in self.known:
            raise TransformError(f"there is no transform from '{source}' to '{target}'")
        return self.known[f"{target}_{source}"]


def scene_camera(tracker, **transforms):
    camera = SceneCamera.__new__(SceneCamera)
    camera._tracker, camera._transforms = tracker, Transforms(**transforms)
    camera._poses, camera._frames = Recorder(), Recorder()
    camera._asked, camera.first, camera.state = None, None, ""
    camera.values = {"photos located": 0, "photos lost": 0}
    return camera


def messages(frame_id="camera"):
    return SimpleNamespace(
        image=picture(SIZE, stamp=5, frame_id=frame_id),
        camera_info=camera_info(SIZE, K, stamp=5, frame_id=frame_id),
    )


def values(**more):
    return SimpleNamespace(**{**vars(parameters.defaults()), **more})


CAMERA_FROM_BASE = pose((0.3, 0.1, -0.2), (0.1, 0.2, 0.3))


def test_tf_of_the_frame_that_the_robot_hangs_on():
    camera = scene_camera(Tracker(), camera_base=CAMERA_FROM_BASE)
    camera.first = HERE  # of the base
    camera.process(messages(), values(scene_tf_child="base"), pytest.fail)
    (found,) = camera._poses
    expected = HERE @ np.linalg.inv(CAMERA_FROM_BASE)
    np.testing.assert_allclose(matrix_from_pose(found.pose.pose), expected, atol=1e-9)
    ((where, poses),) = camera._frames
    assert where.frame_id == "scene" and list(poses) == ["base"]
    np.testing.assert_allclose(poses["base"], HERE, atol=1e-9)


def test_initial_pose_in_another_frame():
    scene_from_map = pose((0, 0, 0.5), (1.0, 2.0, 0.0))
    camera = scene_camera(Tracker(), scene_map=scene_from_map)
    told = PoseWithCovarianceStamped(header=header(frame_id="map"))
    told.pose.pose = pose_from_matrix(HERE)
    camera._on_initialpose(told)
    camera.process(messages(), values(), pytest.fail)
    np.testing.assert_allclose(camera._tracker.begun, scene_from_map @ HERE, atol=1e-9)
    told.header.frame_id = "mars"
    reports = []
    camera._on_initialpose(told)
    camera.process(messages(), values(), reports.append)
    assert "initialpose is ignored: there is no transform from 'mars'" in reports[0]


def test_without_a_start_it_says_what_to_do():
    camera, reports = scene_camera(Tracker(LocalisationError("there is no start pose"))), []
    camera.process(messages(), values(), reports.append)
    assert "set scene_initial_pose, or publish one on initialpose" in reports[0]
    assert camera._poses == [] and camera._frames == []
    assert camera.state and camera.values["photos lost"] == 1


def test_publish_tf_can_be_switched_off():
    camera = scene_camera(Tracker())
    camera.first = HERE
    camera.process(messages(), values(publish_tf=False), pytest.fail)
    assert len(camera._poses) == 1 and camera._frames == []


def test_camera_without_a_frame_has_a_pose_and_no_tf():
    camera, reports = scene_camera(Tracker()), []
    camera.first = HERE
    camera.process(messages(frame_id=""), values(), reports.append)
    assert len(camera._poses) == 1 and camera._frames == []
    assert "empty frame_id: there is no TF" in reports[0]


def test_image_of_another_size_says_what_to_do():
    camera, other = scene_camera(Tracker()), messages()
    other.image = picture((60, 80), stamp=5, frame_id="camera")
    with pytest.raises(BadInput, match=r"images are 80x60 pixels, .*160x120; where .* resized"):
        camera.process(other, values(), pytest.fail)


@pytest.mark.parametrize(
    ("state", "now", "silence", "level", "text"),
    [
        ("inactive", "", "", DiagnosticStatus.OK, "inactive"),
        ("active", "", "", DiagnosticStatus.OK, "the camera is located"),
        ("active", "it is lost", "", DiagnosticStatus.WARN, "it is lost"),
        ("active", "", "nobody publishes /image", DiagnosticStatus.WARN, "nobody publishes /image"),
    ],
)
def test_status_of_the_scene(state, now, silence, level, text):
    camera = scene_camera(Tracker())
    camera.state = now
    status = diagnostics.scene_status("node", state, camera, silence)
    assert (status.level, status.message) == (level, text)


def test_initial_pose_of_parameters():
    assert initial_pose([0.0] * 7) is None
    matrix = initial_pose([1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(matrix[:3, 3], (1, 2, 3))
    with pytest.raises(ValueError, match="no unit quaternion"):
        initial_pose([1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0])
