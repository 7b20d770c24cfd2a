# SPDX-License-Identifier: Apache-2.0
"""The frame in which a scene is measured: that of NeRF's loader of LLFF, which iNeRF's figures for
scenes are in.

Its origin is the middle of the cameras, so that what turns about the origin, as the paper's update
does, hardly moves a camera; its unit is such that the nearest depth of any photo is 4/3. Where the
photos' file says no depths, the unit stays that of the file. Axes are not turned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pose_refiner_ros.datasets.posed_images import PosedImages, load_posed_images
from pose_refiner_ros.fields.field import RadianceField
from pose_refiner_ros.fields.grid import GridField

NEAREST = 4.0 / 3.0


@dataclass(frozen=True, eq=False)
class SceneFrame:
    """origin: (3,) in the frame of the field; scale: units for each of the field's."""

    origin: np.ndarray
    scale: float

    @classmethod
    def of(cls, data: Path, scale: float = 1.0) -> SceneFrame:
        """Of all photos of a folder, whose positions are multiplied by `scale` for the field."""
        photos = load_posed_images(data, "all", scale)
        nearest = None if photos.near_far is None else float(photos.near_far[:, 0].min())
        unit = 1.0 if nearest is None else NEAREST / nearest
        return cls(photos.camera_positions.mean(axis=0), unit)

    def photos(self, posed: PosedImages) -> PosedImages:
        """Photos of the field's frame in this one."""
        poses = posed.camera_from_object.copy()
        poses[:, :3, 3] = self.scale * (poses[:, :3, 3] + poses[:, :3, :3] @ self.origin)
        depths = None if posed.near_far is None else self.scale * posed.near_far
        bounds = self.scale * (posed.bounds - self.origin)
        return replace(posed, camera_from_object=poses, near_far=depths, bounds=bounds)

    def field(self, field: GridField) -> GridField:
        """The field in this frame."""
        return field.shifted(self.origin).scaled(self.scale)


def is_scene(posed: PosedImages, field: RadianceField) -> bool:
    """Whether photos and field are of all that is seen, not of an object in front of something."""
    contracted = getattr(field, "contraction", None) is not None
    return contracted and posed.alpha is None and field.background is None
