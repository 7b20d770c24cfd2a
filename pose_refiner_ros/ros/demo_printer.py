# SPDX-License-Identifier: Apache-2.0
"""Prints the poses beside the true ones while they come; at the end a summary, a video, a contact
sheet and a bag.

Ends with SIGINT or SIGTERM; the exit status says whether the drive went well.
"""

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection2DArray, Detection3DArray
from visualization_msgs.msg import MarkerArray

from pose_refiner_ros.ros.conversions import matrix_from_pose, nanoseconds
from pose_refiner_ros.ros.demo_report import DriveReport, failures
from pose_refiner_ros.ros.images import decode_color
from pose_refiner_ros.ros.process import Process
from pose_refiner_ros.ros.recording import BagRecorder

TOPICS = {
    "image": Image,
    "camera_info": CameraInfo,
    "masks": Image,
    "detections": Detection2DArray,
    "ground_truth": Detection3DArray,
    "object_poses": Detection3DArray,
    "/tf": TFMessage,
    "pose_refiner/markers": MarkerArray,
    "pose_refiner/overlay": Image,
}
SHEET = (2, 3)  # pictures on the contact sheet: rows, columns
LINE_SECONDS = 1.0  # between tables where the output is no terminal


class DemoPrinter(Node):
    def __init__(self, console):
        super().__init__("demo_printer")
        self.output = Path(self.declare_parameter("output", "demo_output").value)
        self.bounds = (
            self.declare_parameter("max_rotation_error", 5.0).value,  # degrees, median
            self.declare_parameter("max_translation_error", 0.3).value,  # metres, median
        )
        rate = self.declare_parameter("rate", 10.0).value  # of the video
        self.report = DriveReport()
        self.display = Display(console)
        self.pictures = []  # overlays as JPEG
        self._captions = {}  # stamp -> text
        self.output.mkdir(parents=True, exist_ok=True)
        self._video = _Video(self.output / "overlay.mp4", rate)
        self._bag = BagRecorder(self.output / "bag", overwrite=True)
        self._bag.__enter__()
        self._handlers = {
            "ground_truth": self._on_ground_truth,
            "object_poses": self._on_object_poses,
            "pose_refiner/overlay": self._on_overlay,
        }
        for topic, message_type in TOPICS.items():
            self._subscribe(topic, message_type)

    def _subscribe(self, topic, message_type):
        name = self.resolve_topic_name(topic)
        package = message_type.__module__.split(".")[0]
        type_name = f"{package}/msg/{message_type.__name__}"
        handler = self._handlers.get(topic)
        self._bag.add_topic(name, type_name)

        def received(data):
            self._bag.write(name, type_name, self.get_clock().now().nanoseconds, data)
            if handler is not None:
                handler(deserialize_message(data, message_type))

        depth = 200 if topic == "/tf" else 50
        self.create_subscription(message_type, topic, received, QoSProfile(depth=depth), raw=True)

    def _on_ground_truth(self, message):
        self.report.add_truth(
            nanoseconds(message.header.stamp),
            {
                int(detection.id): (
                    detection.results[0].hypothesis.class_id,
                    matrix_from_pose(detection.results[0].pose.pose),
                )
                for detection in message.detections
            },
        )

    def _on_object_poses(self, message):
        stamp = nanoseconds(message.header.stamp)
        latency = (self.get_clock().now().nanoseconds - stamp) / 1e9
        estimates = [
            (
                detection.results[0].hypothesis.class_id,
                matrix_from_pose(detection.results[0].pose.pose),
                detection.results[0].hypothesis.score,
            )
            for detection in message.detections
        ]
        rows = self.report.add_estimates(stamp, estimates, latency, time.monotonic())
        if rows is not None:
            self._captions[stamp] = caption(rows, latency)
            self.display.show(rows, self.report, latency)

    def _on_overlay(self, message):
        picture = cv2.cvtColor(decode_color(message), cv2.COLOR_RGB2BGR)
        stamp = nanoseconds(message.header.stamp)
        _write_caption(picture, self._captions.pop(stamp, ""))
        self._video.add(stamp, picture)
        self.pictures.append(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])

    def finish(self, console):
        """Write everything; the exit status."""
        self.display.close()
        self._bag.__exit__(None, None, None)
        written = [self.output / "bag"]
        if self._video.close():
            written.insert(0, self._video.path)
        sheet = contact_sheet(self.pictures)
        if sheet is not None:
            written.insert(0, self.output / "overlay.png")
            cv2.imwrite(str(written[0]), sheet)
        summary = self.report.summary()
        reasons = failures(summary, *self.bounds)
        summary["failed"] = reasons
        written.append(self.output / "summary.json")
        written[-1].write_text(json.dumps(summary, indent=2) + "\n")
        print_summary(console, summary, written)
        return 1 if reasons else 0


