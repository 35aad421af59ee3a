"""What a person sees on the terminal: plain tables, cut to the window's width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """Lines of a table: columns as wide as their widest cell, numbers to the right, the last column cut to fit.

    Args:
        header: the columns' names; a table without rows has only these.
        rows: as many cells each as ``header``.
        width: of a line; None is the terminal's, and no limit where the output is no terminal.
    """
    limit = width if width is not None else shutil.get_terminal_size((10_000, 24)).columns
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]
    for cells in [header, *rows]:
        padded = [
            cell.rjust(size) if to_right else cell.ljust(size)
            for cell, size, to_right in zip(cells, widths, right, strict=True)
        ]
        yield "  ".join(padded).rstrip()[:limit]


def _is_number(cell: str) -> bool:
    return cell == "" or cell.replace(",", "").replace(".", "", 1).lstrip("-+").rstrip("%").isdigit()
