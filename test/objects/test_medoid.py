# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from shapes import box

from pose_refiner_ros.objects.medoid import choose_medoid, hog_descriptor, medoid, medoid_views


def test_the_medoid_is_nearest_to_all_others():
    rows = np.array([[0.0, 0], [1, 0], [2, 0], [10, 0]])
    assert medoid(rows) == 1
    assert medoid(rows[:1]) == 0
    for wrong in (np.empty((0, 3)), np.zeros(3)):
        with pytest.raises(ValueError, match=r"must have shape \(N, D\)"):
            medoid(wrong)


def test_views_show_front_and_side():
    front, side = medoid_views(box(4.0, 2.0, 1.0))
    for view, width, height in ((front, 56, 28), (side, 112, 28)):
        rows, columns = np.nonzero(view)
        assert abs(np.ptp(columns) + 1 - width) <= 2 and abs(np.ptp(rows) + 1 - height) <= 2
        assert abs(rows.mean() - 63.5) < 1 and abs(columns.mean() - 63.5) < 1


def test_size_and_place_do_not_count():
    small, large = box(4.0, 2.0, 1.0), box(8.0, 4.0, 2.0)
    np.testing.assert_allclose(hog_descriptor(small), hog_descriptor(large), atol=1e-3)
    pose = np.eye(4)
    pose[:3, 3] = 5, -3, 1
    np.testing.assert_allclose(
        hog_descriptor(small), hog_descriptor(small.transformed(pose)), atol=1e-3
    )


def test_the_middle_of_a_family_is_chosen():
    heights = (1.0, 1.2, 1.4, 1.6, 3.0)
    assert choose_medoid([box(4.0, 2.0, h) for h in heights]) in (1, 2)
