"""Where the outcomes of tuning are kept: whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import threading
import warnings

import pytest

from fastrnn._plan.tuning import cache


def test_the_place_of_the_cache(monkeypatch, tmp_path):
    for value, want in (
        (str(tmp_path), tmp_path / "tune.json"),
        (str(tmp_path / "own.json"), tmp_path / "own.json"),
        ("", tmp_path / "xdg" / "fastrnn" / "tune.json"),
    ):
        monkeypatch.setenv("FASTRNN_CACHE", value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache.place() == want


def test_updates_from_many_sides(store):
    """Read, change and write are one step: no update is lost, and no reader sees half a file."""

    def add(number):
        mine = cache.Cache(store.path)
        for i in range(10):
            mine.update(lambda d, i=i: d["devices"].update({f"{number}-{i}": {}}))
            assert cache.parsed(store.path) is not None

    threads = [threading.Thread(target=add, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(store.read()["devices"]) == 40
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["tune.json", "tune.lock"]


def test_a_write_that_fails_leaves_the_file(store, monkeypatch):
    store.update(lambda d: d["devices"].update(a={}))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="cannot be written .*lasts as long as this process"):
        store.update(lambda d: d["devices"].update(b={}))
    assert list(cache.parsed(store.path)["devices"]) == ["a"]
    assert set(store.read()["devices"]) == {"a", "b"}  # in memory
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["tune.json", "tune.lock"]


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    """Tuning works all the same, for this process; one warning."""
    (tmp_path / "file").write_text("")
    mine = cache.Cache(tmp_path / "file" / "tune.json")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        mine.update(lambda d: d["devices"].update(a={}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.update(lambda d: d["devices"].update(b={}))
    assert set(mine.read()["devices"]) == {"a", "b"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "devices": {}}', '{"format": 1, "devices": []}']
)
def test_a_file_that_is_none(store, text):
    """Another program's, another version's or half of one is read as nothing, and replaced."""
    store.path.parent.mkdir(parents=True)
    store.path.write_text(text)
    assert store.read() == cache.empty()
    store.update(lambda d: d["devices"].update(a={}))
    assert list(cache.parsed(store.path)["devices"]) == ["a"]
