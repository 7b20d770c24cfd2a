# SPDX-License-Identifier: Apache-2.0
"""When what was found is not believed, and looked for elsewhere: all the rules in one place.

Three searches, from near to far: starts turned a little around the first one, where the best result
fits badly (`restart_angle`); views that could be mistaken for what was found (`rivals_to_look_at`);
all views of the codebook, where a given pose does not fit or proves nothing (`needs_views`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.settings import Settings

from .hypotheses import Hypothesis
from .observation import Observation

# An outline that ends farther than this from the mask's border (robust RMS, share of the crop's
# side), or colours that end this far off, may sit in a local minimum.
RESTART_OUTLINE = 0.003
RESTART_COLOUR = 0.08
# Where the field says how far off the colours of right poses are, by so many times more.
RESTART_WORSE = 1.25
PIXEL_NOISE = 0.5  # crop pixels
RESTART_ANGLE = np.radians(20.0)
RESTART_ANGLE_UNMASKED = np.radians(25.0)

CUT_RESTART = 0.5  # strictness for objects that are cut: less of the outline tells poses apart

CONFIRM_ANGLE = np.radians(12.0)
START_SIGMA = np.radians(25.0)  # how far off a given pose may well be turned
SURE_COLOURS = 0.08  # a difference that wrong poses do not come down to
# Robust RMS difference between the colours of a field and those of the photo, beyond which a pose
# (or the light) is wrong: between those of right poses and of wrong ones, see docs/objects.md.
WRONG_COLOURS = 0.1
# Correlation of their patterns from which they are the same ones all the same, in another light or
# in a field that is rough: right poses reach 0.75 and more, wrong ones 0.3.
SAME_PATTERN = 0.5
DISAGREE = 2.0  # times as far off an outline is by all that is evidence, if a part of it is astray
WRONG_DEPTH = 0.2  # at most so large a share of the measured points lies on what is not the object
SURE_DEPTH = 0.8  # a share of the measured points that lie on the surface of no wrong pose


def colours_differ(colour_rms: float | None, correlation: float | None = None) -> bool:
    """Whether the image contradicts a pose; None: it was not asked."""
    if colour_rms is None or colour_rms <= WRONG_COLOURS:
        return False
    return correlation is None or not correlation >= SAME_PATTERN


def contradicts(found: Hypothesis) -> bool:
    """Whether the image's colours contradict what was found."""
    fit = found.fits.get("radiance")
    return fit is not None and colours_differ(float(fit.colour_rms), correlation(found))


def correlation(found: Hypothesis) -> float | None:
    """Of its field's pattern and the image's; None where there is no field or no image."""
    fit = found.fits.get("radiance")
    return None if fit is None or fit.correlation is None else float(fit.correlation)


def colour_rms(found: Hypothesis) -> float | None:
    """The robust RMS difference of its field's colours and the image's; None where there is no
    field or no image."""
    fit = found.fits.get("radiance")
    return None if fit is None else float(fit.colour_rms)


def depth_agrees(found: Hypothesis) -> float | None:
    """The share of the measured points that lie on its surface; None where there are none."""
    fit = found.fits.get("depth")
    return None if fit is None else float(fit.covered)


def fits_to_the_pixel(found: Hypothesis, observations: Sequence[Observation]) -> bool:
    """Whether an outline ends so near to the mask's border that no pose can be told to fit better.

    The cost is a sum over whole pixels: below half a pixel it tells noise from noise.
    """
    agrees = depth_agrees(found)
    if set(found.fits) - {"silhouette", "depth"} or not (agrees is None or agrees > SURE_DEPTH):
        return False
    scales = [seen.crop.scale for seen in observations if seen.distances]
    scale = sum(scales) / len(scales)
    return bool(found.fits["silhouette"].rms * scale < PIXEL_NOISE)


def restart_angle(
    best: Hypothesis, observations: Sequence[Observation], strictness: float = 1.0
) -> float | None:
    """By how much to turn the first start about each axis, to try again what ended as badly as the
    best result did; None where that fits. strictness: of the outline, a share of the usual limit.
    """
    outline, colours = best.fits.get("silhouette"), best.fits.get("radiance")
    angle = RESTART_ANGLE_UNMASKED if outline is None else RESTART_ANGLE
    if outline is not None:
        sides = [seen.crop.size / seen.crop.scale for seen in observations if seen.distances]
        limit = strictness * RESTART_OUTLINE * sum(sides) / len(sides)
        if not outline.rms < limit:
            return angle
    if colours is not None:
        usual = np.nan if colours.usual_rms is None else colours.usual_rms
        if not colours.rms <= (RESTART_COLOUR if np.isnan(usual) else RESTART_WORSE * usual):
            return angle
    return None


def is_astray(together: float, alone: float) -> bool:
    """Whether an outline by all that is evidence is too far off (robust RMS, any unit), by how far
    off it is by one part of it alone."""
    return together > DISAGREE * alone


def needs_views(
    found: Sequence[Hypothesis],
    observations: Sequence[Observation],
    start: np.ndarray | None,
    model: ObjectModel,
    settings: Settings,
    tracked: bool,
    due: bool,
) -> bool:
    """Whether the codebook's views are to be tried beside what was found from given poses.

    start: the first of those, (4, 4); tracked: it is that of the frame before; due: a fresh look is
    asked for, to find out whether the track has been wrong all along.
    """
    if settings.search == "never":
        return False
    if settings.search == "always" or not found or start is None:
        return True
    best, colours = found[0], colour_rms(found[0])
    overlap = float(best.fits["silhouette"].iou)
    if overlap < settings.confirm_iou:
        return True
    # where colours clearly fit, a tracked pose needs no fresh look: that takes far longer
    if due and not (colours is not None and colours <= SURE_COLOURS):
        return True
    if tracked:
        return False
    if contradicts(best):
        return True
    # A fit like that of real masks proves a pose that was nearly right already (a tracked one). One
    # that had to turn further must fit better, and one that turned far proves nothing: its
    # silhouette may fit as well as the right one's.
    pose = best.reference_from_object
    turned = model.symmetries.reduced_rotation_error(pose, start)
    place, first = (about_point(one, model.box_center)[:3, 3] for one in (pose, start))
    moved = np.linalg.norm(place - first)
    if turned < CONFIRM_ANGLE and moved < 0.15 * model.diameter:
        return False
    agrees = depth_agrees(best)
    sure = agrees is not None and agrees > SURE_DEPTH
    # The overlap of a large object is high in local minima, too: the outline tells them.
    near = restart_angle(best, observations) is None
    return turned > START_SIGMA or not (sure or (near and overlap >= settings.accept_iou))


def rivals_to_look_at(found: Sequence[Hypothesis], cut: bool | None, vouched_for: bool) -> int:
    """Of how many of the best results, if any, the views that resemble them are to be tried.

    cut: of objects whose views were all tried, whether part of them is missing, which makes more
    views alike; None: no views were tried. vouched_for: another frame or the encoder has looked.
    """
    if cut is not None:
        return 2 if cut else 0
    if vouched_for or not found:
        return 0
    colours = colour_rms(found[0])
    return 0 if colours is not None and colours <= SURE_COLOURS else 1
