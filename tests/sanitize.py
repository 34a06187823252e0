"""Every CPU kernel once, forward and backward, for `make asan`: AddressSanitizer and UBSan watch, and the
results are compared with the reference.

    python tests/sanitize.py [--quick]

Prints every failure and "N passed, M failed"; a sanitizer's finding ends the process with its report.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import layer_cases
import sru_cases
import torch
from helpers import flat
from layer_cases import CELLS, DTYPES, PACKED, Case, problem, worst

import fastrnn
from fastrnn._ops import autograd, library
from fastrnn._run import quick
from fastrnn.reference import masked_layer

F32, F64 = torch.float32, torch.float64

# T, B, I, H around the cuts: in place, single elements, tails of every width, many row tiles, several chunks.
SHAPES = [
    (1, 1, 1, 1),
    (1, 4, 5, 17),
    (2, 3, 33, 31),
    (3, 1, 2, 8),
    (2, 5, 1, 33),
    (5, 13, 17, 15),
    (3, 6, 9, 100),
    (2, 70, 3, 5),
    (270, 4, 2, 3),
]


def cases(quick: bool) -> Iterator[Case]:
    """The options take turns over the shapes, so that each meets each somewhere."""
    for cell in CELLS:
        for i, (T, B, IN, H) in enumerate(SHAPES):
            for j, dtype in enumerate(DTYPES):
                n = i + j
                if quick and n % 3:
                    continue
                half = dtype not in (F32, F64)
                # relu in half types: its bias and small sizes keep values away from where its slope jumps.
                if cell == "rnn_relu" and half:
                    IN, H = min(IN, 5), min(max(H, 5), 7)
                # Half types: rounded gates may cancel in a gradient of very few units.
                case = Case(cell, T, B, IN, max(H, 8) if half and cell != "rnn_relu" else H, dtype=dtype)
                yield replace(
                    case,
                    D=1 + n % 2,
                    bias=bool(n % 3) or (cell == "rnn_relu" and half),
                    save="recompute" if n % 4 == 1 else "gates",
                    strided=n % 5 == 2,
                )
        for sizes in (PACKED, (1, 1), (17, 9, 9, 3, 1)):
            for D in (1, 2):
                yield Case(cell, IN=3, H=18, D=D, dtype=F32, sizes=sizes)
                yield Case(cell, IN=3, H=9, D=D, sizes=sizes, save="recompute", strided=True)
        yield Case(cell, B=0, dtype=F32)
        yield Case(cell, IN=0, dtype=F32)
    for P, H in ((1, 2), (3, 9), (17, 33), (33, 65)):
        for D in (1, 2):
            plain = Case("lstm", IN=4, H=H, P=P, D=D, T=4, B=7)
            yield plain
            yield replace(plain, dtype=F32, bias=False, save="recompute")
            yield replace(plain, T=1, B=2, dtype=F32)
    for dtype in DTYPES:
        yield Case("lstm", IN=4, H=21, P=6, D=2, dtype=dtype, sizes=PACKED)


def sizes(quick: bool) -> Iterator[Case]:
    """Widths at random, up to where a pass of backward takes fewer gates, and fewer again: scratch memory is
    cut by them, and each piece has to be as large as what is written there."""
    draw = random.Random(0)
    yield Case("gru", 2, 3, 300, 600, dtype=F32)
    yield Case("lstm", 2, 3, 40, 600, dtype=F32)
    for n in range(12 if quick else 60):
        cell, wide = CELLS[n % len(CELLS)], n % 3 == 0
        H = draw.randint(200, 2200 if wide else 800)
        case = Case(cell, 2, draw.randint(1, 20), draw.randint(1, 400), H, D=1 + n % 2)
        case = replace(case, P=draw.randint(1, H - 1) if cell == "lstm" and n % 5 == 0 else 0)
        # A plain RNN's sums grow with the width, and float's rounding with them.
        dtype = F64 if cell.startswith("rnn") else F32 if wide else DTYPES[n % 2]
        yield replace(case, dtype=dtype, save="recompute" if n % 4 == 1 else "gates")


def threaded() -> Iterator[Case]:
    """Work enough for several threads: the batch split, the units split, both directions at once."""
    for cell in CELLS:
        yield Case(cell, 4, 40, 20, 48, D=2, dtype=F32)
        yield Case(cell, 6, 2, 30, 130, dtype=F32)
    yield Case("lstm", 6, 2, 30, 130, P=33)
    yield Case("gru", IN=30, H=65, D=2, sizes=(31, 31, 20, 17, 3, 2, 1))


def bad_arguments() -> Iterator[tuple[str, tuple]]:
    """Arguments that the checks have to stop: past them lies memory that is not theirs."""
    p = problem(Case("lstm", dtype=F32))
    rest = (p.h0, p.c0, p.weights)
    for sizes in ([5, 7], [12, 0], [3, 3, 3, 4], [2**62] * 4, [-4, 16]):
        packed = (p.x.reshape(12, 5), *rest, torch.tensor(sizes), None, None, "lstm", True, 1)
        yield f"batch_sizes {sizes}", packed
    yield "features", (p.x[..., 1:], *rest, None, None, None, "lstm", True, 1)
    yield "rows", (p.x[:, 1:], *rest, None, None, None, "lstm", True, 1)
    yield "weights", (p.x, p.h0, p.c0, p.weights[:3], None, None, None, "lstm", True, 1)
    yield "cell", (p.x, *rest, None, None, None, "gru", True, 1)


def masked(isa: str) -> Iterator[tuple[str, bool]]:
    """Lengths and resets, alone and together: rows that end early, have no step, begin again; both ways of
    saving."""
    both = {
        "lengths": torch.tensor([0, 6, 1, 3, 0, 6, 2, 5, 4]),
        "reset": torch.arange(54).reshape(6, 9) % 5 == 0,
    }
    for cell, what in product(CELLS, ("lengths", "reset", "lengths and reset")):
        masks = {key: both[key] for key in what.split(" and ")}
        for save in ("gates", "recompute"):
            p = problem(Case(cell, T=6, B=9, H=21, D=2, dtype=F32))
            leaves = [t if t is None else t.clone().requires_grad_() for t in (p.x, p.h0, p.c0)]
            weights = [w.clone().requires_grad_() for w in p.weights]
            results = []
            for function, kept in (
                (autograd.layer, {"save": save, "keep_cells": True}),
                (masked_layer, {}),
            ):
                out = function(*leaves, weights, cell=cell, bias=True, **masks, **kept)
                inputs = [t for t in (*leaves, *weights) if t is not None]
                loss = sum(t.square().sum() for t in out if t is not None)
                results.append([*(t for t in out if t is not None), *torch.autograd.grad(loss, inputs)])
            close = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*results, strict=True))
            yield f"{isa} {cell} {what}, {save}", close


def episodes(label: str) -> Iterator[tuple[str, bool]]:
    """Layers told where episodes end: done=, with lengths and every step's state, forward and backward."""
    done = torch.arange(54).reshape(6, 9) % 4 == 1
    masks = {"done": done, "lengths": torch.tensor([0, 6, 1, 3, 0, 6, 2, 5, 4]), "return_all_states": True}
    for name, options in (("LSTM", {}), ("LSTM", {"proj_size": 5}), ("GRU", {}), ("RNN", {})):
        results = []
        for backend in ("fused", "reference"):
            torch.manual_seed(0)
            layer = getattr(fastrnn, name)(5, 21, num_layers=2, backend=backend, **options)
            out = flat(layer(torch.randn(6, 9, 5), **masks))
            gradients = torch.autograd.grad(sum(t.square().sum() for t in out), list(layer.parameters()))
            results.append([*out, *gradients])
        close = all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(*results, strict=True))
        yield f"{label} {name} done {options}", close


