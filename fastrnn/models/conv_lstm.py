"""ConvLSTM: an LSTM whose states are feature maps and whose products are convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _inputs

__all__ = ["ConvLSTM", "ConvLSTMCell"]

#: The dimensions of a frame, for messages; a layer of fewer has the last ones.
FRAME = ("depth", "height", "width")


class ConvLSTMCell(nn.Module):
    r"""One step of a ConvLSTM.

    X. Shi, Z. Chen, H. Wang, D.-Y. Yeung, W.-K. Wong, W.-C. Woo: Convolutional LSTM network: a machine
    learning approach for precipitation nowcasting. NeurIPS 2015, arXiv:1506.04214. With * a convolution,

    .. math::
        i &= \sigma(W_{xi} * x_t + W_{hi} * h_{t-1} + w_{ci} \odot c_{t-1} + b_i) \\
        f &= \sigma(W_{xf} * x_t + W_{hf} * h_{t-1} + w_{cf} \odot c_{t-1} + b_f) \\
        c_t &= f \odot c_{t-1} + i \odot \tanh(W_{xg} * x_t + W_{hg} * h_{t-1} + b_g) \\
        o &= \sigma(W_{xo} * x_t + W_{ho} * h_{t-1} + w_{co} \odot c_t + b_o) \\
        h_t &= o \odot \tanh(c_t)

    The w_c terms are the peepholes. The paper gives them a weight for every pixel; here it is one for every
    channel, so that a layer takes frames of any size. Convolutions have stride 1 and zeros around the frame,
    and states are of the frame's size.

    Args:
        input_channels: C of x. hidden_channels: H of the states.
        kernel_size, dilation: one number, or one for each dimension of a frame; kernels are odd.
        dims: dimensions of a frame: 1, 2 or 3.
        bias: whether there are b. peephole: whether there are w_c, which begin at zero.
        device, dtype: of the parameters.

    Parameters: ``input_conv.weight`` (4H, C, kernel...), ``input_conv.bias`` (4H,), ``state_conv.weight``
    (4H, H, kernel...), in the order i, f, g, o as in torch.nn.LSTM; ``peepholes`` (3, H) for i, f, o, or
    None.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int | Sequence[int] = 3,
        *,
        dims: int = 2,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        peephole: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if dims not in (1, 2, 3):
            raise ValueError(f"ConvLSTM: dims should be 1, 2 or 3, got {dims!r}")
        _inputs.size("ConvLSTM", "input_channels", input_channels)
        _inputs.size("ConvLSTM", "hidden_channels", hidden_channels)
        kernel = _per_dimension("kernel_size", kernel_size, dims)
        dilation = _per_dimension("dilation", dilation, dims)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"ConvLSTM: kernel_size should be odd, to keep the frame's size, got {kernel}")
        self.input_channels, self.hidden_channels, self.dims = input_channels, hidden_channels, dims
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        options = {
            "padding": tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)),
            "dilation": dilation,
            "device": device,
            "dtype": dtype,
        }
        self.input_conv = conv(input_channels, 4 * hidden_channels, kernel, bias=bias, **options)
        self.state_conv = conv(hidden_channels, 4 * hidden_channels, kernel, bias=False, **options)
        peepholes = torch.zeros(3, hidden_channels, device=device, dtype=dtype) if peephole else None
        self.register_parameter("peepholes", None if peepholes is None else nn.Parameter(peepholes))

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """x (B, C, size...) and the states (h, c), each (B, H, size...) or zeros, to the next (h, c).

        Raises:
            ValueError: sizes that do not fit. TypeError: hx that is no pair.
        """
        frame = ("B", self.input_channels, *FRAME[-self.dims :])
        _inputs.features("ConvLSTMCell", "x", x, self.input_conv.weight, *frame)
        size = (x.size(0), self.hidden_channels, *x.shape[2:])
        return self.step(self.input_conv(x), *_states("ConvLSTMCell", hx, x, size))

    def step(self, gx: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The step after the input's convolution, gx (B, 4H, size...), to (h, c)."""
        i, f, g, o = (gx + self.state_conv(h)).chunk(4, 1)
        if self.peepholes is None:
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        w_i, w_f, w_o = self.peepholes.view(3, -1, *[1] * self.dims)
        c = (f + w_f * c).sigmoid() * c + (i + w_i * c).sigmoid() * g.tanh()
        return (o + w_o * c).sigmoid() * c.tanh(), c


class ConvLSTM(nn.Module):
    """Layers of :class:`ConvLSTMCell` over a sequence of frames.

    A layer convolves the frames of all steps in one call, and the time loop is left with the convolution of
    the states. Frames in a channels-last memory format give states and outputs in it.

    Args:
        num_layers: L, layers on top of each other. bidirectional: D = 2 directions, their channels side by
            side. batch_first: input and output as (B, T, ...); states keep their shape.

    The others are the cell's.

    The cells lie in ``cells``, layer by layer and within it direction by direction.
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int | Sequence[int] = 3,
        num_layers: int = 1,
        *,
        dims: int = 2,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        peephole: bool = False,
        batch_first: bool = False,
        bidirectional: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        self.num_layers = _inputs.size("ConvLSTM", "num_layers", num_layers)
        self.batch_first = batch_first
        self.directions = 2 if bidirectional else 1
        options = {"dims": dims, "dilation": dilation, "bias": bias, "peephole": peephole}
        self.cells = nn.ModuleList(
            ConvLSTMCell(channels, hidden_channels, kernel_size, **options, device=device, dtype=dtype)
            for layer in range(num_layers)
            for channels in [self.directions * hidden_channels if layer else input_channels] * self.directions
        )

    def forward(
        self,
        x: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the layers.

        Args:
            x: (T, B, C, size...), or (B, T, C, size...) with ``batch_first``.
            hx: (h_0, c_0), each (L*D, B, H, size...); zeros by default.
            lengths: (B,), how many frames each row has, 0 to T, as for :class:`fastrnn.LSTM`: outputs beyond
                are zero, and h_n and c_n are those of a row's last frame.

        Returns:
            output (T, B, D*H, size...), laid out like x, and (h_n, c_n) like hx.

        Raises:
            ValueError: sizes or lengths that do not fit, an empty batch.
            TypeError: lengths that are no integers, hx that is no pair.
        """
        cell = self.cells[0]
        first = ("B", "T") if self.batch_first else ("T", "B")
        shape = (*first, cell.input_channels, *FRAME[-cell.dims :])
        _inputs.features("ConvLSTM", "x", x, cell.input_conv.weight, *shape)
        steps, rows = (x.size(1), x.size(0)) if self.batch_first else x.shape[:2]
        mask = None
        if lengths is not None:
            lengths = _inputs.row_lengths("ConvLSTM", lengths, rows, steps, least=0)
            mask = _inputs.steps_within(lengths, steps, x.device)
            # Whatever the padding is, a gradient of zero times it is zero.
            by_frame = mask.mT if self.batch_first else mask
            x = x.where(by_frame.view(*by_frame.shape, *[1] * (cell.dims + 1)), 0)
        size = (len(self.cells), rows, cell.hidden_channels, *x.shape[3:])
        h_0, c_0 = _states("ConvLSTM", hx, x, size)

        # Frames lie in one 4-D batch wherever they are joined: of 5-D tensors torch would not keep the
        # channels-last format.
        frames, rows_first = x.flatten(0, 1), self.batch_first
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                k = layer * self.directions + direction
                gx = self.cells[k].input_conv(frames)
                gx = gx.unflatten(0, (rows, steps) if rows_first else (steps, rows))
                gx = gx.transpose(0, 1) if rows_first else gx
                y, h, c = _run(self.cells[k], gx, h_0[k], c_0[k], mask, reverse=direction == 1)
                outputs.append(y)
                h_n.append(h)
                c_n.append(c)
            frames, rows_first = torch.cat(outputs, 1), False
        y = frames.unflatten(0, (steps, rows))
        states = tuple(torch.cat(s).unflatten(0, (len(s), rows)) for s in (h_n, c_n))
        return (y.transpose(0, 1) if self.batch_first else y), states


def _run(cell: ConvLSTMCell, gx: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, reverse: bool):
    """One layer and direction after the input's convolution, gx (T, B, 4H, size...), to its outputs
    (T*B, H, size...) and last states."""
    outputs = []
    for t in range(gx.size(0))[:: -1 if reverse else 1]:
        h_next, c_next = cell.step(gx[t], h, c)
        if mask is None:
            h, c = h_next, c_next
            outputs.append(h)
        else:
            alive = mask[t].view(-1, *[1] * (cell.dims + 1))
            h, c = torch.where(alive, h_next, h), torch.where(alive, c_next, c)
            outputs.append(torch.where(alive, h_next, 0))
    return torch.cat(outputs[:: -1 if reverse else 1]), h, c


def _states(name: str, hx: tuple[Tensor, Tensor] | None, x: Tensor, size: tuple[int, ...]):
    """h and c of that size; zeros like x for None."""
    if hx is None:
        return (x.new_zeros(size),) * 2
    return _inputs.lstm_state(name, hx, *size)


def _per_dimension(name: str, value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims
    if len(values) != dims or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in values):
        raise ValueError(f"ConvLSTM: {name} should be {dims} positive numbers, or one, got {value!r}")
    return values
