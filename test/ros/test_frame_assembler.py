# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest

from pose_refiner_ros.ros import frame_assembler
from pose_refiner_ros.ros.frame_assembler import FrameAssembler, SyncOptions

MS = 1_000_000
START = 1_000_000 * MS


class Bench:
    """An assembler, with stamps in milliseconds after some start."""

    def __init__(self, **options):
        self.skipped = Counter()
        self.jumps = 0
        self.assembler = FrameAssembler(self._skip, self._jump)
        self.assembler.options = SyncOptions(**options)

    def _skip(self, reason):
        self.skipped[reason] += 1

    def _jump(self):
        self.jumps += 1

    def image(self, ms, size=100):
        self.assembler.add("image", START + ms * MS, f"image {ms}", size)

    def info(self, ms=0):
        self.assembler.add("camera_info", START + ms * MS, f"info {ms}")

    def masks(self, ms, now=0.0, size=100):
        self.assembler.add_masks(START + ms * MS, f"masks {ms}", size, now)

    def detections(self, ms):
        self.assembler.add("detections", START + ms * MS, f"detections {ms}")

    def initial(self, ms):
        self.assembler.add("initial_poses", START + ms * MS, f"initial {ms}")

    def take(self, now=0.0):
        frame = self.assembler.take(now)
        return frame and [
            part and str(part).split()[-1]
            for part in (frame.masks, frame.image, frame.detections, frame.initial_poses)
        ]


def test_exact_stamps():
    bench = Bench()
    bench.info()
    for ms in (0, 33, 66):
        bench.image(ms)
    bench.masks(33)
    assert bench.take() == ["33", "33", None, None]
    assert bench.take() is None


def test_nearest_within_slop_but_the_equal_one_first():
    bench = Bench(sync_slop=0.01)
    bench.info()
    for ms in (0, 28, 33, 38, 66):
        bench.image(ms)
    bench.masks(33)
    assert bench.take()[1] == "33"
    bench.masks(60)
    assert bench.take()[1] == "66"
    bench.masks(80)
    assert bench.take()[1] is None  # 14 ms away


def test_slop_of_zero_takes_equal_stamps_only():
    bench = Bench(sync_slop=0.0)
    bench.info()
    bench.image(33)
    bench.masks(33)
    assert bench.take()[1] == "33"
    bench.image(66)
    bench.masks(67)
    assert bench.take()[1] is None


def test_masks_long_after_their_image():
    bench = Bench()
    bench.info()
    for ms in range(0, 1000, 33):
        bench.image(ms)
    bench.masks(33)
    assert bench.take()[1] == "33"


def test_masks_before_their_image_wait_for_it():
    bench = Bench(images_expected=True)
    bench.info()
    bench.image(0)
    bench.masks(33)
    assert bench.take(0.01) is None
    assert bench.assembler.wait_seconds(0.01) == pytest.approx(0.19)
    bench.image(33)
    assert bench.take(0.02)[1] == "33"


def test_image_that_does_not_come_is_waited_for_until_the_timeout():
    bench = Bench(images_expected=True, sync_timeout=0.2)
    bench.info()
    bench.masks(33, now=5.0)
    assert bench.take(5.1) is None
    assert bench.take(5.2) == ["33", None, None, None]


def test_image_is_not_waited_for_once_a_later_one_is_there():
    bench = Bench(images_expected=True)
    bench.info()
    bench.image(66)
    bench.masks(33)
    assert bench.take() == ["33", None, None, None]


def test_masks_alone_are_answered_at_once_where_there_are_no_images():
    bench = Bench(images_expected=False)
    bench.info()
    bench.masks(33)
    assert bench.take() == ["33", None, None, None]


def test_required_image_that_never_matches_is_counted():
    bench = Bench(require_image=True)
    bench.info()
    bench.image(500)
    bench.masks(33)
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.NO_IMAGE: 1}
    assert bench.assembler.counts.nearest["image"] == pytest.approx(0.467)


def test_camera_info_may_come_late_and_once():
    bench = Bench()
    bench.masks(0)
    assert bench.take(100.0) is None  # masks wait for the first one as long as it takes
    bench.info(ms=5000)
    assert bench.take(100.0)[0] == "0"
    for ms in (33, 66):
        bench.masks(ms)
        assert bench.take()[0] == str(ms)


def test_camera_info_with_the_nearest_stamp():
    bench = Bench()
    for ms in (0, 33, 66):
        bench.info(ms)
    bench.masks(33)
    assert bench.assembler.take(0.0).camera_info == "info 33"


def test_newest_frame_wins_and_the_others_are_counted():
    bench = Bench()
    bench.info()
    for ms in (0, 33, 66):
        bench.masks(ms)
    assert bench.take()[0] == "66"
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.NEWER_FRAME: 2}


