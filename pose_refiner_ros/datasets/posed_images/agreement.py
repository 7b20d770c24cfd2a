# SPDX-License-Identifier: Apache-2.0
"""Do the poses of a set of photos fit each other?"""

from __future__ import annotations

import numpy as np

from pose_refiner_ros.datasets.posed_images.hull import VIEWS, spread_views, times_seen, visual_hull
from pose_refiner_ros.datasets.posed_images.views import PosedImages, PosedImagesError

_COVERED = 0.9  # share of the masks that the visual hull must explain, in the median picture
_IN_COMMON = 0.25  # share of the pictures that must show a common point


def check_agreement(posed: PosedImages) -> None:
    """Raises PosedImagesError for poses that cannot be those of pictures of one thing.

    With masks: no point, or too little, lies inside nearly all of them. Without: no point is seen
    by many cameras, as when their axes follow another convention. Small errors pass.
    """
    if len(posed) < 2:
        return
    _check_positions(posed)
    if posed.alpha is None:
        _check_common_view(posed)
    else:
        _check_hull(posed)


def _check_positions(posed: PosedImages) -> None:
    positions = posed.camera_positions
    spread = np.ptp(positions, axis=0).max()
    if spread <= 1e-6 * max(abs(positions).max(), 1e-12):
        raise PosedImagesError(
            f"all {len(posed)} cameras are at one place, {positions[0].round(4).tolist()}; "
            "pictures from several places are needed to tell how far away things are"
        )


def _check_hull(posed: PosedImages) -> None:
    hull = visual_hull(posed, posed.bounds)
    box = f"{posed.bounds[0].round(3).tolist()} to {posed.bounds[1].round(3).tolist()}"
    advice = "the poses do not agree with each other or with the masks"
    if not len(hull.centres):
        raise PosedImagesError(
            f"no point of the box {box} lies inside nearly all masks: {advice}, or the object is "
            "elsewhere"
        )
    # Once more with cells as small as the object needs: wrong poses show in what they cut off.
    hull = visual_hull(posed, hull.box)
    if not np.nanmedian(hull.coverage) >= _COVERED:
        worst = posed.names[hull.views[np.nanargmin(hull.coverage)]]
        raise PosedImagesError(
            f"what lies inside nearly all masks fills {np.nanmedian(hull.coverage):.0%} of a mask "
            f"in the median, least in {worst}: {advice}, or the object reaches beyond {box}"
        )


def _check_common_view(posed: PosedImages) -> None:
    views = spread_views(posed, VIEWS)
    positions, axes = posed.camera_positions[views], posed.camera_from_object[views, 2, :3]
    # Points on the viewing axes, from near to far compared with how far apart the cameras are.
    depths = np.ptp(positions, axis=0).max() * np.geomspace(0.05, 50.0, 16)
    points = (positions[:, None] + depths[:, None] * axes[:, None]).reshape(-1, 3)
    most = times_seen(posed, views, points).max()
    if most < max(2, _IN_COMMON * len(views)):
        raise PosedImagesError(
            f"no point is in view of more than {most} of {len(views)} cameras: their axes "
            "point away from each other; check the convention of the poses (camera-to-world, "
            "OpenGL axes in transforms files)"
        )
