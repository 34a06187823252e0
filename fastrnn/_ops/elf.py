"""Whether a library is whole, before it is loaded."""

import struct
from pathlib import Path

_LOAD = 1  # the type of a part that is mapped into memory


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