def bad_masks() -> Iterator[tuple[str, tuple]]:
    """Lengths that would lead beyond the batch, resets of another size."""
    p = problem(Case("lstm", dtype=F32))
    rest = (p.h0, p.c0, p.weights)
    for lengths in ([5] * p.x.size(1), [-1] * p.x.size(1), [1], [2**62] * p.x.size(1)):
        yield f"lengths {lengths}", (p.x, *rest, None, torch.tensor(lengths), None, "lstm", True, 1)
    yield "reset", (p.x, *rest, None, None, torch.zeros(1, 1, dtype=torch.bool), "lstm", True, 1)


@torch.no_grad()
def streams(label: str) -> Iterator[tuple[str, bool]]:
    """Packed weights, in steps and chunks, and the SRU's step of few rows, against the ordinary kernels."""
    options = (("LSTM", {"proj_size": 3}), ("LSTM", {}), ("GRU", {"bias": False}), ("RNN", {}))
    for T, B, inputs, hidden in ((1, 1, 1, 17), (1, 4, 33, 31), (3, 5, 8, 100), (2, 70, 3, 5)):
        for (name, extra), dtype in zip(options, DTYPES, strict=True):
            layer = getattr(fastrnn, name)(inputs, hidden, num_layers=2, dtype=dtype, **extra)
            x = torch.randn(T, B, inputs).to(dtype)
            close = torch.allclose(layer.streamer()(x)[0].float(), layer(x)[0].float(), atol=2e-2)
            yield f"{label} stream {name} {T, B, inputs, hidden} {dtype}", close
    for rows, inputs, features in ((1, 1, 1), (3, 33, 33), (4, 16, 19), (7, 5, 64)):
        for dtype in DTYPES:
            k = 3 if inputs == features else 4
            x, c0 = torch.randn(rows, inputs).to(dtype), torch.randn(rows, features).to(dtype)
            weight, gates = torch.randn(features * k, inputs).to(dtype), torch.randn(2 * features).to(dtype)
            h, _ = library.sru_step(x, weight, x if k == 3 else None, gates, gates, c0, True, 1.0)
            expected, _ = fastrnn.functional.sru(x[None], c0, weight, gates, gates, use_tanh=True)
            close = torch.allclose(h.float(), expected[0].float(), atol=8e-2)
            yield f"{label} SRU step {rows, inputs, features} {dtype}", close


