# SPDX-License-Identifier: Apache-2.0
"""Measure the node over DDS: frames lost, latency from image stamp to pose, memory.

    .venv/bin/python tools/measure_node.py [--seconds 60] [--rate 30] [--device auto] [--json FILE]

Three vehicles turn before a 640x480 camera. This process publishes image, camera_info and masks
and receives the poses; the node runs in another.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OBJECTS_FILE = ROOT / "pose_refiner_ros" / "data" / "demo_objects.yaml"
SIZE = (480, 640)
NAMESPACE = f"measure_{os.getpid()}"  # whatever else runs in this domain
FRAMES = 60  # rendered beforehand, then shown forwards and backwards


def render_frames():
    """[(image, masks)] as messages without stamp, and the CameraInfo."""
    from std_msgs.msg import Header

    from pose_refiner_ros.geometry.camera import Camera
    from pose_refiner_ros.objects.library import ObjectLibrary
    from pose_refiner_ros.rendering.scene import render_scene
    from pose_refiner_ros.ros.demo_camera import camera_info
    from pose_refiner_ros.ros.images import encode_image

    library = ObjectLibrary.load(OBJECTS_FILE)
    models = [library[name] for name in ("sedan", "suv", "van")]
    camera = Camera(np.array([[600.0, 0, 319.5], [0, 600.0, 239.5], [0, 0, 1]]), SIZE)
    header = Header(frame_id="camera_optical_frame")
    frames = []
    for number in range(FRAMES):
        poses = [_pose(x, 0.5 + 0.4 * i + 0.01 * number) for i, x in enumerate((-4.5, 0.0, 4.5))]
        scene = render_scene(
            [model.silhouette_mesh for model in models],
            np.stack(poses),
            camera,
            [model.color for model in models],
            [model.label for model in models],
        )
        image = encode_image(scene.rgb, header)
        frames.append((image, encode_image(scene.labels.astype(np.uint8), header, "mono8")))
    return frames, camera_info(camera, header)


def _pose(x, heading):
    """A vehicle that stands upright 13 m ahead."""
    cos, sin = np.cos(heading), np.sin(heading)
    pose = np.eye(4)
    # Object axes in the camera's: z up is -y; x and y turn about it.
    pose[:3, :3] = np.array([[cos, -sin, 0], [0, 0, -1], [sin, cos, 0]])
    pose[:3, 3] = (x, 1.2, 13.0)
    return pose


class Meter:
    """Publishes frames, notes when their poses arrive."""

    def __init__(self):
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import qos_profile_sensor_data
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import CameraInfo, Image
        from vision_msgs.msg import Detection3DArray

        self._rclpy = rclpy
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("measure_node", namespace=NAMESPACE)
        create = self.node.create_publisher
        self.image = create(Image, "image", qos_profile_sensor_data)
        self.masks = create(Image, "masks", qos_profile_sensor_data)
        self.info = create(CameraInfo, "camera_info", qos_profile_sensor_data)
        self.sent = {}  # stamp -> when it was published
        self.latencies = {}  # stamp -> seconds
        self.objects = []
        self.values = {}  # the last diagnostics
        self.node.create_subscription(Detection3DArray, "object_poses", self._on_poses, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        with contextlib.suppress(self._rclpy.executors.ExternalShutdownException):
            self._executor.spin()

    def close(self):
        self._executor.shutdown()
        self._thread.join(5.0)
        self.node.destroy_node()
        self._rclpy.try_shutdown()

    def _on_poses(self, message):
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if stamp in self.sent and stamp not in self.latencies:
            self.latencies[stamp] = (time.time_ns() - stamp) / 1e9
            self.objects.append(len(message.detections))

    def _on_diagnostics(self, message):
        for status in message.status:
            if not status.name.startswith(NAMESPACE):
                continue
            self.values.update({value.key: value.value for value in status.values})

    def send(self, image, masks, info):
        stamp = time.time_ns()
        for message in (image, masks, info):
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
        self.sent[stamp] = time.monotonic()
        self.image.publish(image)
        self.info.publish(info)
        self.masks.publish(masks)


def cpu_seconds(pid):
    """Processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()

    from pose_refiner_ros.files.config_files import fastdds_environment

    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.update(fastdds_environment(os.environ))
    meter = Meter()
    arguments = ["-p", f"objects_file:={OBJECTS_FILE}", "-p", f"device:={options.device}"]
    arguments += ["-r", f"__ns:=/{NAMESPACE}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pose_refiner_ros.ros.node", "--ros-args", *arguments],
        cwd=ROOT,
    )
    try:
        report = measure(meter, process.pid, options)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        meter.close()
    for name, value in report.items():
        print(f"{name:32} {value}")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(meter, pid, options):
    frames, info = render_frames()
    order = [*range(FRAMES), *range(FRAMES - 2, 0, -1)]
    deadline = time.monotonic() + 300
    while len(meter.latencies) < 30:  # kernels compile, objects are found for the first time
        if time.monotonic() > deadline:
            raise SystemExit("the node does not answer; see its log")
        meter.send(*frames[0], info)
        time.sleep(0.2)
    time.sleep(2.5)  # a last look at the diagnostics
    received = int(meter.values["masks received"])
    for kept in (meter.sent, meter.latencies, meter.objects):
        kept.clear()
    memories = []
    start = time.monotonic()
    cpu_start = cpu_seconds(pid)
    count = int(options.seconds * options.rate)
    for number in range(count):
        meter.send(*frames[order[number % len(order)]], info)
        if number % options.rate < 1 and number >= 0.1 * count:  # its buffers are full by then
            memories.append(memory(pid))
        time.sleep(max(0.0, start + (number + 1) / options.rate - time.monotonic()))
    cores = (cpu_seconds(pid) - cpu_start) / (time.monotonic() - start)
    time.sleep(2.5)
    memories.append(memory(pid))
    latencies = np.array(list(meter.latencies.values())) * 1e3
    return {
        "rate_hz": options.rate,
        "seconds": options.seconds,
        "device": meter.values.get("device"),
        "frames_sent": count,
        "frames_received": int(meter.values["masks received"]) - received,
        "frames_answered": len(latencies),
        "objects_per_frame": round(float(np.mean(meter.objects)), 2),
        "latency_p50_ms": round(float(np.percentile(latencies, 50)), 1),
        "latency_p95_ms": round(float(np.percentile(latencies, 95)), 1),
        "latency_max_ms": round(float(latencies.max()), 1),
        "processing_p50_ms": float(meter.values.get("processing p50 (ms)", "nan")),
        "node_cpu_cores": round(cores, 2),
        "memory_start_mb": round(memories[0] / 2**20, 1),
        "memory_end_mb": round(memories[-1] / 2**20, 1),
        "memory_max_mb": round(max(memories) / 2**20, 1),
    }


if __name__ == "__main__":
    main()
