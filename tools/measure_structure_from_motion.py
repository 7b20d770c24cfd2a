#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How well poses that are found in photos agree with those that a source has already.

    python tools/measure_structure_from_motion.py SOURCE [--poses FILE] [--tag-size METRES]

SOURCE: a folder with poses in a known layout and images/, or a BOP scene (rgb/) whose
scene_camera.json has the cameras' own poses (cam_R_w2c, mm). Poses are found in links to its
photos alone, with masks/ unless --no-masks, or read from FILE if it is there, and aligned by a
similarity: the rotation by the mean of all, the rest by the cameras' places. Printed: seconds,
photos with pose, angles, places relative to their spread, and metres of the source per unit found
(1 if a scale is known and right).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images import load_posed_images
from pose_refiner_ros.datasets.posed_images.transforms import read_transforms
from pose_refiner_ros.geometry.pose import rigid, rotation_angle
from pose_refiner_ros.structure_from_motion import find_photo_poses
from pose_refiner_ros.structure_from_motion.photos_to_poses import KnownSize


def true_poses(source: Path) -> dict[str, np.ndarray]:
    """camera_from_world (4, 4), by the photo's name without suffix."""
    cameras = source / "scene_camera.json"
    if not cameras.is_file():
        posed = load_posed_images(source, "all")
        names = [Path(name).stem for name in posed.names]
        return dict(zip(names, posed.camera_from_object, strict=True))
    poses = {}
    for number, entry in json.loads(cameras.read_text()).items():
        R = np.reshape(entry["cam_R_w2c"], (3, 3))
        poses[f"{int(number):06d}"] = rigid(R, np.array(entry["cam_t_w2c"]) / 1e3)
    return poses


def found_poses(path: Path) -> dict[str, np.ndarray]:
    return {Path(f.name).stem: f.camera_from_world for f in read_transforms(path)[1]}


def compare(found: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> None:
    names = sorted(found.keys() & true.keys())
    A, B = (np.stack([poses[name] for name in names]) for poses in (found, true))
    u, _, vt = np.linalg.svd(np.einsum("nji,njk->ik", B[:, :3, :3], A[:, :3, :3]))
    turn = u @ np.diag((1, 1, np.linalg.det(u @ vt))) @ vt
    angles = np.degrees(rotation_angle(A[:, :3, :3] @ turn.T @ B[:, :3, :3].transpose(0, 2, 1)))
    a, b = (-np.einsum("nji,nj->ni", T[:, :3, :3], T[:, :3, 3]) for T in (A, B))
    a, b = (a - a.mean(0)) @ turn.T, b - b.mean(0)
    scale = (a * b).sum() / (a * a).sum()
    off = np.linalg.norm(scale * a - b, axis=1) / np.sqrt(np.mean(np.square(b).sum(1)))
    print(f"{len(names)} of {len(true)} photos have poses")
    print(
        f"angles: median {np.median(angles):.3f}, mean {angles.mean():.3f}, "
        f"90 % {np.percentile(angles, 90):.3f}, most {angles.max():.3f} degrees"
    )
    print(f"places, of their spread: median {np.median(off):.2%}, most {off.max():.2%}")
    print(f"the source's metres per unit found: {scale:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--poses", type=Path, help="transforms file: read if it is there")
    parser.add_argument("--tag-size", type=float, help="metres")
    parser.add_argument("--no-masks", action="store_true")
    arguments = parser.parse_args()
    source, path = arguments.source.resolve(), arguments.poses
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = path or folder / "poses.json"
        if not path.is_file():
            pictures = source / "images" if (source / "images").is_dir() else source / "rgb"
            (folder / "images").symlink_to(pictures)
            if (source / "masks").is_dir() and not arguments.no_masks:
                (folder / "masks").symlink_to(source / "masks")
            begun, known = time.monotonic(), KnownSize(tag=arguments.tag_size)
            for line in find_photo_poses(folder, path, known, warn=print):
                print(line)
            print(f"{time.monotonic() - begun:.0f} s")
        compare(found_poses(path), true_poses(source))


if __name__ == "__main__":
    main()
