# SPDX-License-Identifier: Apache-2.0
"""How far the colours of rays are from those of the photo's pixels.

Yen-Chen et al. (2021): equation 1, the squared error of NeRF's fine picture, in RGB; and for
LineMOD, section VIII, the squared error in U and V alone. Y, the brightness, is left out because
the object stands in another light in the photo than in the pictures that the field was made of.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOSSES = ("rgb", "uv")

# Rows U and V of the matrix of BT.601. The paper prints V's red as "0/615", a misprint of 0.615.
UV_FROM_RGB = ((-0.147, -0.289, 0.436), (0.615, -0.515, -0.100))


class PhotometricLossError(ValueError):
    """A loss that does not exist."""


def photometric_loss(rendered: Tensor, observed: Tensor, kind: str = "rgb") -> Tensor:
    """Mean squared difference of colours (..., R, 3) in [0, 1] over rays and channels. -> (...)."""
    difference = rendered - observed
    if kind == "uv":
        difference = rgb_to_uv(difference)
    elif kind != "rgb":
        raise PhotometricLossError(f"loss is {kind!r}: give one of {', '.join(LOSSES)}")
    return difference.square().mean(dim=(-2, -1))


def rgb_to_uv(colour: Tensor) -> Tensor:
    """U and V of YUV, linear in RGB. (..., 3) -> (..., 2)."""
    return colour @ torch.tensor(UV_FROM_RGB).to(colour).T
