# SPDX-License-Identifier: Apache-2.0
import stat

import pytest

from pose_refiner_ros.files.atomic import write_atomically


def test_atomic_writing_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
