"""Places: a cell of a table as people are shown it."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Place:
    """A cell as an example. row: from 0, without the header. value: the cell as text. What is not known is None."""

    file: str | None = None
    row: int | None = None
    column: str | None = None
    value: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        where = [] if self.file is None else [self.file]
        where += [] if self.row is None else [f"row {self.row}"]
        parts = [" ".join(where)] if where else []
        if self.column is not None:
            parts.append(self.column if self.value is None else f"{self.column} = {shown(self.value)}")
        parts += [] if self.expected is None else [f"expected {self.expected}"]
        return ", ".join(parts)


def shown(text: str) -> str:
    """A text of the source in quotes, cut short."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")
