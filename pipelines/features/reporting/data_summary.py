"""The summary of a data set, for people and machines: counts, joins, rejects with examples, drift.

``towerline features`` and ``refresh`` show it at their end, ``towerline check`` before anything is written. Knows no
artifact: whoever has the figures makes a ``DataSummary``; ``lines`` renders it, ``as_facts`` is what ``--json`` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.contracts.schema import Side, SplitName, TableName
from pipelines.tables.rejects.multi_line import MultiLineCells
from pipelines.tables.rejects.place import Place, shown

_NAME_WIDTH = 18
_COUNT_WIDTH = 13


@dataclass(frozen=True)
class RejectCount:
    """Rows of a table rejected for one reason, and one of them."""

    table: TableName
    reason: str
    rows: int
    example: Place | None = None


@dataclass(frozen=True)
class UnknownIds:
    """Events whose user (or item) is in no table.

    events: how many; an event whose item and user are both unknown counts as unknown item. example: such an id.
    known: an id of the table, one that differs in its spelling alone where there is one.
    """

    events: int
    example: str | None = None
    known: str | None = None


@dataclass(frozen=True)
class DataSummary:
    """What a data set has.

    Args:
        users: users with events, or of the users table.
        items: items of the catalogue.
        events: accepted events by split.
        new_users: users with test events that have neither a train nor a valid event.
        new_items: items with test events that have neither a train nor a valid event.
        rows: rows read by table.
        rejects: rejected rows by table and reason.
        unknown: by side; a side without a table of its own has no entry, since nothing is unknown there.
        joined: share of events whose user and item are in their tables; None without such tables.
        multi_line: cells over several lines, by table and column.
        drift: differences from the previous run beyond the limits, one line each.
        windows: the dates of rolling windows; None where the windows do not roll.
        later: events after the end of the windows, or from ``test_until`` on; they are not used.
        sample: what was read instead of all rows, for example ``the first 5,000,000 events``; figures are estimates
            then. None where all was read.
    """

    users: int
    items: int
    events: Mapping[SplitName, int]
    new_users: int
    new_items: int
    rows: Mapping[TableName, int]
    rejects: Sequence[RejectCount] = ()
    unknown: Mapping[Side, UnknownIds] = field(default_factory=dict)
    joined: float | None = None
    multi_line: Sequence[MultiLineCells] = ()
    drift: Sequence[str] = ()
    windows: str | None = None
    later: int = 0
    sample: str | None = None

    def as_facts(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def lines(summary: DataSummary) -> list[str]:
    """The summary as lines of text; figures of a sample begin with ``~``."""
    return list(_lines(summary))


def _lines(summary: DataSummary) -> Iterator[str]:
    about = "" if summary.sample is None else "~"
    if summary.sample is not None:
        yield f"estimated from {summary.sample}"
    yield _line("users", f"{about}{summary.users:,}", f"{about}{summary.new_users:,} new in test")
    yield _line("items", f"{about}{summary.items:,}", f"{about}{summary.new_items:,} new in test")
    splits = ", ".join(f"{name} {about}{number:,}" for name, number in summary.events.items())
    yield _line("events", f"{about}{sum(summary.events.values()):,}", splits)
    if summary.windows is not None:
        yield _line("windows", "", summary.windows)
    if summary.later:
        yield _line("later events", f"{about}{summary.later:,}", "not used")
    if summary.joined is not None:
        yield _line("joined", f"{about}{summary.joined:.2%}", "events whose user and item are in their tables")
    for side, unknown in summary.unknown.items():
        if unknown.events:
            yield _line(f"unknown {side}s", f"{about}{unknown.events:,}", f"events{_ids(side, unknown)}")
    for table, rows in summary.rows.items():
        yield from _rejects(table, rows, [one for one in summary.rejects if one.table == table], about)
    for cells in summary.multi_line:
        yield _line("multi-line cells", f"{about}{cells.cells:,}", _multi_line(cells))
    for line in summary.drift:
        yield _line("drift", "", line)


def _rejects(table: TableName, rows: int, rejects: Sequence[RejectCount], about: str) -> Iterator[str]:
    total = sum(one.rows for one in rejects)
    share = f" ({total / rows:.2%})" if rows else ""
    yield _line(f"rejected {table}", f"{about}{total:,}", f"of {about}{rows:,} rows{share if total else ''}")
    for one in sorted(rejects, key=lambda one: (-one.rows, one.reason)):
        yield _line(f"  {one.reason}", f"{about}{one.rows:,}", "" if one.example is None else str(one.example))


def _ids(side: Side, unknown: UnknownIds) -> str:
    found = "" if unknown.example is None else f", such as {shown(unknown.example)}"
    return found + ("" if unknown.known is None else f" (tables.{side}s has {shown(unknown.known)})")


def _multi_line(cells: MultiLineCells) -> str:
    where = "" if cells.file is None else f" of {cells.file}"
    row = "" if cells.row is None else f", row {cells.row}"
    return f"in column {cells.column!r}{where}; the largest has {cells.lines:,} lines{row}"


def _line(name: str, count: str, rest: str) -> str:
    return f"{name:<{_NAME_WIDTH}} {count:>{_COUNT_WIDTH}}  {rest}".rstrip()
