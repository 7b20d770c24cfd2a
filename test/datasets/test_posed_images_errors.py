# SPDX-License-Identifier: Apache-2.0
"""Sources of posed pictures that cannot be used: one line each that says why."""

import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from posed_scene import (
    SIZE,
    edit_json,
    orbit,
    pinhole,
    write_bop_balls,
    write_instant_ngp,
    write_json,
    write_llff,
    write_nerf_synthetic,
    write_png,
)

from pose_refiner_ros.datasets.posed_images import (
    PosedImagesError,
    check_agreement,
    load_posed_images,
)

POSES = orbit(10)
BLACK = np.zeros((*SIZE, 3), np.uint8)


def fails(match, source, *arguments, **keywords):
    with pytest.raises(PosedImagesError, match=match) as caught:
        load_posed_images(source, *arguments, **keywords)
    assert "\n" not in str(caught.value)


@pytest.fixture
def transforms(tmp_path):
    """An instant-ngp source with transforms.json, 10 pictures."""
    return write_instant_ngp(tmp_path, POSES)


@pytest.fixture
def llff(tmp_path):
    return write_llff(tmp_path, POSES)


@pytest.fixture
def bop(tmp_path):
    return write_bop_balls(tmp_path / "balls", POSES)


def edit_rows(source, change):
    rows = np.load(source / "poses_bounds.npy")
    rows = rows if (changed := change(rows)) is None else changed
    np.save(source / "poses_bounds.npy", rows)


def test_arguments(transforms, bop):
    fails("split must be train, test or all, got 'val'", transforms, "val")
    for scale in (0, -1, np.nan):
        fails(f"scale must be positive metres per unit, got {scale}", transforms, scale=scale)
    fails(r"factor must be a whole number from 1, got 1\.5", transforms, factor=1.5)
    fails(r"80x60 cannot be made smaller by 61; give a whole number from 1 to 60", transforms,
          factor=61)  # fmt: skip
    fails("object_id is for BOP scenes, and this is none", transforms, object_id=1)


