"""The figures of the README and of docs/performance.md, from the committed results: `make readme-figures`.

    python tools/figures.py          writes them
    python tools/figures.py --check  says which do not stand there, exit status 1

What stands between `<!-- figures: NAME -->` and `<!-- end of figures -->` in these pages, each on a line of
its own and once, and the picture, is written here and by nobody else. Where a page has not both, that is an
error, and nothing is written. A test runs the check.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Every shape against torch.nn and others.
FULL = "2026-11-29-amd-epyc-zen-5-full"
#: LSTM, GRU and RNN on random shapes, by the AVX2 kernels.
RANDOM = "2026-11-29-amd-epyc-zen-5-random-avx2"
#: Every shape on another processor; and SRU against the sru package in a run of its own.
OTHER, SRU = "2026-11-30-amd-epyc-zen-4", "2026-11-23-amd-epyc-zen-4-sru"
PICTURE = ROOT / "docs" / "figures" / "ratios.svg"
THREADS = (1, 2)


class Ratio(NamedTuple):
    """Times as fast as somebody else, over several shapes."""

    mean: float
    worst: float
    cases: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.worst:.2f})"


class Row(NamedTuple):
    """A line: which cases of which run, and whom they are held against (the fastest of those that ran)."""

    label: str
    cell: tuple[str, ...]
    path: str
    against: tuple[str, ...] = ("torch",)
    run: str = FULL


TORCH_ROWS = (
    Row("LSTM", ("lstm",), "layers"),
    Row("GRU", ("gru",), "layers"),
    Row("RNN, tanh", ("rnn",), "layers"),
    Row("LSTM, packed sequences of 10-100% length", ("lstm",), "packed"),
    Row("LSTM with projection", ("lstm",), "proj"),
    Row("LSTMCell, GRUCell, B = 1 and 32", ("lstm", "gru"), "cells"),
    Row("SRU, against nn.LSTM of equal size", ("sru",), "layers"),
    Row("SRU++ with H/4 attention features, against nn.LSTM", ("srupp",), "layers"),
)
PEER_ROWS = (
    Row("LSTM, best of ONNX Runtime, OpenVINO", ("lstm",), "layers", ("onnxruntime", "openvino")),
    Row("GRU, best of ONNX Runtime, OpenVINO", ("gru",), "layers", ("onnxruntime", "openvino")),
    Row("GRU, best of JAX, torch.nn", ("gru",), "layers", ("jax", "torch")),
    Row("SRU, the sru package", ("sru",), "layers", ("sru",), SRU),
)


def load(run: str) -> dict:
    return json.loads((RESULTS / run / "results.json").read_text())


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def ratio(row: Row, training: bool, threads: int, documents: dict[str, dict]) -> Ratio | None:
    """Of the shapes on which the targets are judged: float32, as many inputs as hidden units, no sweep."""
    found = []
    for result in documents[row.run]["results"]:
        case, times = result["case"], result["contenders"]
        counts = (
            result["threads"] == threads
            and case["training"] == training
            and case["cell"] in row.cell
            and case["path"] == row.path
            and case["dtype"] == "float32"
            and not case["sweep"]
            and case["I"] == case["H"]
        )
        rivals = [times[key]["median_s"] for key in row.against if key in times]
        if counts and rivals and "fastrnn" in times:
            found.append(min(rivals) / times["fastrnn"]["median_s"])
    return Ratio(geomean(found), min(found), len(found)) if found else None


def documents() -> dict[str, dict]:
    return {run: load(run) for run in (FULL, OTHER, SRU, RANDOM)}


def machine(document: dict) -> str:
    """Where and when: "AMD EPYC (Zen 4), two cores, torch 2.14.1, 2026-11-22"."""
    found, versions = document["machine"], document["versions"]
    cores = {1: "one core", 2: "two cores"}.get(found["cores"], f"{found['cores']} cores")
    torch = versions["torch"].partition("+")[0]
    return f"{found['cpu']}, {cores}, {found['isa']}, torch {torch}, {document['date'][:10]}"


def labelled(row: Row, loaded: dict[str, dict], run: str) -> str:
    """What a row is called in the table of a run; where it is of another processor, that too."""
    cpu = loaded[row.run]["machine"]["cpu"]
    if cpu == loaded[run]["machine"]["cpu"]:
        return row.label
    return f"{row.label} ({cpu}, {loaded[row.run]['date'][:10]})"


def table(rows: tuple[Row, ...], loaded: dict[str, dict], run: str = FULL) -> Iterator[str]:
    columns = [f"{t} thread{'s' * (t > 1)}, {w}" for t in THREADS for w in ("inference", "training")]
    yield f"| | {' | '.join(columns)} |"
    yield "| --- |" + " --- |" * len(columns)
    for row in rows:
        cells = [ratio(row, training, threads, loaded) for threads in THREADS for training in (False, True)]
        if row.against == ("onnxruntime", "openvino"):  # which train nothing
            cells[1] = cells[3] = None
        if row.against == ("jax", "torch"):  # and whom inference is not held against
            cells[0] = cells[2] = None
        yield (
            f"| {labelled(row, loaded, run)} | "
            + " | ".join(str(cell) if cell else "" for cell in cells)
            + " |"
        )


def readme() -> str:
    loaded = documents()
    where = machine(loaded[FULL])
    lines = [
        "Times as fast as `torch.nn`, float32: geometric mean over the shapes, the worst in brackets.",
        f"{where}",
        f"([report](benchmarks/results/{FULL}/report.md)):",
        "",
        *table(TORCH_ROWS, loaded),
        *list(table((PEER_ROWS[-1],), loaded))[2:],
        "",
        *runtimes(loaded, "docs/"),
    ]
    return "\n".join(lines)


def verdict(document: dict, name: str, threads: int) -> str:
    """What a run's report says of a target."""
    (line,) = (t for t in document["targets"] if (t["name"], t["threads"]) == (name, threads))
    return str(Ratio(line["geomean"], line["worst"], line["cases"]))


