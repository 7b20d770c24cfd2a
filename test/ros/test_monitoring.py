# SPDX-License-Identifier: Apache-2.0
"""Counts, times, throttled log, diagnostics."""

import logging
from collections import Counter
from types import SimpleNamespace

import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus

from pose_refiner_ros.ros import diagnostics, log_bridge
from pose_refiner_ros.ros.frame_assembler import InputCounts
from pose_refiner_ros.ros.reports import MAX_KINDS, ReportLog, kind_of
from pose_refiner_ros.ros.statistics import MAX_REASONS, Statistics


class Log:
    def __init__(self):
        self.lines = []

    def __getattr__(self, severity):
        return lambda text: self.lines.append((severity, text))


def answer(statistics, now, poses=1, objects=1, reasons=(), latency=0.02):
    statistics.answered(now, latency, 0.01, poses, objects, reasons)


def test_rate_and_times():
    statistics = Statistics()
    assert statistics.recent(0.0) == {}
    for frame in range(50):
        answer(statistics, frame * 0.1, latency=0.02 if frame else 1.0)
    values = statistics.recent(5.0)
    assert values["rate (Hz)"] == "10.0"
    assert values["latency p50 (ms)"] == "20.0"
    assert values["processing p95 (ms)"] == "10.0"
    assert statistics.recent(100.0) == {}


def test_unstamped_frames_have_no_latency():
    statistics = Statistics()
    answer(statistics, 1.0, latency=float("nan"))
    values = statistics.recent(1.5)
    assert "latency p50 (ms)" not in values and "processing p50 (ms)" in values


def test_what_counts_as_an_answer():
    statistics = Statistics()
    answer(statistics, 1.0, poses=0, objects=2, reasons=["label 1 has no name"])
    assert statistics.last_answer is None
    assert statistics.last_reasons == ("label 1 has no name",)
    answer(statistics, 2.0, poses=0, objects=0)  # an empty scene is answered
    assert statistics.last_answer == 2.0
    answer(statistics, 3.0, poses=1, objects=2)
    assert statistics.last_answer == 3.0


def test_skips_since_the_last_answer():
    statistics = Statistics()
    statistics.skip("masks encoding")
    answer(statistics, 1.0)
    statistics.skip("masks size")
    assert statistics.skipped_since_answer() == {"masks size": 1}
    assert statistics.skipped == {"masks encoding": 1, "masks size": 1}
    statistics.skip("masks size", "masks are 80x60 pixels")
    assert statistics.last_reasons == ("masks are 80x60 pixels",)


def test_reasons_are_bounded():
    statistics = Statistics()
    for number in range(1000):
        statistics.leave_out(f"class horse{number}")
    assert len(statistics.left_out) == MAX_REASONS + 1
    assert sum(statistics.left_out.values()) == 1000


def test_log_says_each_kind_once_and_again_after_a_while():
    now = [0.0]
    log = Log()
    reports = ReportLog(log, clock=lambda: now[0])
    for label in range(5):
        reports.warn(f"label {label} has no name")
    reports.warn("the image is missing")
    assert log.lines == [
        ("warning", "label 0 has no name"),
        ("warning", "the image is missing"),
    ]
    now[0] = 31.0
    reports.warn("label 7 has no name")
    assert len(log.lines) == 3


def test_kinds_are_bounded():
    reports = ReportLog(Log())
    for number in range(1000):
        reports.warn("x" * number)
    assert len(reports._last) <= MAX_KINDS


def test_kind_has_no_numbers():
    assert kind_of("mug 3 has score 0.25, -1e5") == kind_of("mug 14 has score 0.5, -2e7")


def test_core_log_reaches_the_ros_log():
    log = Log()
    handler = log_bridge.connect(log)
    try:
        core = logging.getLogger("pose_refiner_ros.objects.library")
        core.warning("mesh %s is huge", "mug")
        core.error("bad")
    finally:
        log_bridge.disconnect(handler)
    assert log.lines == [("warning", "mesh mug is huge"), ("error", "bad")]


class Library(dict):
    def __init__(self, **objects):
        super().__init__(objects)
        self.problems, self.warnings = {}, {}


@pytest.mark.parametrize(
    "changes, level, words",
    [
        ({}, DiagnosticStatus.OK, "2 objects loaded"),
        ({"loading": True}, DiagnosticStatus.WARN, "compiling"),
        ({"load_error": "no such file"}, DiagnosticStatus.ERROR, "no such file"),
        ({"library": None}, DiagnosticStatus.OK, "not configured"),
    ],
)
def test_objects_status(changes, level, words):
    values = {
        "library": Library(mug=1, box=2),
        "load_error": "",
        "loading": False,
        "device": "cpu",
        "objects_file": "objects.yaml",
    }
    status = diagnostics.objects_status("pose_refiner", **{**values, **changes})
    assert status.level == level
    assert words in status.message


def test_what_comes_with_the_package_is_named():
    encoder = SimpleNamespace(classes=("suv", "cargo"))
    library = Library(suv=1)
    status = diagnostics.objects_status("pose_refiner", "", library, "", False, "cpu", encoder)
    pairs = {value.key: value.value for value in status.values}
    assert pairs["objects file"] == "that of the package: vehicles"
    assert pairs["encoder"] == "knows suv, cargo"


def test_objects_left_out_are_named():
    library = Library(mug=1)
    library.problems = {"box": "the mesh is missing"}
    status = diagnostics.objects_status("pose_refiner", "f", library, "", False, "cpu")
    assert status.level == DiagnosticStatus.WARN
    assert "box" in status.message
    assert ("problem with box", "the mesh is missing") in {(v.key, v.value) for v in status.values}


@pytest.mark.parametrize(
    "changes, level, words",
    [
        ({}, DiagnosticStatus.OK, "publishing poses"),
        ({"silence": "nobody publishes /masks"}, DiagnosticStatus.WARN, "nobody publishes"),
        ({"recent_error": True}, DiagnosticStatus.ERROR, "boom"),
        ({"state": "inactive"}, DiagnosticStatus.OK, "inactive"),
    ],
)
def test_poses_status(changes, level, words):
    statistics = Statistics()
    answer(statistics, 1.0)
    statistics.skip("masks encoding")
    statistics.error("boom")
    values = {
        "state": "active",
        "counts": InputCounts(Counter(masks=7), nearest={"image": 0.0331, "detections": None}),
        "silence": "",
        "recent_error": False,
        "now": 1.0,
    }
    status = diagnostics.poses_status(
        "pose_refiner", statistics=statistics, **{**values, **changes}
    )
    assert status.level == level
    assert words in status.message
    pairs = {value.key: value.value for value in status.values}
    assert pairs["masks received"] == "7"
    assert pairs["nearest image"] == "+0.033 s from the last masks"
    assert pairs["frames answered"] == "1"
    assert pairs["frames skipped: masks encoding"] == "1"
    assert pairs["last error"] == "boom"


def test_array_carries_the_stamp():
    stamp = Time(sec=3)
    assert diagnostics.array([], stamp).header.stamp == stamp
