"""The pages in docs/: every ```python block runs, in the order of the page."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import fastrnn
from fastrnn import patch

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class _Trainer:
    """A framework of the reader's, for swapping-in.md."""

    def fit(self, model: nn.Module) -> None:
        model(torch.randn(3, 2, 4))[0].sum().backward()


def _streaming() -> dict:
    lstm = fastrnn.LSTM(4, 5)
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    lstm(torch.randn(3, 4))[0].sum().backward()
    own = {"copy": copy, "fastrnn": fastrnn, "torch": torch}
    return {"lstm": lstm, "optimizer": optimizer, "microphone": torch.randn(6, 2, 4), **own}


#: The pages, and what each takes for granted. export.md is run by test_export.py.
PAGES = {
    "models.md": lambda: {},
    "recipes.md": lambda: {},
    "streaming.md": _streaming,
    "torchscript.md": lambda: {},
    "variants.md": lambda: {},
    "swapping-in.md": lambda: {
        "fastrnn": fastrnn,
        "model": nn.LSTM(4, 5),
        "trainer": _Trainer(),
    },
}


@pytest.fixture
def _one_process():
    """A process group of one, as torchrun --nproc-per-node 1 makes it."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    """A page's code is right where it stands: names exist, and its own assertions hold."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    names = {"__name__": "docs", **PAGES[page]()}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 0
    try:
        for block in blocks:
            # Empty lines in front give tracebacks the page's line numbers.
            lines = "\n" * text.count("\n", 0, block.start(1))
            exec(compile(lines + block[1], str(DOCS / page), "exec"), names)
        assert patch._users == 0
    finally:
        torch._dynamo.reset()
        torch.use_deterministic_algorithms(False)
