# SPDX-License-Identifier: Apache-2.0
"""Pictures of a `Scene` from any virtual camera: ground with a metric grid, what the real camera
sees of it, the objects' meshes with soft shadows, the camera itself, and names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import warp as wp

from pose_refiner_ros.drawing.overlay import QUALITY_COLORS, Box, draw_tag
from pose_refiner_ros.geometry.camera import Camera
from pose_refiner_ros.rendering.scene import NEAR, render_scene
from pose_refiner_ros.scene import (
    VIEWS,
    GroundPlane,
    Scene,
    SceneError,
    SceneObject,
    View,
    birds_eye,
    chase,
    grid_step,
    scene_from_camera,
    through_camera,
)

if TYPE_CHECKING:
    from pose_refiner_ros.objects.model import ObjectModel

wp.set_module_options({"enable_backward": False})

SAMPLES = 3  # per pixel and axis of the objects' edges
GROUND = wp.constant(wp.vec3(222.0, 225.0, 229.0))  # not seen by the camera
SEEN = wp.constant(wp.vec3(243.0, 244.0, 245.0))
HORIZON = wp.constant(wp.vec3(231.0, 236.0, 240.0))
SKY = wp.constant(wp.vec3(176.0, 203.0, 230.0))
LINE = wp.constant(wp.vec3(150.0, 157.0, 167.0))
FINE_INK = wp.constant(0.2)  # of the lines' colour
INK_OF_LINES = wp.constant(0.7)
FAR_LINES = wp.constant(4000.0)  # more than are in sight, and a multiple of all numbers of parts
SHADOW = 0.5  # how much of the light it takes, at most
CAMERA_COLOR = (38, 88, 190)
INK, PAPER = (70, 76, 86), (236, 238, 240)
FRONT = (95, 102, 113)  # the mark before an object
PLAIN_DOT = (150, 157, 167)
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SUBPIXEL = 4  # bits after the point in what OpenCV draws


@wp.func
def ink_at(place: float, pixels: float, parts: int):
    """How much a pixel is inked by lines across one axis.

    place: in steps of the grid; pixels: that a step is long; parts: of a step between lighter
    lines. Lines that would be too dense are left out."""
    fine = pixels / float(parts)
    if fine > 3.0:
        shifted = place * float(parts) + FAR_LINES + 0.5
        line = int(shifted)  # positive, so that this is the floor, which is a slow call on the CPU
        off = wp.abs(shifted - float(line) - 0.5) * fine
        if off > 1.2:
            return 0.0
        if line % parts == 0:
            return INK_OF_LINES * wp.clamp(1.2 - off, 0.0, 1.0)
        return FINE_INK * wp.clamp(1.0 - off, 0.0, 1.0) * wp.min(0.25 * fine - 0.75, 1.0)
    if pixels > 3.0:
        shifted = place + FAR_LINES + 0.5
        off = wp.abs(shifted - float(int(shifted)) - 0.5) * pixels
        return INK_OF_LINES * wp.clamp(1.2 - off, 0.0, 1.0) * wp.min(0.25 * pixels - 0.75, 1.0)
    return 0.0


@wp.kernel
def paint_ground(
    right: wp.vec3,  # a pixel's ray is ahead + column * right + row * below, scene axes
    below: wp.vec3,
    ahead: wp.vec3,
    eye: wp.vec3,  # of the view, from the point that the lines count from
    step: float,  # of the grid, metres
    parts: int,  # of a step, between lighter lines
    clear: float,  # metres: farther away the ground fades
    camera_from_scene: wp.mat33,  # of the real camera
    to_camera: wp.vec3,  # its translation, from the same point
    field: wp.vec4,  # left top right bottom of its image, in normalised coordinates
    picture: wp.array2d(dtype=wp.vec3ub),
):
    row = wp.tid()
    start = ahead + float(row) * below
    per_step = 1.0 / step
    # The ray meets the ground at eye + t ray with t = -eye.z / ray.z. Times -ray.z, that place in
    # the real camera's axes is linear in the ray, and so in the column.
    seen = camera_from_scene * (eye[2] * start - start[2] * eye) - start[2] * to_camera
    seen_step = camera_from_scene * (eye[2] * right - right[2] * eye) - right[2] * to_camera
    for column in range(picture.shape[1]):
        ray = start + float(column) * right
        color = HORIZON
        if ray[2] > 0.0:
            color += (SKY - HORIZON) * wp.min(1.6 * ray[2] / wp.length(ray), 1.0)
        elif eye[2] > 0.0 and ray[2] < 0.0:
            slope = -1.0 / ray[2]
            t = eye[2] * slope
            x = t * ray[0]
            y = t * ray[1]
            far2 = x * x + y * y
            if far2 < 16.0 * clear * clear:
                # metres that x and y change by from pixel to pixel
                tx = ray[0] * slope
                ty = ray[1] * slope
                dx = t * (wp.abs(right[0] + tx * right[2]) + wp.abs(below[0] + tx * below[2]))
                dy = t * (wp.abs(right[1] + ty * right[2]) + wp.abs(below[1] + ty * below[2]))
                step_x = step / wp.max(dx, 1.0e-9)  # pixels
                step_y = step / wp.max(dy, 1.0e-9)

                color = GROUND
                q = seen + float(column) * seen_step
                across = q[0] > field[0] * q[2] and q[0] < field[2] * q[2]
                if across and q[1] > field[1] * q[2] and q[1] < field[3] * q[2]:
                    color = SEEN
                x = (x + eye[0]) * per_step
                y = (y + eye[1]) * per_step
                ink = wp.max(ink_at(x, step_x, parts), ink_at(y, step_y, parts))
                color += (LINE - color) * ink
                if far2 > clear * clear:
                    color += (HORIZON - color) * (wp.sqrt(far2) / clear - 1.0) / 3.0
        picture[row, column] = wp.vec3ub(
            wp.uint8(color[0] + 0.5), wp.uint8(color[1] + 0.5), wp.uint8(color[2] + 0.5)
        )


@wp.kernel
def paint_shadow(
    right: wp.vec3,  # as above
    below: wp.vec3,
    ahead: wp.vec3,
    eye: wp.vec3,  # from the middle of the shadow
    along: wp.vec2,  # unit vector of its length
    half: wp.vec2,  # length and width, metres
    blur: float,
    strength: float,
    first_row: int,
    first_column: int,
    last_column: int,
    picture: wp.array2d(dtype=wp.vec3ub),
):
    row = first_row + wp.tid()
    start = ahead + float(row) * below
    for column in range(first_column, last_column):
        ray = start + float(column) * right
        if ray[2] < 0.0:
            t = -eye[2] / ray[2]
            x = eye[0] + t * ray[0]
            y = eye[1] + t * ray[1]
            a = wp.max(wp.abs(x * along[0] + y * along[1]) - half[0] + blur, 0.0)
            b = wp.max(wp.abs(y * along[0] - x * along[1]) - half[1] + blur, 0.0)
            outside = wp.sqrt(a * a + b * b) / (2.0 * blur)
            if outside < 1.0:
                fade = 1.0 - outside
                light = 1.0 - strength * fade * fade * (3.0 - 2.0 * fade)
                was = picture[row, column]
                picture[row, column] = wp.vec3ub(
                    wp.uint8(light * float(was[0])),
                    wp.uint8(light * float(was[1])),
                    wp.uint8(light * float(was[2])),
                )


def draw_scene(
    scene: Scene,
    library: Mapping[str, ObjectModel],
    view: str | View = "birds_eye",
    size: tuple[int, int] = (480, 640),
    labels: bool = True,
    device: str = "cpu",
) -> np.ndarray:
    """A picture of the scene as a virtual camera sees it.

    The ground (z = 0) has a grid whose lines are as far apart as the text in the corner says; the
    part that the real camera sees is lighter. The real camera is the blue pyramid, a mark lies
    before the front (+x) of each object, and tags say name and id, with a dot for quality as on
    the overlay.

    Args:
        library: object models by name; objects of other names raise KeyError.
        view: birds_eye (from above, x up), chase (from behind and above the camera, as it looks),
            camera (through the real camera), or a `View`, as from `look_at`.
        size: (height, width) of the picture.
        labels: whether tags and scale are written.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        SceneError: the view has another name.
    """
    models = [library[one.name] for one in scene.objects]
    boxes = [_box_corners(one, model) for one, model in zip(scene.objects, models, strict=True)]
    points = _points(scene, boxes)
    extent = float(np.ptp(points, axis=0).max())
    step = grid_step(extent)
    view = _view_named(view, scene, points, size) if isinstance(view, str) else view

    ground = _ground(scene, view, step, 4.0 * extent, device)
    for one, corners in zip(scene.objects, boxes, strict=True):
        _draw_shadow(ground, view, one, corners)
    picture = ground.numpy().copy()
    scale = max(0.6, min(view.camera.size) / 480.0)
    marks = [_front_mark(one, model) for one, model in zip(scene.objects, models, strict=True)]
    for mark in marks:
        pixels = _pixels(view, mark)
        if pixels is not None:
            cv2.fillConvexPoly(picture, pixels, FRONT, cv2.LINE_AA, _SUBPIXEL)
    hulls = [_hull(view, corners) for corners in boxes]
    _draw_objects(picture, view, scene.objects, models, hulls, device)
    _draw_camera(picture, view, scene, extent, scale)
    if labels:
        _write_scale(picture, view, step, scale)
        taken: list[Box] = []
        for i in np.argsort([np.linalg.norm(one.position - view.eye) for one in scene.objects]):
            one, hull = scene.objects[i], _hull(view, np.concatenate([boxes[i], marks[i]]))
            if hull is not None:
                dot = QUALITY_COLORS.get(one.quality, PLAIN_DOT)
                draw_tag(picture, f"{one.name}#{one.id}", dot, hull, taken, 0.4 * scale)
    return picture


def warm_up(library: Mapping[str, ObjectModel], device: str = "cpu") -> None:
    """Compile the kernels (seconds, once per machine)."""
    camera = Camera(np.array([[32.0, 0, 31.5], [0, 32.0, 31.5], [0, 0, 1]]), (64, 64))
    frame = scene_from_camera(GroundPlane.from_height_and_pitch(1.5, 0.0))
    one = SceneObject(next(iter(library)), 1, np.eye(4))
    draw_scene(Scene([one], frame, camera), library, size=camera.size, device=device)


def _view_named(name: str, scene: Scene, points: np.ndarray, size: tuple[int, int]) -> View:
    if name == "birds_eye":
        return birds_eye(points, size)
    if name == "chase":
        ahead = scene.scene_from_camera[:2, 2]
        return chase(points, math.atan2(ahead[1], ahead[0]), size)
    if name == "camera":
        return through_camera(scene.camera, scene.scene_from_camera, size)
    raise SceneError(
        f"view {name!r} is not known: choose one of {', '.join(VIEWS)}; custom needs look_at"
    )


def _box_corners(one: SceneObject, model: ObjectModel) -> np.ndarray:
    """(8, 3) corners of the object's box in the scene."""
    return model.mesh.box_corners @ one.scene_from_object[:3, :3].T + one.scene_from_object[:3, 3]


