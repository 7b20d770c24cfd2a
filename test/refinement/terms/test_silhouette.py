# SPDX-License-Identifier: Apache-2.0
"""What the term hands to its kernel: masks at each resolution, as the crop's camera sees them."""

import numpy as np
import pytest
from shapes import ell, model, pinhole_camera, pose, silhouette

from pose_refiner_ros.refinement.observation import observe_mask
from pose_refiner_ros.refinement.signed_distance import ROBUST_SHARE
from pose_refiner_ros.refinement.terms.silhouette import SilhouetteTerm

CAMERA = pinhole_camera(320, 400.0)


@pytest.mark.parametrize("depth", [0.35, 0.5, 2.0], ids=["cut", "large", "small"])
def test_all_resolutions_show_the_same(depth):
    """Of several masks at once: the same ray and the photo's end at the same place."""
    thing = model("ell", ell())
    poses = [pose((0.5, 0.2, 0.1), (0.02, -0.01, depth)), pose((0.1, 0.9, 0.4), (0.0, 0.0, 0.8))]
    observed = [observe_mask(silhouette(thing.mesh, at, CAMERA), 1, CAMERA) for at in poses]
    term = SilhouetteTerm([thing], {"ell": thing.box_center}, 4)
    term.observe(observed)
    for arrays, share, number in zip(term._silhouettes, ROBUST_SHARE, range(2), strict=True):
        for slot, seen in enumerate(observed):
            psi, side = seen.distances[number], seen.crop.size
            size, pixel = (getattr(arrays, name).numpy()[slot] for name in ("size", "pixel"))
            assert size == len(psi) and size * pixel == side
            np.testing.assert_array_equal(arrays.distance.numpy()[slot, :size, :size], psi)
            assert arrays.scale.numpy()[slot] == pytest.approx(share * side)
            fx, fy, cx, cy = arrays.pinhole.numpy()[slot]
            x = (np.arange(size) + 0.5) * pixel - 0.5  # of its pixels in those of the crop
            np.testing.assert_allclose(
                fx * (x - seen.crop.pinhole[2]) / seen.crop.pinhole[0] + cx,
                np.arange(size),
                atol=1e-3,
            )
            np.testing.assert_allclose(
                fy * (x - seen.crop.pinhole[3]) / seen.crop.pinhole[1] + cy,
                np.arange(size),
                atol=1e-3,
            )
            bounds = arrays.image_bounds.numpy()[slot]
            np.testing.assert_allclose((bounds + 0.5) * pixel - 0.5, seen.crop.bounds, atol=1e-3)
