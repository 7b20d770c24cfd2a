# SPDX-License-Identifier: Apache-2.0
"""Writes the meshes of the demo's object library."""

from pose_refiner_ros.datasets.vehicles import write_demo_meshes

if __name__ == "__main__":
    print("\n".join(f"wrote {path}" for path in write_demo_meshes()))
