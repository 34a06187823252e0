"""fastrnn.explain: the plan of modules and shapes, on paper."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn._ops import library
from fastrnn._plan.explain import explain


def test_a_module_with_an_input():
    module = fastrnn.LSTM(10, 20, num_layers=2, bidirectional=True)
    found = explain(module, torch.zeros(7, 3, 10))
    assert [(p.I, p.H, p.T, p.B, p.directions) for p in found.layers] == [
        (10, 20, 7, 3, 2),
        (40, 20, 7, 3, 2),
    ]
    assert found.device == "cpu"
    assert found.dtype == "float32"
    assert found.training is True
    assert found.instruction_set == library.cpu_isa()
    assert found.threads == torch.get_num_threads()
    assert all(p.reason for p in found.layers)
    assert not found.notes
    text = str(found)
    for part in (
        "LSTM(10, 20)",
        "T=7, B=3",
        "layer 0",
        "layer 1",
        "kernel",
        "why",
        "FLOP",
        "saved",
        library.cpu_isa(),
    ):
        assert part in text


def test_the_cost_model_by_hand():
    T, B, I, H = 5, 4, 6, 8  # noqa: E741
    plan = explain((T, B, I, H), cell="gru").layers[0].plan
    assert plan["flops"] == 2 * T * B * 3 * H * (I + H)
    assert plan["weight_bytes"] == 4 * 3 * H * (I + H)
    assert plan["saved_bytes_per_step"] == 0
    training = explain((T, B, I, H), cell="gru", training=True)
    assert training.flops == 3 * plan["flops"]
    assert training.layers[0].plan["saved_bytes_per_step"] == B * 4 * H * 4


def test_forms_of_input():
    gru = fastrnn.GRU(4, 5, batch_first=True).eval()
    assert (explain(gru, torch.zeros(3, 7, 4)).layers[0].T, explain(gru, torch.zeros(9, 4)).layers[0].T) == (
        7,
        9,
    )
    assert explain(gru, (11, 2)).layers[0].B == 2
    packed = explain(gru, pack_padded_sequence(torch.zeros(6, 2, 4), [6, 3]))
    assert (packed.layers[0].T, packed.layers[0].B) == (6, 2)
    assert "packed" in packed.notes[-1]
    assumed = explain(gru)
    assert "assumed" in assumed.notes[0]
    assert assumed.training is False


@pytest.mark.parametrize("kind", [fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell, nn.GRUCell])
def test_cells_have_one_step(kind):
    found = explain(kind(4, 5), torch.zeros(3, 4))
    assert (found.layers[0].T, found.layers[0].B) == (1, 3)
    assert found.kernels != ["reference"]


def test_torch_modules_projection_and_relu():
    found = explain(nn.LSTM(4, 8, proj_size=3), (2, 2))
    assert found.layers[0].P == 3
    assert "torch" in found.notes[-1]
    assert explain(fastrnn.RNN(4, 8, nonlinearity="relu"), (2, 2)).kernels != ["reference"]


GPU_TIERS = ("one_cta", "cluster", "grid", "stepwise")


def test_where_no_kernel_covers():
    complex_ = explain(fastrnn.GRU(4, 5, dtype=torch.complex64), (3, 2))
    assert complex_.kernels == ["cudnn"]
    assert "torch's own layer" in complex_.layers[0].reason
    assert explain(fastrnn.GRU(4, 5, dtype=torch.complex64), (3, 2), masked=True).kernels == ["reference"]
    assert "complex64" in complex_.layers[0].reason
    assert complex_.flops == 0
    asked = explain(fastrnn.GRU(4, 5, backend="reference"), (3, 2))
    assert asked.kernels == ["reference"]
    assert "reference" in str(asked)


def test_a_gpu_can_be_asked_about_without_one():
    found = explain((100, 16, 128, 256), device="cuda", dtype=torch.float16, training=True)
    assert found.device == "cuda"
    assert found.instruction_set is None
    assert found.kernels == ["cudnn"]  # nothing is proven there, and without CUDA there is nothing else


@pytest.mark.parametrize("device", ["mps", "xpu", "xla"])
def test_devices_without_kernels(device):
    """torch's own layer, the reference where lengths and resets are asked for and for the SRU, which torch
    has not; an error where kernels were."""
    shape = (100, 16, 128, 256)
    found = explain(shape, device=device, num_layers=2)
    assert (found.device, found.kernels) == (device, ["cudnn"] * 2)
    assert f"no kernel runs on {device}: torch's own layer" in str(found)
    assert explain(shape, device=device, masked=True).kernels == ["reference"]
    assert explain(shape, device=device, cell="sru").kernels == ["reference"]
    assert explain(shape, device=device, backend="reference").kernels == ["reference"]
    assert "an error" in explain(shape, device=device, backend="fused").layers[0].reason


def test_gpus_older_than_the_kernels(monkeypatch):
    """A GPU that the CUDA kernels were not compiled for."""
    monkeypatch.setattr(library, "cuda_loaded", True)
    monkeypatch.setattr(library, "build_info", lambda: {"cuda_archs": "9.0a;12.0+PTX"})
    assert explain((100, 16, 128, 256), gpu="H100", backend="fused").kernels[0] in GPU_TIERS
    assert "not built" not in str(explain((100, 16, 128, 256), gpu="H100"))
    found = explain((100, 16, 128, 256), gpu="A100")
    assert found.kernels == ["cudnn"]
    assert "not built for compute capability 8.0" in str(found)


def test_a_plan_needs_no_memory():
    """Shapes far beyond any machine: the choice is arithmetic on sizes."""
    found = explain((100_000, 4096, 8192, 8192), training=True)
    assert found.flops > 1e18


def test_more_threads_divide_the_work():
    one, many = (explain((50, 64, 512, 512), threads=n).layers[0].plan for n in (1, 4))
    assert one["batch_groups"] * one["unit_groups"] == 1
    assert many["batch_groups"] * many["unit_groups"] == 4


def test_measured_floor():
    found = explain((10, 2, 16, 16), measure=True).layers[0]
    assert found.floor_s > 0
    assert found.bound in ("arithmetic", "reading the weights")
    assert "at best" in str(found)


def test_to_dict_is_plain_data():
    found = explain((3, 2, 4, 5)).to_dict()
    assert found["layers"][0]["H"] == 5
    assert found["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((nn.Linear(2, 2),), {}, TypeError, "Linear"),
        (("lstm",), {}, TypeError, "T, B, I, H"),
        (((1, 2, 3),), {}, TypeError, "T, B, I, H"),
        ((fastrnn.LSTM(2, 2), "x"), {}, TypeError, "input"),
        ((fastrnn.LSTM(2, 2), torch.zeros(2)), {}, ValueError, "dimensions"),
        (((1, 2, 3, 4),), {"cell": "sru9"}, ValueError, "cell"),
        (((0, 2, 3, 4),), {}, ValueError, "T"),
        (((1, 2, 3, 4),), {"threads": 0}, ValueError, "threads"),
        (((1.5, 2, 3, 4),), {}, TypeError, r"\(T, B, I, H\), got \(1.5"),
        (((2**70, 2, 3, 4),), {}, ValueError, "T: expected at most 2147483647, got 118"),
        (((1, 2, 3, 2**31),), {"device": "cuda"}, ValueError, "H: expected at most"),
        (((1, -1, 3, 4),), {"cell": "sru"}, ValueError, "B: expected at least 0, got -1"),
        (((1, 2, 3, 4),), {"num_layers": 0}, ValueError, "num_layers: expected at least 1, got 0"),
        (((1, 2, 3, 4),), {"num_layers": "2"}, TypeError, "num_layers: expected an integer, got '2'"),
        (((1, 2, 3, 4),), {"proj_size": "2"}, TypeError, "proj_size: expected an integer"),
        (((1, 2, 3, 4),), {"proj_size": 4}, ValueError, "proj_size: expected less than H=4"),
        (((1, 2, 3, 4),), {"proj_size": 2, "cell": "sru"}, ValueError, "proj_size"),
        (((1, 2, 3, 4),), {"threads": 2.0}, TypeError, "threads: expected an integer, got 2.0"),
        (((1, 2, 3, 4),), {"dtype": "float32"}, TypeError, "dtype: expected a torch.dtype, got 'float32'"),
        (((1, 2, 3, 4),), {"tf32": "no"}, TypeError, "tf32: expected a bool, got 'no'"),
        (((1, 2, 3, 4),), {"device": "meta"}, ValueError, "device: expected .*, got 'meta'"),
        (
            ((1, 2, 3, 4),),
            {"device": "cpu", "gpu": "H100"},
            ValueError,
            "gpu: expected none for device 'cpu'",
        ),
        (((1, 2, 3, 4),), {"gpu": []}, ValueError, r"gpu: expected one of .*, got \[\]"),
        (((1, 2, 3, 4), (1, 2)), {}, TypeError, "input: a shape has T and B"),
        ((fastrnn.LSTM(2, 2), torch.zeros(1, 1, 3)), {}, ValueError, "expected 2 features, .* got 3"),
        ((fastrnn.LSTM(2, 2), (1.5, 2)), {}, TypeError, "input"),
        ((fastrnn.SRU(2, 2), torch.zeros(1, 1, 3)), {}, ValueError, "expected 2 features, .* got 3"),
        ((fastrnn.LSTMCell(2, 2), torch.zeros(1, 1, 2)), {}, ValueError, "1 or 2 dimensions for a cell"),
        ((fastrnn.LSTMCell(2, 2), (5, 2)), {}, ValueError, r"one step for a cell, \(1, B\), got 5"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, text):
    """Protects from an answer to another question than the one that was asked, and from errors of the
    layers below: 2**62 units overflowed their sums of bytes, half a step was cut off."""
    with pytest.raises(error, match=text):
        explain(*arguments, **options)


@pytest.fixture
def with_kernels(monkeypatch):
    """As where the CUDA kernels are built."""
    monkeypatch.setattr(library, "cuda_loaded", True)


def test_tiers_of_a_gpu(with_kernels):
    """Forward's and backward's tier, why, and the time a step, marked as an estimate."""
    shape, options = (100, 16, 1024, 1024), {"device": "cuda", "dtype": torch.bfloat16}
    found = explain(shape, gpu="H100", training=True, backend="grid", **options)
    assert found.kernels == ["grid"]
    text = str(found)
    for part in ("H100", "estimate", "backward", "µs", "flag exchange", "ctas"):
        assert part in text
    assert "input projection before it" in text
    narrow = explain((100, 1, 16, 64), gpu="H100", backend="one_cta", **options)
    assert "input projection in the kernel" in str(narrow)
    hopper = explain((100, 16, 256, 256), gpu="H100", backend="cluster", **options)
    assert hopper.kernels == ["cluster"]
    assert "cluster of SMs" in str(hopper)
    inference = explain((100, 16, 512, 512), gpu="A100", backend="grid", **options)
    assert "backward" not in str(inference)
    wide = explain((100, 16, 64, 64), device="cuda", dtype=torch.float64, backend="fused")
    assert wide.kernels == ["stepwise"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_gpu_has_not_proven(with_kernels, training, dtype):
    """Nothing runs by default that was not verified: torch's own layer, a step at a time where torch has
    none, and the reader is told why and what to do."""
    options = {"gpu": "H100", "dtype": dtype, "training": training}
    for shape in ((100, 16, 64, 64), (100, 16, 256, 256), (100, 64, 1024, 1024)):
        found = explain(shape, num_layers=2, **options)
        assert found.kernels == ["cudnn"] * 2
        assert all("torch's own layer" in layer.reason for layer in found.layers)
        assert all("not verified on this device: run `fastrnn tune`" in la.reason for la in found.layers)
        for backend, masked in (("auto", True), ("fused", False)):
            plain = explain(shape, backend=backend, masked=masked, **options)
            assert plain.kernels == ["stepwise"]
            assert "not verified on this device: run `fastrnn tune`" in plain.layers[0].reason
    assert explain(nn.LSTMCell(8, 8), **options).kernels == ["cudnn"]


def test_tensorfloat_of_a_plan(with_kernels):
    """By default as nn.LSTM would compute: torch.backends.cudnn's setting for recurrent layers."""
    shape = (100, 16, 64, 64)
    for allowed, precision in ((True, "tf32"), (False, "float32")):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert f"in {precision}" in str(explain(shape, device="cuda", backend="stepwise"))
        assert f"in {precision}" in str(explain(shape, device="cuda", tf32=allowed, backend="one_cta"))


