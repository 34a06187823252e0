"""NaN and infinities stay where they belong: in the row of the batch that has them, and out of everything if
they lie in what a length, a mask or a reset takes away."""

from __future__ import annotations

import pytest
import torch
from helpers import flat, randn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import functional, models

T, B, IN, H = 6, 4, 5, 8
LENGTHS = [6, 3, 0, 5]
POISONS = [float("nan"), float("inf"), -float("inf")]
F64 = torch.float64
LAYERS = {
    "LSTM": (fastrnn.LSTM, {}),
    "LSTM projected": (fastrnn.LSTM, {"proj_size": 3}),
    "GRU": (fastrnn.GRU, {}),
    "RNN": (fastrnn.RNN, {}),
    "RNN relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
}


def _pads(lengths) -> torch.Tensor:
    return torch.arange(T).unsqueeze(1) >= torch.tensor(lengths)


def _filled(x, pads, value):
    return x.masked_fill(pads.view(*pads.shape, *[1] * (x.dim() - 2)), value)


def _run(module, call, *leaves, grad=None):
    """All results of call(*leaves), and gradients of a loss of them or of the first with this gradient."""
    leaves = [t.clone().requires_grad_() for t in leaves]
    module.zero_grad()
    torch.manual_seed(1)
    results = [
        t for t in flat([r for r in call(*leaves) if not isinstance(r, dict)]) if t.is_floating_point()
    ]
    if grad is None:
        sum((t * t).sum() for t in results).backward()
    else:
        results[0].backward(grad)
    parameters = [p.grad.clone() for p in module.parameters() if p.grad is not None]
    return [*results, *(t.grad for t in leaves), *parameters]


def _same(got, expected, what=""):
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, i=i: f"{what}, result {i}: {m}")


def _layers(backends, **options):
    for backend in backends:
        for bidirectional in (False, True):
            for layers in (1, 2):
                yield {"backend": backend, "bidirectional": bidirectional, "num_layers": layers, **options}


@pytest.mark.parametrize("save", ["gates", "recompute"])
@pytest.mark.parametrize("name", LAYERS)
def test_beyond_lengths(name, save):
    """Padding may hold anything, and so may the gradients of what is beyond a row's length."""
    cls, own = LAYERS[name]
    pads = _pads(LENGTHS)
    x = randn(T, B, IN, dtype=F64)
    for options in _layers(("auto", "reference"), save=save, dtype=F64, **own):
        module = cls(IN, H, **options)

        def call(x, module=module):
            return module(x, lengths=LENGTHS, return_all_states=True)

        expected = _run(module, call, _filled(x, pads, 0))
        grad = randn(*expected[0].shape, dtype=F64, seed=3)
        of_grad = _run(module, call, _filled(x, pads, 0), grad=_filled(grad, pads, 0))
        for poison in POISONS:
            _same(_run(module, call, _filled(x, pads, poison)), expected, str(options))
            dirty = _run(module, call, _filled(x, pads, poison), grad=_filled(grad, pads, poison))
            _same(dirty, of_grad, str(options))


