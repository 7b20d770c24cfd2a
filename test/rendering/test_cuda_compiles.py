# SPDX-License-Identifier: Apache-2.0
"""The kernels compile for CUDA. No GPU is needed for that, only the compiler in Warp's wheel."""

import importlib

import pytest
import warp as wp

from pose_refiner_ros.fields.grid_march import march_kernels
from pose_refiner_ros.learning.grid_training_kernels import training_kernels
from pose_refiner_ros.rendering.radiance import trace_kernel, view_kernel

MODULES = [
    "pose_refiner_ros.rendering.coverage",
    "pose_refiner_ros.rendering.scene",
    "pose_refiner_ros.drawing.scene_view",
    "pose_refiner_ros.refinement.solver",
    "pose_refiner_ros.refinement.normal_equations",
    "pose_refiner_ros.objects.surface",
    "pose_refiner_ros.objects.distance_grid",
    "pose_refiner_ros.refinement.terms.depth_kernel",
    "pose_refiner_ros.refinement.terms.silhouette_kernel",
    "pose_refiner_ros.refinement.terms.prior",
    "pose_refiner_ros.refinement.terms.radiance_kernel",
    "pose_refiner_ros.refinement.terms.appearance_kernel",
]


def ptx_of(module, folder) -> str:
    """What the compiler makes of a module for a GPU."""
    try:
        wp.compile_aot_module(module, arch=90, module_dir=folder, use_ptx=True)
    except RuntimeError as error:
        if "NVRTC" in str(error) or "CUDA compiler" in str(error):
            pytest.skip(f"no CUDA compiler here: {error}")
        raise
    (ptx,) = folder.glob("*.ptx")
    return ptx.read_text()


@pytest.mark.skipif(
    not hasattr(wp, "compile_aot_module"), reason="this Warp cannot compile ahead of time"
)
@pytest.mark.parametrize("name", MODULES)
def test_kernels_compile_for_a_gpu(name, tmp_path):
    importlib.import_module(name)
    assert ".entry" in ptx_of(name, tmp_path)


@pytest.mark.skipif(
    not hasattr(wp, "compile_aot_module"), reason="this Warp cannot compile ahead of time"
)
@pytest.mark.parametrize("degree", [0, 2])
def test_rays_are_traced_on_a_gpu_as_well(degree, tmp_path):
    for kernel in (trace_kernel, view_kernel):
        for contracted in (False, True):
            folder = tmp_path / kernel.__name__ / str(contracted)
            assert ".entry" in ptx_of(kernel(degree, contracted).module, folder)


@pytest.mark.skipif(
    not hasattr(wp, "compile_aot_module"), reason="this Warp cannot compile ahead of time"
)
@pytest.mark.parametrize("kernels", [march_kernels, training_kernels])
def test_grids_are_looked_into_and_trained_on_a_gpu_as_well(kernels, tmp_path):
    for name, kernel in kernels(2).items():
        assert ".entry" in ptx_of(kernel.module, tmp_path / name)
