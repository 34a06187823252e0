"""What the operators return without data, for whoever records them: shapes and dtypes (fake implementations).

Those of the recurrences without a product, and of the sLSTM, are in elementwise.py.
"""

import torch

from .._cells.variant import card_of, parse
from . import library
from .mode import NEEDS, SAVE_MODES, SCAN_NEEDS, TIERS


def saved_values(cell: str) -> int:
    """What training keeps a unit and step of a cell with or without a variant, without c."""
    card, variant, masks = parse(cell)
    if not masks and variant == parse(card.name).variant:
        return card.saved
    return max(card.saved, 1) + (2 * card.gates if variant.norm else 0)


def same_device(x, *tensors, host=()):
    """Fake implementations stand for one device: a real tensor among meta ones is a mistake, or a meta one
    among real ones, whose results would be whatever lies in their memory. host: those that may lie on the
    CPU, whatever x's device is."""
    for tensor in tensors:
        if tensor is not None and tensor.device != x.device:
            raise RuntimeError(f"expected all tensors on x's device, {x.device}, got one on {tensor.device}")
    for tensor in host:
        if tensor is not None and tensor.device != x.device and tensor.device.type != "cpu":
            raise RuntimeError(
                f"expected lengths and batch_sizes on the CPU, or on x's device, {x.device}, got one on "
                f"{tensor.device}"
            )


def gradient(of, wanted, x):
    """Of a tensor, or nothing (an empty tensor) where none is wanted or there is no such tensor."""
    return of.new_empty(of.shape) if wanted and of is not None else x.new_empty((0,))


def fake(name: str):
    """Registers a function as an operator's fake implementation, where there is the operator."""
    if not library.cpu_loaded:
        return lambda function: function
    return torch.library.register_fake(f"fastrnn::{name}")


@fake("rnn_forward")
def _fake_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode):
    same_device(x, h0, c0, *weights, reset, host=(batch_sizes, lengths))
    directions, batch, out = h0.shape
    card = card_of(cell)
    hidden = weights[0].shape[0] // card.gates
    rows = x.shape[0] if batch_sizes is not None else x.shape[0] * x.shape[1]
    lstm, saved = card.has_cell, saved_values(cell)
    y = x.new_empty((*x.shape[:-1], directions * out))
    cn = x.new_empty((directions, batch, hidden)) if lstm else x.new_empty((0,))
    save = mode % TIERS["one_cta"]
    gates_shape = (directions, rows, saved * hidden) if saved and save == SAVE_MODES["gates"] else (0,)
    gates = x.new_empty(gates_shape)
    cells_shape = (directions, rows, hidden) if lstm and save else (0,)
    return y, x.new_empty(h0.shape), cn, gates, x.new_empty(cells_shape, dtype=library.compute_dtype(x))


@fake("rnn_layer")
def _(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, keep_cells, mode):
    mode = SAVE_MODES["recompute"] if keep_cells else 0
    y, hn, cn, _, cells = _fake_forward(x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode)
    return y, hn, cn, cells


@fake("rnn_backward")
def _fake_backward(
    grad_y,
    grad_hn,
    grad_cn,
    grad_cells,
    x,
    h0,
    c0,
    weights,
    batch_sizes,
    lengths,
    reset,
    y,
    gates,
    cells,
    cell,
    bias,
    mode,
):
    saved = y, gates, cells
    grads = grad_y, grad_hn, grad_cn, grad_cells
    same_device(x, h0, c0, *weights, reset, *saved, *grads, host=(batch_sizes, lengths))
    return (
        gradient(x, mode & NEEDS["x"], x),
        gradient(h0, mode & NEEDS["h0"], x),
        gradient(c0, mode & NEEDS["c0"], x),
        _like_weights(weights, cell) if mode & NEEDS["weights"] else [],
    )


def _like_weights(weights, cell):
    masks = len(parse(cell).masks)
    own = weights[: len(weights) - masks]
    return [w.new_empty(w.shape) for w in own] + [weights[0].new_empty((0,)) for _ in range(masks)]


def _unlisted(gradients, most):
    """The results of a backward operator one by one, with an empty tensor for each weight there is not."""
    *first, weights = gradients
    return *first, *weights, *(first[0].new_empty((0,)) for _ in range(most - len(weights)))


@fake("rnn_backward_unlisted")
def _(*args):
    return _unlisted(_fake_backward(*args), library.UNLISTED)


@fake("rnn_backward_unlisted_variant")
def _(*args):
    return _unlisted(_fake_backward(*args), library.UNLISTED_VARIANT)


@fake("sru_forward")
def _fake_sru_forward(
    u,
    x,
    weight_c,
    bias,
    c0,
    v,
    mask_pad,
    drop_mask,
    batch_sizes,
    reset,
    use_tanh,
    scale,
    bidirectional,
    save,
):
    same_device(u, x, weight_c, bias, c0, v, mask_pad, drop_mask, reset, host=(batch_sizes,))
    *rows, _, features = u.shape
    count = rows[0] if batch_sizes is not None else rows[0] * rows[1]
    cells = u.new_empty((count, features) if save else (0,), dtype=library.compute_dtype(u))
    return u.new_empty((*rows, features)), u.new_empty(c0.shape), cells


fake("sru_scan")(_fake_sru_forward)


@fake("sru_backward")
def _(
    grad_h,
    grad_c,
    grad_cells,
    u,
    x,
    weight_c,
    bias,
    c0,
    v,
    mask_pad,
    drop_mask,
    batch_sizes,
    reset,
    cells,
    use_tanh,
    scale,
    bidirectional,
    needs,
):
    grads = grad_h, grad_c, grad_cells
    inputs = x, weight_c, bias, c0, v, mask_pad, drop_mask, reset
    same_device(u, *inputs, cells, *grads, host=(batch_sizes,))
    return (
        gradient(u, needs & SCAN_NEEDS["u"], u),
        gradient(x, needs & SCAN_NEEDS["x"], u),
        gradient(weight_c, needs & SCAN_NEEDS["weights"], u),
        gradient(bias, needs & SCAN_NEEDS["weights"], u),
        gradient(c0, needs & SCAN_NEEDS["c0"], u),
        gradient(v, needs & SCAN_NEEDS["v"], u),
    )


@fake("sru_step")
def _(x, weight, skip, weight_c, bias, c0, use_tanh, scale):
    same_device(x, weight, skip, weight_c, bias, c0)
    return x.new_empty(c0.shape), x.new_empty(c0.shape)


@fake("rnn_stream")
def _(x, h0, c0, packed):
    same_device(x, h0, c0, *packed)
    y = x.new_empty((*x.shape[:-1], h0.shape[-1]))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)


@fake("rnn_quantized")
def _(x, h0, c0, packed, batch_sizes, lengths, bidirectional):
    same_device(x, h0, c0, *packed, host=(batch_sizes, lengths))
    y = x.new_empty((*x.shape[:-1], h0.shape[-1] * (2 if bidirectional else 1)))
    return y, x.new_empty(h0.shape), x.new_empty((0,) if c0 is None else c0.shape)
