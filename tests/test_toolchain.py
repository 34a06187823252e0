"""CXX and CC are commands of one word or more, wherever the repository asks for them."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from broken_package import compiled
from emu.build import compile_and_link
from harness.build import compilers, target_machine
from toolchain import aarch64_cxx, cc, cxx, is_installed

ROOT = Path(__file__).resolve().parents[1]
ASKED = re.compile(r"""environ(?:\.get\(|\[)["'](?:AARCH64_)?(?:CXX|CC)["']""")


@pytest.mark.parametrize(("variable", "asked"), [("CXX", cxx), ("CC", cc), ("AARCH64_CXX", aarch64_cxx)])
def test_words(monkeypatch, variable, asked):
    monkeypatch.setenv(variable, "ccache '/opt/a compiler/g++' -m64")
    assert asked() == ["ccache", "/opt/a compiler/g++", "-m64"]
    for unset in (lambda: monkeypatch.setenv(variable, ""), lambda: monkeypatch.delenv(variable)):
        unset()
        assert re.search(r"g(\+\+|cc)$", *asked())


def test_a_compiler_of_two_words(monkeypatch, tmp_path):
    """`env` runs what follows, as ccache does, and is everywhere."""
    if not is_installed(cxx()):
        pytest.skip("a machine without a compiler")
    plain = cxx()
    machine = target_machine()
    monkeypatch.setenv("CXX", shlex.join(["env", *plain]))
    assert compilers()[0] == shlex.join(["env", *plain])
    assert target_machine() == target_machine(compilers()[0]) == machine
    compiled("int one() { return 1; }", tmp_path / "one.so")
    (tmp_path / "main.cpp").write_text("int main() {}")
    edges = ["build main.o: cxx main.cpp\n  flags = -O0\n", "build main: link main.o\n"]
    compile_and_link(tmp_path, edges, "", "")
    assert subprocess.run([tmp_path / "main"]).returncode == 0


def test_who_asks_splits():
    """What reads the variables makes words of them: everything else has them from there."""
    read = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "setup.py"]
    assert len(read) > 100
    found = [
        (path.relative_to(ROOT).as_posix(), line.strip())
        for path in read
        for line in path.read_text().splitlines()
        if ASKED.search(line)
    ]
    assert {"tests/toolchain.py", "tools/wheels.py", "setup.py"} <= {name for name, _ in found}
    assert not [(name, line) for name, line in found if "shlex.split(" not in line]
