"""The bytes of rnn_pack: rnn_stream takes what it can prove to be weights for the kernels in use, and
nothing else."""

import struct

import pytest
import torch
from streaming_cases import close

import fastrnn
from fastrnn._ops import library

HEADER_BYTES = 128
#: Where a header keeps what, and how (csrc/cpu/ops/packed.h).
FIELDS = {
    "magic": (0, "8s"),
    "isa": (8, "24s"),
    "version": (32, "i"),
    "cell": (36, "i"),
    "dtype": (40, "i"),
    "I": (48, "q"),
    "H": (56, "q"),
    "P": (64, "q"),
    "bytes": (72, "q"),
}
LSTM, GRU, RNN_TANH, RNN_RELU = range(4)
FLOAT, DOUBLE, BFLOAT16, HALF = range(4)


class Packed:
    """A layer of 7 inputs and 33 units, its packed weights, and rnn_stream on what is made of them."""

    def __init__(self, name="LSTM", dtype=torch.float32, **options):
        torch.manual_seed(5)
        layer = getattr(fastrnn, name)(7, 33, dtype=dtype, **options)
        weights = [p.detach() for p in layer.parameters()]
        self.bytes = library.pack(weights, {"RNN": "rnn_tanh"}.get(name, name.lower()), True)
        self.x = torch.randn(2, 7).to(dtype)
        self.h0 = torch.randn(1, 2, layer.proj_size or 33).to(dtype)
        self.c0 = torch.randn(1, 2, 33).to(dtype) if name == "LSTM" else None

    def get(self, field):
        at, form = FIELDS[field]
        return struct.unpack_from("<" + form, self.bytes.numpy().tobytes(), at)[0]

    def forged(self, **fields):
        """A copy with other values in its header."""
        data = bytearray(self.bytes.numpy().tobytes())
        for field, value in fields.items():
            at, form = FIELDS[field]
            struct.pack_into("<" + form, data, at, value)
        return torch.frombuffer(data, dtype=torch.uint8)

    def stream(self, packed=None):
        return library.stream(self.x, self.h0, self.c0, [self.bytes if packed is None else packed])

    def refuses(self, packed, match):
        with pytest.raises(RuntimeError, match=rf"^packed\[0\]: expected {match}"):
            self.stream(packed)


def test_header_is_where_these_tests_look_for_it():
    """The offsets of this file are those of the header: without that the tests below forge something else."""
    for name, cell, P in (("LSTM", LSTM, 5), ("GRU", GRU, 0), ("RNN", RNN_TANH, 0)):
        packed = Packed(name, torch.float64, **({"proj_size": P} if P else {}))
        expected = {"magic": b"fastrnn\0", "isa": library.cpu_isa().encode().ljust(24, b"\0"), "cell": cell}
        expected |= {"dtype": DOUBLE, "I": 7, "H": 33, "P": P, "bytes": packed.bytes.numel() - HEADER_BYTES}
        assert {field: packed.get(field) for field in expected} == expected
        assert torch.equal(packed.forged(), packed.bytes)


