# SPDX-License-Identifier: Apache-2.0
"""Where the files of config/ lie: in the repository, or where they were installed."""

import sys
from pathlib import Path

PACKAGE = "pose_refiner_ros"


def config_file(name):
    """The path of a file in config/, or None."""
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    return None


def _folders():
    yield Path(__file__).resolve().parents[2] / "config"
    try:
        from ament_index_python.packages import get_package_share_directory

        yield Path(get_package_share_directory(PACKAGE)) / "config"
    except (ImportError, LookupError):
        pass
    yield Path(sys.prefix) / "share" / PACKAGE / "config"


def fastdds_environment(environment):
    """The variables that give Fast DDS enough shared memory for images; {} if the user has a
    profile of their own. Other middleware takes no notice of them."""
    names = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
    path = config_file("fastdds.xml")
    if path is None or any(environment.get(name) for name in names):
        return {}
    return dict.fromkeys(names, str(path))
