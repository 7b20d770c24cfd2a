# SPDX-License-Identifier: Apache-2.0
"""Silhouettes of meshes that can be differentiated by the pose: the paper's soft rasteriser.

Palazzi et al., "End-to-end 6-DoF Object Pose Estimation through Differentiable Rasterization"
(2018), eq. 4 and 5, with what the equations leave open as in the authors' published renderer. For
a projected triangle v_0, v_1, v_2 with the edges e_k = v_(k+1) - v_k, and a pixel p,

    N   = cross(e_0, e_2) + 1e-8
    x   = max(cross(e_0, v_0 - p) N, 0) max(cross(e_1, v_1 - p) N, 0) max(cross(e_2, v_2 - p) N, 0)
    x'  = (x - min x) / (max x - min x + 1e-8)          min and max over all pixels, per triangle
    picture(p) = sum over triangles of tanh(x')         not clamped

Multiplied by N, no factor depends on the winding: front and back faces both add. Pixels have whole
coordinates. Only the largest triangles of a mesh are drawn, by their area in the object's frame.

Weaknesses of the formula, and what becomes of them here:

* Nothing asks for z > 0, so what lies behind the camera is drawn, upside down. Triangles with a
  vertex nearer than `near` are left out: our one departure from the formula. (The published code
  also moves projected vertices that lie beyond the picture onto its border, which deforms their
  triangles and is not in the paper; here triangles simply go on beyond the border.)
* A triangle that covers one pixel has max x = x there and is 1 whatever its pose: no gradient. Of
  a mesh with faces of a pixel or two, little pulls. Kept; a simplified mesh or more pixels help,
  a lower `max_faces` does not, as it tears holes. For the same reason a picture of 1x1 pixels, all
  whose triangles have max x = min x, is 0.
* Pixels that several triangles cover add up to 5 to 8, and a triangle is 0 at its edges, so that
  covered is anything above 0. Kept; the losses of `baselines/gradient_descent.py` squash it.
* A thin triangle goes from 0 to 1 in a fraction of a pixel, so its gradient is huge and says
  nothing about the next pixel. Kept, but `gradient_limit` can cut each triangle's gradient to what
  moving a triangle of its length by a pixel could change; pictures stay as they are.

How it is computed. Outside a triangle x is 0, so that only pixels within count, and min x is 0 but
for a triangle that covers the whole picture. Each triangle is cut into rows, each row into its
pixels, and maxima and sums are taken over those lists: the same values without the dense
(triangles, pixels) array. x is (N (N - 1e-8))^3 times the product of the barycentric coordinates;
x and the 1e-8 beside it are divided by that factor, which leaves numbers that float32 can hold,
however large a triangle.
Triangles are drawn in tiles of at most `pairs_per_tile` pixels of bounding boxes, and drawn again
when gradients are taken, so that memory stays bounded in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_FACES = 3000  # that are drawn of a mesh
# Twice the area in square pixels below which x' < 1e-11 because of the 1e-8 in its denominator.
_NOTHING = 1e-3
_EPSILON = 1e-8


class SoftRasterizerError(ValueError):
    """A mesh, pose, pinhole or size that cannot be drawn, with the reason."""


class SoftRasterizer:
    """Draws meshes at batches of poses. See the module's text for the formula.

    meshes: what has vertices (V, 3) metres, object frame, and faces (F, 3); size: (height, width)
    of the pictures; max_faces: of a mesh with more, the largest by area in the object's frame are
    drawn; near: metres of depth, triangles that reach nearer are not drawn; pairs_per_tile: bounds
    memory, some 150 bytes each while gradients are taken.

    Raises SoftRasterizerError.
    """

    def __init__(
        self,
        meshes: Sequence,
        size: tuple[int, int],
        max_faces: int = MAX_FACES,
        near: float = 1e-3,
        device: torch.device | str = "cpu",
        pairs_per_tile: int = 1 << 20,
    ):
        if len(meshes) == 0:
            raise SoftRasterizerError("there are no meshes to draw; give at least one")
        triangles = [_triangles(mesh.vertices, mesh.faces, max_faces) for mesh in meshes]
        height, width = (int(side) for side in size)
        if min(height, width) < 1:
            raise SoftRasterizerError(
                f"size is {tuple(size)}; (height, width) must be at least 1 pixel each"
            )
        self.size = (height, width)
        self.near = float(near)
        self.pairs_per_tile = int(pairs_per_tile)
        # metres, the radius of each mesh about the object's origin: how far a turn moves it
        self.radius = torch.tensor(
            [np.linalg.norm(t, axis=-1).max() for t in triangles], device=device
        )
        # triangles that have no area, which are never drawn, fill the meshes up to the largest
        count = max(map(len, triangles))
        corners = np.zeros((len(triangles), count, 3, 3))
        for mesh, own in zip(corners, triangles, strict=True):
            mesh[: len(own)] = own
        self.corners = torch.as_tensor(corners, dtype=torch.float64, device=device)  # (M, F, 3, 3)

    def __call__(
        self, camera_from_object: Tensor, pinhole, mesh=0, gradient_limit: float | None = None
    ) -> Tensor:
        """Pictures (B, height, width) of poses (B, 4, 4), in their dtype.

        pinhole: fx, fy, cx, cy in pixels, (4,) or (B, 4); mesh: which mesh, an integer or (B,).
        gradient_limit: None for exact gradients; else the gradient that reaches a triangle's
        projected corners is no longer than this times the triangle's longest side in pixels.
        Differentiable by poses and pinhole. A pose that is not finite shows nothing.
        """
        pose, pinhole, mesh = self._check(camera_from_object, pinhole, mesh)
        height, width = self.size
        picture = pose.new_zeros(len(pose) * height * width, dtype=camera_from_object.dtype)
        corner, owner = self._project(pose, pinhole, mesh)
        box = _boxes(corner.detach(), self.size)
        seen = (box[:, 2:] > 0).all(dim=1)
        corner, owner, box = corner[seen], owner[seen], box[seen]
        if gradient_limit is not None and corner.requires_grad:
            corner.register_hook(_limiter(corner.detach(), gradient_limit))
        planes, slack = _planes(corner, box)
        tiles = _tiles(box, self.pairs_per_tile)
        start = (owner * height + box[:, 1]) * width + box[:, 0]  # of the box, in the pictures
        if len(tiles) <= 1:
            place, value = _draw(planes, slack, box, start, self.size, picture.dtype)
            picture = picture.index_add(0, place, value)
        else:
            picture = _Tiled.apply(planes, slack, box, start, self.size, picture, tiles)
        return picture.reshape(len(pose), height, width)

    def _project(self, pose: Tensor, pinhole: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor]:
        """Corners (T, 3, 2) in pixels of the triangles in front of the camera, and whose they are
        (T,)."""
        corners = self.corners[mesh]
        points = corners.flatten(1, 2) @ pose[:, :3, :3].mT + pose[:, None, :3, 3]
        points = points.reshape(corners.shape)
        # left out before the division, whose derivative at z = 0 is infinite
        owner, triangle = (points[..., 2] > self.near).all(dim=-1).nonzero(as_tuple=True)
        points = points[owner, triangle]
        own = pinhole[owner, None]
        corner = points[..., :2] / points[..., 2:] * own[..., :2] + own[..., 2:]
        twice_area = _cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
        large = twice_area.detach().abs() > _NOTHING  # False for NaN, too
        return corner[large], owner[large]

    def _check(self, pose, pinhole, mesh) -> tuple[Tensor, Tensor, Tensor]:
        device = self.corners.device
        if not torch.is_tensor(pose) or pose.ndim != 3 or pose.shape[1:] != (4, 4):
            shape = tuple(getattr(pose, "shape", ()))
            raise SoftRasterizerError(
                f"camera_from_object has shape {shape}; give a tensor of poses (B, 4, 4)"
            )
        if not pose.is_floating_point():
            raise SoftRasterizerError(
                f"camera_from_object is of type {pose.dtype}; give float32 or float64"
            )
        pinhole = torch.as_tensor(pinhole, dtype=torch.float64, device=device)
        if tuple(pinhole.shape) not in {(4,), (len(pose), 4)}:
            raise SoftRasterizerError(
                f"pinhole has shape {tuple(pinhole.shape)}; give fx, fy, cx, cy as (4,) for all or "
                f"({len(pose)}, 4) for each of the {len(pose)} poses"
            )
        mesh = torch.as_tensor(mesh, dtype=torch.int64, device=device)
        if tuple(mesh.shape) not in {(), (len(pose),)}:
            raise SoftRasterizerError(
                f"mesh has shape {tuple(mesh.shape)}; give one index or one for each of the "
                f"{len(pose)} poses"
            )
        if len(pose) and (mesh.min() < 0 or mesh.max() >= len(self.corners)):
            raise SoftRasterizerError(
                f"mesh is {mesh.tolist()}; there are meshes 0 to {len(self.corners) - 1}"
            )
        return (
            pose.to(device, torch.float64),
            pinhole.expand(len(pose), 4),
            mesh.expand(len(pose)),
        )


def _triangles(vertices, faces, max_faces: int) -> np.ndarray:
    """(F, 3, 3) float64 corners of the max_faces largest triangles of a mesh."""
    vertices = np.asarray(vertices, np.float64)
    faces = np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise SoftRasterizerError(f"vertices have shape {vertices.shape}; give (V, 3)")
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise SoftRasterizerError(
            f"faces have shape {faces.shape}; give (F, 3) with at least one face"
        )
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise SoftRasterizerError(
            f"faces name vertices {faces.min()} to {faces.max()}, but there are {len(vertices)}"
        )
    bad = (~np.isfinite(vertices[faces])).any(axis=(1, 2)).sum()
    if bad:
        raise SoftRasterizerError(
            f"{bad} of {len(faces)} faces have vertices that are NaN or infinite; repair the mesh"
        )
    if max_faces < 1:
        raise SoftRasterizerError(f"max_faces is {max_faces}; at least 1 face must be drawn")
    triangles = vertices[faces]
    if len(faces) > max_faces:
        side = triangles[:, 1:] - triangles[:, :1]
        area = np.linalg.norm(np.cross(side[:, 0], side[:, 1]), axis=1)
        triangles = triangles[np.sort(np.argsort(-area, kind="stable")[:max_faces])]
    return triangles


def _boxes(corner: Tensor, size: tuple[int, int]) -> Tensor:
    """(T, 4) x, y, width, height of the pixels around triangles (T, 3, 2), within the picture;
    a width or height of 0 or less where there are none."""
    last = corner.new_tensor([size[1] - 1, size[0] - 1])
    # clamped first: a far coordinate would not fit an integer
    low = corner.amin(dim=1).clamp(min=0).minimum(last + 1).ceil()
    high = corner.amax(dim=1).minimum(last).clamp(min=-1).floor()
    return torch.cat([low, high - low + 1], dim=1).long()


def _limiter(corner: Tensor, limit: float):
    """Shortens gradients by corners (T, 3, 2) to limit times the longest side, per triangle."""
    longest = torch.linalg.vector_norm(corner.roll(-1, dims=1) - corner, dim=2).amax(dim=1)

    def limited(gradient: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(gradient, dim=(1, 2)).clamp(min=1e-30)
        return gradient * (limit * longest / length).clamp(max=1.0)[:, None, None]

    return limited


def _planes(corner: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentric coordinates as planes (T, 3, 3): [dx, dy, value at the box's first pixel], each
    positive inside; and (T,) the denominator's 1e-8 in their units."""
    edge = corner.roll(-1, dims=1) - corner
    twice_area = _cross(edge[:, 0], -edge[:, 2])
    value = _cross(edge, box[:, None, :2] - corner)
    planes = torch.stack([-edge[..., 1], edge[..., 0], value], dim=2) / twice_area[:, None, None]
    return planes, _EPSILON / (twice_area * (twice_area - _EPSILON)) ** 3