def test_every_field_of_a_forged_header(isa):
    """A wrong value in any field is an error of its own that shows the value: sizes and kinds decide how far
    a kernel reads."""
    packed = Packed()
    room = packed.bytes.numel() - HEADER_BYTES
    for magic in (b"fastrno\0", b"\0" * 8, b"Fastrnn\0", b"fastrnn1"):
        packed.refuses(packed.forged(magic=magic), r"what rnn_pack returned, got shape \(\d+\), uint8 on cpu")
    for version in (0, 1, 3, -1):  # 1: its gates lay otherwise
        packed.refuses(
            packed.forged(version=version), rf"weights packed by this version .*, got format {version};"
        )
    for name, shown in ((b"", ""), (b"avx1024", "avx1024"), (b"x" * 24, "x" * 23), (b"\xff\n%s", r"\?\?%s")):
        packed.refuses(packed.forged(isa=name), f"weights packed for {isa}, .*, got some for {shown};")
    wrong = {
        "cell": (-1, 4, 1 << 30),
        "dtype": (-1, 4, 1 << 30),
        "I": (-1, 1 << 40, 1 << 62, -(1 << 63)),
        "H": (0, -33, 1 << 40, 1 << 62, -(1 << 63)),
        "P": (-1, 1 << 40, 1 << 62, -(1 << 63)),
    }
    for field, values in wrong.items():
        equals = " " if field in ("cell", "dtype") else " = "
        for value in values:
            match = rf"a header that rnn_pack wrote, got .*\b{field}{equals}{value}\b.* before {room} bytes"
            packed.refuses(packed.forged(**{field: value}), match)
    # Each of these is a layer that exists, and larger or smaller than the bytes there are.
    for field, value in (
        ("cell", GRU),
        ("dtype", DOUBLE),
        ("I", 8),
        ("I", 0),
        ("H", 64),
        ("H", 1),
        ("P", 40),
    ):
        packed.refuses(packed.forged(**{field: value}), rf"\d+ bytes of weights .*, got {room},")
    for count in (0, -1, room - 1, room + 1, (1 << 63) - 1, -(1 << 63)):
        match = rf"{room} bytes of weights after the header, got {room}, of which the header counts {count}$"
        packed.refuses(packed.forged(bytes=count), match)


def test_projections_are_the_lstm_s():
    """No kernel of another cell knows a projection: a header that gives it one is refused."""
    packed = Packed("GRU")
    packed.refuses(packed.forged(P=5), "a header that rnn_pack wrote, got cell 1, .* P = 5 ")


def test_sizes_whose_products_overflow():
    """Sizes with products beyond 64 bits, which might come out as the bytes that are there, are refused by
    themselves."""
    packed = Packed()
    for sizes in ({"I": 1 << 33, "H": 1 << 33}, {"I": 1 << 59, "H": 32}, {"H": 1 << 32, "P": 1 << 32}):
        packed.refuses(packed.forged(**sizes), "a header that rnn_pack wrote")


def test_truncated_and_extended(isa):
    """A tensor that lacks bytes or has more is refused wherever it was cut, its header changed with it or
    not."""
    for packed in (Packed(), Packed("GRU", torch.bfloat16), Packed("RNN", torch.float64)):
        whole = packed.bytes
        for cut in (0, 1, 79, HEADER_BYTES - 1):
            packed.refuses(whole[:cut], "what rnn_pack returned")
        for cut in (HEADER_BYTES, HEADER_BYTES + 64, whole.numel() - 64, whole.numel() - 1):
            packed.refuses(whole[:cut], r"")
            packed.refuses(packed.forged(bytes=cut - HEADER_BYTES)[:cut], r"")
        longer = torch.cat([packed.forged(bytes=whole.numel() - HEADER_BYTES + 64), whole.new_zeros(64)])
        packed.refuses(longer, r"\d+ bytes of weights")
        packed.refuses(whole[1:], "what rnn_pack returned")
        packed.stream(whole)


def test_storage_that_was_freed():
    """A tensor whose storage was made smaller still has its size: what is not there is not read."""
    for kept in (0, 64, HEADER_BYTES, 4096):
        packed = Packed()
        whole = packed.forged()
        whole = whole.clone()
        whole.untyped_storage().resize_(kept)
        packed.refuses(whole, "what rnn_pack returned")


