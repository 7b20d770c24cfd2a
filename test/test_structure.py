# SPDX-License-Identifier: Apache-2.0
"""Arrows between folders run one way, and rclpy stays in one of them (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pose_refiner_ros"
NAME = PACKAGE.name
# From the bottom up; what stands beside each other knows nothing of each other.
FLOORS = (
    ("warp_start", "warp_threads", "torch_threads", "settings"),
    ("geometry", "files"),
    ("fields",),
    ("rendering",),
    ("objects",),
    ("datasets",),
    ("refinement", "structure_from_motion"),
    ("frame", "tracking", "encoder", "scene_localiser"),
    ("scene", "baselines", "shipped", "pose_search"),
    ("still_objects", "camera_agreement"),
    ("pipeline", "drawing"),
    ("learning",),
    ("evaluation",),
    ("ros",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ROS = {"rclpy", "launch_ros", "rosbags", "tf2_ros"}


def imports_of(path: Path):
    """(module, line) of every import of a file; those for type checkers and those in functions
    included."""
    package = (NAME, *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            for alias in node.names:
                if module == NAME:
                    yield f"{module}.{alias.name}", node.lineno


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_arrows_run_down(room):
    up = []
    for path in FILES:
        if room_of(path) != room:
            continue
        for module, line in imports_of(path):
            parts = module.split(".")
            if parts[0] != NAME or len(parts) < 2 or parts[1] not in FLOOR or parts[1] == room:
                continue
            if FLOOR[parts[1]] >= FLOOR[room]:
                up.append(f"{path.relative_to(PACKAGE)}:{line} -> {parts[1]}")
    assert not up


def test_only_the_ros_folder_knows_ros():
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {module}"
        for path in FILES
        if room_of(path) != "ros"
        for module, line in imports_of(path)
        if module.split(".")[0] in ROS or module.split(".")[0].endswith("_msgs")
    ]
    assert not found


def test_every_folder_of_code_is_installed():
    """A folder without `__init__.py` works from the repository, and is missing elsewhere."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
