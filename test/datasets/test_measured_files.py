# SPDX-License-Identifier: Apache-2.0
"""Files of depths and points: what can be read, and that what cannot is named."""

import io
import struct

import cv2
import numpy as np
import pytest
import trimesh

from pose_refiner_ros.datasets.measured import (
    MeasuredError,
    read_depth,
    read_points,
    read_transform,
)

# ---- depths ----

WHOLE = np.arange(0, 60_000, 5000, np.uint16).reshape(3, 4)
FLOATS = WHOLE.astype(np.float32) / 1000.0


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def picture(suffix, values):
    return cv2.imencode(suffix, values)[1].tobytes()


def named(*cases):
    """Parameters whose first is a name."""
    return [pytest.param(*case, id=case[0]) for case in cases]


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name, data, expected",
    named(
        ("depth.png", picture(".png", WHOLE), WHOLE),
        ("depth.PNG", picture(".png", WHOLE), WHOLE),
        ("depth.tiff", picture(".tiff", WHOLE), WHOLE),
        ("depth.tif", picture(".tiff", FLOATS), FLOATS),
        ("depth.npy", npy(FLOATS), FLOATS),
        ("whole.npy", npy(WHOLE), WHOLE),
        ("double.npy", npy(FLOATS.astype(np.float64)), FLOATS.astype(np.float64)),
    ),
)
def test_depths_are_as_the_file_has_them(tmp_path, name, data, expected):
    depth = read_depth(written(tmp_path, name, data))
    assert depth.dtype == expected.dtype
    np.testing.assert_array_equal(depth, expected)


@pytest.mark.parametrize(
    "name, data, words",
    named(
        ("gray.png", picture(".png", WHOLE.astype(np.uint8)), "of uint8"),
        ("gray.npy", npy(WHOLE.astype(np.uint8)), "of uint8"),
        ("gray.jpg", picture(".jpg", WHOLE.astype(np.uint8)), "of uint8"),
        ("colour.png", picture(".png", np.zeros((3, 4, 3), np.uint8)), "coloured picture"),
        ("colour16.png", picture(".png", np.zeros((3, 4, 3), np.uint16)), r"\(3, 4, 3\)"),
        ("row.npy", npy(FLOATS.ravel()), r"\(12,\)"),
        ("broken.png", picture(".png", WHOLE)[:40], "not a picture"),
        ("text.png", b"no picture", "not a picture"),
        ("empty.png", b"", "not a picture"),
        ("text.npy", b"no array", "cannot be read as a numpy array"),
        ("short.npy", npy(FLOATS)[:-8], "cannot be read as a numpy array"),
        ("empty.npy", b"", "cannot be read as a numpy array"),
        ("objects.npy", npy(np.array([{}, 1], object)), "cannot be read as a numpy array"),
    ),
)
def test_what_is_no_depth_is_refused(tmp_path, name, data, words):
    with pytest.raises(MeasuredError, match=words) as error:
        read_depth(written(tmp_path, name, data))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    "read, name",
    [(read_depth, "gone.png"), (read_depth, "gone.npy"), (read_transform, "gone.txt")]
    + [(read_points, f"gone.{suffix}") for suffix in ("npy", "bin", "ply", "pcd")],
)
def test_a_missing_file_is_named(tmp_path, read, name):
    with pytest.raises(MeasuredError, match="No such file") as error:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# ---- points ----

POINTS = np.array([[1, 2, 3], [-4.5, 5, 6], [0, 0, 0], [7, -8, 9.25], [1e3, 1, 2]], np.float32)
WITH_HOLES = np.insert(POINTS, [1, 5], [[1, np.nan, 3], [np.inf, 0, 0]], axis=0)


def ply(points, encoding):
    return trimesh.PointCloud(points).export(file_type="ply", encoding=encoding)


def kitti(points):
    return np.column_stack([points, np.linspace(0, 1, len(points))]).astype("<f4").tobytes()


# Fields as scanners and depth cameras have them: name, type, size, count.
PLAIN = [(axis, "F", 4, 1) for axis in "xyz"]
RICH = [
    ("intensity", "F", 4, 1),
    *PLAIN[:2],
    ("_", "U", 1, 3),
    ("z", "F", 4, 1),
    ("rgb", "U", 4, 1),
    ("ring", "I", 2, 1),
    ("_", "U", 1, 2),
]
DOUBLES = [(axis, "F", 8, 1) for axis in "zyx"]


def table(points, fields):
    """One structured row a point, with something in the other fields too."""
    rows = np.zeros(
        len(points),
        [
            (f"{i}{name}", f"<{kind.lower()}{size}", (count,))
            for i, (name, kind, size, count) in enumerate(fields)
        ],
    )
    for column, (name, *_) in zip(rows.dtype.names, fields, strict=True):
        if name in "xyz":
            rows[column][:, 0] = points[:, "xyz".index(name)]
        else:
            rows[column] = 17 + np.arange(len(points))[:, None]
    return rows


