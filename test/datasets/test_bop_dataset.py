# SPDX-License-Identifier: Apache-2.0
import csv
import json
import shutil

import cv2
import numpy as np
import pytest
from blocks import bop_truth

from pose_refiner_ros.datasets.bop import (
    BopDataset,
    BopError,
    BopEstimate,
    write_results,
)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def images(folder):
    return list(BopDataset(folder))


def test_reads_poses_masks_and_pictures(bop_folder):
    dataset = BopDataset(bop_folder)
    first, second, _ = dataset
    assert (dataset.name, len(dataset)) == ("blocks", 3)
    assert [(i.scene_id, i.im_id) for i in dataset] == [(3, 0), (3, 7), (8, 2)]
    assert str(second) == "scene 3 image 7"
    assert first.camera.size == (240, 320) and first.camera.fx == 400
    assert [i.obj_id for i in first.instances] == [1, 4]
    for instance in first.instances:
        np.testing.assert_allclose(
            instance.camera_from_object, bop_truth()[instance.obj_id], atol=1e-9
        )
        assert instance.visible_fraction == 1.0
        mask = first.mask(instance)
        assert mask.dtype == bool and mask.shape == (240, 320) and 500 < mask.sum() < 20000
        np.testing.assert_array_equal(first.mask(instance, "full"), mask)
    rgb = first.rgb()
    assert (
        rgb.dtype == np.uint8 and (rgb[first.mask(first.instances[0])][0] == (200, 120, 60)).all()
    )
    assert first.depth() is None and first.depth_path is None
    assert dataset.models_path == bop_folder / "models"


def test_scene_without_ground_truth_has_instances_of_unknown_object(bop_folder):
    *_, image = images(bop_folder)
    assert not image.has_ground_truth
    assert [(i.index, i.obj_id, i.camera_from_object) for i in image.instances] == [
        (0, None, None), (1, None, None)
    ]  # fmt: skip
    assert image.mask(image.instances[1]).any()


def test_scene_with_only_pictures_has_no_instances(bop_folder):
    shutil.rmtree(bop_folder / "test/000008/mask")
    shutil.rmtree(bop_folder / "test/000008/mask_visib")
    assert images(bop_folder)[-1].instances == ()


def test_missing_masks_are_none(bop_folder):
    (bop_folder / "test/000003/mask_visib/000000_000001.png").unlink()
    image = images(bop_folder)[0]
    assert image.mask(image.instances[1]) is None
    assert image.mask(image.instances[1], "full") is not None
    with pytest.raises(ValueError, match="visib or full, got 'amodal'"):
        image.mask(image.instances[0], "amodal")


def test_depth_is_in_metres_and_grey_pictures_are_found(bop_folder):
    scene = bop_folder / "test/000003"
    (scene / "depth").mkdir()
    cv2.imwrite(str(scene / "depth/000000.png"), np.full((240, 320), 6543, np.uint16))
    (scene / "rgb").rename(scene / "gray")
    image = images(bop_folder)[0]
    np.testing.assert_allclose(image.depth(), 0.6543)  # depth_scale 0.1 mm
    assert image.rgb().shape == (240, 320, 3)


def test_size_comes_from_the_pictures_then_from_camera_json(bop_folder):
    edit_json(bop_folder / "camera.json", lambda c: c.update(width=100))
    assert images(bop_folder)[0].camera.size == (240, 320)
    for folder in ("rgb", "mask", "mask_visib"):
        shutil.rmtree(bop_folder / "test/000003" / folder)
    assert images(bop_folder)[0].camera.size == (240, 100)
    (bop_folder / "camera.json").unlink()
    with pytest.raises(BopError, match=r"neither picture nor mask.*camera\.json"):
        images(bop_folder)[0].camera  # noqa: B018


def test_targets_choose_images(bop_folder):
    targets = [{"scene_id": 3, "im_id": 7, "obj_id": 1, "inst_count": 1}]
    (bop_folder / "test_targets_bop19.json").write_text(json.dumps(targets))
    assert [(i.scene_id, i.im_id) for i in BopDataset(bop_folder)] == [(3, 7)]
    assert len(BopDataset(bop_folder, targets=False)) == 3
    (bop_folder / "test_targets_bop19.json").write_text("[3]")
    with pytest.raises(BopError, match="not a list of targets"):
        BopDataset(bop_folder)


