# SPDX-License-Identifier: Apache-2.0
"""Coverage: the pixels that drawn meshes cover, against a slow numpy twin."""

import numpy as np
import pytest
import silhouette_twin as twin
from shapes import box, cylinder, ell, plate, pose, random_poses

from pose_refiner_ros.rendering.draw import draw
from pose_refiner_ros.rendering.mesh_batch import MeshBatch

SIZE = 72
PINHOLE = np.array([110.0, 104.0, 37.3, 34.8])
SHAPES = {"ell": ell(), "box": box(), "cylinder": cylinder(sections=14), "plate": plate()}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("distance", [0.5, 0.07], ids=["in front", "through the near plane"])
def test_drawn_pixels_are_those_whose_centres_the_faces_cover(name, distance):
    mesh, near = SHAPES[name], 0.02
    poses = random_poses(5, seed=len(name), distance=distance)
    drawn = draw(MeshBatch([mesh]), [0], poses, PINHOLE, SIZE, near)
    for picture, camera_from_object in zip(drawn.astype(bool), poses, strict=True):
        # pixels within a thousandth of a pixel of a border may fall to either side
        surely = twin.coverage(mesh, camera_from_object, PINHOLE, SIZE, near, slack=-1e-3)
        perhaps = twin.coverage(mesh, camera_from_object, PINHOLE, SIZE, near, slack=1e-3)
        assert not (surely & ~picture).any()
        assert not (picture & ~perhaps).any()
    assert drawn.any()


def test_neighbouring_faces_leave_no_gap():
    """A sheet seen through a grid that puts vertices and edges on pixel centres."""
    side = np.arange(9) * 0.1
    x, y = np.meshgrid(side, side)
    vertices = np.column_stack([x.ravel(), y.ravel(), np.zeros(81)]).astype(np.float32)
    faces = []
    for row in range(8):
        for column in range(8):
            a = 9 * row + column
            faces += [(a, a + 1, a + 10), (a, a + 10, a + 9)]
    sheet = type(plate())(vertices, np.array(faces))
    pinhole = np.array([50.0, 50.0, 4.0, 4.0])  # 5 pixels per cell
    picture = draw(MeshBatch([sheet]), [0], pose()[None], pinhole, SIZE)[0]
    assert picture[4:45, 4:45].all()
    assert picture.sum() == 41 * 41  # borders included, and no more


def test_one_pinhole_for_all_or_one_for_each():
    mesh = SHAPES["ell"]
    poses = random_poses(2, seed=1)
    other = PINHOLE * [1.3, 1.3, 1.0, 1.0]
    each = draw(MeshBatch([mesh]), [0, 0], poses, np.stack([PINHOLE, other]), SIZE)
    np.testing.assert_array_equal(
        each[0], draw(MeshBatch([mesh]), [0], poses[:1], PINHOLE, SIZE)[0]
    )
    np.testing.assert_array_equal(each[1], draw(MeshBatch([mesh]), [0], poses[1:], other, SIZE)[0])
