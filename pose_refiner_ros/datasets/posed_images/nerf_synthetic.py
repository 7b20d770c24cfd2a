# SPDX-License-Identifier: Apache-2.0
"""The layout of NeRF's synthetic scenes: transforms_train.json, _val.json and _test.json.

Poses and intrinsics as in transforms.py. The objects lie in a box of 1.5 units about the origin;
where pictures have alpha it is made as small as the masks allow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images.transforms import load_frames, read_transforms
from pose_refiner_ros.datasets.posed_images.views import PosedImages

_PARTS = {"train": ("train",), "test": ("test",), "all": ("train", "val", "test")}
_HALF = 1.5  # of the box, in the file's unit


def load(folder: Path, split: str, factor: int) -> PosedImages:
    """The pictures of a split, in the file's order and unit. Bounds are not yet tightened.

    Raises:
        PosedImagesError: a file is missing or unusable.
    """
    paths = [folder / f"transforms_{part}.json" for part in _PARTS[split]]
    if split == "all":
        paths = [p for p in paths if p.exists()]
    posed = load_frames([frame for path in paths for frame in read_transforms(path)[1]], factor)
    posed.bounds = np.array([[-_HALF] * 3, [_HALF] * 3])
    return posed
