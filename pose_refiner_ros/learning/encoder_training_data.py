# SPDX-License-Identifier: Apache-2.0
"""Endless training pictures, drawn as they are needed: nothing lies on disk.

A sample is a vehicle, a pose, a photo's worth of silhouette in which parts may be hidden and the
mask may be as rough as a network draws it, and of that the window that the encoder will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.utils.data import IterableDataset

from pose_refiner_ros.encoder.network import EncoderSettings
from pose_refiner_ros.encoder.window import mask_window, window_at
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.warp_start import start_warp_quietly

# Poses of vehicles as a camera sees them: (count, rng) -> camera_from_object (N, 4, 4).
PoseSampler = Callable[[int, np.random.Generator], np.ndarray]
# A photo of a vehicle: (its index, camera_from_object (4, 4), pinhole (4,), size, rng) ->
# (size, size, 3) uint8 RGB.
Painter = Callable[[int, np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]

CHUNK = 512  # samples that are drawn together
PATCH_SIZES = (40, 56, 80, 112, 160)  # pixels across the part of a photo that shows the vehicle
MIN_PIXELS = 40
MIN_SHOWN = 0.35  # share of the silhouette that must be left


@dataclass(frozen=True)
class Disturbance:
    """What makes masks worse than drawn ones; each number a share of the samples."""

    truncated: float = 0.1  # beyond the photo's border
    occluded: float = 0.15  # behind another instance
    rough: float = 0.35  # with a wavy border


ROUGH = Disturbance()
CLEAN = Disturbance(0.0, 0.0, 0.0)


@dataclass(eq=False)
class VehicleWindows(IterableDataset):
    """Batches of (windows, pinhole, camera_from_object, class_index), without end.

    meshes with class_index (M,) of each; poses: samplers and the share of each; batch: samples in
    a batch; photo: side and pinhole (4,) of whole photos, for the window `image`; paint: makes
    photos, for the input `rgb_mask` (hundreds a second instead of thousands). Classes are drawn
    equally often.
    """

    settings: EncoderSettings
    meshes: Sequence[Mesh]
    class_index: Sequence[int]
    poses: Sequence[tuple[PoseSampler, float]]
    batch: int
    seed: int = 0
    disturbance: Disturbance = ROUGH
    photo: tuple[int, np.ndarray] | None = None
    paint: Painter | None = None

    def __post_init__(self) -> None:
        self.class_index = np.asarray(self.class_index)
        if (self.settings.input == "rgb_mask") != (self.paint is not None):
            raise ValueError("colour pictures are painted for the input rgb_mask, and only for it")

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        worker = torch.utils.data.get_worker_info()
        number = 0 if worker is None else worker.id
        if worker is not None:
            cv2.setNumThreads(1)
            start_warp_quietly()
        rng = np.random.default_rng([self.seed, number])
        draw = SilhouetteArtist(self.meshes)
        held: list[tuple] = []
        while True:
            held += self.chunk(rng, draw)
            while len(held) >= self.batch:
                part, held = held[: self.batch], held[self.batch :]
                columns = (torch.from_numpy(np.stack(c)) for c in zip(*part, strict=True))
                windows, pinhole, pose, index = columns
                yield windows, pinhole.float(), pose.float(), index

    def chunk(self, rng: np.random.Generator, draw: SilhouetteArtist) -> list[tuple]:
        """Up to CHUNK samples; those of which too little is to be seen are left out."""
        classes = np.unique(self.class_index)
        wanted = classes[rng.integers(len(classes), size=CHUNK)]
        mesh = np.empty(CHUNK, np.int64)
        for one in classes:
            (chosen,) = np.nonzero(wanted == one)
            mesh[chosen] = rng.choice(np.nonzero(self.class_index == one)[0], size=len(chosen))
        poses = self._sample_poses(rng)
        if self.settings.window == "image":
            return self._whole_photos(rng, draw, mesh, poses)
        return self._crops(rng, draw, mesh, poses)

    def _sample_poses(self, rng: np.random.Generator) -> np.ndarray:
        shares = np.array([share for _, share in self.poses])
        counts = rng.multinomial(CHUNK, shares / shares.sum())
        parts = [sample(n, rng) for (sample, _), n in zip(self.poses, counts, strict=True)]
        return rng.permutation(np.concatenate(parts))

    def _whole_photos(self, rng, draw, mesh, poses) -> list[tuple]:
        size, pinhole = self.photo
        masks = draw(mesh, poses, np.broadcast_to(pinhole, (len(mesh), 4)), size)
        samples = []
        for i, mask in enumerate(masks):
            if np.count_nonzero(mask) < MIN_PIXELS:
                continue
            image = self._photo(mesh[i], poses[i], pinhole, size, rng)
            window, camera = window_at(mask, None, pinhole, self.settings.size, 0, 0, size, image)
            samples.append((window, camera, poses[i], self.class_index[mesh[i]]))
        return samples

    def _photo(self, mesh, pose, pinhole, size, rng) -> np.ndarray | None:
        return None if self.paint is None else self.paint(mesh, pose, pinhole, size, rng)

    def _crops(self, rng, draw, mesh, poses) -> list[tuple]:
        size = int(rng.choice(PATCH_SIZES))
        low, high, usable = draw.extent(mesh, poses)
        mesh, poses, low, high = mesh[usable], poses[usable], low[usable], high[usable]
        count = len(mesh)
        # the patch: the vehicle with some room about it, or partly beyond the photo's border
        side = (high - low).max(1) * rng.uniform(1.35, 1.6, count)
        centre = (low + high) / 2
        cut = rng.random(count) < self.disturbance.truncated
        centre[cut] += rng.uniform(-0.5, 0.5, (cut.sum(), 2)) * side[cut, None]
        focal = size / side
        pinhole = np.concatenate(
            [focal[:, None], focal[:, None], (size - 1) / 2 - centre * focal[:, None]], 1
        )
        masks = draw(mesh, poses, pinhole, size)
        whole = np.count_nonzero(masks, axis=(1, 2))
        hidden = rng.random(count) < self.disturbance.occluded
        rough = rng.random(count) < self.disturbance.rough
        samples = []
        for i, mask in enumerate(masks):
            unknown = None
            if hidden[i]:
                unknown = occluder(mask, rng)
                mask = mask & (1 - unknown)
            if rough[i]:
                mask = roughened(mask, unknown, rng)
            if np.count_nonzero(mask) < max(MIN_PIXELS, MIN_SHOWN * whole[i]):
                continue
            image = self._photo(mesh[i], poses[i], pinhole[i], size, rng)
            margin = rng.uniform(0.05, 0.15)
            window, camera = mask_window(
                mask, unknown, pinhole[i], self.settings.size, margin, image
            )
            samples.append((window, camera, poses[i], self.class_index[mesh[i]]))
        return samples


class SilhouetteArtist:
    """Draws silhouettes of a set of meshes, thousands a second."""

    def __init__(self, meshes: Sequence[Mesh], device: str = "cpu") -> None:
        from pose_refiner_ros.rendering.mesh_batch import MeshBatch

        self.batch = MeshBatch(list(meshes), device)
        self.corners = np.stack([mesh.box_corners for mesh in meshes])  # (M, 8, 3)

    def __call__(self, mesh, poses, pinhole, size) -> np.ndarray:
        """(N, size, size) uint8 0/1: meshes (N,) at poses (N, 4, 4) by pinhole cameras (N, 4)."""
        from pose_refiner_ros.rendering.draw import draw

        return draw(self.batch, mesh, poses, pinhole, size, near=0.05)

    def extent(self, mesh, poses) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Box (N, 2), (N, 2) around the projected boxes of the meshes, x/z and y/z, and which of
        them (N,) lie in front of the camera."""
        points = self.corners[mesh] @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
        usable = points[..., 2].min(1) > 0.1
        with np.errstate(divide="ignore", invalid="ignore"):
            plane = points[..., :2] / points[..., 2:]
        return plane.min(1), plane.max(1), usable


