"""Train the same character model with torch.nn and with fastrnn from the same seed, and let it write.

The text is the English of Python's own manual (pydoc_data.topics), so nothing is downloaded. The two models
take turns, step by step, on the same batches: their losses must coincide, their speeds may differ.

Then an SRU and an SRU++ train for as many seconds as fastrnn's model had: bits a character at equal time.

    python benchmarks/char_lm.py --cell gru --hidden 512 --steps 400

Under torchrun several processes share the work: each computes its rows of every batch and
DistributedDataParallel averages the gradients, over gloo on the CPU and NCCL on GPUs, one GPU a process. The
losses are those of one process. The first one prints and writes.

    torchrun --standalone --nproc-per-node 2 benchmarks/char_lm.py --cell gru --hidden 512
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# Run by itself it sees its own folder alone. An installed fastrnn comes first.
sys.path.append(str(Path(__file__).resolve().parents[1]))
import fastrnn
from benchmarks.lab.targets import plural
from fastrnn.cli import console

LIBRARIES = {"torch.nn": nn, "fastrnn": fastrnn}
#: Largest distance of the two loss curves, in nats, over so many steps. Rounding differs in the last bit and
#: training is chaotic: at H=96 300 steps carried 1e-7 to 1e-5 with a learning rate of 0.002, to 5e-3 with
#: twice that.
COINCIDE, HORIZON = 0.01, 300
#: Layers of the models that race at equal time: they are cheaper, and so may be deeper.
RACERS = {"SRU": 3, "SRU++": 2}
#: Characters at the text's end that nobody trains on, and steps of SRU++'s memory while it writes.
HELD_OUT, WINDOW = 20_000, 200


def manual() -> str:
    """The topics of Python's manual as one ASCII text of about 440,000 characters, without its tables."""
    from pydoc_data.topics import topics

    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines()
    text = "\n".join(line for line in lines if not line.startswith(("|", "+")))
    return "".join(c for c in text if c.isascii())


