# SPDX-License-Identifier: Apache-2.0
"""Puts the frames of further cameras beside those of the first. No ROS in here."""


class CameraSet:
    """Frames of one moment: the first camera's, and of the others those whose masks have the same
    stamp, for which it waits a little."""

    def __init__(self, first, others):
        """first: a FrameAssembler; others: {name: FrameAssembler}."""
        self.first, self.others = first, others
        self._held = None  # a frame of the first camera that waits for the others, and since when
        self._found = {}

    def clear(self):
        self._held, self._found = None, {}
        for assembler in (self.first, *self.others.values()):
            assembler.clear()

    def take(self, now, alive):
        """(frame, {name: frame of another camera}, [what is missing]) or None. alive: names of the
        cameras whose masks are still coming."""
        if self._held is None:
            frame = self.first.take(now)
            if frame is None:
                return None
            self._held, self._found = (frame, now), {}
        frame, since = self._held
        waiting = False
        for name, assembler in self.others.items():
            if name not in self._found:
                other = assembler.take_near(frame.stamp, now)
                if other is not None:
                    self._found[name] = other
                elif name in alive and assembler.may_have(frame.stamp):
                    waiting = True
        if waiting and now - since < self.first.options.sync_timeout:
            return None
        self._held = None
        missing = [
            f"camera {name} is left out: "
            + ("no masks have the stamp of the first's" if name in alive else "no masks come")
            for name in self.others
            if name not in self._found
        ]
        return frame, self._found, missing

    def wait_seconds(self, now):
        """When `take` is worth another try without a new message; None for never."""
        waits = [self.first.wait_seconds(now)]
        if self._held is not None:
            waits.append(max(0.0, self._held[1] + self.first.options.sync_timeout - now))
        waits = [wait for wait in waits if wait is not None]
        return min(waits) if waits else None
