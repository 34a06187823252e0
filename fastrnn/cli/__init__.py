"""The command line: ``python -m fastrnn {info,verify,bench,tune}``, also installed as ``fastrnn``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence

from .._version import __version__

#: What a file that is open may say when it is written to: its error has no name of a file.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def parser() -> argparse.ArgumentParser:
    """The whole command line; a subcommand's module is imported for its options alone, not for its work."""
    from . import bench, info, tune, verify

    main_parser = argparse.ArgumentParser(
        prog="fastrnn", description="Fast drop-in replacements for torch.nn's recurrent layers."
    )
    main_parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="{info,verify,bench,tune}")
    for name, module in (("info", info), ("verify", verify), ("bench", bench), ("tune", tune)):
        # python -OO has no docstrings.
        summary = (module.__doc__ or f"see python -m fastrnn {name} --help without -OO").splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = parser().parse_args(arguments)
    return ended(f"fastrnn {options.command}", lambda: options.run(options))


def ended(program: str, run: Callable[[], int]) -> int:
    """A program's exit status, however it ends: what only the outside world can do to it is no traceback."""
    try:
        status = run()
        sys.stdout.flush()  # what cannot be written is told here, and not by Python as it ends
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _write_no_more()
        return 1
    except OSError as error:  # a full disk, a folder taken away
        if error.filename is None and error.errno not in _DISK:
            raise
        if error.errno in _DISK:
            _write_no_more()
        raise SystemExit(f"{program}: {error}") from None


def _write_no_more() -> None:
    """Standard output leads nowhere from now on: Python would try what is left again as it ends, and say so
    in a message of its own."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
