# SPDX-License-Identifier: Apache-2.0
"""Photos whose cameras are known, in one convention whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

OPAQUE = 128  # alpha from which a pixel shows the object


class PosedImagesError(ValueError):
    """A source of photos that cannot be used; the message says what is wrong with which file."""


@dataclass(eq=False)
class View:
    """One photo and its camera; the fields are those of PosedImages, for one picture."""

    name: str
    image: np.ndarray
    alpha: np.ndarray | None
    weight: np.ndarray | None
    intrinsics: np.ndarray
    camera_from_object: np.ndarray

    @property
    def shown(self) -> np.ndarray | None:
        """(H, W) bool: pixels that count and show the object; None: all."""
        if self.alpha is None:
            return self.weight
        opaque = self.alpha >= OPAQUE
        return opaque if self.weight is None else opaque & self.weight

    def over(self, background: Sequence[float]) -> np.ndarray:
        """(H, W, 3) float64 in [0, 1]: what alpha shows, in front of a colour."""
        photo = self.image / 255.0
        if self.alpha is None:
            return photo
        alpha = self.alpha[..., None] / 255.0
        return alpha * photo + (1.0 - alpha) * np.asarray(background)


@dataclass(eq=False)
class PosedImages:
    """Photos in arrays of one size, without distortion, and where their cameras were.

    Attributes:
        names: of the pictures, for messages.
        images: (N, H, W, 3) uint8 RGB, not multiplied by alpha.
        alpha: (N, H, W) uint8, 255 = object; None if no mask was given.
        intrinsics: (N, 3, 3) float64, pixels; pixel (0, 0) is the centre of the top-left pixel.
        camera_from_object: (N, 4, 4) float64, metres, axes x right, y down, z forward.
        bounds: (2, 3) float64, metres: lowest and highest corner of the box worth modelling, in
            the object's frame.
        near_far: (N, 2) metres along the camera's z; None where the source does not say.
        weight: (N, H, W) bool, False = says nothing: hidden by something else, beyond the edge of
            the photo that was undistorted, or below or right of a photo that is smaller than
            others; None if every pixel counts.
    """

    names: list[str]
    images: np.ndarray
    alpha: np.ndarray | None
    intrinsics: np.ndarray
    camera_from_object: np.ndarray
    bounds: np.ndarray
    near_far: np.ndarray | None = None
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the arrays, in which every picture finds room."""
        return self.images.shape[1:3]

    @property
    def camera_positions(self) -> np.ndarray:
        """(N, 3) metres, object frame."""
        R, t = self.camera_from_object[:, :3, :3], self.camera_from_object[:, :3, 3]
        return -np.einsum("nji,nj->ni", R, t)

    def subset(self, indices: Sequence[int] | np.ndarray) -> PosedImages:
        """Those pictures alone, in that order (copies). `bounds` stays."""
        indices = np.asarray(indices, np.intp)
        arrays = ("images", "alpha", "intrinsics", "camera_from_object", "near_far", "weight")
        chosen = {n: None if (a := getattr(self, n)) is None else a[indices] for n in arrays}
        return replace(self, names=[self.names[i] for i in indices], **chosen)

    def resized(self, factor: int) -> PosedImages:
        """Pictures made smaller by a whole factor, each pixel the mean of factor x factor.

        Colours are averaged as they are seen, weighted by alpha. A pixel counts only if all that
        went into it did. Rows and columns that are left over, at the bottom and right, are cut.

        Raises:
            PosedImagesError: the factor is not a whole number from 1 to the pictures' size.
        """
        small = stack(iter(self), len(self), factor)
        return replace(small, bounds=self.bounds.copy(), near_far=self.near_far)

    def __iter__(self) -> Iterator[View]:
        for i, name in enumerate(self.names):
            yield View(
                name,
                self.images[i],
                None if self.alpha is None else self.alpha[i],
                None if self.weight is None else self.weight[i],
                self.intrinsics[i],
                self.camera_from_object[i],
            )


