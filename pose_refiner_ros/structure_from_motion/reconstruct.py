# SPDX-License-Identifier: Apache-2.0
"""Structure from motion by pycolmap: features, matches, and the poses that explain them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pose_refiner_ros.datasets.posed_images.colmap import SparseModel, read_model
from pose_refiner_ros.datasets.posed_images.reading import read_mask, read_picture
from pose_refiner_ros.datasets.posed_images.views import OPAQUE
from pose_refiner_ros.geometry.epipolar import epipolar_distance, rays_through
from pose_refiner_ros.structure_from_motion.mask_agreement import AGREE, masks_agree, outline
from pose_refiner_ros.structure_from_motion.photos import (
    Photos,
    StructureFromMotionError,
    pairs_to_match,
)

SIDE = 1600  # pixels of a photo's longer side in which features are looked for
Progress = Callable[[str, int, int], None]

_INSTALL = "pip install pycolmap"
_ROUNDS = 6  # of finding poses that masks agree with
_ENOUGH = 0.97  # of the pairs of photos
_FITS = 0.5  # share of a pair's matches that lie near their epipolar lines
_NEAR = 6.0  # pixels
_SPACE = 3_000_000  # bytes a photo, for features and matches
# Photos, and pairs, that pycolmap is given at once: between them progress is told. (Whoever looks
# into its database meanwhile, with another SQLite in one process, takes its locks away.)
_AT_ONCE, _PAIRS_AT_ONCE = 8, 200
_LEAST_MODEL = 3  # photos


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Attributes:
    model: the largest that was found; `names` are the numbers of the photos, as text.
    placed: numbers of its photos.
    elsewhere: numbers of the photos of each other model.
    turns: of each of all photos, by which of its sides up is when it is shown (EXIF), 1 to 8.
    mask_agreement: share of the pairs of photos whose masks agree with the poses; None without.
    """

    model: SparseModel
    placed: list[int]
    elsewhere: list[list[int]]
    turns: list[int]
    mask_agreement: float | None


def import_pycolmap():
    """Raises StructureFromMotionError where it is not installed."""
    try:
        import pycolmap
    except ImportError as error:
        raise StructureFromMotionError(
            f"poses of photos are found by pycolmap, which is not installed: `{_INSTALL}` ({error})"
        ) from None
    pycolmap.logging.minloglevel = 3
    return pycolmap


def reconstruct(photos: Photos, matching: str, progress: Progress) -> Reconstruction:
    """Poses of photos, in a unit and a frame of their own.

    Photos of one size and one camera (EXIF: model, focal length) share intrinsics. With masks only
    what they show is looked at, and pairs of photos that they rule out are not believed.

    Args:
        matching: auto, exhaustive or sequential.
        progress: gets what is done, how much of it, and of how much.

    Raises:
        StructureFromMotionError: pycolmap is missing or fails, the disk is full, a photo cannot be
            used, or no three photos fit together.
    """
    pycolmap = import_pycolmap()
    with tempfile.TemporaryDirectory(prefix="pose_refiner_") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < _SPACE * len(photos.paths):
            raise StructureFromMotionError(
                f"{folder.parent} has {free / 1e6:.0f} MB left, of some "
                f"{_SPACE * len(photos.paths) / 1e6:.0f} needed for features and matches: make "
                "room, or set TMPDIR to a folder of another disk"
            )
        try:
            return _Run(pycolmap, photos, folder, progress).result(matching)
        except (RuntimeError, sqlite3.Error) as error:  # pycolmap's own
            line = (str(error).strip() or repr(error)).splitlines()[0]
            raise StructureFromMotionError(f"structure from motion failed: {line}") from error


