# SPDX-License-Identifier: Apache-2.0
"""A field beside photos: how near its pictures come to them, and how they look at it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.posed_images.hull import spread_views
from pose_refiner_ros.datasets.posed_images.views import PosedImages, View
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.fields.picture import behind, picture_over
from pose_refiner_ros.refinement.hypotheses import Hypothesis
from pose_refiner_ros.refinement.refiner import Refiner
from pose_refiner_ros.scene_localiser import field_model

from .self_supervision import observe

_ASKED = 9
_UP_SNAP = math.cos(math.radians(15.0))


def usual_view(posed: PosedImages) -> dict[str, Any]:
    """How the photos look at the box, for pictures that are to look alike; JSON-able.

    centre: (3,) metres, of the box; up: (3,) unit, the mean of what is up in the photos, or the
    axis of the object's frame that it nearly is; distance: metres to the centre; fov_deg: of the
    picture's height; size: (height, width). Medians.
    """
    up = -posed.camera_from_object[:, 1, :3].mean(axis=0)
    up /= max(float(np.linalg.norm(up)), 1e-9)
    if abs(up).max() > _UP_SNAP:
        up = np.where(abs(up) == abs(up).max(), np.sign(up), 0.0)
    centre = posed.bounds.mean(axis=0)
    distance = np.median(np.linalg.norm(posed.camera_positions - centre, axis=1))
    focal = np.median(posed.intrinsics[:, 1, 1])
    return {
        "centre": centre.tolist(),
        "up": up.tolist(),
        "distance": float(distance),
        "fov_deg": math.degrees(2.0 * math.atan(0.5 * posed.size[0] / focal)),
        "size": list(posed.size),
    }


def usual_rms(field: GridField, posed: PosedImages, background=None) -> float:
    """How near the field's colours come to photos at their own poses: the robust RMS difference
    (`TermFit.rms`), the median of a few. What ends much worse is at another pose. posed: photos
    that it was not trained on, which it shows too well."""
    background = field.background if background is None else background
    refiner = Refiner([field_model("field", field)], str(field.device), capacity=1)
    fits = []
    for view in posed.subset(spread_views(posed, _ASKED)):
        at_its_pose = [Hypothesis("field", view.camera_from_object)]
        (found,) = refiner.evaluate([observe(view, background)], at_its_pose)
        fits.append(float(found.fits["radiance"].rms))
    return round(float(np.median(fits)), 4)


def field_psnr(field: RadianceField, posed: PosedImages) -> np.ndarray:
    """(N,) decibels, one for each photo, over the pixels that count.

    Photos with masks and pictures are put in front of the same colour: the field's own, or white,
    as in the NeRF paper's tables.
    """
    result = []
    for view in posed:
        photo, drawn = _both(field, view)
        squared = np.square(drawn - photo)
        error = squared.mean() if view.weight is None else squared[view.weight].mean()
        result.append(-10.0 * math.log10(max(float(error), 1e-10)))
    return np.array(result)


def beside_photo(field: RadianceField, view: View) -> np.ndarray:
    """(H, 2 W, 3) uint8: a photo, and the field seen by its camera, over one background."""
    return np.rint(255.0 * np.hstack(_both(field, view)).clip(0.0, 1.0)).astype(np.uint8)


def _both(field: RadianceField, view: View) -> tuple[np.ndarray, np.ndarray]:
    """A photo and the field seen by its camera, (H, W, 3) in [0, 1]."""
    size = view.image.shape[:2]
    drawn = picture_over(field, view.intrinsics, view.camera_from_object, size)
    return view.over(behind(field)), drawn
