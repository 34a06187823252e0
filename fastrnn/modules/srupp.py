"""The SRU++ layers: SRU whose matrix product is preceded by attention."""

from __future__ import annotations

import torch  # noqa: F401 - what TorchScript compiles of forward() names it
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _checks
from .._checks import scan as scan_checks
from .._run import scan as run_scan
from .._run import symbolic
from .._run.torchscript import scripts_as
from . import _script_sru, _script_srupp  # noqa: F401 - likewise
from ._srupp_transforms import SRUppAttention, SRUppProjectedLinear, memory_without_pads
from .sru import first_input, stack_input, stack_result, stack_states
from .sru_cell import SRUCell

__all__ = ["SRUpp", "SRUppAttention", "SRUppCell", "SRUppProjectedLinear"]


class SRUppCell(SRUCell):
    """One layer of :class:`fastrnn.SRUpp`: :class:`fastrnn.SRUCell` with a transform module that attends.

    Arguments are SRUCell's. ``transform_module`` is a :class:`SRUppAttention`, a
    :class:`SRUppProjectedLinear`, or a module that takes their arguments by name.
    """

    #: Whether layer_norm, where it precedes the transform, is applied to the memory too; see SRUpp.
    normalize_memory = False

    @scripts_as(_script_srupp.cell)
    def forward(
        self,
        input: Tensor | PackedSequence,
        c0: Tensor | None = None,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Run the layer: as :meth:`SRUCell.forward`, the attention's arguments as in :class:`SRUppAttention`.

        ``memory`` (M, B, I) has the rows in the order of the sequences, packed or not.
        """
        try:
            return self._run(
                input,
                c0,
                mask_pad,
                attn_mask=attn_mask,
                memory=memory,
                memory_mask_pad=memory_mask_pad,
                is_causal=is_causal,
            )
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRUppCell.forward, locals())) is None:
                raise
            return node

    def _sees_pads(self) -> bool:
        return not isinstance(self.transform_module, (SRUppAttention, SRUppProjectedLinear))

    def _transform(self, x, packing, mask_pad, **attention) -> tuple[Tensor, Tensor | None]:
        module = self.transform_module
        memory, memory_mask_pad = attention["memory"], attention["memory_mask_pad"]
        if packing is not None:
            attention["memory"] = memory = packing.sort(memory, 1)
            attention["memory_mask_pad"] = packing.sort(memory_mask_pad, 1)
        if memory is not None and attention["memory_mask_pad"] is not None:
            attention["memory"] = memory = memory_without_pads(
                type(self).__name__, memory, attention["memory_mask_pad"]
            )
        if (
            memory is not None
            and self.normalize_memory
            and self.layer_norm is not None
            and not self.normalize_after
        ):
            attention["memory"] = self.layer_norm(memory)
        own = isinstance(module, (SRUppAttention, SRUppProjectedLinear)) and not run_scan.hooked(module)
        if own and module.out_features == self.num_matrices * self.output_size:
            found = module.features(x, mask_pad=mask_pad, packing=packing, **attention)
            return run_scan.project(module.last, found, self.num_matrices), None
        if not attention["is_causal"]:  # modules written for the package do not know it
            del attention["is_causal"]
        steps = x
        if packing is not None:
            steps, mask_pad = packing.pad(x), packing.pads()
        u, v = self._read(steps.shape[:-1], module(steps, mask_pad=mask_pad, **attention))
        if packing is not None:
            u, v = packing.unpad(u), (v if v is None or v.dim() == 1 else packing.unpad(v))
        return u, v


class SRUpp(nn.Module):
    r"""SRUpp(input_size, hidden_size, proj_size, num_layers=2, dropout=0.0, attn_dropout=0.0, num_heads=1,
    bidirectional=False, layer_norm=False, normalize_after=False, attn_layer_norm=True, highway_bias=-2.0,
    attention_every_n_layers=1, attention_last_n_layers=-1, rescale=False, nn_rnn_compatible_return=False,
    proj_input_to_hidden_first=False, weight_c_init=1.0, *, batch_first=False, normalize_memory=False,
    backend="auto", device=None, dtype=None)

    A multi-layer SRU++ (Lei, "When Attention Meets Fast Recurrence: Training Language Models with Reduced
    Compute", 2021), a drop-in for ``sru.SRUpp`` of the ``sru`` package, version 3.0: arguments, state_dict,
    initial values and numbers. Each layer is an SRU, whose equations are :class:`fastrnn.SRU`'s, on a U that
    :class:`SRUppAttention` computes, with ``proj_size`` = P features:

    .. math::
        Z &= W_1 [x'; x], \qquad Q = Z_x, \qquad (K, V) = W_2 Z \\
        U &= W_3\, \mathrm{Dropout}(\mathrm{LN}(\alpha\, \mathrm{softmax}(Q K^T / \sqrt{d}) V + Q))

    Args:
        input_size, hidden_size, num_layers, bidirectional, highway_bias, rescale: as in SRU.
        nn_rnn_compatible_return, proj_input_to_hidden_first, weight_c_init: as in SRU.
        batch_first, backend, device, dtype: as in SRU.
        proj_size: P, features of the attention, a multiple of num_heads.
        dropout: probability, on g(c) - X of every layer but the last, and before W_3 of every layer.
        attn_dropout: on the softmax.
        layer_norm, normalize_after: of each layer's input or of its h, as in SRU. attn_layer_norm: LN above.
        attention_every_n_layers: the other layers have :class:`SRUppProjectedLinear` in its place.
        attention_last_n_layers: only so many last layers have attention. Not both.
        normalize_memory: see below.

    Truncated backpropagation through time: run a chunk, then the next one with ``c0`` = c and
    ``memory`` = ``saved_inputs``. With a causal mask that gives exactly what the whole sequence gives, with
    one exception, which is the package's: with ``layer_norm`` before the transform
    (``normalize_after=False``) the layer's own input is normalised and the memory is not.
    ``normalize_memory=True`` normalises both, and chunks are exact there too.
    """

    #: For fastrnn.explain: of which family of recurrences its layers are.
    _family = "scan"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int = 2,
        dropout: float = 0.0,
        attn_dropout: float = 0.0,
        num_heads: int = 1,
        bidirectional: bool = False,
        layer_norm: bool = False,
        normalize_after: bool = False,
        attn_layer_norm: bool = True,
        highway_bias: float = -2.0,
        attention_every_n_layers: int = 1,
        attention_last_n_layers: int = -1,
        rescale: bool = False,
        nn_rnn_compatible_return: bool = False,
        proj_input_to_hidden_first: bool = False,
        weight_c_init: float | None = 1.0,
        *,
        batch_first: bool = False,
        normalize_memory: bool = False,
        backend: str = "auto",
        device=None,
        dtype=None,
    ) -> None:
        name = type(self).__name__
        if attention_every_n_layers != 1 and attention_last_n_layers != -1:
            raise ValueError(
                f"{name}: attention_every_n_layers and attention_last_n_layers should not both be set, got "
                f"{attention_every_n_layers} and {attention_last_n_layers}"
            )
        super().__init__()
        scan_checks.probability(name, "dropout", dropout)
        kind = {"device": device, "dtype": dtype}
        self.input_size = scan_checks.size(name, "input_size", input_size)
        self.hidden_size = scan_checks.size(name, "hidden_size", hidden_size)
        self.proj_size = scan_checks.size(name, "proj_size", proj_size)
        self.output_size = hidden_size * 2 if bidirectional else hidden_size
        self.num_layers = scan_checks.size(name, "num_layers", num_layers)
        self.num_heads = num_heads
        self.dropout = dropout
        self.bidirectional = bool(bidirectional)
        self.use_layer_norm = layer_norm
        self.num_directions = 2 if bidirectional else 1
        self.nn_rnn_compatible_return = nn_rnn_compatible_return
        self.batch_first = batch_first
        scan_checks.size(name, "attention_every_n_layers", attention_every_n_layers)
        if attention_last_n_layers != -1:
            scan_checks.size(name, "attention_last_n_layers", attention_last_n_layers, positive=False)

        self.input_to_hidden: nn.Module | None = None
        first_size = input_size
        if proj_input_to_hidden_first and input_size != self.output_size:
            first_size = self.output_size
            self.input_to_hidden = nn.Linear(input_size, self.output_size, bias=False, **kind)
            nn.init.xavier_uniform_(self.input_to_hidden.weight)
        self.rnn_lst = nn.ModuleList()
        for i in range(num_layers):
            features = self.output_size if i else first_size
            outputs = self.output_size * (3 if features == self.output_size else 4)
            if attention_last_n_layers != -1:
                attends = num_layers - i <= attention_last_n_layers
            else:
                attends = (i + 1) % attention_every_n_layers == 0
            options = {"dropout": dropout, "layer_norm": attn_layer_norm, **kind}
            if attends:
                options |= {"num_heads": num_heads, "attn_dropout": attn_dropout}
            transform = (SRUppAttention if attends else SRUppProjectedLinear)(
                features, outputs, proj_size, **options
            )
            layer = SRUppCell(
                features,
                hidden_size,
                dropout=dropout if i + 1 != num_layers else 0,
                bidirectional=bidirectional,
                layer_norm=layer_norm,
                normalize_after=normalize_after,
                highway_bias=highway_bias,
                rescale=rescale,
                transform_module=transform,
                weight_c_init=weight_c_init,
                backend=backend,
                **kind,
            )
            layer.normalize_memory = normalize_memory
            self.rnn_lst.append(layer)

    def __getitem__(self, n: int) -> SRUppCell:
        """Layer n."""
        return self.rnn_lst[n]

    def reset_parameters(self) -> None:
        """Draw initial values anew."""
        for layer in self.rnn_lst:
            layer.reset_parameters()
        if self.input_to_hidden is not None:
            nn.init.xavier_uniform_(self.input_to_hidden.weight)

    @scripts_as(_script_srupp.stack)
    def forward(
        self,
        input: Tensor | PackedSequence,
        c0: Tensor | None = None,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: list[Tensor | None] | None = None,
        memory_mask_pad: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor | PackedSequence, Tensor, dict[str, list[Tensor]]]:
        """Run the layers.

        Args:
            input: (L, B, I), (B, L, I) if ``batch_first``, or a PackedSequence, which is padded for the
                attention's P features alone.
            c0: (layers, B, O) or (layers*D, B, H); zeros by default.
            mask_pad: (L, B), or (B, L), of any dtype: nonzero where a step is padding. There c passes
                unchanged, h is 0, and nobody attends.
            attn_mask: (L, M + L), added to the attention's scores: -inf where a query must not look. None:
                every query sees every step, the later ones too.
            memory: for each layer (M, B, features) or None, what precedes its input in time: the
                ``saved_inputs`` of the chunk before. (B, M, features) if ``batch_first``.
            memory_mask_pad: (M, B), or (B, M): pads in the memory.
            is_causal: queries see the memory and what is not after them; in place of attn_mask.

        Returns:
            h (L, B, O), or as the input is laid out; c (layers, B, O), or with ``nn_rnn_compatible_return``
            (layers*D, B, H); and ``{"saved_inputs": [...]}``, each layer's input, (L, B, features) with pads
            also for a PackedSequence.

        Raises:
            ValueError, RuntimeError, TypeError: what does not fit, naming the argument.
        """
        name = type(self).__name__
        try:
            x, batch, pads = stack_input(self, name, input, mask_pad)
            first = stack_states(self, name, c0, batch)
            memories, memory_pads = memory, memory_mask_pad
            if memory is None:
                memories = [None] * self.num_layers
            elif not isinstance(memory, (list, tuple)):
                raise scan_checks.StructureError(
                    f"{name}: memory should be a list of one tensor a layer, got {_checks.kind(memory)}"
                )
            elif len(memory) != self.num_layers:
                raise ValueError(
                    f"{name}: memory should have one entry a layer, {self.num_layers}, got {len(memory)}"
                )
            if self.batch_first:
                memories = [
                    m.transpose(0, 1) if isinstance(m, Tensor) and m.dim() > 1 else m for m in memories
                ]
                memory_pads = None if memory_mask_pad is None else memory_mask_pad.t()
            x = first_input(self, x, pads)

            states, saved = [], []
            for layer, c, m in zip(self.rnn_lst, first, memories, strict=True):
                saved.append(self._saved(x))
                x, c = layer(
                    x,
                    c,
                    mask_pad=pads,
                    attn_mask=attn_mask,
                    memory=m,
                    memory_mask_pad=memory_pads,
                    is_causal=is_causal,
                )
                run_scan.note_clean(pads)
                states.append(c)
            if self.batch_first and isinstance(x, Tensor):
                x = x.transpose(0, 1)
            return x, stack_result(self, states), {"saved_inputs": saved}
        except symbolic.ERRORS:
            if (node := symbolic.module_call(self, SRUpp.forward, locals())) is None:
                raise
            return node

    def _saved(self, x: Tensor | PackedSequence) -> Tensor:
        """A layer's input, as it is given back as memory."""
        if isinstance(x, PackedSequence):
            packing = run_scan.Packing.of(x)
            x = packing.unsort(packing.pad(x.data), 1)
        return x.transpose(0, 1) if self.batch_first else x
