# SPDX-License-Identifier: Apache-2.0
"""The node over DDS before a camera whose motion TF tells: what stands still is known better from
frame to frame; without TF each frame stands for itself, and that is told."""

import numpy as np
import pytest
import trimesh
from node_bench import REAL_NODE, TF2, values_of
from ros_messages import camera_info, header, image, write_library
from shapes import ell, pose, silhouette
from tf2_msgs.msg import TFMessage

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.pose import inverse
from pose_refiner_ros.ros.conversions import transform_from_matrix

pytestmark = pytest.mark.ros
SIZE = (240, 320)
CAMERA = Camera(np.reshape(camera_info(SIZE).k, (3, 3)), SIZE)
ODOM_FROM_OBJECT = pose((0.6, -0.7, 0.4), (0.02, -0.01, 0.8))
STEP = pose((0.0, -0.1, 0.0), (0.1, 0.0, 0.01))  # of the camera, from frame to frame


@pytest.fixture(scope="module")
def client(start_nodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ell")
    mesh = ell()
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(folder / "ell.ply")
    library = write_library(folder, "objects:\n  ell: {mesh: ell.ply, unit: m, label: 1}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TF2, prepend=":")
        client = start_nodes(
            REAL_NODE,
            device="cpu",
            objects_file=library,
            fixed_frame="odom",
            diagnostics_period=0.2,
        )
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    client.publishers["tf"] = client.node.create_publisher(TFMessage, "/tf", 10)
    client.wait_connected("camera_info", "masks")
    # the client's own, and that of the node, which listens once it has been asked
    listening = client.publishers["tf"].get_subscription_count
    client.wait_until(lambda: listening() >= 2, "the node to listen to /tf")
    return client


@pytest.fixture
def ask(client):
    """ask(): the variance of the object's distance by one more frame, a step on."""
    where = np.eye(4)

    def ask(tf=True):
        nonlocal where
        where = where @ STEP
        stamp = client.next_stamp()
        if tf:
            move = transform_from_matrix(where, header(stamp, "odom"), "camera")
            client.publishers["tf"].publish(TFMessage(transforms=[move]))
        labels = silhouette(ell(), inverse(where) @ ODOM_FROM_OBJECT, CAMERA)
        at = {"stamp": stamp, "frame_id": "camera"}
        mask = image(labels.astype(np.uint16), "mono16", **at)
        found = client.ask(stamp=stamp, mask=mask, info=camera_info(SIZE, **at), with_image=False)
        (detection,) = found.detections
        return detection.results[0].pose.covariance.reshape(6, 6)[2, 2]

    return ask


def test_what_stands_still_is_known_better_from_frame_to_frame(client, ask):
    first, *_, last = [ask() for _ in range(5)]
    assert last < 0.3 * first
    status = client.status(
        "poses", lambda one: "poses joined with earlier frames" in values_of(one)
    )
    joined, asked = values_of(status)["poses joined with earlier frames"].split(" of ")
    assert 3 <= int(joined) < int(asked)


def test_without_tf_a_frame_stands_for_itself_and_that_is_told(client, ask):
    known = [ask() for _ in range(5)][-1]
    client.next_stamp(3000)
    assert ask(tf=False) > 3 * known
    client.process.wait_for_log("how the camera moves is not known: there is no transform")
