"""The numbers of a check of ``verification.py``, and its cells run on them: fastrnn's, and torch.nn's.

torch.nn has no SRU and no variants; there the reference in the dtype under test stands in for it.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import functional, modules
from .._cells import PLAIN, RNN, SCAN, WITH_CELL
from .._cells.variant import Weights, parameters
from .._cells.variant import read as read_variant
from . import elementwise
from ._tolerances import Check
from ._variants import draws


@dataclass
class Data:
    """The numbers of one check and size, in the dtype under test."""

    check: Check
    x: Tensor
    hx: list[Tensor]
    params: list[Tensor]
    cotangents: list[Tensor]
    batch_sizes: Tensor | None
    num_layers: int

    def leaves(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """x, hx and params as fresh leaves in dtype."""

        def leaf(t):
            return t.detach().to(dtype).clone().requires_grad_()

        return leaf(self.x), [leaf(t) for t in self.hx], [leaf(t) for t in self.params]


def make_data(
    check: Check, size: tuple[int, int, int, int, int], device: str, seed: int = 0, scale: float = 1.0
) -> Data:
    """Draw the numbers of a check; a size is one of SIZES, and scale the size of the input."""
    T, B, I, H, num_layers = size  # noqa: E741
    card = RNN.get(check.cell)  # a scan draws its own below
    G = card.gates if card else 1
    P = check.projection(H) or H
    single = check.path == "cells"
    num_layers, D = (1 if single else num_layers), check.directions
    generator = torch.Generator().manual_seed(T * 1000 + H + 1_000_003 * seed)
    variant = read_variant(check.name, check.cell, H, **check.options(H)) if check.variant else PLAIN
    dtype = check.torch_dtype

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).to(device)

    # relu's derivative jumps at zero, where rounding decides its side. Here the bias decides instead: half
    # of the units are on, half of them off, and the weights cannot turn them.
    relu = card is not None and card.activation == "relu"
    gain = 0.1 if relu else 1.0

    params = []
    for layer in range(num_layers):
        for _ in range(D):
            inputs = D * P if layer else I
            params += [draw(G * H, inputs, scale=gain * inputs**-0.5)]
            # A variant's are as large as they begin with: a dropout makes larger ones of those that stay,
            # and then the state is chaotic, which amplifies every rounding with each step.
            begin = gain if variant is PLAIN else gain / 3**0.5
            params += [draw(G * H, P // variant.heads, scale=begin * P**-0.5)]
            params += [draw(G * H).sign() if relu else draw(G * H, scale=0.1), draw(G * H, scale=0.1)]
            params += [draw(P, H, scale=H**-0.5)] if check.path == "proj" else []
            if variant is not PLAIN:
                named = parameters(check.cell, variant, inputs, H).items()
                params += [_vector(name, draw(*size), gain) for name, size in named if name in _VECTORS]
    batch_sizes = None
    rows = (B,) if single else (T, B)
    if check.path == "packed":
        # From every row running down to one: each step drops one row, where there are enough.
        batch_sizes = torch.tensor([max(1, B - t) for t in range(T)])
        rows = (int(batch_sizes.sum()),)
    widths = [P, H] if card and card.has_cell else [H]
    states = [(B, w) if single else (num_layers * D, B, w) for w in widths]
    outputs = states if single else [(*rows, D * P), *states]
    hx = [draw(*s, scale=0.5) for s in states]
    if check.cell == "srupp":
        O = D * H  # noqa: E741
        named = _srupp(check, I, H, num_layers, "reference").named_parameters()
        params = [_srupp_parameter(name, p.shape, draw) for name, p in named]
        hx = [draw(num_layers, B, O, scale=0.5)]
        cotangents = [draw(*rows, O), draw(num_layers, B, O)]
        return Data(check, draw(*rows, I, scale=scale), hx, params, cotangents, batch_sizes, num_layers)
    if check.cell in elementwise.CELLS:
        x, hx, params, cotangents = elementwise.numbers(check, size, draw, scale)
        return Data(check, x, hx, params, cotangents, batch_sizes, num_layers)
    if check.cell in SCAN:
        # The recurrence alone: x is u, and the product that gives it is torch's. Both values of K. Weights of
        # the size they begin with: much larger ones, through which c feeds on itself, amplify rounding.
        O, K = D * H, 3 if H % 2 else 4  # noqa: E741
        params = [draw(2, O, scale=0.5), draw(2, O, scale=0.1), *([draw(*rows, O)] if K == 3 else [])]
        outputs = [(*rows, O), (B, O)]
        cotangents = [draw(*s) for s in outputs]
        return Data(check, draw(*rows, K, O, scale=scale), [draw(B, O)], params, cotangents, batch_sizes, 1)
    return Data(
        check, draw(*rows, I, scale=scale), hx, params, [draw(*s) for s in outputs], batch_sizes, num_layers
    )


#: The parameters that a variant has beside the plain cell's.
_VECTORS = Weights._fields[Weights._fields.index("weight_peephole") :]


def _vector(name: str, numbers: Tensor, gain: float) -> Tensor:
    """Numbers for such a parameter; the gains of norms away from zero, and of products times ``gain``, as
    weights are; that of W_hh h half of what it begins with, for the same reason as those."""
    if name in ("norm_ih", "norm_hh"):
        return gain * (1 if name == "norm_ih" else 0.5) * (1 + 0.1 * numbers)
    return 1 + 0.1 * numbers if name == "norm_c" else 0.1 * numbers


def _flat(result) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [t for part in result for t in _flat(part)]


def run_functional(data: Data, dtype: torch.dtype, backend: str, mode: str) -> dict[str, Tensor]:
    """Outputs, and gradients unless mode is "inference", of fastrnn.functional in dtype, by name.

    What a variant draws in training is the same in every dtype and backend."""
    check = data.check
    if check.cell in _SRU:
        return _collect(data, dtype, mode, functools.partial(_SRU[check.cell], data, backend))
    cell, _, nonlinearity = check.cell.partition("_")
    options: dict = {"nonlinearity": nonlinearity} if nonlinearity else {}
    training = mode != "inference"
    if check.path == "cells" and check.variant:
        return _collect(data, dtype, mode, functools.partial(_run_cell, data, backend, training, options))
    options["backend"] = backend
    if check.path == "cells":
        function = getattr(functional, f"{cell}_cell")
    else:
        function = getattr(functional, cell)
        options |= {"num_layers": data.num_layers, "bidirectional": check.directions == 2}
        options |= {"batch_sizes": data.batch_sizes, "training": training}
        options["save"] = "recompute" if mode == "recompute" else "gates"
        options |= check.options(data.hx[-1].size(-1))

    def call(x, hx, params):
        state = tuple(hx) if check.cell in WITH_CELL else hx[0]
        return (
            function(x, state, *params, **options)
            if check.path == "cells"
            else function(x, state, params, **options)
        )

    return _collect(data, dtype, mode, call)


def _run_cell(data: Data, backend: str, training: bool, options: dict, x, hx, params):
    """A variant's single step: the module, whose function torch.nn has not; of the reference a layer's."""
    check, hidden = data.check, hx[-1].size(-1)
    cell, options = check.cell.partition("_")[0], options | check.options(hidden)
    if backend == "reference":
        first = [h.unsqueeze(0) for h in hx]
        function = getattr(functional, cell)
        state = tuple(first) if check.cell in WITH_CELL else first[0]
        _, last = function(x.unsqueeze(0), state, params, training=training, backend=backend, **options)
        return [h.squeeze(0) for h in (last if check.cell in WITH_CELL else (last,))]
    module = getattr(modules, f"{cell.upper()}Cell")(x.size(-1), hidden, device="meta", **options)
    named = dict(zip((name for name, _ in module.named_parameters()), params, strict=True))
    state = tuple(hx) if check.cell in WITH_CELL else hx[0]
    return torch.func.functional_call(module.train(training), named, (x, state))


def _run_sru(data: Data, backend: str, u, hx, params):
    """The recurrence of an SRU layer."""
    weight_c, bias, *x = params
    return functional.sru_scan(
        u,
        x[0] if x else None,
        weight_c,
        bias,
        hx[0],
        batch_sizes=data.batch_sizes,
        bidirectional=data.check.directions == 2,
        backend=backend,
    )


def _srupp(check: Check, inputs: int, hidden: int, num_layers: int, backend: str) -> nn.Module:
    """A stack of SRU++ layers without data: the attention is torch's, two heads of it, and in every layer."""
    options = {"num_heads": 2, "bidirectional": check.directions == 2, "backend": backend}
    return modules.SRUpp(inputs, hidden, 8, num_layers, device="meta", **options)


