"""Reads the fenced code blocks of a Markdown page."""

import re
import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    language: str
    source: str


def read_blocks(text: str) -> dict[str, Block]:
    """A page's fenced blocks, by the heading or the item of a list that they stand under."""
    blocks: dict[str, Block] = {}
    title = ""
    lines = iter(text.splitlines())
    for line in lines:
        if heading := re.match(r"#+ (.+)|\d+\. \*\*(.+)\*\*", line):
            title = heading[1] or heading[2]
        elif fence := re.match(r" *```(\w+)", line):
            source = []
            for inner in lines:
                if inner.strip() == "```":
                    break
                source.append(inner)
            assert title not in blocks, f"two blocks under {title!r}"
            blocks[title] = Block(fence[1], textwrap.dedent("\n".join(source)) + "\n")
    return blocks
