# SPDX-License-Identifier: Apache-2.0
"""The one thread that does the work, so that callbacks only put messages away."""

import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError


class Worker:
    """Runs jobs in order, and frames in between.

    take() returns the next frame or None; process(frame) does its work; wait_seconds() says when
    take() is worth another try without a wake(), None for never. An exception that escapes
    process() goes to on_error: the thread never ends by one.
    """

    def __init__(self, take, process, wait_seconds, on_error):
        self._take = take
        self._process = process
        self._wait_seconds = wait_seconds
        self._on_error = on_error
        self._jobs = deque()
        self._woken = threading.Event()
        self._stopping = False
        self.busy_since = None  # set while a frame is processed; read by diagnostics
        # A daemon, so that a kernel that compiles for a minute cannot keep the process alive.
        self._thread = threading.Thread(target=self._run, name="pose_refiner_worker", daemon=True)
        self._thread.start()

    def wake(self):
        """Say that take() may have a frame."""
        self._woken.set()

    def submit(self, job, *args):
        """Run job(*args) after the frame at hand; a Future of its result."""
        future = Future()
        self._jobs.append((future, job, args))
        self.wake()
        return future

    def wait_idle(self, timeout):
        """Wait until the frame at hand is done; False if that took longer than timeout seconds."""
        try:
            self.submit(lambda: None).result(timeout)
            return True
        except FutureTimeoutError:
            return False

    def stop(self, timeout):
        """End the thread; False if it is still busy after timeout seconds."""
        self._stopping = True
        self.wake()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self):
        while not self._stopping:
            self._woken.wait(self._wait_seconds())
            self._woken.clear()
            while not self._stopping and self._step():
                pass

    def _step(self):
        """One job or one frame; False if there is neither."""
        if self._jobs:
            self._run_job(*self._jobs.popleft())
            return True
        try:
            frame = self._take()
            if frame is None:
                return False
            self.busy_since = time.monotonic()
            self._process(frame)
        except Exception as error:
            self._on_error(error)
        finally:
            self.busy_since = None
        return True

    @staticmethod
    def _run_job(future, job, args):
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(job(*args))
        except BaseException as error:  # belongs to whoever waits for the result
            future.set_exception(error)
