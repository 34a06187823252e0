"""Whether a library is whole, before it is loaded, and for whom it is, where it was not."""

import struct
import sys
from pathlib import Path

_LOAD, _DYNAMIC = 1, 2  # the types of a part that is mapped into memory, and of what the loader reads first
_MACHINES = {3: "i686", 21: "ppc64", 22: "s390x", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv"}


def cut_off(path: Path) -> str:
    """What an ELF file lacks at its end, "" where nothing: of a copy or a download that broke off, or
    whose room was taken and never filled, as a full disk or a machine that went down leaves it.

    The loader maps such a file all the same, and whoever touches what is not there ends the process: there is
    no error to catch. Files of other systems, whose loaders look, and what is no ELF file are left to them.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
            size = file.seek(0, 2)
            if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
                return ""
            table, sections = struct.unpack_from("<QQ", header, 32)
            entry, count, section, section_count = struct.unpack_from("<HHHH", header, 54)
            needed = table + entry * count
            file.seek(min(table, size))
            parts = file.read(entry * count)
            # Where no library has zeros: in the last entry of its sections, at the file's end, and where the
            # loader's list begins.
            last = sections + section * (section_count - 1)
            written = [(last, section)] if sections and section_count else []
            if len(parts) == entry * count and entry >= 56:
                for at in range(0, len(parts), entry):
                    kind, _, start, _, _, length = struct.unpack_from("<IIQQQQ", parts, at)
                    needed = max(needed, start + length) if kind == _LOAD else needed
                    written += [(start, 16)] if kind == _DYNAMIC else []
            if needed > size:
                return f"it has {size} bytes of at least {needed}: it was not written whole"
            for start, length in written:
                if 0 < length <= size - start:
                    file.seek(start)
                    if not any(file.read(length)):
                        return f"there are zeros at byte {start} of its {size}: it was not written whole"
    except OSError:  # nobody may read it: the loader says so
        pass
    return ""


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
