"""Other systems than Linux: what is read of their files, what a file is refused for, and meetings of threads
without Linux's futex, run here."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import layer_cases
import pytest
import torch
from harness import build
from harness.kernels import Kernels
from selection import thorough

ROOT = Path(__file__).resolve().parents[1]


def tool(name: str):
    """A program of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(ROOT / "tools"))  # they import each other as programs do
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


objects = tool("objects")
cross = tool("cross")
MODULE_OF_MACOS = {"_PyInit__C": None, "_PyObject_Call": 254, "_malloc": 1}


def mach_o(symbols: dict[str, int | None], libraries: list[str], machine=0x0100000C, signed=True) -> bytes:
    """A Mach-O file's tables: ``symbols`` that it has (None) or takes, of the library with that number."""
    commands = []
    for name in libraries:
        padded = name.encode() + b"\0" * (8 - len(name) % 8)
        commands.append(struct.pack("<IIIIII", 0xC, 24 + len(padded), 24, 0, 0, 0) + padded)
    commands.append(struct.pack("<IIIIII", 0x32, 24, 1, 11 << 16, 14 << 16, 0))
    if signed:
        commands.append(struct.pack("<IIII", 0x1D, 16, 0, 0))
    before = 32 + sum(map(len, commands)) + 24
    strings, rows = b"\0", b""
    hidden_and_local = {"_hidden": (0x1F, 0), "_local": (0x0E, 0), "_debug": (0x2F, 0)}
    kinds = {n: (0x0F, 0) if of is None else (0x01, of << 8) for n, of in symbols.items()} | hidden_and_local
    for name, (kind, description) in kinds.items():
        rows += struct.pack("<IBBHQ", len(strings), kind, 1, description, 0)
        strings += name.encode() + b"\0"
    table = struct.pack("<IIIIII", 0x2, 24, before, len(kinds), before + len(rows), len(strings))
    body = b"".join([*commands, table])
    header = struct.pack("<IIIIIIII", 0xFEEDFACF, machine, 0, 6, len(commands) + 1, len(body), 0, 0)
    return header + body + rows + strings


def portable(imports: dict[str, list[str]], exports: list[str], machine=0x8664) -> bytes:
    """A PE file's tables, in one section that is loaded at 0x1000 and lies at 0x200."""
    section = bytearray(b"\0" * (20 * (len(imports) + 1)))

    def place(data: bytes) -> int:
        section.extend(data + b"\0" * (-len(data) % 8))
        return 0x1000 + len(section) - len(data) - -len(data) % 8

    for i, (library, names) in enumerate(imports.items()):
        hints = [place(b"\0\0" + name.encode() + b"\0") for name in names]
        lookup = place(struct.pack(f"<{len(hints) + 2}Q", *hints, 1 << 63 | 7, 0))  # and one by its number
        name = place(library.encode() + b"\0")
        struct.pack_into("<IIIII", section, 20 * i, lookup, 0, 0, name, lookup)
    names = [place(name.encode() + b"\0") for name in exports]
    list_of_names = place(struct.pack(f"<{len(names)}I", *names))
    table = place(struct.pack("<IIHHIIIIIII", 0, 0, 0, 0, 0, 1, len(names), len(names), 0, list_of_names, 0))
    head = bytearray(0x200)
    head[:2], head[0x3C:0x40], head[0x40:0x44] = b"MZ", struct.pack("<I", 0x40), b"PE\0\0"
    struct.pack_into("<HHIIIHH", head, 0x44, machine, 1, 0, 0, 0, 240, 0)
    struct.pack_into("<H", head, 0x58, 0x20B)
    struct.pack_into("<IIII", head, 0x58 + 112, table, 40, 0x1000, 20)
    struct.pack_into("<8sIIII", head, 0x58 + 240, b".all", len(section), 0x1000, len(section), 0x200)
    return bytes(head + section)


@pytest.fixture
def read(tmp_path):
    """What objects.read() says of some bytes."""

    def of(data: bytes):
        (tmp_path / "file").write_bytes(data)
        return objects.read(tmp_path / "file")

    return of


def test_tables_of_macos(read):
    """Names by the library that they are taken from; what is hidden, local or for debuggers is nobody's."""
    found = read(mach_o({"_a": None, "_b": 1, "_c": 2, "_d": 254}, ["/usr/lib/x.dylib", "@rpath/y.dylib"]))
    assert found == objects.Binary(
        format="Mach-O",
        machine="arm64",
        imports={"/usr/lib/x.dylib": ["_b"], "@rpath/y.dylib": ["_c"], "": ["_d"]},
        exports=["_a"],
        oldest="11.0",
        signed=True,
    )