def _points(scene: Scene, boxes: Sequence[np.ndarray]) -> np.ndarray:
    """(N, 3) what a view should show: the objects, the camera and the ground under it."""
    eye = scene.scene_from_camera[:3, 3]
    foot = eye * (1.0, 1.0, 0.0)
    points = [eye[None], foot[None], *boxes]
    if not boxes:  # some ground ahead, as much as such a camera may be meant for
        height = max(abs(eye[2]), 0.1)
        points.append(foot + height * np.array([[6.0, 3.0, 0.0], [6.0, -3.0, 0.0]]))
    return np.concatenate(points)


def _parts(step: float) -> int:
    """Into how many parts lighter lines divide a step of 1, 2 or 5 times a power of ten."""
    leading = round(step / 10.0 ** math.floor(math.log10(step) + 1e-9))
    return 4 if leading == 2 else 5


def _ground(scene: Scene, view: View, step: float, clear: float, device: str) -> wp.array:
    """(H, W) vec3ub: sky, ground, grid, and what the real camera sees of it."""
    # float32 has no digits for lines far from the origin, as in a map: count from near by.
    corner = np.append(5.0 * step * np.round(view.eye[:2] / (5.0 * step)), 0.0)
    camera_from_scene = np.linalg.inv(scene.scene_from_camera)
    picture = wp.empty(view.camera.size, dtype=wp.vec3ub, device=device)
    wp.launch(
        paint_ground,
        view.camera.height,
        device=device,
        inputs=[
            *_rays(view),
            _vec3(view.eye - corner),
            step,
            _parts(step),
            clear,
            wp.mat33(*camera_from_scene[:3, :3].astype(np.float32).ravel()),
            _vec3(camera_from_scene[:3, :3] @ corner + camera_from_scene[:3, 3]),
            wp.vec4(*map(float, _field(scene.camera))),
            picture,
        ],
    )
    return picture


