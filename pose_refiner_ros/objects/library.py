# SPDX-License-Identifier: Apache-2.0
"""The object library: which objects there are, read from one YAML file or a BOP models/ folder.

docs/objects.md describes the file; config/objects_example.yaml shows every key.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pose_refiner_ros.objects.entry import (
    NAMED_COLORS,
    PALETTE,
    ObjectError,
    check_keys,
    check_name,
    model_from_entry,
)
from pose_refiner_ros.objects.mesh import METRES_PER_UNIT, MeshError, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import simplify_and_measure
from pose_refiner_ros.objects.symmetry import Symmetries, SymmetryError

log = logging.getLogger(__name__)

TOP_KEYS = ("objects", "defaults")
DEFAULT_KEYS = ("unit", "scale", "frame", "symmetries", "color", "max_faces", "tolerance_px")


class ObjectLibraryError(ValueError):
    """A library that cannot be used at all, with the reason and what to do."""


class ObjectLibrary(Mapping[str, ObjectModel]):
    """Objects by name, in the order of the file.

    problems: name -> why that object was left out. warnings: name -> what looks wrong but was kept.
    """

    def __init__(self, models: Iterable[ObjectModel] = (), path: Path | None = None):
        self.problems: dict[str, str] = {}
        self.warnings: dict[str, list[str]] = {}
        self.path = path
        self._models: dict[str, ObjectModel] = {}
        self._by_class_name: dict[str, ObjectModel] = {}
        for model in models:
            with self._taking(model.name):
                self._add(model)

    @classmethod
    def load(cls, path: str | Path) -> ObjectLibrary:
        """Read a library YAML, or a BOP models/ folder (or the data set folder that holds it)."""
        path = Path(path).expanduser()
        if path.is_dir():
            library = _load_bop(path)
        elif path.is_file():
            library = _load_yaml(path)
        else:
            raise ObjectLibraryError(f"object library {path} does not exist")
        for name, reason in library.problems.items():
            log.error("object %r left out: %s", name, reason)
        for name, texts in library.warnings.items():
            for text in texts:
                log.warning("object %r: %s", name, text)
        if not library:
            reasons = "\n".join(f"  {name}: {why}" for name, why in library.problems.items())
            raise ObjectLibraryError(f"{path}: no object can be used:\n{reasons}")
        return library

    @classmethod
    def from_models(cls, models: Iterable[ObjectModel]) -> ObjectLibrary:
        """A library of models made in code; raises if two claim the same name."""
        library = cls(models)
        if library.problems:
            name, reason = next(iter(library.problems.items()))
            raise ObjectLibraryError(f"object {name!r}: {reason}")
        return library

    def __getitem__(self, name: str) -> ObjectModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __repr__(self) -> str:
        return f"ObjectLibrary({list(self._models)}, problems={self.problems})"

    def by_bop_id(self, bop_id: int) -> ObjectModel | None:
        """The object with that number in its BOP data set."""
        return next((m for m in self._models.values() if m.bop_id == bop_id), None)

    def by_label(self, label: int) -> ObjectModel | None:
        """The object that a value in a label image stands for when no detections say so."""
        return next((m for m in self._models.values() if m.label == label), None)

    def resolve(self, class_name: str) -> ObjectModel | None:
        """The object that a detector means: by name or alias, in any case, or by BOP id."""
        if class_name in self._models:
            return self._models[class_name]
        text = str(class_name).strip().casefold()
        model = self._by_class_name.get(text)
        if model is None and text.isdecimal():
            model = self.by_bop_id(int(text))
        return model

    @contextlib.contextmanager
    def _taking(self, name: Any) -> Iterator[Callable[[str], None]]:
        """Keeps what is wrong with an object to itself; yields what is to be told of warnings."""
        notes: list[str] = []
        try:
            yield notes.append
        except (ObjectError, MeshError, SymmetryError) as error:
            self.problems[str(name)] = str(error)
        if notes:
            self.warnings[str(name)] = notes

    def _add(self, model: ObjectModel) -> None:
        check_name(model.name)
        for name in (model.name, *model.aliases):
            other = self._by_class_name.get(name.casefold())
            if other is not None:
                raise ObjectError(f"the name {name!r} already stands for object {other.name!r}")
        for what in ("label", "bop_id"):
            value = getattr(model, what)
            other = getattr(self, f"by_{what}")(value) if value is not None else None
            if other is not None:
                raise ObjectError(f"{what} {value} already stands for object {other.name!r}")
        self._models[model.name] = model
        for name in (model.name, *model.aliases):
            self._by_class_name[name.casefold()] = model


# ---------------------------------------------------------------------------------------- YAML


def _load_yaml(path: Path) -> ObjectLibrary:
    content = _parse_yaml(path)
    if not isinstance(content, dict):
        raise ObjectLibraryError(
            f"{path}: the file must have an 'objects:' list of names at its top"
        )
    check_keys(content, TOP_KEYS, str(path), ObjectLibraryError)
    entries = content.get("objects")
    if isinstance(entries, list):
        raise ObjectLibraryError(
            f"{path}: 'objects' must map names to entries ('car: {{mesh: car.obj, unit: m}}'), "
            "not be a list with dashes"
        )
    if not isinstance(entries, dict) or not entries:
        raise ObjectLibraryError(
            f"{path}: 'objects' is missing or empty; a library needs an object"
        )
    defaults = content.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise ObjectLibraryError(f"{path}: 'defaults' must map keys to values, not {defaults!r}")
    check_keys(defaults, DEFAULT_KEYS, f"{path}: defaults", ObjectLibraryError)

    library = ObjectLibrary(path=path)
    for index, (name, entry) in enumerate(entries.items()):
        with library._taking(name) as warn:
            check_name(name)
            library._add(model_from_entry(name, entry, defaults, path.parent, index, warn))
    return library


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, where YAML would keep the last."""

    def construct_mapping(self, node, deep=False):
        seen = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                continue  # the base class says what is wrong
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} stands here a second time", key_node.start_mark
                )
            seen[key] = key_node
        return super().construct_mapping(node, deep)