def test_poses_that_are_not_known(bop_folder):
    edit_json(bop_folder / "test/000003/scene_gt.json", lambda c: c["0"][0].pop("cam_R_m2c"))
    with pytest.raises(
        BopError, match=r"scene_gt\.json, 0, object 0: 'cam_R_m2c' must be 9 numbers"
    ):
        images(bop_folder)
    edit_json(bop_folder / "test/000003/scene_gt.json", lambda c: c["0"][0].pop("cam_t_m2c"))
    instance = images(bop_folder)[0].instances[0]
    assert instance.obj_id == 1 and instance.camera_from_object is None


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("scene_gt.json", lambda c: c["7"][1].pop("obj_id"), "7, object 1: lacks a whole number"),
        ("scene_gt.json", lambda c: c["0"][0].update(cam_R_m2c=[2] * 9), "is not a rotation"),
        ("scene_gt.json", lambda c: c["0"][0].update(cam_t_m2c=[1, 2]), "must be 3 numbers, got"),
        ("scene_gt.json", lambda c: c.update({"0": 5}), "must be a list of objects, got int"),
        ("scene_camera.json", lambda c: c["0"].pop("cam_K"), "image 0: 'cam_K' must be 9 numbers"),
        ("scene_camera.json", lambda c: c.update(a={}), "must be whole numbers, got 'a'"),
    ],
)
def test_malformed_files_are_named(bop_folder, file, change, message):
    edit_json(bop_folder / "test/000003" / file, change)
    with pytest.raises(BopError, match=message):
        images(bop_folder)


def test_missing_and_broken_files_are_named(bop_folder, tmp_path):
    with pytest.raises(BopError, match="nowhere is not a folder"):
        BopDataset(tmp_path / "nowhere")
    with pytest.raises(
        BopError, match=r"train has no scenes .*; this data set has the splits test"
    ):
        BopDataset(bop_folder, "train")
    with pytest.raises(BopError, match="has no scenes"):
        BopDataset(tmp_path)
    image = images(bop_folder)[0]
    image.rgb_path.write_bytes(b"nothing")
    with pytest.raises(BopError, match="is not an image that OpenCV can read"):
        image.rgb()
    cv2.imwrite(str(image.mask_path(image.instances[0])), np.zeros((120, 160), np.uint8))
    cv2.imwrite(str(image.rgb_path), np.zeros((240, 320, 3), np.uint8))
    with pytest.raises(BopError, match="the mask is 160x120 but its camera 320x240"):
        image.mask(image.instances[0])
    (bop_folder / "test/000003/scene_camera.json").write_text("{")
    with pytest.raises(BopError, match=r"scene_camera\.json is not readable JSON"):
        images(bop_folder)
    (bop_folder / "test/000003/scene_camera.json").unlink()
    with pytest.raises(BopError, match=r"scene_camera\.json is missing"):
        images(bop_folder)
    shutil.rmtree(bop_folder / "models")
    with pytest.raises(BopError, match="has no models/ folder"):
        BopDataset(bop_folder).models_path  # noqa: B018


def test_results_file_has_bops_columns_and_units(tmp_path):
    pose = bop_truth()[4]
    path = tmp_path / "new" / "results.csv"
    write_results(path, [BopEstimate(3, 7, 4, 0.75, pose, 0.0123)])
    (row,) = csv.DictReader(path.open())
    assert list(row) == ["scene_id", "im_id", "obj_id", "score", "R", "t", "time"]
    assert (row["scene_id"], row["im_id"], row["obj_id"]) == ("3", "7", "4")
    assert float(row["score"]) == 0.75 and float(row["time"]) == 0.0123
    R = np.array(row["R"].split(), float).reshape(3, 3)
    np.testing.assert_array_equal(R, pose[:3, :3])
    np.testing.assert_allclose(np.array(row["t"].split(), float), [100, 0, 700])


@pytest.mark.data
def test_real_data(example_data):
    first, second = BopDataset(example_data("bop/schauma"))
    assert [i.obj_id for i in first.instances] == [1, 2] and not second.has_ground_truth
    assert first.camera.size == (540, 960) and first.mask(first.instances[0]).sum() == 25878
    assert np.median(first.depth()[first.mask(first.instances[0])]) == pytest.approx(0.43, abs=0.05)