def _draw_shadow(picture: wp.array, view: View, one: SceneObject, corners: np.ndarray) -> None:
    """That of the object's box on the ground in light from all around; weaker the higher up."""
    cos, sin = math.cos(one.heading), math.sin(one.heading)
    scene_from_shadow = np.array([[cos, -sin], [sin, cos]])
    flat = corners[:, :2] @ scene_from_shadow
    low, high = flat.min(0), flat.max(0)
    half = np.maximum(0.5 * (high - low), 1e-4)
    blur = 0.3 * half.min()
    strength = SHADOW / (1.0 + max(0.0, corners[:, 2].min()) / half.min())
    reach = (half + blur) * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) + 0.5 * (low + high)
    box = _hull(view, np.column_stack([reach @ scene_from_shadow.T, np.zeros(4)]))
    if box is None or view.eye[2] <= 0.0:
        return
    middle = np.append(scene_from_shadow @ (0.5 * (low + high)), 0.0)
    wp.launch(
        paint_shadow,
        box.y1 - box.y0,
        device=picture.device,
        inputs=[
            *_rays(view),
            _vec3(view.eye - middle),
            wp.vec2(cos, sin),
            wp.vec2(*map(float, half)),
            float(blur),
            float(strength),
            box.y0,
            box.x0,
            box.x1,
            picture,
        ],
    )


