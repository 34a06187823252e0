"""fastrnn.runtime.save: what it writes, and what it refuses, with the layer's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import randn
from stream.runtime import Model, library, load
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from fastrnn.runtime import _paths


def header(path: Path) -> tuple[dict, bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def test_the_file(tmp_path):
    """Safetensors with a description, as documented: anybody can read it."""
    lstm, linear = nn.LSTM(3, 5), nn.Linear(5, 1)
    fastrnn.runtime.save(nn.Sequential(lstm, nn.Tanh(), linear), tmp_path / "m")
    entries, data = header(tmp_path / "m")
    description = json.loads(entries.pop("__metadata__")["fastrnn"])
    assert description == {
        "version": fastrnn.runtime.FORMAT_VERSION,
        "byteorder": "little",
        "fastrnn": fastrnn.__version__,
        "layers": [
            {
                "type": "lstm",
                "name": "0",
                "weights": "float32",
                "input_size": 3,
                "hidden_size": 5,
                "proj_size": 0,
                "num_layers": 1,
                "bias": True,
            },
            {"type": "tanh", "name": "1", "size": 5},
            {
                "type": "linear",
                "name": "2",
                "weights": "float32",
                "input_size": 5,
                "output_size": 1,
                "bias": True,
            },
        ],
    }
    for name, tensor in [*(("0." + n, t) for n, t in lstm.named_parameters()), ("2.weight", linear.weight)]:
        entry = entries[name]
        begin, end = entry["data_offsets"]
        stored = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).view(entry["shape"])
        assert torch.equal(stored, tensor.detach())
    assert len(data) == max(entry["data_offsets"][1] for entry in entries.values())


def test_others_read_it(tmp_path):
    """The safetensors package, where it is installed."""
    safetensors = pytest.importorskip("safetensors")
    layer = nn.GRU(2, 3)
    fastrnn.runtime.save(layer, tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", framework="pt") as file:
        assert torch.equal(file.get_tensor("0.weight_hh_l0"), layer.weight_hh_l0.detach())


def test_version():
    """One version in Python, in the library and in the file."""
    assert library().fastrnn_version().decode() == fastrnn.__version__
    assert library().fastrnn_format_version() == fastrnn.runtime.FORMAT_VERSION


def test_paths():
    assert (Path(fastrnn.get_include()) / "fastrnn.h").is_file()
    assert (Path(fastrnn.get_cmake_dir()) / "fastrnn-config.cmake").is_file()
    assert Path(fastrnn.get_library()).name == "libfastrnn_stream.so"
    assert Path(fastrnn.get_library("static")).name == "libfastrnn_stream.a"
    with pytest.raises(ValueError, match="kind"):
        fastrnn.get_library("dynamic")


def test_where_things_are_not(tmp_path, monkeypatch):
    """A path that leads nowhere is an error that says who has it: of an archive, of what is not whole."""
    monkeypatch.setattr(_paths, "_PACKAGE", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"get_library: expected .*make stream"):
        fastrnn.get_library()
    for asked in (fastrnn.get_include, fastrnn.get_cmake_dir):
        with pytest.raises(
            FileNotFoundError, match=f"{asked.__name__}: expected {tmp_path}.*every installation"
        ):
            asked()
    monkeypatch.setattr(_paths, "_PACKAGE", tmp_path / "fastrnn.zip" / "fastrnn")
    for asked in (fastrnn.get_include, fastrnn.get_library, fastrnn.get_cmake_dir):
        with pytest.raises(FileNotFoundError, match="pip install` unpacks it"):
            asked()


def test_containers_and_weights_that_are_computed(tmp_path):
    """Lists, nested Sequentials and stacks are chains; a parametrized weight is its value."""
    x = randn(20, 4)
    inner = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    nested, flat = [inner, [nn.Identity()]], [inner[0], inner[1]]
    assert torch.equal(load(nested, tmp_path)(x), load(nn.ModuleList(flat), tmp_path)(x))
    act, twice = nn.Tanh(), nn.Linear(4, 4)  # in several places each
    shared = nn.Sequential(twice, act, twice, act)
    torch.testing.assert_close(load(shared, tmp_path)(x), shared(x).detach(), atol=1e-6, rtol=1e-5)
    stack = fastrnn.LayerStack([fastrnn.GRU(4, 7), fastrnn.LSTM(7, 3)])
    y, _ = stack(x)
    torch.testing.assert_close(load(stack, tmp_path)(x), y.detach(), atol=1e-6, rtol=1e-5)
    first, relu, last = nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    expected = relu(last(relu(first(x)))).detach()
    one = [first, relu, last, relu]  # a layer at two places is two
    for chain in (one, nn.Sequential(*one), nn.ModuleList(one)):
        torch.testing.assert_close(load(chain, tmp_path)(x), expected)
    linear = parametrizations.weight_norm(nn.Linear(4, 2))
    torch.testing.assert_close(load(linear, tmp_path)(x), linear(x).detach())
    gru = nn.GRU(4, 5)
    nn.utils.parametrize.register_parametrization(gru, "weight_hh_l0", nn.Tanh())
    torch.testing.assert_close(load(gru, tmp_path)(x), gru(x)[0].detach())


def not_finite() -> nn.Module:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.bias[1] = float("nan")
    return layer


class Doubled(nn.LSTM):
    def forward(self, *args):
        y, state = super().forward(*args)
        return 2 * y, state


def hooked() -> nn.Module:
    layer = nn.LSTM(2, 3)
    layer.register_forward_hook(lambda *args: None)
    return layer


REFUSED = {
    "a layer": (lambda: nn.Sequential(nn.Linear(2, 3), nn.Conv1d(3, 3, 1)), TypeError, "layer '1'.*Conv1d"),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Tanh(), nn.GELU())),
        (TypeError, ValueError),
        "layer '0.[01]'",
    ),
    "no module": (lambda: [nn.Linear(2, 2), "tanh"], TypeError, "layer '1'.*str"),
    "directions": (
        lambda: nn.GRU(2, 3, bidirectional=True),
        ValueError,
        "layer '0' .GRU.*bidirectional=True",
    ),
    "peephole": (
        lambda: fastrnn.LSTM(2, 3, peephole=True),
        ValueError,
        "layer '0' .LSTM.*option peephole=True",
    ),
    "norm": (lambda: fastrnn.GRU(2, 3, norm="layer"), ValueError, "option norm='layer'"),
    "zoneout": (lambda: fastrnn.RNN(2, 3, zoneout=0.1), ValueError, "option zoneout"),
    "reset before": (lambda: fastrnn.GRU(2, 3, reset_after=False), ValueError, "option reset_after=False"),
    "sLSTM": (lambda: fastrnn.SLSTM(2, 3), TypeError, "layer '0'.*SLSTM"),
    "SRU++": (lambda: fastrnn.SRUpp(8, 8, 8), TypeError, "layer '0'.*SRUpp"),
    "SRU's projection": (
        lambda: fastrnn.SRU(4, 4, projection_size=2),
        ValueError,
        "rnn_lst.0.*projection_size=2",
    ),
    "SRU's norm": (lambda: fastrnn.SRU(4, 4, layer_norm=True), ValueError, "option layer_norm=True"),
    "dtype": (
        lambda: nn.LSTM(2, 3).bfloat16(),
        ValueError,
        "layer '0' .LSTM.*torch.float32, got torch.bfloat16",
    ),
    "double": (
        lambda: nn.Linear(2, 3).double(),
        ValueError,
        "weight should be torch.float32, got torch.float64",
    ),
    "not finite": (lambda: [nn.Tanh(), not_finite()][1:], ValueError, "layer '0' .Linear.*bias.*not finite"),
    "sizes": (
        lambda: [nn.LSTM(2, 3), nn.Linear(4, 1)],
        ValueError,
        "layer '1' .Linear. takes 4 features.*gives 3",
    ),
    "nothing": (lambda: nn.Sequential(), ValueError, "at least one layer"),
    "no size": (lambda: [nn.Tanh()], ValueError, "layer '0' .Tanh.*how"),
    "subclass": (lambda: Doubled(2, 3), TypeError, "layer '0'.*Doubled"),
    "hook": (hooked, ValueError, "layer '0' .LSTM.*hooks"),
    "slope": (lambda: [nn.Linear(1, 1), nn.LeakyReLU(float("inf"))], ValueError, "layer '1'.*negative_slope"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path):
    """The error names the layer and what is wrong with it, and leaves the file that was there."""
    make, kind, message = REFUSED[case]
    path = tmp_path / "model.fastrnn"
    path.write_bytes(b"before")
    with pytest.raises(kind, match=message):
        fastrnn.runtime.save(make(), path)
    assert path.read_bytes() == b"before"


def test_a_saved_model_outlives_its_file(tmp_path):
    model = load(nn.LSTM(2, 3), tmp_path)
    (tmp_path / "model.fastrnn").write_bytes(b"")
    assert torch.isfinite(model(randn(5, 2))).all()
    with pytest.raises(ValueError, match="8 bytes of its header's length, got 0 bytes"):
        Model(tmp_path / "model.fastrnn")
