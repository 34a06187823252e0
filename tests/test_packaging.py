"""What is handed out: the source distribution has all that a build needs, and says what the package is."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tarfile.TarFile:
    """An archive made from the sources, with nothing left beside them."""
    folder = tmp_path_factory.mktemp("sdist")
    made = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "-e", str(folder), "sdist", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "FASTRNN_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return tarfile.open(next(folder.glob("*.tar.gz")))


def test_sdist_is_enough_to_build(sdist):
    """Every source of the package and its kernels, the marker of typed packages, and no half of the tests."""
    names = {name.partition("/")[2] for name in sdist.getnames()}
    for folder, suffixes in (("csrc", (".h", ".cpp", ".cu", ".cuh", ".inl", ".txt")), ("fastrnn", (".py",))):
        files = [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
        assert files
        assert {p.relative_to(ROOT).as_posix() for p in files} <= names
    assert {"fastrnn/py.typed", "LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert {name for name in names if name.startswith("tools/")} == {"tools/needs.py"}  # setup.py imports it
    assert {"fastrnn/include/fastrnn.h", "fastrnn/lib/cmake/fastrnn/fastrnn-config.cmake"} <= names
    assert not any(name.startswith("tests") or name.endswith((".so", ".o", ".a")) for name in names)


def test_metadata(sdist):
    """torch is all that a user needs, each extra has its packages, and the version is the package's."""
    file = next(n for n in sdist.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
    found = email.message_from_bytes(sdist.extractfile(file).read())
    assert (found["Name"], found["Version"]) == ("fastrnn", fastrnn.__version__)
    assert found["License-Expression"] == "BSD-3-Clause"
    assert found["Requires-Python"] == ">=3.10"
    required = found.get_all("Requires-Dist")
    assert [r for r in required if "extra" not in r] == ["torch>=2.11"]
    assert set(found.get_all("Provides-Extra")) == {"bench", "test", "sru", "dev"}
    assert [r.partition(";")[0] for r in required if '"bench"' in r] == ["rich"]


def test_the_description_stands_alone(sdist):
    """What a package index shows: it has no file of the repository to lead to, and no picture of it to show.
    Its code is the README's, which is run, and its commands are there."""
    file = next(n for n in sdist.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
    found = email.message_from_bytes(sdist.extractfile(file).read())
    assert found["Description-Content-Type"] == "text/markdown"
    shown = found.get_payload(decode=True).decode() or found["Description"]
    assert shown.startswith("# fastrnn\n")
    links = re.findall(r"\]\(([^)]*)\)|^\[[^]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]*)", shown, re.MULTILINE)
    assert not [link for link in map("".join, links) if not link.startswith("https:" + "//")]
    code = re.findall(r"```python\n.*?```", shown, re.DOTALL)
    assert code
    assert all(block in (ROOT / "README.md").read_text() for block in code)
    commands = re.findall(r"^python -m fastrnn (\w+)", shown, re.MULTILINE)
    assert {"verify", "bench", "info"} == set(commands)
    assert "DESCRIPTION.md" in {name.partition("/")[2] for name in sdist.getnames()}


def test_the_laboratory_stays_at_home(tmp_path, sdist):
    """What is installed is fastrnn alone, with the proof on the user's machine in it; benchmarks and examples
    stay in the repository, and nothing that is installed asks for them."""
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    environment = {**os.environ, "FASTRNN_CUDA": "0"}
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    installed = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.py")}
    tracked = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fastrnn").rglob("*.py")}
    assert installed == tracked
    assert "fastrnn/proof/speed.py" in installed
    folders = {name.split("/")[1] for name in sdist.getnames() if name.count("/") > 1}
    assert not folders & {"benchmarks", "examples", "tests"}
    asks = re.compile(r"^\s*(from|import) (benchmarks|examples|_demo|_run)\b", re.MULTILINE)
    assert not [name for name in installed if asks.search((ROOT / name).read_text())]


@pytest.mark.parametrize(
    ("folder", "name", "instead"),
    [
        ("csrc", "STABLE_TORCH_ERROR_CODE_CHECK", "TORCH_ERROR_CODE_CHECK, the same for this target version"),
        ("fastrnn", "compiler.is_exporting()", "torch_state.exporting(): torch 2.11's compiler says True"),
    ],
)
def test_nothing_that_the_oldest_torch_lacks(folder, name, instead):
    """torch 2.11 is promised and not installed here: what was found to fail there does not come back.

    With the first it does not build; with the second torch.compile trains nothing, in silence.
    """
    files = [
        p for p in (ROOT / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh", ".inl", ".py")
    ]
    users = {p.relative_to(ROOT).as_posix() for p in files if name in p.read_text()}
    assert not users, instead


#: How the address of a package index is known: by the name of its host, by where in it the packages lie, and
#: by the option that it is given to.
INDEX = re.compile(
    r":/{2}(pypi|test\.pypi|files|download|registry|repo\w*|mirrors?|proxy|packages|pkgs|conda|index|static|deb)"
    r"[-.]|:/{2}[^\s\"']*/(simple|whl|wheels|npm|conda-forge)\b"
    r"|:/{2}[^\s\"'/]*\b(pypi|pythonhosted|anaconda|npmjs|crates|rubygems|debian|ubuntu)\b"
    r"|(index-url|find-links|trusted-host|INDEX_URL|FIND_LINKS)[ =:\"']+\w+(:/|\.)",
    re.IGNORECASE,
)


def test_an_index_is_known_by_its_address():
    """The test below, on addresses of each kind and on what is none."""
    secure = "https:" + "//"  # so that none stands here
    hosts = (
        "pypi.x/project",
        "download.x.org/whl/cpu",
        "registry.x.org",
        "conda.x.org",
        "x.org/simple/torch",
    )
    for address in (*hosts, "a.pythonhosted.x/a.whl", "x.debian.y/debian", "mirror.x.net/a", "x.net/wheels/"):
        assert INDEX.search(secure + address), address
    assert INDEX.search("--extra-index-url" + " " + "http" + "://10.0.0.1/a")
    assert INDEX.search("PIP_INDEX_URL" + "=" + "http" + "://10.0.0.1/a")
    for text in (f"{secure}semver.org", f"{secure}keepachangelog.com/en/1.1.0", f"{secure}www.w3.org/2000"):
        assert not INDEX.search(text), text
    for text in (
        "--extra-index-url $(TORCH_CPU_INDEX)",
        'more = ["--extra-index-url", INDEX]',
        "index-url: yours",
    ):
        assert not INDEX.search(text), text


def test_no_package_index_is_named():
    """Which index packages come from is for whoever installs them: a mirror, a company's own, the public one.
    An address in a file would be asked behind their back, and is one that they may not reach."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    named = []
    for name in filter(None, listed.stdout.split("\0")):
        text = (ROOT / name).read_bytes().decode("utf-8", "ignore") if (ROOT / name).is_file() else ""
        named += [f"{name}: {match[0]}" for match in INDEX.finditer(text)]
    assert not named
