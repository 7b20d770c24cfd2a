# SPDX-License-Identifier: Apache-2.0
"""Fields of fewer nodes."""

import numpy as np
from analytic_field import AnalyticField, as_grid, pinhole, view_from

from pose_refiner_ros.fields.coarser import coarser
from pose_refiner_ros.fields.rays import camera_rays, image_pixels

SIZE = 160
WHITE = (1.0, 1.0, 1.0)


def test_coarser_fields_look_alike():
    grid = as_grid(AnalyticField(density=40.0, chequers=6.0), count=96)
    pose = view_from((1.0, 0.4, 0.5))
    origins, directions = camera_rays(pinhole(SIZE), pose, image_pixels((SIZE, SIZE)))
    sharp = grid.render(origins.float(), directions.float()).over(WHITE).numpy()
    rough = coarser(grid, 3).render(origins.float(), directions.float()).over(WHITE).numpy()
    assert coarser(grid, 1) is grid
    assert len(coarser(grid, 3).values) < 0.15 * len(grid.values)
    assert np.sqrt(((sharp - rough) ** 2).mean()) < 0.06
    assert abs(sharp.mean() - rough.mean()) < 0.01
