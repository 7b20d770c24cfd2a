# SPDX-License-Identifier: Apache-2.0
"""What a label image says of one object, and what it does not say."""

import cv2
import numpy as np
import pytest
from shapes import box, pinhole_camera, pose, silhouette

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.refinement.evidence import (
    LEVEL_SIZES,
    MIN_PIXELS,
    UNKNOWN,
    UNKNOWN_LIMIT,
    EvidenceError,
    build_pyramid,
    gather_evidence,
    signed_distance,
)

CAMERA = pinhole_camera(256)


def disc(size: int, radius: float, center=None) -> tuple[np.ndarray, np.ndarray]:
    """A mask (S, S) and the exact signed distance (S, S) to its border."""
    center = ((size - 1) / 2, (size - 1) / 2) if center is None else center
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(x - center[0], y - center[1]) - radius
    return (distance < 0).astype(np.uint8), distance


def rectangle(size: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


# --- signed distances ---------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [25.1, 39.8, 40.3])
def test_distances_to_a_disc(radius):
    mask, exact = disc(128, radius)
    error = signed_distance(mask) - exact
    # the border of a mask of whole pixels lies on neither side of where it was
    for low, high, bias, spread in ((-1, 1, 0.1, 0.2), (-3, 3, 0.2, 0.5), (-20, 20, 0.6, 0.5)):
        band = (exact > low) & (exact < high)
        assert abs(error[band].mean()) < bias
        assert error[band].std() < spread
    assert np.abs(error[np.abs(exact) < 1]).max() < 0.5
    assert np.abs(error[np.abs(exact) < 20]).max() < 2.0


def test_distances_to_a_straight_edge_grow_by_one_per_pixel():
    mask = rectangle(64, 20, 0, 64, 64)
    row = signed_distance(mask)[32]
    exact = 19.5 - np.arange(64)
    np.testing.assert_allclose(row[17:23], exact[17:23], atol=0.5)
    np.testing.assert_allclose(row[4:60], exact[4:60], atol=1.1)
    assert (np.diff(row[4:60]) < 0.0).all()


def test_a_resampled_border_lies_between_pixels():
    """The share of a pixel that is covered says where the border runs inside it."""
    fine, _ = disc(1024, 320.0)
    share = cv2.resize(fine * np.uint8(255), (128, 128), interpolation=cv2.INTER_AREA)
    _, exact = disc(128, 40.0)
    mask = (share > 127).astype(np.uint8)
    error = signed_distance(mask, None, share) - exact
    near = np.abs(exact) < 1.0
    assert np.abs(error[near]).max() < 0.2
    rough = signed_distance(mask) - exact
    assert np.abs(rough[near]).mean() > 2 * np.abs(error[near]).mean()


def test_unknown_pixels_belong_to_neither_side():
    mask = rectangle(64, 16, 16, 48, 48)
    unknown = rectangle(64, 40, 10, 64, 54) & ~mask & 1
    distance = signed_distance(mask, unknown)
    assert (distance[unknown == 1] == UNKNOWN).all()
    known = unknown == 0
    assert (np.abs(distance[known]) < 100).all()
    # next to the unknown the mask is deep inside: the border may lie anywhere beyond
    assert distance[32, 44] < -10
    assert distance[32, 20] == pytest.approx(-4, abs=1)


# --- pyramids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [40, 64, 136, 200, 256])
def test_levels_see_the_same_at_other_resolutions(side):
    mask, exact = disc(side, 0.3 * side)
    camera = np.array([300.0, 310.0, 0.4 * side, 0.6 * side])
    bounds = np.array([-5.0, -6.0, 300.0, 301.0])
    levels = build_pyramid(signed_distance(mask), False, camera, bounds)
    assert len(levels) == len(LEVEL_SIZES)
    for level, largest in zip(levels, LEVEL_SIZES, strict=True):
        size = level.distance.shape[0]
        assert size <= largest and size * level.pixel == side
        assert level.distance.flags.c_contiguous and level.distance.dtype == np.float32
        # the same ray falls on the same place
        x = (np.arange(size) + 0.5) * level.pixel - 0.5
        ray = (x - camera[2]) / camera[0]
        np.testing.assert_allclose(
            ray * level.camera[0] + level.camera[2], np.arange(size), atol=1e-9
        )
        np.testing.assert_allclose((level.bounds + 0.5) * level.pixel - 0.5, bounds)
        # robust distances, in pixels of the crop
        column = int(0.78 * size)
        at = exact[side // 2, int(x[column])]
        expected = at / (1 + abs(at) / level.scale)
        assert level.distance[size // 2, column] == pytest.approx(expected, abs=1.5)
        assert np.abs(level.distance).max() < level.scale
    assert levels[-1].pixel == 1.0


def test_a_coarse_pixel_with_an_unknown_part_is_unknown():
    mask = rectangle(256, 60, 60, 180, 180)
    unknown = rectangle(256, 181, 61, 182, 140)  # one column, one row off the coarse grid
    levels = build_pyramid(signed_distance(mask, unknown), True, np.ones(4), np.zeros(4))
    coarse, fine = levels
    assert (fine.distance[unknown == 1] == UNKNOWN).all()
    assert (coarse.distance[31:70, 90] == UNKNOWN).all()
    for level in levels:
        known = level.distance < UNKNOWN_LIMIT
        assert np.abs(level.distance[known]).max() < level.scale


# --- label images -------------------------------------------------------------------------------


def test_other_instances_and_the_photo_border_are_unknown():
    masks = np.zeros((256, 256), np.uint16)
    masks[100:160, 0:50] = 700
    masks[120:140, 50:90] = 300
    evidence = gather_evidence(masks, 700, CAMERA)
    x0, y0 = evidence.crop.origin
    assert evidence.area == 60 * 50
    unknown = evidence.unknown.astype(bool)
    assert unknown[130 - y0, 60 - x0]  # the other instance
    assert unknown[130 - y0, -1 - x0]  # left of the photo
    assert not unknown[90 - y0, 20 - x0]  # background
    assert not (unknown & (evidence.mask > 0)).any()


def test_an_object_alone_has_no_unknown_pixels():
    masks = rectangle(256, 100, 110, 160, 150)
    evidence = gather_evidence(masks, 1, CAMERA)
    assert evidence.unknown is None
    assert evidence.least_cost < 0
    masks[0:20, 0:20] = 2  # far away
    assert gather_evidence(masks, 1, CAMERA).unknown is None


@pytest.mark.parametrize(
    "kind", [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint64, ">u2"]
)
def test_any_kind_of_whole_numbers_will_do(kind):
    masks = rectangle(256, 100, 110, 160, 150).astype(kind) * 3
    evidence = gather_evidence(masks, 3, CAMERA)
    assert evidence.area == 60 * 40
    strided = np.zeros((256, 512), kind)
    strided[:, ::2] = masks
    assert gather_evidence(strided[:, ::2], 3, CAMERA).area == 60 * 40
    assert gather_evidence(np.asfortranarray(masks), 3, CAMERA).area == 60 * 40
    with pytest.raises(EvidenceError, match="no pixel"):
        gather_evidence(masks, 2**40, CAMERA)  # more than the image can hold


def test_masks_that_say_nothing_are_refused():
    empty = np.zeros((256, 256), np.uint8)
    with pytest.raises(EvidenceError, match="label 4 has no pixel"):
        gather_evidence(empty, 4, CAMERA)
    one = empty.copy()
    one[3, 5] = 1
    with pytest.raises(EvidenceError, match=f"1 pixels, fewer than {MIN_PIXELS}"):
        gather_evidence(one, 1, CAMERA)
    halves = np.ones((256, 256), np.uint8)
    halves[:, 128:] = 2
    with pytest.raises(
        EvidenceError, match=r"label 1 and label 2 and the photo's end .* no outline"
    ):
        gather_evidence(halves, 1, CAMERA)


@pytest.mark.parametrize("lens", ["none", "equidistant"])
def test_a_mask_around_the_whole_photo_is_background(lens):
    camera = Camera(CAMERA.intrinsics, CAMERA.size, lens, np.zeros(4 if lens != "none" else 0))
    masks = rectangle(256, 100, 110, 160, 150) * 3
    alone = gather_evidence(masks, 3, camera)
    everywhere = np.where(masks == 3, masks, 14)
    holed = everywhere.copy()
    holed[20:90, 50:200] = 0
    for wrong in (everywhere, holed, np.full_like(masks, 14)):
        with pytest.raises(EvidenceError, match=r"label 14 touches .* \(256x256\)"):
            gather_evidence(wrong, 14, camera)
    # nor does it hide anything of the others
    for crowded in (everywhere, holed):
        seen = gather_evidence(crowded, 3, camera)
        assert seen.unknown is None
        np.testing.assert_array_equal(seen.levels[-1].distance, alone.levels[-1].distance)


def test_a_mask_too_thin_for_the_crop_is_refused():
    size = 1000
    camera = pinhole_camera(size, 900.0)
    frame = np.zeros((size, size), np.uint8)
    frame[[1, -2], 1:-1] = 1
    frame[1:-1, [1, -2]] = 1
    line = np.zeros((size, size), np.uint8)
    line[100:900, 500] = 1
    specks = np.zeros((size, size), np.uint8)
    specks[1::37, 1::37] = 1
    thin = np.zeros((size, size), np.uint8)
    along = np.arange(100, 201)
    thin[along, along + 1] = 1  # no pixel is covered at half the resolution
    for masks in (frame, line, specks, thin):
        with np.errstate(all="raise"), pytest.raises(EvidenceError, match="too thin"):
            gather_evidence(masks, 1, camera)
    line[100:900, 495:505] = 1
    assert gather_evidence(line, 1, camera).area > 100


@pytest.mark.parametrize("lens", ["none", "equidistant"])
def test_a_large_object_is_looked_at_in_a_smaller_crop(lens):
    coefficients = np.zeros(4 if lens == "equidistant" else 0)
    camera = Camera(
        np.array([[900.0, 0, 499.5], [0, 900.0, 499.5], [0, 0, 1]]),
        (1000, 1000),
        lens,
        coefficients,
    )
    masks, _ = disc(1000, 300.0)
    evidence = gather_evidence(masks, 1, camera)
    crop = evidence.crop
    assert crop.size == LEVEL_SIZES[-1] and crop.scale < 0.5
    # a fisheye's picture of a disc is wider in the plane
    radius = 300.0 if lens == "none" else 900.0 * np.tan(300.0 / 900.0)
    assert evidence.area == pytest.approx(np.pi * (radius * crop.scale) ** 2, rel=0.01)


def test_the_outline_of_the_truth_lies_on_the_border_of_its_mask():
    mesh, truth = box(), pose((0.5, 0.7, 0.2), (0.02, 0.01, 0.55))
    masks = silhouette(mesh, truth, CAMERA)
    evidence = gather_evidence(masks, 1, CAMERA)
    level = evidence.levels[-1]
    drawn = silhouette(mesh, truth, Camera(
        np.array([[level.camera[0], 0, level.camera[2]], [0, level.camera[1], level.camera[3]],
                  [0, 0, 1]]), level.distance.shape,
    ))  # fmt: skip
    np.testing.assert_array_equal(drawn, evidence.mask)