@pytest.mark.parametrize("kind", ["padded", "packed", "lengths", "reset", "done"])
@pytest.mark.parametrize("name", LAYERS)
def test_one_row_only(name, kind):
    """What is not a number in one row of the batch reaches no result and no gradient of another."""
    cls, own = LAYERS[name]
    lengths, cuts = [6, 5, 4, 3], torch.zeros(T, B, dtype=torch.bool)
    cuts[3, 0] = cuts[2, 2] = True
    x, others = randn(T, B, IN, dtype=F64), [0, 2, 3]

    def call(x, module):
        if kind == "padded":
            return module(x)
        if kind == "packed":
            y, state = module(pack_padded_sequence(x, lengths))
            return pad_packed_sequence(y)[0], state
        asked = {"lengths": lengths} if kind == "lengths" else {kind: cuts}
        return module(x, **asked, return_all_states=True)

    for options in _layers(("auto", "reference"), dtype=F64, **own):
        module = cls(IN, H, **options)
        count = len(flat(call(x, module))) + 1  # and the gradient of x
        expected = _run(module, lambda x, m=module: call(x, m), x)[:count]
        for poison in POISONS:
            dirty = x.clone()
            dirty[2, 1] = poison
            got = _run(module, lambda x, m=module: call(x, m), dirty)[:count]
            _same([t[..., others, :] for t in got], [t[..., others, :] for t in expected], str(options))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_resets_cut_it_off(name):
    """A reset state may be anything: h0 where a sequence begins at once, or what the steps before made."""
    x, h = randn(T, B, IN, dtype=F64), randn(1, B, H, dtype=F64, seed=2)
    first, third = torch.zeros(2, T, B, dtype=torch.bool).unbind(0)
    first[0, 1] = third[3, 1] = True
    for backend in ("auto", "reference"):
        module = getattr(fastrnn, name)(IN, H, backend=backend, dtype=F64)

        def call(x, h, module=module):
            return module(x, (h, h * 1) if name == "LSTM" else h, reset=first)

        def cut(x, module=module):
            y, state = module(x, reset=third)
            return y[3:], state

        row = torch.zeros(1, B, 1, dtype=torch.bool)
        row[0, 1] = True
        expected, later = _run(module, call, x, h.masked_fill(row, 0)), _run(module, cut, x)
        for poison in POISONS:
            _same(_run(module, call, x, h.masked_fill(row, poison)), expected, backend)
            dirty = x.clone()
            dirty[1, 1] = poison
            states = 3 if name == "LSTM" else 2
            _same(_run(module, cut, dirty)[:states], later[:states], backend)


SRU_OPTIONS = [
    {},
    {"bidirectional": True},
    {"layer_norm": True},
    {"layer_norm": True, "normalize_after": True},
    {"projection_size": 3},
    {"rescale": True, "use_tanh": True},
    {"dropout": 0.3, "rnn_dropout": 0.3},
    {"proj_input_to_hidden_first": True},
    {"has_skip_term": False},
    {"backend": "reference"},
    {"batch_first": True},
]
SRUPP_OPTIONS = [
    {},
    {"bidirectional": True},
    {"layer_norm": True},
    {"normalize_after": True},
    {"num_heads": 2, "attn_dropout": 0.2},
    {"proj_input_to_hidden_first": True},
]


@pytest.mark.parametrize("inputs", [IN, H])
@pytest.mark.parametrize(
    ("name", "options"), [("SRU", o) for o in SRU_OPTIONS] + [("SRUpp", o) for o in SRUPP_OPTIONS]
)
def test_pads_of_sru(name, options, inputs):
    """mask_pad: padding reaches neither the weights' gradients nor, through attention, other steps."""
    sizes = (inputs, H) if name == "SRU" else (inputs, H, 4)
    module = getattr(fastrnn, name)(*sizes, dtype=F64, **options)
    pads, x = _pads([6, 3, 1, 5]), randn(T, B, inputs, dtype=F64)
    if name == "SRUpp":
        call, cell = lambda x: module(x, mask_pad=pads)[:2], None
    elif module.batch_first:
        call, cell = lambda x: module(x.transpose(0, 1), mask_pad=pads.t()), module.rnn_lst[0]
    else:
        call, cell = lambda x: module(x, mask_pad=pads), module.rnn_lst[0]
    runs = [(module, call)]
    if cell is not None and cell.input_size == inputs:
        runs.append((cell, lambda x: cell(x, mask_pad=pads.byte())))
    for which, run in runs:
        expected = _run(which, run, _filled(x, pads, 0))
        for poison in (*POISONS, 1e300):
            _same(_run(which, run, _filled(x, pads, poison)), expected, f"{name}, {options}")


