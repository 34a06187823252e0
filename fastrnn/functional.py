"""The recurrent layers and cells without state: weights in, outputs out.

The stateless half of ``fastrnn.LSTM`` and its siblings: layers, directions, dropout between layers, packed
batches, default states and autocast included. One layer over the whole sequence is one fused op.

Shapes: T steps, B rows, I inputs, H hidden units, P projected units (H without a projection), D directions,
L layers, N = sum(batch_sizes) packed rows, G gate blocks (LSTM 4, GRU 3, RNN 1).

``params`` is flat, layer by layer and within it direction by direction, as ``torch.nn.LSTM._flat_weights``:
w_ih (G*H, I or D*P), w_hh (G*H, P), then b_ih, b_hh (G*H,) if ``bias``, then w_hr (P, H) if projected.

``backend``: "auto" takes the fused kernels on the CPU; on a GPU torch's own layer, unless the device has
proven a kernel to be right and faster (``fastrnn tune``); and where no kernel covers dtype and device
(complex numbers; GPUs of other makers, or older than compute capability 8.0) torch's own layer, or where
torch has none (lengths, torch.func's transforms) ``fastrnn.reference``. "fused" asks for the kernels, and
raises where there are none; "reference" asks for plain torch. "cudnn" is torch's own layer: cuDNN on a GPU,
torch's native one on the CPU. "stepwise", "stepwise_graph", "one_cta", "cluster" and "grid" hold the fused
kernels to one tier on a GPU, and raise where it cannot take the layer; see ``fastrnn.explain``.

``save``: what training keeps. "gates" stores each step's gates, "recompute" computes them again in backward.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _checks
from ._cells import PLAIN
from ._cells.variant import read as read_variant
from ._checks import scan as scan_checks
from ._ops.torch_state import autocasting
from ._run import scan as run_scan
from ._run import symbolic
from ._run.rnn import Stack, run
from ._run.rows import Rows, asked
from ._run.step import one_step

__all__ = ["gru", "gru_cell", "linear_scan", "lstm", "lstm_cell", "rnn", "rnn_cell", "sru", "sru_scan"]


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    save: str = "gates",
    backend: str = "auto",
    **variant,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A multi-layer LSTM, with projections when ``params`` holds w_hr.

    Args:
        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) for one sequence, or packed rows (N, I) with
            ``batch_sizes``.
        hx: h_0 (L*D, B, P) and c_0 (L*D, B, H), without B for one sequence; None for zeros.
        params: the weights, flat; see the module's head.
        dropout: probability, applied to the output of every layer but the last when ``training``.
        batch_sizes: (T,) int64 on the CPU, rows still running at each step; ``batch_first`` is then ignored.
        save: "gates" or "recompute". backend: "auto", "fused", "cudnn", "reference" or a tier.
        variant: the options of :class:`fastrnn.LSTM` that are no torch.nn's, such as ``norm="layer"``. Their
            masks are drawn when ``training``; their weights are in ``params`` behind the direction's others:
            weight_peephole, then norm_ih, norm_hh, norm_c, norm_c_bias.

    Returns:
        output (T, B, D*P), or laid out like the input; h_n (L*D, B, P) and c_n (L*D, B, H).

    Raises:
        ValueError: wrong number of dimensions of the input, a dtype other than the weights', params of wrong
            number or size, an unknown option.
        RuntimeError: sizes that do not fit together, T = 0, tensors on different devices, bad batch_sizes, or
            ``backend="fused"`` or a tier where no kernel covers the dtype or device, or the tier the layer.
    """
    try:
        layout = bidirectional, batch_first, save, backend
        stack = _stack("LSTM", "lstm", params, bias, num_layers, dropout, training, *layout, variant)
        rows = None if batch_sizes is None else Rows(batch_sizes)
        y, h, c = run(stack, input, hx, params, rows)
        return y, (h, c)
    except symbolic.ERRORS:
        if (node := symbolic.function_call(lstm, locals())) is None:
            raise
        return node


