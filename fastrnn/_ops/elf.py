"""Whether a library is whole, before it is loaded, and for whom it is, where it was not."""

import struct
import sys
from pathlib import Path

_LOAD = 1  # the type of a part that is mapped into memory
_MACHINES = {3: "i686", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}


def cut_off(path: Path) -> str:
    """What an ELF file lacks at its end, "" where nothing: of a copy or a download that broke off.

    The loader maps such a file all the same, and whoever touches what is not there ends the process: there is
    no error to catch. Files of other systems, whose loaders look, and what is no ELF file are left to them.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
            size = file.seek(0, 2)
            if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
                return ""
            (table,) = struct.unpack_from("<Q", header, 32)
            entry, count = struct.unpack_from("<HH", header, 54)
            needed = table + entry * count
            file.seek(min(table, size))
            parts = file.read(entry * count)
    except OSError:  # nobody may read it: the loader says so
        return ""
    if len(parts) == entry * count and entry >= 56:
        for at in range(0, len(parts), entry):
            kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", parts, at)
            needed = max(needed, start + length) if kind == _LOAD else needed
    return "" if needed <= size else f"it has {size} bytes of at least {needed}: it was not written whole"


def machine(path: Path) -> str:
    """The processor that an ELF file is for, "" where that is not known."""
    try:
        with path.open("rb") as file:
            header = file.read(20)
    except OSError:
        return ""
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return ""
    (number,) = struct.unpack_from("<H" if header[5] == 1 else ">H", header, 18)
    return _MACHINES.get(number, f"machine {number} of ELF")


def explained(path: Path, error: str) -> str:
    """What the system's loader says of a library that it refused, with what it keeps to itself.

    glibc passes over a file for another processor, and then says that there is none of that name.
    """
    error = error.removeprefix(f"{path}: ")
    its, ours = machine(path), machine(Path(sys.executable))
    if its and ours and its != ours:
        return f"it is for {its}, and this Python for {ours}"
    if "failed to map segment" in error:
        return f"{error}; its file system may be mounted noexec"
    return error
