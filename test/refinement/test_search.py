# SPDX-License-Identifier: Apache-2.0
"""When what was found is not believed, and looked for elsewhere."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from shapes import box, ell, model, pose, turned

from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.search import (
    CONFIRM_ANGLE,
    PIXEL_NOISE,
    RESTART_ANGLE,
    RESTART_ANGLE_UNMASKED,
    RESTART_COLOUR,
    RESTART_OUTLINE,
    SAME_PATTERN,
    START_SIGMA,
    SURE_COLOURS,
    WRONG_COLOURS,
    colour_rms,
    colours_differ,
    fits_to_the_pixel,
    needs_views,
    restart_angle,
)
from pose_refiner_ros.refinement.terms import TermFit
from pose_refiner_ros.settings import Settings

ELL = model("ell", ell())
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))


def result(iou=None, rms=0.0, colours=None, at=TRUTH) -> Hypothesis:
    """A result with an outline (iou, rms) and colours (their rms), each where it is given."""
    one = Hypothesis("ell", at)
    if iou is not None:
        one.fits["silhouette"] = TermFit(cost=0.0, rms=rms, iou=iou)
    if colours is not None:
        one.fits["radiance"] = TermFit(cost=0.0, rms=colours, colour_rms=colours)
    return one


def crop(size=256, scale=1.0, masked=True):
    """As much of an observation as the rules look at."""
    return SimpleNamespace(
        distances=(None,) if masked else (), crop=SimpleNamespace(size=size, scale=scale)
    )


def test_colours_that_were_not_asked_do_not_differ():
    assert not colours_differ(None)
    assert not colours_differ(WRONG_COLOURS)
    assert colours_differ(1.01 * WRONG_COLOURS) and colours_differ(np.nan)
    assert colours_differ(0.3, 0.99 * SAME_PATTERN) and colours_differ(0.3, np.nan)
    assert not colours_differ(0.3, SAME_PATTERN)  # in another light
    assert colour_rms(result(iou=0.9)) is None
    assert colour_rms(result(iou=0.9, colours=0.2)) == 0.2


def test_colours_are_tried_again_by_what_is_usual_of_the_field():
    one = result(iou=None, colours=0.06)
    assert restart_angle(one, [crop(masked=False)]) is None
    for usual, again in ((0.05, False), (0.04, True), (np.nan, False)):
        fit = replace(one.fits["radiance"], usual_rms=usual)
        one.fits["radiance"] = fit
        assert (restart_angle(one, [crop(masked=False)]) is not None) == again


def test_a_poor_outline_is_tried_again():
    limit = RESTART_OUTLINE * 256
    assert restart_angle(result(0.9, rms=0.9 * limit), [crop()]) is None
    assert restart_angle(result(0.9, rms=1.1 * limit), [crop()]) == RESTART_ANGLE
    assert restart_angle(result(0.9, rms=np.inf), [crop()]) == RESTART_ANGLE
    assert restart_angle(result(0.9, rms=np.nan), [crop()]) == RESTART_ANGLE
    # in photo pixels: a crop that shows the photo at half its size errs by twice as much
    assert restart_angle(result(0.9, rms=1.1 * limit), [crop(scale=0.5)]) is None
    assert restart_angle(result(0.9, rms=2.1 * limit), [crop(scale=0.5)]) == RESTART_ANGLE
    # of several cameras the mean counts, of those alone that have a mask
    several = [crop(), crop(size=64), crop(size=9999, masked=False)]
    assert restart_angle(result(0.9, rms=0.9 * limit * 0.625), several) is None
    assert restart_angle(result(0.9, rms=1.1 * limit * 0.625), several) == RESTART_ANGLE


def test_poor_colours_are_tried_again():
    assert restart_angle(result(colours=0.9 * RESTART_COLOUR), []) is None
    assert restart_angle(result(colours=1.1 * RESTART_COLOUR), []) == RESTART_ANGLE_UNMASKED
    assert restart_angle(result(colours=np.nan), []) == RESTART_ANGLE_UNMASKED
    good = result(0.99, 0.1, colours=0.9 * RESTART_COLOUR)
    assert restart_angle(good, [crop()]) is None
    bad = result(0.99, 0.1, colours=1.1 * RESTART_COLOUR)
    assert restart_angle(bad, [crop()]) == RESTART_ANGLE


def test_what_fits_to_the_pixel():
    assert fits_to_the_pixel(result(0.99, 0.9 * PIXEL_NOISE), [crop()])
    assert not fits_to_the_pixel(result(0.99, 1.1 * PIXEL_NOISE), [crop()])
    assert fits_to_the_pixel(result(0.99, 1.9 * PIXEL_NOISE), [crop(scale=0.5)])  # crop pixels
    assert not fits_to_the_pixel(result(0.99, np.nan), [crop()])
    # colours, or what was known before, may still tell poses apart
    assert not fits_to_the_pixel(result(0.99, 0.0, colours=0.0), [crop()])
    assert not fits_to_the_pixel(result(colours=0.0), [])


def asks(best, start=TRUTH, settings=None, tracked=False, due=False, shape=ELL) -> bool:
    found = [] if best is None else [best]
    return needs_views(found, [crop()], start, shape, settings or Settings(), tracked, due)


def test_views_are_tried_as_the_user_wants_it():
    good = result(0.99)
    assert asks(good, settings=Settings(search="always"))
    assert not asks(None, settings=Settings(search="never"))
    assert not asks(good)
    assert asks(None) and asks(good, start=None)


def test_a_poor_overlap_is_not_believed():
    settings = Settings(confirm_iou=0.8, accept_iou=0.97)
    for tracked in (False, True):
        assert asks(result(0.79), settings=settings, tracked=tracked)
        assert not asks(result(0.81), settings=settings, tracked=tracked)


@pytest.mark.parametrize("iou", [0.9, 0.99])
def test_how_far_it_had_to_turn_decides(iou):
    def at(angle, shift=0.0):
        return result(iou, at=turned(TRUTH, (0, angle, 0), (shift, 0, 0)))

    assert not asks(at(0.9 * CONFIRM_ANGLE))  # nearly right already
    assert asks(at(1.1 * CONFIRM_ANGLE)) == (iou < 0.97)  # must fit better
    assert asks(at(1.1 * START_SIGMA))  # proves nothing
    assert asks(at(0.0, 0.2 * ELL.diameter)) == (iou < 0.97)
    assert not asks(at(0.0, 0.1 * ELL.diameter))
    assert not asks(at(1.1 * START_SIGMA), tracked=True)


def test_a_large_overlap_with_a_poor_outline_is_not_believed():
    turned_by = turned(TRUTH, (0, 1.1 * CONFIRM_ANGLE, 0))
    limit = RESTART_OUTLINE * 256
    assert not asks(result(0.99, rms=0.9 * limit, at=turned_by))
    assert asks(result(0.99, rms=1.1 * limit, at=turned_by))


def test_symmetries_and_far_origins_do_not_count_as_turns():
    half = Symmetries(np.array([pose((np.pi, 0, 0), (0, 0, 0))]))
    flipped = TRUTH @ half.discrete[-1]
    assert asks(result(0.9, at=flipped), shape=model("ell", box()))
    assert not asks(result(0.9, at=flipped), shape=model("ell", box(), symmetries=half))
    offset = np.array([10.0, 0.0, 0.0])
    far = model("ell", Mesh(ell().vertices + offset, ell().faces))
    start, end = (about_point(one, -offset) for one in (TRUTH, turned(TRUTH, (0, 0.1, 0))))
    assert not asks(result(0.9, at=end), start=start, shape=far)


def test_colours_decide_where_there_are_some():
    wrong, right = 1.1 * WRONG_COLOURS, 0.9 * SURE_COLOURS
    assert asks(result(0.99, colours=wrong))
    assert not asks(result(0.99, colours=right))
    assert not asks(result(0.99, colours=wrong), tracked=True)
    # a fresh look that is due is spared where colours clearly fit
    assert asks(result(0.99), tracked=True, due=True)
    assert asks(result(0.99, colours=1.1 * SURE_COLOURS), tracked=True, due=True)
    assert not asks(result(0.99, colours=right), tracked=True, due=True)
    assert asks(result(0.7, colours=right), tracked=True)
