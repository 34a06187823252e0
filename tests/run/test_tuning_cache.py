"""Where the outcomes of tuning are kept: whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
import pwd
import threading
import warnings
from pathlib import Path

import pytest
from tuning_fakes import GPU, KIND

from fastrnn import cli
from fastrnn._plan.tuning import cache, identity, trust


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


RECORD = {"forward": "grid", "candidates": {"grid forward": {"state": "verified"}}}


@pytest.mark.parametrize(
    "device",
    [
        5,
        {"kinds": []},
        {"kinds": {"bad": "x"}},
        {"kinds": {"bad": {"candidates": []}}},
        {"kinds": {"bad": {"candidates": {"grid forward": 7}}}},
        {"kinds": {"bad": {"forward": 5}}},
        {"kinds": {"bad": {"candidates": {"grid forward": {"state": ["verified"]}}}}},
        {"kinds": {"bad": {"candidates": {"grid forward": {"us": "fast"}}}}},
        {"kinds": {}, "quarantined": ["grid"]},
        {"kinds": {}, "quarantined": {"grid": 1}, "device": {"gpu": 1}},
    ],
    ids=str,
)
def test_what_is_no_outcome_is_left_out(gpu, capsys, device):
    """A file that somebody edited, or another version wrote, stops no call and no command; what is sound in
    it counts."""
    key, here = KIND.key.replace("training", "inference"), identity.text(GPU)
    if isinstance(device, dict) and isinstance(device["kinds"], dict):
        device = device | {"kinds": device["kinds"] | {key: RECORD}}
    gpu.path.parent.mkdir(parents=True)
    gpu.path.write_text(json.dumps({"format": 1, "devices": {here: device}}))
    found = trust.device(0)
    assert found.quarantined == {}
    assert found.lines() == (
        f"{key}\tgrid\tstepwise\n" if isinstance(device, dict) and device["kinds"] else ""
    )
    assert cli.main(["tune", "--show"]) == 0
    assert "bad" not in capsys.readouterr().out


def test_a_tier_that_is_none(gpu):
    """The planner is told of no tier that this version has not."""
    record = {"forward": "warp", "candidates": {"warp forward": {"state": "verified"}}}
    key = KIND.key.replace("training", "inference")
    gpu.update(lambda d: d["devices"].update({identity.text(GPU): {"kinds": {key: record}}}))
    assert trust.device(0).lines() == ""


def test_a_user_without_a_home(monkeypatch):
    """As in a container: no error, and a place that can be written or not."""
    for name in ("FASTRNN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache.place() == Path("/.cache/fastrnn/tune.json")
    monkeypatch.setenv("FASTRNN_CACHE", "~nobody-of-this-name/x")
    assert cache.place().name == "tune.json"
