# SPDX-License-Identifier: Apache-2.0
"""Counts and times of the running node, written by its threads, read by diagnostics."""

import threading
from collections import Counter, deque

import numpy as np

WINDOW_SECONDS = 10.0
MAX_REASONS = 50  # they quote names from messages, so there is no end to them


class Statistics:
    """`now` is in seconds of a steady clock throughout."""

    def __init__(self):
        self._lock = threading.Lock()
        self._answers = deque(maxlen=2000)  # (now, latency, processing), the last seconds
        self.frames = 0
        self.poses = 0
        self.with_motion = 0  # of these, in frames before which the camera's motion was known
        self.joined = 0  # of those, by several frames
        self.skipped = Counter()  # frames that were not answered, by reason
        self._skipped_at_answer = Counter()
        self.left_out = Counter()  # objects in answered frames without a pose, by reason
        self.last_answer = None  # when a frame was answered that had a pose or nothing to find
        self.last_error = ""
        self.errors = 0
        # Why the last frame gave no pose, or not all.
        self.last_reasons = ()

    def answered(self, now, latency, processing, poses, objects, reasons):
        with self._lock:
            self.frames += 1
            self.poses += poses
            self._answers.append((now, latency, processing))
            self.last_reasons = tuple(reasons)
            if poses or not objects:
                self.last_answer = now
                self._skipped_at_answer = self.skipped.copy()

    def add_joined(self, frames):
        """Of the poses of a frame before which the camera's motion was known: by how many frames
        each is known."""
        with self._lock:
            self.with_motion += len(frames)
            self.joined += sum(count > 1 for count in frames)

    def skip(self, reason, text=""):
        """reason: a short name to count by; text: what to tell the user, if there is more."""
        with self._lock:
            self.skipped[reason] += 1
            if text:
                self.last_reasons = (text,)

    def skipped_since_answer(self):
        """Reasons and counts since a pose was last published."""
        with self._lock:
            return dict(self.skipped - self._skipped_at_answer)

    def leave_out(self, reason):
        with self._lock:
            if reason not in self.left_out and len(self.left_out) >= MAX_REASONS:
                reason = "other reasons"
            self.left_out[reason] += 1

    def error(self, text):
        with self._lock:
            self.errors += 1
            self.last_error = text

    def recent(self, now):
        """Rate and times of the last seconds as text for diagnostics, {} if there was nothing."""
        with self._lock:
            recent = [answer for answer in self._answers if now - answer[0] <= WINDOW_SECONDS]
        if not recent:
            return {}
        ends, latencies, processing = np.array(recent, dtype=np.float64).T
        span = max(now - ends[0], 1e-3)
        rate = (len(ends) - 1) / max(ends[-1] - ends[0], 1e-3) if len(ends) > 1 else 1 / span
        values = {"rate (Hz)": f"{rate:.1f}"}
        for name, times in (("latency", latencies), ("processing", processing)):
            times = times[np.isfinite(times)]  # unstamped images have no latency
            if not len(times):
                continue
            middle, high = np.percentile(times * 1e3, (50, 95))
            values[f"{name} p50 (ms)"] = f"{middle:.1f}"
            values[f"{name} p95 (ms)"] = f"{high:.1f}"
        return values