def test_the_weights_that_a_gpu_reads(with_kernels):
    """Protects the bytes: persistent tiers read their weights once, the other reads those of W_hh as they are
    stored; forward's is what a name of a GPU alone asks about."""
    shape = (100, 16, 256, 512)
    held, stepwise = (
        explain(shape, gpu="H100", dtype=torch.bfloat16, backend=b) for b in ("grid", "stepwise")
    )
    assert held.device == "cuda"
    assert held.layers[0].plan["step_weight_bytes"] == 0
    assert "weights 3.15 MB, read once" in str(held)
    assert stepwise.layers[0].plan["step_weight_bytes"] == 4 * 512 * 512 * 2
    assert explain(shape).layers[0].plan["step_weight_bytes"] == 4 * 512 * 512 * 4


def test_where_fused_is_an_error():
    """Protects the reader of a plan: backend="fused" raises where the reference would run."""
    found = explain((2, 2, 3, 4), dtype=torch.complex64, backend="fused")
    assert "an error with backend='fused'" in found.layers[0].reason
    assert "error" not in explain((2, 2, 3, 4), dtype=torch.complex64).layers[0].reason


def test_backends_in_a_plan(with_kernels):
    """What a backend asks for is what is explained, errors included."""
    module = fastrnn.LSTM(8, 512, backend="one_cta")
    found = explain(module, device="cuda", gpu="H100")
    assert found.kernels == ["one_cta"]
    assert "cannot run" in str(found)
    assert explain(module, device="cuda", backend="stepwise").kernels == ["stepwise"]
    assert explain(module, backend="cudnn").kernels == ["cudnn"]
    assert "CUDA" in explain(module).layers[0].reason
    with pytest.raises(ValueError, match="backend should be"):
        explain(module, backend="best")
    with pytest.raises(ValueError, match="gpu: expected one of"):
        explain(module, device="cuda", gpu="Voodoo")