class Display:
    """The newest frame as a table: replaced in a terminal, once a second elsewhere."""

    def __init__(self, console):
        self._console = console
        self._live = None
        self._last = 0.0
        if console.is_terminal:
            self._live = Live("waiting for the first pose", console=console, auto_refresh=False)
            self._live.start()

    def show(self, rows, report, latency):
        now = time.monotonic()
        if now - self._last < (0.1 if self._live else LINE_SECONDS):
            return
        self._last = now
        table = frame_table(rows, report, latency)
        if self._live:
            self._live.update(table, refresh=True)
        else:
            self._console.print(table)

    def close(self):
        if self._live:
            self._live.stop()


def frame_table(rows, report, latency):
    """The objects of a frame, the nearest first: under 80 columns wide."""
    table = Table(
        title=f"image {len(report.arrivals)}, answered after {latency * 1000:.0f} ms",
        caption="camera axes: x right, y down, z ahead, metres; heading 0° is away from us",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    columns = "     x    y     z  head"
    table.add_column("object", no_wrap=True, min_width=9)
    table.add_column(f"estimate\n{columns}", justify="right", no_wrap=True, style="bold")
    table.add_column(f"truth\n{columns}", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row.truth[2, 3]):
        name = f"{row.name} {row.label}"
        if row.estimate is None:
            table.add_row(name, "no pose", _pose_text(row.truth), "", style="yellow")
            continue
        good = row.rotation_error < 5 and row.translation_error < 0.5
        table.add_row(
            name,
            _pose_text(row.estimate),
            _pose_text(row.truth),
            f"{row.rotation_error:.1f}° {100 * row.translation_error:3.0f} cm",
            style="" if good else "yellow",
        )
    return table


def _pose_text(pose):
    """Position and heading: where the object's x axis points to, seen from above, degrees."""
    x, y, z = pose[:3, 3]
    heading = np.degrees(np.arctan2(-pose[0, 0], pose[2, 0]))
    return f"{x:6.2f}{y:5.1f}{z:6.2f}{heading:5.0f}°"


def caption(rows, latency):
    found = [row for row in rows if row.estimate is not None]
    if not found:
        return ""
    rotation = np.median([row.rotation_error for row in found])
    shift = np.median([row.translation_error for row in found])
    return (
        f"{len(found)} vehicles, median error {rotation:.1f} deg, {100 * shift:.0f} cm, "
        f"{latency * 1000:.0f} ms"
    )


def _write_caption(picture, text):
    place = (10, picture.shape[0] - 12)
    for color, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width, cv2.LINE_AA)


class _Video:
    """An MP4 file of BGR pictures, at the speed at which they came; nothing where OpenCV has no
    encoder."""

    def __init__(self, path, rate):
        self.path = path
        self._rate = rate
        self._writer = None
        self._start = None  # nanoseconds
        self._count = 0
        path.unlink(missing_ok=True)

    def add(self, stamp, picture):
        if self._writer is None:
            size = picture.shape[1], picture.shape[0]
            code = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, self._rate, size)
            self._start = stamp
        # where images were skipped a picture stands longer
        due = round((stamp - self._start) / 1e9 * self._rate) + 1
        while self._count < due:
            self._writer.write(picture)
            self._count += 1

    def close(self):
        """Whether there is a video."""
        if self._writer is not None:
            self._writer.release()
        return self.path.exists() and self.path.stat().st_size > 0


def contact_sheet(pictures):
    """Some of the JPEG pictures, evenly chosen, side by side; None without pictures."""
    if not pictures:
        return None
    rows, columns = SHEET
    chosen = np.linspace(0, len(pictures) - 1, rows * columns + 2).round().astype(int)[1:-1]
    shown = [cv2.imdecode(pictures[i], cv2.IMREAD_COLOR) for i in chosen]
    return np.vstack([np.hstack(shown[i : i + columns]) for i in range(0, len(shown), columns)])


def print_summary(console, summary, written):
    table = Table(
        title="The drive in numbers (medians)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("vehicle", "poses", "rotation error", "translation error", "within 5° and 5 %"):
        table.add_column(name, justify="left" if name == "vehicle" else "right")
    for name, row in [*summary["classes"].items(), ("all", summary)]:
        if row["poses"]:
            table.add_row(
                name,
                str(row["poses"]),
                f"{row['median_rotation_error_deg']:.2f}°",
                f"{100 * row['median_translation_error_m']:.1f} cm"
                f" ({row['median_translation_error_percent']:.2f} %)",
                f"{100 * row['share_5deg_5percent']:.0f} %",
                style="bold" if row is summary else "",
            )
    if summary["poses"]:
        console.print(table)
    latency = summary["latency_ms"]
    if summary["poses"]:
        console.print(
            f"{summary['frames_answered']} of {summary['images']} images answered at "
            f"{summary['rate_hz'] or 0:.1f} Hz; image to pose {latency['median']:.0f} ms (median), "
            f"{latency['p95']:.0f} ms (95 %), with the simulated network's delay; "
            f"{summary['poses']} poses of {summary['objects']} masks"
        )
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)
    for reason in summary["failed"]:
        console.print(f"FAILED: {reason}", style="bold red")


def main(args=None):
    console = Console(highlight=False)
    with Process(args) as process:
        node = DemoPrinter(console)
        while process.spin_for(node, 0.2):
            pass
        return node.finish(console)


if __name__ == "__main__":
    sys.exit(main())