def occluder(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8 0/1: something in front of the vehicle: a post, a box, another vehicle."""
    x, y, width, height = cv2.boundingRect(mask)
    picture = np.zeros_like(mask)
    kind = rng.integers(3)
    centre = (x + rng.uniform(-0.1, 1.1) * width, y + rng.uniform(0.0, 1.2) * height)
    if kind == 0:  # a post
        half = max(0.5, rng.uniform(0.01, 0.06) * width)
        picture[:, max(int(centre[0] - half), 0) : max(int(centre[0] + half) + 1, 0)] = 1
    elif kind == 1:
        axes = (rng.uniform(0.1, 0.4) * width, rng.uniform(0.1, 0.5) * height)
        cv2.ellipse(picture, (centre, (2 * axes[0], 2 * axes[1]), rng.uniform(0, 180)), 1, -1)
    else:
        half = rng.uniform(0.1, 0.35, 2) * (width, height)
        corner = np.array([centre - half, centre + half]).astype(int)
        cv2.rectangle(picture, tuple(map(int, corner[0])), tuple(map(int, corner[1])), 1, -1)
    return picture


def roughened(mask: np.ndarray, unknown: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """The mask with its border moved in and out by some pixels or percent, alike over a stretch."""
    size = mask.shape[0]
    reach = rng.uniform(0.3, 1.5) * max(1.0, size / 80)
    cells = int(rng.integers(6, 24))
    noise = rng.standard_normal((cells, cells)).astype(np.float32).clip(-1.5, 1.5)
    noise = cv2.resize(noise, mask.shape[::-1], interpolation=cv2.INTER_CUBIC)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), reach)
    moved = (soft + 0.25 * noise > 0.5).view(np.uint8)
    return moved if unknown is None else moved & (1 - unknown)