def _rays(view: View) -> list[wp.vec3]:
    """Vectors right, below and ahead: a pixel's ray is column * right + row * below + ahead."""
    rays = view.camera_from_scene[:3, :3].T @ np.linalg.inv(view.camera.intrinsics)
    return [_vec3(column) for column in rays.T]


def _vec3(vector: np.ndarray) -> wp.vec3:
    return wp.vec3(*map(float, vector))


def _field(camera: Camera) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the image in normalised coordinates; an empty field for a
    lens so wide that its border has no place there."""
    height, width = camera.size
    sides = [
        (-0.5, camera.cy),
        (camera.cx, -0.5),
        (width - 0.5, camera.cy),
        (camera.cx, height - 0.5),
    ]
    places = camera.undistort(np.array(sides))
    if not np.isfinite(places).all():
        return 0.0, 0.0, 0.0, 0.0
    return places[0, 0], places[1, 1], places[2, 0], places[3, 1]


def _hull(view: View, corners: np.ndarray) -> Box | None:
    """The rectangle around a box in the picture; None if no part of it may be there."""
    points = corners @ view.camera_from_scene[:3, :3].T + view.camera_from_scene[:3, 3]
    height, width = view.camera.size
    if points[:, 2].max() <= NEAR:
        return None
    if points[:, 2].min() <= NEAR:  # it surrounds the camera or reaches behind it
        return Box(0, 0, width, height)
    pixels = view.camera.project(points)
    low, high = pixels.min(0), pixels.max(0)
    box = Box(
        max(0, math.floor(low[0])),
        max(0, math.floor(low[1])),
        min(width, math.ceil(high[0]) + 2),
        min(height, math.ceil(high[1]) + 2),
    )
    return box if box.x0 < box.x1 and box.y0 < box.y1 else None


def _draw_objects(picture, view, objects, models, hulls, device) -> None:
    """The meshes, over the ground. Only the part of the picture where they are is rendered."""
    shown = [i for i, hull in enumerate(hulls) if hull is not None]
    if not shown:
        return
    x0, y0 = (min(hulls[i][k] for i in shown) for k in (0, 1))
    x1, y1 = (max(hulls[i][k] for i in shown) for k in (2, 3))
    intrinsics = view.camera.intrinsics.copy()
    intrinsics[:2, 2] -= (x0, y0)
    part = picture[y0:y1, x0:x1]
    part[:] = render_scene(
        [models[i].silhouette_mesh for i in shown],
        np.stack([view.camera_from_scene @ objects[i].scene_from_object for i in shown]),
        Camera(intrinsics, (y1 - y0, x1 - x0)),
        colors=[models[i].color for i in shown],
        background=part,
        samples=SAMPLES,
        up=view.camera_from_scene[:3, 2],
        device=device,
    ).rgb


def _front_mark(one: SceneObject, model: ObjectModel) -> np.ndarray:
    """(3, 3) corners in the scene of an arrowhead before the object's front, at its foot."""
    low, high = model.mesh.bounds
    size = 0.25 * (high[1] - low[1])
    middle = 0.5 * (low[1] + high[1])
    start = high[0] + 0.8 * size
    points = np.array([[start, middle + side * size, low[2]] for side in (-1.0, 1.0)])
    points = np.concatenate([points, [[start + 1.3 * size, middle, low[2]]]])
    return points @ one.scene_from_object[:3, :3].T + one.scene_from_object[:3, 3]


