# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for CUDA. No GPU is needed for that, only the compiler in Warp's wheel."""

import importlib

import pytest
import warp as wp

MODULES = [
    "pose_refiner_ros.rendering.coverage",
    "pose_refiner_ros.rendering.silhouette",
    "pose_refiner_ros.rendering.scene",
    "pose_refiner_ros.rendering.scene_view",
    "pose_refiner_ros.refinement.solver",
]


@pytest.mark.skipif(
    not hasattr(wp, "compile_aot_module"), reason="this Warp cannot compile ahead of time"
)
@pytest.mark.parametrize("name", MODULES)
def test_kernels_compile_for_a_gpu(name, tmp_path):
    importlib.import_module(name)
    try:
        wp.compile_aot_module(name, arch=90, module_dir=tmp_path, use_ptx=True)
    except RuntimeError as error:
        if "NVRTC" in str(error) or "CUDA compiler" in str(error):
            pytest.skip(f"no CUDA compiler here: {error}")
        raise
    (ptx,) = tmp_path.glob("*.ptx")
    assert ".entry" in ptx.read_text()