def _srupp_parameter(name: str, shape: torch.Size, draw: Callable[..., Tensor]) -> Tensor:
    """Numbers for a parameter of SRU++. alpha, which begins at zero and would hide the attention, is about
    one, and so are the factors of the norm."""
    if len(shape) == 2:
        return draw(*shape, scale=shape[1] ** -0.5)
    if name.endswith("weight_c"):
        return draw(*shape, scale=0.5)
    around_one = name.endswith(("alpha", "norm.weight"))
    return draw(*shape, scale=0.1) + (1.0 if around_one else 0.0)


def _run_srupp(data: Data, backend: str, x, hx, params):
    """Layers of SRU++; sizes with an odd H are causal."""
    c0 = hx[0]
    hidden = c0.size(-1) // data.check.directions
    module = _srupp(data.check, x.size(-1), hidden, data.num_layers, backend)
    named = dict(zip((name for name, _ in module.named_parameters()), params, strict=True))
    batch = x if data.batch_sizes is None else PackedSequence(x, data.batch_sizes)
    h, c, _ = torch.func.functional_call(module, named, (batch, c0), {"is_causal": hidden % 2 == 1})
    return h, c


def _run_elementwise(data: Data, backend: str, x, hx, params):
    return elementwise.run(data.check, data.num_layers, backend, data.batch_sizes, x, hx, params)


