"""Reads what a library for macOS or Windows needs and has, on any system: the tables of Mach-O and PE files.

    python tools/objects.py FILE ...

prints for each its processor, its libraries with what is taken from them, and what it has for others.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import NamedTuple

MACHINES = {0x8664: "x86_64", 0xAA64: "arm64", 0x01000007: "x86_64", 0x0100000C: "arm64"}


class Binary(NamedTuple):
    """A library's format ("PE", "Mach-O") and processor; {library: names that are taken from it}; the names
    that it has for others; the oldest system it says it runs on ("" in PE files); whether it is signed (macOS
    on arm64 loads nothing else)."""

    format: str
    machine: str
    imports: dict[str, list[str]]
    exports: list[str]
    oldest: str
    signed: bool


def read(path: Path) -> Binary:
    data = path.read_bytes()
    if data[:2] == b"MZ":
        return portable_executable(data)
    if data[:4] == b"\xcf\xfa\xed\xfe":
        return mach_o(data)
    raise ValueError(
        f"{path}: expected a PE or a 64-bit Mach-O file, got one that begins with {data[:4].hex()}"
    )


def text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def portable_executable(data: bytes) -> Binary:
    """See "PE Format", the optional header's data directories."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    if data[header : header + 4] != b"PE\0\0":
        raise ValueError("expected a PE file, got one of DOS")
    machine, sections, *_, optional_size = struct.unpack_from("<HHIIIH", data, header + 4)
    optional = header + 24
    if struct.unpack_from("<H", data, optional)[0] != 0x20B:
        raise ValueError("expected a 64-bit PE file")
    table = optional + optional_size
    spans = [struct.unpack_from("<IIII", data, table + 40 * i + 8) for i in range(sections)]

    def at(address: int) -> int:
        """Where in the file what is loaded at an address lies."""
        for size, start, raw_size, raw in spans:
            if start <= address < start + max(size, raw_size):
                return address - start + raw
        raise ValueError(f"no section has the address {address:#x}")

    export_table, _, import_table, _ = struct.unpack_from("<IIII", data, optional + 112)
    exports = []
    if export_table:
        count, _, names = struct.unpack_from("<III", data, at(export_table) + 24)
        exports = [text(data, at(struct.unpack_from("<I", data, at(names) + 4 * i)[0])) for i in range(count)]
    imports: dict[str, list[str]] = {}
    entry = at(import_table) if import_table else 0
    while import_table:
        lookup, _, _, name, addresses = struct.unpack_from("<IIIII", data, entry)
        if not name:
            break
        taken = imports.setdefault(text(data, at(name)), [])
        where = at(lookup or addresses)
        while value := struct.unpack_from("<Q", data, where)[0]:
            taken.append(f"#{value & 0xFFFF}" if value >> 63 else text(data, at(value & 0x7FFFFFFF) + 2))
            where += 8
        entry += 20
    return Binary("PE", MACHINES.get(machine, f"{machine:#x}"), imports, sorted(exports), "", False)


LOAD_DYLIB, LOAD_WEAK_DYLIB, REEXPORT_DYLIB = 0xC, 0x80000018, 0x8000001F
SYMTAB, CODE_SIGNATURE, VERSION_MIN_MACOSX, BUILD_VERSION = 0x2, 0x1D, 0x24, 0x32
LOOKED_UP_WHEN_LOADED = 254  # the library's number of a symbol that any may have: Python's


def mach_o(data: bytes) -> Binary:
    """See <mach-o/loader.h> and <mach-o/nlist.h>."""
    _, machine, _, _, commands, *_ = struct.unpack_from("<IIIIIIII", data)
    libraries, oldest, signed, symbols, place = [], "", False, (0, 0, 0), 32
    for _ in range(commands):
        command, size = struct.unpack_from("<II", data, place)
        if command in (LOAD_DYLIB, LOAD_WEAK_DYLIB, REEXPORT_DYLIB):
            libraries.append(text(data, place + struct.unpack_from("<I", data, place + 8)[0]))
        elif command == SYMTAB:
            symbols = struct.unpack_from("<III", data, place + 8)
        elif command in (BUILD_VERSION, VERSION_MIN_MACOSX):
            version = struct.unpack_from("<I", data, place + (12 if command == BUILD_VERSION else 8))[0]
            oldest = f"{version >> 16}.{version >> 8 & 0xFF}"
        elif command == CODE_SIGNATURE:
            signed = True
        place += size
    imports: dict[str, list[str]] = {name: [] for name in libraries}
    exports = []
    first, count, strings = symbols
    for i in range(count):
        name, kind, _, description, _ = struct.unpack_from("<IBBHQ", data, first + 16 * i)
        if kind & 0xE0 or not kind & 1:  # for debuggers, or the file's own
            continue
        word = text(data, strings + name)
        if kind & 0x0E:
            if not kind & 0x10:  # not hidden
                exports.append(word)
            continue
        number = description >> 8
        library = "" if number == LOOKED_UP_WHEN_LOADED or not 0 < number <= len(libraries) else None
        imports.setdefault(libraries[number - 1] if library is None else library, []).append(word)
    return Binary("Mach-O", MACHINES.get(machine, f"{machine:#x}"), imports, sorted(exports), oldest, signed)


def summary(binary: Binary) -> str:
    lines = [f"{binary.format}, {binary.machine}" + f", from {binary.oldest} on" * bool(binary.oldest)]
    for library, names in sorted(binary.imports.items()):
        shown = ", ".join(sorted(names)[:6]) + (", ..." if len(names) > 6 else "")
        lines.append(f"  takes {len(names):4} of {library or 'whoever loads it'}: {shown}")
    lines.append(f"  has {len(binary.exports)}: {', '.join(binary.exports[:6])}")
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"{argument}: {summary(read(Path(argument)))}")
