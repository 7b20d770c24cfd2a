# SPDX-License-Identifier: Apache-2.0
"""Refinement of objects against masks: accuracy, batches, restarts, hidden parts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import (
    angle_deg,
    box,
    cylinder,
    ell,
    guesses,
    model,
    pinhole_camera,
    pose,
    random_rotation,
    random_turn,
    shift_between,
    silhouette,
    turned,
)

from pose_refiner_ros.objects.symmetry import Axis, Symmetries
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.refinement.search import fits_to_the_pixel

CAMERA = pinhole_camera(256, 300.0)
ELL, BOX = model("ell", ell()), model("box", box())
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))


def random_pose(rng: np.random.Generator) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = random_rotation(rng)
    result[:3, 3] = rng.uniform(-1, 1, 3) * [0.05, 0.05, 0.1] + np.array([0, 0, 0.6])
    return result


def seen(shape, camera_from_object, camera=CAMERA):
    return observe_mask(silhouette(shape.mesh, camera_from_object, camera), 1, camera)


@pytest.fixture(scope="module")
def refiner():
    return Refiner([ELL, BOX], capacity=64)


def outline(found: Hypothesis):
    """How its silhouette lies on the mask."""
    return found.fits["silhouette"]


def same(a, b) -> None:
    np.testing.assert_array_equal(a.reference_from_object, b.reference_from_object)
    np.testing.assert_array_equal(a.covariance, b.covariance)
    assert (a.cost, a.iterations, a.reason) == (b.cost, b.iterations, b.reason)
    for name in ("cost", "iou", "rms", "visible"):
        assert getattr(outline(a), name) == getattr(outline(b), name)


# --- accuracy -----------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    shape=st.sampled_from([ell, box]),
    sizes=st.tuples(*[st.floats(0.7, 1.4)] * 3),
    seed=st.integers(0, 2**31),
)
def test_refining_betters_a_start_10_degrees_and_5_percent_off(shape, sizes, seed):
    rng = np.random.default_rng(seed)
    usual = (0.1, 0.2, 0.08) if shape is ell else (0.2, 0.12, 0.08)
    thing = model("thing", shape(*np.multiply(usual, sizes)))
    truth = random_pose(rng)
    start = turned(truth, random_turn(rng, np.radians(10)))
    start[:3, 3] *= 1 + 0.05 * rng.choice([-1, 1])
    one, observed = Refiner([thing], capacity=8), seen(thing, truth)
    before = one.evaluate([observed], guesses("thing", start))[0]
    found = one.refine([[observed]], [guesses("thing", start)])[0]
    best = found[0]
    assert outline(best).iou > max(outline(before).iou, 0.97)
    assert best.cost < before.cost
    assert angle_deg(best.reference_from_object, truth) < 12
    assert shift_between(best.reference_from_object, truth) < 0.03
    assert all(a.cost <= b.cost for a, b in pairwise(found))
    assert (np.linalg.eigvalsh(best.covariance) > 0).all()


def test_most_end_within_a_degree(refiner):
    """A few views of so plain shapes are traps: another face would have to turn into view."""
    rng = np.random.default_rng(20)
    errors = []
    for k in range(80):
        shape = (ELL, BOX)[k % 2]
        truth = random_pose(rng)
        start = turned(truth, random_turn(rng, np.radians(10)))
        start[:3, 3] *= 1 + 0.05 * rng.choice([-1, 1])
        found = refiner.refine([[seen(shape, truth)]], [guesses(shape.name, start)])[0][0]
        errors.append(angle_deg(found.reference_from_object, truth))
    assert (np.array(errors) < 1.0).mean() > 0.88
    assert np.median(errors) < 0.15


def test_the_truth_fits(refiner):
    measured = refiner.evaluate([seen(ELL, TRUTH)], guesses("ell", TRUTH))[0]
    assert outline(measured).iou > 0.99
    assert abs(measured.cost) < 1.0
    assert outline(measured).rms < 0.2
    assert outline(measured).visible == 1.0
    assert measured.reason == "running" and measured.iterations == 0
    np.testing.assert_allclose(measured.reference_from_object, TRUTH, atol=1e-6)


def test_evaluation_tells_better_from_worse(refiner):
    observed = seen(ELL, TRUTH)
    near, far = (
        refiner.evaluate([observed], guesses("ell", turned(TRUTH, (0, 0, angle))))[0]
        for angle in (0.05, 0.2)
    )
    assert 1 > outline(near).iou > outline(far).iou > 0.3
    assert 0 < near.cost < far.cost
    assert outline(near).rms < outline(far).rms
    away = refiner.evaluate([observed], guesses("ell", turned(TRUTH, (0, 0, 0), (0.3, 0, 0))))[0]
    assert outline(away).iou == 0.0 and away.cost > far.cost


def test_twice_the_image_gives_the_same_pose(refiner):
    """The crop is the photo shrunk to half."""
    double = pinhole_camera(1024, 1200.0)
    start = turned(TRUTH, (0.1, -0.1, 0.1))
    observed = seen(ELL, TRUTH, double)
    assert observed.crop.scale < 0.6
    found = refiner.refine([[observed]], [guesses("ell", start)])[0][0]
    assert angle_deg(found.reference_from_object, TRUTH) < 0.4
    assert outline(found).rms < 0.6  # photo pixels
    assert outline(found).iou > 0.98


# --- batches ------------------------------------------------------------------------------------


def five_objects(rng):
    observed, starts = [], []
    for k in range(5):
        shape = (ELL, BOX)[k % 2]
        truth = random_pose(rng)
        observed.append([seen(shape, truth)])
        turns = [random_turn(rng, angle) for angle in (0.2, 0.6, 1.2)[: 1 + k % 3]]
        starts.append(guesses(shape.name, *[turned(truth, turn) for turn in turns]))
    return observed, starts


@pytest.mark.parametrize("restart", [False, True])
def test_five_objects_together_are_five_alone(refiner, restart):
    observed, starts = five_objects(np.random.default_rng(21))
    together = refiner.refine(observed, starts, restart=restart)
    for k in range(5):
        alone = refiner.refine([observed[k]], [starts[k]], restart=restart)[0]
        assert len(alone) == len(together[k])
        for a, b in zip(together[k], alone, strict=True):
            # alone, one hypothesis goes from coarse to fine in one go: one look fewer or more
            np.testing.assert_allclose(a.reference_from_object, b.reference_from_object, atol=2e-3)
            assert outline(a).iou == pytest.approx(outline(b).iou, abs=2e-3)


def test_single_hypotheses_together_are_the_same_to_the_bit(refiner):
    observed, starts = five_objects(np.random.default_rng(22))
    starts = [own[:1] for own in starts]
    together = refiner.refine(observed, starts, restart=False)
    for k in range(5):
        (alone,) = refiner.refine(observed[k : k + 1], starts[k : k + 1], restart=False)
        same(together[k][0], alone[0])


def test_the_hypotheses_of_the_caller_are_left_as_they_are(refiner):
    observed, starts = five_objects(np.random.default_rng(22))
    before = [[one.reference_from_object.copy() for one in own] for own in starts]
    refiner.refine(observed, starts)
    refiner.evaluate(observed[0], starts[0])
    for own, poses in zip(starts, before, strict=True):
        for one, pose_before in zip(own, poses, strict=True):
            np.testing.assert_array_equal(one.reference_from_object, pose_before)
            assert one.iterations == 0 and one.fits == {} and one.covariance is None


def test_what_is_asked_of_each_object_is_what_it_gets(refiner):
    """keep, restart and tracked may be one for all or one each."""
    observed, starts = five_objects(np.random.default_rng(30))
    keep, restart = [1, 4, 2, 3, 1], [True, False, True, False, False]
    tracked = [False, True, False, False, True]
    together = refiner.refine(observed, starts, keep, tracked, restart)
    for k in range(5):
        (alone,) = refiner.refine([observed[k]], [starts[k]], keep[k], tracked[k], restart[k])
        assert 1 <= len(together[k]) == len(alone) <= keep[k]
        assert outline(together[k][0]).iou == pytest.approx(outline(alone[0]).iou, abs=2e-3)


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_a_capacity_smaller_than_the_number_of_poses_changes_nothing(refiner, capacity):
    observed, starts = five_objects(np.random.default_rng(23))
    starts = [(own * 3)[:3] for own in starts]
    expected = refiner.refine(observed, starts)
    small = Refiner([ELL, BOX], capacity=capacity).refine(observed, starts)
    for a, b in zip(expected, small, strict=True):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)


def test_a_start_that_is_not_a_number_harms_no_other(refiner):
    observed, starts = five_objects(np.random.default_rng(24))
    expected = refiner.refine(observed, starts)
    wrong = [list(own) for own in starts]
    wrong[2] = guesses("ell", np.full((4, 4), np.nan))
    wrong[0] += guesses("ell", pose(translation=(np.inf, 0, 1)))
    with np.errstate(invalid="ignore"):
        found = refiner.refine(observed, wrong)
    for k in (0, 1, 3, 4):
        usable = [r for r in found[k] if np.isfinite(r.reference_from_object).all()]
        same(usable[0], expected[k][0])
    broken = [r for r in found[2] if not np.isfinite(r.reference_from_object).all()]
    assert not any(outline(r).iou > 0 for r in broken)


def test_an_object_behind_the_camera_harms_no_other(refiner):
    observed, starts = five_objects(np.random.default_rng(25))
    expected = refiner.refine(observed, starts, restart=False)
    behind = [list(own) for own in starts]
    behind[1] = guesses("box", pose(translation=(0, 0, -0.5)))
    behind[3] = guesses("box", pose(translation=(0, 0, 0.02)))  # the camera inside
    found = refiner.refine(observed, behind, restart=False)
    for k in (0, 2, 4):
        same(found[k][0], expected[k][0])
    for k in (1, 3):
        for result in found[k]:
            assert np.isfinite(result.reference_from_object).all()
            assert np.isfinite(result.covariance).all()
    assert outline(found[1][0]).iou == 0.0


def test_objects_without_hypotheses_get_no_result(refiner):
    observed, starts = five_objects(np.random.default_rng(26))
    starts[1] = []
    found = refiner.refine(observed, starts)
    assert found[1] == [] and all(found[k] for k in (0, 2, 3, 4))
    assert refiner.refine(observed, [[]] * 5) == [[]] * 5
    assert refiner.refine([], []) == []


def test_objects_of_which_nothing_is_seen_get_no_result(refiner):
    observed, starts = five_objects(np.random.default_rng(26))
    expected = refiner.refine(observed, starts)
    observed[1] = []
    found = refiner.refine(observed, starts)
    assert found[1] == []
    for k in (0, 2, 3, 4):
        same(found[k][0], expected[k][0])


# --- hypotheses ---------------------------------------------------------------------------------


def test_hypotheses_that_end_together_are_one(refiner):
    rng = np.random.default_rng(27)
    starts = [turned(TRUTH, random_turn(rng, 0.1)) for _ in range(6)]
    found = refiner.refine([[seen(ELL, TRUTH)]], [guesses("ell", *starts)])[0]
    assert len(found) == 1
    assert angle_deg(found[0].reference_from_object, TRUTH) < 0.3


def test_poses_that_look_the_same_are_one():
    """A box turned by half a turn, with and without being told that it looks the same."""
    half = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0)), pose((0, np.pi, 0), (0, 0, 0))]))
    told = model("told", box(), symmetries=half)
    untold = model("untold", box())
    refiner = Refiner([told, untold], capacity=8)
    flips = [TRUTH @ flip for flip in half.discrete]
    starts = [turned(flip, (0.05, 0.02, -0.04)) for flip in flips]
    observed = [seen(told, TRUTH)]
    named = [guesses(name, *starts) for name in ("told", "untold")]
    found = refiner.refine([observed, observed], named)
    assert len(found[0]) == 1
    assert len(found[1]) == 4
    for flip in flips:  # each is there
        assert min(angle_deg(r.reference_from_object, flip) for r in found[1]) < 0.5


def test_turns_about_a_symmetry_axis_are_one():
    shape = model("can", cylinder(), symmetries=Symmetries(axes=(Axis((0, 0, 1)),)))
    refiner = Refiner([shape], capacity=8)
    starts = [TRUTH @ pose((0, 0, a), (0, 0, 0)) for a in (0.0, 1.0, 2.0, 3.0)]
    assert len(refiner.refine([[seen(shape, TRUTH)]], [guesses("can", *starts)])[0]) == 1


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_no_more_than_asked_are_kept_and_the_best_comes_first(refiner, keep):
    rng = np.random.default_rng(28)
    starts = [turned(TRUTH, random_turn(rng, a)) for a in (2.5, 2.8, 0.2, 2.2, 1.9, 2.6, 3.0)]
    found = refiner.refine([[seen(ELL, TRUTH)]], [guesses("ell", *starts)], keep=keep)[0]
    assert 1 <= len(found) <= keep
    assert angle_deg(found[0].reference_from_object, TRUTH) < 0.3
    assert all(a.cost <= b.cost for a, b in pairwise(found))


def test_restarts_rescue_bad_starts(refiner):
    rng = np.random.default_rng(29)
    rescued = lost = 0
    for _ in range(25):
        truth = random_pose(rng)
        start = turned(truth, random_turn(rng, np.radians(45)))
        observed = seen(ELL, truth)
        once, again = (
            refiner.refine([[observed]], [guesses("ell", start)], restart=r)[0][0]
            for r in (False, True)
        )
        assert again.cost <= once.cost + 1e-3  # never worse
        before, after = (angle_deg(r.reference_from_object, truth) for r in (once, again))
        rescued += before > 10 and after < 1
        lost += before < 1 and after > 2
    assert rescued >= 2 and lost == 0


# --- no result is worse than its start ----------------------------------------------------------


def bitten(shape, truth, seed: int):
    """A mask of which a piece is missing, or has something stuck to it: the truth fits it best
    where distances hardly count that are far off, and not on the way there."""
    rng = np.random.default_rng(seed)
    mask = silhouette(shape.mesh, truth, CAMERA).copy()
    rows, columns = np.nonzero(mask)
    k, half = rng.integers(len(rows)), int(rng.integers(5, 30))
    high, wide = (half, half) if seed % 2 else (half // 3, 3 * half)
    near = slice(max(rows[k] - high, 0), rows[k] + high)
    mask[near, max(columns[k] - wide, 0) : columns[k] + wide] = 1 - seed % 2
    return observe_mask(mask, 1, CAMERA)


@pytest.mark.parametrize("restart", [False, True])
def test_a_start_that_nothing_betters_is_the_result(refiner, restart):
    kept = led_astray = 0
    for seed in range(60):
        shape, truth = (ELL, BOX)[seed // 2 % 2], random_pose(np.random.default_rng(seed))
        observed = [bitten(shape, truth, seed)]
        start = guesses(shape.name, truth)
        (before,) = refiner.evaluate(observed, start)
        best = refiner.refine([observed], [start], restart=restart)[0][0]
        alone = refiner.refine([observed], [start], restart=restart, given=False)[0][0]
        # a cost of whole pixels tells noise from noise where all fit to the pixel
        if fits_to_the_pixel(alone, observed):
            continue
        assert best.cost == min(before.cost, alone.cost)
        led_astray += alone.cost > before.cost
        if best.iterations == 0:
            kept += 1
            np.testing.assert_allclose(best.reference_from_object, truth, atol=1e-6)
            assert best.reason == "running"
            np.testing.assert_allclose(best.covariance, before.covariance, rtol=1e-9)
            assert outline(best).iou == outline(before).iou
    assert kept == led_astray >= 5


def test_of_several_starts_those_better_than_all_results_come_first(refiner):
    """Beside the results, which stay in the list."""
    truth = random_pose(np.random.default_rng(50))
    observed = [bitten(ELL, truth, 50)]
    other = turned(truth, (0.0, 0.0, 2.5))
    found = refiner.refine([observed], [guesses("ell", other, truth)], restart=False)[0]
    measured = refiner.evaluate(observed, guesses("ell", other, truth))
    assert found[0].cost <= min(one.cost for one in measured)
    assert all(a.cost <= b.cost for a, b in pairwise(found))
    none = refiner.refine([observed], [guesses("ell", other)], given=False, restart=False)[0]
    assert all(one.iterations > 0 for one in none)


# --- hidden parts -------------------------------------------------------------------------------


def hidden_by_another(mask: np.ndarray, side: str, share: float) -> np.ndarray:
    """The label image in which label 2 covers a share of the mask's box from one side."""
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    masks = mask.astype(np.int32)
    if side == "left":
        masks[top - 8 : bottom + 8, left - 8 : left + int(share * (right - left))] = 2
    else:
        masks[top - 8 : top + int(share * (bottom - top)), left - 8 : right + 8] = 2
    return masks


