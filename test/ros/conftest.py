# SPDX-License-Identifier: Apache-2.0
"""These tests need ROS's Python packages; without them none is collected."""

import contextlib
import importlib.util
import uuid

import pytest

HAS_ROS = all(importlib.util.find_spec(name) for name in ("rclpy", "vision_msgs", "tf2_msgs"))
collect_ignore_glob = [] if HAS_ROS else ["test_*.py"]


def pytest_report_header():
    return [] if HAS_ROS else ["rclpy, vision_msgs or tf2_msgs missing: test/ros is left out"]


@contextlib.contextmanager
def _node_starter(folder):
    from node_bench import STUB_NODE, Client, NodeProcess
    from ros_messages import write_library

    library_file = write_library(folder)
    clients = []

    def start(program=STUB_NODE, **parameters):
        namespace = f"/test_{uuid.uuid4().hex[:8]}"
        client = Client(namespace)
        clients.append(client)
        options = {"objects_file": library_file, "diagnostics_period": 0.2, **parameters}
        options = {name.replace("{ns}", namespace): value for name, value in options.items()}
        client.process = NodeProcess(namespace, program, **options)
        return client

    try:
        yield start
    finally:
        for client in clients:
            client.process.stop()
            client.close()


@pytest.fixture(scope="module")
def start_nodes(tmp_path_factory):
    """Like start_node, for nodes that the tests of a file share."""
    with _node_starter(tmp_path_factory.mktemp("objects")) as start:
        yield start


@pytest.fixture
def start_node(tmp_path):
    """start_node(**parameters): a client that talks to a new node with a stub pipeline, in a
    namespace of its own; {ns} in the name of a parameter stands for it. The node is
    client.process. Its object library is tmp_path/objects.yaml."""
    with _node_starter(tmp_path) as start:
        yield start
