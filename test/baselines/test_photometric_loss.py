# SPDX-License-Identifier: Apache-2.0
"""Squared errors in RGB and in U and V."""

import cv2
import numpy as np
import pytest
import torch

from pose_refiner_ros.baselines.photometric_loss import (
    PhotometricLossError,
    photometric_loss,
    rgb_to_uv,
)


def test_rgb_is_the_mean_squared_error_of_each_batch():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 3, 7, 3))
    found = photometric_loss(torch.tensor(a), torch.tensor(b))
    assert np.allclose(found, ((a - b) ** 2).mean(axis=(1, 2)))


def test_grey_has_no_chroma_and_primaries_have_the_papers():
    assert torch.allclose(rgb_to_uv(torch.full((3,), 0.7)), torch.zeros(2), atol=1e-6)
    expected = torch.tensor([[-0.147, 0.615], [-0.289, -0.515], [0.436, -0.100]])
    assert torch.allclose(rgb_to_uv(torch.eye(3)), expected)


def test_chroma_is_opencvs_up_to_rounding():
    rgb = np.random.default_rng(0).uniform(size=(1, 50, 3)).astype(np.float32)
    opencv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV)[0, :, 1:] - 0.5
    found = rgb_to_uv(torch.tensor(rgb[0])).numpy()
    # OpenCV scales U by 0.492 and V by 0.877, as BT.601 does
    assert np.allclose(found, opencv, atol=2e-3)


def test_brightness_does_not_count_in_uv():
    colours = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    brighter = colours + 0.15
    assert float(photometric_loss(colours, brighter, "uv")) == pytest.approx(0.0, abs=1e-9)
    assert float(photometric_loss(colours, brighter, "rgb")) == pytest.approx(0.15**2)
    redder = colours + torch.tensor([0.1, 0.0, 0.0])
    expected = 0.01 * (0.147**2 + 0.615**2) / 2
    assert float(photometric_loss(colours, redder, "uv")) == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_does_not_exist_is_refused():
    with pytest.raises(PhotometricLossError, match="loss is 'l1': give one of rgb, uv"):
        photometric_loss(torch.zeros(1, 3), torch.zeros(1, 3), "l1")
