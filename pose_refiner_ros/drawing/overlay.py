# SPDX-License-Identifier: Apache-2.0
"""Poses drawn on the photo they belong to: outlines, axes, and a tag with name and score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from pose_refiner_ros.rendering.scene import render_scene

if TYPE_CHECKING:
    from pose_refiner_ros.frame import ObjectPose
    from pose_refiner_ros.geometry.camera import Camera
    from pose_refiner_ros.objects.model import ObjectModel

AXIS_COLORS = ((230, 60, 60), (70, 190, 70), (70, 110, 240))  # x red, y green, z blue
QUALITY_COLORS = {
    "good": (80, 200, 90),
    "partial": (240, 200, 60),
    "ambiguous": (245, 150, 50),
    "poor": (235, 70, 70),
}
_DARK = (24, 24, 26)
_LIGHT = (245, 245, 245)
_TINT = 0.22  # how much of the object's colour covers the photo inside its outline
_SUBPIXEL = 4  # bits after the point in what OpenCV draws


def draw_overlay(
    image: np.ndarray,
    camera: Camera,
    library: Mapping[str, ObjectModel],
    poses: Sequence[ObjectPose],
    device: str = "cpu",
) -> np.ndarray:
    """A copy of the image with every pose drawn on it.

    Each object has its outline and a tint in its colour, where nearer objects do not hide it; its
    axes (x red, y green, z blue); and a tag with name, score and a dot for quality (green good,
    yellow partial, orange ambiguous, red poor). Objects out of view are left out.

    Args:
        image: (H, W, 3) uint8 RGB of the camera's size.
        library: object models by name; poses of other names raise KeyError.
        device: where the silhouettes are rendered.

    Raises:
        CameraError: the image has not the camera's size.
        ValueError: the image is not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    camera.check_image(image)
    picture = np.array(image, order="C")  # a contiguous copy, which OpenCV needs to draw on
    if not poses:
        return picture
    models = [library[pose.name] for pose in poses]
    transforms = np.stack([pose.camera_from_object for pose in poses])
    meshes = [model.silhouette_mesh for model in models]
    labels = render_scene(meshes, transforms, camera, device=device).labels
    scale = max(0.5, min(camera.size) / 480.0)

    drawn = []
    for i, (pose, model) in enumerate(zip(poses, models, strict=True), start=1):
        mask = labels == i
        box = _bounding_box(mask)
        if box is None:
            continue
        drawn.append((pose, model, box))
        color = _visible(model.color)
        _tint(picture, mask, box, color)
        outline(picture, mask, color, round(2 * scale))
    for pose, model, _ in drawn:
        _draw_axes(picture, camera, pose.camera_from_object, 0.4 * model.diameter, scale)
    taken: list[Box] = []
    for pose, _, box in drawn:
        text = f"{pose.name}  {100 * pose.score:.0f}%"
        draw_tag(picture, text, QUALITY_COLORS.get(pose.quality, _LIGHT), box, taken, 0.45 * scale)
    return picture


class Box(NamedTuple):
    """A rectangle in the picture, pixels; x1 and y1 are outside."""

    x0: int
    y0: int
    x1: int
    y1: int

    def meets(self, other: Box) -> bool:
        return not (
            self.x1 <= other.x0 or other.x1 <= self.x0 or self.y1 <= other.y0 or other.y1 <= self.y0
        )


def outline(
    picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], thickness: int = 2
) -> None:
    """Draws a mask's smoothed contour on the picture, with a dark edge for contrast.

    Args:
        picture: (H, W, 3) uint8, changed in place.
        mask: (H, W) bool, contiguous.
    """
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    smooth = [_smoothed(c[:, 0]) for c in contours if len(c) >= 6]
    for c, width in ((_DARK, thickness + 2), (color, thickness)):
        cv2.polylines(picture, smooth, True, c, max(1, width), cv2.LINE_AA, _SUBPIXEL)


