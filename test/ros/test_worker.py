# SPDX-License-Identifier: Apache-2.0
import threading
import time
from collections import deque

import pytest

from pose_refiner_ros.ros.worker import Worker


class Bench:
    def __init__(self, process, wait=None):
        self.frames = deque()
        self.errors = []
        self.worker = Worker(
            lambda: self.frames.popleft() if self.frames else None,
            process,
            lambda: wait,
            self.errors.append,
        )

    def feed(self, *frames):
        self.frames.extend(frames)
        self.worker.wake()


@pytest.fixture
def bench():
    made = []

    def make(*args, **options):
        made.append(Bench(*args, **options))
        return made[-1]

    yield make
    for bench in made:
        assert bench.worker.stop(5.0)


def test_frames_in_order_and_all(bench):
    done = []
    one = bench(done.append)
    one.feed(1, 2, 3)
    assert one.worker.wait_idle(5.0)
    one.feed(4)
    assert one.worker.wait_idle(5.0)
    deadline = time.monotonic() + 5
    while len(done) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [1, 2, 3, 4]


def test_exception_does_not_end_the_thread(bench):
    done = []

    def process(frame):
        if frame == "bad":
            raise RuntimeError("boom")
        done.append(frame)

    one = bench(process)
    one.feed("bad", "good")
    deadline = time.monotonic() + 5
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == ["good"]
    assert [str(error) for error in one.errors] == ["boom"]


def test_jobs_return_values_and_exceptions(bench):
    one = bench(lambda frame: None)
    assert one.worker.submit(lambda a, b: a + b, 2, 3).result(5) == 5
    with pytest.raises(ZeroDivisionError):
        one.worker.submit(lambda: 1 / 0).result(5)


def test_waiting_for_a_long_frame_gives_up(bench):
    go = threading.Event()
    one = bench(lambda frame: go.wait(5))
    one.feed(1)
    deadline = time.monotonic() + 5
    while one.worker.busy_since is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not one.worker.wait_idle(0.05)
    go.set()
    assert one.worker.wait_idle(5.0)
    assert one.worker.busy_since is None


def test_frames_that_become_ready_by_waiting_are_found(bench):
    done = []
    one = bench(done.append, wait=0.02)
    one.frames.append("ready after a while")  # no wake()
    deadline = time.monotonic() + 5
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done
