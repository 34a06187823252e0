"""lengths, reset, done and return_all_states of SRU: of the modules and the functions, against the reference
and against what they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import functional, reference

L, B, IN, H = 7, 4, 5, 6
LENGTHS = [7, 0, 3, 5]


def _layer(**options) -> fastrnn.SRU:
    torch.manual_seed(0)
    return fastrnn.SRU(IN, H, dtype=torch.float64, **options)


def _input(batch_first: bool = False) -> torch.Tensor:
    x = torch.randn(L, B, IN, dtype=torch.float64)
    return x.transpose(0, 1) if batch_first else x


def _pads() -> torch.Tensor:
    return torch.arange(L).unsqueeze(1) >= torch.tensor(LENGTHS)


@pytest.mark.parametrize("given", ["list", "int32", "with mask_pad"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"proj_input_to_hidden_first": True}], ids=str
)
def test_lengths_are_pads(options, batch_first, given):
    """lengths= gives what mask_pad gives for the same steps, whatever the padding holds, and gradients."""
    layer = _layer(batch_first=batch_first, **options)
    x = _input(batch_first)
    pads = _pads().t() if batch_first else _pads()
    poisoned = x.masked_fill(pads.unsqueeze(-1), torch.nan)
    lengths = {"int32": torch.tensor(LENGTHS, dtype=torch.int32)}.get(given, LENGTHS)
    extra = {}
    if given == "with mask_pad":
        mask = torch.zeros_like(pads)
        (mask.t() if batch_first else mask)[1, 0] = True
        pads, extra = pads | mask, {"mask_pad": mask}
    want = layer(x, mask_pad=pads)
    got = layer(poisoned, lengths=lengths, **extra)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    of = [
        torch.autograd.grad(sum(t.sin().sum() for t in out), list(layer.parameters())) for out in (got, want)
    ]
    for a, b in zip(*of, strict=True):
        assert torch.equal(a, b)


def test_lengths_are_what_packing_gives():
    """In one direction the last c is that of each row's last step."""
    layer = _layer()
    x, lengths = _input(), [7, 1, 3, 5]
    h, c = layer(x, lengths=lengths)
    packed, want_c = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    torch.testing.assert_close(h, pad_packed_sequence(packed)[0])
    torch.testing.assert_close(c, want_c)


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_reset_is_two_calls(backend, bidirectional):
    """Neither direction's state passes: the halves of a cut batch are calls of their own."""
    layer = _layer(backend=backend, bidirectional=bidirectional)
    x, reset = _input(), torch.zeros(L, B, dtype=torch.bool)
    reset[3] = True
    h, c, states = layer(x, reset=reset, return_all_states=True)
    (h1, c1), (h2, c2) = layer(x[:3]), layer(x[3:])
    torch.testing.assert_close(h, torch.cat([h1, h2]))
    torch.testing.assert_close(c[..., :H], c2[..., :H])
    torch.testing.assert_close(c[..., H:], c1[..., H:])
    assert states.shape == (2, L, B, layer.output_size)
    torch.testing.assert_close(states[:, -1, :, :H], c[..., :H])
    torch.testing.assert_close(states[:, 0, :, H:], c[..., H:])


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
def test_done_is_a_reset_a_step_later(options):
    """And where it is true at a row's last step, the next call begins with zeros in the forward direction."""
    layer = _layer(**options)
    x, done = _input(layer.batch_first), torch.rand(L, B) < 0.4
    done[6, 0] = done[2, 2] = True
    done[4, 3] = False
    reset = torch.cat([torch.zeros(1, B, dtype=torch.bool), done[:-1]])
    if layer.batch_first:
        done, reset = done.t(), reset.t()
    h, c = layer(x, done=done, lengths=LENGTHS)
    want_h, want_c = layer(x, reset=reset, lengths=LENGTHS)
    assert torch.equal(h, want_h)
    want_c[:, [0, 2], :H] = 0
    assert torch.equal(c, want_c)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"nn_rnn_compatible_return": True}], ids=str)
def test_every_steps_state(options, dtype):
    """c of each layer and step, in the layout of the output, 0 for pads; with gradients."""
    layer = _layer(bidirectional=True, **options).to(dtype)
    x = _input(layer.batch_first).to(dtype)
    h, c, states = layer(x, lengths=LENGTHS, return_all_states=True)
    assert states.dtype == dtype
    assert states.shape == (2, *h.shape)
    by_step = states.transpose(1, 2) if layer.batch_first else states
    assert not by_step[:, _pads()].any()
    for row, length in enumerate(LENGTHS):
        if length:
            last = c.unflatten(0, (2, -1))[:, 0] if layer.nn_rnn_compatible_return else c[..., :H]
            assert torch.equal(by_step[:, length - 1, row, :H], last[:, row])
    grads = torch.autograd.grad(states.float().sum(), list(layer[0].parameters()))
    assert all(g.any() for g in grads)


