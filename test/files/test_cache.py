# SPDX-License-Identifier: Apache-2.0
"""Cached arrays: built once, rebuilt when damaged, and no harm where nothing can be written."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from pose_refiner_ros.files import cache
from pose_refiner_ros.files.cache import cache_folder, cache_key, cached_arrays


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_REFINER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_warned_about", set())
    return tmp_path / "cache"


class Builder:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return {"a": np.arange(6).reshape(2, 3), "b": np.float32(1.5)}


def test_built_once_and_the_same_again(own_cache):
    build = Builder()
    for _ in range(3):
        arrays = cached_arrays("things", "key", build)
        np.testing.assert_array_equal(arrays["a"], [[0, 1, 2], [3, 4, 5]])
        assert arrays["b"] == np.float32(1.5)
        assert arrays["a"].flags.writeable
    assert build.calls == 1
    assert [path.name for path in (own_cache / "things").iterdir()] == ["key.npz"]


def test_another_key_or_kind_is_built_separately():
    build = Builder()
    cached_arrays("things", "one", build)
    cached_arrays("things", "two", build)
    cached_arrays("others", "one", build)
    assert build.calls == 3


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_damaged_files_are_rebuilt(own_cache, damage):
    build = Builder()
    cached_arrays("things", "key", build)
    path = own_cache / "things" / "key.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    cached_arrays("things", "key", build)
    assert build.calls == 2
    cached_arrays("things", "key", build)
    assert build.calls == 2


def test_unwritable_cache_works_with_one_warning(own_cache, caplog):
    own_cache.write_text("a file where the folder should be")
    build = Builder()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cached_arrays("things", "key", build)["a"].shape == (2, 3)
    assert build.calls == 2
    assert len(caplog.records) == 1
    assert "POSE_REFINER_CACHE" in caplog.text


def test_errors_of_the_builder_come_through_and_leave_nothing(own_cache):
    def build():
        raise RuntimeError("cannot")

    with pytest.raises(RuntimeError, match="cannot"):
        cached_arrays("things", "key", build)
    assert not own_cache.exists()


def test_many_threads_at_once(own_cache):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cached_arrays("t", "k", Builder())["a"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert [path.name for path in (own_cache / "t").iterdir()] == ["k.npz"]


def test_keys_differ_with_every_part():
    keys = {
        cache_key(*parts)
        for parts in [
            (),
            ("a",),
            ("a", 1),
            ("a", 1.5),
            (1, "a"),
            ({"x": 1},),
            ({"x": 2},),
            (["a"],),
        ]
    }
    assert len(keys) == 8
    assert cache_key({"x": 1, "y": 2}) == cache_key({"y": 2, "x": 1})


def test_folder_from_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("POSE_REFINER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pose_refiner_ros"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pose_refiner_ros"
