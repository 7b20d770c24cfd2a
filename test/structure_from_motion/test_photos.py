# SPDX-License-Identifier: Apache-2.0
"""Folders of photos alone: what is refused, with which line; which pairs are compared."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import posed_scene
import pytest
import sparse_scene

from pose_refiner_ros.structure_from_motion import (
    StructureFromMotionError,
    find_photo_poses,
    mask_agreement,
)
from pose_refiner_ros.structure_from_motion.photos import is_video, pairs_to_match, photos_of


def fails(match, folder, **options):
    poses = folder.parent / "poses.json"
    with pytest.raises(StructureFromMotionError, match=match) as caught:
        find_photo_poses(folder, poses, **options)
    assert "\n" not in str(caught.value)
    assert not poses.exists()


def write_photos(folder: Path, count: int) -> Path:
    for i in range(count):
        posed_scene.write_png(folder / f"{i}.png", np.full((40, 60, 3), i, np.uint8))
    return folder


def test_folders_that_are_none_of_photos(tmp_path):
    fails("does not exist", tmp_path / "photos")
    folder = write_photos(tmp_path / "photos", 0)
    folder.mkdir()
    fails("has no photos", folder)
    write_photos(folder, 1)
    fails(r"has only 1 photo \(", folder)
    (folder / "IMG_1.HEIC").touch()
    fails(r"has 1 photos as \.HEIC, such as IMG_1\.HEIC, .*magick mogrify -format jpg", folder)
    (folder / "IMG_1.HEIC").unlink()
    (folder / "0.png").unlink()
    (folder / "walk.mp4").touch()
    fails(r"is a video: extract frames, as by `mkdir .*walk && ffmpeg -i .*walk\.mp4", folder)
    fails("is a video: extract frames", folder / "walk.mp4")


def test_a_photo_that_is_there_twice_counts_once(tmp_path):
    folder = write_photos(tmp_path / "photos", 4)
    (folder / "9.png").write_bytes((folder / "2.png").read_bytes())
    told = []
    assert len(photos_of(folder, told.append).paths) == 4
    assert told == ["photos that are there twice are left out: 9.png (as 2.png)"]


def test_masks_are_for_all_or_none(tmp_path):
    write_photos(tmp_path / "images", 4)
    assert photos_of(tmp_path, print).masks is None
    write_photos(tmp_path / "masks", 3)
    with pytest.raises(StructureFromMotionError, match=r"1 of 4 photos have no mask, such as 3"):
        photos_of(tmp_path, print)
    write_photos(tmp_path / "masks", 4)
    assert photos_of(tmp_path, print).masks[3] == tmp_path / "masks" / "3.png"


def test_poses_that_are_there_are_not_overwritten(tmp_path):
    folder = write_photos(tmp_path / "photos", 4)
    (tmp_path / "poses.json").write_text("mine")
    with pytest.raises(StructureFromMotionError, match="is there from an earlier run: train from"):
        find_photo_poses(folder, tmp_path / "poses.json")
    assert (tmp_path / "poses.json").read_text() == "mine"


def test_a_missing_pycolmap_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    fails("pycolmap, which is not installed: `pip install pycolmap`",
          write_photos(tmp_path / "photos", 4))  # fmt: skip


def test_pairs():
    frames = [Path(f"frame_{i:04d}.jpg") for i in range(0, 400, 4)]
    assert is_video(frames) and not is_video(frames[:20])
    assert not is_video([Path(f"IMG_{i * i}.jpg") for i in range(100)])
    assert len(pairs_to_match(frames[:20], "auto")) == 190
    pairs = pairs_to_match(frames, "auto")
    assert len(pairs) < 1700 and {(0, 1), (0, 8), (0, 16), (0, 96)} <= set(pairs)
    assert len(set(pairs)) == len(pairs) and all(i < j < 100 for i, j in pairs)


def test_masks_tell_right_poses_from_wrong_ones():
    camera, model = (
        posed_scene.pinhole((240, 320), 300.0),
        sparse_scene.sparse_model(np.zeros((0, 3)), 12),
    )
    outlines = [
        mask_agreement.outline(np.uint8(255) * (posed_scene.render(camera, pose)[1] >= 0))
        for pose in model.camera_from_world
    ]
    right = mask_agreement.masks_agree(model, outlines)
    assert right.min() > 0.96
    model.camera_from_world[5] = model.camera_from_world[8]
    wrong = mask_agreement.masks_agree(model, outlines) < mask_agreement.AGREE
    assert wrong[5].sum() >= 6 and not np.delete(np.delete(wrong, 5, 0), 5, 1).any()


def test_an_outline_that_is_cut_says_nothing():
    mask = np.zeros((40, 60), np.uint8)
    assert mask_agreement.outline(mask) is None
    mask[10:20, 50:] = 255
    assert mask_agreement.outline(mask) is None
    mask[:, 55:] = 0
    assert mask_agreement.outline(mask).min(0).tolist() == [50.5, 10.5]