@torch.no_grad()
def direct(label: str) -> Iterator[tuple[str, bool]]:
    """Inference without the dispatcher (csrc/python_layer.cpp): the operator's bits or its error, of tensors
    that end where their memory does, lie apart or in steps, or fit nothing."""
    way = library.direct().forward
    shapes = ((1, 1, 1, 1), (1, 1, 33, 31), (3, 2, 5, 17), (2, 33, 3, 9))
    for cell, dtype, D, bias in product(CELLS, DTYPES, (1, 2), (True, False)):
        for T, B, IN, H in shapes:
            p = problem(Case(cell, T, B, IN, H, D=D, dtype=dtype, bias=bias))
            rest = [None, None, None, cell, bias, 0]
            wide = torch.randn(T, B + 1, 2 * IN).to(dtype)
            calls = {
                "": [p.x, p.h0, p.c0, list(p.weights), *rest],
                "rows apart": [wide[:, 1:, IN:], p.h0, p.c0, list(p.weights), *rest],
                "in steps": [wide[:, 1:, ::2], p.h0, p.c0, list(p.weights), *rest],
                "a row short": [p.x, p.h0[:, 1:], p.c0, list(p.weights), *rest],
                "a weight short": [p.x, p.h0, p.c0, [*p.weights[:-1], p.weights[-1][1:]], *rest],
                "weights of another size": [p.x, p.h0, p.c0, [w[..., :-1] for w in p.weights], *rest],
                "no weights": [p.x, p.h0, p.c0, [], *rest],
                "another cell": [p.x, p.h0, p.c0, list(p.weights), None, None, None, "gru+", bias, 0],
                "nothing": [None] * 10,
                "fewer": [p.x],
            }
            for what, arguments in calls.items():
                found, expected = (answer(f, arguments) for f in (way, library.forward))
                yield f"{label} direct {cell} {T, B, IN, H} {dtype} {D} {bias} {what}", same(found, expected)