def test_gradients_of_the_states():
    """First and second derivatives of everything that a call returns."""
    layer = _layer(bidirectional=True, use_tanh=True)
    reset = torch.rand(L, B) < 0.3
    x = _input()[:, :, :].requires_grad_()

    def run(x):
        return layer(x, lengths=LENGTHS, reset=reset, return_all_states=True)

    assert torch.autograd.gradcheck(run, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, x, fast_mode=True)


def test_a_cell():
    """SRUCell takes the same, and a single step has a single flag a row."""
    torch.manual_seed(0)
    cell = fastrnn.SRUCell(IN, H, dtype=torch.float64)
    x, c0 = _input(), torch.randn(B, H, dtype=torch.float64)
    reset, done = torch.rand(L, B) < 0.3, torch.rand(L, B) < 0.3
    h, c, states = cell(x, c0, lengths=LENGTHS, reset=reset, done=done, return_all_states=True)
    state = c0
    for t in range(L):
        begins = reset[t] | (done[t - 1] if t else False)
        step = cell(x[t], state, reset=begins, lengths=[int(t < n) for n in LENGTHS], return_all_states=True)
        torch.testing.assert_close(h[t], step[0])
        torch.testing.assert_close(states[t], step[2])
        state = step[1]
    over = [bool(n and done[n - 1, b]) for b, n in enumerate(LENGTHS)]
    torch.testing.assert_close(c, state.masked_fill(torch.tensor(over).unsqueeze(1), 0))


def test_the_functions():
    """functional.sru and sru_scan, and the reference that defines them."""
    x, reset = _input(), torch.rand(L, B) < 0.3
    weight, weight_c, bias = (torch.randn(n, dtype=torch.float64) for n in ((4 * H, IN), (2 * H,), (2 * H,)))
    rows = {"lengths": LENGTHS, "reset": reset, "return_all_states": True}
    h, c, states = functional.sru(x, None, weight, weight_c, bias, **rows)
    u = (x @ weight.t()).unflatten(-1, (H, 4)).transpose(-1, -2)
    given = u, None, weight_c.view(2, H), bias.view(2, H), x.new_zeros(B, H)
    want = reference.sru_scan(*given, lengths=torch.tensor(LENGTHS), reset=reset, keep_cells=True)
    want_states = want[2].view(L, B, H).masked_fill(_pads().unsqueeze(-1), 0)
    for got in ((h, c, states), functional.sru_scan(*given, **rows)):
        for a, b in zip(got, (*want[:2], want_states), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lengths": [8, 1, 1, 1]}, RuntimeError, r"lengths: expected 0 to 7 \(the steps of x\), got 8"),
        ({"lengths": [1, 2]}, ValueError, "lengths should have one number for each of the 4 rows"),
        ({"reset": torch.zeros(B, L)}, TypeError, "reset should be a mask of bool or integers"),
        ({"done": torch.zeros(B, L, dtype=torch.bool)}, ValueError, r"done should have size \[7, 4\]"),
        ({"return_all_states": 1}, TypeError, "return_all_states should be of type bool, got int"),
    ],
)
def test_bad_arguments(arguments, error, message):
    """One clear error, of the stack and of a layer alone."""
    for layer in (_layer(), _layer()[0]):
        with pytest.raises(
            error, match=f"{type(layer).__name__}: {message}" if "the steps" not in message else message
        ):
            layer(_input(), **arguments)


def test_not_with_packed_rows():
    """These belong to padded batches."""
    packed = pack_padded_sequence(_input(), torch.tensor([7, 3, 2, 1]))
    for arguments in ({"lengths": [1] * 4}, {"reset": torch.zeros(L, B)}, {"return_all_states": True}):
        for layer in (_layer(), _layer()[0]):
            with pytest.raises(ValueError, match="belong to padded input"):
                layer(packed, **arguments)


def test_compiled_and_exported():
    """Without a break in a compiled graph; an exported program has the operator, and every step's state."""
    layer, x = _layer(bidirectional=True).float(), _input().float()
    lengths, reset = torch.tensor(LENGTHS), torch.rand(L, B) < 0.3

    def run(x, lengths, reset):
        return layer(x, lengths=lengths, reset=reset, return_all_states=True)

    want = run(x, lengths, reset)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(x, lengths, reset)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, lengths, reset):
            return self.layer(x, lengths=lengths, reset=reset, return_all_states=True)

    program = torch.export.export(Model(), (x, lengths, reset)).module()
    for a, b in zip(program(x, lengths, reset), want, strict=True):
        torch.testing.assert_close(a, b)
    sum(t.sum() for t in program(x, lengths, reset)).backward()
    traced = torch.jit.trace(Model(), (x, lengths, reset))
    for a, b in zip(traced(x, lengths, reset), want, strict=True):
        torch.testing.assert_close(a, b)
