# SPDX-License-Identifier: Apache-2.0
import numpy as np

from pose_refiner_ros.learning.grid_nodes import cropped, finer_nodes


def test_a_finer_grid_has_nodes_where_the_coarse_one_had():
    coarse = np.zeros((5, 4, 3), bool)
    coarse[2, 1, 1] = True
    fine = finer_nodes(coarse, 0.5)
    assert fine.shape == (9, 7, 5)
    assert fine[4, 2, 2]
    index = np.argwhere(fine) * 0.5
    assert (abs(index - (2, 1, 1)) <= 0.5).all()
    part = cropped(fine)
    assert fine[part].sum() == fine.sum()
    assert max(fine[part].shape) <= 5