def test_no_known_layout(tmp_path, bop):
    fails("nowhere does not exist", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(
        r"no known layout; looked for transforms_train\.json \(NeRF-synthetic\).*poses_bounds\.npy",
        tmp_path / "empty",
    )
    fails("no known layout.*give one of its folders of scenes: test", bop.parents[1])
    (tmp_path / "poses.txt").write_text("1 2 3")
    fails("no known layout", tmp_path / "poses.txt")


@pytest.mark.parametrize("write", [write_nerf_synthetic, write_instant_ngp, write_llff])
def test_one_picture(write, tmp_path):
    fails("has only 1 picture for split 'train'; a field needs several", write(tmp_path, POSES[:1]))


def test_one_picture_of_an_object(tmp_path):
    scene = write_bop_balls(tmp_path, POSES[:1])
    fails("has only 1 picture for split 'all'", scene, "all", object_id=5)
    assert len(load_posed_images(scene, "test", object_id=5)) == 1


def test_pictures_that_are_not_there(transforms, tmp_path, caplog):
    source = write_nerf_synthetic(tmp_path / "synthetic", POSES)
    (source / "train" / "r_3.png").unlink()
    fails(r"picture .*train/r_3 is missing", source)
    # People delete blurred pictures of their phone.
    for i in range(1, 6):
        (transforms / "images" / f"00{i}.png").unlink()
    assert load_posed_images(transforms, "all").names == [f"images/00{i}.png" for i in "06789"]
    expected = "5 of 10 pictures are missing and left out: images/001.png, images/002.png, "
    assert f"{expected}images/003.png and 2 more; if you did not" in caplog.text
    told = []
    load_posed_images(transforms, warn=told.append)
    assert len(told) == 1 and told[0].startswith(f"{transforms / 'transforms.json'}: {expected}")
    (transforms / "images" / "006.png").unlink()
    fails(
        r"picture .*images/001\.png is missing, and so are 6 of the 10.*put them there", transforms
    )


def test_views_of_an_object_that_is_hardly_seen(bop):
    assert len(load_posed_images(bop, object_id=5, warn=pytest.fail)) == 8
    infos = {str(i): [{"visib_fract": 0.05 if i in (2, 3, 9) else 1.0}] * 2 for i in range(10)}
    write_json(bop / "scene_gt_info.json", **infos)
    write_png(bop / "mask_visib" / "000001_000000.png", BLACK)
    told = []
    assert len(load_posed_images(bop, "all", object_id=5, warn=told.append)) == 6
    assert [text.split(" views")[0] for text in told] == [f"{bop}: 3 of 10", f"{bop}: 1 of 7"]
    assert "less than 10% of it is visible" in told[0] and "masks are empty" in told[1]


def test_pictures(transforms):
    picture = transforms / "images" / "003.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:40])
    fails(r"003\.png is not a picture that OpenCV can read", transforms)
    picture.write_bytes(b"")
    fails(r"003\.png is not a picture that OpenCV can read", transforms)
    float_picture = transforms / "images" / "003.tiff"
    cv2.imwrite(str(float_picture), BLACK.astype(np.float32))
    float_picture.rename(picture)
    fails("has pixels of float32; convert it to 8 or 16 bits", transforms)
    write_png(picture, BLACK, np.zeros(SIZE, np.uint8))
    fails(r"003\.png has a mask or alpha, images/001\.png none", transforms)


def test_masks(tmp_path):
    source = write_instant_ngp(tmp_path, POSES, masks="masks")
    write_png(source / "masks" / "004.png", BLACK[:30])
    fails(r"004\.png: the mask is 80x30, its picture 80x60", source)
    (source / "masks" / "004.png").unlink()
    fails(r"picture .*masks/004\.png is missing", source)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda T: T[0].__setitem__(3, float("nan")), "NaN or infinity"),
        (lambda T: T[1].__setitem__(slice(0, 3), [0, 0, 0]), "axes are scaled by"),
        (lambda T: [row.__setitem__(0, -row[0]) for row in T], r"mirrored \(left-handed\)"),
        (lambda T: [row.__setitem__(1, 1.1 * row[1]) for row in T[:3]], r"scaled by \[1\.1"),
        (lambda T: T.pop(), None),
        (lambda T: T.__setitem__(3, [0, 0, 1, 0]), "last row of the pose is"),
        (lambda T: T.__setitem__(slice(0, 2), []), "must be 3x4 or 4x4 numbers"),
        (lambda T: T[2].__setitem__(2, "x"), "must be 3x4 or 4x4 numbers"),
    ],
)
def test_poses(change, match, transforms):
    edit_json(transforms / "transforms.json", lambda c: change(c["frames"][-4]["transform_matrix"]))
    if match is None:  # three rows say all
        assert len(load_posed_images(transforms)) == 8
    else:
        fails(rf"transforms\.json, images/003\.png: .*{match}", transforms)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: [c.pop("fl_x"), c.pop("fl_y")], "neither fl_x nor camera_angle_x"),
        (lambda c: c.update(fl_x=0), "fl_x is 0 pixels, it must be positive"),
        (lambda c: c.update(fl_y=-100), "fl_y is -100 pixels, it must be positive"),
        (lambda c: c.update(fl_x="long"), "fl_x must be a number, got 'long'"),
        (lambda c: c.update(fl_x=float("nan")), "fl_x must be a number, got nan"),
        (lambda c: c.update(fl_x=None, camera_angle_x=40), "camera_angle_x is 40, it must lie"),
        (lambda c: c.update(w=100, h=75), "80x60, the file of poses says 100x75.*no whole mul"),
        (lambda c: c.update(w=60, h=80), "says 60x80.*turned by 90 degrees"),
        (lambda c: c.update(w=160, h=60), "says 160x60"),
        (lambda c: c.update(cx=200), "principal point .* outside the picture of 80x60"),
        (lambda c: c.update(camera_model="EQUIRECTANGULAR"), "'EQUIRECTANGULAR' is not known"),
        (lambda c: c.update(camera_model="PINHOLE", k1=0.1), "PINHOLE does not go with"),
        (lambda c: c.update(k4=0.1), "OPENCV does not go with k1 k2 k3 k4"),
        (lambda c: c.update(aabb_scale=0), "aabb_scale and scale must be positive numbers"),
        (lambda c: c.update(aabb_scale=1, offset=[1, 2]), "offset one or three"),
        (lambda c: c.update(frames=[]), "has no 'frames'"),
        (lambda c: c["frames"][0].pop("file_path"), "frame 0: lacks 'file_path'"),
    ],
)
def test_intrinsics_and_values(change, match, transforms):
    edit_json(transforms / "transforms.json", change)
    fails(match, transforms)


def test_json_that_is_none(transforms):
    (transforms / "transforms.json").write_text('{"frames": [')
    fails(r"transforms\.json is not readable JSON", transforms)
    (transforms / "transforms.json").write_text("[1]")
    fails("has no 'frames'", transforms)


def test_split_without_file(tmp_path):
    fails(r"transforms_test\.json is missing", write_nerf_synthetic(tmp_path, POSES), "test")


def test_poses_bounds(llff):
    (llff / "images" / "009.png").rename(llff / "other.png")
    fails("has 10 poses, but .*images 9 pictures", llff)
    (llff / "other.png").rename(llff / "images" / "009.png")
    good = np.load(llff / "poses_bounds.npy")
    for change, match in (
        (lambda r: r.__setitem__((3, 7), np.nan), "row 3 contains NaN or infinity"),
        (lambda r: r.__setitem__((3, 15), 2.0), "row 3: depths must be 0 < near < far, got 2 and"),
        (lambda r: r.__setitem__((3, 14), -5.0), r"row 3 \(images/003\.png\): focal length fx is"),
        (lambda r: r.__setitem__((3, 9), 100.0), "row 3 .* says 100x60.*no whole multiple"),
        (lambda r: r.__setitem__((3, [0, 5, 10]), -r[3, [0, 5, 10]]), "row 3 .*mirrored"),
        (lambda r: r[:, :15], r"must have one row of 17 numbers per picture, has \(10, 15\)"),
        (lambda r: r.astype(str), "must have one row of 17 numbers"),
    ):
        np.save(llff / "poses_bounds.npy", good)
        edit_rows(llff, change)
        fails(match, llff)
    (llff / "poses_bounds.npy").write_bytes(b"no array")
    fails("is not an array that numpy can read", llff)
    np.save(llff / "poses_bounds.npy", good)
    shutil.rmtree(llff / "images")
    fails("but .*images 0 pictures", llff)


