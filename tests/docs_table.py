"""Writes a measured table into a page of the docs, between two comments that name it."""

from collections.abc import Sequence
from pathlib import Path


def write_table(page: Path, name: str, lines: Sequence[str]) -> None:
    """Prints lines, and puts them in the place of those that stand there."""
    begin, end = f"<!-- {name}: written by `make drop-in` -->", f"<!-- {name}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin + "\n")
    _, after = rest.split(end)
    text = "\n".join(lines)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
    print(text)
