# SPDX-License-Identifier: Apache-2.0
"""The object library: which objects there are, read from one YAML file or a BOP models/ folder.

docs/objects.md describes the file; config/objects_example.yaml shows every key.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import yaml

from pose_refiner_ros.objects.mesh import METRES_PER_UNIT, Mesh, MeshError, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.simplify import (
    DEFAULT_MAX_FACES,
    DEFAULT_TOLERANCE_PX,
    simplify_and_measure,
)
from pose_refiner_ros.objects.symmetry import Symmetries, SymmetryError

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

log = logging.getLogger(__name__)

TOP_KEYS = ("objects", "defaults")
OBJECT_KEYS = (
    "mesh",
    "field",
    "unit",
    "scale",
    "frame",
    "symmetries",
    "color",
    "aliases",
    "label",
    "bop_id",
    "max_faces",
    "tolerance_px",
    "mesh_resource",
    "category",
    "exact_shape",
)
DEFAULT_KEYS = ("unit", "scale", "frame", "symmetries", "color", "max_faces", "tolerance_px")
MESH_KEYS = ("unit", "scale", "frame", "mesh_resource")  # mean nothing without a mesh file
FRAME_KEYS = ("forward", "up", "origin", "matrix")
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # becomes part of a TF frame

NAMED_COLORS = {
    "black": (0.05, 0.05, 0.05),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "gray": (0.5, 0.5, 0.5),
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.2),
    "blue": (0.1, 0.35, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "purple": (0.55, 0.25, 0.75),
    "brown": (0.5, 0.3, 0.15),
    "cyan": (0.1, 0.75, 0.8),
    "magenta": (0.85, 0.2, 0.65),
}
FIELD_TOLERANCE_PX = 1.0  # of a field's mesh: its outline is no sharper than its nodes are near
ALIKE = 0.2  # by how much the boxes of an object's mesh and field may differ, of the longest side

# Colours of objects that state none, in turn.
PALETTE = ("orange", "blue", "green", "magenta", "yellow", "cyan", "red", "purple")


class ObjectLibraryError(ValueError):
    """A library that cannot be used at all, with the reason and what to do."""


class _ObjectError(ValueError):
    """One object's entry is wrong; the others can still be used."""


class ObjectLibrary(Mapping[str, ObjectModel]):
    """Objects by name, in the order of the file.

    problems: name -> why that object was left out. warnings: name -> what looks wrong but was kept.
    """

    def __init__(
        self,
        models: Iterable[ObjectModel] = (),
        problems: Mapping[str, str] | None = None,
        warnings: Mapping[str, list[str]] | None = None,
        path: Path | None = None,
    ):
        self.problems: dict[str, str] = dict(problems or {})
        self.warnings: dict[str, list[str]] = dict(warnings or {})
        self.path = path
        self._models: dict[str, ObjectModel] = {}
        self._by_class_name: dict[str, ObjectModel] = {}
        for model in models:
            try:
                self._add(model)
            except _ObjectError as error:
                self.problems[model.name] = str(error)

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

    def _add(self, model: ObjectModel) -> None:
        check_name(model.name)
        for name in (model.name, *model.aliases):
            other = self._by_class_name.get(name.casefold())
            if other is not None:
                raise _ObjectError(f"the name {name!r} already stands for object {other.name!r}")
        for what in ("label", "bop_id"):
            value = getattr(model, what)
            other = getattr(self, f"by_{what}")(value) if value is not None else None
            if other is not None:
                raise _ObjectError(f"{what} {value} already stands for object {other.name!r}")
        self._models[model.name] = model
        for name in (model.name, *model.aliases):
            self._by_class_name[name.casefold()] = model


def check_name(name: Any) -> None:
    """Names become part of TF frame ids, topics and file names."""
    if not isinstance(name, str):
        raise _ObjectError(f"the name must be text; put it in quotes: '{name}'")
    if not NAME_PATTERN.fullmatch(name):
        legal = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.lstrip("/.-")) or "object"
        raise _ObjectError(
            "the name is used in TF frames and may have letters, digits and _ . - only; "
            f"call it {legal!r} and list {name!r} under 'aliases'"
        )


# ---------------------------------------------------------------------------------------- YAML


