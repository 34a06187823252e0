"""A document of headings, paragraphs, tables and images, written as Markdown."""

from __future__ import annotations

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
    """Markdown that somebody wrote by hand."""

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
