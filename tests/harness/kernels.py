"""The other end of harness.cpp: a process whose kernels are called like the ops of torch.ops.fastrnn, so
that the cases of layer_cases.py, stage_cases.py and sru_cases.py run on it."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn._cells.variant import card_of, split
from fastrnn._ops import fakes

CELLS = ["lstm", "gru", "rnn_tanh", "rnn_relu"]  # csrc/cells/list.h
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # csrc/params/tensor.h
FORWARD, BACKWARD, SCAN_FORWARD, SCAN_BACKWARD = range(4)


class Kernels:
    """One instruction set of one harness, with its plan: threads as the library divides them, or groups and
    chunks that it would not choose.

    stop() ends the process and returns what it wrote to its standard error.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  stop() closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )
        self.isas = []
        while name := self._line():
            self.isas.append(name)
        self.isa = self.isas[0]
        self.threads, self.batch_groups, self.unit_groups, self.chunk = 1, 0, 0, 0
        self.stream = False

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def plan(self, threads: int, batch_groups: int = 0, unit_groups: int = 0, chunk: int = 0) -> Kernels:
        self.threads, self.batch_groups, self.unit_groups, self.chunk = (
            threads,
            batch_groups,
            unit_groups,
            chunk,
        )
        return self

    # ---- the ops ------------------------------------------------------------------------------

    def rnn_forward(self, x, h0, c0, weights, batch_sizes, lengths, reset, cell, bias, mode):
        layer = _Layer(x, h0, weights, batch_sizes, lengths, reset, cell, bias)
        y = x.new_empty((*x.shape[:-1], layer.D * layer.out))
        hn, cn = h0.new_empty(h0.shape), None if c0 is None else c0.new_empty(c0.shape)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        saved = fakes.saved_values(cell)
        gates = x.new_empty((layer.D, layer.N, saved * layer.H)) if saved and mode == 1 else None
        cells = x.new_empty((layer.D, layer.N, layer.H), dtype=wide) if c0 is not None and mode else None
        words = [*layer.words, *self._layer_plan, mode]
        inputs = [*layer.rows, x, h0, c0, *layer.weights, *layer.masks]
        if layer.steps:
            y, hn, cn, gates, cells = self._call(FORWARD, words, inputs, [y, hn, cn, gates, cells])
        else:
            y, gates, cells = (None if t is None else torch.zeros_like(t) for t in (y, gates, cells))
            hn, cn = h0, c0
        for to, begin in ((hn, h0), (cn, c0)):
            if to is not None and layer.unused is not None:
                to[:, layer.unused] = begin[:, layer.unused]
        layer.clear(y, gates, cells)
        return (y, hn, cn, x.new_empty(0) if gates is None else gates, cells)

    def rnn_backward(self, grad_y, grad_hn, grad_cn, grad_cells, x, h0, c0, weights, *rest):
        batch_sizes, lengths, reset, y, gates, cells, cell, bias, _ = rest
        layer = _Layer(x, h0, weights, batch_sizes, lengths, reset, cell, bias)
        grad_x = [x.new_empty(x.shape) for _ in range(layer.D)]
        states = [None if t is None else t.new_empty(t.shape) for t in (h0, c0)]
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        grads = [None if w is None else w.new_empty(w.shape, dtype=wide) for w in layer.weights]
        gates = None if gates.dim() == 1 else gates
        inputs = [*layer.rows, x, h0, c0, *layer.weights, *layer.masks, y, gates, cells]
        inputs += [grad_y, grad_hn, grad_cn, grad_cells]
        outputs = [*grad_x, *[None] * (2 - layer.D), *states, *grads]
        if layer.steps:
            outputs = self._call(BACKWARD, [*layer.words, *self._layer_plan], inputs, outputs)
        else:
            outputs = [None if t is None else torch.zeros_like(t) for t in outputs]
            outputs[2:4] = grad_hn, grad_cn
        layer.clear(*(t for t in outputs[:2] if t is not None))
        gradient = outputs[0] if layer.D == 1 else outputs[0] + outputs[1]
        return gradient, outputs[2], outputs[3], [g.to(x.dtype) for g in outputs[4:] if g is not None]

    def sru_forward(self, *arguments):
        *tensors, _, _, _, save = arguments
        scan = _Scan(*arguments[:-1])
        u, c0 = tensors[0], tensors[4]
        wide = torch.float64 if u.dtype == torch.float64 else torch.float32
        h, c = u.new_empty((*u.shape[:-2], scan.O)), c0.new_empty(c0.shape)
        cells = u.new_empty((scan.N, scan.O), dtype=wide) if save else None
        return self._call(SCAN_FORWARD, [*scan.words, *self._scan_plan], scan.inputs, [h, c, cells])

    def sru_backward(self, grad_h, grad_c, grad_cells, *arguments):
        *arguments, cells, use_tanh, scale, bidirectional, _ = arguments
        scan = _Scan(*arguments, use_tanh, scale, bidirectional)
        wanted = [None if t is None else t.new_empty(t.shape) for t in arguments[:6]]
        inputs = [*scan.inputs, cells, grad_h, grad_c, grad_cells]
        return self._call(SCAN_BACKWARD, [*scan.words, *self._scan_plan], inputs, wanted)

    # ---- the pipe -----------------------------------------------------------------------------

    @property
    def _layer_plan(self) -> list[int]:
        return [self.threads, self.batch_groups, self.unit_groups, self.chunk]

    @property
    def _scan_plan(self) -> list[int]:
        return [self.threads, self.batch_groups, self.unit_groups or 1, self.stream]

    def _line(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the harness ended: {self.stop()}")
        return line.decode().strip()

    def _read(self, size: int) -> bytearray:
        data = bytearray(self._process.stdout.read(size))
        if len(data) != size:
            raise RuntimeError(f"the harness ended: {self.stop()}")
        return data

    def _call(
        self, command: int, words: list[int], inputs: list[Tensor | None], outputs: list[Tensor | None]
    ):
        words = [command, self.isas.index(self.isa), *words]
        parts = [struct.pack(f"={len(words) + 1}q", len(words), *words), struct.pack("=q", len(inputs))]
        for tensor in inputs:
            data = None if tensor is None else _bytes(tensor)
            parts += [struct.pack("=q", -1)] if data is None else [struct.pack("=q", len(data)), data]
        sizes = [-1 if t is None else t.numel() * t.element_size() for t in outputs]
        parts.append(struct.pack(f"={len(sizes) + 1}q", len(sizes), *sizes))
        try:
            self._process.stdin.write(b"".join(parts))
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the harness ended: {self.stop()}") from None
        (length,) = struct.unpack("=q", self._read(8))
        if length:
            raise RuntimeError(self._read(length).decode())
        return [
            None if t is None else torch.frombuffer(self._read(n), dtype=t.dtype).view(t.shape) if n else t
            for t, n in zip(outputs, sizes, strict=True)
        ]

    def stop(self) -> str:
        if self._errors.closed:
            return ""
        self._process.stdin.close()
        self.status = self._process.wait(60)
        self._process.stdout.close()
        self._errors.seek(0)
        text = self._errors.read()
        self._errors.close()
        return text or f"status {self.status}" * bool(self.status)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


class _Layer:
    """A layer's arguments as words and inputs of the harness. It takes the place of what csrc/ops checks."""

    def __init__(self, x, h0, weights, batch_sizes, lengths, reset, cell, bias):
        card = card_of(cell)
        self.D, self.out = h0.size(0), h0.size(2)
        self.H = weights[0].size(0) // card.gates
        own, self.masks = split(weights, self.D, cell, bias)
        P = self.out if own[0].weight_hr is not None else 0
        self.weights = [weight for direction in own for weight in direction]
        T, B = (len(batch_sizes), int(batch_sizes[0])) if batch_sizes is not None else x.shape[:2]
        self.N = x.size(0) if batch_sizes is not None else T * B
        self.steps, padded, order, active, self.unused, self.padding = T, 0, None, batch_sizes, None, None
        if lengths is not None:
            order = torch.argsort(lengths, descending=True, stable=True)
            active = (lengths > torch.arange(T).unsqueeze(1)).sum(1)
            padded, self.steps = T, int(lengths.max())
            self.unused, self.padding = lengths == 0, torch.arange(T).unsqueeze(1) >= lengths
        options = cell.removeprefix(card.name).encode()
        text = torch.frombuffer(bytearray(options + b"\0"), dtype=torch.uint8) if options else None
        self.rows = [active, None if active is None else _offsets(active), order, reset, text]
        sizes = [self.steps, B, x.size(-1), self.H, P, self.D, bias, padded]
        self.words = [CELLS.index(card.name), DTYPES.index(x.dtype), *map(int, sizes)]

    def clear(self, *tensors: Tensor | None) -> None:
        """What lies beyond a row's length, which the ops clear and the kernels leave."""
        if self.padding is None:
            return
        for tensor in tensors:
            if tensor is None or not tensor.numel():
                continue
            if tensor.shape[:2] == self.padding.shape:  # (T,B,size)
                tensor[self.padding] = 0
            else:  # (D,T*B,size)
                tensor[:, self.padding.view(-1)] = 0


class _Scan:
    """The same for the SRU's scan."""

    def __init__(
        self,
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
    ):
        self.O = u.size(-1)
        B, L = c0.size(0), u.size(0) if batch_sizes is None else len(batch_sizes)
        self.N = u.size(0) if batch_sizes is not None else L * B
        D = 2 if bidirectional else 1
        flags, stride = mask_pad, 0
        if reset is not None:  # step_flags() of csrc/params/scan.h
            pads = torch.zeros(L, B, dtype=torch.bool) if mask_pad is None else mask_pad
            begins = reset & ~pads
            later = torch.cat([begins[1:], torch.zeros(1, B, dtype=torch.bool)])
            flags = torch.stack([pads.byte() + 128 * b.byte() for b in (begins, later)[:D]])
            stride = L * B
        (scale_bits,) = struct.unpack("=q", struct.pack("=d", scale))
        self.words = [DTYPES.index(u.dtype), L, B, self.O, u.size(-2), D, int(use_tanh), scale_bits, stride]
        offsets = None if batch_sizes is None else _offsets(batch_sizes)
        self.inputs = [batch_sizes, offsets, u, x, weight_c, bias, c0, v, drop_mask, flags]
