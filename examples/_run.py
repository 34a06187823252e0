"""The command line of an example: it trains for a minute, and shows what it has learned."""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Sequence
from pathlib import Path

import _demo

from fastrnn.cli import console, ended
from fastrnn.cli import options as types

#: Of pictures, as matplotlib writes them wherever it is installed.
FORMATS = (".png", ".pdf", ".svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def seed(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 2**63
        if not -(2**63) <= value < 2**63:
            raise argparse.ArgumentTypeError(f"must be a 64-bit integer, got {text!r}")
        return value

    def picture(text: str) -> Path:
        path = types.output(text)
        if path.suffix.lower() not in FORMATS or path.is_dir():
            known = ", ".join(FORMATS)
            raise argparse.ArgumentTypeError(f"must be a file that ends in {known}, got {text!r}")
        return path

    parser.add_argument("--seconds", type=types.seconds, default=60.0, metavar="S", help="of training (60)")
    parser.add_argument("--seed", type=seed, default=0, help="of initial values and training data (0)")
    parser.add_argument("--out", type=picture, metavar="FILE", help="the picture (out/demo-NAME.png)")


def train(demo, seconds: float) -> list[float]:
    """Train for so many seconds under a progress bar that counts them and shows the loss."""
    begin, shown = time.monotonic(), 0
    with console.progress(max(1, round(seconds))) as advance:

        def report(step: int, loss: float) -> None:
            nonlocal shown
            passed = min(round(seconds), int(time.monotonic() - begin))
            advance(f"s, step {step}, loss {loss:.4f}", passed - shown)
            shown = passed

        # The time decides alone, so the number of steps must not.
        return demo.train(2**62, seconds, report)


def show_score(demo, score: dict[str, float]) -> None:
    """The figures, each beside the bound that the full run of the tests holds it to."""
    rows = []
    for name, value in score.items():
        relation, bound = demo.targets.get(name, ("", None))
        rows.append([name, f"{value:.4g}", "" if bound is None else f"{relation} {bound:g}"])
    console.table(["figure", "now", "after the full run"], rows, "On data that training never saw")


def run(kind: type[_demo.Demo], name: str, options: argparse.Namespace) -> int:
    path = options.out or Path("out") / f"demo-{name}.png"
    try:  # before a minute of training is lost
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out {path}: {error}") from None

    console.heading(kind.title)
    demo = kind(seed=options.seed)
    weights = sum(p.numel() for p in demo.model.parameters())
    print(f"{weights:,} weights; training for {options.seconds:g} s")
    losses = train(demo, options.seconds)
    if losses:
        print(f"{len(losses)} steps, loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    else:
        print("too short a time for one step")
    show_score(demo, demo.score())
    console.heading("A sample")
    print(demo.sample())

    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("\nno picture: matplotlib is not installed")
        return 0
    demo.picture(path)
    print(f"\npicture: {path.resolve()}")
    return 0


def main(kind: type[_demo.Demo], arguments: Sequence[str] | None = None) -> None:
    """Run an example's command line, to the end of the process."""
    name = Path(inspect.getfile(kind)).stem
    parser = argparse.ArgumentParser(
        prog=f"python examples/{name}.py",
        description=f"{kind.title}. Trains for a minute, prints how far it came on data that it never saw "
        "and a sample of what it learned, and draws a picture of it (with matplotlib).",
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    raise SystemExit(ended(f"examples/{name}.py", lambda: run(kind, name, options)))
