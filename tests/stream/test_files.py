"""A file that is no model is an error with its reason, never a crash: one case for each thing that a file can
be wrong in, and damaged files by the thousand under AddressSanitizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stream import build
from stream.runtime import Model
from torch import nn

import fastrnn


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[dict, bytes]:
    """The header and the data of a good file."""
    path = tmp_path_factory.mktemp("model") / "m"
    fastrnn.runtime.save([nn.LSTM(2, 3, 2), nn.Linear(3, 1), nn.LeakyReLU()], path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def file_of(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(change: Callable[[dict], object]) -> Callable[[dict], None]:
    """A change of the description alone."""

    def apply(header: dict) -> None:
        description = json.loads(header["__metadata__"]["fastrnn"])
        change(description)
        header["__metadata__"]["fastrnn"] = json.dumps(description)

    return apply


def layer(number: int, **options) -> Callable[[dict], None]:
    return described(lambda d: d["layers"][number].update(options))


def without(number: int, option: str) -> Callable[[dict], None]:
    return described(lambda d: d["layers"][number].pop(option))


def tensor(name: str, **facts) -> Callable[[dict], None]:
    return lambda header: header[name].update(facts)


def moved(header: dict) -> None:
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]


def dropped(name: str) -> Callable[[dict], object]:
    return lambda header: header.pop(name)


L0, LINEAR = r"layer 0 \('0', lstm\): ", r"layer 1 \('1', linear\): "
WRONG = {
    "version": (described(lambda d: d.update(version=2)), "expected version 1 of the format.*got 2"),
    "no version": (described(lambda d: d.pop("version")), "expected 'version', a number, got none"),
    "endianness": (described(lambda d: d.update(byteorder="big")), "byteorder 'little', got 'big'"),
    "no description": (dropped("__metadata__"), "expected metadata 'fastrnn'"),
    "metadata": (lambda h: h.update(__metadata__=[]), "__metadata__: expected an object, got an array"),
    "metadata's values": (lambda h: h["__metadata__"].update(a=1), "expected texts, got a number for 'a'"),
    "description": (lambda h: h["__metadata__"].update(fastrnn="[1]"), "description: expected an object"),
    "no layers": (described(lambda d: d.update(layers=[])), "expected 1 to 1024 layers, got 0"),
    "many layers": (described(lambda d: d.update(layers=[1] * 2000)), "expected 1 to 1024 layers, got 2000"),
    "no layer": (described(lambda d: d["layers"].append(3)), "layer 3: expected an object, got a number"),
    "type": (layer(0, type="qlstm"), r"layer 0 \('0', qlstm\): expected a type that this version knows"),
    "no type": (without(0, "type"), "layer 0: expected 'type', a string, got none"),
    "weights": (layer(0, weights="int8"), L0 + "expected weights 'float32'.*got 'int8'"),
    "an option": (layer(0, peephole=True), L0 + "option 'peephole' is not known to this version"),
    "size": (layer(0, hidden_size=0), L0 + "expected 'hidden_size' to be an integer from 1"),
    "more than the file has": (
        layer(0, input_size=2**20, hidden_size=2**20),  # 32 TiB, of which none is asked for
        L0 + r"tensor '0.weight_ih_l0': expected shape \(4194304, 1048576\), got \(12, 2\)",
    ),
    "negative": (layer(0, input_size=-2), L0 + "expected 'input_size' to be an integer from 1"),
    "huge": (layer(0, hidden_size=2**62), L0 + "expected 'hidden_size' to be an integer from 1"),
    "overflow": (layer(0, hidden_size=2**70), L0 + "expected 'hidden_size' to be an integer from 1"),
    "fraction": (layer(0, hidden_size=3.5), L0 + "expected 'hidden_size' to be an integer"),
    "flag": (layer(0, bias=1), L0 + "expected 'bias', a boolean, got a number"),
    "projection": (
        layer(0, proj_size=2),
        L0 + r"tensor '0.weight_ih_l0'|" + L0 + "tensor '0.weight_hh_l0': expected shape",
    ),
    "more layers": (layer(0, num_layers=3), L0 + "tensor '0.weight_ih_l2' is missing"),
    "fewer layers": (layer(0, num_layers=1), "tensor '0.*_l1' belongs to no layer"),
    "other size": (
        layer(0, hidden_size=4),
        L0 + r"tensor '0.weight_ih_l0': expected shape \(16, 2\), got \(12, 2\)",
    ),
    "chain": (layer(2, size=5), r"layer 2 \('2', leaky_relu\): expected 1 inputs.*got 5"),
    "constant": (layer(2, negative_slope=1e300), "expected 'negative_slope' within float32's range"),
    "missing": (
        dropped("1.bias"),
        LINEAR + "tensor '1.bias' is missing|expected its data at offset|bytes of data",
    ),
    "dtype": (tensor("1.bias", dtype="F16"), "tensor '1.bias': expected 2 bytes for F16"),
    "other dtype": (tensor("1.bias", dtype="I32"), LINEAR + "tensor '1.bias': expected F32, got I32"),
    "no dtype": (tensor("1.bias", dtype="F31"), "expected a dtype such as F32, got 'F31'"),
    "shape": (tensor("1.bias", shape=[2**40, 2**40]), "expected a shape whose size 64 bits hold"),
    "negative shape": (tensor("1.bias", shape=[-1]), "expected an integer of at least 0"),
    "dimensions": (tensor("1.bias", shape=[1] * 9), "expected at most 8 dimensions, got 9"),
    "offsets": (tensor("1.bias", data_offsets=[0]), "expected two data_offsets, got 1"),
    "backwards": (tensor("1.bias", data_offsets=[8, 4]), "expected data_offsets in order"),
    "outside": (
        tensor("1.bias", data_offsets=[2**40, 2**40 + 4]),
        "expected data_offsets in order and within",
    ),
    "overlap": (tensor("1.bias", data_offsets=[0, 4]), "expected its data at offset|bytes of data"),
    "gap": (moved, "expected data_offsets in order and within|expected its data at offset 0"),
    "no tensor": (lambda h: h.update(x=3), "tensor 'x': expected an object, got a number"),
    "control characters": (layer(0, type="\x1b[31m"), r"\?\[31m"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_in_one_thing(case, model):
    change, message = WRONG[case]
    header = json.loads(json.dumps(model[0]))
    change(header)
    with pytest.raises(ValueError, match=message):
        Model(file_of(header, model[1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(value, model):
    """Whichever tensor it is in: the error names the layer, the tensor and the element."""
    header, data = model
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        damaged = bytearray(data)
        damaged[end - 4 : end] = torch.tensor(value).numpy().tobytes()
        number = (end - begin) // 4 - 1
        with pytest.raises(
            ValueError, match=rf"tensor '{name}': expected finite numbers, got .* at element {number}$"
        ):
            Model(file_of(header, bytes(damaged)))


JSON = {
    "nested": (b"[" * 40, "expected at most 16 levels"),
    "deeply": (b'{"a":' * 100000, "expected at most 16 levels"),
    "twice": (b'{"a": 1, "a": 2}', "expected no name twice, got 'a' again"),
    "unfinished": (b'{"a": ', "expected a value, got the end of the text"),
    "string": (b'{"a', "expected the end of a string"),
    "escape": (rb'{"\x": 1}', "expected an escape"),
    "surrogate": (rb'{"\ud800": 1}', r"expected '\\'"),
    "half": (rb'{"\udc00": 1}', "first half of a surrogate pair"),
    "hexadecimal": (rb'{"\u12g4": 1}', "four hexadecimal digits"),
    "control": (b'{"a\n": 1}', "no control character"),
    "more": (b"{} x", "expected the end, got 'x'"),
    "number": (b'{"a": 01}', "expected no 0 before a number"),
    "digits": (b'{"a": 1.}', "expected a digit"),
    "exponent": (b'{"a": 1e+}', "expected a digit"),
    "word": (b'{"a": nul}', "expected a value, got 'n'"),
    "comma": (b'{"a": 1,}', "expected '\"', got '}'"),
    "zero bytes": (b"\0\0", "expected a value"),
    "no object": (b"[]", "header: expected an object, got an array"),
}


@pytest.mark.parametrize("case", JSON)
def test_what_is_no_json(case):
    text, message = JSON[case]
    with pytest.raises(ValueError, match=message):
        Model(file_of(text, b""))


def test_json_that_is_allowed(model):
    """Blanks, escapes and characters of every length, where names and texts may have them."""
    header, data = model
    more = json.loads(json.dumps(header))
    more["__metadata__"]["note"] = 'é "quoted" \\ / \b\f\n\r\t 漢 𝄞'
    for text in (
        json.dumps(more, indent=1),
        json.dumps(more, ensure_ascii=False),
        json.dumps(more) + " \n\t\r",
    ):
        Model(file_of(text.encode(), data))


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 200, -200, -4, -1])
def test_truncated(cut, model):
    whole = file_of(*model)
    with pytest.raises(ValueError, match="expected"):
        Model(whole[:cut])


def test_longer(model):
    with pytest.raises(ValueError, match=r"expected \d+ bytes of data.*got"):
        Model(file_of(*model) + b"\0" * 4)


def test_big_endian_length(model):
    whole = file_of(*model)
    with pytest.raises(ValueError, match="big-endian"):
        Model(whole[:8][::-1] + whole[8:])


def test_other_files(tmp_path):
    """What is not there, a folder, and files of another kind."""
    with pytest.raises(ValueError, match="No such file"):
        Model(tmp_path / "none")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)[:20])):
        Model(tmp_path)
    torch.save(nn.LSTM(2, 3).state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match="no safetensors file"):
        Model(tmp_path / "m.pt")


def test_an_instruction_set_that_is_not_here(model, monkeypatch):
    monkeypatch.setenv("FASTRNN_CPU_ISA", "mmx")
    with pytest.raises(
        ValueError, match=r"FASTRNN_CPU_ISA: expected an instruction set of this machine, .*got 'mmx'"
    ):
        Model(file_of(*model))


def test_every_prefix(model):
    """Cut at every byte, a file is no model."""
    whole = file_of(*model)
    for cut in range(0, len(whole), 7):
        with pytest.raises(ValueError, match="expected"):
            Model(whole[:cut])


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[Path]:
    """Small models of every kind of layer."""
    folder = tmp_path_factory.mktemp("seeds")
    chains = [
        [nn.LSTM(1, 4, proj_size=2), nn.Linear(2, 1)],
        [nn.GRU(2, 3, 2), nn.LeakyReLU(), nn.Hardtanh()],
        [nn.RNN(1, 2), nn.Tanh(), nn.Linear(2, 9), nn.ELU()],
        [fastrnn.SRU(2, 2, num_layers=2)],
    ]
    for i, chain in enumerate(chains):
        fastrnn.runtime.save(chain, folder / str(i))
    return sorted(folder.iterdir())


def test_damaged_files(seeds):
    """Thousands of them, under AddressSanitizer and UBSan: refused with a reason, or loaded and run."""
    fuzz = build.program("fuzz", "asan", build.ASAN)
    done = build.run([fuzz, 6000, 18, *seeds], ASAN_OPTIONS="detect_leaks=1:allocator_may_return_null=1")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    loaded, reasons = map(int, re.fullmatch(r"(\d+) loaded, (\d+) reasons\n", done.stdout).groups())
    assert loaded > 200
    assert reasons > 200