def _parse_yaml(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ObjectLibraryError(f"{path}: cannot be read as text: {error}") from error
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ObjectLibraryError(f"{path}{where}: {problem}") from error


# ----------------------------------------------------------------------------------------- BOP


def _load_bop(folder: Path) -> ObjectLibrary:
    """obj_000001.ply ... in millimetres, with models_info.json and, if there is one, names.json."""
    files = sorted(folder.glob("obj_*.ply"))
    if not files and (folder / "models").is_dir():
        folder = folder / "models"
        files = sorted(folder.glob("obj_*.ply"))
    if not files:
        raise ObjectLibraryError(
            f"{folder}: no obj_*.ply in it; give a library YAML or a BOP models/ folder"
        )
    info, names = _read_json(folder / "models_info.json"), _read_json(folder / "names.json")
    library = ObjectLibrary(path=folder)
    for index, path in enumerate(files):
        number = path.stem.removeprefix("obj_")
        bop_id = int(number) if number.isdecimal() else None
        name = names.get(str(bop_id), path.stem)
        with library._taking(name) as warn:
            if bop_id is None:
                raise ObjectError(f"{path.name} is not named obj_ and a number")
            check_name(name)
            mesh = load_mesh(path, "mm", warn=warn)
            silhouette_mesh, outline_error = simplify_and_measure(mesh, warn=warn)
            library._add(
                ObjectModel(
                    name=name,
                    mesh=mesh,
                    silhouette_mesh=silhouette_mesh,
                    outline_error=outline_error,
                    symmetries=Symmetries.from_bop(info.get(str(bop_id), {})),
                    color=NAMED_COLORS[PALETTE[index % len(PALETTE)]],
                    mesh_path=path,
                    bop_id=bop_id,
                    aliases=() if name == path.stem else (path.stem,),
                    mesh_resource=path.resolve().as_uri(),
                    mesh_resource_scale=METRES_PER_UNIT["mm"],
                )
            )
    return library


def _read_json(path: Path) -> dict:
    """The mapping in the file; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ObjectLibraryError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ObjectLibraryError(f"{path}: must map object ids to entries")
    return content
