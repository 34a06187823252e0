"""Tables and progress on the terminal: with rich where it is installed, in plain text elsewhere."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

try:
    import rich
    from rich import box
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text
except ImportError:  # torch is the only package fastrnn needs
    rich = None


def heading(text: str) -> None:
    if rich:
        Console().print(f"\n[bold]{text}[/bold]")
    else:
        print(f"\n{text}\n{'=' * len(text)}")


def _plain(cell: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"\1", cell)


def _rich_cell(cell: str):
    style = "bold" if "**" in cell else ""
    text = _plain(cell)
    if "missed" in text or text == "FAILED":
        style = "bold red"
    elif text in ("reached", "ok"):
        style = "green"
    return Text(text, style=style)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table: the first column to the left, the others to the right. **bold** is known."""
    if rich:
        # A terminal's own width; nothing is cut where the output goes to a file.
        console = Console() if sys.stdout.isatty() else Console(width=220)
        if title:
            console.print(Text(f"\n{title}", style="bold"))
        shown = Table(box=box.SIMPLE_HEAD)
        for n, column in enumerate(columns):
            shown.add_column(column, justify="right" if n else "left", no_wrap=n == 0, overflow="fold")
        for row in rows:
            shown.add_row(*map(_rich_cell, row))
        console.print(shown)
        return
    cells = [list(columns)] + [[_plain(c) for c in row] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    if title:
        print(f"\n{title}")
    for number, row in enumerate(cells):
        aligned = [
            c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(aligned).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """A progress bar on stderr over so many steps. Yields advance(title, steps); "" keeps the title."""
    if rich:
        columns = (
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)

            def advance(title: str, steps: int) -> None:
                bar.update(task, advance=steps, **({"description": title} if title else {}))

            yield advance
        return

    done, last_title, terminal, shown = 0, "", sys.stderr.isatty(), 0.0

    def advance_plain(title: str, steps: int) -> None:
        nonlocal done, last_title, shown
        done += steps
        last_title = title or last_title
        # A file gets a line now and then; a terminal the same line again and again.
        if terminal or time.monotonic() - shown > 10:
            shown = time.monotonic()
            line = f"[{done:3d}/{total}] {last_title}"
            print(
                f"\r{line[:110]:110}" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )

    yield advance_plain
    if terminal:
        print("\r" + " " * 110 + "\r", end="", file=sys.stderr, flush=True)


def pairs(rows: Sequence[tuple[str, str]], title: str) -> None:
    """Print names and values, both to the left. In plain text with or without rich: what is pasted into a
    report must be whole, and a table as wide as the terminal breaks paths and messages, or cuts them off."""
    width = max(len(name) for name, _ in rows)
    print(title)
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")