def test_tables_of_windows(read):
    found = read(portable({"KERNEL32.dll": ["Sleep", "Beep"], "x.dll": ["y"]}, ["b", "a"]))
    assert (found.format, found.machine, found.exports) == ("PE", "x86_64", ["a", "b"])
    assert found.imports == {"KERNEL32.dll": ["Sleep", "Beep", "#7"], "x.dll": ["y", "#7"]}


def test_other_files_are_refused(read):
    with pytest.raises(
        ValueError, match="expected a PE or a 64-bit Mach-O file, got one that begins with 7f454c46"
    ):
        read(b"\x7fELF" + b"\0" * 60)


TORCH, PYTHON = "@rpath/libtorch_cpu.dylib", f"python{cross.VERSION}.dll"
SYSTEM = "/usr/lib/libSystem.B.dylib"


@pytest.mark.parametrize(
    ("name", "data", "module", "fault"),
    [
        ("macos", mach_o({"_aoti_torch_x": 2}, [SYSTEM, TORCH]), False, ""),
        ("macos", mach_o(MODULE_OF_MACOS, [SYSTEM]), True, ""),
        ("macos", mach_o(MODULE_OF_MACOS, [SYSTEM], machine=0x01000007), True, "for x86_64, expected arm64"),
        ("macos", mach_o(MODULE_OF_MACOS, [SYSTEM], signed=False), True, "not signed"),
        ("macos", mach_o({"_PyObject_Call": 254}, [SYSTEM]), True, "has no _PyInit__C"),
        ("macos", mach_o({"_x": 1}, [SYSTEM]), False, "takes nothing of torch"),
        ("macos", mach_o({"_x": 254, "_y": 2}, [SYSTEM, TORCH]), False, "needs symbols of nobody"),
        (
            "macos",
            mach_o({"__ZN2at4loadEv": 2}, [SYSTEM, TORCH]),
            False,
            "_ZN2at4loadEv of torch, which is C++",
        ),
        ("macos", mach_o({"_x": 2}, [SYSTEM, "@rpath/libc10.dylib"]), False, "needs @rpath/libc10.dylib"),
        ("windows", portable({"torch_cpu.dll": ["aoti_torch_x"], "KERNEL32.dll": ["Sleep"]}, []), False, ""),
        ("windows", portable({PYTHON: ["PyObject_Call"]}, ["PyInit__C"]), True, "needs #7"),
        ("windows", portable({"torch_cpu.dll": ["?load@at@@YAXXZ"]}, []), False, "which is C++"),
        (
            "windows",
            portable({"torch_cpu.dll": ["x"], "libgcc_s.dll": ["y"]}, []),
            False,
            "needs libgcc_s.dll",
        ),
        ("windows", portable({"torch_cpu.dll": ["x"]}, [], machine=0xAA64), False, "expected x86_64"),
        (
            "windows",
            portable({PYTHON: ["PyNo_Such"]}, ["PyInit__C"]),
            True,
            "PyNo_Such, which this",
        ),
    ],
)
def test_what_a_file_is_refused_for(read, name, data, module, fault):
    """For another processor, for whom it needs or what of them, for what it lacks: nothing else is known of a
    file that was not run."""
    found = cross.judge_file(cross.SYSTEMS[name], read(data), module)
    assert (fault in "; ".join(found)) if fault else not found


def test_wheels_are_looked_into(tmp_path, monkeypatch):
    """A wheel with another system's files, or without its own, is none."""
    import zipfile

    monkeypatch.setattr(cross, "BUILD", tmp_path / "build")
    wheel = tmp_path / f"fastrnn-1.0.0-cp{cross.VERSION}-cp{cross.VERSION}-macosx_11_0_arm64.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("fastrnn/libfastrnn_cpu.so", mach_o({"_aoti_torch_x": 2}, [SYSTEM, TORCH]))
        file.writestr("fastrnn/libfastrnn_cuda.so", b"")
    module = f"fastrnn/_C.cpython-{cross.VERSION}-darwin.so"
    assert cross.judge("macos", wheel) == [
        f"{module} is not in it",
        "fastrnn/libfastrnn_cuda.so has no business in it",
    ]
    assert any("is not named for" in fault for fault in cross.judge("windows", wheel))


