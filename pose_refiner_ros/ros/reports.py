# SPDX-License-Identifier: Apache-2.0
"""Logs what is wrong once per kind and then now and then, not thirty times a second."""

import re
import time

REPEAT_SECONDS = 30.0
MAX_KINDS = 200  # class names and numbers come from outside: the memory must not grow with them


class ReportLog:
    def __init__(self, logger, clock=time.monotonic):
        self._logger = logger
        self._clock = clock
        self._last = {}  # kind -> when it was logged

    def warn(self, text, kind=None):
        """Log a warning if its kind was not logged lately; returns the kind."""
        kind = kind or kind_of(text)
        if self._is_due(kind):
            self._logger.warning(text)
        return kind

    def error(self, text, kind):
        if self._is_due(kind):
            self._logger.error(text)

    def _is_due(self, kind):
        now = self._clock()
        if kind not in self._last and len(self._last) >= MAX_KINDS:
            self._last.pop(min(self._last, key=self._last.get))
        if now - self._last.get(kind, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        self._last[kind] = now
        return True


def kind_of(text):
    """The text without its numbers: what is the same each time it happens."""
    return re.sub(r"[-+]?\d+(\.\d+)?", "#", text)[:120]
