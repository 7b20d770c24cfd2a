# SPDX-License-Identifier: Apache-2.0
"""The encoder of Palazzi et al. 2018 (section 3.2): from a window to class and pose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .pose_heads import HEADS, PoseHypotheses

SLOPE = 0.2  # of the leaky rectifiers
KERNELS = (5, 5, 5, 3, 3)
CHANNELS_IN = {"mask": 2, "rgb_mask": 5}


class EncoderError(ValueError):
    """An encoder that cannot be made or loaded as asked."""


@dataclass(frozen=True)
class EncoderSettings:
    """What makes one encoder differ from another; stored with its weights.

    classes: their names, in the order of the outputs. pose_head: continuous or euler_cosine (the
    paper's). input: mask or rgb_mask. window: crop (around the mask, for any camera) or image (the
    whole photo, as in the paper: for the camera it was trained with). size: side of the input in
    pixels. channels: of the five convolutions. dense: neurons of each branch's hidden layer.
    dropout: after the hidden layers of the class branch and of the pose branch.
    """

    classes: tuple[str, ...]
    pose_head: str = "continuous"
    input: str = "mask"
    window: str = "crop"
    size: int = 64
    channels: tuple[int, ...] = (32, 64, 128, 256, 256)
    dense: int = 512
    dropout: tuple[float, float] = (0.5, 0.1)

    def __post_init__(self) -> None:
        for name, choices in (
            ("pose_head", HEADS),
            ("input", CHANNELS_IN),
            ("window", ("crop", "image")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise EncoderError(f"{name} is {value!r}; choose {' or '.join(choices)}")
        if not self.classes:
            raise EncoderError("the encoder has no classes; name at least one")
        if isinstance(self.classes, str) or len(set(self.classes)) < len(self.classes):
            raise EncoderError(f"classes is {self.classes!r}; give each name once, as a tuple")
        if len(self.channels) != len(KERNELS) or min(self.channels) < 1:
            raise EncoderError(
                f"channels is {self.channels}; the encoder has {len(KERNELS)} convolutions"
            )
        if self.size < 2 ** len(KERNELS) or self.size % 2 ** len(KERNELS):
            raise EncoderError(f"size is {self.size}; it must be a multiple of {2 ** len(KERNELS)}")
        if self.dense < 1:
            raise EncoderError(f"dense is {self.dense}; a hidden layer has at least one neuron")
        if len(self.dropout) != 2 or not all(0.0 <= share < 1.0 for share in self.dropout):
            raise EncoderError(
                f"dropout is {self.dropout}; give two shares from 0 to below 1, for the branches "
                "of class and of pose"
            )


@dataclass
class EncoderOutput:
    """class_logits: (B, C); poses: K hypotheses each."""

    class_logits: Tensor
    poses: PoseHypotheses


class Encoder(nn.Module):
    """Five stride-2 convolutions, then a dense branch for the class and one for the pose."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        layers, channels = [], CHANNELS_IN[settings.input]
        for kernel, wider in zip(KERNELS, settings.channels, strict=True):
            layers += [nn.Conv2d(channels, wider, kernel, 2, kernel // 2), nn.LeakyReLU(SLOPE)]
            channels = wider
        self.features = nn.Sequential(*layers, nn.Flatten())
        wide = channels * (settings.size // 2 ** len(KERNELS)) ** 2

        def dense(dropout: float) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(wide, settings.dense), nn.LeakyReLU(SLOPE), nn.Dropout(dropout)
            )

        self.class_branch = nn.Sequential(
            dense(settings.dropout[0]), nn.Linear(settings.dense, len(settings.classes))
        )
        self.pose_branch = dense(settings.dropout[1])
        self.pose_head = HEADS[settings.pose_head](settings.dense)

    def forward(self, windows: Tensor, pinhole: Tensor) -> EncoderOutput:
        """windows: (B, C, S, S) uint8, see `mask_window`; pinhole: (B, 4) of each window."""
        features = self.features(self.prepared(windows))
        classes = self.class_branch(features).float()
        poses = self.pose_head(self.pose_branch(features), pinhole.float(), self.settings.size)
        return EncoderOutput(classes, poses)

    def prepared(self, windows: Tensor) -> Tensor:
        """uint8 channels as numbers from -1 to 1 for the mask, 0 to 1 for the others."""
        x = windows.to(self.features[0].weight.dtype) / 255.0
        return torch.cat([2.0 * x[:, :1] - 1.0, x[:, 1:]], 1).contiguous(
            memory_format=torch.channels_last
        )

    def loss(
        self, found: EncoderOutput, class_index: Tensor, truth: Tensor, pinhole: Tensor
    ) -> dict[str, Tensor]:
        """Parts of the training loss (paper eq. 1-3): cross entropy and those of the pose head.
        class_index: (B,); truth: camera_from_object (B, 4, 4)."""
        parts = self.pose_head.loss(found.poses, truth, pinhole.float(), self.settings.size)
        parts["class"] = nn.functional.cross_entropy(found.class_logits, class_index)
        return parts
