# SPDX-License-Identifier: Apache-2.0
"""Blurred versions of a grid, for alignment from coarse to fine."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .grid import GridField
from .grid_kernels import COEFFICIENTS

# A surface that is opaque however far it is spread looks ever larger: density is capped first, at
# this optical depth per sigma. Half keeps the mean opacity of a picture nearly as it was.
CAP = 0.5
NODES_PER_SIGMA = 1.0
FAINT = 1e-3  # optical depth per voxel of the blurred grid below which a node is left out


def blurred(field: GridField, sigma: float) -> GridField:
    """The field seen through a Gaussian of standard deviation `sigma` (metres), on a grid as coarse
    as that allows.

    Where front and back of something thin run into each other, a ray shall still see the side that
    it comes to. So each surface counts by 1 + n·d, for viewing directions d and its normal n, into
    the object; the mean colour under such weights is, to first order, linear in d (degree 1).
    """
    factor = max(int(sigma / (NODES_PER_SIGMA * field.voxel)), 1)
    voxel = factor * field.voxel
    margin = int(np.ceil(3.0 * sigma / voxel)) + 1
    index = np.argwhere(field.links)
    rows = field.links[tuple(index.T)]
    density = np.clip(field.values[rows, 0], 0.0, CAP / sigma)
    keep = density > 0.0
    index, rows, density = index[keep], rows[keep], density[keep]
    normal = inward_normals(field, index)
    colour = seen_from_outside(field, rows, normal)

    # the mean of factor^3 nodes, then a Gaussian, of density times each of these
    turned = (normal[:, :, None] * colour[:, None, :]).reshape(-1, 9)
    moments = np.concatenate([np.ones((len(rows), 1)), colour, normal, turned], axis=1)
    shape = -(-np.array(field.links.shape) // factor) + 2 * margin
    cell = np.ravel_multi_index(tuple((index // factor + margin).T), tuple(shape))
    # averaging over cells has blurred a little already
    left = np.sqrt(max((sigma / voxel) ** 2 - (1.0 - factor**-2) / 12.0, 0.0))
    spread = []
    for moment in moments.T:
        total = np.bincount(cell, weights=density * moment, minlength=int(np.prod(shape)))
        total = total.reshape(shape).astype(np.float32) / factor**3
        spread.append(ndimage.gaussian_filter(total, left, truncate=3.0))
    occupied = ndimage.binary_dilation(spread[0] * voxel > FAINT, np.ones((3, 3, 3)))
    spread = np.stack([s[occupied] for s in spread], axis=-1)
    density = spread[:, 0]
    mean = spread[:, 1:] / np.maximum(density, 1e-6)[:, None]
    colour, normal, turned = mean[:, :3], mean[:, 3:6], mean[:, 6:].reshape(-1, 3, 3)
    slope = turned - normal[:, :, None] * colour[:, None, :]
    values = np.concatenate([density[:, None], colour, slope.reshape(-1, 9)], axis=1)
    # a cell's mean belongs to the middle of its nodes
    origin = field.origin + 0.5 * (factor - 1) * field.voxel - margin * voxel
    return GridField.from_nodes(
        occupied, values, origin, voxel, background=field.background, device=str(field.device)
    )


def inward_normals(field: GridField, index: np.ndarray) -> np.ndarray:
    """(M, 3) unit gradient of density at nodes (M, 3): into the object; 0 where there is none."""
    last = np.array(field.links.shape) - 1
    gradient = np.zeros((len(index), 3), np.float32)
    for a, step in enumerate(np.eye(3, dtype=int)):
        after, before = np.minimum(index + step, last), np.maximum(index - step, 0)
        gradient[:, a] = _density(field, after) - _density(field, before)
    return gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)


def seen_from_outside(field: GridField, rows: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(M, 3) what nodes in rows (M,) look like to someone who looks straight at their surface."""
    x, y, z = normal.T
    basis = (np.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1)
    values = field.values[rows]
    colour = np.zeros((len(rows), 3), np.float32)
    for k in range(COEFFICIENTS[field.degree]):
        colour += basis[k][:, None] * values[:, 1 + 3 * k : 4 + 3 * k]
    return np.clip(colour, 0.0, 1.0)


def _density(field: GridField, index: np.ndarray) -> np.ndarray:
    return np.maximum(field.values[field.links[tuple(index.T)], 0], 0.0)
