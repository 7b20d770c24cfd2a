# SPDX-License-Identifier: Apache-2.0
"""Classes that only the encoder gives: settled over frames, corrected once, given way to others."""

import numpy as np
import pytest

from pose_refiner_ros.tracking.identity import Observation
from pose_refiner_ros.tracking.naming import ClassMemory

SUV = {"suv": 0.9, "cargo": 0.1}
CARGO = {"suv": 0.1, "cargo": 0.9}


def seen(label, x, name=None):
    return Observation(label, name, (x, 100.0), 60.0)


def settle(memory, frame, probabilities, x=50.0, name=None, label=1):
    said = {} if probabilities is None else {label: probabilities}
    return memory.settle(0.1 * frame, [seen(label, x, name)], said).get(label)


def test_a_class_that_flips_from_frame_to_frame_stays():
    memory = ClassMemory()
    named = [settle(memory, i, (SUV, CARGO)[i % 2], 50 + 3 * i) for i in range(20)]
    assert {one.name for one in named} == {"suv"}
    assert not any(one.corrected for one in named)
    assert len({id(one.track) for one in named}) == 1
    assert all(0.2 < one.probability < 0.95 for one in named)


@pytest.mark.parametrize("seed", range(5))
def test_the_better_class_wins_and_stays(seed):
    rng, memory = np.random.default_rng(seed), ClassMemory()
    named = [settle(memory, i, SUV if rng.random() < 0.8 else CARGO) for i in range(100)]
    names = [one.name for one in named]
    assert set(names[30:]) == {"suv"}
    assert sum(one.corrected for one in named) <= 1


def test_a_first_mistake_is_corrected_once():
    memory = ClassMemory()
    named = [settle(memory, i, CARGO if i < 2 else SUV) for i in range(20)]
    names = [one.name for one in named]
    assert names[:4] == ["cargo"] * 4 and names[-10:] == ["suv"] * 10
    assert [one.corrected for one in named].count(True) == 1
    assert named[-1].probability > 0.99
    assert named[0].track is named[-1].track


def test_what_was_said_long_ago_is_forgotten():
    memory = ClassMemory()
    for i in range(1000):
        settle(memory, i, SUV)
    named = [settle(memory, 1000 + i, CARGO) for i in range(40)]
    assert named[-1].name == "cargo"


def test_a_given_name_wins_at_once_and_is_remembered():
    memory = ClassMemory()
    for i in range(10):
        settle(memory, i, SUV)
    told = settle(memory, 10, None, name="cargo")
    assert (told.name, told.probability, told.corrected) == ("cargo", 1.0, True)
    later = [settle(memory, 11 + i, SUV) for i in range(30)]
    assert {one.name for one in later} == {"cargo"}
    assert not any(one.corrected for one in later)
    # a detector that changes its mind does not correct the encoder
    again = settle(memory, 41, None, name="sedan")
    assert again.name == "sedan" and not again.corrected


def test_objects_are_told_apart_by_where_they_are():
    memory = ClassMemory()
    for i in range(10):
        labels = (1, 2) if i % 2 else (2, 1)  # renumbered in each frame
        observations = [seen(labels[0], 50.0 + i), seen(labels[1], 300.0 - i)]
        said = {labels[0]: SUV, labels[1]: CARGO}
        named = memory.settle(0.1 * i, observations, said)
        assert named[labels[0]].name == "suv" and named[labels[1]].name == "cargo"


def test_another_object_where_one_was_lost_does_not_inherit_its_class():
    memory = ClassMemory()
    for i in range(10):
        first = settle(memory, i, SUV)
    newcomer = settle(memory, 10, CARGO, x=78.0)
    assert newcomer.name == "cargo"
    assert newcomer.track is not first.track
    back = settle(memory, 11, SUV, x=50.0)
    assert back.track is first.track


def test_nothing_known_is_no_name_and_does_no_harm():
    memory = ClassMemory()
    assert settle(memory, 0, None) is None
    assert settle(memory, 1, {}) is None
    assert settle(memory, 2, SUV).name == "suv"


def test_reset_and_time_that_jumps_back_forget():
    for forget in (lambda memory: memory.reset(), lambda memory: None):
        memory = ClassMemory()
        for i in range(10):
            settle(memory, 100 + i, SUV)
        forget(memory)
        assert settle(memory, 1, CARGO).name == "cargo"


def test_the_same_doubt_again_and_again_is_no_certainty():
    memory = ClassMemory()
    said = {"suv": 0.55, "cargo": 0.40, "sedan": 0.05}
    named = [settle(memory, i, said) for i in range(100)]
    assert named[0].probability == pytest.approx(0.55)
    assert {one.name for one in named} == {"suv"}
    assert max(one.probability for one in named) < 0.75
    assert named[-1].probability > 0.6  # but it is a little more than one frame says


def test_impossible_and_certain_are_not_infinite():
    memory = ClassMemory()
    for i in range(10):
        assert np.isfinite(settle(memory, i, {"suv": 1.0, "cargo": 0.0}).probability)
    named = [settle(memory, 10 + i, {"suv": 0.0, "cargo": 1.0}) for i in range(40)]
    assert named[-1].name == "cargo"
