"""The pages in docs/, and what they are made of: every ```python block runs, in the order of the page; links
lead somewhere; commands are there; every public name has a docstring and a place in the reference."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from selection import thorough
from torch import distributed, nn

import fastrnn
import fastrnn.compat.sru
import fastrnn.models
from fastrnn import cli, patch

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
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
    "index.md": lambda: {},
    "deploying.md": lambda: {},
    "start.md": lambda: {},
    "lengths.md": lambda: {},
    "models.md": lambda: {},
    "recipes.md": lambda: {},
    "runtime.md": lambda: {},
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


#: What a reader may open, with its links.
TEXTS = (
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(p.relative_to(ROOT).as_posix() for p in sorted(DOCS.rglob("*.md"))),
)
#: Whose public names are documented.
MODULES = (
    fastrnn,
    fastrnn.functional,
    fastrnn.reference,
    fastrnn.runtime,
    fastrnn.models,
    fastrnn.compat,
    fastrnn.compat.sru,
)


def test_every_page_with_code_is_run():
    """Else a page's examples would be right for as long as nobody changes anything."""
    with_code = {page.name for page in DOCS.glob("*.md") if "```python" in page.read_text()}
    assert with_code == {*PAGES, "export.md"}


def test_readme_runs(tmp_path, monkeypatch):
    """The README's blocks, in its order, with an x that fits."""
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert blocks
    names = {"x": torch.randn(3, 5, 256), "fastrnn": fastrnn, "torch": torch}
    for block in blocks:
        exec(block, names)


#: As the command line itself knows them.
COMMANDS = tuple(next(a.choices for a in cli.parser()._actions if a.dest == "command"))


def anchors(page: Path) -> set[str]:
    """The names that a page's headings have as links' ends, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS)
def test_links_lead_somewhere(text):
    """A file of the repository, and where it is said a heading in it."""
    page = ROOT / text
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S))
    for link in links:
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def commands(page: Path) -> list[list[str]]:
    """The words of every line of code that a page shows, without comments."""
    text = page.read_text()
    lines = "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    lines += re.findall(r"`([^`\n]+)`", text)
    found = []
    for line in lines:
        line = re.split(r"(?:^|\s)#", line.strip())[0]
        try:
            found.append(shlex.split(line))
        except ValueError:  # an apostrophe of prose's
            continue
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_commands_are_there(text):
    """Targets of make that a page names exist, and fastrnn's own commands take the options that it shows."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(ROOT / text):
        if words[:1] == ["make"]:
            asked = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
            assert set(asked) <= targets, words
        if words[:3] == ["python", "-m", "fastrnn"] and len(words) > 3 and "{" not in words[3]:
            cli.parser().parse_args(words[3:])


def test_every_command_is_in_the_reference():
    """With its help, which is the docstring of its module."""
    page = (DOCS / "api" / "command-line.md").read_text()
    for name in COMMANDS:
        assert f"automodule:: fastrnn.cli.{name}\n" in page, name
        assert f"python -m fastrnn {name} " in page, name


def _explained() -> dict:
    return {"module": fastrnn.GRU(4, 5), "x": torch.randn(3, 2, 4)}


def _streamed() -> dict:
    return {"lstm": fastrnn.LSTM(4, 5), "source": torch.randn(6, 2, 4)}


