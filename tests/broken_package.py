"""A copy of the package, to be damaged, and what its import says in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toolchain import cxx, is_installed

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent

#: Run in a process of its own with the package's folder, or archive, in front of everything: what the import
#: said, and that every kind of layer, by every way in, computes what torch.nn does.
PROGRAM = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
{before}
    import fastrnn, fastrnn.models, fastrnn.compat.sru
    from fastrnn._ops import library
mine = [w for w in said if "fastrnn" in str(w.message).lower()]
assert fastrnn.__file__.startswith(sys.argv[1]), fastrnn.__file__
x, cases = torch.randn(5, 3, 4), 0
for name in ("LSTM", "GRU", "RNN"):
    for options in ({{}}, {{"num_layers": 2, "bidirectional": True}}):
        torch.manual_seed(0)
        theirs = getattr(torch.nn, name)(4, 6, **options)
        torch.manual_seed(0)
        ours = getattr(fastrnn, name)(4, 6, **options)
        with fastrnn.patch():
            patched = theirs(x)[0]
        converted = fastrnn.convert(getattr(torch.nn, name)(4, 6, **options))
        converted.load_state_dict(theirs.state_dict())
        for y in (ours(x)[0], patched, converted(x)[0]):
            torch.testing.assert_close(y, theirs(x)[0])
        ours(x)[0].sum().backward()
        theirs(x)[0].sum().backward()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
        assert ours(x, lengths=torch.tensor([5, 0, 2]))[0].isfinite().all()
        cases += 1
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name + "Cell")(4, 6)
    torch.manual_seed(0)
    ours = getattr(fastrnn, name + "Cell")(4, 6)
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))
    stream = fastrnn.__dict__[name](4, 6).eval().streamer()
    stream.step(x[0])
    cases += 1
for layer in (fastrnn.SRU(4, 6), fastrnn.SRUpp(4, 6, 3)):
    layer(x)[0].sum().backward()
    cases += 1
explained = str(fastrnn.explain(fastrnn.LSTM(4, 6), (5, 3)))
try:
    fastrnn.LSTM(4, 6, backend="fused")(x)
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(json.dumps({{
    "said": [str(w.message) for w in mine], "kinds": [w.category.__name__ for w in mine], "cases": cases,
    "where": [w.filename for w in mine],
    "loaded": library.cpu_loaded, "why": library.cpu_why,
    "cuda": library.cuda_loaded, "cuda_why": library.cuda_why,
    "explained": explained, "refused": refused, "isa": library.cpu_isa(),
}}))
"""


def copy_of_package(folder: Path, binaries: bool = True) -> Path:
    """The package as it lies here, in a folder of its own."""
    left_out = () if binaries else ("*.so",)
    shutil.copytree(PACKAGE, folder / "fastrnn", ignore=shutil.ignore_patterns("__pycache__", *left_out))
    return folder / "fastrnn"


def imported(where: Path, before: str = "", **environment: str) -> dict:
    """What PROGRAM says of the package in a folder or an archive; ``before`` is run before the import."""
    program = PROGRAM.format(before="\n".join(f"    {line}" for line in before.splitlines()))
    done = subprocess.run(
        [sys.executable, "-c", program, str(where)],
        cwd=where.parent,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_without_kernels(found: dict, *words: str) -> None:
    """One warning, with the reason and where to look; the same reason wherever somebody asks."""
    assert not found["loaded"]
    assert found["kinds"] == ["RuntimeWarning"], found["said"]
    (said,) = found["said"]
    assert said.startswith("fastrnn's kernels are not loaded, torch's own layers run in their place: ")
    assert "python -m fastrnn info" in said
    assert found["where"] == ["<string>"]  # the line of the program that imports fastrnn
    for word in words:
        assert word in said
        assert word in found["why"]
        assert word in found["explained"]
        assert word in found["refused"]
    assert found["refused"].startswith("backend='fused': fastrnn's kernels are not loaded")
    assert found["cases"] == 11


def compiled(source: str, to: Path, *flags: str) -> None:
    compiler = cxx("c++")
    if not is_installed(compiler):
        pytest.skip("an installed package on a machine without a compiler")
    command = [*compiler, "-x", "c++", "-shared", "-fPIC", "-", "-o", to, *flags]
    subprocess.run(command, input=source, text=True, check=True)
