"""The command line: ``python -m fastrnn {info,verify,bench,tune}``, also installed as ``fastrnn``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from .._version import __version__


def parser() -> argparse.ArgumentParser:
    """The whole command line; a subcommand's module is imported for its options alone, not for its work."""
    from . import bench, info, tune, verify

    main_parser = argparse.ArgumentParser(
        prog="fastrnn", description="Fast drop-in replacements for torch.nn's recurrent layers."
    )
    main_parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="{info,verify,bench,tune}")
    for name, module in (("info", info), ("verify", verify), ("bench", bench), ("tune", tune)):
        summary = module.__doc__.splitlines()[0]
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
        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # a full disk, a folder taken away
        if error.filename is None:
            raise
        raise SystemExit(f"{program}: {error}") from None