def _onnx() -> dict:
    helper = pytest.importorskip("onnx").helper
    made = {name: torch.randn(1, 12, size).numpy() for name, size in (("W", 4), ("R", 3))}
    node = helper.make_node("LSTM", ["X", *made], ["Y", "Y_h", "Y_c"], hidden_size=3)
    kind = 1  # float32
    known = [helper.make_tensor(name, kind, of.shape, of.flatten()) for name, of in made.items()]
    value = helper.make_tensor_value_info
    ends = [value(name, kind, None) for name in ("Y", "Y_h", "Y_c")]
    graph = helper.make_graph([node], "one", [value("X", kind, [5, 2, 4])], ends, known)
    Path("model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return {"X": torch.randn(5, 2, 4)}


#: Docstrings with an example, and what each takes for granted.
EXAMPLES = {"explain": _explained, "Streamer": _streamed, "from_onnx": _onnx}


def example(name: str) -> str:
    """The code in a docstring of fastrnn's: what is indented after two colons."""
    doc = inspect.getdoc(getattr(fastrnn, name)) or ""
    found = re.search(r"^(?!\s*\.\. ).*::\n\n((?:    .*\n|\n)+)", doc + "\n", re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_a_docstring(name, tmp_path, monkeypatch):
    """It runs as it stands."""
    monkeypatch.chdir(tmp_path)
    names = {"fastrnn": fastrnn, **EXAMPLES[name]()}
    exec(example(name), names)


def test_every_docstring_with_an_example_is_run():
    public = {name for name in fastrnn.__all__ if callable(getattr(fastrnn, name))}
    assert {name for name in public if example(name)} == {*EXAMPLES}


def in_reference(name: str) -> bool:
    """Whether a page of docs/api has a name, itself or as a member of its module."""
    pages = "\n".join(page.read_text() for page in (DOCS / "api").iterdir())
    module, _, short = name.rpartition(".")
    whole = re.search(rf"automodule:: {re.escape(module)}\n   :members:$", pages, re.MULTILINE)
    here = rf"currentmodule:: {re.escape(module)}\n(?:(?!currentmodule).)*?:: {short}$"
    return bool(whole or re.search(here, pages, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_documented(module):
    """A docstring, for a class also of every method that it defines, and a place in the reference."""
    assert inspect.getdoc(module)
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.ismodule(thing) or not callable(thing):
            continue
        full = f"{module.__name__}.{name}"
        assert thing.__doc__, full
        assert in_reference(full) or in_reference(f"fastrnn.{name}"), full
        for method, found in vars(thing).items() if inspect.isclass(thing) else ():
            if not method.startswith("_") and (
                callable(found) or isinstance(found, (property, classmethod, staticmethod))
            ):
                assert inspect.getdoc(getattr(thing, method)), f"{full}.{method}"


def test_figures_are_those_of_the_committed_results():
    """The README's table and picture and docs/performance.md's tables: `make readme-figures` writes them."""
    command = [sys.executable, ROOT / "tools" / "figures.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_figure_that_drifted_is_seen(tmp_path):
    """The check itself, on a copy of what it reads with one digit changed."""
    for name in ("README.md", "tools", "docs", "benchmarks/results"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copied = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copied(ROOT / name, tmp_path / name)
    command = [sys.executable, tmp_path / "tools" / "figures.py", "--check"]
    assert subprocess.run(command).returncode == 0
    readme = tmp_path / "README.md"
    readme.write_text(re.sub(r"(\| LSTM \| \d\.)\d", r"\g<1>X", readme.read_text(), count=1))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "not as the results say: README.md\n"


BEGIN, END = "<!-- figures: readme -->\n", "<!-- end of figures -->\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (BEGIN, ""),
        (END, ""),
        (BEGIN, BEGIN.replace("readme", "nobody's")),
        (BEGIN, BEGIN.replace("readme", "performance")),
        (BEGIN, BEGIN.replace(" -->", "-->")),
        (BEGIN, f"See {BEGIN}"),
        (END, f"{END}{BEGIN}{END}"),
        (BEGIN, END + BEGIN),
        (re.compile(f"{BEGIN}.*?{END}", re.DOTALL), ""),
        (re.compile(f"{BEGIN}(.*?){END}", re.DOTALL), rf"{END}\1{BEGIN}"),
    ],
)
def test_figures_that_nobody_finds_are_seen(old, new, tmp_path, monkeypatch):
    """A page whose marks are not there, once and in order, has nothing that would be checked: one line says
    which page, and nothing is written."""
    figures = runpy.run_path(str(ROOT / "tools" / "figures.py"))
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text()
    changed = old.sub(new, text) if isinstance(old, re.Pattern) else text.replace(old, new)
    assert changed != text
    names = figures["main"].__globals__
    monkeypatch.setitem(names, "ROOT", tmp_path)
    monkeypatch.setitem(names, "PICTURE", tmp_path / "ratios.svg")
    monkeypatch.setitem(names, "PAGES", {page: ("readme", figures["readme"])})
    for arguments in ([], ["--check"]):
        page.write_text(changed)
        monkeypatch.setattr(sys, "argv", ["figures.py", *arguments])
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert figures["main"]() == 1
        assert re.fullmatch("README.md: expected <!-- figures: readme --> .*\n", said.getvalue())
        assert [page.read_text() for page in tmp_path.iterdir()] == [changed]


def test_every_page_has_its_place():
    """In the tables of contents, which is how a reader finds it."""
    index = (DOCS / "index.md").read_text()
    entries = [
        re.sub(r".*<(.+)>", r"\1", line.strip())
        for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)
        for line in block.splitlines()
        if line.strip() and not line.startswith(":")
    ]
    for page in DOCS.glob("*.md"):
        if page.name != "index.md":
            assert any(Path(page.stem).match(entry) for entry in entries), page.name
    assert "api/index" in entries
    listed = (DOCS / "api" / "index.md").read_text()
    for page in (DOCS / "api").iterdir():
        assert page.stem == "index" or f"\n{page.stem}\n" in listed, page.name


@pytest.mark.parametrize("repository", ["", "https://example.org/fastrnn/blob/main"])
def test_links_of_the_sites_pages(repository, monkeypatch):
    """What Sphinx gets of each page, the repository's changelog among them: its links lead to pages of the
    site, to the web, or are names of files that nobody said where to browse."""
    monkeypatch.setenv("FASTRNN_REPOSITORY", repository)
    monkeypatch.setattr(sys, "path", list(sys.path))
    conf = runpy.run_path(str(DOCS / "conf.py"))
    for page in DOCS.rglob("*.md"):
        source = [page.read_text()]
        conf["as_of_this_site"](None, page.relative_to(DOCS).with_suffix("").as_posix(), source)
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", source[0], flags=re.M | re.S)):
            if not link.startswith(("https://", "http://", "#")):
                path = (page.parent / link.partition("#")[0]).resolve()
                assert path.is_file(), (page.name, link)
                assert path.is_relative_to(DOCS), (page.name, link)
    changelog = ["changelog"]
    conf["as_of_this_site"](None, "changelog", changelog)
    for path in re.findall(r"\]\((?!https?:|#|docs/)([^)#]+)", (ROOT / "CHANGELOG.md").read_text()):
        assert (f"]({repository}/{path}" if repository else f"`{path}`") in changelog[0]


@thorough
@pytest.mark.skipif(importlib.util.find_spec("furo") is None, reason="requirements/docs.txt is not installed")
def test_site_builds_without_a_warning(tmp_path):
    """`make docs`: every name, link and docstring is resolved; formulas are MathML, and need no script."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "trees", DOCS]
    done = subprocess.run([*command, tmp_path / "site"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = (tmp_path / "site" / "cells.html").read_text()
    assert "<mtable" in cells
    commands = (tmp_path / "site" / "api" / "command-line.html").read_text()
    shown = re.sub("<[^>]+>", "", commands)  # without the colours of code
    assert "\npython -m fastrnn bench --quick\npython -m fastrnn bench --cell" in shown
    layers = re.sub("<[^>]+>", "", (tmp_path / "site" / "api" / "layers.html").read_text())
    # Of docstrings that have two of them in a line.
    for entry in ("input_size -- I,", "hidden_size -- H,", "save -- ", "backend -- "):
        assert f"\n{entry}" in re.sub(r"\s*\n\s*", "\n", layers), entry
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page.read_text()), page.name