def test_complete_frame_is_taken_while_a_newer_one_waits():
    bench = Bench(detections_expected=True)
    bench.info()
    bench.masks(0)
    bench.detections(0)
    bench.masks(33)
    assert bench.take()[2] == "0"
    assert bench.take() is None
    bench.detections(33)
    assert bench.take()[2] == "33"


@pytest.mark.parametrize(
    "policy, expected, answered_at_once, answered_in_the_end",
    [
        ("never", True, True, True),
        ("auto", False, True, True),
        ("auto", True, False, True),
        ("always", False, False, False),
        ("always", True, False, False),
    ],
)
def test_waiting_for_detections(policy, expected, answered_at_once, answered_in_the_end):
    bench = Bench(use_detections=policy, detections_expected=expected, sync_timeout=0.2)
    bench.info()
    bench.masks(33, now=0.0)
    answer = bench.take(0.1)
    assert bool(answer) == answered_at_once
    answer = answer or bench.take(0.25)
    assert bool(answer) == answered_in_the_end
    assert bench.skipped == ({} if answer else {frame_assembler.NO_DETECTIONS: 1})


def test_later_detections_show_that_none_will_come():
    bench = Bench(use_detections="always")
    bench.info()
    bench.detections(66)
    bench.masks(33)
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.NO_DETECTIONS: 1}


def test_initial_poses_are_used_while_they_are_fresh():
    bench = Bench(initial_pose_max_age=0.1)
    bench.info()
    bench.initial(0)
    bench.masks(50)
    assert bench.take()[3] == "0"
    bench.masks(200)
    assert bench.take()[3] is None


def test_same_stamp_is_answered_once():
    bench = Bench()
    bench.info()
    bench.masks(0)
    assert bench.take()
    bench.masks(0)
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.DUPLICATE: 1}


def test_slightly_older_masks_are_out_of_order():
    bench = Bench()
    bench.info()
    bench.masks(100)
    assert bench.take()
    bench.masks(66)
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.OUT_OF_ORDER: 1}
    assert bench.jumps == 0


def test_bag_that_loops_starts_again():
    bench = Bench()
    for _ in range(3):
        for ms in range(0, 2000, 100):
            bench.info(ms)
            bench.image(ms)
            bench.masks(ms)
            assert bench.take()[:2] == [str(ms), str(ms)]
    assert bench.jumps == 2


def test_jump_back_forgets_masks_that_still_wait():
    bench = Bench()
    bench.masks(5000)
    bench.masks(0)
    bench.info()
    assert bench.take()[0] == "0"
    assert bench.take() is None
    assert bench.skipped == {frame_assembler.JUMPED_BACK: 1}


def test_unstamped_messages_are_answered():
    bench = Bench()
    bench.assembler.add("camera_info", 0, "info 0")
    for number in range(3):
        bench.assembler.add("image", 0, f"image {number}", 1)
        bench.assembler.add_masks(0, f"masks {number}", 1, 0.0)
        assert bench.take()[:2] == [str(number), str(number)]


def test_burst_of_images_keeps_memory_bounded():
    bench = Bench(buffer_size=60, buffer_megabytes=8)
    for ms in range(1000):
        bench.image(ms, size=2**20)
    assert len(bench.assembler._buffers["image"]) == 8  # megabytes
    bench.assembler.options.buffer_megabytes = 1000
    for ms in range(1000, 2000):
        bench.image(ms, size=2**20)
    assert len(bench.assembler._buffers["image"]) == 60  # messages


def test_burst_of_masks_keeps_memory_bounded():
    bench = Bench(buffer_size=60)
    for ms in range(1000):
        bench.masks(ms)
    assert len(bench.assembler._pending) == 60
    assert bench.skipped == {frame_assembler.BUFFER_FULL: 940}
    bench.info()
    assert bench.take()[0] == "999"


def test_one_message_larger_than_the_bound_is_kept():
    bench = Bench(buffer_megabytes=8)
    bench.info()
    bench.image(0, size=2**30)
    bench.masks(0, size=2**30)
    assert bench.take()[:2] == ["0", "0"]


def test_clear_forgets_frames_but_not_the_camera():
    bench = Bench()
    bench.info()
    bench.image(0)
    bench.masks(0)
    bench.assembler.clear()
    assert bench.take() is None
    bench.masks(0)
    assert bench.take()[:2] == ["0", None]


def test_images_alone_each_once_and_the_newest():
    bench = Bench()

    def take():
        frame = bench.assembler.take_image()
        return frame and (frame.image, frame.camera_info, frame.masks)

    bench.image(0)
    assert take() is None  # without a calibration
    bench.info()
    bench.image(33)
    assert take() == ("image 33", "info 0", None)
    assert take() is None
    bench.assembler.add("image", 0, "first without a stamp", 1)
    assert take()[0] == "first without a stamp"
    bench.assembler.add("image", 0, "second without a stamp", 1)
    assert take()[0] == "second without a stamp"
    assert take() is None