def _pixels(view: View, points: np.ndarray) -> np.ndarray | None:
    """(N, 3) scene -> (N, 2) in OpenCV's fixed point; None where one has no image near by."""
    points = points @ view.camera_from_scene[:3, :3].T + view.camera_from_scene[:3, 3]
    if points[:, 2].min() <= NEAR:
        return None
    pixels = view.camera.project(points)
    if abs(pixels).max() > 8 * max(view.camera.size):  # it would overflow
        return None
    return np.round(pixels * 2**_SUBPIXEL).astype(np.int32)


def _draw_camera(
    picture: np.ndarray, view: View, scene: Scene, extent: float, scale: float
) -> None:
    """The real camera as a pyramid, with a plumb line to the ground."""
    eye = scene.scene_from_camera[:3, 3]
    depth = min(0.05 * extent, 0.12 * float(np.linalg.norm(view.eye - eye)))
    left, top, right, bottom = np.clip(_field(scene.camera), -1.2, 1.2)
    if right <= left:
        left, top, right, bottom = -1.0, -0.75, 1.0, 0.75
    corners = depth * np.array(
        [[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]]
    )
    corners = corners @ scene.scene_from_camera[:3, :3].T + eye
    pixels = _pixels(view, np.concatenate([eye[None], corners, [eye * (1, 1, 0)]]))
    if pixels is None:  # seen from itself, for one
        return
    apex, image, foot = pixels[0], pixels[1:5], pixels[5]
    shade = picture.copy()
    for a, b in zip(image, np.roll(image, 1, 0), strict=True):
        cv2.fillConvexPoly(shade, np.stack([apex, a, b]), CAMERA_COLOR, cv2.LINE_AA, _SUBPIXEL)
    cv2.addWeighted(picture, 0.7, shade, 0.3, 0.0, picture)
    lines = [np.stack([apex, corner]) for corner in image]
    width = max(1, round(1.5 * scale))
    cv2.polylines(picture, [np.stack([apex, foot])], False, CAMERA_COLOR, 1, cv2.LINE_AA, _SUBPIXEL)
    cv2.polylines(picture, [*lines, image], True, CAMERA_COLOR, width, cv2.LINE_AA, _SUBPIXEL)


def _write_scale(picture: np.ndarray, view: View, step: float, scale: float) -> None:
    """How far apart the grid's lines are; seen from above, their coordinates as well."""
    height, width = picture.shape[:2]
    margin = round(6 * scale)
    text = f"grid {step:g} m" if step >= 1 else f"grid {100 * step:g} cm"
    _write(picture, text, margin, height - margin, 0.42 * scale)
    rotation = view.camera_from_scene[:3, :3]
    if rotation[2, 2] > -0.9999 or abs(rotation[0, 1]) < 0.9999:
        return
    camera, eye = view.camera, view.eye
    per_metre = camera.fx / eye[2]
    for pixel, last, axis in ((camera.cy, height, 0), (camera.cx, width, 1)):
        end = eye[axis] + pixel / per_metre  # row 0, column 0: x and y are greatest there
        first, last = math.ceil((end - last / per_metre) / step), math.floor(end / step)
        for k in range(first, last + 1):
            place = round((end - k * step) * per_metre)
            text = f"{k * step:g}"
            (text_width, text_height), _ = cv2.getTextSize(text, _FONT, 0.34 * scale, 1)
            if axis == 0 and text_height < place < height - 4 * text_height:
                _write(picture, text, margin, place + text_height // 2, 0.34 * scale)
            elif axis == 1 and 14 * text_height < place < width - text_width:
                x = place - text_width // 2
                _write(picture, text, x, height - margin, 0.34 * scale)


def _write(picture: np.ndarray, text: str, x: int, y: int, size: float) -> None:
    for color, width in ((PAPER, 3), (INK, 1)):
        cv2.putText(picture, text, (x, y), _FONT, size, color, width, cv2.LINE_AA)