def test_sru():
    """SRU and SRU++ are explained: the scan, its bytes, attention, the reference where it runs."""
    layers = explain(fastrnn.SRU(6, 8, projection_size=[0, 4], bidirectional=True), (5, 3)).layers
    assert [layer.kernel for layer in layers] == ["scan", "scan"]
    assert layers[0].plan["flops"] == 3 * 2 * 5 * 3 * 6 * 16 * 4
    assert layers[1].plan["flops"] == 3 * 2 * 5 * 3 * (16 * 4 + 4 * 16 * 3)
    assert layers[1].plan["scan_bytes"] == 5 * 3 * 16 * 5 * 4
    text = str(explain(fastrnn.SRUpp(6, 8, 4, num_heads=2, dtype=torch.float64).eval(), (5, 3)))
    for part in ("SRUpp(6, 8)", "scan", "2 x 2 features", "inference"):
        assert part in text
    assert explain((5, 3, 6, 8), cell="sru", num_layers=2).kernels == ["scan", "scan"]
    assert explain(fastrnn.SRUCell(6, 8, backend="reference"), (1, 3)).kernels == ["reference"]
    assert explain(fastrnn.SRU(6, 8), dtype=torch.complex64).kernels == ["reference"] * 2


ELEMENTWISE = {
    "mingru": lambda **more: fastrnn.MinGRU(6, 8, 2, **more),
    "minlstm": lambda **more: fastrnn.MinLSTM(6, 8, 2, **more),
    "indrnn": lambda **more: fastrnn.IndRNN(6, 8, 2, **more),
    "slstm": lambda **more: fastrnn.SLSTM(6, 8, 2, num_heads=2, **more),
}


