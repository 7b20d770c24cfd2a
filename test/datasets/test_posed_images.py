# SPDX-License-Identifier: Apache-2.0
"""The same scene in four layouts; lenses, masks, bounds, sizes."""

import cv2
import numpy as np
import pytest
from posed_scene import (
    BALLS,
    COLOURS,
    SIZE,
    edit_json,
    orbit,
    pinhole,
    render,
    write_bop_balls,
    write_instant_ngp,
    write_llff,
    write_nerf_synthetic,
    write_png,
)

from pose_refiner_ros.datasets.posed_images import PosedImagesError, load_posed_images
from pose_refiner_ros.datasets.posed_images.reading import read_picture
from pose_refiner_ros.datasets.posed_images.views import View, stack
from pose_refiner_ros.geometry.camera import Camera

POSES = orbit()
TRAIN = [i for i in range(len(POSES)) if i % 8]
LOW, HIGH = (BALLS[:, :3] - BALLS[:, 3:]).min(0), (BALLS[:, :3] + BALLS[:, 3:]).max(0)


def write(layout, folder):
    """Source of the scene, and the arguments that load it in metres."""
    if layout == "nerf_synthetic":
        return write_nerf_synthetic(folder, POSES[TRAIN], unit=0.25), {"scale": 0.25}
    if layout == "instant_ngp":
        return write_instant_ngp(folder, POSES), {}
    if layout == "llff":
        return write_llff(folder, POSES), {}
    return write_bop_balls(folder, POSES), {"object_id": 5}


def seen_at(posed, i, point):
    """Colour of picture i at a point of the object, by the loaded camera."""
    p = posed.intrinsics[i] @ (posed.camera_from_object[i] @ [*point, 1.0])[:3]
    u, v = np.rint(p[:2] / p[2]).astype(int)
    return posed.images[i, v, u]


