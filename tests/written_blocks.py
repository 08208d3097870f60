"""
Blocks of code in pages, and what tests are told about them by comments that readers do not see.

A comment before a block begins with the word ``test``; then, one a line: ``replace: OLD -> NEW`` (any number of times: what
takes long is made short), ``file: NAME`` (the block is written to that file), ``skip: REASON`` (it cannot be run), or
``before:``, after which all lines are Python that runs first, for names which the page leaves to its reader.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MARKED = re.compile(rf"(?:^<!-- test\s(?P<told>(?:(?!-->).)*)-->\n)?{BLOCK.pattern}", re.DOTALL | re.MULTILINE)
# Instead of a thousand steps of training, or more; enough for some updates behind a hundred steps of warming up.
MAX_STEPS = 110


@dataclass
class Block:
    """A block as it is written, and what a test is told about it."""

    language: str
    code: str
    line: int
    replacements: list[tuple[str, str]] = field(default_factory=list)
    before: str = ""
    file: str = ""
    skip: str = ""

    def shortened(self) -> str:
        """The code as tests run it."""
        code = self.code
        for old, new in self.replacements:
            assert old in code, f"line {self.line}: there is no {old!r} to replace"
            code = code.replace(old, new)
        return re.sub(r"\.learn\((\d[\d_]{3,})", f".learn({MAX_STEPS}", code)


def tell(block: Block, told: str) -> None:
    """What a comment says about a block is put into it."""
    told, _, block.before = told.partition("before:\n")
    for line in filter(None, map(str.strip, told.splitlines())):
        word, _, value = line.partition(": ")
        assert word in ("replace", "file", "skip"), f"line {block.line}: {word!r} is none of replace, file, skip, before"
        if word == "replace":
            old, arrow, new = value.partition(" -> ")
            assert arrow, f"line {block.line}: {line!r} lacks an arrow"
            block.replacements.append((old, new))
        else:
            setattr(block, word, value)


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, blocks = page.read_text(), []
    for match in MARKED.finditer(text):
        told, language, code = match.groups()
        block = Block(language, code, text.count("\n", 0, match.start(2)) + 1)
        tell(block, told or "")
        blocks.append(block)
    return blocks