@pytest.mark.parametrize("side", ["left", "top"])
@pytest.mark.parametrize("shape", [ELL, BOX], ids=["ell", "box"])
def test_half_hidden_objects_are_recovered(refiner, shape, side):
    masks = hidden_by_another(silhouette(shape.mesh, TRUTH, CAMERA), side, 0.5)
    start = turned(TRUTH, (0.08, -0.1, 0.06), (0.005, 0.005, 0.02))
    observed = observe_mask(masks, 1, CAMERA)
    found = refiner.refine([[observed]], [guesses(shape.name, start)])[0][0]
    assert angle_deg(found.reference_from_object, TRUTH) < 2.0
    assert shift_between(found.reference_from_object, TRUTH) < 0.012
    assert outline(found).iou > 0.97  # over what is known
    assert 0.3 < outline(found).visible < 0.85
    whole = refiner.refine([[seen(shape, TRUTH)]], [guesses(shape.name, start)])[0][0]
    assert np.trace(found.covariance) > np.trace(whole.covariance)


def test_without_knowing_of_the_other_object_a_half_would_be_taken_for_the_whole(refiner):
    """What the test above would find if other labels were background."""
    masks = hidden_by_another(silhouette(BOX.mesh, TRUTH, CAMERA), "left", 0.5)
    masks[masks == 2] = 0
    start = turned(TRUTH, (0.08, -0.1, 0.06), (0.005, 0.005, 0.02))
    found = refiner.refine([[observe_mask(masks, 1, CAMERA)]], [guesses("box", start)])[0][0]
    assert shift_between(found.reference_from_object, TRUTH) > 0.05