def pcd(points, kind, fields=PLAIN, body=None, **header):
    """A PCD file; `header` replaces its lines."""
    rows = table(points, fields)
    names, types, sizes, counts = zip(*fields, strict=True)
    lines = {
        "VERSION": ["0.7"],
        "FIELDS": names,
        "SIZE": sizes,
        "TYPE": types,
        "COUNT": counts,
        "WIDTH": [len(points)],
        "HEIGHT": [1],
        "VIEWPOINT": [0, 0, 0, 1, 0, 0, 0],
        "POINTS": [len(points)],
        "DATA": [kind],
    }
    lines |= header
    text = "# .PCD v0.7 - Point Cloud Data file format\n" + "".join(
        f"{key} {' '.join(map(str, values))}\n" for key, values in lines.items() if values
    )
    if body is None:
        body = {"ascii": as_text, "binary": np.ndarray.tobytes, "binary_compressed": packed}[kind](
            rows
        )
    return text.encode() + body


def as_text(rows):
    lines = [[str(value) for part in row for value in np.ravel(part)] for row in rows]
    return "".join(" ".join(line) + "\n" for line in lines).encode()


def packed(rows):
    """One field after the other, with their sizes before."""
    data = b"".join(rows[name].tobytes() for name in rows.dtype.names)
    small = lzf(data)
    return struct.pack("<II", len(small), len(data)) + small


def lzf(data):
    """Packed as liblzf packs: literals of up to 32 bytes, and copies of what came before."""
    out, literals, seen, i = bytearray(), bytearray(), {}, 0

    def flush():
        for start in range(0, len(literals), 32):
            run = literals[start : start + 32]
            out.append(len(run) - 1)
            out.extend(run)
        literals.clear()

    while i < len(data):
        before = seen.get(data[i : i + 3])
        length = 0
        if before is not None and i - before <= 8192:
            while length < 264 and i + length < len(data):
                if data[before + length] != data[i + length]:
                    break
                length += 1
        if length < 3:
            seen[data[i : i + 3]] = i
            literals.append(data[i])
            i += 1
            continue
        flush()
        back, rest = i - before - 1, length - 2
        if rest < 7:
            out.append(rest << 5 | back >> 8)
        else:
            out.extend((7 << 5 | back >> 8, rest - 7))
        out.append(back & 255)
        i += length
    flush()
    return bytes(out)


@pytest.mark.parametrize(
    "name, data",
    named(
        ("points.npy", npy(WITH_HOLES)),
        ("points.NPY", npy(WITH_HOLES.astype(np.float64))),
        ("more.npy", npy(np.column_stack([WITH_HOLES, np.ones(len(WITH_HOLES))]))),
        ("points.bin", kitti(WITH_HOLES)),
        ("binary.ply", ply(WITH_HOLES, "binary")),
        ("ascii.ply", ply(WITH_HOLES, "ascii")),
        *[
            (f"{kind}_{what}.pcd", pcd(WITH_HOLES, kind, fields))
            for kind in ("ascii", "binary", "binary_compressed")
            for what, fields in (("plain", PLAIN), ("rich", RICH), ("double", DOUBLES))
        ],
        ("no_count.pcd", pcd(WITH_HOLES, "binary", COUNT=None)),
        ("windows.pcd", pcd(WITH_HOLES, "ascii").replace(b"\n", b"\r\n")),
    ),
)
def test_points_are_read_without_those_that_are_not_finite(tmp_path, name, data):
    points = read_points(written(tmp_path, name, data))
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, POINTS)


def test_vertices_of_a_mesh_are_points(tmp_path):
    """As scanners' programs write them."""
    data = trimesh.creation.box((1, 2, 3)).export(file_type="ply")
    points = read_points(written(tmp_path, "box.ply", data))
    np.testing.assert_allclose(np.abs(points), np.tile([0.5, 1, 1.5], (len(points), 1)))


def test_long_copies_of_a_packed_cloud_are_undone(tmp_path):
    """Of many equal points nearly everything is copied, some of it from itself as it grows."""
    points = np.repeat(POINTS, 400, axis=0)
    data = pcd(points, "binary_compressed")
    assert len(data) < 0.1 * points.nbytes
    np.testing.assert_array_equal(read_points(written(tmp_path, "many.pcd", data)), points)


NOTHING = POINTS[:0]


@pytest.mark.parametrize(
    "name, data",
    named(
        ("none.npy", npy(NOTHING)),
        ("none.bin", b""),
        ("none.ply", ply(POINTS, "ascii").replace(b"vertex 5", b"vertex 0").split(b"1.0 2.0")[0]),
        *[(f"{kind}.pcd", pcd(NOTHING, kind)) for kind in ("ascii", "binary", "binary_compressed")],
    ),
)
def test_an_empty_cloud_has_no_points(tmp_path, name, data):
    assert read_points(written(tmp_path, name, data)).shape == (0, 3)


