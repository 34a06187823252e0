"""``python -m fastrnn verify``: what it checks, what it finds, and how it says so."""

import json

import pytest
import torch

from fastrnn._ops import library
from fastrnn._plan import gpus
from fastrnn.cli import main
from fastrnn.proof import numbers


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_clear_error():
    with pytest.raises(SystemExit, match="torch sees no GPU"):
        main(["verify", "--device", "cuda"])


def test_verify_passes(capsys):
    assert main(["verify", "--cell", "gru", "--dtype", "float32", "float64", "--variant", "plain"]) == 0
    out = capsys.readouterr().out
    for text in (
        *library.available_cpu_isas(),
        "gru layers, bidirectional",
        "gru packed",
        "gru cells",
        "0 over",
    ):
        assert text in out


def test_verify_has_a_row_for_each_option_of_a_cell():
    """A variant is a value: LSTM, GRU and RNN have their options' rows, the others none, and a filter takes
    some of them. In every layer's row training draws masks, which are the reference's."""
    rows = {c.name for c in numbers.checks(dtypes=["float32"])}
    for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        for variant in ("norm", "zoneout", "recurrent_dropout", "weight_dropout", "heads", "all"):
            assert f"{cell}+{variant} layers, bidirectional" in rows
    assert {
        "lstm+peephole cells",
        "lstm+coupled cells",
        "gru+reset_before cells",
        "rnn_relu+norm cells",
    } < rows
    assert not {"gru+peephole cells", "lstm+reset_before cells", "gru+recurrent_dropout cells"} & rows
    assert not any(name.startswith("sru") and "+" in name for name in rows)
    assert {c.variant for c in numbers.checks(variants=["plain", "heads"])} == {"", "heads"}
    options = {c.options(12)["heads"] for c in numbers.checks(variants=["heads"])}
    assert options == {2}


@pytest.mark.parametrize(("cell", "variants"), [("lstm", ["all"]), ("gru", ["all", "reset_before"])])
def test_verify_passes_with_options(cell, variants):
    """Outputs and gradients of everything at once are those of the definition in float64, in every mode."""
    isa = library.available_cpu_isas()[0]
    for outcome in numbers.verify(
        numbers.checks([cell], ["float64", "bfloat16"], variants=variants), [isa], beside_torch=False
    ):
        assert outcome.ok, outcome
        assert outcome.runs >= 10
        assert outcome.gradient > 0


def test_verify_finds_a_wrong_variant(monkeypatch):
    """A row fails where the kernels got other masks than the definition, in training alone."""
    from fastrnn._run import variant

    bernoulli = variant._bernoulli
    monkeypatch.setattr(
        variant,
        "_bernoulli",
        lambda x, shape, p: (
            1 - bernoulli(x, shape, p) if x.dtype == torch.float32 else bernoulli(x, shape, p)
        ),
    )
    (check,) = numbers.checks(["gru"], ["float32"], ["layers"], ["recurrent_dropout"])
    (outcome,) = numbers.verify([check], library.available_cpu_isas()[:1], beside_torch=False)
    assert not outcome.ok
    assert "inference" not in outcome.where["output"]


def test_verify_fails_over_tolerance(capsys, plain, monkeypatch):
    monkeypatch.setitem(numbers.TOLERANCES, "float32", numbers.Tolerance(1e-12, 1e-12))
    isa = library.available_cpu_isas()[-1]
    assert main(["verify", "--cell", "lstm", "--dtype", "float32", "--path", "cells", "--isa", isa]) == 1
    out = capsys.readouterr().out
    assert "FAILED lstm cells float32" in out
    assert "T,B,I,H" in out


def test_verify_reports_what_is_raised_and_restores_the_instruction_set(monkeypatch):
    before = library.cpu_isa()
    genuine = numbers.run_functional

    def broken(data, dtype, backend, mode):
        if backend == "fused":
            raise RuntimeError("no such kernel")
        return genuine(data, dtype, backend, mode)

    monkeypatch.setattr(numbers, "run_functional", broken)
    wanted = numbers.checks(["rnn_relu"], ["float64"], ["cells"], ["plain"])
    outcomes = numbers.verify(wanted)
    assert [o.ok for o in outcomes] == [False] * len(library.available_cpu_isas())
    assert outcomes[0].error == "RuntimeError: no such kernel"
    assert library.cpu_isa() == before


