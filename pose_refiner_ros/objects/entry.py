# SPDX-License-Identifier: Apache-2.0
"""One object of a library file: its entry in YAML to an `ObjectModel`, with every value checked.

docs/objects.md describes the keys.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from pose_refiner_ros.geometry.pose import rigid
from pose_refiner_ros.objects.mesh import METRES_PER_UNIT, Mesh, load_mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.objects.outline import EXACT
from pose_refiner_ros.objects.simplify import (
    DEFAULT_MAX_FACES,
    DEFAULT_TOLERANCE_PX,
    simplify_and_measure,
)
from pose_refiner_ros.objects.symmetry import Symmetries

if TYPE_CHECKING:
    from pose_refiner_ros.fields.grid import GridField

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

ALIKE = 0.2  # by how much the boxes of an object's mesh and field may differ, of the longest side

# Colours of objects that state none, in turn.
PALETTE = ("orange", "blue", "green", "magenta", "yellow", "cyan", "red", "purple")


class ObjectError(ValueError):
    """One object's entry is wrong; the others can still be used."""


def check_name(name: Any) -> None:
    """Names become part of TF frame ids, topics and file names."""
    if not isinstance(name, str):
        raise ObjectError(f"the name must be text; put it in quotes: '{name}'")
    if not NAME_PATTERN.fullmatch(name):
        legal = re.sub(r"[^A-Za-z0-9_.\-]", "_", name.lstrip("/.-")) or "object"
        raise ObjectError(
            "the name is used in TF frames and may have letters, digits and _ . - only; "
            f"call it {legal!r} and list {name!r} under 'aliases'"
        )


def model_from_entry(
    name: str,
    entry: Any,
    defaults: dict,
    folder: Path,
    index: int,
    warn: Callable[[str], None],
) -> ObjectModel:
    """The object of an entry, with `defaults` for what it does not state.

    folder: what paths are relative to; index: its place in the file, for its colour; warn: hears
    what looks wrong. Raises ObjectError, MeshError or SymmetryError. May take seconds.
    """
    if not isinstance(entry, dict):
        raise ObjectError(f"must map keys to values ('mesh: ...'), not {entry!r}")
    check_keys(entry, OBJECT_KEYS, "", ObjectError)
    mesh_uri, field_uri = _path_of(entry, "mesh"), _path_of(entry, "field")
    if mesh_uri is None:
        _check_field_alone(entry)
    entry = {**defaults, **entry}
    max_faces = _whole(entry.get("max_faces", DEFAULT_MAX_FACES), "max_faces", 12)
    tolerance_px = _number(entry.get("tolerance_px", DEFAULT_TOLERANCE_PX), "tolerance_px")
    if not 0.05 <= tolerance_px <= 10:
        raise ObjectError(f"'tolerance_px' must be from 0.05 to 10 pixels, not {tolerance_px:g}")
    symmetries = Symmetries.from_config(entry.get("symmetries"))
    color = parse_color(entry.get("color", PALETTE[index % len(PALETTE)]))
    aliases = _aliases(entry.get("aliases"), name)
    bop_id, label = _optional_whole(entry, "bop_id", 0), _optional_whole(entry, "label", 1)
    category, exact_shape = _category(entry)
    of_file = {} if mesh_uri is None else _mesh_of_file(entry, mesh_uri, folder, warn)
    field_path = None if field_uri is None else _resolve_path(field_uri, folder)
    field = None if field_path is None else _load_field(field_path)
    if of_file:
        mesh = of_file.pop("mesh")
        if field is not None:
            _compare_boxes(mesh.bounds, field.occupied_bounds, warn)
        simple, outline_error = simplify_and_measure(mesh, max_faces, tolerance_px, warn=warn)
    else:
        from pose_refiner_ros.objects.field_mesh import field_mesh

        mesh = simple = field_mesh(field, warn)
        outline_error = EXACT
    return ObjectModel(
        name=name,
        mesh=mesh,
        silhouette_mesh=simple,
        outline_error=outline_error,
        symmetries=symmetries,
        color=color,
        bop_id=bop_id,
        aliases=aliases,
        label=label,
        category=category,
        exact_shape=exact_shape,
        field=field,
        field_path=field_path,
        **of_file,
    )


def _check_field_alone(stated: dict) -> None:
    if stated.get("field") is None:
        raise ObjectError(
            "'mesh' is missing: the path of its mesh file, relative to the library; or 'field', "
            "that of its radiance field"
        )
    for key in MESH_KEYS:
        if key in stated:
            raise ObjectError(
                f"'{key}' belongs to a mesh, and there is none: a field is in metres, in the "
                "frame of the poses that it was trained from"
            )


def _mesh_of_file(entry: dict, uri: str, folder: Path, warn: Callable[[str], None]) -> dict:
    """What an ObjectModel is told of its mesh file: the mesh, and how RViz finds and places it."""
    unit = entry.get("unit")
    if unit not in METRES_PER_UNIT:
        said = f"not {unit!r}" if unit is not None else "but it is missing"
        raise ObjectError(
            f"'unit' must be that of the mesh file ({', '.join(METRES_PER_UNIT)}), {said}"
        )
    resource = entry.get("mesh_resource")
    if resource is not None and not (isinstance(resource, str) and "://" in resource):
        raise ObjectError(f"'mesh_resource' must be a file:// or package:// URI, not {resource!r}")
    scale = _number(entry.get("scale", 1.0), "scale")
    path = _resolve_path(uri, folder)
    mesh = load_mesh(path, unit, scale, warn)
    object_from_mesh = _frame(entry.get("frame"), mesh)
    if resource is None:
        resource = uri if uri.startswith("package://") else path.as_uri()
    return {
        "mesh": mesh if entry.get("frame") is None else mesh.transformed(object_from_mesh),
        "mesh_path": path,
        "mesh_resource": resource,
        "mesh_resource_scale": METRES_PER_UNIT[unit] * scale,
        "object_from_mesh": object_from_mesh,
    }