def gru(
    input: Tensor,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    save: str = "gates",
    backend: str = "auto",
    **variant,
) -> tuple[Tensor, Tensor]:
    """A multi-layer GRU. Arguments, shapes and errors are those of :func:`lstm`, with hx = h_0 (L*D, B, H).

    Returns output (T, B, D*H), or laid out like the input, and h_n (L*D, B, H).
    """
    try:
        layout = bidirectional, batch_first, save, backend
        stack = _stack("GRU", "gru", params, bias, num_layers, dropout, training, *layout, variant)
        rows = None if batch_sizes is None else Rows(batch_sizes)
        y, h, _ = run(stack, input, hx, params, rows)
        return y, h
    except symbolic.ERRORS:
        if (node := symbolic.function_call(gru, locals())) is None:
            raise
        return node


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    bias: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    save: str = "gates",
    backend: str = "auto",
    **variant,
) -> tuple[Tensor, Tensor]:
    """A multi-layer Elman RNN, tanh or relu. Otherwise as :func:`gru`."""
    try:
        _checks.one_of("rnn", "nonlinearity", nonlinearity, _checks.NONLINEARITIES)
        cell = f"rnn_{nonlinearity}"
        layout = bidirectional, batch_first, save, backend
        stack = _stack("RNN", cell, params, bias, num_layers, dropout, training, *layout, variant)
        rows = None if batch_sizes is None else Rows(batch_sizes)
        y, h, _ = run(stack, input, hx, params, rows)
        return y, h
    except symbolic.ERRORS:
        if (node := symbolic.function_call(rnn, locals())) is None:
            raise
        return node


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM.

    input (B, I) or (I,); hx = (h, c), each (B, H) or (H,), or None for zeros; w_ih (4H, I), w_hh (4H, H),
    biases (4H,) or None. Returns the new h and c. RuntimeError where sizes, dtypes or devices do not fit.
    """
    try:
        return one_step("LSTMCell", "lstm", input, hx, w_ih, w_hh, b_ih, b_hh, backend)
    except symbolic.ERRORS:
        if (node := symbolic.function_call(lstm_cell, locals())) is None:
            raise
        return node


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """One step of a GRU: as :func:`lstm_cell` with hx = h, w_ih (3H, I), w_hh (3H, H). Returns the new h."""
    try:
        return one_step("GRUCell", "gru", input, hx, w_ih, w_hh, b_ih, b_hh, backend)[0]
    except symbolic.ERRORS:
        if (node := symbolic.function_call(gru_cell, locals())) is None:
            raise
        return node


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    backend: str = "auto",
) -> Tensor:
    """One step of an Elman RNN: as :func:`gru_cell` with w_ih (H, I) and w_hh (H, H)."""
    try:
        _checks.one_of("rnn_cell", "nonlinearity", nonlinearity, _checks.NONLINEARITIES)
        return one_step("RNNCell", f"rnn_{nonlinearity}", input, hx, w_ih, w_hh, b_ih, b_hh, backend)[0]
    except symbolic.ERRORS:
        if (node := symbolic.function_call(rnn_cell, locals())) is None:
            raise
        return node


def sru(
    input: Tensor,
    c0: Tensor | None,
    weight: Tensor,
    weight_c: Tensor,
    bias: Tensor,
    *,
    has_skip_term: bool = True,
    mask_pad: Tensor | None = None,
    drop_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    done: Tensor | None = None,
    return_all_states: bool = False,
    use_tanh: bool = False,
    scale: float = 1.0,
    bidirectional: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """One SRU layer: the product of ``fastrnn.SRU`` and its recurrence. O = D*H features.

    Args:
        input: (L, B, I), or packed rows (N, I) with ``batch_sizes``.
        c0: (B, O), or None for zeros.
        weight: (O*K, I), the K rows of a unit next to each other: candidate, forget gate, reset gate and,
            with a skip term where I is not O, skip. K = 3 or 4.
        weight_c, bias: (2*O,), the forget gate's and the reset gate's.
        lengths: (B,), how many steps each row has, 0 to L, in any order; integers on any device, or a list.
            The steps beyond are pads: h is 0 and c passes through.
        reset: (L, B) of bool or integers, true where a new sequence begins with a state of zeros: neither
            direction's state passes between the steps t-1 and t. done: the same said of a sequence's last
            step, done[t] being reset[t+1]; the last c of a row that ends so is zero in the forward direction.
        return_all_states: return c of every step as well.

    The others as in :func:`sru_scan`.

    Returns:
        h (L, B, O) or (N, O), and the last c (B, O); with ``return_all_states`` also c of every step
        (L, B, O), 0 for pads.
    """
    try:
        x = _checks.tensor("sru", "input", input)
        packed = batch_sizes is not None
        scan_checks.dims("sru", x, (2,) if packed else (3,), "(N, I)" if packed else "(L, B, I)")
        features = _checks.tensor("sru", "weight_c", weight_c).numel() // 2
        k = 4 if has_skip_term and x.size(-1) != features else 3
        scan_checks.shape("sru", "weight", weight, (k * features, x.size(-1)))
        scan_checks.shape("sru", "weight_c", weight_c, (2 * features,))
        scan_checks.shape("sru", "bias", bias, (2 * features,))
        scan_checks.like_input("sru", x, [("weight", weight)], autocast=autocasting(x))
        pads = mask_pad
        if mask_pad is not None and not packed:
            pads = scan_checks.mask("sru", "mask_pad", mask_pad, x.device, tuple(x.shape[:2]))
        rows = _scan_rows("sru", x, batch_sizes, lengths, reset, done, return_all_states)
        if rows is not None:
            pads = rows.pads(pads, x.size(0), x.device)
        if pads is not None and not packed:
            x = run_scan.without_pads(x, pads)
        if c0 is None:
            batch = x.size(-2) if batch_sizes is None else int(batch_sizes[0])
            c0 = x.new_zeros((batch, features))
        return _scan(
            run_scan.project_weight(weight, x, k),
            x if has_skip_term and k == 3 else None,
            weight_c.view(2, features),
            bias.view(2, features),
            c0,
            rows,
            mask_pad=pads,
            drop_mask=drop_mask,
            batch_sizes=batch_sizes,
            use_tanh=use_tanh,
            scale=scale,
            bidirectional=bidirectional,
            backend=backend,
        )
    except symbolic.ERRORS:
        if (node := symbolic.function_call(sru, locals())) is None:
            raise
        return node


def sru_scan(
    u: Tensor,
    x: Tensor | None,
    weight_c: Tensor,
    bias: Tensor,
    c0: Tensor,
    *,
    v: Tensor | None = None,
    mask_pad: Tensor | None = None,
    drop_mask: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    done: Tensor | None = None,
    return_all_states: bool = False,
    use_tanh: bool = False,
    scale: float = 1.0,
    bidirectional: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """The elementwise recurrence of an SRU layer: ``fastrnn.reference.sru_scan``, by the fused kernels.

    Arguments, shapes and results are the reference's; ``mask_pad`` may be of any dtype, nonzero for pads.
    ``lengths``, ``reset``, ``done`` and ``return_all_states`` are those of :func:`sru`.

    Raises:
        ValueError, RuntimeError: sizes, dtypes and devices that do not fit, naming the argument.
    """
    try:
        rows = None
        if lengths is not None or reset is not None or done is not None or return_all_states is not False:
            steps = u.flatten(-2) if isinstance(u, Tensor) and u.dim() == 4 else u
            rows = _scan_rows("sru_scan", steps, batch_sizes, lengths, reset, done, return_all_states)
            pads = None
            if mask_pad is not None and batch_sizes is None:
                pads = scan_checks.mask("sru_scan", "mask_pad", mask_pad, u.device, tuple(u.shape[:2]))
            mask_pad = rows.pads(pads, u.size(0), u.device)
        options = {"use_tanh": use_tanh, "scale": scale, "bidirectional": bidirectional, "backend": backend}
        masks = {"v": v, "mask_pad": mask_pad, "drop_mask": drop_mask, "batch_sizes": batch_sizes}
        return _scan(u, x, weight_c, bias, c0, rows, **masks, **options)
    except symbolic.ERRORS:
        if (node := symbolic.function_call(sru_scan, locals())) is None:
            raise
        return node


def linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """h_t = a_t * h_{t-1} + b_t for every step, elementwise, with gradients of all three.

    Args:
        a, b: (T, B, H) of one dtype; half types are computed in float32. h0: (B, H), zeros by default.
        lengths: (B,), how many steps each row has, 0 to T; the steps beyond give 0, and take no part in any
            gradient. reset: (T, B) of bool or integers, true where a new sequence begins, from a state of 0.
        reverse: from the last step to the first; then reset cuts between the steps t-1 and t all the same.

    Returns:
        h (T, B, H).

    Raises:
        ValueError, TypeError, RuntimeError: sizes, dtypes and devices that do not fit, naming the argument.
    """
    try:
        a, b = _checks.tensor("linear_scan", "a", a), _checks.tensor("linear_scan", "b", b)
        scan_checks.dims("linear_scan", a, (3,), "(T, B, H)")
        scan_checks.shape("linear_scan", "b", b, tuple(a.shape))
        if h0 is not None:
            scan_checks.shape(
                "linear_scan", "h0", _checks.tensor("linear_scan", "h0", h0), tuple(a.shape[1:])
            )
        _checks.same_kind(a, [("b", b), ("h0", h0)], "a")
        rows = asked("linear_scan", a, lengths, reset, None, False, False)
        return run_scan.linear(a, b, h0, rows, reverse)
    except symbolic.ERRORS:
        if (node := symbolic.function_call(linear_scan, locals())) is None:
            raise
        return node


def _scan_rows(name, input, batch_sizes, lengths, reset, done, return_all_states) -> Rows | None:
    """What a scan is told of the rows of a padded batch, (L, B, .)."""
    rows = asked(name, input, lengths, reset, done, return_all_states, False)
    if rows is not None and batch_sizes is not None:
        raise ValueError(
            f"{name}: lengths, reset, done and return_all_states belong to padded input, got batch_sizes; "
            "pass what was packed, and its lengths"
        )
    return rows


def _scan(u, x, weight_c, bias, c0, rows: Rows | None, *, v=None, backend, bidirectional, **masks):
    """The body of both."""
    _checks.one_of("sru_scan", "backend", backend, _checks.BACKENDS)
    masks["mask_pad"] = scan_checks.scan_arguments(
        u,
        x,
        weight_c,
        bias,
        c0,
        v,
        masks["mask_pad"],
        masks["drop_mask"],
        masks["batch_sizes"],
        bidirectional,
    )
    return run_scan.scan(
        u, x, weight_c, bias, c0, rows=rows, v=v, backend=backend, bidirectional=bidirectional, **masks
    )


def _stack(
    name,
    cell,
    params,
    bias,
    num_layers,
    dropout,
    training,
    bidirectional,
    batch_first,
    save,
    backend,
    options=None,
) -> Stack:
    """Check what a module has checked at construction, and derive the sizes from the weights."""
    _checks.one_of(name, "save", save, _checks.SAVE)
    _checks.one_of(name, "backend", backend, _checks.BACKENDS)
    _checks.probability(name, dropout)
    directions, variant = 2 if bidirectional else 1, PLAIN
    if options:
        variant = read_variant(name, cell, 0, **options)
    sizes = _checks.params(name, cell, params, bias, num_layers, directions, variant)
    if options:  # again, with what the weights say
        read_variant(name, cell, *sizes[1:], params[0].dtype, **options)
    layout = bidirectional, batch_first, save, backend
    variant = None if variant is PLAIN else variant
    return Stack(name, cell, *sizes, bias, num_layers, dropout, training, *layout, variant)
