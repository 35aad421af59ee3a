"""Thresholds: how many rows may be refused, and the error that says which ones were, with an example of each reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema, TableName
from pipelines.tables.rejects.checks import REJECTS
from pipelines.tables.rejects.place import Place
from pipelines.tables.rejects.remedies import remedy

_PLACE = ("file", "row", "column", "value", "expected")


@dataclass(frozen=True)
class TableCounts:
    """Rows read and rows rejected by reason, of one table, and an example of each reason."""

    rows: int
    rejects: dict[str, int]
    examples: Mapping[str, Place] = field(default_factory=dict)

    @property
    def rejected(self) -> int:
        """Rows rejected for any reason."""
        return sum(self.rejects.values())


def examples_of(rejects: pa.Table) -> dict[str, Place]:
    """The first reject of each reason, by reason; one with its cell where there is one."""
    found: dict[str, Place] = {}
    for reason in dict.fromkeys(rejects["reason"].unique().to_pylist()):
        own = rejects.filter(pc.equal(rejects["reason"], reason)).slice(0, 1).to_pylist()[0]
        found[reason] = Place(**{name: own[name] for name in _PLACE})
    return found


def examples_in(folder: Path) -> dict[tuple[TableName, str], Place]:
    """The first reject of each table and reason among the files of ``rejects/``."""
    found: dict[tuple[TableName, str], Place] = {}
    for path in sorted(folder.glob("*.parquet")):
        rejects = pq.ParquetFile(path).read(columns=[name for name in REJECTS.names if name != "record"])
        for table in rejects["table"].unique().to_pylist():
            own = examples_of(rejects.filter(pc.equal(rejects["table"], table)))
            found = {**{(table, reason): place for reason, place in own.items()}, **found}
    return found


def enforce_thresholds(counts: Mapping[TableName, TableCounts], schema: DatasetSchema) -> None:
    """Checks each table's reject rates against the schema's.

    ``max_rate`` is looked up by the whole reason (``range:quantity``), then by its rule (``range``); a reason that
    has a rate of its own does not count towards ``max_reject_rate``.

    Raises:
        SchemaError: a rate is above its threshold; the message has both, each reason with its count and an example, and
            what to write in the TOML.
    """
    validation = schema.validation
    for table, count in counts.items():
        rest = 0
        for reason, rejected in sorted(count.rejects.items()):
            limit = validation.max_rate.get(reason, validation.max_rate.get(reason.split(":")[0]))
            if limit is None:
                rest += rejected
            elif rejected > limit * count.rows:
                raise _error(schema, table, count, f"validation.max_rate.{reason}", rejected, limit)
        if rest > validation.max_reject_rate * count.rows:
            limit = validation.max_reject_rate
            raise _error(schema, table, count, "validation.max_reject_rate", rest, limit)


def _error(
    schema: DatasetSchema, table: TableName, count: TableCounts, setting: str, rejected: int, limit: float
) -> SchemaError:
    reasons = sorted(count.rejects, key=lambda reason: (-count.rejects[reason], reason))
    whole = next((reason for reason in reasons if _is_whole_column(reason, count)), None)
    lines = [_line(reason, count.rejects[reason], count.examples.get(reason)) for reason in reasons]
    remedies = [remedy(schema, table, reason, count.examples.get(reason)) for reason in reasons]
    advice = list(dict.fromkeys(one for one in remedies if one is not None))
    if whole is not None:
        column = whole.split(":", 1)[1]
        example = count.examples.get(whole, Place())
        head = f"tables.{table}: no cell of column {column!r} is {example.expected or 'of its type'}."
    else:
        head = (
            f"tables.{table}: {rejected:,} of {count.rows:,} rows rejected ({rejected / max(count.rows, 1):.2%}), "
            f"{setting} is {limit:.2%}."
        )
    return SchemaError("\n".join([head, *lines, *(advice or ["Correct the table, or raise the rate."])]))


def _is_whole_column(reason: str, count: TableCounts) -> bool:
    """Whether a column's cells are all of a wrong type, apart from rows that were refused for something else."""
    others = count.rejected - count.rejects[reason]
    return reason.startswith("type:") and count.rows > 0 and count.rejects[reason] >= count.rows - others > others


def _line(reason: str, number: int, example: Place | None) -> str:
    text = "" if example is None else f", such as {example}"
    return f"  {reason} {number:,}{text}"