def _load_yaml(path: Path) -> ObjectLibrary:
    content = _parse_yaml(path)
    if not isinstance(content, dict):
        raise ObjectLibraryError(
            f"{path}: the file must have an 'objects:' list of names at its top"
        )
    _check_keys(content, TOP_KEYS, str(path), ObjectLibraryError)
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
    _check_keys(defaults, DEFAULT_KEYS, f"{path}: defaults", ObjectLibraryError)

    models, problems, warnings = [], {}, {}
    for index, (name, entry) in enumerate(entries.items()):
        notes: list[str] = []
        try:
            check_name(name)
            models.append(
                _model_from_entry(name, entry, defaults, path.parent, index, notes.append)
            )
        except (_ObjectError, MeshError, SymmetryError) as error:
            problems[str(name)] = str(error)
        if notes:
            warnings[str(name)] = notes
    return ObjectLibrary(models, problems, warnings, path)


def _model_from_entry(
    name: str,
    entry: Any,
    defaults: dict,
    folder: Path,
    index: int,
    warn: Callable[[str], None],
) -> ObjectModel:
    if not isinstance(entry, dict):
        raise _ObjectError(f"must map keys to values ('mesh: ...'), not {entry!r}")
    _check_keys(entry, OBJECT_KEYS, "", _ObjectError)
    stated, entry = entry, {**defaults, **entry}
    mesh_uri, field_uri = _path_of(entry, "mesh"), _path_of(entry, "field")
    if mesh_uri is None and field_uri is None:
        raise _ObjectError(
            "'mesh' is missing: the path of its mesh file, relative to the library; or 'field', "
            "that of its radiance field"
        )
    unit = entry.get("unit")
    if mesh_uri is None:
        for key in MESH_KEYS:
            if key in stated:
                raise _ObjectError(
                    f"'{key}' belongs to a mesh, and there is none: a field is in metres, in the "
                    "frame of the poses that it was trained from"
                )
    elif unit not in METRES_PER_UNIT:
        said = f"not {unit!r}" if unit is not None else "but it is missing"
        raise _ObjectError(
            f"'unit' must be that of the mesh file ({', '.join(METRES_PER_UNIT)}), {said}"
        )
    max_faces = _whole(entry.get("max_faces", DEFAULT_MAX_FACES), "max_faces", 12)
    tolerance_px = _number(
        entry.get("tolerance_px", DEFAULT_TOLERANCE_PX if mesh_uri else FIELD_TOLERANCE_PX),
        "tolerance_px",
    )
    if not 0.05 <= tolerance_px <= 10:
        raise _ObjectError(f"'tolerance_px' must be from 0.05 to 10 pixels, not {tolerance_px:g}")
    resource = entry.get("mesh_resource")
    if resource is not None and not (isinstance(resource, str) and "://" in resource):
        raise _ObjectError(f"'mesh_resource' must be a file:// or package:// URI, not {resource!r}")
    symmetries = Symmetries.from_config(entry.get("symmetries"))
    color = parse_color(entry.get("color", PALETTE[index % len(PALETTE)]))
    aliases = _aliases(entry.get("aliases"), name)
    bop_id, label = _optional_whole(entry, "bop_id", 0), _optional_whole(entry, "label", 1)
    category, exact_shape = _category(entry)
    path, object_from_mesh, scale = None, np.eye(4), 1.0
    if mesh_uri is not None:
        path = _resolve_path(mesh_uri, folder)
        scale = _number(entry.get("scale", 1.0), "scale")
        mesh = load_mesh(path, unit, scale, warn)
        object_from_mesh = _frame(entry.get("frame"), mesh)
        mesh = mesh.transformed(object_from_mesh) if entry.get("frame") is not None else mesh
        scale *= METRES_PER_UNIT[unit]
        if resource is None:
            resource = mesh_uri if mesh_uri.startswith("package://") else path.as_uri()
    # Everything cheap is checked by now: what follows may take seconds.
    field_path = _resolve_path(field_uri, folder) if field_uri is not None else None
    field = _load_field(field_path) if field_path is not None else None
    if mesh_uri is None:
        from pose_refiner_ros.objects.field_mesh import field_mesh

        mesh = field_mesh(field, warn)
    elif field is not None:
        _compare_boxes(mesh.bounds, field.occupied_bounds, warn)
    # what would be said of many faces is about a mesh file
    hear = warn if mesh_uri is not None else lambda text: None
    silhouette_mesh, outline_error = simplify_and_measure(mesh, max_faces, tolerance_px, warn=hear)
    return ObjectModel(
        name=name,
        mesh=mesh,
        silhouette_mesh=silhouette_mesh,
        outline_error=outline_error,
        symmetries=symmetries,
        color=color,
        mesh_path=path,
        bop_id=bop_id,
        aliases=aliases,
        label=label,
        category=category,
        exact_shape=exact_shape,
        mesh_resource=resource,
        mesh_resource_scale=scale,
        object_from_mesh=object_from_mesh,
        field=field,
        field_path=field_path,
    )


