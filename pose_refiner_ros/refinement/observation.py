# SPDX-License-Identifier: Apache-2.0
"""What one camera shows of one object, or of a scene, at one instant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from pose_refiner_ros.geometry.camera import Camera, CameraError
from pose_refiner_ros.geometry.crop import Crop, crop_around
from pose_refiner_ros.geometry.pose import inverse, rigid

from .colours import ColourImage, image_colours, masked_colours
from .signed_distance import (
    SCALE_SIZES,
    build_pyramid,
    half_covered,
    signed_distance,
)

MIN_PIXELS = 25  # a smaller mask says next to nothing about a pose
MARGIN = 0.3  # room around the mask for a start pose that is too near or beside it
# Of an observation, what is computed once and does not depend on where the camera is.
OF_THE_CAMERA = {"colours", "area", "second_part", "least_cost"}


class ObservationError(ValueError):
    """A mask or image from which no pose can be told; the message says why."""


@dataclass(frozen=True, eq=False)
class Observation:
    """All that one camera shows of one object, in a window of the image that is a pinhole camera of
    its own.

    reference_from_camera: (4, 4), where the camera is; the reference is the frame that poses are
    solved and told in; None: it is the camera's own, as usual with one camera. crop: the window;
    None for a whole image without a mask. mask, unknown: (S, S) uint8 0/1 of the window; unknown
    pixels belong to other instances or lie beyond the photo, and may hide more of the object (None:
    there are none). distances: to the mask's border, coarse to fine (`build_pyramid`); () without a
    mask. rgb:
    (S, S, 3) uint8 of the window. points: see `with_points`, in the axes of the crop.
    """

    label: int
    crop: Crop | None = None
    mask: np.ndarray | None = None
    unknown: np.ndarray | None = None
    distances: tuple[np.ndarray, ...] = ()
    rgb: np.ndarray | None = None
    points: np.ndarray | None = None
    offset_sigma: float = 0.0
    points_alike: float = 1.0
    whole_image: ColourImage | None = None
    reference_from_camera: np.ndarray | None = None

    @cached_property
    def colours(self) -> ColourImage | None:
        """The window's colours, black beyond the mask; None where no image came."""
        if self.whole_image is not None or self.rgb is None:
            return self.whole_image
        return masked_colours(self.rgb, self.mask, self.unknown, self.crop)

    @property
    def crop_from_camera(self) -> np.ndarray:
        """(3, 3) rotation, the identity unless the lens is a fisheye."""
        return (self.crop or self.whole_image).crop_from_camera

    @property
    def camera_from_reference(self) -> np.ndarray:
        """(4, 4)."""
        where = self.reference_from_camera
        return np.eye(4) if where is None else inverse(where)

    @cached_property
    def crop_from_reference(self) -> np.ndarray:
        """(4, 4)."""
        crop_from_camera = rigid(self.crop_from_camera)
        if self.reference_from_camera is None:
            return crop_from_camera
        return crop_from_camera @ inverse(self.reference_from_camera)

    @property
    def reference_from_crop(self) -> np.ndarray:
        """(4, 4)."""
        return inverse(self.crop_from_reference)

    @property
    def eye(self) -> np.ndarray:
        """(3,) where the camera is in the reference."""
        if self.reference_from_camera is None:
            return np.zeros(3)
        return self.reference_from_camera[:3, 3]

    @cached_property
    def area(self) -> int:
        """Pixels of the mask, in the crop, as the distances have it: holes of a pixel or two are
        closed."""
        return int(np.count_nonzero(self.distances[-1] < 0.0))

    @cached_property
    def second_part(self) -> float:
        """Share of the mask in the largest of its parts but one: 0 where it is whole, or where what
        is unknown may join them."""
        region = self.mask if self.unknown is None else self.mask | self.unknown
        count, part_of = cv2.connectedComponents(region, connectivity=8, ltype=cv2.CV_16U)
        if count <= 2:
            return 0.0
        areas = np.sort(np.bincount(part_of[self.mask.view(bool)], minlength=count))
        return float(areas[-2] / areas.sum())

    @cached_property
    def least_cost(self) -> float:
        """The cost of a silhouette that covers exactly the mask."""
        return cv2.sumElems(cv2.min(self.distances[-1], 0.0))[0]

    def told_in(self, other_from_reference: np.ndarray) -> Observation:
        """The same in another reference, by where that one lies (4, 4)."""
        where = other_from_reference
        if self.reference_from_camera is not None:
            where = where @ self.reference_from_camera
        moved = replace(self, reference_from_camera=where)
        kept = {name: value for name, value in vars(self).items() if name in OF_THE_CAMERA}
        vars(moved).update(kept)
        return moved

    def with_masks(self, masks: np.ndarray) -> Observation:
        """The same with other labels beside the object's own in the label image (H, W)."""
        seen = observe_mask(
            masks, self.label, self.crop.camera, reference_from_camera=self.reference_from_camera
        )
        # the window is that of the object's own mask, and so is what was measured in it
        return replace(
            seen,
            rgb=self.rgb,
            points=self.points,
            offset_sigma=self.offset_sigma,
            points_alike=self.points_alike,
        )

    def with_points(
        self, points: np.ndarray, offset_sigma: float, alike: float = 1.0
    ) -> Observation:
        """The same with points that were measured on the object: (P, 4) float32, metres, in the
        axes of the camera, with the standard deviation of each along its ray.

        offset_sigma: of what all of them are off by together; alike: how many of them share their
        noise.
        """
        points = points.copy()
        points[:, :3] = points[:, :3] @ self.crop_from_camera.T
        return replace(self, points=points, offset_sigma=offset_sigma, points_alike=alike)

    def with_image(self, image: np.ndarray | None) -> Observation:
        """The same with its window of the image (H, W, 3) uint8 RGB. Raises CameraError where there
        is none, or one of another size."""
        if self.rgb is not None:
            return self
        if image is None:
            raise CameraError("no image came with the masks")
        self.crop.camera.check_image(image)
        return replace(self, rgb=self.crop.cut_photo(np.ascontiguousarray(image)))