def test_pads_of_memory():
    """memory_mask_pad of SRU++ likewise, with the normalisation of the memory."""
    for options in ({}, {"layer_norm": True, "normalize_after": False}):
        module = fastrnn.SRUpp(IN, H, 4, 1, dtype=F64, **options)
        pads = torch.tensor([[True, False, True, False], [False, False, True, False]])
        x, memory = randn(T, B, IN, dtype=F64), randn(2, B, IN, dtype=F64, seed=4)

        def call(x, memory, module=module, pads=pads):
            return module(x, memory=[memory], memory_mask_pad=pads)[:2]

        expected = _run(module, call, x, _filled(memory, pads, 0))
        for poison in POISONS:
            _same(_run(module, call, x, _filled(memory, pads, poison)), expected, str(options))


def test_modules_of_the_users_see_the_pads():
    """A transform module that looks along time gets what the padding holds, as in the package."""
    seen = []
    module = fastrnn.SRU(IN, H, 1, transform_module=lambda x: seen.append(x) or x.new_zeros(T, B, 4 * H))
    x = randn(T, B, IN)
    module(x, mask_pad=_pads([6, 3, 1, 5]))
    assert torch.equal(seen[0], x)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("skip", ["x", "u"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_pads_of_the_scan(backend, skip, bidirectional):
    """functional.sru_scan and sru: u, x, v and the gradient of h at pads."""
    pads, module = _pads([6, 3, 1, 5]), torch.nn.Module()
    k = 3 if skip == "x" else 4
    u, v = randn(T, B, k, H, dtype=F64), randn(T, B, 2, H, dtype=F64, seed=2)
    x = randn(T, B, H, dtype=F64, seed=3)
    rest = [randn(2, H, dtype=F64, seed=4), randn(2, H, dtype=F64, seed=5), randn(B, H, dtype=F64, seed=6)]
    options = {"mask_pad": pads, "bidirectional": bidirectional, "backend": backend}

    def scan(u, x, v, *rest):
        return functional.sru_scan(u, x if k == 3 else None, *rest, v=v, **options)

    def run(value, of_grad):
        leaves = [_filled(t, pads, value) for t in (u, x, v)]
        found = _run(module, scan, *leaves, *rest, grad=_filled(x, pads, of_grad))
        return [t for t in found if t is not None]

    for poison in POISONS:
        for at in ((poison, 0), (0, poison), (poison, poison)):
            _same(run(*at), run(0, 0))

    weights = [randn(k * H, H if k == 3 else IN, dtype=F64), randn(2 * H, dtype=F64), randn(2 * H, dtype=F64)]
    data = x if k == 3 else randn(T, B, IN, dtype=F64)

    def layer(x, *weights):
        return functional.sru(x, None, *weights, **options)

    for poison in POISONS:
        dirty, clean = (_run(module, layer, _filled(data, pads, p), *weights) for p in (poison, 0))
        _same(dirty, clean)


@pytest.mark.parametrize("poison", POISONS)
def test_pads_of_models(poison):
    """The models take lengths too."""
    lengths, pads = [6, 3, 2, 5], _pads([6, 3, 2, 5])
    cases = [
        (models.MogrifierLSTM(IN, H, 2), lambda m, x: m(x, lengths=lengths), (IN,)),
        (models.ConvLSTM(2, 3, bidirectional=True), lambda m, x: m(x, lengths=lengths), (2, 4, 4)),
        (models.CNNBiLSTM(IN, 3, hidden_size=H, strides=(1, 1)), lambda m, x: m(x, lengths), (IN,)),
    ]
    for cell in ("LSTM", "GRU", "SRU"):
        model = models.Forecaster(1, 2, cell=cell, hidden_size=H)
        cases.append((model, lambda m, x: (m(x, lengths=lengths),), (1,)))
        cases.append((model, lambda m, x: (m(x, lengths=lengths, every_step=True),), (1,)))
    for model, call, features in cases:
        model.double().train()
        x = randn(T, B, *features, dtype=F64)
        dirty, clean = (
            _run(model, lambda x, m=model, c=call: c(m, x), _filled(x, pads, value)) for value in (poison, 0)
        )
        for i, (a, b) in enumerate(zip(dirty, clean, strict=True)):
            torch.testing.assert_close(
                a, b, rtol=1e-9, atol=1e-9, equal_nan=True, msg=f"{type(model).__name__}, result {i}"
            )
