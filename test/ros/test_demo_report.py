# SPDX-License-Identifier: Apache-2.0
"""The demo's bookkeeping: poses matched to the truth, errors summed up, failure recognised."""

import io
import json

import cv2
import numpy as np
import pytest
from rich.console import Console

from pose_refiner_ros.ros import demo_printer
from pose_refiner_ros.ros.demo_report import DriveReport, failures


def pose(x=0.0, z=10.0, degrees=0.0):
    """Upright, turned about the vertical."""
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [np.cos(angle), 0, np.sin(angle)],
        [0, 1, 0],
        [-np.sin(angle), 0, np.cos(angle)],
    ]
    matrix[:3, 3] = x, 1.0, z
    return matrix


def test_errors_of_a_frame():
    report = DriveReport()
    report.add_truth(5, {7: ("van", pose())})
    (row,) = report.add_estimates(5, [("van", pose(0.3, degrees=4.0), 0.9)], 0.1, 1.0)
    assert row.label == 7 and row.score == 0.9
    assert row.rotation_error == pytest.approx(4.0, abs=1e-6)
    assert row.translation_error == pytest.approx(0.3)


def test_poses_are_matched_within_their_class_so_that_distances_are_least():
    report = DriveReport()
    truth = {1: ("van", pose(0)), 2: ("van", pose(4)), 3: ("suv", pose(2)), 4: ("suv", pose(9))}
    report.add_truth(5, truth)
    estimates = [("van", pose(4.1), 1.0), ("suv", pose(2.2), 1.0), ("van", pose(-0.1), 1.0)]
    rows = {row.label: row for row in report.add_estimates(5, estimates, 0.1, 1.0)}
    assert rows[1].estimate[0, 3] == pytest.approx(-0.1)
    assert rows[2].estimate[0, 3] == pytest.approx(4.1)
    assert rows[3].estimate[0, 3] == pytest.approx(2.2)
    assert rows[4].estimate is None and rows[4].rotation_error is None


def test_poses_without_truth_are_not_counted():
    report = DriveReport()
    assert report.add_estimates(5, [("van", pose(), 1.0)], 0.1, 1.0) is None
    assert report.summary()["frames_answered"] == 0


def test_summary():
    report = DriveReport()
    for i, error in enumerate((1.0, 2.0, 30.0)):
        report.add_truth(i, {1: ("van", pose()), 2: ("suv", pose(5.0))})
        report.add_estimates(i, [("van", pose(0.1, degrees=error), 1.0)], 0.1 + 0.01 * i, 0.1 * i)
    report.add_truth(9, {1: ("van", pose())})  # never answered
    summary = report.summary()
    assert (summary["images"], summary["frames_answered"]) == (4, 3)
    assert (summary["poses"], summary["objects"]) == (3, 6)
    assert summary["rate_hz"] == pytest.approx(10.0)
    assert summary["latency_ms"]["median"] == pytest.approx(110.0)
    assert summary["median_rotation_error_deg"] == pytest.approx(2.0)
    assert summary["median_translation_error_m"] == pytest.approx(0.1)
    assert summary["share_5deg_5percent"] == pytest.approx(2 / 3, abs=1e-3)
    assert summary["classes"]["van"]["poses"] == 3 and "suv" not in summary["classes"]
    json.dumps(summary)


@pytest.mark.parametrize(
    "answered, error, reason",
    [(20, 1.0, None), (0, 1.0, "no pose"), (1, 1.0, "1 of 20"), (20, 9.0, "over 5.0 degrees")],
)
def test_a_drive_that_went_wrong_is_recognised(answered, error, reason):
    report = DriveReport()
    for i in range(20):
        report.add_truth(i, {1: ("van", pose())})
        if i < answered:
            report.add_estimates(i, [("van", pose(degrees=error), 1.0)], 0.1, 0.1 * i)
    reasons = failures(report.summary(), 5.0, 0.3)
    assert (reasons == []) if reason is None else any(reason in text for text in reasons)


def test_nothing_received_is_a_failure():
    assert "camera.log" in failures(DriveReport().summary(), 5.0, 0.3)[0]


def printed(thing, width=80):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(thing)
    return console.file.getvalue()


def test_the_table_fits_80_columns_and_shows_estimate_and_truth():
    report = DriveReport()
    report.add_truth(1, {12: ("pickup", pose(-12.3, 34.2, 170.0)), 3: ("van", pose())})
    rows = report.add_estimates(1, [("pickup", pose(-12.0, 34.2, -170.0), 0.9)], 0.1, 1.0)
    text = printed(demo_printer.frame_table(rows, report, 0.1))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "-12.00" in text and "-12.30" in text and "20.0°" in text and "30 cm" in text
    assert "no pose" in text


def test_heading_is_zero_ahead_and_positive_to_the_left():
    def heading(forward):
        matrix = np.eye(4)
        matrix[:3, 0] = forward
        return demo_printer._pose_text(matrix).split()[-1]

    assert heading((0, 0, 1)).strip("-") == "0°"
    assert heading((-1, 0, 0)) == "90°"
    assert heading((1, 0, 0)) == "-90°"


def test_contact_sheet_is_made_of_pictures_from_the_whole_drive():
    pictures = []
    for shade in np.linspace(0, 255, 40):
        picture = np.full((48, 64, 3), shade, np.uint8)
        pictures.append(cv2.imencode(".jpg", picture)[1])
    sheet = demo_printer.contact_sheet(pictures)
    assert sheet.shape == (2 * 48, 3 * 64, 3)
    assert sheet[0, 0, 0] < 60 and sheet[-1, -1, 0] > 195
    assert demo_printer.contact_sheet(pictures[:1]).shape == sheet.shape
    assert demo_printer.contact_sheet([]) is None


def test_the_video_runs_at_the_speed_of_the_drive(tmp_path):
    video = demo_printer._Video(tmp_path / "video.mp4", 10.0)
    for milliseconds in (0, 100, 500, 510):
        video.add(10**9 + milliseconds * 10**6, np.full((48, 64, 3), milliseconds // 5, np.uint8))
    assert video.close()
    read = cv2.VideoCapture(str(tmp_path / "video.mp4"))
    shades = [picture.mean() for ok, picture in iter(read.read, (False, None)) if ok]
    assert len(shades) == 6
    assert shades[2] > shades[1] + 40  # the third picture fills the gap before it
    assert not demo_printer._Video(tmp_path / "empty.mp4", 10.0).close()
