# SPDX-License-Identifier: Apache-2.0
"""The node with a pipeline that knows its answers at once: node tests are about messages.

Some labels make it misbehave, see StubPipeline.process.
"""

import sys
import time

import numpy as np

RAISES = 66  # process() raises
SLOW = 77  # process() takes SLOW_SECONDS
WEAK = 88  # it fits badly: score 0.1, else 0.9
SLOW_SECONDS = 0.3


class StubPipeline:
    """Finds every object one metre away, upright, where its mask is."""

    device = "cpu"
    encoder = None

    def __init__(self, library, parameters):
        self.library = library
        from pose_refiner_ros.pipeline import Settings

        self.settings = Settings()

    def warm_up(self):
        time.sleep(0.2)

    def classes_of(self, frame, report):
        """What the encoder says of labels without a name."""
        return {}

    def process(self, frame, report=None, follow=None):
        from pose_refiner_ros.frame import ObjectPose

        if follow is not None:
            follow(self.classes_of(frame, report))

        if RAISES in frame.labels:
            raise RuntimeError("the stub was told to raise")
        if SLOW in frame.labels:
            time.sleep(SLOW_SECONDS)
        poses = []
        for label, name in frame.labels.items():
            rows, columns = np.nonzero(frame.masks == label)
            matrix = np.eye(4)
            x, y = frame.camera.undistort(np.array([columns.mean(), rows.mean()]))
            matrix[:3, 3] = (x, y, 1.0)
            poses.append(
                ObjectPose(
                    label=label,
                    name=name,
                    camera_from_object=matrix,
                    covariance=np.diag([1e-4] * 3 + [1e-3] * 3),
                    score=0.1 if label == WEAK else 0.9,
                    quality="poor" if label == WEAK else "good",
                    iou=0.1 if label == WEAK else 0.9,
                    contour_rms_px=0.5,
                    cost=1.0,
                    iterations=5,
                    reason="converged",
                    visible_fraction=1.0,
                    alternatives=[],
                )
            )
        return poses


if __name__ == "__main__":
    from pose_refiner_ros.ros.node import main

    sys.exit(main(pipeline_factory=StubPipeline))