def test_this_python_shows_its_symbols():
    """What the import library for Windows is made of."""
    if not shutil.which("nm"):
        pytest.skip("nm (binutils) is not installed")
    found = cross.python_symbols()
    assert found["PyObject_Call"]
    assert not found["PyExc_ValueError"]


ZIG = """
import pathlib, sys
words = sys.argv[1:]
made = words[words.index("-o") + 1] if "-o" in words else "a.o"
pathlib.Path(made).touch()
print(*words)
"""


@pytest.mark.parametrize("question", ["--version", "-dumpfullversion -dumpversion", "-v"])
def test_a_question_to_the_compiler_leaves_nothing(question, tmp_path, monkeypatch):
    """zig makes an empty a.o where it is asked for its version, and `make cross` asks in the project's
    folder. What is compiled lands where it was asked for."""
    (tmp_path / "ziglang").mkdir()
    (tmp_path / "ziglang" / "__main__.py").write_text(ZIG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    compiler = cross.command(tmp_path, cross.SYSTEMS["macos"], ["-mine"])

    def said(*words: str) -> str:
        return subprocess.check_output([compiler, *words], cwd=here, text=True).strip()

    target = f"c++ -target {cross.SYSTEMS['macos'].target} -mine"
    assert said(*question.split()) == f"{target} {question}"
    assert not list(here.iterdir())
    assert said("-fPIC", "-c", "x.cpp", "-o", "x.o") == f"{target} -c x.cpp -o x.o"
    assert [made.name for made in here.iterdir()] == ["x.o"]


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
@pytest.mark.parametrize("name", ["macos", "windows"])
def test_every_source_compiles_for(name, tmp_path):
    """The scan's kernels and Linux's own corner of the library, as other systems see them."""
    system = cross.SYSTEMS[name]
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "c++",
        "-target",
        system.target,
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Werror",
    ]
    command += [f"-I{ROOT / 'csrc'}", f"-I{Path(torch.__file__).parent / 'include'}", "-c"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    machine = {"arm64": "aarch64"}.get(system.machine, system.machine)
    for stem in (
        "isa/baseline_scan",
        "isa/avx2_scan",
        "isa/neon_scan",
        "isa/choose",
        "isa/processor",
        "ops/threads",
    ):
        own = build.isa_flags(Path(stem).name, machine)
        made = tmp_path / f"{Path(stem).name}.o"
        subprocess.run([*command, *own, ROOT / "csrc" / "cpu" / f"{stem}.cpp", "-o", made], check=True)


@thorough
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every test is of it")
def test_threads_meet_without_futex():
    """Where Linux's futex is not, whoever waits gives its turn away, again and again: more threads than cores
    finish, and with the right numbers."""
    plain = build.harness("no_futex", ["-O1", "-U__linux__"], faults=[build.BASELINE_ALONE], isas="baseline*")
    with Kernels([str(plain)]) as kernels:
        for cell in layer_cases.CELLS:
            for threads, save in ((2, "gates"), (6, "recompute")):
                case = layer_cases.Case(cell, T=40, B=6, H=33, dtype=torch.float64, save=save)
                layer_cases.check(kernels.plan(threads, 1, threads), case)


ELSEWHERE = """
import os, pathlib, sys
import torch  # whose build there is another
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # whoever imports it is told that there is none
for name in ("sched_getaffinity", "sched_setaffinity", "fork", "killpg", "getuid", "uname"):
    if hasattr(os, name):
        delattr(os, name)
there = pathlib.Path.read_text
def read_text(self, *arguments, **options):
    if str(self).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return there(self, *arguments, **options)
pathlib.Path.read_text = read_text
import fastrnn
from fastrnn._plan.tuning import cache
from fastrnn.cli.info import collect
layer = fastrnn.LSTM(8, 16)
x = torch.randn(5, 2, 8)
theirs = torch.nn.LSTM(8, 16)
theirs.load_state_dict(layer.state_dict())
torch.testing.assert_close(layer(x)[0], theirs(x)[0])
layer(x)[0].sum().backward()
from fastrnn.proof import machine
collect()
print(machine.cpu_model() != "", machine.usable_cores() >= 1, fastrnn._ops.library.cpu_threads() >= 1)
"""


def test_the_package_needs_nothing_that_only_linux_has():
    """Python's side of other systems: without /proc, /sys, and the modules and calls that Windows or macOS
    lack."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True True True\n"), done.stderr