def test_tensors_of_another_form():
    """The right bytes in another form: another dtype, shape or stride is refused, as is an address where no
    number can lie; elsewhere in a buffer they give the same results."""
    packed = Packed()
    whole = packed.bytes
    for other in (whole.view(torch.int8), whole.view(torch.float32), whole.view(2, -1), whole.view(1, -1)):
        packed.refuses(other, "what rnn_pack returned")
    packed.refuses(torch.stack([whole, whole], 1)[:, 0], "what rnn_pack returned")
    packed.refuses(
        torch.cat([whole.new_zeros(1), whole])[1:], "bytes at an address divisible by 8, got one 1 "
    )
    moved = torch.cat([whole.new_zeros(8), whole])[8:]
    for got, expected in zip(packed.stream(moved), packed.stream(), strict=True):
        close(got, expected, 0)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_any_byte_of_a_header(isa, name):
    """Whatever a byte of the header is changed to, the call is refused or the byte has no meaning: only tanh
    and relu, whose weights lie alike, can take each other's."""
    packed = Packed(name)
    expected = packed.stream()[0]
    accepted = set()
    for at in range(HEADER_BYTES):
        for mask in (0x01, 0x02, 0x80, 0xFF):
            forged = packed.bytes.clone()
            forged[at] ^= mask
            try:
                y = packed.stream(forged)[0]
            except RuntimeError:
                continue
            accepted.add(at)
            assert torch.equal(y, expected) or (name == "RNN" and at == FIELDS["cell"][0])
    # What lies between the fields and behind them, and in the name of the instruction set behind its end.
    end = FIELDS["isa"][0] + len(isa) + 1
    free = {*range(end, 32), *range(44, 48), *range(80, HEADER_BYTES)}
    assert accepted - free == ({FIELDS["cell"][0]} if name == "RNN" else set())


def test_second_layer_is_checked_too():
    """The header of every layer is read: one that fits alone but not on the layer below names both."""
    packed = Packed("GRU")
    h0 = packed.h0.repeat(2, 1, 1)
    for second, match in (
        (
            packed.bytes,
            r"packed\[1\]: expected a layer .* with 33 inputs, got one of H = 33, P = 0 with 7 inputs",
        ),
        (packed.forged(H=1 << 40), r"packed\[1\]: expected a header that rnn_pack wrote"),
        (packed.bytes[:-1], r"packed\[1\]: expected \d+ bytes"),
    ):
        with pytest.raises(RuntimeError, match=match):
            library.stream(packed.x, h0, None, [packed.bytes, second])


def test_packed_for_another_instruction_set():
    """Packed weights are laid out for one instruction set; under another they are refused, never misread."""
    isas = library.available_cpu_isas()
    packed = Packed("GRU", torch.float64)
    before = library.cpu_isa()
    try:
        for other in isas:
            library.set_cpu_isa(other)
            if other != before:
                packed.refuses(packed.bytes, f"weights packed for {other}, .*, got some for {before};")
    finally:
        library.set_cpu_isa(before)
    packed.stream()


def test_errors_of_the_operators():
    """Whatever else can be passed wrongly to rnn_pack and rnn_stream gets its own error."""
    layer = fastrnn.LSTM(7, 33)
    weights = [w.detach() for w in layer.parameters()]
    packed = Packed()
    x, h, c = packed.x, packed.h0, packed.c0
    for match, call in {
        "w_ih, w_hh": lambda: library.pack(weights[:1], "lstm", True),
        r"weights\[2\] \(b_ih\)": lambda: library.pack(
            [*weights[:2], weights[2][1:], weights[3]], "lstm", True
        ),
        "expected 'lstm'": lambda: library.pack(weights, "cell", True),
        "at least one layer": lambda: library.stream(x, h, c, []),
        r"packed\[0\]: .*, float32": lambda: library.stream(x, h, c, [weights[0]]),
        "expected 7 features, got 6": lambda: library.stream(x[:, :6], h, c, [packed.bytes]),
        "x: expected the dtype": lambda: library.stream(x.double(), h, c, [packed.bytes]),
        r"h0: expected shape \(1, 2, 33\)": lambda: library.stream(x, h[:, :1], c, [packed.bytes]),
        "c0: expected a tensor": lambda: library.stream(x, h, None, [packed.bytes]),
    }.items():
        with pytest.raises(RuntimeError, match=match):
            call()
