"""Linking for an older system than this one: stand-ins for libc, libm and libstdc++ that know old versions
alone.

manylinux_2_28 allows symbols of glibc up to 2.28 and of libstdc++ up to GCC 8's. What the linker finds in
this machine's libraries may be newer, though for most of it an older version is there too. So it is shown
stand-ins: the same names, functions that do nothing, and of every symbol's versions those that the policy
allows. What libstdc++ has had since then comes out of its archive into our library, hidden. Containers do the
same with an old system.

A symbol that neither has is an error of the linker, and auditwheel looks at what came out.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

#: The newest versions that the policy manylinux_2_28 allows.
LIMITS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}

#: libstdc++'s headers ask it whether a process has one thread alone; glibc has the answer since 2.32.
SINGLE_THREADED = (
    '__attribute__((visibility("hidden"))) char several_threads __asm__("__libc_single_threaded");\n'
)


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def allowed(version: str) -> bool:
    """Whether a version such as GLIBC_2.14 is of the policy; others (GLIBC_PRIVATE) are not."""
    name, _, of = version.rpartition("_")
    return name in LIMITS and bool(re.fullmatch(r"[\d.]+", of)) and number(of) <= LIMITS[name]


def symbols(library: Path) -> list[tuple[str, str, str, int]]:
    """(name, version, kind, size) of what a library defines, for each version that is allowed."""
    found = []
    lines = subprocess.check_output(["readelf", "--dyn-syms", "-W", library], text=True).splitlines()
    for line in lines:
        words = line.split()
        if len(words) < 8 or words[6] == "UND" or "@" not in words[7]:
            continue
        kind, bind, size, symbol = words[3], words[4], int(words[2], 0), words[7]
        name, version = re.split("@+", symbol)
        if kind in ("FUNC", "IFUNC", "OBJECT", "TLS") and bind != "LOCAL" and allowed(version):
            found.append((name, version, kind, size))
    return found


def newest(found: list[tuple[str, str, str, int]]) -> dict[str, tuple[str, str, int]]:
    """(version, kind, size) of each name, by the newest version that is allowed."""
    best: dict[str, tuple[str, str, int]] = {}
    for name, version, kind, size in found:
        if name not in best or number(version.rpartition("_")[2]) > number(best[name][0].rpartition("_")[2]):
            best[name] = version, kind, size
    return best


def stand_in(library: Path, folder: Path, compiler: Sequence[str]) -> Path:
    """A library of the same name in a folder, to be linked with and never run."""
    soname = re.search(
        r"soname: \[(.+?)\]", subprocess.check_output(["readelf", "-d", library], text=True)
    ).group(1)
    best = newest(symbols(library))
    lines, versions = [], {version for version, *_ in best.values()}
    for n, (name, (version, kind, size)) in enumerate(sorted(best.items())):
        section = {"OBJECT": ".data", "TLS": '.tbss, "awT", @nobits'}.get(kind, ".text")
        typed = {"OBJECT": "@object", "TLS": "@tls_object"}.get(kind, "@function")
        lines += [
            f".section {section}",
            f".globl stand_in_{n}",
            f".type stand_in_{n}, {typed}",
            f"stand_in_{n}:",
            f".zero {max(size, 1)}" if kind in ("OBJECT", "TLS") else ".zero 1",
            f".size stand_in_{n}, {size if kind in ('OBJECT', 'TLS') else 1}",
            f'.symver stand_in_{n}, "{name}@@{version}", remove',
        ]
    lines.append('.section .note.GNU-stack, "", %progbits')
    source, script, made = folder / f"{soname}.s", folder / f"{soname}.map", folder / soname
    source.write_text("\n".join(lines) + "\n")
    script.write_text("".join(f"{version} {{ }};\n" for version in sorted(versions)))
    subprocess.run(
        [
            *(*compiler, "-shared", "-nostdlib", f"-Wl,-soname,{soname}"),
            *(f"-Wl,--version-script={script}", source, "-o", made),
        ],
        check=True,
    )
    return made


def find(compiler: Sequence[str], name: str) -> Path:
    """A file of the compiler's own system."""
    found = subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
    if found == name:
        raise SystemExit(f"{shlex.join(compiler)} has no {name}")
    return Path(found).resolve()


def link_flags(folder: Path, compiler: Sequence[str] = ("g++",)) -> list[str]:
    """What to give the compiler after everything else to link for the oldest system, made in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    stand_ins = [stand_in(find(compiler, name), folder, compiler) for name in ("libm.so.6", "libc.so.6")]
    libstdcxx = stand_in(find(compiler, "libstdc++.so.6"), folder, compiler)
    subprocess.run(
        [*compiler, "-x", "c", "-c", "-fPIC", "-", "-o", folder / "single_threaded.o"],
        input=SINGLE_THREADED,
        text=True,
        check=True,
    )
    loader = next(p for p in ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1") if exists(compiler, p))
    return [
        "-nodefaultlibs",
        str(folder / "single_threaded.o"),
        "-Wl,--as-needed",
        str(libstdcxx),
        str(find(compiler, "libstdc++.a")),
        str(stand_ins[0]),
        "-lgcc_s",
        "-lgcc",
        str(stand_ins[1]),
        str(find(compiler, "libc_nonshared.a")),
        str(find(compiler, loader)),
    ]


def exists(compiler: Sequence[str], name: str) -> bool:
    return subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip() != name
