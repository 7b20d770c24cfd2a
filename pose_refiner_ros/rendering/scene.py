# SPDX-License-Identifier: Apache-2.0
"""Pictures of a whole scene: colour, instance labels and depth, from one z-buffer.

Vertices are transformed, clipped and projected on the host (ten thousand of them cost about a
millisecond); the pixels are filled by Warp kernels, the same source on CPU and CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import warp as wp

if TYPE_CHECKING:
    from pose_refiner_ros.geometry.camera import Camera

wp.set_module_options({"enable_backward": False})

NEAR = 0.05  # metres; what is nearer to the camera plane is cut away
WIDEST = 57.3  # tangent of 89 degrees
DEFAULT_COLOR = (0.7, 0.7, 0.7)
DEFAULT_BACKGROUND = (0.16, 0.17, 0.19)
BLOCK = wp.constant(16)  # pixels a thread resolves: starting a thread costs more than a pixel
INFINITY_BITS = wp.constant(wp.int32(0x7F800000))
NOTHING = wp.constant(wp.int64(0x7FFFFFFFFFFFFFFF))


class SceneImages(NamedTuple):
    rgb: np.ndarray  # (H, W, 3) uint8
    labels: np.ndarray  # (H, W) int32, 0 where there is nothing
    depth: np.ndarray  # (H, W) float32, metres along the optical axis, inf where there is nothing


@wp.func
def crossing(upper: wp.vec3, lower: wp.vec3, v: float):
    """u at which an edge crosses row v. The end points come in one order for both faces that share
    the edge, so both get the same number and no pixel between them stays empty."""
    return upper[0] + (lower[0] - upper[0]) * ((v - upper[1]) / (lower[1] - upper[1]))


@wp.kernel
def fill_faces(
    points: wp.array(dtype=wp.vec3),  # (P,) camera axes, metres
    pixels: wp.array(dtype=wp.vec2),  # (P,) where the points are in the picture of samples
    faces: wp.array(dtype=wp.vec3i),  # (F,)
    albedo: wp.array(dtype=wp.vec3),  # (F,) in [0, 1]
    up: wp.vec3,  # unit vector, camera axes
    visible: wp.array2d(dtype=wp.int64),  # (H, W): farness << 32 | face
    face_color: wp.array(dtype=wp.vec3),  # (F,) shaded, 0..255
):
    face = wp.tid()
    corner = faces[face]
    p = points[corner[0]]
    q = points[corner[1]]
    r = points[corner[2]]
    a = wp.vec3(pixels[corner[0]][0], pixels[corner[0]][1], 1.0 / p[2])
    b = wp.vec3(pixels[corner[1]][0], pixels[corner[1]][1], 1.0 / q[2])
    c = wp.vec3(pixels[corner[2]][0], pixels[corner[2]][1], 1.0 / r[2])
    height = visible.shape[0]
    width = visible.shape[1]
    first_row = int(wp.ceil(wp.max(wp.min(a[1], wp.min(b[1], c[1])), 0.0)))
    last_row = int(wp.floor(wp.min(wp.max(a[1], wp.max(b[1], c[1])), float(height - 1))))
    area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    if first_row > last_row or not (wp.abs(area) > 1.0e-12):  # a point without an image is NaN
        return

    # Lambert on both sides: ambient, the sky above, a head light
    normal = wp.normalize(wp.cross(q - p, r - p))
    facing = wp.dot(normal, wp.normalize(p + q + r))
    from_sky = 0.5 - 0.5 * wp.dot(normal, up) * wp.sign(facing)
    light = 0.25 + 0.45 * from_sky + 0.35 * wp.abs(facing)
    color = albedo[face] * light
    for k in range(3):
        color[k] = wp.clamp(color[k], 0.0, 1.0)
    face_color[face] = color * 255.0

    # 1/depth is affine in the picture: one plane per face
    du = ((b[2] - a[2]) * (c[1] - a[1]) - (c[2] - a[2]) * (b[1] - a[1])) / area
    dv = ((c[2] - a[2]) * (b[0] - a[0]) - (b[2] - a[2]) * (c[0] - a[0])) / area
    nearest = wp.max(a[2], wp.max(b[2], c[2]))
    farthest = wp.min(a[2], wp.min(b[2], c[2]))

    top = a
    middle = b
    bottom = c
    if top[1] > middle[1]:
        swap = top
        top = middle
        middle = swap
    if middle[1] > bottom[1]:
        swap = middle
        middle = bottom
        bottom = swap
    if top[1] > middle[1]:
        swap = top
        top = middle
        middle = swap

    for row in range(first_row, last_row + 1):
        v = float(row)
        left = crossing(top, bottom, v)
        right = left
        if v < middle[1] or middle[1] == bottom[1]:
            right = crossing(top, middle, v)
        else:
            right = crossing(middle, bottom, v)
        if left > right:
            other = left
            left = right
            right = other
        first = int(wp.ceil(wp.max(left, 0.0)))
        last = int(wp.floor(wp.min(right, float(width - 1))))
        row_start = a[2] + dv * (v - a[1]) - du * a[0]
        for column in range(first, last + 1):
            # a sliver's plane is steep: keep within the corners
            inverse_depth = wp.clamp(row_start + du * float(column), farthest, nearest)
            # the bits of a positive float sort as the float does: near is small
            far = wp.int64(INFINITY_BITS - wp.cast(inverse_depth, wp.int32))
            wp.atomic_min(visible, row, column, (far << wp.int64(32)) | wp.int64(face))


@wp.kernel
def resolve(
    visible: wp.array2d(dtype=wp.int64),  # (H * samples, W * samples)
    samples: int,
    face_color: wp.array(dtype=wp.vec3),  # (F,) shaded, 0..255
    face_label: wp.array(dtype=wp.int32),
    background: wp.array2d(dtype=wp.vec3ub),  # (H, W) or (1, 1)
    rgb: wp.array2d(dtype=wp.vec3ub),
    labels: wp.array2d(dtype=wp.int32),
    depth: wp.array2d(dtype=wp.float32),
):
    row, block = wp.tid()
    middle = samples // 2  # the pixel's centre, since samples is odd
    weight = 1.0 / float(samples * samples)
    for column in range(block * BLOCK, wp.min(block * BLOCK + BLOCK, rgb.shape[1])):
        total = wp.vec3(0.5, 0.5, 0.5)  # rounds
        for i in range(samples):
            for j in range(samples):
                packed = visible[row * samples + i, column * samples + j]
                if packed == NOTHING:
                    behind = background[
                        wp.min(row, background.shape[0] - 1),
                        wp.min(column, background.shape[1] - 1),
                    ]
                    total += weight * wp.vec3(float(behind[0]), float(behind[1]), float(behind[2]))
                else:
                    total += weight * face_color[int(packed & wp.int64(0xFFFFFFFF))]
        rgb[row, column] = wp.vec3ub(wp.uint8(total[0]), wp.uint8(total[1]), wp.uint8(total[2]))

        packed = visible[row * samples + middle, column * samples + middle]
        if packed == NOTHING:
            labels[row, column] = 0
            depth[row, column] = wp.inf
        else:
            labels[row, column] = face_label[int(packed & wp.int64(0xFFFFFFFF))]
            bits = INFINITY_BITS - wp.int32(packed >> wp.int64(32))
            depth[row, column] = 1.0 / wp.cast(bits, wp.float32)


def render_scene(
    meshes: Sequence,
    camera_from_objects: np.ndarray,
    camera: Camera,
    colors: Sequence | None = None,
    labels: Sequence[int] | None = None,
    background: np.ndarray | Sequence[float] | None = None,
    device: str = "cpu",
    samples: int = 1,
    up: Sequence[float] = (0.0, -1.0, 0.0),
) -> SceneImages:
    """Draw meshes as the camera sees them.

    camera_from_objects: (N, 4, 4), metres. colors: per mesh an RGB in [0, 1], or one per face
    (F, 3). labels: per mesh, 1..N if not given; 0 is drawn but belongs to the background.
    background: an RGB in [0, 1] or a picture (H, W, 3) uint8. samples: odd number of samples per
    pixel and axis for smooth edges; labels and depth always belong to the pixel's centre.
    up: where the sky's light comes from, in camera axes. Lens distortion bends vertices, not
    edges: cut big faces into smaller ones where that matters.
    """
    if samples < 1 or samples % 2 == 0:
        raise ValueError(f"samples is {samples}: give an odd number, so that one is the centre")
    poses = np.asarray(camera_from_objects, np.float64).reshape(-1, 4, 4)
    if len(poses) != len(meshes):
        raise ValueError(f"{len(meshes)} meshes but {len(poses)} poses: give one pose per mesh")
    labels = range(1, len(meshes) + 1) if labels is None else labels
    colors = [DEFAULT_COLOR] * len(meshes) if colors is None else colors
    if not len(labels) == len(colors) == len(meshes):
        raise ValueError(
            f"{len(meshes)} meshes, {len(labels)} labels, {len(colors)} colors: give one per mesh"
        )
    height, width = camera.size

    points, faces, source = _faces_in_view(meshes, poses, camera)
    pixels = (camera.project(points) + 0.5) * samples - 0.5
    face_label = np.repeat(np.asarray(labels, np.int32), [len(m.faces) for m in meshes])[source]
    albedo = [np.empty((0, 3), np.float32)]
    for color, mesh in zip(colors, meshes, strict=True):
        albedo.append(np.broadcast_to(np.asarray(color, np.float32), (len(mesh.faces), 3)))

    def on_device(array, dtype):
        return wp.array(np.ascontiguousarray(array), dtype=dtype, device=device)

    visible = wp.full((height * samples, width * samples), NOTHING, dtype=wp.int64, device=device)
    face_color = wp.empty(len(faces), dtype=wp.vec3, device=device)
    wp.launch(
        fill_faces,
        len(faces),
        device=device,
        inputs=[
            on_device(points.astype(np.float32), wp.vec3),
            on_device(pixels.astype(np.float32), wp.vec2),
            on_device(faces, wp.vec3i),
            on_device(np.concatenate(albedo)[source], wp.vec3),
            wp.normalize(wp.vec3(*map(float, up))),
            visible,
            face_color,
        ],
    )
    rgb = wp.empty((height, width), dtype=wp.vec3ub, device=device)
    label_image = wp.empty((height, width), dtype=wp.int32, device=device)
    depth = wp.empty((height, width), dtype=wp.float32, device=device)
    wp.launch(
        resolve,
        (height, -(-width // BLOCK)),
        device=device,
        inputs=[
            visible,
            samples,
            face_color,
            on_device(face_label, wp.int32),
            on_device(_background(background, camera.size), wp.vec3ub),
            rgb,
            label_image,
            depth,
        ],
    )
    return SceneImages(rgb.numpy(), label_image.numpy(), depth.numpy())


def _faces_in_view(meshes, poses, camera):
    """What of the meshes lies in the field of view: points (P, 3) in camera axes, metres, faces
    (F, 3) int32, and the faces they are pieces of, (F,), counted through all meshes."""
    normals, offsets = _view_planes(camera)
    bits = (1 << np.arange(len(offsets))).astype(np.uint8)
    points, faces, source = [np.empty((0, 3))], [np.empty((0, 3), np.int32)], [np.empty(0, int)]
    point_count = face_count = 0

    def keep(some_points, some_faces, some_source):
        nonlocal point_count
        points.append(some_points)
        faces.append(some_faces.astype(np.int32) + np.int32(point_count))
        source.append(some_source + face_count)
        point_count += len(some_points)

    for mesh, pose in zip(meshes, poses, strict=True):
        vertices = mesh.vertices @ pose[:3, :3].T + pose[:3, 3]
        outside = ((vertices @ normals.T < offsets) * bits).sum(1, dtype=np.uint8)
        corner = outside[mesh.faces]
        some, every = np.bitwise_or.reduce(corner, 1), np.bitwise_and.reduce(corner, 1)
        inner = np.flatnonzero(some == 0)
        if len(inner):
            keep(vertices, mesh.faces[inner], inner)
        cut = np.flatnonzero((some != 0) & (every == 0))
        if len(cut):
            pieces, cut = vertices[mesh.faces[cut]], cut
            for normal, offset in zip(normals, offsets, strict=True):
                pieces, cut = _clip(pieces, cut, normal, offset)
            keep(pieces.reshape(-1, 3), np.arange(3 * len(pieces)).reshape(-1, 3), cut)
        face_count += len(mesh.faces)
    return np.concatenate(points), np.concatenate(faces), np.concatenate(source)


def _view_planes(camera):
    """Near plane and four sides of the field of view: inward normals (5, 3), distances (5,).

    Far beyond the sides a distortion model has no image, or folds back into the picture."""
    height, width = camera.size
    u = np.linspace(-0.5, width - 0.5, 17)
    v = np.linspace(-0.5, height - 0.5, 17)
    border = np.concatenate(
        [
            np.stack([u, np.full(17, v[0])], 1),
            np.stack([u, np.full(17, v[-1])], 1),
            np.stack([np.full(17, u[0]), v], 1),
            np.stack([np.full(17, u[-1]), v], 1),
        ]
    )
    normalised = camera.undistort(border)
    if np.isfinite(normalised).all():
        left, top = normalised.min(0)
        right, bottom = normalised.max(0)
    else:  # a lens so wide that its border has no undistorted place: cut at 89 degrees
        left = top = -WIDEST
        right = bottom = WIDEST
    normals = np.array(
        [
            [0.0, 0.0, 1.0],
            [1.0, 0.0, -left],
            [-1.0, 0.0, right],
            [0.0, 1.0, -top],
            [0.0, -1.0, bottom],
        ]
    )
    return normals, np.array([NEAR, 0.0, 0.0, 0.0, 0.0])


def _clip(triangles, source, plane, offset):
    """What of the triangles (F, 3, 3) lies on the plane's inner side, and its source faces."""
    distance = triangles @ plane - offset
    inside = (distance > 0).sum(1)
    pieces, sources = [triangles[inside == 3]], [source[inside == 3]]
    for count in (1, 2):
        chosen = np.flatnonzero(inside == count)
        # turn each so that its first corner is the one that is alone on its side
        alone = (distance[chosen] > 0) == (count == 1)
        turn = (alone.argmax(1)[:, None] + np.arange(3)) % 3
        corner = np.take_along_axis(triangles[chosen], turn[..., None], 1)
        d = np.take_along_axis(distance[chosen], turn, 1)[..., None]
        a, b, c = corner[:, 0], corner[:, 1], corner[:, 2]
        ab = a + (b - a) * (d[:, 0] / (d[:, 0] - d[:, 1]))
        ac = a + (c - a) * (d[:, 0] / (d[:, 0] - d[:, 2]))
        if count == 1:
            parts = [(a, ab, ac)]
        else:
            parts = [(ab, b, c), (ab, c, ac)]
        for part in parts:
            pieces.append(np.stack(part, 1))
            sources.append(source[chosen])
    return np.concatenate(pieces), np.concatenate(sources)


def _background(background, size):
    """(H, W, 3) or (1, 1, 3) uint8."""
    if background is None:
        background = DEFAULT_BACKGROUND
    background = np.asarray(background)
    if background.ndim == 1:
        return np.round(255.0 * background).astype(np.uint8).reshape(1, 1, 3)
    if background.shape != (*size, 3) or background.dtype != np.uint8:
        raise ValueError(
            f"background is {background.shape} {background.dtype}: give an RGB in [0, 1] or a"
            f" picture ({size[0]}, {size[1]}, 3) uint8"
        )
    return np.ascontiguousarray(background)