#: What runs the cells that are no functions of flat weights alike.
_SRU = {"sru": _run_sru, "srupp": _run_srupp} | dict.fromkeys(elementwise.CELLS, _run_elementwise)


def _collect(data: Data, dtype: torch.dtype, mode: str, call: Callable) -> dict[str, Tensor]:
    x, hx, params = data.leaves(dtype)
    seeded = contextlib.nullcontext()
    if draws(data.check.variant):
        seeded = torch.random.fork_rng([x.device] if x.is_cuda else [])
    with torch.set_grad_enabled(mode != "inference"), seeded:
        if draws(data.check.variant):
            torch.manual_seed(data.x.numel())
        outputs = _flat(call(x, hx, params))
    found = {f"output {n}": t for n, t in enumerate(outputs)}
    if mode != "inference":
        inputs = [x, *hx, *params]
        gradients = torch.autograd.grad(outputs, inputs, [c.to(dtype) for c in data.cotangents])
        found |= {f"gradient {n}": g for n, g in enumerate(gradients)}
    return found


def run_torch(data: Data, mode: str = "training") -> dict[str, Tensor]:
    """Outputs and gradients of torch.nn in the dtype under test, named as run_functional names them; of what
    torch.nn has not, SRU and variants, the reference's."""
    check, dtype = data.check, data.x.dtype
    if check.cell in _SRU or check.variant:
        return run_functional(data, dtype, "reference", mode)
    cell, _, nonlinearity = check.cell.partition("_")
    hidden, inputs = data.hx[-1].size(-1), data.x.size(-1)
    options: dict = {"nonlinearity": nonlinearity} if nonlinearity else {}
    if check.path == "proj":
        options["proj_size"] = data.hx[0].size(-1)
    if check.path != "cells":
        options |= {"num_layers": data.num_layers, "bidirectional": check.directions == 2}
    kind = getattr(nn, cell.upper() + ("Cell" if check.path == "cells" else ""))
    module = kind(inputs, hidden, device=data.x.device, dtype=dtype, **options)
    names = [name for name, _ in module.named_parameters()]

    def call(x, hx, params):
        state = tuple(hx) if check.cell in WITH_CELL else hx[0]
        batch = x if data.batch_sizes is None else PackedSequence(x, data.batch_sizes)
        return torch.func.functional_call(module, dict(zip(names, params, strict=True)), (batch, state))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        return _collect(data, dtype, "training", call)
