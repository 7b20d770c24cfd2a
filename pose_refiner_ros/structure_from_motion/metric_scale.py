# SPDX-License-Identifier: Apache-2.0
"""How many metres a unit of structure from motion is: by markers, a length, or a height."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel
from pose_refiner_ros.datasets.posed_images.hull import (
    INSIDE,
    VIEWS,
    box_around_masks,
    cells_of,
    project,
    spread_views,
    visual_hull,
)
from pose_refiner_ros.datasets.posed_images.reading import read_picture
from pose_refiner_ros.datasets.posed_images.views import OPAQUE, PosedImages
from pose_refiner_ros.structure_from_motion.photos import StructureFromMotionError
from pose_refiner_ros.structure_from_motion.triangulate import centre_of, triangulate

_FAMILIES = (
    "APRILTAG_36h11", "APRILTAG_25h9", "APRILTAG_16h5", "ARUCO_ORIGINAL", "4X4_250", "5X5_250",
    "6X6_250", "7X7_250",
)  # fmt: skip
_ASKED = 12  # photos in which all families are looked for
_UNEQUAL = 0.1  # spread of a marker's sides that is no square's
_ROUNDS = 3  # of finer cells of the visual hull
_CLICK = 1.0  # pixels that a point clicked by hand is off by


@dataclass(frozen=True, eq=False)
class Marker:
    """Attributes:
    name: family and number.
    corners: (4, 3) in the model's frame, clockwise as seen from before it, from the top left.
    photos: how many see it.
    """

    name: str
    corners: np.ndarray
    photos: int

    @property
    def sides(self) -> np.ndarray:
        """(4,) lengths."""
        return np.linalg.norm(self.corners - np.roll(self.corners, -1, axis=0), axis=1)


@dataclass(frozen=True)
class MetricScale:
    """Attributes:
    metres: of a unit.
    relative_error: standard deviation, as a share.
    source: what it was measured by, for people.
    """

    metres: float
    relative_error: float
    source: str

    def __str__(self) -> str:
        return f"1 unit = {self.metres:.4g} m ± {self.relative_error:.1%} ({self.source})"


def find_markers(model: SparseModel, pictures: Sequence[Path]) -> list[Marker]:
    """AprilTags or ArUco markers that lie still, those that most photos see first.

    pictures: those of the model's photos. Only markers of the family that is seen most often.
    """
    few = np.unique(np.linspace(0, len(pictures) - 1, _ASKED).round().astype(int))
    greys = {i: _grey(pictures[i]) for i in few}
    counts = [sum(len(_detected(f, grey)) for grey in greys.values()) for f in _FAMILIES]
    family = _FAMILIES[int(np.argmax(counts))]  # the first of equals
    seen: dict[int, dict[int, np.ndarray]] = {}
    for row, picture in enumerate(pictures):
        grey = greys[row] if row in greys else _grey(picture)
        for number, corners in _detected(family, grey).items():
            seen.setdefault(number, {})[row] = corners
    markers = []
    for number, corners in seen.items():
        found = [triangulate(model, {r: c[k] for r, c in corners.items()}) for k in range(4)]
        if None not in found:
            points = np.stack([point for point, _, _ in found])
            marker = Marker(f"{family} {number}", points, min(n for *_, n in found))
            if np.std(marker.sides) < _UNEQUAL * np.mean(marker.sides):
                markers.append(marker)
    return sorted(markers, key=lambda marker: -marker.photos)


def scale_from_markers(markers: Sequence[Marker], size: float) -> MetricScale:
    """By the side of the black square of markers, all of one size in metres.

    Raises:
        StructureFromMotionError: there are no markers, or their sizes differ.
    """
    if not markers:
        raise StructureFromMotionError(
            "no AprilTag or ArUco marker is seen in two of the photos that were placed: show it "
            "larger and from several sides, or give --scale-from length or height"
        )
    means = np.array([marker.sides.mean() for marker in markers])
    usual = np.median(means)
    like = [m for m, mean in zip(markers, means, strict=True) if abs(mean / usual - 1) < _UNEQUAL]
    if len(like) < (len(markers) + 1) // 2:
        raise StructureFromMotionError(
            "the markers in the photos are of several sizes: cover all but those of one size"
        )
    sides = np.concatenate([marker.sides for marker in like])
    error = np.std(sides) / np.mean(sides) / math.sqrt(len(like))
    named = ", ".join(m.name for m in like[:3]) + (" …" if len(like) > 3 else "")
    source = f"{named} in {like[0].photos} photos"
    return MetricScale(float(size / np.mean(sides)), float(error), source)


def scale_from_length(
    model: SparseModel, points: Mapping[int, np.ndarray], length: float
) -> MetricScale:
    """By two points a known length apart, in metres.

    points: (2, 2) pixels of both, by the row of the photo in the model.

    Raises:
        StructureFromMotionError: the pixels of the photos are not those of one point.
    """
    ends = [triangulate(model, {row: pair[k] for row, pair in points.items()}) for k in range(2)]
    for number, end in enumerate(ends):
        if end is None:
            raise StructureFromMotionError(
                f"--points: the {('first', 'second')[number]} points of the photos do not belong "
                "together: click the same place, in photos from different sides"
            )
    (first, off, count), (second, other, _) = ends
    distance = np.linalg.norm(first - second)
    if not distance > 0.0:
        raise StructureFromMotionError("--points: both points are one")
    depth = np.mean([np.linalg.norm(first - centre_of(model, row)) for row in points])
    focal = np.mean([model.values[row]["fl_x"] for row in points])
    error = math.sqrt(2.0) * (_CLICK + max(off, other)) * depth / focal / distance
    return MetricScale(float(length / distance), float(error), f"a length in {count} photos")


def scale_from_height(posed: PosedImages, height: float) -> MetricScale:
    """By the height in metres of an object that masks show, along z.

    Raises:
        StructureFromMotionError: there are no masks, or they contradict each other.
    """
    box = None if posed.alpha is None else box_around_masks(posed)
    for _ in range(_ROUNDS if box is not None else 0):
        hull = visual_hull(posed, box)
        box = hull.box if len(hull.centres) else None
        if box is None:
            break
    if box is None:
        raise StructureFromMotionError(
            "--scale-from height is of the object that masks show, and "
            + ("there are no masks" if posed.alpha is None else "these contradict each other")
            + ": give masks/ beside images/, or --scale-from tag or length"
        )
    heights, cell = _heights_inside(posed, box)
    extent = np.ptp(heights) + cell
    return MetricScale(float(height / extent), float(cell / extent), "the masks' height")


def _heights_inside(posed: PosedImages, box: np.ndarray) -> tuple[np.ndarray, float]:
    """z of the cells whose centres lie inside nearly all masks, without the hull's slack, and the
    height of a cell."""
    cell, points = cells_of(box)
    seen, inside = np.zeros(len(points), int), np.zeros(len(points), int)
    for i in spread_views(posed, VIEWS):
        pixels, valid = project(posed, i, points)
        seen += valid
        inside += valid & (posed.alpha[i][pixels[:, 1], pixels[:, 0]] >= OPAQUE)
    kept = points[(inside >= INSIDE * seen) & (seen > 0)]
    return (kept if len(kept) else points)[:, 2], float(cell[2])


def _grey(path: Path) -> np.ndarray:
    return cv2.cvtColor(read_picture(path)[0], cv2.COLOR_RGB2GRAY)


def _detected(family: str, grey: np.ndarray) -> dict[int, np.ndarray]:
    """(4, 2) pixels of the corners, by the marker's number."""
    parameters = cv2.aruco.DetectorParameters()
    parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, f"DICT_{family}"))
    corners, numbers, _ = cv2.aruco.ArucoDetector(dictionary, parameters).detectMarkers(grey)
    if numbers is None:
        return {}
    return {int(n): c[0].astype(np.float64) for n, c in zip(numbers.ravel(), corners, strict=True)}