def reached(document: dict, name: str) -> list[str]:
    """The first words of what was reached in the report's lines of such a name."""
    return [t["reached"].split()[0] for t in document["absolute_targets"] if name in t["name"]]


def runtimes(loaded: dict[str, dict], docs: str = "") -> list[str]:
    """Inference beside those who keep packed weights: as a layer is called, and as they are."""
    module, streamer = (
        [verdict(loaded[FULL], f"– of that, through {how}", threads) for threads in THREADS]
        for how in ("the modules", "their streamers")
    )
    return [
        "LSTM and GRU inference beside the better of ONNX Runtime and OpenVINO, which keep packed weights",
        f"between calls: {module[0]} times as fast on one thread, {module[1]} on two; through a",
        f"[`streamer()`]({docs}streaming.md), which keeps them too, {streamer[0]} and {streamer[1]}.",
    ]


def absolute(loaded: dict[str, dict]) -> list[str]:
    """What is no ratio over torch.nn's time; and the random shapes."""
    step, _ = reached(loaded[FULL], "One LSTM step")
    (memory,) = reached(loaded[FULL], "Peak memory")
    scan = sorted(reached(loaded[FULL], "SRU's recurrence"), key=float)
    lstm, gru, rnn = (
        " and ".join(
            verdict(loaded[RANDOM], f"{cell} {work} on random shapes, against torch.nn", 1)
            for work in ("inference", "training")
        )
        for cell in ("LSTM", "GRU", "RNN")
    )
    return [
        f"One LSTM step of T=1, B=1, H=256 takes {step} µs as a layer's call on one thread. Peak memory of",
        f"a training step is {memory} of torch.nn's at worst; both vary by a fifth from process to process.",
        f"SRU's recurrence alone passes its memory at {scan[0]} to {scan[-1]} of the rate at which as many",
        "cores read.",
        "",
        "On shapes drawn at random, in inference and in training, on one thread",
        f"([AVX2 kernels](../benchmarks/results/{RANDOM}/report.md),",
        f"torch held to AVX2 too): LSTM {lstm}, GRU {gru}, RNN {rnn}.",
    ]


def performance() -> str:
    loaded = documents()
    lines = [
        f"{machine(loaded[FULL])};",
        "shapes from T,B,H = 1,1,256 to 50,64,1024, float32. Times as fast as torch.nn, geometric mean over",
        "the shapes, the worst in brackets",
        f"([every case](../benchmarks/results/{FULL}/report.md)):",
        "",
        *table(TORCH_ROWS, loaded),
        "",
        f"Against others, in the same runs ([SRU's](../benchmarks/results/{SRU}/report.md)); ONNX Runtime",
        "and OpenVINO keep packed weights between calls, which shows at T = 1:",
        "",
        *table(PEER_ROWS, loaded),
        "",
        "![Times as fast as torch.nn, and as the best other library](figures/ratios.svg)",
        "",
        *runtimes(loaded),
        "",
        *absolute(loaded),
        "",
        *other(loaded),
    ]
    return "\n".join(lines)


def other(loaded: dict[str, dict]) -> list[str]:
    """The same cases on another processor."""
    rows = tuple(row._replace(run=OTHER) for row in TORCH_ROWS[:3])
    return [
        f"The same on {machine(loaded[OTHER])}",
        f"([every case](../benchmarks/results/{OTHER}/report.md)):",
        "",
        *table(rows, loaded, OTHER),
    ]


WIDTH, LEFT, BAR, GAP, TOP = 820, 308, 10, 11, 58
NUMBER = 26  # of a figure beside its bar, in pixels


