"""torch.jit.script of SRU and SRU++: every option, transform modules of the user's, attention, autocast."""

from __future__ import annotations

import pytest
import sru_models
import torch
from helpers import randn
from sru_models import F64, PAD, make
from tolerances import assert_close
from torch import Tensor, nn
from torchscript_models import H, same

import fastrnn
from fastrnn.compat import sru as compat_sru

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@sru_models.models
def test_sru(build, train):
    """Every model of SRU and SRU++ that the tests know, dropout's draws included, with states and pads."""
    model = build(dropout=0.3).train(train)
    if isinstance(model, fastrnn.SRU):
        for layer in model.rnn_lst:
            layer.rnn_dropout = 0.2
    else:
        model.rnn_lst[1].transform_module.attn_dropout = 0.0
    same(model, x := randn(sru_models.L, sru_models.B, sru_models.IN, dtype=F64))
    c0 = randn(2, sru_models.B, model.output_size, dtype=F64)
    same(model, x, c0, PAD)
    same(model, x, c0, PAD.int())
    same(model.rnn_lst[1], randn(sru_models.L, sru_models.B, model.output_size, dtype=F64), c0[0])
    same(model.rnn_lst[1], randn(sru_models.B, model.output_size, dtype=F64), c0[0], PAD[0])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"nn_rnn_compatible_return": True, "bidirectional": True},
        {"has_skip_term": False},
        {"v1": True},
        {"use_tanh": True, "rescale": True, "highway_bias": -1.0, "proj_input_to_hidden_first": True},
        {"layer_norm": True, "normalize_after": True},
        {"layer_norm": True, "num_layers": 1},
        {"dtype": torch.float32},
        {"dtype": torch.bfloat16, "rescale": True},
    ],
    ids=str,
)
def test_sru_options(options):
    """The options that the models above leave out; c0 in torch.nn's shape, which SRU takes too."""
    model = make(**options)
    x = randn(sru_models.L, sru_models.B, sru_models.IN, dtype=options.get("dtype", F64))
    same(model, x.transpose(0, 1) if model.batch_first else x)
    layers, directions = model.num_layers, model.num_directions
    c0 = randn(layers * directions, sru_models.B, sru_models.H, dtype=x.dtype)
    same(model, x.transpose(0, 1) if model.batch_first else x, c0)


class Transform(nn.Module):
    """A transform module of the user's, which returns what its subclass says."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.u = nn.Linear(inputs, outputs * 4, dtype=F64)
        self.v = nn.Parameter(randn(outputs * 2, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.u(x)


class TransformTuple(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.u(x),)


class TransformV(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.u(x), self.v


class TransformSteps(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.u(x), x.sum(-1, keepdim=True) * self.v


class TransformList(Transform):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.u(x), self.v]


class TransformMaybe(Transform):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.u(x), None


@pytest.mark.filterwarnings("ignore:the parameters of transform_module")
@pytest.mark.parametrize("kind", [Transform, *Transform.__subclasses__()], ids=lambda kind: kind.__name__)
def test_transform_modules(kind):
    """A transform module may return U, or U and V in any of the forms that eager mode takes."""
    layer = fastrnn.SRUCell(3, H, transform_module=kind(3, H), dtype=F64)
    same(layer, randn(5, 2, 3, dtype=F64))
    with pytest.raises(torch.jit.Error, match="transform_module should return U of size"):
        torch.jit.script(fastrnn.SRUCell(3, H, transform_module=nn.Linear(3, 7, dtype=F64), dtype=F64))(
            randn(5, 2, 3, dtype=F64)
        )


class PackageTransform(Transform):
    """As modules were written for sru 3.0: is_causal is none of its arguments."""

    def forward(
        self,
        input: Tensor,
        mask_pad: Tensor | None = None,
        attn_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask_pad: Tensor | None = None,
    ) -> Tensor:
        return self.u(input)


def test_srupp_attention():
    """Masks, memory, causal attention and rows that see nothing: as in eager mode."""

    class Call(nn.Module):
        def __init__(self, model: nn.Module, causal: bool) -> None:
            super().__init__()
            self.model, self.causal = model, causal

        def forward(self, x: Tensor, m0: Tensor, m1: Tensor, pads: Tensor, m_pads: Tensor, scores: Tensor):
            mask = None if self.causal else scores
            memory: list[Tensor | None] = [m0, m1]
            return self.model(x, None, pads, mask, memory, m_pads, self.causal)

    steps, rows, width, past = sru_models.L, sru_models.B, sru_models.IN, 2
    x, m0, m1 = (randn(n, rows, f, dtype=F64) for n, f in ((steps, width), (past, width), (past, H)))
    memory_pads = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]])
    scores = randn(steps, past + steps, dtype=F64)
    scores[2] = -torch.inf
    options = [{}, {"layer_norm": True, "normalize_memory": True}, {"attn_layer_norm": False, "num_heads": 2}]
    for option in options:
        model = make(4, kind="SRUpp", dropout=0.0, **option)
        for causal in (False, True):
            same(Call(model, causal), x, m0, m1, PAD, memory_pads, scores)
        flipped = make(4, kind="SRUpp", batch_first=True, **option)
        args = [t.transpose(0, 1) for t in (x, m0, m1, PAD, memory_pads)]
        same(Call(flipped, True), *args, scores)
    half = make(4, kind="SRUpp", attention_every_n_layers=2, dtype=torch.bfloat16)
    same(half, x.bfloat16())
    custom = fastrnn.SRUppCell(width, H, transform_module=PackageTransform(width, H), dtype=F64)
    same(custom, x)
    with pytest.raises(torch.jit.Error, match="is_causal should be False"):
        torch.jit.script(custom)(x, is_causal=True)


def test_compat_sru():
    """What says that code for the sru package runs unchanged has its layers scripted."""
    for version in compat_sru.modules.VERSIONS:
        for options in (
            {},
            {"rescale": True, "layer_norm": True, "bidirectional": True, "projection_size": 3},
        ):
            torch.manual_seed(0)
            same(compat_sru.SRU(8, 4, 2, sru_version=version, **options).eval(), randn(5, 3, 8))
            same(compat_sru.SRUCell(8, 4, sru_version=version, **options).eval(), randn(5, 3, 8))


def test_autocast():
    """A scripted SRU under autocast has the dtypes of the eager one, and its numbers to the half type's."""
    for half in (False, True):
        model = make(amp_recurrence_fp16=half, dtype=torch.float32).eval()
        scripted, x = torch.jit.script(model), randn(5, 3, sru_models.IN)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for found, expected in zip(scripted(x), model(x), strict=True):
                assert found.dtype == expected.dtype
                assert_close(found.float(), expected.float(), torch.bfloat16)