def observe_image(
    image: np.ndarray, camera: Camera, background=None, reference_from_camera=None
) -> Observation:
    """A whole image (H, W, 3) RGB without a mask: of a scene, or, in front of a `background` colour
    (3,), of an object.

    Raises CameraError where the image has not the camera's size, ObservationError where it is no
    image.
    """
    try:
        colours = image_colours(image, camera, background)
    except CameraError:
        raise
    except ValueError as error:
        raise ObservationError(str(error)) from None
    return Observation(0, whole_image=colours, reference_from_camera=reference_from_camera)


def observe_mask(
    masks: np.ndarray,
    label: int,
    camera: Camera,
    sizes: Sequence[int] = SCALE_SIZES,
    reference_from_camera: np.ndarray | None = None,
) -> Observation:
    """Look at one label of a label image (H, W), where 0 is background, and so is to the others a
    label that touches all four borders.

    Raises ObservationError where the mask is missing, too small, or has no outline in the photo.
    """
    own = (masks == label).view(np.uint8)
    x, y, width, height = cv2.boundingRect(own)
    if width == 0:
        raise ObservationError(f"label {label} has no pixel in the mask")
    if (height, width) == own.shape:
        raise ObservationError(
            f"the mask of label {label} touches all four borders of the photo ({width}x{height}): "
            "its outline is cut on every side; is it the background, or is the camera too near?"
        )
    pixels = cv2.countNonZero(own[y : y + height, x : x + width])
    if pixels < MIN_PIXELS:
        raise ObservationError(
            f"the mask of label {label} has {pixels} pixels, fewer than {MIN_PIXELS}: too small "
            "to tell a pose from"
        )
    crop = crop_around(camera, (x, y, x + width - 1, y + height - 1), sizes[-1], MARGIN)
    share = crop.cut(own)
    hidden = _hidden_share(masks, own, crop)
    mask = (share > 127).view(np.uint8)
    unknown = None
    region_share = share
    if hidden is not None:
        region_share = cv2.add(share, hidden)
        unknown = (region_share > 127).view(np.uint8) - mask
        if not unknown.any():
            unknown = None
    covered = cv2.countNonZero(half_covered(region_share))
    if cv2.countNonZero(mask) < MIN_PIXELS or covered == 0:
        raise ObservationError(
            f"the mask of label {label}, {pixels} pixels strewn over {width}x{height}, is too thin "
            "to tell a pose from"
        )
    if 4 * covered == mask.size:
        raise ObservationError(
            f"{_covering(masks, label, crop)} cover all that is seen of its "
            "surroundings: no outline to compare with; what is no instance must have label 0"
        )
    distance = signed_distance(mask, unknown, region_share)
    distances = build_pyramid(distance, unknown is not None, sizes)
    return Observation(
        label,
        crop,
        mask,
        unknown,
        tuple(distances),
        reference_from_camera=reference_from_camera,
    )


def _hidden_share(masks: np.ndarray, own: np.ndarray, crop: Crop) -> np.ndarray | None:
    """Share (S, S) uint8 0 to 255 of each crop pixel that other instances or the photo's end hide;
    None where they nowhere do."""
    window = crop.window(masks)
    if window is None:
        hidden = crop.cut(_others(masks, own, masks))
    else:
        others = _others(window, crop.window(own), masks)
        hidden = crop.fit(others) if cv2.countNonZero(others) else None
    outside = crop.outside()
    if outside is None:
        return hidden if hidden is not None and hidden.any() else None
    outside *= np.uint8(255)
    return outside if hidden is None else cv2.max(hidden, outside)


def _others(window: np.ndarray, own: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(h, w) uint8, 1 where other instances are in a window (h, w) of a label image."""
    others = (window != 0).view(np.uint8) - own
    if cv2.countNonZero(others):
        for label in _spanning(masks):
            others[window == label] = 0
    return others


def _spanning(masks: np.ndarray) -> list[int]:
    """Labels that touch all four borders of a label image: background, whatever they are called."""
    borders = (masks[0], masks[-1], masks[:, 0], masks[:, -1])
    if not all(border.any() for border in borders):
        return []
    at_top = np.unique(masks[0]).tolist()
    return [label for label in at_top if label and all((b == label).any() for b in borders)]


def _covering(masks: np.ndarray, label: int, crop: Crop) -> str:
    """A label and what may hide more of it, to be told: "label 2 and label 7"."""
    window = crop.window(masks)
    labels = set(np.unique(masks if window is None else window).tolist())
    others = sorted(labels - {0, label, *_spanning(masks)})
    names = [f"label {one}" for one in [label, *others[:5]]] + ["others"] * (len(others) > 5)
    if crop.outside() is not None:
        names.append("the photo's end")
    return " and ".join(names)
