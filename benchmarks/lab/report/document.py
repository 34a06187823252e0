"""A document of headings, paragraphs, tables and images, written as Markdown or as one HTML page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Heading:
    text: str
    level: int = 2


@dataclass
class Text:
    """A paragraph. `code` and **bold** as in Markdown."""

    text: str


@dataclass
class Bullets:
    items: Sequence[str]


@dataclass
class Table:
    """Rows of cells: names in the first column, numbers in the others. Cells know `code` and **bold**."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Image:
    """A PNG beside the document, and what it shows."""

    path: Path
    caption: str


@dataclass
class Verbatim:
    """Markdown that somebody wrote by hand: as it is in Markdown, paragraphs and bullets in HTML."""

    text: str


Block = Heading | Text | Bullets | Table | Image | Verbatim


@dataclass
class Document:
    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks.extend(blocks)

    def to_markdown(self) -> str:
        return f"# {self.title}\n\n" + "\n\n".join(_markdown(b) for b in self.blocks) + "\n"

    def to_html(self) -> str:
        body = "\n".join(_html(b) for b in self.blocks)
        title = html.escape(self.title)
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + block.text
    if isinstance(block, (Text, Verbatim)):
        return block.text.strip()
    if isinstance(block, Bullets):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Image):
        return f"![{block.caption}]({block.path.name})"

    def line(cells):
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    rule = ["---"] + ["---:"] * (len(block.columns) - 1)
    return "\n".join([line(block.columns), line(rule), *(line(row) for row in block.rows)])


def _inline(text: str) -> str:
    escaped = html.escape(text, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", escaped)


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_inline(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{_inline(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Verbatim):
        return "\n".join(_html(b) for b in _parse(block.text))
    if isinstance(block, Image):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = html.escape(block.caption)
        return (
            f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f"<th>{_inline(c)}</th>" for c in block.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>\n" for row in block.rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'


def _parse(text: str) -> list[Block]:
    """Headings, bullets and paragraphs of hand-written Markdown."""
    blocks: list[Block] = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = part.splitlines()
        if match := re.match(r"(#+)\s+(.*)", lines[0]):
            blocks.append(Heading(match.group(2), len(match.group(1))))
            lines = lines[1:]
        if lines and lines[0].lstrip().startswith("- "):
            items = re.split(r"^\s*- ", "\n".join(lines), flags=re.MULTILINE)[1:]
            blocks.append(Bullets([" ".join(item.split()) for item in items]))
        elif lines:
            blocks.append(Text(" ".join(lines)))
    return blocks


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 1180px;
       margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d8dee4; padding-bottom: .2rem; }
h3 { margin-top: 1.8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid #e4e8ec; text-align: right; white-space: nowrap; }
th { background: #f4f6f8; font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: #fafbfc; }
code { background: #f1f3f5; padding: .05rem .3rem; border-radius: 3px; }
figure { margin: 1.4rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: #566573; font-size: .9rem; }
"""
