"""Train an architecture of fastrnn.models on a task that shows what it can do, for a minute.

Prints how far it came on data that it never saw and a sample of what it learned, and draws a picture of it
(with matplotlib). Without a name, the list of demonstrations.

  python -m fastrnn demo                       what there is
  python -m fastrnn demo seasonal              a minute of training; picture in out/demo-seasonal.png
  python -m fastrnn demo seasonal --seconds 10 --seed 3 --out picture.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from . import console
from . import options as types

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

    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; the list where it is left out")
    parser.add_argument("--list", action="store_true", help="the list of demonstrations")
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


def run(options: argparse.Namespace) -> int:
    from .. import demos

    if options.list or options.name is None:
        console.pairs([(name, demos.load(name).title) for name in demos.NAMES], "Demonstrations")
        return 0
    try:
        kind = demos.load(options.name)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    path = options.out or Path("out") / f"demo-{options.name}.png"
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