def _smoothed(contour: np.ndarray, radius: int = 2) -> np.ndarray:
    """(N, 2) pixels -> fixed-point positions without the pixels' stairs."""
    padded = np.concatenate((contour[-radius:], contour, contour[:radius])).astype(np.float32)
    total = sum(padded[k : k + len(contour)] for k in range(2 * radius + 1))
    return np.round(total * (2.0**_SUBPIXEL / (2 * radius + 1))).astype(np.int32)


def _bounding_box(mask: np.ndarray) -> Box | None:
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return Box(x, y, x + width, y + height) if width else None


def _tint(picture: np.ndarray, mask: np.ndarray, box: Box, color: tuple[int, int, int]) -> None:
    window = slice(box.y0, box.y1), slice(box.x0, box.x1)
    part = picture[window]
    flat = np.empty_like(part)
    flat[:] = color
    mixed = cv2.addWeighted(part, 1.0 - _TINT, flat, _TINT, 0.0)
    cv2.copyTo(mixed, mask[window].view(np.uint8), part)


def _draw_axes(
    picture: np.ndarray, camera: Camera, pose: np.ndarray, length: float, scale: float
) -> None:
    """Axes from the object's origin; one that has no image (behind the camera) is left out."""
    ends = np.concatenate((np.zeros((1, 3)), length * np.eye(3))) @ pose[:3, :3].T + pose[:3, 3]
    pixels = camera.project(ends)
    # Axes that point away from the camera first, so that the near ones lie on top.
    order = np.argsort(-ends[1:, 2])
    limit = 4 * max(camera.size)  # OpenCV's fixed-point coordinates overflow far outside
    for i in order:
        line = pixels[[0, i + 1]]
        if not np.isfinite(line).all() or abs(line).max() > limit:
            continue
        start, end = (tuple(int(x) for x in np.round(p * 2**_SUBPIXEL)) for p in line)
        for color, width in ((_DARK, 4), (AXIS_COLORS[i], 2)):
            width = max(1, round(width * scale))
            cv2.line(picture, start, end, color, width, cv2.LINE_AA, _SUBPIXEL)


def draw_tag(
    picture: np.ndarray,
    text: str,
    color: tuple[int, int, int],
    box: Box,
    taken: list[Box],
    size: float,
) -> None:
    """A dot and a text beside an object's box, off the boxes of other tags; its own is added to
    them. size: of the font, OpenCV's scale."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), baseline = cv2.getTextSize(text, font, size, 1)
    dot = max(2, round(text_height * 0.4))
    pad = max(3, round(text_height * 0.55))
    width, height = text_width + 2 * dot + 3 * pad, text_height + baseline + pad
    rows, columns = picture.shape[:2]

    def at(x: float, y: float) -> Box:
        x, y = round(min(max(x, 0), columns - width)), round(min(max(y, 0), rows - height))
        return Box(x, y, x + width, y + height)

    # Above the object, below it, or stepping upwards until no other tag is in the way.
    centre = 0.5 * (box.x0 + box.x1 - width)
    places = [at(centre, box.y0 - height - pad), at(centre, box.y1 + pad)]
    places += [at(centre, box.y0 - k * (height + 2)) for k in range(2, 8)]
    place = next((p for p in places if not any(p.meets(t) for t in taken)), places[0])
    taken.append(place)

    part = picture[max(0, place.y0) : place.y1, max(0, place.x0) : place.x1]
    part[:] = part // 4 + np.array(_DARK, np.uint8) // 4 * 3
    middle = place.y0 + height // 2
    cv2.circle(picture, (place.x0 + pad + dot, middle), dot, color, -1, cv2.LINE_AA)
    origin = (place.x0 + 2 * dot + 2 * pad, middle + text_height // 2)
    cv2.putText(picture, text, origin, font, size, _LIGHT, 1, cv2.LINE_AA)


def _visible(color: Sequence[float]) -> tuple[int, int, int]:
    """A model's colour in 0..255, bright enough to be seen as a line on a photo."""
    rgb = np.asarray(color, np.float64)
    brightest = rgb.max()
    rgb = np.full(3, 0.75) if brightest < 0.05 else rgb * max(1.0, 0.75 / brightest)
    return tuple(round(255 * min(1.0, float(c))) for c in rgb)
