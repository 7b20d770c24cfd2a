# SPDX-License-Identifier: Apache-2.0
"""Photos without poses, beside photos that have them."""

import numpy as np
import pytest
from posed_scene import (
    opengl,
    orbit,
    pinhole,
    render,
    write_instant_ngp,
    write_json,
    write_png,
    write_split_scene,
    write_unposed,
)

from pose_refiner_ros.datasets.posed_images import PosedImagesError, load_posed_images
from pose_refiner_ros.datasets.posed_images.unposed import load_unposed

CHOSEN = [3, 9, 14]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return write_split_scene(tmp_path_factory.mktemp("scene"), 26, every=5)


@pytest.fixture(scope="module")
def photos(scene):
    return load_posed_images(scene)


def test_a_folder_of_pictures(photos, scene, tmp_path):
    write_unposed(tmp_path, photos.camera_from_object[CHOSEN])
    unposed = load_unposed(tmp_path, photos, scene)
    assert unposed.names == ["photo_00.png", "photo_01.png", "photo_02.png"]
    assert np.isnan(unposed.camera_from_object).all()
    np.testing.assert_array_equal(unposed.images, photos.images[CHOSEN])
    np.testing.assert_array_equal(unposed.alpha, photos.alpha[CHOSEN])
    np.testing.assert_allclose(unposed.intrinsics, photos.intrinsics[:3], atol=1e-9)
    np.testing.assert_array_equal(unposed.bounds, photos.bounds)
    small = load_unposed(tmp_path, photos.resized(2), None, factor=2)
    np.testing.assert_allclose(small.intrinsics, photos.resized(2).intrinsics[:3], atol=1e-9)


def test_the_lens_is_that_of_the_posed_photos(tmp_path):
    source = write_instant_ngp(tmp_path / "source", orbit(8), pinhole(), k1=-0.2)
    posed = load_posed_images(source, "all")
    folder = tmp_path / "more"
    image, _ = render(pinhole(), orbit(8)[0])
    write_png(folder / "a.png", image)
    unposed = load_unposed(folder, posed, source)
    np.testing.assert_array_equal(unposed.images[0], posed.images[0])


def test_pictures_of_another_camera(photos, tmp_path):
    camera = pinhole((90, 160), 150.0)
    poses = photos.camera_from_object[CHOSEN]
    write_unposed(tmp_path, poses, camera)
    angle = 2 * np.arctan(camera.width / 2 / camera.fx)
    frame = {"file_path": "photo_00.png", "transform_matrix": opengl(poses[0], 0.5)}
    other = {"file_path": "photo_01"}
    write_json(tmp_path / "transforms.json", camera_angle_x=angle, frames=[other, frame])
    unposed = load_unposed(tmp_path, photos, scale=0.5)
    assert unposed.names == ["photo_00.png", "photo_01"]
    np.testing.assert_allclose(unposed.camera_from_object[0], poses[0], atol=1e-6)
    assert np.isnan(unposed.camera_from_object[1]).all()
    # 160x90 is half as large in 80x60, the lower quarter says nothing
    assert unposed.size == photos.size
    assert unposed.weight[:, :45].all() and not unposed.weight[:, 45:].any()
    K = unposed.intrinsics[0]
    want = pinhole((45, 80), 75.0)
    np.testing.assert_allclose(K, want.intrinsics, atol=1e-6)
    image, index = render(want, poses[0])
    same = (index >= 0) == (unposed.alpha[0, :45] > 127)
    assert same.mean() > 0.98


def test_folders_that_cannot_be_used(photos, scene, tmp_path):
    with pytest.raises(PosedImagesError, match="is no folder"):
        load_unposed(tmp_path / "none", photos)
    with pytest.raises(PosedImagesError, match="has no pictures"):
        load_unposed(tmp_path, photos)
    write_unposed(tmp_path, orbit(1), pinhole((50, 70)))
    with pytest.raises(PosedImagesError, match=r"photo_00\.png is 70x50 .* are 80x60"):
        load_unposed(tmp_path, photos, scene)
    (tmp_path / "photo_00.png").write_bytes(b"no picture")
    with pytest.raises(PosedImagesError, match="not a picture"):
        load_unposed(tmp_path, photos, scene)
