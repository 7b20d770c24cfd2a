# SPDX-License-Identifier: Apache-2.0
"""Which pixels of the photos a training looks at: all that matter, in random order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from pose_refiner_ros.fields.field import FieldError

if TYPE_CHECKING:
    from pose_refiner_ros.datasets.posed_images.views import PosedImages

_OUTSIDE = 0.1  # pixels far from the mask, beside each near it


class RayOrder:
    """Batches of pixels by their number: photo after photo, row after row.

    With masks: all pixels in or near one, and a few of the others, which are empty for certain.
    `share` is how much of the error over all pixels is in that of a batch. A batch depends on the
    step and the seed alone, so that a resumed training sees what the uninterrupted one would.
    Raises FieldError where no pixel counts.
    """

    def __init__(self, posed: PosedImages, batch: int, margin: int, seed: int) -> None:
        counts = np.ones(posed.images.shape[:3], bool) if posed.weight is None else posed.weight
        near = counts
        if posed.alpha is not None:
            square = np.ones((2 * margin + 1, 2 * margin + 1), np.uint8)
            near = np.stack([cv2.dilate(alpha, square) > 0 for alpha in posed.alpha]) & counts
        if not near.any():
            raise FieldError("no pixel of the photos shows the object: all masks are empty")
        self._near = np.flatnonzero(near).astype(np.int32)
        self._far = np.flatnonzero(counts & ~near).astype(np.int32)
        self._few = min(len(self._far), int(_OUTSIDE * len(self._near)))
        self._batch, self._seed, self._round, self._order = batch, seed, -1, self._near
        used = len(self._near) + self._few
        self.share = used / (len(self._near) + len(self._far))
        self._batches = max(used // batch, 1)

    def batch(self, step: int) -> np.ndarray:
        """(batch,) int32; fewer only if all pixels together are fewer."""
        turn, index = divmod(step, self._batches)
        if turn != self._round:
            generator = np.random.default_rng((self._seed, turn))
            few = self._far[generator.integers(max(len(self._far), 1), size=self._few)]
            self._order = generator.permutation(np.concatenate([self._near, few]))
            self._round = turn
        return self._order[index * self._batch : (index + 1) * self._batch]