def _tiles(box: Tensor, pairs: int) -> list[slice]:
    """Runs of triangles whose boxes have so many pixels in all, or one triangle that has more."""
    total = (box[:, 2] * box[:, 3]).cumsum(0).tolist()
    tiles, start, done = [], 0, 0
    for i, filled in enumerate(total):
        if filled - done > pairs and i > start:
            tiles.append(slice(start, i))
            start, done = i, total[i - 1]
    if total:
        tiles.append(slice(start, len(total)))
    return tiles


class _Tiled(torch.autograd.Function):
    """Adds triangles to pictures tile by tile, and draws each tile again to differentiate it."""

    @staticmethod
    def forward(ctx, planes, slack, box, start, size, picture, tiles):
        ctx.save_for_backward(planes, slack, box, start)
        ctx.size, ctx.dtype, ctx.tiles = size, picture.dtype, tiles
        picture = picture.clone()
        for tile in tiles:
            place, value = _draw(
                planes[tile], slack[tile], box[tile], start[tile], size, picture.dtype
            )
            picture.index_add_(0, place, value)
        return picture

    @staticmethod
    def backward(ctx, gradient):
        planes, slack, box, start = ctx.saved_tensors
        to_planes, to_slack = torch.empty_like(planes), torch.empty_like(slack)
        for tile in ctx.tiles:
            own = planes[tile].detach().requires_grad_(), slack[tile].detach().requires_grad_()
            with torch.enable_grad():
                place, value = _draw(*own, box[tile], start[tile], ctx.size, ctx.dtype)
            to_planes[tile], to_slack[tile] = torch.autograd.grad(value, own, gradient[place])
        return to_planes, to_slack, None, None, None, None, None


