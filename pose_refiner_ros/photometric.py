# SPDX-License-Identifier: Apache-2.0
"""The pipeline's last step for objects that have a radiance field: poses that fit the photo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pose_refiner_ros.frame import WRONG_COLOURS, Frame, Report, colours_differ
from pose_refiner_ros.geometry.camera import CameraError
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.refinement.covariance import symmetry_covariance
from pose_refiner_ros.refinement.photo_evidence import masked_photo
from pose_refiner_ros.refinement.refiner import SAME_ANGLE, Refined, Refiner

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField
    from pose_refiner_ros.pipeline import SeenObject
    from pose_refiner_ros.refinement.evidence import ObjectEvidence
    from pose_refiner_ros.refinement.field_refiner import FieldRefiner, PhotoRefined
    from pose_refiner_ros.refinement.photo_evidence import PhotoEvidence
    from pose_refiner_ros.settings import Settings

PROMISING = 6  # poses of each object, by their colours as they are, that are refined at all
FIRST_LOOK = 150  # pixels for that
KEEP = 2  # poses of each object that are followed to the end
COMPARED = 400  # pixels of a mask whose colours judge a pose
LEAST_COMPARED = 20
HIGHLIGHT = 0.15  # differences of colour far beyond count by their size, not its square
NO_EXPOSURE = np.array([[1.0] * 3, [0.0] * 3])
SAME_PLACE = 0.1  # diameters; poses that end so near to each other, and turned alike, are one
LOST_OVERLAP = 0.1  # a pose that fits the photo may fit the mask worse by so much


class PhotoStage:
    """Refines what silhouettes have found by the photo, where an object has a field.

    Does nothing, and costs nothing, where no object of the library has one.
    """

    def __init__(
        self,
        library: Mapping[str, ObjectModel],
        outlines: Refiner,
        settings: Settings,
        device: str,
    ) -> None:
        self.library = library
        self.outlines = outlines
        self.settings = settings
        self.device = device
        self.fields = {n: m.field for n, m in library.items() if m.field is not None}
        self._refiner: FieldRefiner | None = None

    @property
    def refiner(self) -> FieldRefiner:
        """Made at the first use, which takes seconds."""
        if self._refiner is None:
            from pose_refiner_ros.refinement.field_refiner import FieldRefiner, FieldSettings

            settings = FieldSettings(
                self.settings.sampling, self.settings.photo_rays, self.settings.exposure
            )
            self._refiner = FieldRefiner(
                self.fields, settings, self.device, self.settings.batch, self.outlines
            )
        return self._refiner

    def look(
        self, seen: Sequence[SeenObject], frame: Frame, settings: Settings, report: Report
    ) -> None:
        """Cut the photos of objects that have a field; tell why there are none."""
        if settings.photometric == "never":
            return
        seen = [one for one in seen if one.name in self.fields]
        if settings.refinement != "solver":
            if seen:
                names = ", ".join(sorted({one.name for one in seen}))
                report(
                    None,
                    f"the photo is not used: the fields of {names} are for the refinement solver, "
                    f"not for {settings.refinement}",
                )
            return
        for one in seen:
            try:
                one.evidence = with_photo(one.evidence, frame)
                one.photo = masked_photo(one.evidence)
            except ValueError as error:
                report(
                    one.label,
                    f"{one.name} has a radiance field, but is placed by its silhouette alone: "
                    f"{error}",
                )

    def refine(self, seen: Sequence[SeenObject]) -> list[SeenObject]:
        """Refine what was found of objects with a photo; those are returned whose colours fit in no
        pose, and what was found of them stays."""
        doubtful = []
        for tracked in (False, True):
            group = [
                one
                for one in seen
                if one.photo is not None and one.found and one.tracked == tracked
            ]
            if not group:
                continue
            results = self.refiner.refine(
                [one.photo for one in group],
                [one.name for one in group],
                [self._promising(one) for one in group],
                KEEP,
                tracked,
                masks=[one.evidence for one in group],
            )
            for one, photos in zip(group, results, strict=True):
                if not self._take(one, photos):
                    doubtful.append(one)
        return doubtful

    def _promising(self, one: SeenObject) -> list[np.ndarray]:
        """Of the poses found by silhouettes the most likely by their colours, in the old order.

        They lie on the mask, so that colours can be compared before anything is refined, and at a
        fraction of the time that refining all would take."""
        poses = [refined.camera_from_object for refined in one.found]
        if len(poses) <= PROMISING:
            return poses
        rms = [
            compare_colours(
                self.fields[one.name], one.photo, pose, FIRST_LOOK, fit=self.settings.exposure
            )[0]
            for pose in poses
        ]
        return [poses[i] for i in sorted(np.argsort(rms)[:PROMISING])]

    def _take(self, one: SeenObject, photos: Sequence[PhotoRefined]) -> bool:
        """Whether the colours fit in a pose; if so, these are what was found."""
        photos = self._distinct(one.name, [p for p in photos if np.isfinite(p.cost)])
        found = [self._fitted(one, photo) for photo in photos]
        least = max(refined.iou for refined in one.found) - LOST_OVERLAP
        overlap = [refined for refined in found if refined.iou >= least]
        if not all(colours_differ(refined.photo_rms) for refined in overlap):
            one.found = overlap
            return True
        rms = min((r.photo_rms for r in found), default=1.0)
        one.found = [replace(refined, photo_rms=rms) for refined in one.found]
        return False

    def _distinct(self, name: str, photos: Sequence[PhotoRefined]) -> list[PhotoRefined]:
        """Without those that ended where a better one did."""
        model, chosen = self.library[name], []
        for photo in photos:
            a = photo.camera_from_object
            others = [other.camera_from_object for other in chosen]
            if not any(
                np.linalg.norm(a[:3, 3] - b[:3, 3]) < SAME_PLACE * model.diameter
                and model.symmetries.reduced_rotation_error(a, b) < SAME_ANGLE
                for b in others
            ):
                chosen.append(photo)
        return chosen

    def _fitted(self, one: SeenObject, photo: PhotoRefined) -> Refined:
        """A pose that the photo gave, with what its silhouette says of it."""
        refined = self.outlines.evaluate(one.evidence, one.name, photo.camera_from_object)
        symmetries = self.library[one.name].symmetries
        # the mask is in the photo's covariance already, as opacity
        return replace(
            refined,
            camera_from_object=photo.camera_from_object,
            covariance=photo.covariance + symmetry_covariance(symmetries, photo.camera_from_object),
            iterations=photo.iterations,
            reason=photo.reason,
            photo_rms=colour_difference(self.fields[one.name], one.photo, photo)[0],
        )

    def tell(self, seen: Sequence[SeenObject], report: Report) -> None:
        """Report objects whose colours fit in no pose."""
        for one in seen:
            rms = one.found[0].photo_rms if one.found else None
            if colours_differ(rms):
                report(
                    one.label,
                    f"the colours of {one.name} are not those of its field in any pose (off by "
                    f"{rms:.2f}, at most {WRONG_COLOURS:g} in a right one): its silhouette alone "
                    "placed it; is it that object? In other light than the field's: photo_exposure "
                    "of the node, --exposure of the command",
                )


def with_photo(evidence: ObjectEvidence, frame: Frame) -> ObjectEvidence:
    """The evidence with its crop of the frame's photo. Raises CameraError where there is none, or
    one of another size."""
    if evidence.photo is not None:
        return evidence
    if frame.image is None:
        raise CameraError("no photo came with the masks")
    frame.camera.check_image(frame.image)
    return replace(evidence, photo=evidence.crop.cut_photo(np.ascontiguousarray(frame.image)))


def colour_difference(
    field: GridField, photo: PhotoEvidence, found: PhotoRefined
) -> tuple[float, float]:
    """`compare_colours` for a pose as refined, with the gain and bias that go with it.

    Unlike `PhotoRefined.rms` it asks for colours alone, not for where the object ends.
    """
    exposure = np.stack([found.gain, found.bias])
    return compare_colours(field, photo, found.camera_from_object, COMPARED, exposure)


def compare_colours(
    field: GridField,
    photo: PhotoEvidence,
    camera_from_object: np.ndarray,
    count: int = COMPARED,
    exposure: np.ndarray = NO_EXPOSURE,
    fit: bool = False,
) -> tuple[float, float]:
    """Robust RMS difference in [0, 1] of a field's colours and a photo's, over some `count` pixels
    that both the mask and the field cover (1 where those are too few), and which share they are of
    the mask.

    exposure: gain and bias (2, 3) from the field's colours to the photo's; fit: find them.
    """
    from pose_refiner_ros.fields.rays import camera_rays

    mask = photo.opacity > 0.5
    y, x = np.nonzero(mask if photo.weight is None else mask & (photo.weight > 0.0))
    chosen = np.unique(np.linspace(0, len(x) - 1, min(count, len(x))).round().astype(int))
    pixels = np.stack([x, y], axis=-1)[chosen]
    # a pixel's colour is a mean over its area
    parts = np.array([(-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)])
    fx, fy, cx, cy = photo.pinhole
    K = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    crop_from_object = np.array(camera_from_object, np.float64)
    crop_from_object[:3] = photo.crop_from_camera @ crop_from_object[:3]
    rays = camera_rays(K, crop_from_object, (pixels[:, None] + parts).reshape(-1, 2))
    drawn = field.render(*(part.float().to(field.device) for part in rays))
    opacity = drawn.opacity.cpu().numpy().reshape(-1, len(parts)).mean(axis=1)
    colour = drawn.colour.cpu().numpy().reshape(-1, len(parts), 3).mean(axis=1)
    both = opacity > 0.5
    if np.count_nonzero(both) < LEAST_COMPARED:
        return 1.0, 0.0
    colour, seen = colour[both], photo.colour[pixels[both, 1], pixels[both, 0]]
    if fit:
        exposure = np.stack([np.polyfit(colour[:, k], seen[:, k], 1) for k in range(3)], axis=1)
    square = np.square(exposure[0] * colour + exposure[1] - seen).mean(axis=1)
    weight = 1.0 / (1.0 + np.sqrt(square) / HIGHLIGHT)
    return float(np.sqrt((weight * square).sum() / weight.sum())), float(both.mean())