@pytest.mark.parametrize("cell", ELEMENTWISE)
def test_layers_without_a_product(cell):
    """They were no recurrent modules to explain. The sums are those of their weights, counted here."""
    T, B, training = 5, 3, (False, True)
    for two in (False, True):
        layer = ELEMENTWISE[cell](bidirectional=two)
        for trains in training:
            found = explain(layer.train(trains), (T, B))
            assert found.kernels == [cell, cell]
            for k, plan in enumerate(found.layers):
                own = [p for n, p in layer.named_parameters() if f"_l{k}" in n and "weight" in n]
                count = sum(p.numel() for p in own)
                recurrent = sum(p.numel() for n, p in layer.named_parameters() if f"weight_hh_l{k}" in n)
                assert plan.plan["flops"] == 2 * T * B * count * (3 if trains else 1)
                assert plan.plan["weight_bytes"] == 4 * count
                assert plan.plan["step_weight_bytes"] == 4 * recurrent
                assert (plan.plan["saved_bytes_per_step"] > 0) == trains
                assert (plan.I, plan.H, plan.directions) == (own[0].size(1), 8, 2 if two else 1)
    text = str(found)
    for part in ("(6, 8)", cell, "FLOP", "why", "training"):
        assert part in text
    packed = pack_padded_sequence(torch.zeros(6, 2, 6), [6, 3])
    assert "packed" in explain(layer, packed).notes[-1]
    assert "masked" in explain(layer, (T, B), masked=True).notes[-1]
    assert explain(layer, (T, B), measure=True).layers[0].floor_s > 0
    assert explain((T, B, 6, 8), cell=cell, num_layers=2).kernels == [cell, cell]


@pytest.mark.parametrize("cell", ELEMENTWISE)
def test_layers_without_a_product_elsewhere(cell):
    """No kernels on other devices: torch's operations, and the reason says so; wrong questions."""
    for device in ("cuda", "mps"):
        found = explain(ELEMENTWISE[cell](), (5, 3), device=device)
        assert found.kernels == ["reference"] * 2
        assert "the CPU's: torch's operations" in str(found)
    with pytest.raises(ValueError, match=r"backend: expected 'auto'.*got 'fused'"):
        explain(ELEMENTWISE[cell](), backend="fused")
    with pytest.raises(ValueError, match="weights: expected 'float32'"):
        explain(ELEMENTWISE[cell](), weights="int8")
    with pytest.raises(ValueError, match=r"expected 6 features, .* got 3"):
        explain(ELEMENTWISE[cell](), torch.zeros(1, 1, 3))
