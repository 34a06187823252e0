"""How `make docs` builds these pages: Sphinx, the furo theme, Markdown, and the docstrings as the reference.

Warnings are errors there: a link that leads nowhere, a name that is not found, a docstring that does not
parse. Formulas become MathML, which browsers draw themselves: a page asks nobody for a script or a font.
"""

from __future__ import annotations

import builtins
import inspect
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import fastrnn  # noqa: E402

project = "fastrnn"
author = "the fastrnn contributors"
copyright = f"2026, {author}"
version = release = fastrnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
html_theme = "furo"
html_title = f"fastrnn {release}"
html_static_path = ["_static"]
html_css_files = ["fastrnn.css"]
html_copy_source = False
html_show_sourcelink = False
smartquotes_action = "qe"  # a dash is as it was typed: --json is an option
pygments_style = "friendly"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes, dtypes and errors are in the words
autodoc_inherit_docstrings = True
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_use_ivar = True

#: What the docstrings mention and these pages do not hold: torch's documentation is another site.
suppress_warnings = ["ref.python"]


def signature_in(docstring: str) -> tuple[str, str]:
    """The signature with which a class's docstring begins, over as many lines as it has, and the rest."""
    found = re.match(r"\w+(?=\()", docstring)
    if not found:
        return "", docstring
    depth = 0
    for at in range(found.end(), len(docstring)):
        depth += {"(": 1, ")": -1}.get(docstring[at], 0)
        if depth == 0:
            return " ".join(docstring[found.end() : at + 1].split()), docstring[at + 1 :].lstrip("\n")
    return "", docstring


def show_signature(app, what, name, obj, options, signature, returns):
    if what != "class":
        return None
    written, _ = signature_in(obj.__doc__ or "")
    return (written, returns) if written else None


def without_signature(app, what, name, obj, options, lines):
    if what != "class":
        return
    text = "\n".join(lines)
    written, rest = signature_in(text)
    if written:
        lines[:] = rest.split("\n")


#: Where docstrings list names, and what stands between one of them and the next on its line.
LISTS = ("Args:", "Attributes:", "Raises:", "Warns:")
NEXT_NAME = re.compile(r"(?<=[.;]) +(?=((?:[A-Za-z_]\w*, )*[A-Za-z_]\w*): )")
#: "input_size: I." is no list of which I is the first.
NO_NUMBER = re.compile(r"^( {4}[\w, ]+: )(?=\w\.(?: |$))")


def names_of(obj) -> set[str]:
    """What a docstring may list: the arguments, as written and as Python knows them, attributes, errors."""
    try:
        known = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        known = set()
    written, _ = signature_in(inspect.getdoc(obj) or "")
    errors = {name for name in dir(builtins) if name.endswith(("Error", "Warning"))}
    return known | errors | set(re.findall(r"[a-z_]\w*", written)) | set(getattr(obj, "__annotations__", ()))


def a_line_for_each_name(app, what, name, obj, options, lines):
    """A docstring may put two names on a line, to be short; the page has an entry for each."""
    known, listed, made = names_of(obj), False, []
    for line in lines:
        if line in LISTS:
            listed = True
        elif line and not line.startswith(" "):
            listed = False
        parts, start = [], 0
        for found in NEXT_NAME.finditer(line) if listed else ():
            if set(found[1].split(", ")) <= known:
                parts.append(line[start : found.start()])
                start = found.end()
        first, *others = [*parts, line[start:]]
        entries = [first, *("    " + other for other in others)]
        made += [NO_NUMBER.sub(r"\1\\", entry) if listed else entry for entry in entries]
    lines[:] = made


def commands_stand_as_typed(app, what, name, obj, options, lines):
    """The examples at the end of a command's help are blocks of code."""
    if not name.startswith("fastrnn.cli."):
        return
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("  ") and not (at and lines[at - 1].startswith("  ")):
            lines[at:at] = ["::", ""]


#: Where the repository can be browsed, for links to what is in it and not in these pages.
REPOSITORY = os.environ.get("FASTRNN_REPOSITORY", "").rstrip("/")


def as_of_this_site(app, docname, source):
    """The changelog is the repository's own; links to its other files lead to where it can be browsed, or
    where nobody said where that is, name them."""
    if docname == "changelog":
        text = re.sub(r"\]\((?!https?:|#)", "](../", (ROOT / "CHANGELOG.md").read_text())
        source[0] = text.replace("](../docs/", "](")

    def outside(match):
        text, path, anchor = match.groups()
        if REPOSITORY:
            return f"[{text}]({REPOSITORY}/{path}{anchor or ''})"
        name = path.removesuffix("/")
        return f"`{name}` in the repository" if text in (name, Path(name).name) else f"{text} (`{name}`)"

    source[0] = re.sub(r"\[([^\]]+)\]\(\.\./([^)#]+)(#[^)]*)?\)", outside, source[0])


def visit_math(self, node):
    """A formula of a line, or of its own lines, as MathML."""
    import latex2mathml.converter
    from docutils import nodes

    block = not isinstance(node, nodes.math)
    text = node.astext()
    if block and "\\\\" in text and "\\begin" not in text:
        text = rf"\begin{{split}}{text}\end{{split}}"
    made = latex2mathml.converter.convert(text, display="block" if block else "inline")
    self.body.append(f'<div class="formula">{made}</div>' if block else made)
    raise nodes.SkipNode


def setup(app):
    app.connect("source-read", as_of_this_site)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("autodoc-process-docstring", without_signature)
    app.connect("autodoc-process-docstring", commands_stand_as_typed)
    app.connect("autodoc-process-docstring", a_line_for_each_name, priority=400)  # before napoleon reads it
    app.add_node(_math(), html=(visit_math, None), override=True)
    app.add_node(_math_block(), html=(visit_math, None), override=True)
    return {"parallel_read_safe": True}


def _math():
    from docutils import nodes

    return nodes.math


def _math_block():
    from docutils import nodes

    return nodes.math_block