def packed_wrongly(body, size=60):
    """A cloud of five plain points, packed like that."""
    data = struct.pack("<II", len(body), size) + body
    return pcd(POINTS, "binary_compressed", body=data)


@pytest.mark.parametrize(
    "name, data, words",
    named(
        ("points.xyz", b"1 2 3", r"give a \.pcd, \.ply"),
        ("points", b"1 2 3", r"\.bin \(KITTI\) or \.npy"),
        ("flat.npy", npy(POINTS.ravel()), r"shape \(15,\)"),
        ("narrow.npy", npy(POINTS[:, :2]), r"shape \(5, 2\)"),
        ("words.npy", npy(np.full((2, 3), "far")), "numbers"),
        ("empty.npy", b"", "numpy array"),
        ("short.npy", npy(POINTS)[:-4], "numpy array"),
        ("short.bin", kitti(POINTS)[:-4], "76 bytes"),
        ("text.ply", b"no ply", "no PLY"),
        ("empty.ply", b"", "no PLY"),
        ("short.ply", ply(POINTS, "binary")[:-4], "no PLY"),
        ("text.pcd", b"no pcd", "no line DATA"),
        ("empty.pcd", b"", "no line DATA"),
        ("kind.pcd", pcd(POINTS, "lzma", body=b""), "DATA lzma is not known"),
        ("no_z.pcd", pcd(POINTS, "binary", PLAIN[:2]), "no PCD"),
        ("no_size.pcd", pcd(POINTS, "binary", SIZE=None), "no PCD"),
        ("odd_size.pcd", pcd(POINTS, "binary", SIZE=[3, 3, 3]), "no PCD"),
        ("odd_type.pcd", pcd(POINTS, "binary", TYPE=["Q", "F", "F"]), "no PCD"),
        ("few_types.pcd", pcd(POINTS, "binary", TYPE=["F", "F"]), "no PCD"),
        ("number.pcd", pcd(POINTS, "binary", POINTS=["many"]), "no PCD"),
        ("short.pcd", pcd(POINTS, "binary")[:-1], "no PCD"),
        ("word.pcd", pcd(POINTS, "ascii").replace(b"9.25", b"far"), "no PCD"),
        ("short_text.pcd", pcd(POINTS, "ascii").replace(b"1000.0 1.0 2.0\n", b""), "no PCD"),
        (
            "narrow_text.pcd",  # what is left fills as many rows of fewer columns
            pcd(POINTS, "ascii", [*PLAIN, *DOUBLES[:2]]).rsplit(b"\n", 2)[0],
            "no PCD",
        ),
        ("short_packed.pcd", pcd(POINTS, "binary_compressed")[:-3], "no PCD"),
        ("no_sizes.pcd", pcd(POINTS, "binary_compressed", body=b"1234"), "no PCD"),
        ("size.pcd", packed_wrongly(lzf(POINTS.T.tobytes()), 61), "61 announced"),
        ("size60.pcd", packed_wrongly(lzf(bytes(59))), "59 bytes were packed, 60 announced"),
        ("before.pcd", packed_wrongly(b"\x03abcd" + b"\xe0\x2f\x05"), "no PCD"),
    ),
)
def test_what_are_no_points_is_refused(tmp_path, name, data, words):
    with pytest.raises(MeasuredError, match=words) as error:
        read_points(written(tmp_path, name, data))
    assert str(tmp_path / name) in str(error.value)


# ---- transforms ----

MOVE = np.array([[0, -1, 0, 0.5], [1, 0, 0, -2], [0, 0, 1, 1e-3], [0, 0, 0, 1]])


def rows(matrix, between=" ", end="\n"):
    return end.join(between.join(map(str, row)) for row in matrix)


@pytest.mark.parametrize(
    "text",
    [
        rows(MOVE),
        rows(MOVE[:3]),
        rows(MOVE, ", ", ";\n"),
        rows(MOVE[:3], " ", " "),  # in one line, as KITTI has them
        str(MOVE.tolist()),
        f"{MOVE}\n",
        rows(MOVE, "\t", "\r\n"),
    ],
)
def test_a_transform_has_four_rows_or_three(tmp_path, text):
    found = read_transform(written(tmp_path, "move.txt", text.encode()))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, MOVE)


@pytest.mark.parametrize(
    "text, words",
    [
        ("1 2 3", "has 3 numbers; give 4x4 or 3x4"),
        (rows(MOVE[:3, :3]), "has 9 numbers"),
        (rows(MOVE) + " 1", "has 17 numbers"),
        ("", "has 0 numbers"),
        ("Tr: " + rows(MOVE[:3]), "not made of numbers.*Tr:"),
        ("\udcff", "not made of numbers"),
    ],
)
def test_what_is_no_transform_is_refused(tmp_path, text, words):
    path = written(tmp_path, "move.txt", text.encode(errors="surrogateescape"))
    with pytest.raises(MeasuredError, match=words) as error:
        read_transform(path)
    assert str(path) in str(error.value)
