# SPDX-License-Identifier: Apache-2.0
"""Refined 6-DoF poses of known objects from camera images and instance masks.

    from pose_refiner_ros import Camera, Frame, ObjectLibrary, Pipeline, load_field

Each name is imported when it is first asked for.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Camera": "geometry.camera",
    "load_camera": "geometry.camera_file",
    "Frame": "frame",
    "FrameError": "frame",
    "ObjectPose": "frame",
    "ObjectLibrary": "objects.library",
    "ObjectModel": "objects.model",
    "Pipeline": "pipeline",
    "Settings": "settings",
    "load_field": "fields.field_file",
    "SceneLocaliser": "scene_localiser",
    "SceneTracker": "scene_localiser",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