def stack(views: Iterable[View], count: int, factor: int = 1) -> PosedImages:
    """Views one after the other into arrays that grow only where a larger picture comes.

    Args:
        views: at most `count` of them; each is made smaller as it comes.
        factor: as for PosedImages.resized.

    Returns:
        PosedImages with NaN for bounds; near_far None. Alpha that is 255 everywhere is None.
        Pictures that are smaller than others lie in the top left corner, where their intrinsics
        hold; the rest is without weight.

    Raises:
        PosedImagesError: only some views have alpha, there is no view, or the factor does not fit.
    """
    posed, sizes = None, []
    for n, view in enumerate(views):
        masked = view.alpha is not None
        if posed is None:
            first, first_masked = view.name, masked
            posed = _allocated(count, _divided(view.image.shape[:2], factor), masked)
        elif masked != first_masked:
            with_mask, without = (first, view.name) if first_masked else (view.name, first)
            raise PosedImagesError(
                f"{with_mask} has a mask or alpha, {without} none; give all pictures one or none"
            )
        view = _shrunk(view, int(factor))
        height, width = view.image.shape[:2]
        sizes.append((height, width))
        if height > posed.size[0] or width > posed.size[1]:
            _grow(posed, tuple(np.maximum(posed.size, (height, width))))
        posed.names.append(view.name)
        posed.images[n, :height, :width] = view.image
        posed.intrinsics[n] = view.intrinsics
        posed.camera_from_object[n] = view.camera_from_object
        if masked:
            posed.alpha[n, :height, :width] = view.alpha
        if view.weight is not None:
            _weight(posed)[n, :height, :width] = view.weight
    if posed is None:
        raise PosedImagesError("there are no pictures")
    if len(sizes) < count:
        posed = posed.subset(range(len(sizes)))
    opaque = True
    for n, (height, width) in enumerate(sizes):
        opaque = opaque and masked and posed.alpha[n, :height, :width].min() == 255
        if (height, width) != posed.size:
            weight = _weight(posed)[n]
            weight[height:] = weight[:, width:] = False
    if opaque:
        posed.alpha = None
    return posed


def _allocated(count: int, size: tuple[int, int], masked: bool) -> PosedImages:
    return PosedImages(
        names=[],
        images=np.zeros((count, *size, 3), np.uint8),
        alpha=np.zeros((count, *size), np.uint8) if masked else None,
        intrinsics=np.empty((count, 3, 3)),
        camera_from_object=np.empty((count, 4, 4)),
        bounds=np.full((2, 3), np.nan),
    )


def _grow(posed: PosedImages, size: tuple[int, int]) -> None:
    height, width = posed.size
    for name, fill in (("images", 0), ("alpha", 0), ("weight", 1)):
        old = getattr(posed, name)
        if old is not None:
            new = np.full((len(old), *size, *old.shape[3:]), fill, old.dtype)
            new[:, :height, :width] = old
            setattr(posed, name, new)


def _weight(posed: PosedImages) -> np.ndarray:
    if posed.weight is None:
        posed.weight = np.ones(posed.images.shape[:3], bool)
    return posed.weight


def _divided(size: tuple[int, int], factor: int) -> tuple[int, int]:
    if factor != int(factor) or not 1 <= factor <= min(size):
        raise PosedImagesError(
            f"pictures of {_size(size)} cannot be made smaller by {factor}; "
            f"give a whole number from 1 to {min(size)}"
        )
    return size[0] // int(factor), size[1] // int(factor)


def _shrunk(view: View, factor: int) -> View:
    if factor == 1:
        return view
    height, width = _divided(view.image.shape[:2], factor)
    rows, columns = height * factor, width * factor

    def mean(array: np.ndarray) -> np.ndarray:
        # For whole factors INTER_AREA is the mean of the block.
        return cv2.resize(array[:rows, :columns], (width, height), interpolation=cv2.INTER_AREA)

    alpha, small = None, mean(view.image)
    if view.alpha is not None:
        seen = view.alpha.astype(np.float32)
        alpha, premultiplied = mean(seen), mean(view.image * seen[..., None])
        # Where nothing is seen any colour will do.
        colour = premultiplied / np.maximum(alpha, 1e-9)[..., None]
        small = np.where(alpha[..., None] > 0, np.rint(colour), small).astype(np.uint8)
        alpha = np.rint(alpha).astype(np.uint8)
    weight = None
    if view.weight is not None:
        weight = mean(view.weight.astype(np.float32)) > 1.0 - 1e-6
    K = scaled_intrinsics(view.intrinsics, (1.0 / factor, 1.0 / factor))
    return View(view.name, small, alpha, weight, K, view.camera_from_object)


def scaled_intrinsics(K: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """(3, 3) of a picture that is made larger by factors along x and y."""
    K = np.diag((*scale, 1.0)) @ K
    # Half a pixel is added and taken away because pixel centres, not corners, are integers.
    K[:2, 2] += 0.5 * (np.asarray(scale) - 1.0)
    return K


def _size(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"
