"""The outcomes of tuning in a file: JSON, written whole or not at all, by one process at a time.

    {"format": 1,
     "devices": {IDENTITY: {
        "device": {"gpu": ..., ...},
        "kinds": {KEY: {"shape": {...}, "forward": TIER, "backward": TIER, "why": ..., "us": {...},
                        "candidates": {"TIER PASS": {"state": STATE, "why": ..., "us": ...}}}},
        "quarantined": {TIER: WHY}}}}

A candidate's state is "verified", "quarantined", "not run" or "running"; one that is found running when
nobody runs it has taken its process with it, or the machine. "forward" and "backward" are there where a kind
was timed: a tier's name, or "torch" for torch's own layer.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such lock there; a file is still written whole
    fcntl = None

FORMAT = 1
VERIFIED, QUARANTINED, RUNNING, NOT_RUN = "verified", "quarantined", "running", "not run"
#: What a candidate's record says that was still running when its process ended.
ENDED = "crash or hang: it was running when its process ended"


def empty() -> dict:
    return {"format": FORMAT, "devices": {}}


def place() -> Path:
    """The user's file: in the folder $FASTRNN_CACHE, or named by it where it ends in .json; else in the
    user's cache folder."""
    asked = os.environ.get("FASTRNN_CACHE")
    if asked:
        path = Path(os.path.expanduser(asked))
        return path if path.suffix == ".json" else path / "tune.json"
    base = os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~")
    # A container's user may have none; where nothing can be written either, outcomes stay in memory.
    home = "/" if home == "~" else home
    return (Path(base) if base else Path(home, ".cache")) / "fastrnn" / "tune.json"


def shipped() -> list[dict]:
    """The tables of measured devices that come with the package, in the cache's form."""
    folder = Path(__file__).with_name("tables")
    return [document for path in sorted(folder.glob("*.json")) if (document := parsed(path)) is not None]


def parsed(path: Path) -> dict | None:
    """A document, or None for a file that is none: what another program or version wrote, or half of it. What
    within it is no outcome is left out."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    good = (
        isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("devices"), dict)
    )
    if not good:
        return None
    devices = {name: _device(d) for name, d in found["devices"].items() if isinstance(d, dict)}
    return found | {"devices": devices}


def _device(found: dict) -> dict:
    def texts(part: str) -> dict[str, str]:
        held = found.get(part)
        return {k: v for k, v in held.items() if isinstance(v, str)} if isinstance(held, dict) else {}

    kinds = found.get("kinds")
    kinds = {k: r for k, r in kinds.items() if _is_record(r)} if isinstance(kinds, dict) else {}
    return found | {"device": texts("device"), "kinds": kinds, "quarantined": texts("quarantined")}


def _is_record(record: object) -> bool:
    def has_texts(of: object, *fields: str) -> bool:
        return isinstance(of, dict) and all(isinstance(of.get(field, ""), str) for field in fields)

    if not has_texts(record, "forward", "backward", "why"):
        return False
    candidates = record.get("candidates", {})
    return isinstance(candidates, dict) and all(
        has_texts(c, "state", "why") and isinstance(c.get("us", 0.0), (int, float))
        for c in candidates.values()
    )


class Cache:
    """The user's outcomes. Where the file cannot be written they last as long as the process."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or place()
        self._memory: dict | None = None  # once the file could not be written

    def read(self) -> dict:
        """What is known now. A change of the result changes nothing."""
        if self._memory is not None:
            return json.loads(json.dumps(self._memory))
        return parsed(self.path) or empty()

    def update(self, change: Callable[[dict], None]) -> None:
        """Read, change and write as one step for all processes."""
        if self._memory is not None:
            change(self._memory)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                document = self.read()
                change(document)
                self._write(document)
        except OSError as error:
            warnings.warn(
                f"fastrnn: {self.path} cannot be written ({error}): what tuning finds lasts as long as this "
                "process",
                RuntimeWarning,
                stacklevel=3,
            )
            self._memory = parsed(self.path) or empty()
            change(self._memory)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.path.with_suffix(".lock"), "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, document: dict) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.stem, suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(document, file, indent=1, sort_keys=True)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


def device_of(document: dict, name: str, device: dict[str, str]) -> dict:
    """A device's part of a document, made where there is none."""
    found = document["devices"].setdefault(name, {"device": device})
    found.setdefault("kinds", {})
    found.setdefault("quarantined", {})
    return found


def candidate_state(record: dict) -> tuple[str, str]:
    """A candidate's state and why, for a reader who is not running it."""
    state, why = record.get("state", NOT_RUN), record.get("why", "")
    return (QUARANTINED, ENDED) if state == RUNNING else (state, why)