def _path_of(entry: dict, key: str) -> str | None:
    value = entry.get(key)
    if value is not None and not (isinstance(value, str) and value):
        raise ObjectError(f"'{key}' must be the path of a file, not {value!r}")
    return value


def _load_field(path: Path) -> GridField:
    from pose_refiner_ros.fields.field_file import FieldFileError, load_field

    if not path.exists():
        raise ObjectError(f"field {path} does not exist")
    try:
        field = load_field(path)
    except FieldFileError as error:
        raise ObjectError(str(error)) from error
    if field.kind != "grid":
        raise ObjectError(
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
        raise ObjectError(f"'category' must be a class of the encoder, not {category!r}")
    exact = entry.get("exact_shape", category is None or entry.get("field") is not None)
    if not isinstance(exact, bool):
        raise ObjectError(f"'exact_shape' must be true or false, not {exact!r}")
    if category is None and not exact:
        raise ObjectError("'exact_shape: false' needs a 'category' that the mesh stands for")
    if not exact and entry.get("field") is not None:
        raise ObjectError(
            "a 'field' shows one object and does not stand for a category: 'exact_shape' must be "
            "true, or leave the field out"
        )
    return category, exact


def _resolve_path(uri: str, folder: Path) -> Path:
    """The file that a path, a file:// or a package:// URI names."""
    if uri.startswith("package://"):
        package, _, inside = uri.removeprefix("package://").partition("/")
        for prefix in filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)):
            share = Path(prefix) / "share" / package
            if share.is_dir():
                return share / inside
        raise ObjectError(
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
        raise ObjectError(
            f"'frame' must be like {{forward: x, up: z, origin: center}}, not {config!r}"
        )
    check_keys(config, FRAME_KEYS, "frame", ObjectError)
    if "matrix" in config:
        if len(config) > 1:
            raise ObjectError("'frame' takes either 'matrix' or forward, up and origin, not both")
        return _rigid_matrix(config["matrix"])
    forward, up = _mesh_axis(config.get("forward", "x")), _mesh_axis(config.get("up", "z"))
    if abs(forward @ up) > 0.5:
        raise ObjectError("'frame': forward and up must be different axes; state both")
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
            raise ObjectError(f"'frame': origin {origin!r} is not center, bottom or [x, y, z]")
        origin = rotation.T @ center
    origin = np.array(
        [_number(value, "frame: origin") for value in _three(origin, "frame: origin")]
    )
    return rigid(rotation, -rotation @ origin)


def _mesh_axis(text: Any) -> np.ndarray:
    axes = {"x": 0, "y": 1, "z": 2}
    name = str(text).strip().lower()
    if name.lstrip("+-") not in axes or len(name) > 2:
        raise ObjectError(f"'frame': {text!r} is not an axis of the mesh (x, -x, y, -y, z or -z)")
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
        raise ObjectError(
            f"color {value!r} is neither '#rrggbb' (in quotes) nor one of {', '.join(NAMED_COLORS)}"
        )
    color = tuple(_number(channel, "color") for channel in _three(value, "color"))
    if not all(0 <= channel <= 1 for channel in color):
        raise ObjectError(f"color {list(color)}: red, green and blue go from 0 to 1")
    return color


def _aliases(value: Any, name: str) -> tuple[str, ...]:
    value = [value] if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(isinstance(a, (str, int)) for a in value):
        raise ObjectError(f"aliases must be a list of class names, not {value!r}")
    aliases = dict.fromkeys(str(alias).strip() for alias in value)
    return tuple(alias for alias in aliases if alias.casefold() != name.casefold())


def _rigid_matrix(value: Any) -> np.ndarray:
    try:
        matrix = np.array(value, dtype=np.float64).reshape(4, 4)
    except (TypeError, ValueError):
        raise ObjectError(f"frame: matrix must be 4 rows of 4 numbers, not {value!r}") from None
    rotation = matrix[:3, :3]
    orthogonal = np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-4
    if not (orthogonal and np.linalg.det(rotation) > 0 and np.allclose(matrix[3], (0, 0, 0, 1))):
        raise ObjectError("frame: matrix must be a rotation and a shift, without scale or mirror")
    return matrix


def _three(value: Any, what: str) -> list:
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 3:
        raise ObjectError(f"'{what}' must be three numbers, not {value!r}")
    return list(value)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ObjectError(f"'{what}' must be a number, not {value!r}")
    return float(value)


def _whole(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ObjectError(f"'{what}' must be a whole number, {least} or more, not {value!r}")
    return value


def _optional_whole(entry: dict, key: str, least: int) -> int | None:
    return None if entry.get(key) is None else _whole(entry[key], key, least)


def check_keys(entry: dict, known: tuple[str, ...], where: str, error: type[Exception]) -> None:
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise error(f"{where + ': ' if where else ''}unknown key {key!r}; {hint}")
