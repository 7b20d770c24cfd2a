# SPDX-License-Identifier: Apache-2.0
"""What an image shows of one object, or of a scene: colours and, where there is a mask, opacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import cv2
import numpy as np
import warp as wp

from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.geometry.crop import Crop

from .ray_sampling import draw_pixels, pixels_to_draw

MARGIN = 0.3  # around what differs from the background, share of its longer side
DIFFERENT = 0.05  # of colour
BORDER = np.ones((3, 3), np.uint8)  # of a mask: a pixel to either side


@dataclass(frozen=True, eq=False)
class ColourImage:
    """A pinhole image (H, W) of an object or a scene.

    colour: (H, W, 3) float32 RGB in [0, 1], in front of `background`; opacity: (H, W) float32, the
    mask, or None where there is none; weight: (H, W) float32, 0 where nothing is known; pinhole:
    (4,) fx, fy, cx, cy in pixels; crop_from_camera: (3, 3) rotation; background: (3,) colour
    behind the object; mixed: (H, W) bool, pixels at the border of a mask, which show partly what is
    behind the object: no single ray goes there. Blurred pictures have them, since they hardly count
    there and a gap would. is_scene: the field fills the image.
    """

    colour: np.ndarray
    opacity: np.ndarray | None
    weight: np.ndarray | None
    pinhole: np.ndarray
    background: np.ndarray
    crop_from_camera: np.ndarray = field(default_factory=lambda: np.eye(3))
    mixed: np.ndarray | None = None
    is_scene: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colour.shape[:2]

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 (ends not included) of pixels worth comparing: around the mask, or around
        what differs from the background, with a margin; all where nothing does."""
        height, width = self.size
        if self.opacity is not None:
            differs = self.opacity > 0.5
        else:
            off = np.abs(self.colour - self.background.astype(np.float32)) > DIFFERENT
            differs = off[..., 0] | off[..., 1] | off[..., 2]  # any(axis=-1) takes far longer
        if self.weight is not None:
            differs &= self.weight > 0.0
        x, y, w, h = cv2.boundingRect(differs.view(np.uint8))
        if w == 0:
            return 0, 0, width, height
        margin = int(MARGIN * max(w, h))
        return (
            max(x - margin, 0),
            max(y - margin, 0),
            min(x + w + margin, width),
            min(y + h + margin, height),
        )

    def cropped(self) -> ColourImage:
        """The part of it that is worth comparing."""
        x0, y0, x1, y1 = self.box
        part = slice(y0, y1), slice(x0, x1)
        return replace(
            self,
            colour=self.colour[part],
            opacity=None if self.opacity is None else self.opacity[part],
            weight=None if self.weight is None else self.weight[part],
            mixed=None if self.mixed is None else self.mixed[part],
            pinhole=self.pinhole - np.array([0.0, 0.0, x0, y0]),
        )

    def draw(self, sampling: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 2) pixels of it, x and y: random, interest_point or interest_region (iNeRF,
        III-C)."""
        weight = self.weight
        if self.mixed is not None:
            clear = ~self.mixed if weight is None else weight * ~self.mixed
            if clear.any():  # a sliver may be nothing but border
                weight = clear
        return draw_pixels(pixels_to_draw(self.colour, sampling, weight), count, rng)


def image_colours(
    image: np.ndarray, camera: Camera, background: Sequence[float] | None = None
) -> ColourImage:
    """Of a whole image (H, W, 3) uint8 or float RGB, without a mask.

    background: colour behind the object where the field is an object's; None: the field is that of
    a scene, which fills the image. Pixels that are NaN say nothing. A distorted image is
    undistorted to the pinhole camera of the same intrinsics.

    Raises CameraError where the image has not the camera's size, ValueError where it is no image.
    """
    camera.check_image(image, "photo")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the photo has shape {image.shape}; it must be (height, width, 3) RGB")
    colour = image.astype(np.float32)
    if image.dtype.kind in "iu":
        colour /= 255.0
    weight = None
    if not np.isfinite(colour).all():
        broken = ~np.isfinite(colour).all(axis=-1)
        if broken.all():
            raise ValueError("no pixel of the photo is a number: all are NaN or infinite")
        weight = (~broken).astype(np.float32)
        colour[broken] = colour[~broken].mean(axis=0)
    if camera.is_distorted:
        colour, weight = _undistorted(colour, weight, camera)
    behind = colour.mean(axis=(0, 1)) if background is None else np.asarray(background, np.float32)
    opacity = np.ones(colour.shape[:2], np.float32) if background is None else None
    K = camera.intrinsics
    pinhole = np.array([K[0, 0], K[1, 1], K[0, 2], K[1, 2]])
    return ColourImage(colour, opacity, weight, pinhole, behind, is_scene=background is None)


def masked_colours(
    rgb: np.ndarray, mask: np.ndarray, unknown: np.ndarray | None, crop: Crop
) -> ColourImage:
    """Of an object's window: the colours (S, S, 3) uint8 inside its mask (S, S) 0/1, and the mask;
    nothing of `unknown` pixels."""
    opacity = mask.astype(np.float32)
    weight = None if unknown is None else 1.0 - unknown.astype(np.float32)
    colour = rgb.astype(np.float32) / 255.0 * opacity[..., None]
    mask = mask.astype(np.uint8)
    mixed = cv2.dilate(mask, BORDER) != cv2.erode(mask, BORDER)
    return ColourImage(
        colour, opacity, weight, crop.pinhole, np.zeros(3), crop.crop_from_camera, mixed
    )


@wp.struct
class Rays:
    """Rays (R) of one image at one scale, and what was observed along them.

    directions: unit, crop's axes; observed: RGB in front of the background, and opacity; weight;
    tile: which part of the picture each is from; rows, columns: of the lattice that they form, 0
    where they do not; spacing: pixels from a ray to the next; background: its colour; opacity: 1
    where there is a mask, by which opacity counts beside the colours, else 0.
    """

    directions: wp.array(dtype=wp.vec3)
    observed: wp.array(dtype=wp.vec4)
    weight: wp.array(dtype=wp.float32)
    tile: wp.array(dtype=wp.int32)
    rows: wp.int32
    columns: wp.int32
    spacing: wp.float32
    background: wp.vec3
    opacity: wp.float32


@wp.struct
class Photo:
    """A blurred photo, as small as its blur allows, and its derivatives.

    colour, by_x, by_y: (h, w) RGB and mask, and their derivatives by the crop's pixels; known:
    (h, w) share of each pixel that is known; per_pixel: its pixels per pixel of the crop; pinhole:
    of the crop, fx fy cx cy.
    """

    colour: wp.array2d(dtype=wp.vec4)
    by_x: wp.array2d(dtype=wp.vec4)
    by_y: wp.array2d(dtype=wp.vec4)
    known: wp.array2d(dtype=wp.float32)
    per_pixel: wp.vec2
    pinhole: wp.vec4


TILES = 12  # of a picture's side: residuals of one tile may be alike
# Their numbers, so that the first four, sixteen, … are those of a square.
TILE_NUMBERS = np.array(
    [
        [16 * (3 * (y // 4) + x // 4) + 8 * (y // 2 % 2) + 4 * (x // 2 % 2) + 2 * (y % 2) + x % 2
         for x in range(TILES)]
        for y in range(TILES)
    ], np.int32
)  # fmt: skip


def lattice_rays(image: ColourImage, count: int, sigma: float, device: str = "cpu") -> Rays:
    """About `count` rays evenly over a image that is blurred by `sigma` steps of their lattice."""
    height, width = image.size
    spacing = max(np.sqrt(width * height / count), 1.0)
    x = np.arange(0.5 * (spacing - 1.0), width - 0.5, spacing)
    y = np.arange(0.5 * (spacing - 1.0), height - 0.5, spacing)
    pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    rays = chosen_rays(image, pixels, sigma * spacing, device)
    rays.rows, rays.columns, rays.spacing = len(y), len(x), spacing
    return rays


def chosen_rays(
    image: ColourImage, pixels: np.ndarray, sigma: float = 0.0, device: str = "cpu"
) -> Rays:
    """Rays through pixels (N, 2), x and y, of the image blurred by `sigma` pixels."""
    observed, known = _blurred(image, sigma)
    x, y = pixels.T
    fx, fy, cx, cy = image.pinhole
    directions = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(len(pixels))], axis=-1)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    height, width = image.size
    column, row = pixels.round().astype(int).T
    tile = TILE_NUMBERS[row * TILES // height, column * TILES // width]
    # the blurred picture may be a smaller one
    scale = np.array([observed.shape[1] / width, observed.shape[0] / height])
    place = ((pixels + 0.5) * scale - 0.5).astype(np.float32)
    border = {"borderMode": cv2.BORDER_REPLICATE}
    weight = np.ones(len(pixels), np.float32)
    if known is not None:
        share = cv2.remap(known, *place.T[..., None], cv2.INTER_LINEAR, **border)
        weight = (share[:, 0] > 0.5).astype(np.float32)
    observed = cv2.remap(observed, *place.T[..., None], cv2.INTER_LINEAR, **border)[:, 0]
    rays = Rays()
    rays.directions = wp.array(directions.astype(np.float32), dtype=wp.vec3, device=device)
    rays.observed = wp.array(observed, dtype=wp.vec4, device=device)
    rays.weight = wp.array(weight, dtype=wp.float32, device=device)
    rays.tile = wp.array(tile.astype(np.int32), dtype=wp.int32, device=device)
    rays.spacing = 1.0
    rays.background = wp.vec3(*(float(c) for c in image.background))
    rays.opacity = 0.0 if image.opacity is None else 1.0
    return rays


def blurred_photo(image: ColourImage, sigma: float, device: str = "cpu") -> Photo:
    """The image blurred by `sigma` pixels."""
    observed, known = _blurred(image, sigma)
    per_pixel = np.array(observed.shape[1::-1]) / image.size[::-1]
    observed, known = (
        one if one is None else np.pad(one, [(0, 1), (0, 1)] + [(0, 0)] * (one.ndim - 2), "edge")
        for one in (observed, known)
    )  # of a single row or column there would be nothing to interpolate
    border = {"ksize": 3, "scale": 1 / 8, "borderType": cv2.BORDER_REPLICATE}
    photo = Photo()
    photo.colour = wp.array(observed, dtype=wp.vec4, device=device)
    for name, order, factor in (("by_x", (1, 0), per_pixel[0]), ("by_y", (0, 1), per_pixel[1])):
        slope = cv2.Sobel(observed, cv2.CV_32F, *order, **border) * np.float32(factor)
        setattr(photo, name, wp.array(slope, dtype=wp.vec4, device=device))
    known = np.ones(observed.shape[:2], np.float32) if known is None else known
    photo.known = wp.array(known.astype(np.float32), dtype=wp.float32, device=device)
    photo.per_pixel = wp.vec2(*per_pixel.tolist())
    photo.pinhole = wp.vec4(*image.pinhole.tolist())
    return photo


def _blurred(image: ColourImage, sigma: float) -> tuple[np.ndarray, np.ndarray | None]:
    """Colours and opacity (h, w, 4) blurred by sigma pixels, and which share of each pixel is known
    (None: all); made smaller where the blur allows."""
    height, width = image.size
    observed = np.ones((height, width, 4), np.float32)
    observed[..., :3] = image.colour
    if image.opacity is not None:
        observed[..., 3] = image.opacity
    known = image.weight
    if sigma <= 0.3:
        return observed, known
    if known is not None:
        observed *= known[..., None]
    factor = max(int(sigma / 2.0), 1)
    left = np.sqrt(sigma**2 - (factor**2 - 1) / 12.0) / factor  # means over pixels blur, too
    size = max(width // factor, 1), max(height // factor, 1)

    def blur(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return cv2.GaussianBlur(small, (0, 0), left, borderType=cv2.BORDER_REPLICATE)

    observed = blur(observed)
    if known is not None:
        known = blur(known)
        observed /= np.maximum(known, 1e-6)[..., None]
    return observed, known


def _undistorted(colour, weight, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    height, width = camera.size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    K = camera.intrinsics
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones(x.shape)], axis=-1)
    source = np.nan_to_num(camera.project(rays), nan=-1e4).astype(np.float32)
    known = np.ones(camera.size, np.float32) if weight is None else weight
    maps = source[..., 0], source[..., 1]
    colour = cv2.remap(colour, *maps, cv2.INTER_LINEAR)
    known = cv2.remap(known, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return colour, (known > 0.99).astype(np.float32)
