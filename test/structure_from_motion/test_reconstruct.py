# SPDX-License-Identifier: Apache-2.0
"""Photos of a made scene get the poses that they were made with. Needs pycolmap."""

from __future__ import annotations

import json

import cv2
import numpy as np
import posed_scene
import pytest
import sparse_scene

from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.structure_from_motion import StructureFromMotionError, find_photo_poses

pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")


@pytest.mark.slow
def test_poses_of_a_made_scene(tmp_path):
    """One photo shows something else; two are turned, as by another camera held upright."""
    true = sparse_scene.corner_photos(tmp_path / "photos")
    noise = np.random.default_rng(5).integers(0, 255, (*sparse_scene.CAMERA.size, 3), np.uint8)
    posed_scene.write_png(tmp_path / "photos" / "stray.png", noise)
    for i in (3, 7):
        path = str(tmp_path / "photos" / f"photo_{i}.png")
        cv2.imwrite(path, cv2.rotate(cv2.imread(path), cv2.ROTATE_90_CLOCKWISE))
    told, stages = [], set()
    poses = tmp_path / "found" / "poses.json"
    lines = find_photo_poses(
        tmp_path / "photos", poses, warn=told.append, progress=lambda what, *_: stages.add(what)
    )
    assert lines[0].startswith("10 of 11 photos have poses") and "units are arbitrary" in lines[1]
    assert any("1 photos have no pose: stray.png" in line for line in told)
    assert stages == {"Reading photos", "Finding features", "Matching photos", "Placing photos"}

    frames = json.loads(poses.read_text())["frames"]
    assert len({tuple(f[k] for k in ("w", "h", "fl_x", "k1")) for f in frames}) == 2  # cameras
    posed = load_posed_images(poses, "all")
    assert posed.size == (320, 320) and posed.near_far is not None
    assert not posed.weight[3, :, 240:].any() and posed.weight[0, :240].all()
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    found = posed.camera_from_object[:, :3, :3].copy()
    found[[3, 7]] = quarter.T @ found[[3, 7]]
    relative = np.einsum("nij,nik->njk", true[:, :3, :3], found)
    u, _, vt = np.linalg.svd(relative.mean(0))
    angles = [np.degrees(np.arccos((np.trace(r.T @ u @ vt) - 1) / 2)) for r in relative]
    assert max(angles) < 0.5, angles


def test_photos_of_a_white_wall(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(5):
        wall = 240 + generator.normal(0, 1, (*sparse_scene.CAMERA.size, 3))
        posed_scene.write_png(tmp_path / "wall" / f"{i}.png", wall.astype(np.uint8))
    with pytest.raises(StructureFromMotionError, match="no three of 5 photos fit together"):
        find_photo_poses(tmp_path / "wall", tmp_path / "poses.json")
    assert not (tmp_path / "poses.json").exists()
