"""Arguments of a layer that nobody would write by hand: a right result, or one exception that Python can
catch.

A crash would end the whole run; results are compared with the reference. Derandomized, so that a run tells of
the code alone.
"""

from __future__ import annotations

from dataclasses import replace

import layer_cases
import pytest
import torch
from fuzzing import CHANGES, EXCEPTIONS, SIZES, assert_same_numbers, changed, quiet
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import CELLS, DTYPES, Case, names, problem, worst

import fastrnn
from fastrnn._ops import library
from fastrnn._ops.autograd import layer

ISAS = library.available_cpu_isas()
F32 = torch.float32


@pytest.fixture(autouse=True)
def _restore_isa():
    before = library.cpu_isa()
    yield
    library.set_cpu_isa(before)


# ---- valid layers --------------------------------------------------------------------------------


@st.composite
def cases(draw) -> Case:
    cell = draw(st.sampled_from(CELLS))
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.none() | st.lists(st.integers(1, 12), min_size=1, max_size=8))
    half = dtype in (torch.bfloat16, torch.float16)
    kinked = cell == "rnn_relu" and half  # the bias keeps relu away from 0, and small products do
    # An error is measured against the largest of a tensor's values. In a sum over rows and steps little may
    # be left of one of them, but not of the largest of several.
    size = st.just(6) if kinked else st.integers(8 if half else 5, 40)
    return Case(
        cell,
        T=draw(st.integers(1, 8)),
        B=draw(st.integers(1, 20)),
        IN=draw(size),
        H=draw(size),
        P=draw(st.just(0) | size) if cell == "lstm" else 0,
        D=draw(st.integers(1, 2)),
        bias=True if kinked else draw(st.booleans()),
        dtype=dtype,
        sizes=tuple(sorted(sizes, reverse=True)) if sizes else None,
        save=draw(st.sampled_from(["gates", "recompute"])),
        strided=draw(st.booleans()),
    )


@quiet(60)
@given(case=cases(), isa=st.sampled_from(ISAS), threads=st.integers(1, 3), seed=st.integers(0, 3))
def test_valid_layers(case, isa, threads, seed):
    library.set_cpu_isa(isa)
    torch.set_num_threads(threads)
    p = problem(case, seed)
    ratio, what = worst(case, layer_cases.differentiated(case, p), layer_cases.expected(case, p))
    assert ratio <= 1, f"{case} {isa} {threads} threads: {what}"


# ---- arguments of the layer that may be wrong ----------------------------------------------------

ROUTES = {"fused": layer, "reference": fastrnn.reference.layer}


def _outcome(route: str, case: Case, arguments: dict):
    """The outputs, or the exception."""
    try:
        with torch.no_grad():
            found = ROUTES[route](
                arguments["x"],
                arguments["h0"],
                arguments["c0"],
                arguments["weights"],
                cell=case.cell,
                bias=case.bias,
                batch_sizes=arguments["batch_sizes"],
            )
    except EXCEPTIONS as error:
        return error
    return [t for t in found if t is not None]


@quiet(250)
@given(data=st.data())
def test_layer_arguments(data):
    """One or two arguments are changed: the fused layer raises, or gives what the reference gives."""
    case = data.draw(
        st.builds(
            Case,
            cell=st.sampled_from(CELLS),
            D=st.integers(1, 2),
            bias=st.booleans(),
            dtype=st.just(F32),
            sizes=st.sampled_from([None, (5, 4, 2, 1)]),
        )
    )
    if case.cell == "lstm" and data.draw(st.booleans()):
        case = replace(case, P=3)
    p = problem(case)
    arguments = {"x": p.x, "h0": p.h0, "c0": p.c0, "weights": list(p.weights), "batch_sizes": p.batch_sizes}
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from([*arguments, "weights", "number of weights"]))
        change = data.draw(st.sampled_from(list(CHANGES)))
        if name == "batch_sizes":
            sizes = data.draw(st.sampled_from(list(SIZES)))
            arguments["batch_sizes"] = torch.tensor(SIZES[sizes])
        elif name == "number of weights":
            if data.draw(st.booleans()):
                arguments["weights"].pop()
            else:
                arguments["weights"].append(torch.zeros(28))
        elif name == "weights" and arguments["weights"]:
            i = data.draw(st.integers(0, len(arguments["weights"]) - 1))
            arguments["weights"][i] = changed(arguments["weights"][i], change)
        elif name != "weights" and arguments[name] is not None:
            arguments[name] = changed(arguments[name], change)
    got = _outcome("fused", case, arguments)
    if isinstance(got, Exception):
        return
    want = _outcome("reference", case, arguments)
    assert not isinstance(want, Exception), f"a result where the reference says {want!r}"
    for label, a, b in zip(names(case), got, want, strict=False):
        assert_same_numbers(a, b, label)