@torch.no_grad()
def direct_training(label: str) -> Iterator[tuple[str, bool]]:
    """The same of passes that save and of backward passes, of which any gradient may be absent."""
    way = library.direct()
    forward, backward = way.forward, way.backward
    for cell, dtype, D, bias in product(CELLS, DTYPES, (1, 2), (True, False)):
        for T, B, IN, H in ((1, 1, 1, 1), (1, 1, 33, 31), (3, 2, 5, 17), (2, 33, 3, 9)):
            p = problem(Case(cell, T, B, IN, H, D=D, dtype=dtype, bias=bias))
            name = f"{label} direct {cell} {T, B, IN, H} {dtype} {D} {bias}"
            inputs = [p.x, p.h0, p.c0, list(p.weights), None, None, None]
            for save in (1, 2):
                found, expected = (f(*inputs, cell, bias, save) for f in (forward, library.forward))
                yield f"{name} saves {save}", same(found, expected)
                y, h, c, gates, cells = expected
                grads = [torch.randn_like(y), torch.randn_like(h), torch.randn_like(c) if c.numel() else None]
                wide = torch.randn(T, B + 1, 2 * D * H).to(dtype)[:, 1:, D * H :]
                one = wide[:1, :1, :1].expand_as(wide)
                calls = {
                    "": [*grads, None, *inputs, y, gates, cells],
                    "h alone": [None, grads[1], None, None, *inputs, y, gates, cells],
                    "rows apart": [wide, None, None, None, *inputs, y, gates, cells],
                    "expanded": [one, None, None, None, *inputs, y, gates, cells],
                    "gates short": [*grads, None, *inputs, y, gates[..., 1:], cells],
                    "cells short": [*grads, None, *inputs, y, gates, cells[..., 1:]],
                    "y short": [*grads, None, *inputs, y[..., 1:], gates, cells],
                    "a gradient short": [grads[0][..., 1:], *grads[1:], None, *inputs, y, gates, cells],
                    "no weights": [*grads, None, *inputs[:3], [], *inputs[4:], y, gates, cells],
                    "nothing": [None] * 14,
                }
                for what, arguments in calls.items():
                    for needs in (15, 1, 8, 6):
                        arguments_of_both = [*arguments, cell, bias, needs]
                        found, expected = (answer(f, arguments_of_both) for f in (backward, library.backward))
                        yield f"{name} backward {what} {needs}", same(found, expected)


