"""Validation: which rows of a table are accepted, and why the others are not.

Reads raw Arrow batches and the schema's rules; returns a mask and the rejects (table, file, row, reason, record).
A reason is ``rule:column``: null, type, range, length, allowed, unknown, late, malformed, dimension, nan, zero,
duplicate. The first rule that a row breaks is its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import as_numbers, one_array
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import ColumnRule, Validation
from pipelines.tables.formats.batches import TableBatch

REJECTS = pa.schema(
    [
        ("table", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("record", pa.string()),
    ]
)
# Maximum number of rejects per batch that carry their whole record; all are counted and listed.
RECORDS_PER_BATCH = 1_000
_RECORD_CHARACTERS = 4_096
# An id longer than this is a mistake of the table (a shifted column, a whole line read as one cell).
MAX_ID_LENGTH = 1_024
_HIDDEN = -1


class Checks:
    """Collects what is wrong with the rows of one batch."""

    def __init__(self, rows: int) -> None:
        self._reasons: npt.NDArray[np.int16] = np.zeros(rows, np.int16)
        self._names: list[str] = []

    def reject(self, bad: Bools, reason: str) -> None:
        """Marks the rows of ``bad`` (``[rows] bool``) that no earlier rule has marked."""
        if not bad.any():
            return
        self._names.append(reason)
        self._reasons = np.where((self._reasons == 0) & bad, len(self._names), self._reasons).astype(np.int16)

    @property
    def accepted(self) -> Bools:
        """``[rows] bool``: rows that broke no rule."""
        return np.asarray(self._reasons == 0)

    def hide(self, rows: Bools) -> None:
        """Drops rows (``[rows] bool``) without a trace: neither accepted nor among the rejects."""
        if not rows.any():
            return
        self._reasons = np.where(rows, _HIDDEN, self._reasons).astype(np.int16)

    def rejects(self, batch: TableBatch, table: str) -> pa.Table:
        """The marked rows as a table of ``REJECTS``, in the order of the file."""
        if not self._names:
            return REJECTS.empty_table()
        rows = np.flatnonzero(self._reasons > 0)
        names = pa.array(["", *self._names])
        return pa.table(
            {
                "table": pa.repeat(table, len(rows)),
                "file": pa.repeat(batch.file, len(rows)),
                "row": batch.rows_of(rows),
                "reason": names.take(pa.array(self._reasons[rows])),
                "record": _records(batch.table, rows),
            },
            schema=REJECTS,
        )


def _records(raw: pa.Table, rows: npt.NDArray[np.int64]) -> pa.Array:
    kept = raw.take(pa.array(rows[:RECORDS_PER_BATCH]))
    columns = [_values(one_array(column)) for column in kept.columns]
    records = [dict(zip(kept.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    texts = [json.dumps(record, default=str, ensure_ascii=False)[:_RECORD_CHARACTERS] for record in records]
    return pa.array(texts + [None] * (len(rows) - len(texts)), pa.string())


def _values(column: pa.Array) -> list[object]:
    """The values as Python objects; a moment outside Python's calendar as the number in the table."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(column.type):  # A list or a struct of such moments.
            return [None] * len(column)
        return list(column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist())


def malformed_rejects(batch: TableBatch, table: str) -> pa.Table:
    """Rejects for lines that give no row (another number of cells than the header, no JSON object)."""
    lines = batch.malformed
    return pa.table(
        {
            "table": [table] * len(lines),
            "file": [batch.file] * len(lines),
            "row": [line.row for line in lines],
            "reason": [line.reason for line in lines],
            "record": [line.record for line in lines],
        },
        schema=REJECTS,
    )


def check_columns(checks: Checks, raw: pa.Table, rules: Mapping[str, ColumnRule]) -> None:
    """Applies the schema's rules, column by column in the order of the TOML."""
    for name, rule in rules.items():
        column = one_array(raw[name])
        null = np.asarray(column.is_null(), dtype=bool)
        if rule.nullable is False:
            checks.reject(null, f"null:{name}")
        if rule.min is not None or rule.max is not None:
            _check_range(checks, column, null, name, rule)
        if rule.max_length is not None:
            checks.reject(_lengths(column, name) > rule.max_length, f"length:{name}")
        if rule.allowed is not None:
            allowed = pc.is_in(_as_text(column, name), value_set=pa.array(rule.allowed, pa.string()))
            checks.reject(~np.asarray(allowed, dtype=bool) & ~null, f"allowed:{name}")


def _check_range(checks: Checks, column: pa.Array, null: Bools, name: str, rule: ColumnRule) -> None:
    converted = as_numbers(column)
    checks.reject(converted.wrong, f"type:{name}")
    numbers = np.asarray(converted.values.fill_null(np.nan), np.float64)
    with np.errstate(invalid="ignore"):
        outside = np.zeros(len(numbers), bool)
        if rule.min is not None:
            outside |= numbers < rule.min
        if rule.max is not None:
            outside |= numbers > rule.max
    checks.reject(outside & ~null, f"range:{name}")


def _lengths(column: pa.Array, name: str) -> npt.NDArray[np.int64]:
    if pa.types.is_nested(column.type):
        lengths = pc.list_value_length(column)
    else:
        lengths = pc.utf8_length(_as_text(column, name))
    return np.asarray(pc.fill_null(lengths, 0), np.int64)


def _as_text(column: pa.Array, name: str) -> pa.Array:
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
        raise SchemaError(
            f"validation.columns: column {name!r} of type {column.type} has no text to compare. Remove the rule."
        ) from err


@dataclass(frozen=True)
class TableCounts:
    """Rows read and rows rejected by reason, of one table."""

    rows: int
    rejects: dict[str, int]

    @property
    def rejected(self) -> int:
        """Rows rejected for any reason."""
        return sum(self.rejects.values())


def enforce_thresholds(counts: Mapping[str, TableCounts], validation: Validation) -> None:
    """Checks each table's reject rates against the schema's.

    ``max_rate`` is looked up by the whole reason (``range:quantity``), then by its rule (``range``); a reason that
    has a rate of its own does not count towards ``max_reject_rate``.

    Raises:
        SchemaError: a rate is above its threshold; the message has both, and the counts by reason.
    """
    for table, count in counts.items():
        rest = 0
        for reason, rejected in sorted(count.rejects.items()):
            limit = validation.max_rate.get(reason, validation.max_rate.get(reason.split(":")[0]))
            if limit is None:
                rest += rejected
            elif rejected > limit * count.rows:
                _fail(table, count, f"validation.max_rate.{reason}", rejected, limit)
        if rest > validation.max_reject_rate * count.rows:
            _fail(table, count, "validation.max_reject_rate", rest, validation.max_reject_rate)


def _fail(table: str, count: TableCounts, setting: str, rejected: int, limit: float) -> None:
    reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(count.rejects.items()))
    raise SchemaError(
        f"tables.{table}: {rejected} of {count.rows} rows rejected ({rejected / max(count.rows, 1):.2%}), "
        f"{setting} is {limit:.2%}. By reason: {reasons}. Correct the table, or raise the rate."
    )