def picture() -> str:
    """Bars for one thread and two against torch.nn and against the best other; a line at 1."""
    loaded = documents()
    groups: list[tuple[str, list[tuple[str, list[Ratio]]]]] = []
    of_torch, of_peers = [], []
    for row in (*TORCH_ROWS[:3], TORCH_ROWS[6]):
        for training in (False, True):
            name = row.label.partition(",")[0] + (" training" if training else " inference")
            of_torch.append((name + (" (against nn.LSTM)" if "SRU" in name else ""), row, training))
    for row, training in (
        (PEER_ROWS[0], False),
        (PEER_ROWS[1], False),
        (PEER_ROWS[2], True),
        (PEER_ROWS[3], True),
    ):
        cell, _, peers = row.label.partition(", ")
        if row.run != FULL:
            peers += f" ({loaded[row.run]['machine']['cpu'].rpartition('(')[2].rstrip(')')})"
        of_peers.append((f"{cell} {'training' if training else 'inference'}: {peers}", row, training))
    for title, chosen in (("as torch.nn", of_torch), ("as the best other library", of_peers)):
        rows = [(name, [ratio(row, training, t, loaded) for t in THREADS]) for name, row, training in chosen]
        groups.append((title, rows))
    most = max(r.mean for _, rows in groups for _, ratios in rows for r in ratios)
    scale = (WIDTH - LEFT - 50) / math.ceil(most)
    height = TOP + sum(34 + len(rows) * (2 * BAR + GAP) for _, rows in groups) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>Times as fast as torch.nn and as the best other library. {machine(loaded[FULL])}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="24" font-size="15" font-weight="bold" fill="#1b1f24">Times as fast, float32</text>',
        f'<text x="12" y="42" fill="#57606a">geometric mean over the shapes; the notch is the worst of them. '
        f"{machine(loaded[FULL])}</text>",
        f'<rect x="{WIDTH - 164}" y="14" width="11" height="9" fill="#9cc4f2"/>'
        f'<text x="{WIDTH - 148}" y="23" fill="#1b1f24">1 thread</text>',
        f'<rect x="{WIDTH - 88}" y="14" width="11" height="9" fill="#1f6feb"/>'
        f'<text x="{WIDTH - 72}" y="23" fill="#1b1f24">2 threads</text>',
    ]
    y, at = TOP, LEFT + scale
    for title, rows in groups:
        out.append(f'<text x="12" y="{y + 16}" font-weight="bold" fill="#1b1f24">{title}</text>')
        y += 28
        start = y
        for name, ratios in rows:
            out.append(
                f'<text x="{LEFT - 8}" y="{y + BAR + 4}" text-anchor="end" fill="#1b1f24">{name}</text>'
            )
            for r, colour in zip(ratios, ("#9cc4f2", "#1f6feb"), strict=True):
                width, worst = r.mean * scale, LEFT + r.worst * scale
                out.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
                out.append(f'<rect x="{worst - 1:.1f}" y="{y}" width="2" height="{BAR}" fill="#1b1f24"/>')
                end = LEFT + width + 5
                if at - NUMBER < end < at + 5:  # it would lie on the line
                    end = at + 5
                place = f'x="{end:.1f}" y="{y + BAR - 1}"'
                out.append(f'<text {place} font-size="10" fill="#57606a">{r.mean:.2f}</text>')
                y += BAR
            y += GAP
        line = f'x1="{at:.1f}" y1="{start - 5}" x2="{at:.1f}" y2="{y - 4}"'
        out.append(f'<line {line} stroke="#cf222e" stroke-dasharray="3 3"/>')
        out.append(
            f'<text x="{at:.1f}" y="{y + 7}" text-anchor="middle" font-size="10" fill="#cf222e">1</text>'
        )
        y += 6
    return "\n".join([*out, "</svg>"]) + "\n"


PAGES: dict[Path, tuple[str, Callable[[], str]]] = {
    ROOT / "README.md": ("readme", readme),
    ROOT / "docs" / "performance.md": ("performance", performance),
}
BEGIN, END = "<!-- figures: {} -->", "<!-- end of figures -->"


def fault(page: Path) -> str:
    """What is wrong with a page's marks, "" where nothing is: figures that nobody finds nobody checks."""
    begin = BEGIN.format(PAGES[page][0])
    lines = page.read_text().splitlines() if page.exists() else []
    found = [line for line in lines if "<!-- figures" in line or "<!-- end of figures" in line]
    if found == [begin, END]:
        return ""
    return f"{page.relative_to(ROOT)}: expected {begin} and {END} once, got {' '.join(found) or 'neither'}"


def filled(page: Path) -> str:
    """A page, whose marks are right, with its figures as they should be."""
    name, make = PAGES[page]
    before, begin, rest = page.read_text().partition(BEGIN.format(name) + "\n")
    return f"{before}{begin}{make()}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    if faults := list(filter(None, map(fault, PAGES))):
        print("\n".join(faults), file=sys.stderr)
        return 1
    wanted = {page: filled(page) for page in PAGES} | {PICTURE: picture()}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'not as the results say' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted[path])
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