class CharModel(nn.Module):
    """Characters (B, T) to scores of the next ones (B, T, V); the recurrent layer is a given library's."""

    def __init__(self, library, cell: str, vocabulary: int, hidden: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.attends = cell == "SRU++"
        if self.attends:
            self.rnn = library.SRUpp(hidden, hidden, max(1, hidden // 4), layers, batch_first=True)
        else:
            self.rnn = getattr(library, cell.upper())(hidden, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, characters: Tensor, state=None) -> tuple[Tensor, object]:
        x = self.embedding(characters)
        if not self.attends:
            y, state = self.rnn(x, state)
            return self.head(y), state
        c, memory = (None, None) if state is None else state
        y, c, saved = self.rnn(x, c, memory=memory, is_causal=True)
        recent = saved["saved_inputs"]
        if memory is not None:
            recent = [torch.cat(parts, dim=1) for parts in zip(memory, recent, strict=True)]
        return self.head(y), (c, [t[:, -WINDOW:] for t in recent])


@contextlib.contextmanager
def processes(options: argparse.Namespace) -> Iterator[None]:
    """Join the processes that torchrun started: sets options.rank, options.world and, with CUDA, the device.

    Without torchrun there is one, of rank 0. The others are silent.
    """
    options.rank, options.world = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1)))
    if options.batch % options.world:
        raise SystemExit(
            f"--batch should be a multiple of the {options.world} processes, got {options.batch}"
        )
    if options.world == 1:
        yield
        return
    cuda = torch.device(options.device).type == "cuda"
    if cuda:
        options.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(options.device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        with contextlib.ExitStack() as silence:
            if options.rank:
                nowhere = silence.enter_context(open(os.devnull, "w"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        distributed.destroy_process_group()


class Trainer:
    """One library's model with its optimiser, losses and seconds a step (means over all processes)."""

    def __init__(self, library, cell: str, layers: int, options: argparse.Namespace, vocabulary: int):
        torch.manual_seed(options.seed)
        self.model = CharModel(library, cell, vocabulary, options.hidden, layers)
        self.model.to(options.device)
        self.world = options.world
        self.call = self.model if self.world == 1 else DistributedDataParallel(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=options.lr)
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: Tensor) -> None:
        """One optimiser step on characters (B / processes, T + 1)."""
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        scores, _ = self.call(batch[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        value = loss.item()  # waits for a GPU
        figures = torch.tensor([value, time.perf_counter() - start], dtype=torch.float64, device=loss.device)
        if self.world > 1:
            distributed.all_reduce(figures)
        value, seconds = (figures / self.world).tolist()
        self.losses.append(value)
        self.seconds.append(seconds)

    def tokens_per_second(self, tokens: int) -> float:
        """From the median step: the first ones also build and warm things."""
        return tokens / sorted(self.seconds)[len(self.seconds) // 2]

    @torch.inference_mode()
    def bits(self, data: Tensor, length: int) -> float:
        """Bits a character on a text, cut into sequences that start from nothing."""
        batch = data[: (len(data) - 1) // length * length + 1].to(self.model.head.weight.device)
        scores, _ = self.model.eval()(batch[:-1].view(-1, length))
        self.model.train()
        return float(nn.functional.cross_entropy(scores.flatten(0, 1), batch[1:])) / math.log(2)


def draw(options: argparse.Namespace, data: Tensor, generator: torch.Generator) -> Tensor:
    """This process's characters (B / processes, T + 1) of a batch from random places of the text."""
    starts = torch.randint(len(data) - options.length - 1, (options.batch,), generator=generator)
    starts = starts.chunk(options.world)[options.rank]  # the generators are alike everywhere
    return torch.stack([data[s : s + options.length + 1] for s in starts.tolist()]).to(options.device)


def race(options: argparse.Namespace, data: Tensor, vocabulary: int, seconds: float) -> dict[str, Trainer]:
    """Train an SRU and an SRU++, each for so many seconds of optimiser steps."""
    racers = {}
    for cell, layers in RACERS.items():
        trainer = Trainer(fastrnn, cell, layers, options, vocabulary)
        generator = torch.Generator().manual_seed(options.seed)
        while sum(trainer.seconds) < seconds:
            trainer.step(draw(options, data, generator))
        racers[f"{cell}, {layers} layers"] = trainer
    return racers


def train(options: argparse.Namespace, data: Tensor, vocabulary: int) -> dict[str, Trainer]:
    """Train a model of each library, in turns on the same batches."""
    trainers = {
        name: Trainer(library, options.cell, options.layers, options, vocabulary)
        for name, library in LIBRARIES.items()
    }
    generator = torch.Generator().manual_seed(options.seed)
    with console.progress(options.steps) as advance:
        for number in range(options.steps):
            batch = draw(options, data, generator)
            # Who goes first changes: neither always finds the other's data in the caches.
            for trainer in list(trainers.values())[:: 1 if number % 2 else -1]:
                trainer.step(batch)
            losses = ", ".join(f"{name} {t.losses[-1]:.4f}" for name, t in trainers.items())
            advance(f"loss: {losses}", 1)
    return trainers


@torch.inference_mode()
def write(model: CharModel, characters: str, prompt: str, count: int, temperature: float, seed: int) -> str:
    """Let a model go on from the prompt, one character at a time."""
    model.eval()
    device = model.head.weight.device
    index = {c: n for n, c in enumerate(characters)}
    generator = torch.Generator().manual_seed(seed)
    text, state = prompt, None
    current = torch.tensor([[index[c] for c in prompt]], device=device)
    for _ in range(count):
        scores, state = model(current, state)
        chances = torch.softmax(scores[0, -1].float().cpu() / temperature, dim=-1)
        choice = int(torch.multinomial(chances, 1, generator=generator))
        text += characters[choice]
        current = torch.tensor([[choice]], device=device)
    return text


def plot_race(ax, racers: dict[str, Trainer]) -> None:
    """Bits a character over seconds of training, averaged over the last ten steps."""
    from benchmarks.lab.report.style import COLORS

    for (name, trainer), key in zip(racers.items(), ("fastrnn", "openvino", "sru"), strict=False):
        seconds, losses = torch.tensor(trainer.seconds).cumsum(0), torch.tensor(trainer.losses)
        span = min(10, len(losses))
        bits = losses.unfold(0, span, 1).mean(-1) / math.log(2)
        ax.plot(seconds[span - 1 :], bits, color=COLORS[key], label=name, linewidth=1.3)
    ax.set(xlabel="seconds of training", ylabel="bits a character")
    ax.set_title("At equal time", loc="left", fontweight="bold", fontsize=11)
    ax.legend(frameon=False)


def plot(
    trainers: dict[str, Trainer], racers: dict[str, Trainer], tokens: int, title: str, path: Path
) -> bool:
    """Both loss curves, both speeds and the race as a PNG; False without matplotlib."""
    try:
        from matplotlib.figure import Figure

        from benchmarks.lab.report.style import COLORS, save
    except ImportError:
        return False
    figure = Figure(figsize=(14 if racers else 10, 4), layout="constrained")
    axes = figure.subplots(1, 3 if racers else 2, width_ratios=(3, 1.15, 3)[: 3 if racers else 2])
    curves, speeds = axes[:2]
    if racers:
        plot_race(axes[2], racers)
    colors = {"torch.nn": COLORS["torch"], "fastrnn": COLORS["fastrnn"]}
    looks = {"torch.nn": {"linewidth": 5, "alpha": 0.45}, "fastrnn": {"linewidth": 1.3}}
    for name, trainer in trainers.items():
        curves.plot(
            range(1, len(trainer.losses) + 1), trainer.losses, color=colors[name], label=name, **looks[name]
        )
    curves.set(xlabel="step", ylabel="cross-entropy, nats a character")
    curves.set_title("Training loss, same seed", loc="left", fontweight="bold", fontsize=11)
    curves.legend(frameon=False)
    values = [t.tokens_per_second(tokens) for t in trainers.values()]
    bars = speeds.bar(list(trainers), values, color=[colors[n] for n in trainers], width=0.6)
    speeds.bar_label(bars, [f"{v:,.0f}" for v in values], padding=2)
    speeds.set_ylim(0, 1.15 * max(values))
    speeds.set_yticks([])
    speeds.set_title("Characters a second", loc="left", fontweight="bold", fontsize=11)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    speeds.spines["left"].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    save(figure, path)
    return True


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    parser.add_argument("--hidden", type=int, default=256, help="hidden units and embedding size (256)")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of each model (300)")
    parser.add_argument("--batch", type=int, default=32, help="sequences a step, of all processes (32)")
    parser.add_argument("--length", type=int, default=100, help="characters of a sequence (100)")
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's learning rate (0.002)")
    parser.add_argument("--threads", type=int, help="torch's number of threads")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--write", type=int, default=400, metavar="N", help="characters to write at the end (400)"
    )
    parser.add_argument("--no-race", action="store_true", help="leave out SRU and SRU++ at equal time")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder of the plot and the figures (out)"
    )
    options = parser.parse_args(arguments)
    with processes(options):
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Train, race, report and write; 0 where the two loss curves coincide."""
    if options.threads:
        torch.set_num_threads(options.threads)

    text = manual()
    characters = "".join(sorted(set(text)))
    index = {c: n for n, c in enumerate(characters)}
    data = torch.tensor([index[c] for c in text])
    data, held_out = data[:-HELD_OUT], data[-HELD_OUT:]
    threads = "" if options.device != "cpu" else f", threads: {torch.get_num_threads()}"
    several = "" if options.world == 1 else f", processes: {options.world}"
    title = (
        f"{options.layers}-layer {options.cell.upper()}, H = {options.hidden}, B = {options.batch}, "
        f"T = {options.length}, {options.device}{threads}{several}"
    )
    console.heading(title)
    print(f"{len(text):,} characters of Python's manual, {len(characters)} different ones")
    trainers = train(options, data, len(characters))

    tokens = options.batch * options.length
    speed = {name: t.tokens_per_second(tokens) for name, t in trainers.items()}
    rows = [
        [
            name,
            f"{speed[name]:,.0f}",
            f"{speed[name] / speed['torch.nn']:.2f}x",
            f"{t.losses[0]:.4f}",
            f"{t.losses[-1]:.4f}",
        ]
        for name, t in trainers.items()
    ]
    console.table(["", "characters/s", "over torch.nn", "first loss", "last loss"], rows)
    every = max(1, options.steps // 10)
    marks = sorted({*range(0, options.steps, every), options.steps - 1})
    losses = [[str(n + 1), *(f"{t.losses[n]:.4f}" for t in trainers.values())] for n in marks]
    console.table(["step", *trainers], losses, "Loss, nats a character")
    curves = (t.losses[:HORIZON] for t in trainers.values())
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    same = apart <= COINCIDE
    print(f"largest distance of the two curves: {apart:.1e} ({'they coincide' if same else 'THEY DIFFER'})")

    racers = {}
    if not options.no_race:
        mine = f"{options.cell.upper()}, {plural(options.layers, 'layer')}"
        seconds = sum(trainers["fastrnn"].seconds)
        racers = {mine: trainers["fastrnn"], **race(options, data, len(characters), seconds)}
        bits = {name: t.bits(held_out, options.length) for name, t in racers.items()}
        rows = [
            [name, str(len(t.losses)), f"{t.tokens_per_second(tokens):,.0f}", f"{bits[name]:.3f}"]
            for name, t in racers.items()
        ]
        columns = ["", "steps", "characters/s", "bits a character"]
        console.table(columns, rows, f"After {seconds:.0f} s of training each, on text that none has seen")

    if options.rank:
        return 0 if same else 1
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / f"char_lm-{options.cell}-{options.hidden}"
    figures = {
        "model": title,
        "characters_per_second": speed,
        "losses": {name: t.losses for name, t in trainers.items()},
        "largest_distance": apart,
    }
    if racers:
        figures["equal_time"] = {
            name: {"bits": bits[name], "seconds": t.seconds, "losses": t.losses} for name, t in racers.items()
        }
    stem.with_suffix(".json").write_text(json.dumps(figures) + "\n")
    if plot(trainers, racers, tokens, title, stem.with_suffix(".png")):
        print(f"plot: {stem.with_suffix('.png').resolve()}")
    else:
        print("no plot: matplotlib is not installed")
    if options.write:
        written = write(
            trainers["fastrnn"].model, characters, "The ", options.write, options.temperature, options.seed
        )
        console.heading("What the fastrnn model writes")
        print(written)
    return 0 if same else 1


if __name__ == "__main__":
    status = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DDP, of any module, leaves threads of torch's process group behind it, and where one of them is at
        # work while Python ends, the process ends with std::terminate and the launcher reports a failure.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
