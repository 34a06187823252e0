"""Processes that measure, and whoever watches them: what runs on a GPU for the first time may hang, or die.

No torch and no fastrnn in here: the GPU check begins before anything is built.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

#: Seconds until a process is gone that has no more to say, or is killed.
END_S = 20.0


def environment(threads: int) -> dict[str, str]:
    """A measuring process's: every library on so many threads, JAX on the CPU, this package and fastrnn."""
    env = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC", "NPROC"):
        env[name] = str(threads)
    env["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        env["XLA_FLAGS"] = (env.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false").strip()
    # However this process came to find the two, the other one finds the same.
    package = Path(importlib.util.find_spec("fastrnn").origin).absolute().parents[1]
    folders = dict.fromkeys(map(str, (package, Path(__file__).absolute().parents[2])))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [*folders, env.get("PYTHONPATH")]))
    return env


class Silent(Exception):
    """A process that runs said nothing for as long as it was given."""


class Watched:
    """A process in a session of its own, whose lines are waited for, and which ends together with all that it
    has started.

    Args:
        command, environment: of the process.
        said: what it is told on its standard input.
        log: the file for its standard error; with its output where there is none.
        folder: where it runs.

    Attributes:
        code: its exit status, None while it runs; the number of a signal that it died of, negative.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        *,
        said: str = "",
        log=subprocess.STDOUT,
        folder: Path | None = None,
    ):
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # More than a pipe holds waits for a process that may never read it.
        threading.Thread(target=self._say, args=(said,), daemon=True).start()

    def _say(self, said: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead already: its output says why
            self.process.stdin.write(said)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def line(self, patience: float) -> str | None:
        """The next line, None after the last one. patience: seconds, math.inf for as long as it takes.

        Raises:
            Silent: nothing came for so many seconds from a process that runs.
        """
        try:
            return self._lines.get(timeout=None if patience == math.inf else max(0.0, patience))
        except queue.Empty:
            if self.code is None:
                raise Silent from None
            return None  # something that it started holds the pipe open

    def wait(self, seconds: float = END_S) -> int | None:
        """Its exit status; None where it does not end in that time."""
        try:
            return self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace: float = 0.0) -> None:
        """End it and what it has started: at once, or after so many seconds to end by itself, as asked."""
        if grace and self.code is None:
            self.signal(signal.SIGTERM)
            self.wait(grace)
        self.signal(signal.SIGKILL)
        # What waits for a GPU that does not answer may not end at all; its pipe is left to it, and to what
        # has left the session and still writes.
        if self.wait() is not None:
            self._reader.join(1.0)
            if not self._reader.is_alive():
                self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and to what it has started; what is gone gets none."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_) -> None:
        self.end()
