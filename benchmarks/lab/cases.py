"""What is timed: a case is one layer (or cell), one shape, one direction of work."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastrnn.proof import _variants as variants

CELLS = ("lstm", "gru", "rnn", "sru", "srupp", "linear_scan", "indrnn", "mingru", "minlstm", "slstm")
SRU_CELLS = ("sru", "srupp")
#: Those that are no torch.nn's either; linear_scan is a function, whose a and h0 stand for weights.
ELEMENTWISE_CELLS = ("linear_scan", "indrnn", "mingru", "minlstm", "slstm")
#: What torch.nn has not, and which of its layers stands beside it.
BESIDE = {
    "sru": "LSTM",
    "srupp": "LSTM",
    "linear_scan": "GRU",
    "indrnn": "RNN",
    "mingru": "GRU",
    "minlstm": "LSTM",
    "slstm": "LSTM",
}
WORK = ("inference", "training")
PATHS = ("layers", "packed", "proj", "cells")
MODES = (*WORK, *PATHS)
#: "tf32" is float32 whose products may round to TensorFloat-32, on a GPU.
DTYPES = ("float32", "float64", "bfloat16", "float16", "tf32")

GATES = {"lstm": 4, "gru": 3, "rnn": 1, "sru": 3, "srupp": 3}
GATES |= {"linear_scan": 0, "indrnn": 1, "mingru": 2, "minlstm": 3, "slstm": 4}
#: Of names that are not the cell's in capitals.
_NAMES = {"srupp": "SRU++", "linear_scan": "linear_scan", "indrnn": "IndRNN", "mingru": "MinGRU"}
_NAMES |= {"minlstm": "MinLSTM"}


#: Blocks of the recurrent weights in cases of heads.
HEADS = 4


def card_name(cell: str) -> str:
    """A case's cell as the package's lists call it."""
    return {"rnn": "rnn_tanh"}.get(cell, cell)


def heads(case: Case) -> int:
    return case.options().get("heads", 1) if case.variant else 1


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        cell: "lstm", "gru", "rnn" (tanh), "sru", "srupp" (SRU++ with a quarter of H as its projection),
            "linear_scan", "indrnn" (tanh), "mingru" (in log space), "minlstm" or "slstm" (four heads).
        path: "layers" whole sequences, "packed" a PackedSequence with lengths of 10-100% of T, "proj" an LSTM
            with projection, "cells" a single step.
        training: forward and backward (gradients of the input and of every weight) instead of forward alone.
        T, B, I, H: steps, batch rows, inputs, hidden units. P: projected units, 0 without; in SRU++ those
            of the attention.
        sweep: part of the series over hidden sizes that is plotted, not of the tables.
        layers, directions: of the module; 1 but on a GPU.
        variant: one of fastrnn.proof._variants.VARIANTS, "" for the plain cell.
    """

    cell: str
    path: str
    training: bool
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    P: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    sweep: bool = False
    layers: int = 1
    directions: int = 1
    variant: str = ""

    @property
    def storage(self) -> str:
        """torch's name of the dtype."""
        return "float32" if self.dtype == "tf32" else self.dtype

    @property
    def work(self) -> str:
        return "training" if self.training else "inference"

    @property
    def shape(self) -> str:
        inputs = "" if self.I == self.H else f",I={self.I}"
        projected = f",P={self.P}" if self.P else ""
        return f"{self.T},{self.B},{self.H}{inputs}{projected}"

    @property
    def group(self) -> str:
        """Cases of a group share a table: "LSTM inference", "LSTM packed training", "GRUCell inference"."""
        if self.path == "cells":
            name = f"{self.cell.upper()}Cell"
        elif self.cell in _NAMES:
            name = _NAMES[self.cell]
        else:
            name = self.cell.upper() + {"layers": "", "packed": " packed", "proj": " projected"}[self.path]
        name += f" {self.variant}" if self.variant else ""
        dtype = "" if self.dtype == "float32" else f" {self.dtype}"
        layers = f" {self.layers} layers" if self.layers > 1 else ""
        way = " bidirectional" if self.directions == 2 else ""
        return f"{name}{layers}{way} {self.work}{dtype}"

    @property
    def title(self) -> str:
        return f"{self.group} T={self.T} B={self.B} H={self.H}"

    def lengths(self) -> list[int] | None:
        """Lengths of a packed case's rows, longest first: from T down to a tenth of it, evenly."""
        if self.path != "packed":
            return None
        last = max(1, round(self.T / 10))
        return [round(self.T - (self.T - last) * b / max(1, self.B - 1)) for b in range(self.B)]

    def options(self) -> dict:
        """The variant's options, as constructors take them."""
        return variants.options(card_name(self.cell), self.variant, self.H, heads=HEADS)

    def to_dict(self) -> dict:
        return asdict(self)