def same(found, expected) -> bool:
    """The same results, None for an empty tensor, or the same error."""
    if isinstance(expected, str) or isinstance(found, str):
        return found == expected
    return all(
        same(a, b) if isinstance(b, (list, tuple)) else b.numel() == 0 if a is None else torch.equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


@torch.no_grad()
def modules(label: str) -> Iterator[tuple[str, bool]]:
    """A module's call in inference, one call of C (csrc/python_module.cpp), against Python's own way."""
    way = quick._inference
    kinds = (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)
    for kind, dtype, D, first in product(kinds, DTYPES, (1, 2), (False, True)):
        for T, B, IN, H in ((1, 1, 1, 1), (3, 2, 5, 17), (2, 33, 3, 9)):
            layer = kind(IN, H, bidirectional=D == 2, batch_first=first, dtype=dtype)
            wide = torch.randn(B, T + 1, 2 * IN).to(dtype)[:, 1:, IN:]
            for what, x in (("", wide if first else wide.transpose(0, 1)), ("single", wide[0])):
                size = (D, H) if what else (D, B, H)
                h = torch.randn(size).to(dtype)
                short = h[..., 1:].contiguous()
                for hx in (None, h, short):
                    state = (hx, hx) if kind is fastrnn.LSTM and hx is not None else hx
                    found = way(layer.__dict__, x, state)
                    if hx is short:
                        yield f"{label} module {kind.__name__} {T, B, IN, H} a state short", found is None
                        continue
                    quick._inference = lambda *_: None
                    y, last = layer(x, state)
                    quick._inference = way
                    expected = [y, *(last if isinstance(last, tuple) else (last,))]
                    found = [t for t in found or () if t is not None]
                    name = f"{label} module {kind.__name__} {T, B, IN, H} {dtype} {D} {first} {what}"
                    yield name, len(found) == len(expected) and same(found, expected)


def answer(function, arguments: list):
    """Its results, or what its error says first."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever it is
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def bad_packed() -> Iterator[tuple[str, tuple]]:
    """Packed weights that were cut off, or whose header says more than there is."""
    p = problem(Case("lstm", B=3, dtype=F32))
    packed = library.pack(list(p.weights), "lstm", True)
    cases = {"a byte short": packed[:-1], "header alone": packed[:128]}
    for i, (name, value) in enumerate((("I", 11), ("H", 15), ("P", 6))):
        cases[f"{name} = {value}"] = forged = packed.clone()
        forged[48:72].view(torch.int64)[i] = value
    for what, forged in cases.items():
        yield f"packed, {what}", (p.x, p.h0, p.c0, [forged])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the shapes")
    quick = parser.parse_args().quick
    passed, failures = 0, []
    start = time.monotonic()

    def check(what: str, ok: bool) -> None:
        nonlocal passed
        passed += ok
        if not ok:
            failures.append(what)
            print("FAILED", what, flush=True)

    def layer(case: Case, label: str) -> None:
        p = problem(case)
        ratio, what = worst(case, layer_cases.fused(torch.ops.fastrnn, case, p), expected(case))
        check(f"{label} {case}: {what}", ratio <= 1)

    def scan(case: sru_cases.Case, label: str) -> None:
        p = sru_cases.problem(case)
        ratio, what = sru_cases.worst(
            case, sru_cases.fused(torch.ops.fastrnn, case, p), sru_cases.expected(case, p)
        )
        check(f"{label} scan {case}: {what}", ratio <= 1)

    known = {}

    def expected(case: Case):
        if case not in known:
            known[case] = layer_cases.expected(case, problem(case))
        return known[case]

    torch.ops.fastrnn.cpu_limit_threads(64, True)  # threads, whether or not there are cores for them
    library.set_cpu_machine(meeting_ns=0, region_ns=0)  # and however small the layer
    for isa in library.available_cpu_isas():
        library.set_cpu_isa(isa)
        torch.set_num_threads(1)
        for case in (*cases(quick), *sizes(quick)):
            layer(case, isa)
        for case in sru_cases.grid()[:: 3 if quick else 1]:
            scan(case, isa)
        for what, ok in (*direct(isa), *direct_training(isa), *modules(isa)):
            check(what, ok)
        for count in (2, 3):
            torch.set_num_threads(count)
            label = f"{isa} {count} threads"
            scan(sru_cases.Case(L=9, B=13, O=200, D=2, dtype=F32, skip="u", pad=True), label)
            scan(sru_cases.Case(L=9, B=13, O=200, D=2, dtype=F32, pad=True, reset=True, states=True), label)
            scan(sru_cases.Case(L=40, O=70, sizes=(30, 30, 17, 2), dtype=F32), label)
            for case in threaded():
                layer(case, label)
            for what, ok in (*masked(label), *episodes(label), *streams(label)):
                check(what, ok)
        print(f"{isa}: {time.monotonic() - start:.0f} s", flush=True)
    bad = [(library.forward, *b) for b in bad_arguments()] + [(library.forward, *b) for b in bad_masks()]
    bad += [(library.stream, *b) for b in bad_packed()]
    for op, what, arguments in bad:
        try:
            op(*arguments)
        except RuntimeError:
            check(what, True)
        else:
            check(f"{what}: no error", False)

    print(f"{passed} passed, {len(failures)} failed")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