def test_verify_goes_on_without_torch_nn(monkeypatch):
    """What a GPU's torch.nn cannot run is still compared with float64, and says so; on the CPU that is an
    error."""

    def refused(data, mode):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED\nand a hint")

    monkeypatch.setattr(numbers, "run_torch", refused)
    check = numbers.Check("gru", "layers", 1, "float64")
    targets = [numbers.Target("here")]
    monkeypatch.setattr(numbers, "make_data", lambda c, size, _, made=numbers.make_data: made(c, size, "cpu"))
    (outcome,) = numbers.run_check(check, targets, "cuda", lambda name: None)
    assert outcome.ok
    assert 0 < outcome.output <= check.tolerance.output
    assert outcome.from_torch == outcome.torch_output == 0
    assert outcome.torch_error == "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        numbers.run_check(check, targets, "cpu", lambda name: None)


def test_verify_json_and_the_gpus_options(tmp_path):
    """The outcomes with tolerances, commit and machine; options of a GPU without one are an error."""
    isa = library.available_cpu_isas()[0]
    file = tmp_path / "new" / "verify.json"
    arguments = ["verify", "--cell", "gru", "--dtype", "float64", "--path", "cells", "--isa", isa]
    assert main([*arguments, "--json", str(file)]) == 0  # folders that do not exist yet are made
    found = json.loads(file.read_text())
    assert found["ok"] is True
    assert found["outcomes"][0]["check"]["cell"] == "gru"
    assert found["outcomes"][0]["runs"] > 0
    assert found["outcomes"][0]["tolerance"]["output"] == numbers.TOLERANCES["float64"].output
    for wrong in (["--tier", "grid"], ["--dtype", "tf32"]):
        with pytest.raises(SystemExit, match="about a GPU"):
            main(["verify", *wrong])


def test_verify_asks_a_tier_only_for_what_it_takes():
    """On paper: the persistent tiers leave out float64 and projections, and each leaves out some sizes."""
    gpu = gpus.find("H100")
    targets = numbers.cuda_targets("cuda", gpu=gpu)
    names = [t.name.removeprefix("cuda ") for t in targets]
    assert names == ["auto", "one_cta", "cluster", "grid", "stepwise_graph", "stepwise"]
    auto, one_cta, cluster, grid, graph, stepwise = targets
    every = numbers.checks(dtypes=(*numbers.DTYPES, numbers.TF32))
    for check in (c for c in every if c.variant):
        # A cell's module asks for no tier; the others have no stages for what is between the gates.
        layer, size = check.path == "layers", numbers.CUDA_SIZES[-2]
        assert auto.takes(check, size)
        assert stepwise.takes(check, size) == layer
        persistent = layer and check.variant in ("weight_dropout", "coupled", "heads")
        assert persistent or not any(t.takes(check, size) for t in (one_cta, cluster, grid, graph)), check
    for check in (c for c in every if not c.variant):
        sizes = [s for s in numbers.CUDA_SIZES if one_cta.takes(check, s)]
        assert all(auto.takes(check, s) for s in numbers.CUDA_SIZES)
        scan = check.cell in numbers.SCANS
        for target in (graph, stepwise):
            assert all(target.takes(check, s) != scan for s in numbers.CUDA_SIZES)
        if check.dtype == "float64" or check.path == "proj" or scan:
            assert not sizes
        elif check.dtype != "float32":
            assert sizes
            assert len(sizes) < len(numbers.CUDA_SIZES)
            assert any(grid.takes(check, s) for s in numbers.CUDA_SIZES)
            assert any(cluster.takes(check, s) for s in numbers.CUDA_SIZES)


