"""Everything that needs a GPU, in two calls that end in time:

    python3 tests/gpu/check.py 1    240 s: smoke of every tier and cluster size, the tiers' tests, a soak,
                                    latencies, `fastrnn tune --verify-only`
    python3 tests/gpu/check.py 2    300 s: the sweep against cuDNN, memcheck of cluster and grid

A GPU may be lent for minutes, on a machine without a network, this repository's history, or a virtual
environment. So everything is built before: `make gpu-pack` (pack.py) leaves the folder gpu-pack, which goes
along with the checkout, and whose binaries this puts beside the package. Without that folder the binaries
that are there run, such as those of `make build` on a machine of one's own, as --in-place says too.

Options: --out FOLDER (default $OUT, else gpu-check-out), --pack FOLDER, --in-place, --commit TEXT (default
what the pack or git says), --dry-run (no GPU: plays the call with a made-up clock, once as it should go, once
where every step hangs and once where every step crashes; writes the same files and exits 1 where one took too
long).

The results are call-1.jsonl and call-2.jsonl, written as they come (lines.py), beside what everybody said
(call-1.log). `make gpu-table` makes the committed tables of them. Exit status 1 where a step failed, hung or
was skipped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import calls
import dry_run
import pack
from lines import Lines
from stages import ROOT, Call, Clock, launch


def architecture() -> str:
    """Of this machine's GPU, as FASTRNN_CUDA_ARCHS writes it, where something is compiled here."""
    try:
        import torch

        major, minor = torch.cuda.get_device_capability()
    except (ImportError, AssertionError, RuntimeError):
        return pack.ARCH
    # Hopper's own instructions have an architecture of their own.
    return f"{major}.{minor}" + "a" * (major == 9)


def play(
    call: int,
    out: Path,
    stages,
    *,
    commit: str | None,
    built: dict | None = None,
    dry: str = "",
    launch=launch,
    clock=Clock,
    show: bool = True,
) -> Call:
    """Run a call's stages and write its files: {name}.jsonl and {name}.log. dry: of a dry run, what it
    plays."""
    name = f"call-{call}" + (f"-{dry}" if dry not in ("", "well") else "")
    lines = Lines(out / f"{name}.jsonl", time.time())
    lines.path.write_text("")
    with (out / f"{name}.log").open("w") as file:

        def log(text: str) -> None:
            if show:
                print(text, end="", flush=True)
            file.write(text)
            file.flush()

        lines.write(
            "call",
            call=call,
            commit=commit,
            pack=built,
            limit_s=calls.LIMIT_S[call],
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
            dry_run=dry,
        )
        run = Call(stages, calls.LIMIT_S[call], lines, log, launch, clock)
        start = clock.now()
        ok = run.run()
        lines.write("end", ok=ok, seconds=round(clock.now() - start, 1))
    return run


def table(run: Call) -> str:
    width = max(map(len, run.statuses), default=0)
    return "\n".join(
        f"{name:{width}s}  {status:8s} {run.seconds[name]:6.1f} s" for name, status in run.statuses.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("call", type=int, choices=sorted(calls.LIMIT_S))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-check-out")))
    parser.add_argument("--pack", type=Path, help="default: gpu-pack, where it is there")
    parser.add_argument("--in-place", action="store_true", help="no pack, though there is one")
    parser.add_argument("--commit")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if out == ROOT / "gpu-check-out":
        (out / ".gitignore").write_text("*\n")  # results that are kept go to benchmarks/results
    if options.dry_run:
        return dry_run.main(options.call, out, options.commit or pack.commit(), play, table)

    folder, built = options.pack or (pack.PACK if pack.PACK.exists() else None), None
    if options.in_place:
        folder = None
    if folder is not None:
        folder = folder.resolve()
        try:
            built = pack.load(folder)
        except pack.Stale as error:
            print(f"gpu-check: {error}", file=sys.stderr)
            return 1
        pack.install(folder)
    elif not (ROOT / "fastrnn" / "libfastrnn_cuda.so").exists():
        print("gpu-check: no CUDA kernels here: run make gpu-pack first, or make build", file=sys.stderr)
        return 1
    commit = options.commit or (built or {}).get("commit") or pack.commit()
    if commit:
        os.environ["FASTRNN_COMMIT"] = commit  # for those that have no git to ask
    # What `timeout` sends ends the steps too, as Ctrl-C does; what has been written is there.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arch = pack.ARCH if built else architecture()
    try:
        run = play(
            options.call, out, calls.stages(options.call, out, folder, arch), commit=commit, built=built
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(table(run))
    return int(any(status not in ("ok", "absent") for status in run.statuses.values()))


if __name__ == "__main__":
    sys.exit(main())