def _draw(
    planes: Tensor,
    slack: Tensor,
    box: Tensor,
    start: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Values (P,) of all pixels of triangles, and their places (P,) in the flattened pictures.

    start: (T,) places of the first pixels of boxes (T, 4).
    """
    # rows of triangles: which triangle, which row of its box, which pixels of it
    triangle, dy = _runs(box[:, 3])
    slope = planes[:, :, 0][triangle]
    left = planes[:, :, 2][triangle] + planes[:, :, 1][triangle] * dy[:, None]
    first, count = _span(slope.detach(), left.detach(), box[triangle, 2])

    # pixels of rows
    row, dx = _runs(count)
    dx = dx + first[row]
    left, slope = left.to(dtype)[row], slope.to(dtype)[row]
    b0, b1, b2 = (left + slope * dx[:, None].to(dtype)).clamp(min=0).unbind(1)
    x = b0 * b1 * b2
    of = triangle[row]

    largest = _maximum(x, of, len(planes))
    least = _minimum(x, of, box, size)
    # at most 1e-20 of a triangle's largest product of 1/27 matters; float32 would round it to 0
    spread = largest - least + slack.to(dtype).clamp(min=1e-20)
    value = torch.tanh((x - least[of]) / spread[of])
    return (start[triangle] + dy * size[1])[row] + dx, value


def _span(slope: Tensor, left: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """First pixel and number of pixels of rows (R,) in which none of the planes (R, 3) is negative.

    A pixel too many does no harm: its x is 0.
    """
    crossing = -left / slope
    low = torch.where(slope > 0, crossing, -torch.inf).amax(dim=1)
    high = torch.where(slope < 0, crossing, torch.inf).amin(dim=1)
    first = low.clamp(min=0).minimum(width).ceil()
    last = high.clamp(min=-1).minimum(width - 1).floor()
    return first.long(), (last - first + 1).clamp(min=0).long()


def _runs(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Lists of these lengths (N,) behind one another: which list, and the place in it."""
    which = torch.repeat_interleave(lengths)
    start = lengths.cumsum(0) - lengths
    return which, torch.arange(len(which), device=lengths.device) - start[which]


def _maximum(x: Tensor, of: Tensor, count: int) -> Tensor:
    """The largest x (P,) of each triangle (count,), 0 for one that has none."""
    with torch.no_grad():
        largest = x.new_zeros(count).scatter_reduce(0, of, x, "amax")
        place = (x == largest[of]).nonzero()[:, 0]
        at = torch.full_like(largest, -1, dtype=torch.int64).scatter_(0, of[place], place)
        found = at >= 0
    # taken from its pixel again, so that the gradient goes to one pixel alone, as max's does
    return torch.zeros_like(largest).masked_scatter(found, x[at[found]])


def _minimum(x: Tensor, of: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
    """The least x of each triangle over the whole picture: above 0 only where that is covered."""
    height, width = size
    least = x.new_zeros(len(box))
    candidates = (box[:, 2] * box[:, 3] == height * width).nonzero()[:, 0]
    for triangle in candidates.tolist():
        own = x[of == triangle]
        if len(own) == height * width:
            least = least.index_add(0, torch.tensor([triangle], device=x.device), own.amin()[None])
    return least


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
