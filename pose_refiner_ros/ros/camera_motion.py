# SPDX-License-Identifier: Apache-2.0
"""How a camera moves in a frame that stands still, by TF. No ROS in here."""

import time

import numpy as np

from pose_refiner_ros.geometry.pose import inverse, rotation_angle
from pose_refiner_ros.ros.conversions import nanoseconds

# What no robot does: the fixed frame was set anew (a map that closes a loop, a simulation that
# starts again).
FASTEST, FASTEST_TURN = 60.0, 10.0  # m/s, rad/s
SLACK, SLACK_TURN = 0.2, 0.2  # m, rad: of two stamps that nearly meet
WAIT, RETRY_SECONDS = 0.1, 1.0  # for a transform that is on its way; and where it did not come


class CameraJump(LookupError):
    """The camera is where it cannot be; the text says how far off."""


class CameraMotion:
    """Follows one camera from frame to frame."""

    def __init__(self):
        self._known = None  # (stamp in nanoseconds, the two frames, fixed_from_camera), the last
        self._was_known = False  # in the frame before
        self._failed = -np.inf  # when a transform was waited for in vain

    def next(self, header, fixed_frame, transforms):
        """(fixed_from_camera, camera_from_before) at a header, both (4, 4); the second is None
        where the frame before has none. LookupError where TF does not tell, CameraJump where what
        it tells cannot be."""
        was_known, self._was_known = self._was_known, False
        frames, stamp = (header.frame_id, fixed_frame), nanoseconds(header.stamp)
        if stamp == 0:
            raise LookupError("the masks have no stamp")
        wait = 0.0 if time.monotonic() - self._failed < RETRY_SECONDS else WAIT
        try:
            now = transforms.matrix(fixed_frame, header.frame_id, header.stamp, wait)
        except LookupError:
            if wait:  # else it may have come a moment later
                self._failed = time.monotonic()
            raise
        before, self._known, self._was_known = self._known, (stamp, frames, now), True
        if before is None or before[1] != frames or stamp <= before[0]:
            return now, None
        moved, seconds = inverse(now) @ before[2], (stamp - before[0]) / 1e9
        away, turn = np.linalg.norm(moved[:3, 3]), float(rotation_angle(moved[:3, :3]))
        if away > FASTEST * seconds + SLACK or turn > FASTEST_TURN * seconds + SLACK_TURN:
            raise CameraJump(
                f"the camera jumped by {away:.2f} m and {np.degrees(turn):.0f} degrees in "
                f"'{fixed_frame}' within {seconds:.2f} s; take a frame that does not jump, such as "
                "odom"
            )
        return now, moved if was_known else None