def _path_of(entry: dict, key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not (isinstance(value, str) and value):
        raise _ObjectError(f"'{key}' must be the path of a file, not {value!r}")
    return value


def _load_field(path: Path) -> GridField:
    from pose_refiner_ros.fields.field_file import FieldFileError, load_field

    try:
        field = load_field(path)
    except FieldFileError as error:
        raise _ObjectError(str(error)) from error
    if field.kind != "grid":
        raise _ObjectError(
            f"field {path} is of kind {field.kind!r}, too slow for a robot: train it with "
            "`pose-refiner field train --kind grid`"
        )
    return field


def _compare_boxes(mesh: np.ndarray, field: np.ndarray, warn: Callable[[str], None]) -> None:
    """The field's frame must be the object's: boxes (2, 3) that differ say that it is not."""
    longest = (mesh[1] - mesh[0]).max()
    size = np.abs((mesh[1] - mesh[0]) - (field[1] - field[0])).max()
    apart = np.linalg.norm(mesh.mean(axis=0) - field.mean(axis=0))
    if max(size, apart) > ALIKE * longest:
        warn(
            f"mesh and field do not lie alike: the mesh's box is {_box(mesh)}, the field's "
            f"{_box(field)} (metres, object frame); train the field from poses in the mesh's "
            "frame and unit (--scale), or leave one of the two out"
        )


def _box(bounds: np.ndarray) -> str:
    return " to ".join("[" + ", ".join(f"{x:.3f}" for x in corner) + "]" for corner in bounds)


def _category(entry: dict) -> tuple[str | None, bool]:
    """The category, and whether the mesh is the object's own: by default it stands for its
    category where there is one."""
    category = entry.get("category")
    if category is not None and not (isinstance(category, str) and category.strip()):
        raise _ObjectError(f"'category' must be a class of the encoder, not {category!r}")
    exact = entry.get("exact_shape", category is None or entry.get("field") is not None)
    if not isinstance(exact, bool):
        raise _ObjectError(f"'exact_shape' must be true or false, not {exact!r}")
    if category is None and not exact:
        raise _ObjectError("'exact_shape: false' needs a 'category' that the mesh stands for")
    if not exact and entry.get("field") is not None:
        raise _ObjectError(
            "a 'field' shows one object and does not stand for a category: 'exact_shape' must be "
            "true, or leave the field out"
        )
    return category, exact


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


def _resolve_path(uri: str, folder: Path) -> Path:
    """The file that a path, a file:// or a package:// URI names."""
    if uri.startswith("package://"):
        package, _, inside = uri.removeprefix("package://").partition("/")
        for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
            share = Path(prefix) / "share" / package
            if share.is_dir():
                return share / inside
        raise _ObjectError(
            f"{uri}: ROS package {package!r} was not found; "
            "build and source its workspace, or give a path"
        )
    if uri.startswith("file://"):
        uri = unquote(uri.removeprefix("file://"))
    path = Path(os.path.expandvars(uri)).expanduser()
    return (folder / path).resolve()  # an absolute path stays as it is


def _frame(config: Any, mesh: Mesh) -> np.ndarray:
    """object_from_mesh (4, 4): how the object's axes lie in the mesh file's.

    {matrix: 4x4}, or {forward: axis, up: axis, origin: point | center | bottom}: the mesh axes that
    become x and z, and the point in metres on the mesh's axes that becomes the origin.
    """
    if config is None:
        return np.eye(4)
    if not isinstance(config, dict):
        raise _ObjectError(
            f"'frame' must be like {{forward: x, up: z, origin: center}}, not {config!r}"
        )
    _check_keys(config, FRAME_KEYS, "frame", _ObjectError)
    if "matrix" in config:
        if len(config) > 1:
            raise _ObjectError("'frame' takes either 'matrix' or forward, up and origin, not both")
        return _rigid_matrix(config["matrix"])
    forward, up = _mesh_axis(config.get("forward", "x")), _mesh_axis(config.get("up", "z"))
    if abs(forward @ up) > 0.5:
        raise _ObjectError("'frame': forward and up must be different axes; state both")
    rotation = np.array([forward, np.cross(up, forward), up])
    origin = config.get("origin", (0.0, 0.0, 0.0))
    if isinstance(origin, str):
        # The box is measured along the object's axes; its centre then goes back to the mesh's.
        turned = mesh.vertices.astype(np.float64) @ rotation.T
        box = np.array([turned.min(axis=0), turned.max(axis=0)])
        center = box.mean(axis=0)
        if origin == "bottom":
            center[2] = box[0, 2]
        elif origin != "center":
            raise _ObjectError(f"'frame': origin {origin!r} is not center, bottom or [x, y, z]")
        origin = rotation.T @ center
    origin = np.array(
        [_number(value, "frame: origin") for value in _three(origin, "frame: origin")]
    )
    object_from_mesh = np.eye(4)
    object_from_mesh[:3, :3] = rotation
    object_from_mesh[:3, 3] = -rotation @ origin
    return object_from_mesh


def _mesh_axis(text: Any) -> np.ndarray:
    axes = {"x": 0, "y": 1, "z": 2}
    name = str(text).strip().lower()
    if name.lstrip("+-") not in axes or len(name) > 2:
        raise _ObjectError(f"'frame': {text!r} is not an axis of the mesh (x, -x, y, -y, z or -z)")
    direction = np.zeros(3)
    direction[axes[name[-1]]] = -1.0 if name[0] == "-" else 1.0
    return direction


def parse_color(value: Any) -> tuple[float, float, float]:
    """(r, g, b) in [0, 1] from three such numbers, '#rrggbb' or a name."""
    if isinstance(value, str):
        if value.lower() in NAMED_COLORS:
            return NAMED_COLORS[value.lower()]
        if re.fullmatch(r"#[0-9a-fA-F]{6}", value):
            return tuple(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5))
        raise _ObjectError(
            f"color {value!r} is neither '#rrggbb' (in quotes) nor one of {', '.join(NAMED_COLORS)}"
        )
    color = tuple(_number(channel, "color") for channel in _three(value, "color"))
    if not all(0 <= channel <= 1 for channel in color):
        raise _ObjectError(f"color {list(color)}: red, green and blue go from 0 to 1")
    return color


