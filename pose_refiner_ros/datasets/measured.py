# SPDX-License-Identifier: Apache-2.0
"""Depth images and point clouds from files."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from pose_refiner_ros.geometry.pose import transform_problem

_PCD_TYPES = {"F": "f", "I": "i", "U": "u"}


class MeasuredError(ValueError):
    """A file of depths or points that cannot be read; the message says why and what to do."""


def read_depth(path: Path) -> np.ndarray:
    """(H, W) depths as the file has them: PNG or TIFF of 16 bit whole numbers or floats, or .npy.

    Raises MeasuredError.
    """
    if path.suffix.lower() == ".npy":
        depth = _numpy(path)
    else:
        data = _bytes(path)
        picture = (
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
        )
        if picture is None:
            raise MeasuredError(f"depth {path} is not a picture that OpenCV can read")
        depth = picture
    if depth.ndim != 2 or depth.dtype == np.uint8:
        raise MeasuredError(
            f"depth {path} has shape {depth.shape} of {depth.dtype}; it must be one channel of 16 "
            "bit whole numbers or floats (a coloured picture of depths has lost them)"
        )
    return depth


def read_points(path: Path) -> np.ndarray:
    """(N, 3) float32 points of .pcd (ascii, binary, compressed), .ply, .bin (KITTI: x, y, z and
    intensity) or .npy, without those that are not finite, in the file's axes.

    Raises MeasuredError.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        points = _numpy(path)
    elif suffix == ".bin":
        data = _bytes(path)
        if len(data) % 16:
            raise MeasuredError(
                f"points {path}: {len(data)} bytes are no whole number of x, y, z, i"
            )
        points = np.frombuffer(data, np.float32).reshape(-1, 4)
    elif suffix == ".ply":
        points = _ply(path)
    elif suffix == ".pcd":
        points = _pcd(path, _bytes(path))
    else:
        raise MeasuredError(f"points {path}: give a .pcd, .ply, .bin (KITTI) or .npy file")
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "iuf":
        raise MeasuredError(
            f"points {path} have shape {points.shape} of {points.dtype}; they must be (N, 3) "
            "numbers"
        )
    points = np.asarray(points[:, :3], np.float32)
    return points[np.isfinite(points).all(axis=1)]


def read_transform(path: Path) -> np.ndarray:
    """(4, 4) of a text file with 16 or 12 numbers, row by row. Raises MeasuredError."""
    try:
        numbers = [float(n) for n in re.split(r"[\s,;\[\]]+", _bytes(path).decode()) if n]
    except ValueError as error:
        raise MeasuredError(f"transform {path} is not made of numbers: {error}") from error
    if len(numbers) not in (12, 16):
        raise MeasuredError(f"transform {path} has {len(numbers)} numbers; give 4x4 or 3x4")
    transform = np.eye(4)
    transform.ravel()[: len(numbers)] = numbers
    if problem := transform_problem(transform):
        raise MeasuredError(f"transform {path}: {problem}")
    return transform


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MeasuredError(f"{path} cannot be read: {error.strerror}") from error


def _numpy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise MeasuredError(f"{path} cannot be read as a numpy array: {error}") from error


def _ply(path: Path) -> np.ndarray:
    import trimesh

    _bytes(path)  # says why, where it cannot be read
    try:
        loaded = trimesh.load(path, process=False)
        return np.asarray(getattr(loaded, "vertices", np.zeros((0, 3))))  # else an empty scene
    except Exception as error:
        raise MeasuredError(f"points {path} are no PLY that trimesh can read: {error}") from error


def _pcd(path: Path, data: bytes) -> np.ndarray:
    """x, y, z of a point cloud of PCL, version 0.7."""
    header = re.match(rb"(?s)(.*?\nDATA +(\w+)[^\n]*\n)", data)
    if header is None:
        raise MeasuredError(f"points {path}: no line DATA, so it is no PCD file")
    fields = {}
    for line in header[1].decode(errors="replace").splitlines():
        key, *values = line.split() or [""]
        fields[key] = values
    try:
        counts = [int(n) for n in fields.get("COUNT", ["1"] * len(fields["FIELDS"]))]
        row = np.dtype(
            [
                (f"{name}_{i}", f"<{_PCD_TYPES[kind]}{size}", (count,))
                for i, (name, kind, size, count) in enumerate(
                    zip(fields["FIELDS"], fields["TYPE"], fields["SIZE"], counts, strict=True)
                )
            ]
        )
        number = int(fields["POINTS"][0])
        columns = [fields["FIELDS"].index(axis) for axis in "xyz"]
        body = data[header.end() :]
        kind = header[2]
        if kind == b"ascii":
            first = np.cumsum([0, *counts])
            table = np.array(body.split(), float).reshape(number, first[-1])
            return table[:, [first[c] for c in columns]]
        if kind == b"binary":
            rows = np.frombuffer(body, row, number)
            return np.stack([rows[row.names[c]][:, 0] for c in columns], axis=1)
        if kind == b"binary_compressed":
            packed, size = np.frombuffer(body, "<u4", 2)
            body = _lzf(body[8 : 8 + packed], int(size))
            first = np.cumsum([0, *(number * row[n].itemsize for n in row.names)])
            own = [np.frombuffer(body, row[c].base, number, first[c]) for c in columns]
            return np.stack(own, axis=1)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MeasuredError(f"points {path} are no PCD that can be read: {error}") from error
    raise MeasuredError(f"points {path}: DATA {kind.decode()} is not known")


def _lzf(data: bytes, size: int) -> bytes:
    """Unpacked as liblzf packs: runs of bytes, and copies of what came before."""
    out, i = bytearray(), 0
    while i < len(data):
        control = data[i]
        i += 1
        if control < 32:
            out += data[i : i + control + 1]
            i += control + 1
            continue
        length = control >> 5
        if length == 7:
            length += data[i]
            i += 1
        begin = len(out) - ((control & 31) << 8) - data[i] - 1
        i += 1
        if begin < 0:
            raise ValueError("a copy of what is before the beginning")
        for k in range(begin, begin + length + 2):
            out.append(out[k])
    if len(out) != size:
        raise ValueError(f"{len(out)} bytes were packed, {size} announced")
    return bytes(out)
