# SPDX-License-Identifier: Apache-2.0
"""The node in a process of its own, and a client that talks to it over DDS."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from ros_messages import camera_info, masks, picture
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection2DArray, Detection3DArray
from visualization_msgs.msg import MarkerArray

ROOT = Path(__file__).parents[2]
TF2 = str(Path(__file__).parent / "tf2_stand_in")  # for PYTHONPATH
STUB_NODE = [str(Path(__file__).parent / "stub_node.py")]
REAL_NODE = ["-m", "pose_refiner_ros.ros.node"]
TIMEOUT = 30.0


class NodeProcess:
    """The node under test; its log lines as they come."""

    def __init__(self, namespace, program=STUB_NODE, **parameters):
        arguments = ["--ros-args", "-r", f"__ns:={namespace}"]
        for name, value in parameters.items():
            if isinstance(value, (list, tuple)):
                items = [f'"{item}"' if isinstance(item, str) else str(item) for item in value]
                value = f"[{', '.join(items)}]"
            elif isinstance(value, bool):
                value = str(value).lower()
            elif isinstance(value, (str, Path)):
                value = f"'{value}'"
            arguments += ["-p", f"{name}:={value}"]
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": python_path, "RCUTILS_LOGGING_BUFFERED_STREAM": "0"},
            cwd=ROOT,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def log(self):
        return "\n".join(self.lines)

    def wait_for_log(self, pattern, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.log):
            assert time.monotonic() < deadline, f"no '{pattern}' in the log:\n{self.log}"
            assert self.process.poll() is None, f"the node ended:\n{self.log}"
            time.sleep(0.02)

    def memory(self):
        """Resident memory in bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, number=signal.SIGINT, timeout=10.0):
        """End it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the node did not end within {timeout} s:\n{self.log}") from None
        finally:
            self._reader.join(5.0)


class Client:
    """Publishes what the node reads and keeps what it publishes."""

    def __init__(self, namespace):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("client", namespace=namespace, context=self.context)
        self.status_name = f"{namespace.lstrip('/')}/pose_refiner"
        self.poses, self.diagnostics, self.markers, self.transforms = [], [], [], []
        self.overlays = []
        node = self.node
        node.create_subscription(Detection3DArray, "object_poses", self.poses.append, 50)
        node.create_subscription(DiagnosticArray, "/diagnostics", self.diagnostics.append, 10)
        node.create_subscription(MarkerArray, "pose_refiner/markers", self.markers.append, 50)
        node.create_subscription(TFMessage, "/tf", self.transforms.append, 50)
        self.publishers = {
            name: node.create_publisher(message_type, name, 10)
            for name, message_type in (
                ("image", Image),
                ("image/compressed", CompressedImage),
                ("camera_info", CameraInfo),
                ("masks", Image),
                ("detections", Detection2DArray),
                ("initial_poses", Detection3DArray),
            )
        }
        self.clients = {}
        self.process = None  # the node under test
        self._parameters = {}  # what set() changed
        self._stamp = 1_700_000_000 * 10**9
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self):
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def watch_overlay(self, reliability=ReliabilityPolicy.RELIABLE):
        qos = QoSProfile(depth=5, reliability=reliability)
        self.node.create_subscription(Image, "pose_refiner/overlay", self.overlays.append, qos)

    @contextlib.contextmanager
    def other_publisher(self, topic, message_type, qos):
        """A publisher of another node; DDS allows one node only one type per topic."""
        context = rclpy.Context()
        rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
        node = rclpy.create_node("other", namespace=self.node.get_namespace(), context=context)
        try:
            yield node.create_publisher(message_type, topic, qos)
        finally:
            node.destroy_node()
            rclpy.try_shutdown(context=context)

    @contextlib.contextmanager
    def without(self, name):
        """One of the usual publishers is not there, and was not there before."""
        message_type = self.publishers[name].msg_type
        self.node.destroy_publisher(self.publishers.pop(name))
        try:
            self.restart()
            yield
        finally:
            self.publishers[name] = self.node.create_publisher(message_type, name, 10)

    def restart(self):
        """The node forgets all that it received."""
        self.wait_until(lambda: self.state() in ("active", "inactive"), "the node to be configured")
        if self.state() == "active":
            assert self.transition("deactivate")
        assert self.transition("activate")

    def begin(self, *names):
        """Make the node active and connected, with no frame answered yet."""
        self.restart()
        self.wait_connected(*names)
        for kept in (self.poses, self.markers, self.transforms, self.overlays):
            kept.clear()

    # ---- time ----

    def next_stamp(self, milliseconds=100):
        self._stamp += milliseconds * 10**6
        return self._stamp

    @staticmethod
    def wait_until(condition, what, timeout=TIMEOUT):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.01)

    def wait_connected(self, *names):
        """Until the node subscribes to the inputs and an empty frame is answered."""
        names = names or ("image", "camera_info", "masks")
        self.wait_until(
            lambda: all(self.publishers[name].get_subscription_count() for name in names),
            f"the node to subscribe to {names}",
        )
        # Discovery has two directions. Until both are done, best-effort messages are lost.
        before = len(self.poses)
        deadline = time.monotonic() + TIMEOUT
        while len(self.poses) == before:
            assert time.monotonic() < deadline, "no empty frame is answered"
            self.send()
            time.sleep(0.2)

    # ---- frames ----

    def send(self, *labels, stamp=None, with_image=True, mask=None, info=None, image=None):
        """A frame with these labels; its stamp."""
        stamp = stamp or self.next_stamp()
        if with_image:
            self._publish("image", image or picture(stamp=stamp))
        self._publish("camera_info", info or camera_info(stamp=stamp))
        self._publish("masks", mask or masks(*labels, stamp=stamp))
        return stamp

    def _publish(self, name, message):
        if name in self.publishers:
            self.publishers[name].publish(message)

    def answer(self, stamp, timeout=TIMEOUT):
        """The poses with this stamp."""
        self.wait_until(lambda: self.poses_at(stamp), f"poses with stamp {stamp}", timeout)
        return self.poses_at(stamp)[0]

    def poses_at(self, stamp):
        return [m for m in list(self.poses) if stamp_of(m) == stamp]

    def ask(self, *labels, **options):
        """Send a frame and return its poses."""
        return self.answer(self.send(*labels, **options))

    # ---- services and parameters ----

    def call(self, service, service_type, request, timeout=10.0):
        """Repeated without an answer: the first is lost now and then, when the server has not yet
        discovered where answers go."""
        for _ in range(3):
            reply = self.call_once(service, service_type, request, timeout)
            if reply is not None:
                return reply
        raise AssertionError(f"{service} does not answer; its node says:\n{self.process.log}")

    def call_once(self, service, service_type, request, timeout=10.0):
        """The answer, or None."""
        if service not in self.clients:
            self.clients[service] = self.node.create_client(service_type, service)
        client = self.clients[service]
        assert client.wait_for_service(TIMEOUT), f"no service {service}"
        future = client.call_async(request)
        deadline = time.monotonic() + timeout
        while not future.done() and time.monotonic() < deadline:
            time.sleep(0.01)
        return future.result() if future.done() else None

    def trigger(self, name):
        return self.call(f"pose_refiner/{name}", Trigger, Trigger.Request(), TIMEOUT)

    def state(self):
        request = GetState.Request()
        return self.call("pose_refiner/get_state", GetState, request).current_state.label

    def wait_for_state(self, state):
        self.wait_until(lambda: self.state() == state, f"state {state}")

    def transition(self, label):
        """Whether it was successful."""
        request = ChangeState.Request()
        request.transition.label = label
        reply = self.call_once("pose_refiner/change_state", ChangeState, request)
        if reply is not None:
            return reply.success
        goals = {"configure": "inactive", "activate": "active", "deactivate": "inactive"}
        goals |= {"cleanup": "unconfigured", "shutdown": "finalized"}
        return self.state() == goals.get(label)

    def set(self, name, value):
        """Set a parameter until restore_parameters()."""
        request = GetParameters.Request(names=[name])
        reply = self.call("pose_refiner/get_parameters", GetParameters, request)
        self._parameters.setdefault(name, parameter_value_to_python(reply.values[0]))
        assert self.set_parameter(name, value) == ""

    def restore_parameters(self):
        for name, value in self._parameters.items():
            assert self.set_parameter(name, value) == ""
        self._parameters.clear()

    def set_parameter(self, name, value):
        """The reason why it was refused, "" if it was not."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        reply = self.call("pose_refiner/set_parameters", SetParameters, request)
        return "" if reply.results[0].successful else reply.results[0].reason or "refused"

    # ---- diagnostics ----

    def status(self, part, condition=lambda status: True):
        """The next status "objects" or "poses" that fulfils a condition."""
        found = []

        def look():
            for message in self.diagnostics[seen:]:
                for status in message.status:
                    if status.name == f"{self.status_name}: {part}" and condition(status):
                        found.append(status)
            return found

        seen = len(self.diagnostics)
        self.wait_until(look, f"diagnostics of {part}")
        return found[0]


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def values_of(status):
    return {value.key: value.value for value in status.values}
