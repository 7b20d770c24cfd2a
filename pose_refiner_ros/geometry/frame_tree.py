# SPDX-License-Identifier: Apache-2.0
"""Frames that hang on each other and move, as tf2 has them, where there is no tf2: in bags."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from .pose import inverse, rigid

KEEP = 2000  # transforms of a frame
JUMP_BACK_SECONDS = 1.0  # more than transforms come out of order by
HOLD_SECONDS = 0.2  # a moving frame is taken to be where it was last seen, for so long


@dataclass(eq=False)
class _Link:
    """How one frame lies in its parent over time."""

    parent: str
    static: bool
    stamps: list[float] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)


class FrameTree:
    """Transforms between frames at an instant, interpolated."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}

    def add(
        self, parent: str, child: str, stamp: float, parent_from_child: np.ndarray, static: bool
    ) -> None:
        """parent_from_child (4, 4) at a stamp in seconds; a static one holds at all times."""
        link = self._links.get(child)
        if link is None or link.parent != parent or link.static != static:
            link = self._links[child] = _Link(parent, static)
        if static:
            link.stamps.clear()
            link.poses.clear()
        elif link.stamps and stamp < link.stamps[-1] - JUMP_BACK_SECONDS:
            link.stamps.clear()  # time starts again: a bag that loops, a simulation
            link.poses.clear()
        at = bisect_left(link.stamps, stamp)
        link.stamps.insert(at, stamp)
        link.poses.insert(at, np.asarray(parent_from_child, np.float64))
        if len(link.stamps) > KEEP:
            del link.stamps[0], link.poses[0]

    def matrix(self, target: str, source: str, stamp: float) -> np.ndarray:
        """target_from_source (4, 4) at a stamp in seconds. LookupError where it is not known."""
        to_source, to_target = self._ancestors(source), self._ancestors(target)
        common = next((frame for frame in to_source if frame in to_target), None)
        if common is None:
            raise LookupError(f"there is no transform from '{source}' to '{target}'")
        return inverse(self._up(target, common, stamp)) @ self._up(source, common, stamp)

    def _ancestors(self, frame: str) -> list[str]:
        """The frame and all that it hangs on."""
        found = [frame]
        while frame in self._links:
            frame = self._links[frame].parent
            if frame in found:
                raise LookupError(f"the frames {' > '.join([*found, frame])} hang on each other")
            found.append(frame)
        return found

    def _up(self, frame: str, ancestor: str, stamp: float) -> np.ndarray:
        """ancestor_from_frame."""
        result = np.eye(4)
        while frame != ancestor:
            link = self._links[frame]
            result = _at(frame, link, stamp) @ result
            frame = link.parent
        return result


def _at(frame: str, link: _Link, stamp: float) -> np.ndarray:
    """parent_from_frame."""
    stamps, poses = link.stamps, link.poses
    after = bisect_left(stamps, stamp)
    if link.static or (after < len(stamps) and stamps[after] == stamp):
        return poses[min(after, len(poses) - 1)]
    if after in (0, len(stamps)):
        nearest = min(after, len(stamps) - 1)
        if abs(stamps[nearest] - stamp) > HOLD_SECONDS:
            raise LookupError(
                f"'{frame}' was seen {stamps[nearest] - stamp:+.2f} s from the stamp asked for"
            )
        return poses[nearest]
    before, span = after - 1, stamps[after] - stamps[after - 1]
    share = (stamp - stamps[before]) / span
    both = [poses[before], poses[after]]
    turn = Slerp([0.0, 1.0], Rotation.from_matrix([pose[:3, :3] for pose in both]))(share)
    place = (1.0 - share) * both[0][:3, 3] + share * both[1][:3, 3]
    return rigid(turn.as_matrix(), place)
