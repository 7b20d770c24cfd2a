# SPDX-License-Identifier: Apache-2.0
"""Table I of iNeRF (2021): fields from photos of which a share has poses; the rest is found.

Differences: poses of the rest are searched for from the posed cameras alone; `starts="perturbed"`
begins, as the paper does, near the true ones. Objects with masks are measured as well as scenes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pose_refiner_ros.datasets.posed_images import PosedImages
from pose_refiner_ros.evaluation.inerf_protocol import (
    RIGHT_DEG,
    RIGHT_M,
    errors,
    perturbed,
    perturbed_camera,
    right,
)
from pose_refiner_ros.evaluation.report import Progress, silent
from pose_refiner_ros.fields.grid import GridField
from pose_refiner_ros.learning.field_photos import field_psnr
from pose_refiner_ros.learning.grid_training import GridOptions, train_grid
from pose_refiner_ros.learning.self_supervision import (
    HYPOTHESES,
    RIVAL,
    SIGMA,
    SLACK,
    self_supervise,
)

STARTS = ("posed", "perturbed")
_WITH = ("psnr_with", "estimated", "right", "kept", "kept_right", "seconds_with",
         "median_rotation_error_deg", "worst_rotation_error_deg", "median_translation_error_m",
         "worst_translation_error_m")  # fmt: skip


def label_shares(
    data: PosedImages,
    test: PosedImages,
    shares: Sequence[float] = (1.0, 0.5, 0.25),
    train: Callable[[PosedImages], GridField] | None = None,
    starts: str = "posed",
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
    scene: bool = False,
) -> dict[str, Any]:
    """Quality of fields by the share of photos whose poses are given.

    data: the training photos with all their poses, in the size to train at; test: photos to measure
    on; train: makes a field of photos, a grid with GridOptions() if not given; starts: where the
    search for the others begins: posed, at the posed cameras; perturbed, at the true pose turned
    and moved as in the protocol of objects, or of scenes.

    JSON-able. "rule": which poses are kept, in words; "rows", for each share: labelled, estimated,
    right (under 5 degrees and 5 cm), kept, kept_right: how many photos; psnr_without, psnr_with:
    dB, mean of the test photos; errors of the kept; seconds. With all poses there is nothing to
    estimate, and what would follow from it is None. Raises FieldError for too few photos.
    """
    if starts not in STARTS:
        raise ValueError(f"starts is {starts!r}; choose {' or '.join(STARTS)}")
    train = train or (lambda photos: train_grid(photos, GridOptions(), device))

    def row(share: float) -> dict[str, Any]:
        count = max(round(share * len(data)), 2)
        chosen = np.linspace(0, len(data) - 1, count).round().astype(int)
        posed = data.subset(chosen)
        rest = data.subset(np.setdiff1d(np.arange(len(data)), chosen))

        def log(what: str, done: int, total: int) -> None:
            progress(f"{100 * share:.0f} % of poses: {what}", done, total)

        begun = time.monotonic()
        log("field of these alone", 0, 1)
        alone = train(posed)
        seconds = time.monotonic() - begun
        log("field of these alone", 1, 1)
        figures = {
            "share": share,
            "labelled": len(posed),
            "psnr_without": float(field_psnr(alone, test).mean()),
            "seconds_without": seconds,
            **dict.fromkeys(_WITH),
        }
        if not len(rest):
            return figures
        truths, rough = rest.camera_from_object, np.full_like(rest.camera_from_object, np.nan)
        if starts == "perturbed":
            rng = np.random.default_rng(seed)
            moved = perturbed_camera if scene else perturbed
            rough = np.stack([moved(truth, rng) for truth in truths])
        begun = time.monotonic()
        field, found = self_supervise(
            posed, replace(rest, camera_from_object=rough), train,
            hypotheses=HYPOTHESES if starts == "posed" else 0, device=device, progress=log,
        )  # fmt: skip
        seconds = time.monotonic() - begun
        off = errors(np.stack([e.camera_from_object for e in found.estimates]), truths)
        is_right, kept = right(off), list(found.poses)
        figures |= {
            "psnr_with": float(field_psnr(field, test).mean()),
            "estimated": len(truths),
            "right": int(is_right.sum()),
            "kept": len(kept),
            "kept_right": int(is_right[kept].sum()),
            "seconds_with": seconds,
        }
        for name in ("rotation_deg", "translation_m") if kept else ():
            what, unit = name.split("_")
            figures[f"median_{what}_error_{unit}"] = float(np.median(off[name][kept]))
            figures[f"worst_{what}_error_{unit}"] = float(np.max(off[name][kept]))
        return figures

    where = "the posed cameras" if starts == "posed" else "the true pose, perturbed"
    limit = f"{RIGHT_M:g}" if scene else f"{100.0 * RIGHT_M:g} cm"
    return {
        "starts": starts,
        "rounds": 1,  # of looking for poses
        "size": list(data.size),
        "rule": f"Poses are searched for from {where}. Kept are those whose RMS difference of "
        f"colour is at most {SLACK:g} times the median of those that are believed, unless another "
        f"pose costs less than {1.0 / RIVAL:g} times as much, or the direction is uncertain by "
        f"more than {np.degrees(SIGMA):g}°; none if held-out photos are not found. Right: below "
        f"{RIGHT_DEG:g}° and {limit}.",
        "rows": [row(share) for share in shares],
    }
