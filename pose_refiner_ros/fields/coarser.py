# SPDX-License-Identifier: Apache-2.0
"""Coarser versions of a grid, for pictures of few pixels: what mipmaps are to textures."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .grid import GridField

# A surface so dense that it is opaque however far it is spread would look larger: density is
# capped at this optical depth per coarse voxel first.
CAP = 1.0


def coarser(field: GridField, factor: int) -> GridField:
    """The field with nodes `factor` times as far apart, each the mean of those about it.

    Colours count by their density, and depend on the viewing direction as before.
    """
    if factor == 1:
        return field
    voxel = factor * field.voxel
    index = np.argwhere(field.links)
    values = field.values[field.links[tuple(index.T)]].astype(np.float32)
    density = np.clip(values[:, 0], 0.0, CAP / voxel)
    shape = -(-np.array(field.links.shape) // factor) + 2
    cell = np.ravel_multi_index(tuple((index // factor + 1).T), tuple(shape))
    moments = [
        np.bincount(cell, weights=density * m, minlength=int(np.prod(shape)))
        for m in (np.ones(len(cell), np.float32), *values[:, 1:].T)
    ]
    dense = moments[0] > 0.0
    # nodes about those with density need colours, so that interpolation does not darken them
    occupied = ndimage.binary_dilation(dense.reshape(shape), np.ones((3, 3, 3)))
    total = np.maximum(moments[0], 1e-9)
    coarse = np.stack([moments[0] / factor**3, *(m / total for m in moments[1:])], axis=-1)
    _, nearest = ndimage.distance_transform_edt(~dense.reshape(shape), return_indices=True)
    nearest = np.ravel_multi_index(tuple(nearest), tuple(shape))[occupied]
    rows = coarse[nearest]
    rows[:, 0] = coarse[occupied.ravel(), 0]
    # a cell's mean belongs to the middle of its nodes
    origin = field.origin + 0.5 * (factor - 1) * field.voxel - voxel
    more = {"background": field.background, "device": str(field.device)}
    return GridField.from_nodes(
        occupied, rows, origin, voxel, contraction=field.contraction, **more
    )
