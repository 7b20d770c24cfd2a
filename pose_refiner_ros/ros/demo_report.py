# SPDX-License-Identifier: Apache-2.0
"""Estimated poses beside the true ones, frame by frame and in total. No ROS in here."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pose_refiner_ros.evaluation.metrics import pose_errors


@dataclass
class Row:
    """One object of one frame; the estimate's fields are None where there is none."""

    label: int
    name: str
    truth: np.ndarray  # camera_from_object (4, 4)
    estimate: np.ndarray | None = None
    score: float | None = None
    rotation_error: float | None = None  # degrees
    translation_error: float | None = None  # metres


class DriveReport:
    """Collects true and estimated poses by stamp and sums up their differences."""

    def __init__(self):
        self._truths = {}  # stamp -> {label: (name, pose)}
        self.rows = []
        self.latencies = []  # seconds
        self.arrivals = []  # seconds of a steady clock
        self.images = 0

    def add_truth(self, stamp, objects):
        """objects: {label: (name, camera_from_object)} of an image."""
        self.images += 1
        self._truths[stamp] = objects

    def add_estimates(self, stamp, estimates, latency, arrival):
        """estimates: [(name, camera_from_object, score)]. The rows of this frame, or None if its
        truth is not known."""
        truths = self._truths.pop(stamp, None)
        if truths is None:
            return None
        self.latencies.append(latency)
        self.arrivals.append(arrival)
        rows = []
        matches = _matches(truths, estimates)
        for label, (name, truth) in truths.items():
            row = Row(label, name, truth)
            if label in matches:
                _, row.estimate, row.score = matches[label]
                rotation, translation = pose_errors(row.estimate, truth)
                row.rotation_error = float(np.degrees(rotation))
                row.translation_error = float(translation)
            rows.append(row)
        self.rows += rows
        return rows

    def summary(self):
        """A dictionary for JSON; None where there is nothing to measure."""
        found = [row for row in self.rows if row.estimate is not None]
        duration = self.arrivals[-1] - self.arrivals[0] if len(self.arrivals) > 1 else 0.0
        return {
            **_statistics(found),
            "objects": len(self.rows),
            "poses": len(found),
            "images": self.images,
            "frames_answered": len(self.arrivals),
            "rate_hz": _rounded((len(self.arrivals) - 1) / duration if duration else None),
            "latency_ms": {
                "median": _rounded(_percentile(self.latencies, 50), 1000),
                "p95": _rounded(_percentile(self.latencies, 95), 1000),
            },
            "classes": {
                name: {"poses": len(rows), **_statistics(rows)}
                for name in sorted({row.name for row in found})
                for rows in [[row for row in found if row.name == name]]
            },
        }


def _matches(truths, estimates):
    """{label: estimate}: of the same class, so that the distances add up to the least. Ids do not
    tell: those of the poses are the tracker's."""
    matches = {}
    for kind in {name for name, _ in truths.values()}:
        labels = [label for label, (name, _) in truths.items() if name == kind]
        found = [estimate for estimate in estimates if estimate[0] == kind]
        if not found:
            continue
        positions = np.array([truths[label][1][:3, 3] for label in labels])
        guesses = np.array([pose[:3, 3] for _, pose, _ in found])
        distances = np.linalg.norm(positions[:, None] - guesses[None], axis=2)
        for i, j in zip(*linear_sum_assignment(distances), strict=True):
            matches[labels[i]] = found[j]
    return matches


def _statistics(rows):
    rotations = [row.rotation_error for row in rows]
    translations = [row.translation_error for row in rows]
    relative = [row.translation_error / np.linalg.norm(row.truth[:3, 3]) for row in rows]
    close = [r < 5 and t < 0.05 for r, t in zip(rotations, relative, strict=True)]
    return {
        "median_rotation_error_deg": _rounded(_percentile(rotations, 50)),
        "median_translation_error_m": _rounded(_percentile(translations, 50)),
        "median_translation_error_percent": _rounded(_percentile(relative, 50), 100),
        "share_5deg_5percent": _rounded(np.mean(close) if close else None),
    }


def _percentile(values, percent):
    return np.percentile(values, percent) if values else None


def _rounded(value, factor=1):
    return None if value is None else round(float(value) * factor, 4)


def failures(summary, max_rotation_deg, max_translation_m):
    """Why the drive counts as failed; empty if it does not."""
    if not summary["images"]:
        return ["no image was received: see camera.log"]
    if not summary["poses"]:
        return ["no pose was received: see node.log"]
    reasons = []
    # the node skips frames that it has no time for, so a slow machine answers fewer
    if summary["frames_answered"] < 0.1 * summary["images"]:
        reasons.append(
            f"only {summary['frames_answered']} of {summary['images']} images were answered"
        )
    for key, bound, unit in (
        ("median_rotation_error_deg", max_rotation_deg, "degrees"),
        ("median_translation_error_m", max_translation_m, "m"),
    ):
        if summary[key] > bound:
            reasons.append(f"{key.replace('_', ' ')} is {summary[key]}, over {bound} {unit}")
    return reasons