class _Run:
    """One run in a folder of its own, where photo 7 is images/GROUP/00007.jpg."""

    def __init__(self, pycolmap, photos: Photos, folder: Path, progress: Progress) -> None:
        self._colmap, self._photos, self._progress = pycolmap, photos, progress
        self._database = folder / "database.db"
        self._images, self._masks, self._models = (folder / n for n in ("images", "masks", "out"))
        self._names, self._turns, self._outlines = self._placed_in_groups()
        self._number = {name: i for i, name in enumerate(self._names)}

    def result(self, matching: str) -> Reconstruction:
        self._find_features()
        pairs = pairs_to_match(self._photos.paths, matching)
        self._match(pairs)
        masked = self._photos.masks is not None
        best = None
        for attempt in range(_ROUNDS if masked else 1):
            models = self._models_found(attempt)
            if not models:
                break
            model, elsewhere = models[0], models[1:]
            numbers = [int(name) for name in model.names]
            share, dropped = 1.0, 0
            if masked:
                agreement = masks_agree(model, [self._outlines[i] for i in numbers])
                share = float((agreement > AGREE).mean())
                if share < _ENOUGH:
                    dropped = self._drop_pairs(model, numbers, agreement)
            found = Reconstruction(
                model, numbers, [[int(n) for n in m.names] for m in elsewhere], self._turns,
                share if masked else None,
            )  # fmt: skip
            if best is None or _worth(found) > _worth(best):
                best = found
            if not dropped:
                break
        if best is None or len(best.placed) < _LEAST_MODEL:
            raise StructureFromMotionError(
                f"no three of {len(self._names)} photos fit together: usual causes are surfaces "
                "without print or texture (a white wall), photos that show too little of what the "
                "others show, or blur; take more of them, in smaller steps"
            )
        return best

    def _placed_in_groups(self) -> tuple[list[str], list[int], list[np.ndarray | None]]:
        """Links to the photos, a folder for each camera, and masks as pycolmap wants them."""
        groups: dict[tuple, str] = {}
        names, turns, outlines = [], [], []
        for i, path in enumerate(self._photos.paths):
            self._progress("Reading photos", i, len(self._photos.paths))
            rgb, alpha = read_picture(path)
            exif = self._colmap.Bitmap.read(path, False)
            if exif is None or (exif.height, exif.width) != rgb.shape[:2]:
                raise StructureFromMotionError(f"{path} cannot be read by pycolmap: save it as PNG")
            camera = (rgb.shape[:2], exif.exif_camera_model(), exif.exif_focal_length())
            group = groups.setdefault(camera, f"{len(groups):03d}")
            names.append(f"{group}/{i:06d}{path.suffix}")
            turns.append(exif.exif_orientation() or 1)
            link = self._images / names[-1]
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(path.resolve(), link)
            if self._photos.masks is not None:
                alpha = read_mask(self._photos.masks[i], rgb.shape[:2], path)
            outlines.append(None if alpha is None else outline(alpha))
            if alpha is not None:
                mask = self._masks / f"{names[-1]}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                mask.write_bytes(
                    cv2.imencode(".png", (alpha >= OPAQUE) * np.uint8(255))[1].tobytes()
                )
        self._progress("Reading photos", len(names), len(names))
        return names, turns, outlines

    def _find_features(self) -> None:
        extraction = self._colmap.FeatureExtractionOptions()
        extraction.max_image_size = SIDE
        extraction.sift.max_num_features = 4096
        done, total = 0, len(self._names)
        for _, group in itertools.groupby(sorted(self._names), key=os.path.dirname):
            reading = self._colmap.ImageReaderOptions()
            if self._masks.is_dir():
                reading.mask_path = self._masks
            names = list(group)
            for start in range(0, len(names), _AT_ONCE):
                self._progress("Finding features", done, total)
                part = names[start : start + _AT_ONCE]
                self._colmap.extract_features(
                    self._database, self._images, part, self._colmap.CameraMode.SINGLE, reading,
                    extraction, self._colmap.Device.cpu,
                )  # fmt: skip
                done += len(part)
                with contextlib.closing(self._colmap.Database.open(self._database)) as database:
                    camera = database.read_image_with_name(part[0]).camera_id
                reading.existing_camera_id = camera  # the others of the group share it
        self._progress("Finding features", total, total)

    def _match(self, pairs: Sequence[tuple[int, int]]) -> None:
        listed = self._database.with_name("pairs.txt")
        pairing = self._colmap.ImportedPairingOptions()
        pairing.match_list_path = listed
        verification = self._colmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = 0
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            self._progress("Matching photos", start, len(pairs))
            part = pairs[start : start + _PAIRS_AT_ONCE]
            listed.write_text("".join(f"{self._names[i]} {self._names[j]}\n" for i, j in part))
            self._colmap.match_image_pairs(
                self._database, self._colmap.FeatureMatchingOptions(), pairing, verification,
                self._colmap.Device.cpu,
            )  # fmt: skip
        self._progress("Matching photos", len(pairs), len(pairs))

    def _models_found(self, attempt: int) -> list[SparseModel]:
        """The largest first; photos are named by their number."""
        what = "Placing photos" + (f", attempt {attempt + 1}" if attempt else "")
        total, placed = len(self._names), 2

        def next_photo() -> None:
            nonlocal placed
            placed = min(placed + 1, total)
            self._progress(what, placed, total)

        self._progress(what, 0, total)
        options = self._colmap.IncrementalPipelineOptions()
        options.min_model_size = _LEAST_MODEL
        options.random_seed = 0
        options.extract_colors = False
        options.ba_global_function_tolerance = 1e-6
        shutil.rmtree(self._models, ignore_errors=True)
        self._models.mkdir()
        found = self._colmap.incremental_mapping(
            self._database, self._images, self._models, options, next_image_callback=next_photo
        )
        self._progress(what, total, total)
        models = [read_model(self._models / str(number)) for number in found]
        for model in models:
            model.names[:] = [str(self._number[name]) for name in model.names]
        return sorted(models, key=lambda model: -len(model.names))

    def _drop_pairs(self, model: SparseModel, numbers: Sequence[int], agreement: np.ndarray) -> int:
        """Takes matches away that led to poses which masks rule out; returns of how many pairs."""
        row_of = {number: row for row, number in enumerate(numbers)}
        dropped = []
        with contextlib.closing(self._colmap.Database.open(self._database)) as database:
            ids = {image.image_id: image.name for image in database.read_all_images()}
            keypoints: dict[int, np.ndarray] = {}
            for pair, geometry in zip(*database.read_two_view_geometries(), strict=True):
                images = self._colmap.pair_id_to_image_pair(pair)
                rows = [row_of.get(self._number[ids[image]]) for image in images]
                matches = np.asarray(geometry.inlier_matches)
                if None in rows or not len(matches) or agreement[tuple(rows)] > AGREE:
                    continue
                for image in images:
                    if image not in keypoints:
                        keypoints[image] = np.asarray(database.read_keypoints(image))[:, :2]
                ends = [keypoints[image][matches[:, k]] for k, image in enumerate(images)]
                if _share_that_fits(model, rows, ends) > _FITS:
                    dropped.append((int(pair),))
        with contextlib.closing(sqlite3.connect(self._database)) as connection, connection:
            connection.executemany("DELETE FROM two_view_geometries WHERE pair_id = ?", dropped)
        return len(dropped)


def _worth(found: Reconstruction) -> float:
    agreement = 1.0 if found.mask_agreement is None else found.mask_agreement
    return len(found.placed) * agreement


def _share_that_fits(model: SparseModel, rows: Sequence[int], ends: Sequence[np.ndarray]) -> float:
    """Of matches (M, 2) in either photo: how many lie near each other's epipolar line."""
    first, second = (model.camera_from_world[row] for row in rows)
    intrinsics = [
        np.array([[v["fl_x"], 0, v["cx"]], [0, v["fl_y"], v["cy"]], [0, 0, 1]])
        for v in (model.values[row] for row in rows)
    ]
    rays = map(rays_through, ends, intrinsics)
    distance = epipolar_distance(*rays, second @ np.linalg.inv(first), intrinsics[1])
    return float((distance < _NEAR).mean())
