"""What a release is made with: the version's one place, the changelog, what is in it."""

from __future__ import annotations

import itertools
import re
import sys
from datetime import date

import pytest
from release_tools import NAMES, ROOT, tool

import fastrnn

pythons, release = map(tool, ("pythons", "release"))
GOOD = (
    "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-12-01\n\n### Added\n\n- All.\n\n## [1.1.0] - 2026\n"
)


def test_version_stands_in_one_place():
    """Whoever writes it down a second time forgets it there."""
    assert release.version() == fastrnn.__version__
    for name in (
        "pyproject.toml",
        "setup.py",
        "docs/conf.py",
        "fastrnn/__init__.py",
        "README.md",
        "Makefile",
    ):
        assert not re.search(
            rf"(?<![\d.]){re.escape(fastrnn.__version__)}(?![\d.])", (ROOT / name).read_text()
        ), name


def test_every_python_that_has_a_wheel_is_named():
    """In the metadata, by which people look for packages, and in cibuildwheel's list."""
    text = (ROOT / "pyproject.toml").read_text()
    assert tuple(re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)) == pythons.VERSIONS
    minors = "{" + ",".join(v.removeprefix("3.1") for v in pythons.VERSIONS) + "}"
    for machine in ("x86_64", "aarch64"):
        assert f'"cp31{minors}-manylinux_{machine}"' in text


@pytest.mark.parametrize(
    ("version", "changelog", "fault"),
    [
        ("1.2.0", GOOD, None),
        ("1.2.0rc1", GOOD.replace("1.2.0", "1.2.0rc1"), None),
        ("1.2", GOOD, "expected a version such as 1.2.0"),
        ("1.3.0", GOOD, "no section [1.3.0]"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "Unreleased\n\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("## [Unreleased]\n", "# [unreleased] - soon\n- More.\n"), "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "Unreleased\n\n### Fixed\n"), "under Unreleased"),
        ("1.2.0", f"{GOOD}\n## Unreleased\n\n- More.", "under Unreleased"),
        ("1.2.0", GOOD.replace("[Unreleased]", "Unreleased"), None),
        ("1.2.0", GOOD.replace("2026-12-01", "9999-99-99"), "there is no such day"),
        ("1.2.0", GOOD.replace("2026-12-01", "2026-02-29"), "there is no such day"),
        ("1.2.0", GOOD.replace("2026-12-01", "2026-12-02"), "still to come"),
        ("1.2.0", f"{GOOD}\n## [1.2.0] - 2026-12-01\n\n- More.\n", "more than one section [1.2.0]"),
        ("1.2.0", GOOD.replace(" - 2026-12-01", ""), "expected [1.2.0] - YYYY-MM-DD, got [1.2.0]"),
        ("1.2.0", GOOD.replace("### Added\n\n- All.\n", ""), "section [1.2.0] is empty"),
    ],
)
def test_changelog_is_checked(version, changelog, fault):
    """A release that nobody described does not leave, nor one of a day that has not come."""
    found = release.faults(version, changelog, date(2026, 12, 1))
    assert bool(found) == (fault is not None), found
    assert fault is None or fault in found[0]


def test_a_release_is_whole_or_says_what_is_not_in_it(tmp_path, monkeypatch, capsys):
    """A kind that cannot be made here, or a CPython that is not installed, is found before anything is made;
    in the end every file is looked for. Only who asks for a part gets one, and reads what is not in it."""
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release, "version", lambda: "1.2.0")
    (tmp_path / "CHANGELOG.md").write_text(GOOD.replace("2026-12-01", "2026-11-01"))

    def status(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["release.py", *words])
        return release.main(), capsys.readouterr().out

    lacking = ["cuda: torch is a CPU build", "python3.99 is not installed"]
    for missing, fails in ((lacking, 1), ([], 0)):
        monkeypatch.setattr(release.wheels, "missing", lambda missing=missing: missing)
        for words, expected in ((["check"], fails), (["check", "--partial"], 0)):
            code, said = status(*words)
            assert code == expected
            assert [f"not in this release: {what}" for what in missing] == re.findall("^not in.*", said, re.M)
    (tmp_path / "CHANGELOG.md").write_text("")
    assert status("check", "--partial")[0] == 1

    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "fastrnn-1.2.0.tar.gz").touch()
    for kind, name in itertools.product(("cpu", "cuda", "aarch64"), NAMES):
        if (kind == "aarch64") == ("aarch64" in name):
            (tmp_path / "dist" / kind).mkdir(exist_ok=True)
            (tmp_path / "dist" / kind / name).touch()
    assert status("whole") == (0, "version 1.2.0: everything is in dist/\n")
    (wheel,) = (tmp_path / "dist" / "cuda").glob("*cp313*")
    wheel.rename(str(wheel).replace("1.2.0", "1.1.0"))
    (tmp_path / "dist" / "fastrnn-1.2.0.tar.gz").unlink()
    code, said = status("whole")
    assert code == 1
    assert said.splitlines()[:2] == [
        "not in this release: fastrnn-1.2.0.tar.gz",
        "not in this release: cuda: the wheel for CPython 3.13",
    ]
    assert status("whole", "--partial")[0] == 0
