"""Moments as callers give them, brought to microseconds UTC by the one conversion of the pipelines.

Datetimes, dates, ISO text, NumPy, pandas and Arrow times. A moment without a zone is in the time zone that the TOML
declares for the events' time, or UTC. Integers are read in the unit that the TOML declares, and refused without one.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import EARLIEST_US, LATEST_US, convert, convert_value, utc_us
from pipelines.contracts.conversion.column_type import MOMENT, TIMESTAMP, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema

# The texts of most callers. They are read one by one, since to convert a column takes a tenth of a millisecond.
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ](?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)?", re.ASCII)


@dataclass(frozen=True)
class MomentReader:
    """Reads the moments of requests for one schema.

    kind: type of the events' time. column: its name in the events; None where events have no time.
    """

    kind: ColumnType
    column: str | None

    @classmethod
    def of(cls, schema: DatasetSchema) -> MomentReader:
        """The reader for a schema's events."""
        column = schema.tables.events.time
        return cls(TIMESTAMP if column is None else schema.column_types("events")[column], column)

    def one(self, value: object, what: str) -> int:
        """Microseconds UTC of a moment.

        Raises:
            SchemaError: it is no moment, or not from 1990 to 2100; ``what`` names the argument.
        """
        exact = self._exact(value)
        if exact is not None:
            return exact
        plain = value.as_py() if isinstance(value, pa.Scalar) else value
        if isinstance(plain, np.datetime64):
            plain = _datetime_of(plain)
        elif isinstance(plain, np.generic):
            plain = plain.item()
        try:
            us = convert_value(plain, self.kind, what)
        except SchemaError as err:
            self._refuse(plain, what, err)
        if not isinstance(us, int):
            self._refuse(value, what)
        return us

    def _exact(self, value: object) -> int | None:
        """A plain text or datetime of a known zone, from 1990 to 2100, without a detour; None for all else."""
        if type(value) is str and _ISO.fullmatch(value):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                return None
        if not isinstance(value, datetime.datetime):
            return None
        if value.tzinfo is None:
            if self.kind.timezone is not None or value != value:  # NaT of pandas.
                return None
            value = value.replace(tzinfo=datetime.UTC)
        us = utc_us(value)
        return us if EARLIEST_US <= us < LATEST_US else None

    def many(self, values: Any, what: str) -> Int64:
        """``[n] int64`` microseconds UTC. NumPy and Arrow times are read as they are, in a few microseconds.

        Raises:
            SchemaError: a value is no moment, or not from 1990 to 2100; ``what`` names the argument.
        """
        if not isinstance(values, list | tuple | np.ndarray | pa.Array | pa.ChunkedArray):
            values = np.asarray(values)
        if len(values) == 0:
            return np.zeros(0, np.int64)
        us = self._direct(values)
        # A NaT is the smallest integer.
        if us is not None and us.min() >= EARLIEST_US and us.max() < LATEST_US:
            return us
        column = _as_column(values)
        if column is None:
            return self._one_by_one(values, what)
        read = convert(column, self.kind)
        if read.null.any() or read.wrong.any():
            return self._one_by_one(values, what)
        return np.asarray(read.values.cast(pa.int64()), np.int64)

    def _direct(self, values: Any) -> Int64 | None:
        """Lists of plain texts and datetimes, Arrow's microseconds, NumPy's times where these are UTC; else None."""
        if isinstance(values, np.ndarray):
            if values.ndim == 1 and values.dtype.kind == "M" and self.kind.timezone is None:
                return values.astype("datetime64[us]").view(np.int64)
        elif isinstance(values, list):
            exact = [self._exact(value) for value in values]
            return None if None in exact else np.array(exact, np.int64)
        elif isinstance(values, pa.Array) and values.type == MOMENT and values.null_count == 0:
            return np.asarray(values.view(pa.int64()))
        return None

    def _one_by_one(self, values: Any, what: str) -> Int64:
        return np.array([self.one(value, f"{what}[{place}]") for place, value in enumerate(values)], np.int64)

    def _refuse(self, value: object, what: str, cause: SchemaError | None = None) -> NoReturn:
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if whole and self.kind.unit is None:
            name = "at" if self.column is None else self.column
            raise SchemaError(
                f"{what}: expected a time such as 2026-01-31T12:00:00Z, got the number {value!r}. Its unit is not "
                f'declared: write `{name} = {{ type = "timestamp", unit = "ms" }}` in [tables.events.types].'
            ) from cause
        if cause is not None:
            raise cause
        raise SchemaError(f"{what}: expected a time from 1990 to 2100, such as 2026-01-31T12:00:00Z, got {value!r:.80}")


def _datetime_of(value: np.datetime64) -> datetime.datetime | None:
    """The moment in microseconds, rounded down, without a zone; None for NaT and years that Python does not have."""
    plain = value.astype("datetime64[us]").item()
    return plain if isinstance(plain, datetime.datetime) else None


def _as_column(values: Any) -> pa.Array | pa.ChunkedArray | None:
    """The values as a column; None if they are of several types, or some have a zone and some have none."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        if isinstance(values, np.ndarray) and values.dtype != object:
            return pa.array(values.astype("datetime64[us]") if values.dtype.kind == "M" else values)
        zones = {getattr(value, "tzinfo", None) is None for value in values}
        return pa.array(list(values)) if len(zones) == 1 else None
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
