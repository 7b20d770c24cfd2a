# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
from blocks import block_meshes, bop_truth

from pose_refiner_ros.drawing import overlay
from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel

CAMERA = Camera([[800, 0, 319.5], [0, 800, 239.5], [0, 0, 1]], (480, 640))
NAMES = {1: "wedge", 4: "ell"}
LIBRARY = {
    NAMES[i]: ObjectModel(
        NAMES[i],
        Mesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32)),
        color=(1.0, 0.4, 0.0) if i == 1 else (0.0, 0.0, 0.0),
    )
    for i, mesh in block_meshes().items()
}
GREY = np.full((480, 640, 3), 100, np.uint8)


def pose(obj_id, z=0.0, **change):
    camera_from_object = bop_truth()[obj_id]
    camera_from_object[2, 3] += z
    values = {"name": NAMES[obj_id], "score": 0.9, "quality": "good"}
    return SimpleNamespace(camera_from_object=camera_from_object, **{**values, **change})


def draw(*poses, image=GREY, camera=CAMERA):
    return overlay.draw_overlay(image, camera, LIBRARY, poses)


def test_draws_on_a_copy_and_only_near_the_objects():
    picture = draw(pose(1), pose(4))
    assert picture.dtype == np.uint8 and picture.shape == GREY.shape and (GREY == 100).all()
    changed = (picture != 100).any(-1)
    assert 0.02 < changed.mean() < 0.4
    assert not changed[400:].any()


def test_tint_outline_axes_and_tag_are_there():
    picture = draw(pose(1), pose(4, quality="poor")).reshape(-1, 3)
    colors = {tuple(c) for c in picture.tolist()}
    tint = tuple(np.round(100 * 0.78 + 0.22 * np.array((255, 102, 0))).astype(int).tolist())
    assert tint in colors and (255, 102, 0) in colors
    assert overlay.QUALITY_COLORS["good"] in colors and overlay.QUALITY_COLORS["poor"] in colors
    # A black object's outline is drawn in light grey, or nobody would see it.
    assert (191, 191, 191) in colors


def test_nearer_object_hides_the_other():
    behind = pose(1)
    behind.camera_from_object[:3, 3] = (0, 0, 2.0)
    front = pose(4)
    front.camera_from_object[:3, 3] = (0, 0, 0.3)
    box = overlay.render_scene([LIBRARY["ell"].mesh], front.camera_from_object[None], CAMERA).labels
    alone, both = draw(front), draw(front, behind)
    inside = np.zeros((480, 640), bool)
    inside[200:280, 300:340] = box[200:280, 300:340] == 1
    hidden = inside & (alone == draw(front)).all(-1)
    assert hidden.any()
    assert (both[hidden] == alone[hidden]).mean() > 0.8  # but for the hidden one's axes and tag


@pytest.mark.parametrize("z", [-0.62, -2.0, 50.0], ids=["on the camera", "behind", "far"])
def test_objects_out_of_view_do_no_harm(z):
    assert draw(pose(1, z), pose(4)).shape == GREY.shape
    if z == -2.0:
        np.testing.assert_array_equal(draw(pose(1, z)), GREY)


def test_tags_stay_in_the_picture_and_apart():
    tags = [pose(1, name="wedge", score=s) for s in (0.1, 0.5, 1.0)]
    for p, shift in zip(tags, (-0.4, 0.0, 0.4), strict=True):
        p.camera_from_object[0, 3] += shift
        p.camera_from_object[1, 3] -= 0.15
    assert draw(*tags).shape == GREY.shape
    small = Camera([[40, 0, 15.5], [0, 40, 11.5], [0, 0, 1]], (24, 32))
    assert draw(pose(1), image=GREY[:24, :32], camera=small).shape == (24, 32, 3)


def test_no_poses_give_the_image_back():
    picture = draw()
    np.testing.assert_array_equal(picture, GREY)
    assert picture is not GREY


def test_wrong_images_are_named():
    with pytest.raises(CameraError, match="the image is 320x240 but its camera 640x480"):
        draw(pose(1), image=GREY[:240, :320])
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got \(480, 640\) uint8"):
        draw(pose(1), image=GREY[..., 0])
    with pytest.raises(KeyError):
        draw(pose(1, name="nobody"))