@pytest.mark.parametrize("shift", [(-0.3, 0, 0), (0.21, -0.2, 0), (0, 0.31, 0)])
def test_objects_cut_by_the_photo_are_recovered(refiner, shift):
    truth = turned(TRUTH, (0, 0, 0), shift)
    start = turned(truth, (0.08, -0.1, 0.06), (0.005, 0.005, 0.02))
    masks = silhouette(ELL.mesh, truth, CAMERA)
    assert masks[[0, -1]].any() or masks[:, [0, -1]].any()
    found = refiner.refine([[observe_mask(masks, 1, CAMERA)]], [guesses("ell", start)])[0][0]
    assert angle_deg(found.reference_from_object, truth) < 3.0
    assert shift_between(found.reference_from_object, truth) < 0.02
    assert outline(found).visible < 0.95


def test_an_object_elsewhere_in_the_photo_changes_nothing(refiner):
    mask = silhouette(ELL.mesh, TRUTH, CAMERA)
    start = turned(TRUTH, (0.1, 0.1, 0.0))
    alone = refiner.refine([[observe_mask(mask, 1, CAMERA)]], [guesses("ell", start)])[0][0]
    observed = observe_mask(mask, 1, CAMERA)
    x0, y0 = observed.crop.origin
    crowded = mask.copy()
    crowded[: max(y0, 0)] = 2  # all that the crop does not show
    crowded[:, : max(x0, 0)] = 3
    assert (crowded > 1).sum() > 2000
    found = refiner.refine([[observe_mask(crowded, 1, CAMERA)]], [guesses("ell", start)])[0][0]
    same(found, alone)


