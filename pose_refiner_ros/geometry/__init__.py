# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms and cameras. Imports nothing else of the package.

`se3` has the algebra of poses, `camera` the camera model, `camera_file` reads it from a file,
`crop` cuts square crops as cameras of their own.
"""