def sky(camera, pose):
    """A smooth picture: colours of directions, through the lens."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(float)
    directions = np.nan_to_num(camera.rays(np.stack((u, v), -1))) @ pose[:3, :3]
    return np.uint8(127.5 + 127 * np.sin(6 * directions))


def mean_error(a, b):
    return abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("layout", ["nerf_synthetic", "instant_ngp", "llff", "bop"])
def test_all_layouts_give_the_same_cameras(layout, tmp_path):
    source, arguments = write(layout, tmp_path)
    posed = load_posed_images(source, **arguments)
    np.testing.assert_allclose(posed.camera_from_object, POSES[TRAIN], atol=1e-7)
    np.testing.assert_allclose(posed.intrinsics, [pinhole().intrinsics] * len(TRAIN), atol=1e-9)
    assert posed.images.dtype == np.uint8 and posed.images.shape == (len(TRAIN), *SIZE, 3)
    np.testing.assert_array_equal(posed.images[3], render(pinhole(), POSES[TRAIN[3]])[0])
    balls = BALLS[:2] if layout == "bop" else BALLS
    assert (posed.bounds[0] < (balls[:, :3] - balls[:, 3:]).min(0)).all()
    assert (posed.bounds[1] > (balls[:, :3] + balls[:, 3:]).max(0)).all()
    shown = 0
    for i in range(len(posed)):
        for ball, colour in zip(BALLS, COLOURS, strict=True):
            # The point of the ball that is nearest to the camera.
            to_camera = posed.camera_positions[i] - ball[:3]
            point = ball[:3] + ball[3] * to_camera / np.linalg.norm(to_camera)
            shown += (seen_at(posed, i, point) == colour).all()
    assert shown > 0.85 * 3 * len(posed)  # the others are behind another ball


@pytest.mark.parametrize("layout", ["instant_ngp", "llff", "bop"])
def test_every_8th_picture_is_for_testing(layout, tmp_path):
    source, arguments = write(layout, tmp_path)
    test = load_posed_images(source, "test", **arguments)
    np.testing.assert_allclose(test.camera_from_object, POSES[::8], atol=1e-7)
    assert len(load_posed_images(source, "all", **arguments)) == len(POSES)


def test_nerf_synthetic_has_files_for_splits(tmp_path):
    source = write_nerf_synthetic(tmp_path, POSES[4:])
    write_nerf_synthetic(tmp_path, POSES[:4], split="test")
    test = load_posed_images(source, "test")
    np.testing.assert_allclose(test.camera_from_object, POSES[:4], atol=1e-7)
    everything = load_posed_images(source, "all")
    assert len(everything) == 16 and everything.names[-1] == "./test/r_3"
    # alpha is that of the pictures, and bounds what it allows: the balls and little more
    np.testing.assert_array_equal(test.alpha[2] > 0, render(pinhole(), POSES[2])[1] >= 0)
    low, high = everything.bounds
    assert (low < LOW).all() and (low > LOW - 0.1).all()
    assert (high > HIGH).all() and (high < HIGH + 0.1).all()


def test_pictures_of_transforms_may_be_named_with_their_suffix(tmp_path):
    source = write_nerf_synthetic(tmp_path, POSES[:6])

    def change(content):
        content["frames"][2]["file_path"] = "train/r_2.png"

    edit_json(source / "transforms_train.json", change)
    assert len(load_posed_images(source / "transforms_train.json")) == 6


def test_instant_ngp_json_of_any_name_and_test_file(tmp_path):
    source = write_instant_ngp(tmp_path, POSES)
    (source / "transforms.json").rename(source / "phone.json")
    assert len(load_posed_images(source / "phone.json")) == len(TRAIN)
    (source / "phone.json").rename(source / "transforms.json")
    frames = write_instant_ngp(tmp_path / "other", POSES[:3]) / "transforms.json"
    frames.rename(source / "transforms_test.json")
    assert len(load_posed_images(source)) == len(POSES)
    assert len(load_posed_images(source, "test")) == 3
    assert len(load_posed_images(source, "all")) == len(POSES) + 3


@pytest.mark.parametrize(
    ("values", "model"),
    [
        ({"k1": -0.2, "k2": 0.05, "p1": 0.003, "p2": -0.002, "k3": 0.01}, "plumb_bob"),
        ({"k1": 0.3, "camera_model": "OPENCV"}, "plumb_bob"),
        ({"k1": 0.05, "k2": 0.01, "k3": 0, "k4": 0.001, "camera_model": "OPENCV_FISHEYE"},
         "equidistant"),
    ],
)  # fmt: skip
def test_instant_ngp_pictures_are_undistorted(values, model, tmp_path):
    K = np.array([[70.0, 0, 41.3], [0, 72.0, 27.8], [0, 0, 1]])
    names = ("k1", "k2", "k3", "k4") if model == "equidistant" else ("k1", "k2", "p1", "p2", "k3")
    lens = Camera(K, SIZE, model, [values.get(name, 0.0) for name in names])
    source = write_instant_ngp(tmp_path, POSES, lens, **values)
    for i, pose in enumerate(POSES):
        write_png(source / "images" / f"{i:03d}.png", sky(lens, pose))
    posed = load_posed_images(source)
    np.testing.assert_allclose(posed.intrinsics[0], K, atol=1e-9)
    for i, n in enumerate(TRAIN):
        weight, expected = posed.weight[i], sky(Camera(K, SIZE), POSES[n])
        uncorrected = mean_error(sky(lens, POSES[n])[weight], expected[weight])
        assert mean_error(posed.images[i][weight], expected[weight]) < 0.25 * uncorrected
        assert not posed.images[i][~weight].any()
    # Pincushion distortion leaves corners that the photo does not show.
    assert posed.weight[:, 0, 0].any() == (values["k1"] < 0.1)
    assert posed.weight[:, 30, 40].all()


def test_instant_ngp_masks_are_undistorted_and_give_bounds(tmp_path):
    camera = pinhole()
    lens = Camera(camera.intrinsics, SIZE, "plumb_bob", [-0.3, 0, 0, 0])
    posed = load_posed_images(write_instant_ngp(tmp_path, POSES, lens, masks="masks", k1=-0.3))
    for i, n in enumerate(TRAIN):
        wrong = (posed.alpha[i] >= 128) != (render(camera, POSES[n])[1] >= 0)
        assert wrong.mean() < 0.02
    assert (posed.bounds[0] < LOW).all() and (posed.bounds[0] > LOW - 0.1).all()
    assert (posed.bounds[1] > HIGH).all() and (posed.bounds[1] < HIGH + 0.1).all()


def test_instant_ngp_bounds(tmp_path):
    def bounds(**values):
        return load_posed_images(write_instant_ngp(tmp_path, POSES, **values), scale=2.0).bounds

    # p * 0.33 + 0.5 lies in the unit cube times aabb_scale about 0.5
    np.testing.assert_allclose(bounds(aabb_scale=2), [[-2 / 0.33] * 3, [2 / 0.33] * 3])
    np.testing.assert_allclose(
        bounds(aabb_scale=1, scale=0.5, offset=[0.5, 0, 1.0]), [[-2, 0, -4], [2, 4, 0]]
    )
    # Nothing said: the cube about what the cameras look at that reaches to them, 1.1 m away.
    np.testing.assert_allclose(bounds(), [[-2.2] * 3, [2.2] * 3], atol=0.1)


@pytest.mark.parametrize("side", [1, 32, 128])
def test_instant_ngp_masks_give_bounds_whatever_aabb_scale_says(side, tmp_path):
    # colmap2nerf.py always writes one, of 97 units a side for 32; objects are the size of a cell.
    posed = load_posed_images(write_instant_ngp(tmp_path, POSES, masks="masks", aabb_scale=side))
    assert (posed.bounds[0] < LOW).all() and (posed.bounds[0] > LOW - 0.1).all()
    assert (posed.bounds[1] > HIGH).all() and (posed.bounds[1] < HIGH + 0.1).all()


def test_instant_ngp_masks_of_parallel_views_need_aabb_scale(tmp_path):
    poses = np.stack([np.eye(4)] * 3)
    poses[:, :3, 3] = [(x, 0, 1.1) for x in (-0.1, 0.0, 0.1)]
    source = write_instant_ngp(tmp_path, poses, masks="masks", aabb_scale=1, scale=1)
    for path in (source / "masks").iterdir():
        mask = np.zeros((*SIZE, 1), np.uint8)
        mask[20:40, 30:50] = 255
        write_png(path, mask)
    bounds = load_posed_images(source, "test").bounds
    assert (bounds >= -0.5).all() and (bounds <= 0.5).all()


def test_intrinsics_of_frames_and_of_larger_pictures(tmp_path):
    source = write_instant_ngp(tmp_path, POSES)
    height, width = SIZE

    def change(content):
        content["frames"][-2].update(fl_x=90.0, cx=30.0)  # 001, the first of the training ones
        for frame in content["frames"][:-2]:
            frame.update(fl_x=400.0, fl_y=400.0, cx=4 * 38.0, cy=4 * 30.0, w=4 * width, h=238)

    edit_json(source / "transforms.json", change)  # 238 / 4 = 59.5, rounded to 60
    K = load_posed_images(source).intrinsics
    np.testing.assert_allclose(K[0], [[90, 0, 29.5], [0, 100, 29.5], [0, 0, 1]])
    y = 60 / 238
    np.testing.assert_allclose(K[1], [[100, 0, 37.5], [0, 400 * y, 120 * y - 0.5], [0, 0, 1]])


def test_llff_factor_and_depths(tmp_path):
    source = write_llff(tmp_path, POSES, "images_4", reduce=4)
    posed = load_posed_images(source, factor=4, scale=0.5)
    np.testing.assert_allclose(posed.intrinsics[0], pinhole().intrinsics)
    np.testing.assert_allclose(posed.near_far, [[0.35, 0.75]] * len(TRAIN))
    assert posed.names[0] == "images_4/001.png" and posed.alpha is None
    # Every corner of every frustum at near and far touches or lies inside the box.
    np.testing.assert_allclose(posed.subset([0]).bounds, posed.bounds)
    far = 0.75 * np.array([-40 / 100, -30 / 100, 1.0])
    for T in posed.camera_from_object:
        corner = T[:3, :3].T @ (far - T[:3, 3])
        assert (corner > posed.bounds[0] - 1e-9).all() and (corner < posed.bounds[1] + 1e-9).all()
    # Without a folder of that factor, images/ are made smaller.
    source = write_llff(tmp_path / "large", POSES)
    small = load_posed_images(source, factor=4)
    assert small.size == (15, 20)
    np.testing.assert_allclose(small.intrinsics[0], pinhole((15, 20), 25.0).intrinsics)


def test_bop_views(tmp_path):
    scene = write_bop_balls(tmp_path / "balls", POSES)
    posed = load_posed_images(scene, object_id=5)
    assert posed.names[0] == "scene 2 image 1 object 5"
    for i, n in enumerate(TRAIN):
        _, index = render(pinhole(), POSES[n])
        np.testing.assert_array_equal(posed.alpha[i] == 255, (index == 0) | (index == 1))
        np.testing.assert_array_equal(posed.weight[i], index != 2)
    # The model's box with a margin, whole.
    low = (BALLS[:2, :3] - BALLS[:2, 3:]).min(0)
    assert (posed.bounds[0] < low).all() and (posed.bounds[0] > low - 0.05).all()
    # All scenes of a split, and an object without models_info: by its masks.
    third = load_posed_images(scene.parent, object_id=6)
    low, high = BALLS[2, :3] - BALLS[2, 3], BALLS[2, :3] + BALLS[2, 3]
    assert (third.bounds[0] < low).all() and (third.bounds[0] > low - 0.08).all()
    assert (third.bounds[1] > high).all() and (third.bounds[1] < high + 0.08).all()


@pytest.mark.parametrize("layout", ["llff", "instant_ngp"])
def test_masks_beside_the_pictures_are_theirs(layout, tmp_path):
    source, _ = write(layout, tmp_path)
    pictures = sorted((tmp_path / "images").iterdir())
    assert pictures
    for number, picture in enumerate(pictures):
        height, width = cv2.imread(str(picture)).shape[:2]
        mask = np.zeros((height, width), np.uint8)
        mask[number + 1 :, 2:] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "masks" / f"{picture.stem}.png"), mask)
    posed = load_posed_images(source, "all")
    assert [(alpha > 0).argmax(axis=0)[5] for alpha in posed.alpha] == [*range(1, len(posed) + 1)]
    (tmp_path / "masks" / f"{pictures[0].stem}.png").unlink()
    with pytest.raises(PosedImagesError, match="has a mask or alpha"):
        load_posed_images(source, "all")


def test_resized_averages_what_is_seen(tmp_path):
    posed = load_posed_images(write_nerf_synthetic(tmp_path, POSES[:3]))
    posed.weight = np.ones(posed.alpha.shape, bool)
    posed.weight[0, 0, 0] = False
    posed.images[posed.alpha == 0] = (0, 255, 255)  # must not bleed into the balls
    small = posed.resized(4)
    assert small.size == (15, 20) and small.names == posed.names
    assert not small.weight[0, 0, 0] and small.weight.sum() == small.weight.size - 1
    np.testing.assert_allclose(small.intrinsics[1], pinhole((15, 20), 25.0).intrinsics)
    expected = posed.alpha.reshape(3, 15, 4, 20, 4).mean((2, 4))
    assert abs(small.alpha - expected).max() <= 0.5
    one = (small.alpha[0] > 0) & (small.alpha[0] < 255)
    lone = small.images[0][one][:, None] == COLOURS  # at the outline: the ball's own colour
    assert one.sum() > 10 and lone.all(-1).any(-1).mean() > 0.8
    assert posed.resized(7).size == (8, 11)  # rows and columns left over are cut
    np.testing.assert_allclose(posed.resized(7).intrinsics[0, 0], [100 / 7, 0, 40 / 7 - 0.5])


def test_subset(tmp_path):
    posed = load_posed_images(write_llff(tmp_path, POSES))
    some = posed.subset([5, 2])
    assert some.names == [posed.names[5], posed.names[2]] and len(some) == 2
    np.testing.assert_array_equal(some.images[1], posed.images[2])
    np.testing.assert_array_equal(some.camera_from_object[0], posed.camera_from_object[5])
    assert some.alpha is None and some.near_far.shape == (2, 2)


@pytest.mark.parametrize("kind", ["grey", "16 bit", "rgba 16 bit"])
def test_kinds_of_pictures(kind, tmp_path):
    path = tmp_path / "ünïcode.png"
    pixels = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 5
    if kind == "grey":
        data = pixels[..., 0].astype(np.uint8)
    elif kind == "16 bit":
        data = pixels * 257
    else:
        data = np.dstack((pixels, np.full((4, 4), 200, np.uint16))) * 257
    path.write_bytes(cv2.imencode(".png", data)[1].tobytes())
    image, alpha = read_picture(path)
    expected = np.repeat(pixels[..., :1], 3, -1) if kind == "grey" else pixels[..., ::-1]
    np.testing.assert_array_equal(image, expected)
    assert (alpha is None) if kind != "rgba 16 bit" else (alpha == 200).all()


def test_alpha_that_is_255_everywhere_is_none(tmp_path):
    source = write_instant_ngp(tmp_path, POSES)
    for path in (source / "images").iterdir():
        write_png(path, cv2.imread(str(path)), np.full(SIZE, 255, np.uint8))
    assert load_posed_images(source).alpha is None


@pytest.mark.data
def test_chair(example_data):
    source = example_data("nerf/chair")
    posed, test = load_posed_images(source), load_posed_images(source, "test")
    assert len(posed) == 50 and len(test) == 8 and posed.size == (400, 400)
    np.testing.assert_allclose(posed.intrinsics[7, 0], [555.5555, 0, 199.5], rtol=1e-6)
    # The chair is about 1.4 wide and 2 high.
    np.testing.assert_allclose(np.ptp(posed.bounds, axis=0), [1.5, 1.5, 2.1], atol=0.15)


@pytest.mark.data
def test_bop_example(example_data):
    posed = load_posed_images(example_data("bop/schauma/test/000001"), "test", object_id=2)
    assert posed.size == (540, 960) and posed.names == ["scene 1 image 200 object 2"]
    assert posed.alpha.any() and 0 < (~posed.weight).mean() < 0.1


def test_of_two_layouts_in_a_folder_one_is_taken_and_that_is_told(tmp_path):
    write("llff", tmp_path)
    write("instant_ngp", tmp_path)
    told = []
    load_posed_images(tmp_path, "all", warn=told.append)
    assert len(told) == 1 and "in 2 layouts: those of transforms.json are taken" in told[0]
    told.clear()
    llff = load_posed_images(tmp_path / "poses_bounds.npy", "all", warn=told.append)
    assert not told and llff.near_far is not None


def test_frames_may_say_how_near_and_far_there_is_something(tmp_path):
    source, _ = write("instant_ngp", tmp_path)
    assert load_posed_images(source).near_far is None

    def bounded(content):
        for number, frame in enumerate(content["frames"]):
            frame |= {"near": 0.5, "far": 3.0 + number}

    edit_json(tmp_path / "transforms.json", bounded)
    posed = load_posed_images(source, scale=2.0)
    assert (posed.near_far[:, 0] == 1.0).all()
    assert len(np.unique(posed.near_far[:, 1])) == len(posed)


def test_pictures_of_several_sizes_lie_in_the_corner_of_arrays_for_the_largest():
    K, pose = np.diag((90.0, 90.0, 1.0)), np.eye(4)
    sizes = [(20, 30), (40, 20), (20, 30)]
    photos = [
        View(str(i), np.full((*size, 3), 9, np.uint8), np.full(size, 255, np.uint8), None, K, pose)
        for i, size in enumerate(sizes)
    ]
    photos[0].alpha[:5] = 0
    photos[2].weight = np.zeros((20, 30), bool)
    posed = stack(photos, 4)
    assert posed.size == (40, 30) and len(posed) == 3
    for i, (height, width) in enumerate(sizes):
        assert (posed.images[i, :height, :width] == 9).all()
        assert posed.images[i].sum() == 27 * height * width
        assert not posed.alpha[i, height:].any() and not posed.alpha[i, :, width:].any()
    assert posed.weight.sum(axis=(1, 2)).tolist() == [20 * 30, 40 * 20, 0]
    photos[0].alpha[:] = 255
    posed = stack(photos, 3, factor=2)
    assert posed.size == (20, 15) and posed.alpha is None and posed.intrinsics[1, 0, 0] == 45.0
