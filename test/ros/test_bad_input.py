# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in, the node over DDS says what was wrong and answers the next good frame."""

import time

import numpy as np
import pytest
from node_bench import REAL_NODE, values_of
from ros_messages import (
    BOX,
    MUG,
    camera_info,
    detections,
    image,
    label_pixels,
    masks,
    picture,
    raw_image,
)
from stub_node import RAISES

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def shared_client(start_nodes):
    return start_nodes(label_names=["1:mug", "2:box", f"{RAISES}:mug"])


@pytest.fixture
def client(shared_client):
    shared_client.begin("image", "camera_info", "masks", "detections")
    yield shared_client
    # The point of every test here:
    assert len(shared_client.ask(MUG).detections) == 1
    shared_client.restore_parameters()


NAN = float("nan")


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"mask": picture()}, "masks have the encoding 'rgb8'"),
        ({"mask": image(np.ones((120, 160), np.float32), "32FC1")}, "encoding '32FC1'"),
        ({"mask": raw_image(b"", 160, 120, "nonsense", 160)}, "encoding 'nonsense'"),
        ({"mask": raw_image(bytes(100), 160, 120, "mono8", 160)}, "100 bytes of data"),
        ({"mask": raw_image(b"", 0, 0, "mono8", 0)}, "0x0 pixels"),
        ({"mask": masks(MUG, size=(90, 160))}, "masks are 160x90 pixels, but camera_info is for"),
        ({"info": camera_info(k=[NAN] * 9)}, "(?i)camera_info.*nan"),
        ({"info": camera_info(k=[0.0] * 9)}, "camera_info.*not calibrated"),
        ({"info": camera_info(k=[-200, 0, 80, 0, 200, 60, 0, 0, 1])}, "camera_info.*-200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frame_that_cannot_be_used(client, parts, message):
    stamp = client.next_stamp()
    for part in parts.values():
        part.header.stamp.sec, part.header.stamp.nanosec = divmod(stamp, 10**9)
    before = skipped(client)
    client.send(MUG, stamp=stamp, **parts)
    client.process.wait_for_log(message)
    assert skipped(client, more_than=before) == before + 1
    assert client.poses_at(stamp) == []


def skipped(client, more_than=-1):
    count = lambda status: int(values_of(status)["frames skipped"])  # noqa: E731
    return count(client.status("poses", lambda status: count(status) > more_than))


@pytest.mark.parametrize(
    "labels, named, message",
    [
        ([MUG, 9], None, "label 9: it has no name"),
        ([MUG, 9], {MUG: "mug", 9: "horse"}, "class 'horse' is not in the object library"),
        ([MUG, 9], {MUG: "mug", "nine": "box"}, "has the id 'nine'"),
        ([MUG, 9], {MUG: "mug", 9: None}, "its detection has no results"),
    ],
)
def test_one_bad_label_does_not_harm_the_others(client, labels, named, message):
    client.set("use_detections", "never" if named is None else "always")
    stamp = client.next_stamp()
    if named is not None:
        client.publishers["detections"].publish(detections(named, stamp=stamp))
    answer = client.ask(*labels, stamp=stamp)
    assert [d.results[0].hypothesis.class_id for d in answer.detections] == ["mug"]
    client.process.wait_for_log(message)
    client.set("use_detections", "never")


def test_images_of_odd_sizes_and_encodings_cost_the_overlay_only(client):
    client.watch_overlay()
    for odd, message in (
        (picture(size=(60, 80)), "the image is 80x60 pixels"),
        (image(np.ones((120, 160), np.float32), "32FC1"), "the image has the encoding '32FC1'"),
        (raw_image(bytes(10), 160, 120, "rgb8", 480), "image: 10 bytes of data"),
    ):
        stamp = client.next_stamp()
        odd.header.stamp.sec, odd.header.stamp.nanosec = divmod(stamp, 10**9)
        assert len(client.ask(MUG, stamp=stamp, image=odd).detections) == 1
        client.process.wait_for_log(message)


def test_pipeline_that_raises(client):
    stamp = client.send(RAISES)
    client.process.wait_for_log("RuntimeError: the stub was told to raise")
    assert client.poses_at(stamp) == []
    status = client.status("poses", lambda s: int(values_of(s)["errors"]) > 0)
    assert "the stub was told to raise" in values_of(status)["last error"]


def test_stamps_that_jump_back_or_repeat(client):
    stamp = client.next_stamp(100_000)
    for number in range(3):
        client.poses.clear()
        client.ask(MUG, stamp=stamp)
        client.send(MUG, stamp=stamp)  # again: not answered, not fatal
        client.ask(MUG, stamp=stamp - (number + 2) * 10**9)


def test_unstamped_messages(client):
    for _ in range(3):
        client.poses.clear()
        client.send(MUG, stamp=None, mask=masks(MUG), info=camera_info(), image=picture())
        client.wait_until(lambda: client.poses, "an answer to an unstamped frame")
    assert client.poses[-1].header.stamp.sec == 0


def test_burst_of_1000_images(client):
    """More than fits the buffers: memory stays bounded, frames are answered afterwards."""
    client.set("buffer_size", 1000)
    client.set("buffer_megabytes", 16)
    burst = picture(size=(480, 640))  # 0.9 MB each
    for number in range(1000):
        if number == 100:
            before = client.process.memory()
        stamp = client.next_stamp(33)
        burst.header.stamp.sec, burst.header.stamp.nanosec = divmod(stamp, 10**9)
        client.publishers["image"].publish(burst)
    time.sleep(0.5)
    assert client.process.memory() - before < 64 * 2**20


def test_burst_of_1000_masks(client):
    client.set("buffer_megabytes", 8)
    with client.without("camera_info"):
        for number in range(1000):
            if number == 100:
                before = client.process.memory()
            client.publishers["masks"].publish(
                masks(MUG, size=(480, 640), stamp=client.next_stamp(33))
            )
        time.sleep(0.5)
        assert client.process.memory() - before < 64 * 2**20
    client.wait_connected()


# ---- what only the real pipeline can say ----


@pytest.fixture(scope="module")
def real_client(start_nodes):
    client = start_nodes(REAL_NODE, label_names=["1:mug", "2:box"], device="cpu")
    client.wait_until(lambda: client.state() == "active", "the kernels to compile", timeout=120)
    client.wait_connected()
    return client


def one_pixel():
    pixels = label_pixels(MUG)
    pixels[5, 5] = BOX
    return pixels


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(one_pixel(), id="a mask of one pixel"),
        pytest.param(np.full((120, 160), BOX, np.uint16), id="a mask of the whole image"),
        pytest.param(np.arange(160 * 120, dtype=np.uint16).reshape(120, 160), id="label per pixel"),
        pytest.param(np.tile(np.uint16([[0, 1], [1, 0]]), (60, 80)), id="a chequered mask"),
    ],
)
def test_odd_masks(real_client, pixels):
    stamp = real_client.next_stamp()
    answer = real_client.ask(stamp=stamp, mask=image(pixels, "mono16", stamp=stamp))
    for detection in answer.detections:
        position = detection.results[0].pose.pose.position
        assert np.isfinite([position.x, position.y, position.z]).all()
    good = real_client.ask(MUG)
    assert [d.results[0].hypothesis.class_id for d in good.detections] == ["mug"]


def test_real_answer(real_client):
    answer = real_client.ask(MUG, BOX)
    assert len(answer.detections) == 2
    for detection in answer.detections:
        pose = detection.results[0].pose
        assert 0.2 < pose.pose.position.z < 3.0  # 10 cm, 30 pixels, focal length 200
        covariance = np.reshape(pose.covariance, (6, 6))
        np.testing.assert_allclose(covariance, covariance.T, atol=1e-9)
        assert (np.linalg.eigvalsh(covariance) > 0).all()