def _aliases(value: Any, name: str) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(isinstance(a, (str, int)) for a in value):
        raise _ObjectError(f"aliases must be a list of class names, not {value!r}")
    aliases = dict.fromkeys(str(alias).strip() for alias in value)
    return tuple(alias for alias in aliases if alias.casefold() != name.casefold())


def _rigid_matrix(value: Any) -> np.ndarray:
    try:
        matrix = np.array(value, dtype=np.float64).reshape(4, 4)
    except (TypeError, ValueError):
        raise _ObjectError(f"frame: matrix must be 4 rows of 4 numbers, not {value!r}") from None
    rotation = matrix[:3, :3]
    orthogonal = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-4
    if not (orthogonal and np.linalg.det(rotation) > 0 and np.allclose(matrix[3], (0, 0, 0, 1))):
        raise _ObjectError("frame: matrix must be a rotation and a shift, without scale or mirror")
    return matrix


def _three(value: Any, what: str) -> list:
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 3:
        raise _ObjectError(f"'{what}' must be three numbers, not {value!r}")
    return list(value)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise _ObjectError(f"'{what}' must be a number, not {value!r}")
    return float(value)


def _whole(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise _ObjectError(f"'{what}' must be a whole number, {least} or more, not {value!r}")
    return value


def _optional_whole(entry: dict, key: str, least: int) -> int | None:
    return None if entry.get(key) is None else _whole(entry[key], key, least)


def _check_keys(entry: dict, known: tuple[str, ...], where: str, error: type[Exception]) -> None:
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise error(f"{where + ': ' if where else ''}unknown key {key!r}; {hint}")


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
    models, problems, warnings = [], {}, {}
    for index, path in enumerate(files):
        name, notes = path.stem, []
        try:
            number = path.stem.removeprefix("obj_")
            if not number.isdecimal():
                raise _ObjectError(f"{path.name} is not named obj_ and a number")
            bop_id = int(number)
            name = names.get(str(bop_id), path.stem)
            check_name(name)
            mesh = load_mesh(path, "mm", warn=notes.append)
            silhouette_mesh, outline_error = simplify_and_measure(mesh, warn=notes.append)
            models.append(
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
        except (_ObjectError, MeshError, SymmetryError) as error:
            problems[str(name)] = str(error)
        if notes:
            warnings[str(name)] = notes
    return ObjectLibrary(models, problems, warnings, folder)


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
