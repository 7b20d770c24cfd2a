# SPDX-License-Identifier: Apache-2.0
"""Models of COLMAP, text and binary, as photos with known cameras."""

from __future__ import annotations

import numpy as np
import posed_scene
import pytest
import sparse_scene

from pose_refiner_ros.datasets.posed_images import (
    PosedImagesError,
    colmap,
    has_layout,
    load_posed_images,
)

POINTS = np.random.default_rng(1).uniform(-0.2, 0.2, (50, 3))


@pytest.fixture(params=[True, False], ids=["binary", "text"])
def source(request, tmp_path):
    model = sparse_scene.sparse_model(POINTS, 10)
    sparse_scene.write_model(tmp_path / "sparse" / "0", model, request.param)
    for name, pose in zip(model.names, model.camera_from_world, strict=True):
        image, index = posed_scene.render(sparse_scene.CAMERA, pose)
        posed_scene.write_png(tmp_path / "images" / name, image)
    return tmp_path


def test_a_model_is_read_as_written(source):
    model, written = (
        colmap.read_model(source / "sparse" / "0"),
        sparse_scene.sparse_model(POINTS, 10),
    )
    np.testing.assert_allclose(model.camera_from_world, written.camera_from_world, atol=1e-9)
    np.testing.assert_allclose(model.points, POINTS)
    assert model.names == written.names and model.errors.tolist() == [0.5] * 50
    assert all(seen.tolist() == list(range(50)) for seen in model.seen)
    assert model.values[0] == {
        "camera_model": "OPENCV", "w": 320, "h": 240, "fl_x": 300.0, "fl_y": 300.0, "cx": 160.0,
        "cy": 120.0, "k1": 0.0,
    }  # fmt: skip


def test_photos_have_cameras_bounds_and_depths(source):
    assert has_layout(source)
    posed = load_posed_images(source, "all")
    np.testing.assert_allclose(posed.intrinsics[4], sparse_scene.CAMERA.intrinsics)
    np.testing.assert_allclose(posed.camera_from_object, posed_scene.orbit(10), atol=1e-9)
    near, far = posed.near_far.T
    assert (near > 0.4).all() and (near < 0.95).all() and (far > 1.2).all() and (far < 2.2).all()
    assert (posed.bounds[0] < -0.19).all() and (posed.bounds[1] > 0.19).all()
    assert abs(posed.bounds).max() < 0.4
    assert load_posed_images(source / "sparse" / "0", "test").names == ["000.png", "008.png"]


def test_faulty_models(source):
    folder = source / "sparse" / "0"
    (images,) = folder.glob("images.*")
    content = images.read_bytes()
    images.write_bytes(content[: len(content) // 2 - 7])
    if images.suffix == ".bin":
        with pytest.raises(PosedImagesError, match="is no whole file of COLMAP"):
            load_posed_images(source)
    images.unlink()
    with pytest.raises(PosedImagesError, match=r"images\.bin is missing, and so is images\.txt"):
        load_posed_images(source)
    images.write_bytes(content)
    (source / "images").rename(source / "elsewhere")
    with pytest.raises(PosedImagesError, match=r"its photos, such as 000\.png, are in none of"):
        load_posed_images(source)
