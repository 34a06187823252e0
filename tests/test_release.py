"""What a release is made with: the version's one place, the changelog, linking for an older system."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str):
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release, oldest = tool("release"), tool("oldest")
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


@pytest.mark.parametrize(
    ("version", "changelog", "fault"),
    [
        ("1.2.0", GOOD, None),
        ("1.2.0rc1", GOOD.replace("1.2.0", "1.2.0rc1"), None),
        ("1.2", GOOD, "expected a version such as 1.2.0"),
        ("1.3.0", GOOD, "no section [1.3.0]"),
        ("1.2.0", GOOD.replace("[Unreleased]\n", "[Unreleased]\n\n- More.\n"), "under [Unreleased]"),
        ("1.2.0", GOOD.replace(" - 2026-12-01", ""), "expected [1.2.0] - YYYY-MM-DD, got [1.2.0]"),
        ("1.2.0", GOOD.replace("### Added\n\n- All.\n", ""), "section [1.2.0] is empty"),
    ],
)
def test_changelog_is_checked(version, changelog, fault):
    """A release that nobody described does not leave."""
    found = release.faults(version, changelog)
    assert bool(found) == (fault is not None), found
    assert fault is None or fault in found[0]


def test_versions_that_the_policy_allows():
    """Up to manylinux_2_28's, by number and not by letters; private symbols are nobody's."""
    for version in ("GLIBC_2.2.5", "GLIBC_2.28", "GLIBCXX_3.4.9", "GLIBCXX_3.4.24", "CXXABI_1.3.11"):
        assert oldest.allowed(version), version
    for version in ("GLIBC_2.29", "GLIBC_2.34", "GLIBCXX_3.4.25", "CXXABI_1.3.12", "GLIBC_PRIVATE", "X_1.0"):
        assert not oldest.allowed(version), version


PROGRAM = r"""
#include <cmath>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <dlfcn.h>
extern "C" const char* probe(double x) {
  static std::string said;
  std::ostringstream out;
  auto shared = std::make_shared<double>(std::pow(x, 0.5) + std::log(x));
  out << *shared << (dlsym(nullptr, "malloc") != nullptr);
  try { throw std::runtime_error("caught"); } catch (const std::exception& e) { out << e.what(); }
  said = out.str();
  return said.c_str();
}
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc" or not shutil.which("g++"),
    reason="about g++ and glibc",
)
def test_linked_for_an_older_system(tmp_path):
    """A library with what is newer than the policy here asks for old versions alone, and works."""
    (tmp_path / "probe.cpp").write_text(PROGRAM)
    compiled = ["g++", "-std=c++20", "-O2", "-fPIC", "-c", tmp_path / "probe.cpp", "-o", tmp_path / "probe.o"]
    subprocess.run(compiled, check=True)
    made = tmp_path / "probe.so"
    flags = oldest.link_flags(tmp_path / "stand-ins")
    hidden = "-Wl,--exclude-libs,ALL"
    subprocess.run(["g++", "-shared", tmp_path / "probe.o", hidden, *flags, "-o", made], check=True)
    needs = subprocess.check_output(["readelf", "-V", "-W", made], text=True)
    versions = set(re.findall(r"Name: ((?:GLIBC|GLIBCXX|CXXABI)_\S+)", needs))
    assert any(version.startswith("GLIBCXX") for version in versions)
    assert all(oldest.allowed(version) for version in versions), versions
    program = (
        "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).probe; f.restype = ctypes.c_char_p; "
        "f.argtypes = [ctypes.c_double]; print(f(1.0).decode())"
    )
    assert subprocess.check_output([sys.executable, "-c", program, made], text=True) == "11caught\n"