def test_verify_compares_tensorfloat_as_tensorfloat(monkeypatch):
    """A tf32 check computes in float32, with cuDNN's setting on for its time, within TF32's tolerance."""
    check = numbers.Check("gru", "cells", 1, numbers.TF32)
    assert check.torch_dtype == torch.float32
    seen = []
    genuine = numbers.run_functional

    def watched(data, dtype, backend, mode):
        seen.append((dtype, torch._C._get_fp32_precision_getter("cuda", "rnn")))
        return genuine(data, dtype, backend, mode)

    monkeypatch.setattr(numbers, "run_functional", watched)
    before = torch._C._get_fp32_precision_getter("cuda", "rnn")
    outcomes = numbers.verify([check], [library.available_cpu_isas()[0]])
    assert outcomes[0].ok
    assert (torch.float32, "tf32") in seen
    assert torch._C._get_fp32_precision_getter("cuda", "rnn") == before
    outcomes[0].output = 1e-3
    assert outcomes[0].ok
    outcomes[0].output = 3e-3
    assert not outcomes[0].ok


def test_verify_covers_everything():
    everything = numbers.checks()
    assert {c.cell for c in everything} == set(numbers.CELLS)
    assert {c.dtype for c in everything} == set(numbers.DTYPES)
    assert {(c.path, c.directions) for c in everything if c.cell == "lstm"} == {
        *((p, d) for p in ("layers", "packed", "proj") for d in (1, 2)),
        ("cells", 1),
    }
    for cell in numbers.SCANS:
        found = {(c.path, c.directions) for c in everything if c.cell == cell}
        assert found == {(p, d) for p in ("layers", "packed") for d in (1, 2)}


def test_verify_checks_the_sru(capsys):
    """The SRU's scan is verified on every instruction set like the other recurrences."""
    assert main(["verify", "--cell", "sru"]) == 0
    out = capsys.readouterr().out
    for text in (*library.available_cpu_isas(), "sru layers, bidirectional", "sru packed", "0 over"):
        assert text in out


def test_verify_checks_srupp(monkeypatch):
    """SRU++ is verified, and judged by what its kernels add to the error of torch's own operations: a scan
    that is wrong by a part in fifty fails, in a half type too."""
    from fastrnn._ops import autograd

    isa = library.available_cpu_isas()[:1]
    wanted = numbers.checks(["srupp"], ["float32", "bfloat16"], ["packed"])
    assert all(outcome.ok for outcome in numbers.verify(wanted, isa))
    genuine = autograd.scan

    def broken(*args, **options):
        h, c = genuine(*args, **options)
        return h * 1.02, c

    monkeypatch.setattr(autograd, "scan", broken)
    assert not any(outcome.ok for outcome in numbers.verify(wanted, isa))


def test_distance_sees_nan_and_shapes():
    ones = torch.ones(3)
    assert numbers.distance(torch.tensor([1.0, float("nan"), 1.0]), ones) == float("inf")
    assert numbers.distance(torch.ones(2), ones) == float("inf")
    assert numbers.distance(ones, ones) == 0


def test_verify_quick_is_every_cell_in_float32(capsys, monkeypatch):
    """--quick leaves out dtypes, instruction sets and the comparison of errors; what is named stays."""
    from fastrnn.proof import _accuracy

    asked = []
    monkeypatch.setattr(_accuracy, "measure", lambda *_: pytest.fail("errors were compared"))
    monkeypatch.setattr(numbers, "SIZES", numbers.SIZES[:1])
    original = numbers.run_check
    monkeypatch.setattr(numbers, "run_check", lambda *a: asked.append(a[:2]) or original(*a))
    assert main(["verify", "--quick"]) == 0
    assert {check for check, _ in asked} == set(numbers.checks(dtypes=["float32"]))
    assert {target.name for _, targets in asked for target in targets} == {library.cpu_isa()}
    assert "0 over their tolerance" in capsys.readouterr().out
    asked.clear()
    assert (
        main(
            [
                "verify",
                "--quick",
                "--dtype",
                "bfloat16",
                "--cell",
                "gru",
                "--path",
                "cells",
                "--variant",
                "plain",
            ]
        )
        == 0
    )
    assert [check.dtype for check, _ in asked] == ["bfloat16"]