def test_objects_of_bop_scenes(bop):
    fails("no object was chosen; its objects are 5, 6", bop)
    fails("object 7 is absent; its objects are 5, 6", bop, object_id=7)
    (bop / "mask_visib" / "000003_000000.png").unlink()
    fails(r"image 3 object 5 \(index 0\) has no mask in mask_visib/", bop, object_id=5)
    assert len(load_posed_images(bop, object_id=6)) == 8
    (bop / "rgb" / "000003.png").unlink()
    fails("image 3 object 6 .*has no picture in rgb/", bop, object_id=6)
    edit_json(bop / "scene_gt.json", lambda c: c["4"][1].update(cam_R_m2c=[0] * 9))
    fails("cam_R_m2c is not a rotation", bop, object_id=6)
    for folder in ("rgb", "mask_visib"):
        shutil.rmtree(bop / folder)
    (bop / "scene_gt.json").unlink()
    fails(r"its objects are none \(no scene_gt\.json\)", bop, object_id=6)


def test_bop_scene_without_number_or_with_broken_models_info(bop):
    write_json(bop.parents[1] / "models" / "models_info.json", **{"5": {"min_x": 3}})
    fails(r"models_info\.json, object 5: needs min_x, size_x", bop, object_id=5)
    named = bop.rename(bop.with_name("kitchen"))
    shutil.copytree(named, named.with_name("000001"))
    fails("must have a number for a name", named, object_id=5)


def test_cameras_at_one_place(llff, tmp_path):
    edit_rows(llff, lambda r: r.__setitem__((slice(None), [3, 8, 13]), [1.0, 2.0, 3.0]))
    fails(r"all 8 cameras are at one place, \[1\.0, 2\.0, 3\.0\]", llff)


def test_parallel_cameras_need_bounds(transforms):
    poses = np.stack([np.eye(4)] * 10)
    poses[:, 0, 3] = np.arange(10) * 0.1
    write_instant_ngp(transforms, poses)
    fails("nothing says where the scene is.*add aabb_scale", transforms)
    write_instant_ngp(transforms, poses, aabb_scale=4)
    assert len(load_posed_images(transforms)) == 8


def shuffled(source, name):
    """Gives every picture another one's pose."""

    def change(content):
        poses = [f["transform_matrix"] for f in content["frames"]]
        for frame, pose in zip(content["frames"], poses[7:] + poses[:7], strict=True):
            frame["transform_matrix"] = pose

    edit_json(source / name, change)


def test_poses_of_other_pictures_do_not_agree_with_masks(tmp_path):
    source = write_nerf_synthetic(tmp_path, orbit(24))
    load_posed_images(source)
    shuffled(source, "transforms_train.json")
    fails("fills .* of a mask in the median.*the poses do not agree", source)


def test_no_point_inside_all_masks(tmp_path):
    source = write_nerf_synthetic(tmp_path, POSES, unit=0.1)  # 11 units away: outside the box
    for i in range(10):
        alpha = np.zeros(SIZE, np.uint8)
        alpha[:20, 5 * i : 5 * i + 8] = 255
        write_png(source / "train" / f"r_{i}.png", BLACK, alpha)
    fails(r"no point of the box \[-1\.5, -1\.5, -1\.5\] to .* inside nearly all masks", source)


def test_axes_that_point_away_from_each_other(tmp_path):
    # OpenCV's axes in a file that should have OpenGL's: every camera looks outwards.
    source = write_instant_ngp(tmp_path, orbit(40), aabb_scale=1)

    def change(content):
        for frame in content["frames"]:
            T = np.array(frame["transform_matrix"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
            frame["transform_matrix"] = T.tolist()

    load_posed_images(source)
    edit_json(source / "transforms.json", change)
    fails("no point is in view of more than .* cameras: .*check the convention", source)


def test_slightly_wrong_poses_agree(tmp_path):
    posed = load_posed_images(write_nerf_synthetic(tmp_path, orbit(20)))
    generator = np.random.default_rng(1)
    poses = posed.camera_from_object.copy()
    for T in poses:
        T[:3, :3] = T[:3, :3] @ cv2.Rodrigues(generator.normal(0, np.radians(2), 3))[0]
    check_agreement(replace(posed, camera_from_object=poses))
    check_agreement(replace(posed, alpha=None))
    check_agreement(posed.subset([0]))


def test_test_pinhole_is_centred():
    # The layouts without a principal point rely on it.
    np.testing.assert_allclose(pinhole().intrinsics[:2, 2], [39.5, 29.5])
