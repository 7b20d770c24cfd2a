# SPDX-License-Identifier: Apache-2.0
"""Cameras and views. Imports nothing else of the package.

`camera` has the camera model, `camera_file` reads it from a file, `crop` cuts square crops as
cameras of their own, `views` looks at an object from all around.
"""