def test_a_neighbour_that_hides_nothing_hardly_matters(refiner):
    mask = silhouette(ELL.mesh, TRUTH, CAMERA)
    start = turned(TRUTH, (0.1, 0.1, 0.0))
    alone = refiner.refine([[observe_mask(mask, 1, CAMERA)]], [guesses("ell", start)])[0][0]
    rows, columns = np.nonzero(mask)
    beside = mask.copy()
    beside[:, columns.max() + 12 :] = 2
    found = refiner.refine([[observe_mask(beside, 1, CAMERA)]], [guesses("ell", start)])[0][0]
    assert angle_deg(found.reference_from_object, alone.reference_from_object) < 0.1
    assert outline(found).visible == 1.0 and rows.size


def test_objects_in_front_of_the_lens_do_not_take_long(refiner):
    """Outlines through the near plane are long, and few of their samples matter."""
    import time

    observed = seen(ELL, TRUTH)
    start = turned(TRUTH, (0.1, 0.1, 0.0))
    refiner.refine([[observed]], [guesses("ell", start)])

    def seconds(reference_from_object):
        began = time.perf_counter()
        for _ in range(5):
            refiner.evaluate([observed], guesses("ell", reference_from_object))[0]
        return time.perf_counter() - began

    usual = min(seconds(start) for _ in range(3))
    close = min(seconds(pose((0.4, 0.8, 0.1), (0.0, 0.0, z))) for z in (0.05, 0.08, 0.12))
    assert close < 30 * usual


def test_many_starts_of_one_object_end_as_they_end_alone(refiner):
    """Whatever the others of the call are, of which none is compared with another."""
    rng = np.random.default_rng(1)
    truths = [pose(random_turn(rng, rng.uniform(0, 3)), (0.03, -0.02, 0.6)) for _ in range(9)]
    observations = [[seen(ELL, truth)] for truth in truths]
    starts = [pose(random_turn(rng, rng.uniform(0, 3)), (0.03, -0.02, 0.6)) for _ in range(16)]
    many = guesses("ell", *starts)
    others = [guesses("ell", turned(truth, (0.1, 0, 0))) for truth in truths[1:]]
    (alone,) = refiner.refine(observations[:1], [many], restart=False)
    together = refiner.refine(observations, [many, *others], restart=False)[0]
    assert len(alone) == len(together) > 1
    for a, b in zip(alone, together, strict=True):
        same(a, b)


def test_more_observations_than_there_is_room_for_are_refused():
    small = Refiner([ELL], capacity=1)
    with pytest.raises(ValueError, match="2 observations of an object"):
        small.evaluate([seen(ELL, TRUTH)] * 2, guesses("ell", TRUTH))
