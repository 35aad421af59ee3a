"""The interface of all kinds of features, and the implementations that most kinds share.

A feature's way through the job: its column is converted to its type (``pipelines.contracts.conversion``) and checked
(``accepts``, ``check``), each partition summarises its values in the train window (``summarise``), the summaries are
merged (``fit``), and the fitted entry encodes tables (``encode``) and single records (``encode_record``, ``writer``).
A row of a table and the same record, in any form that the column's type allows, encode to the same numbers; property
tests hold the three ways equal.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, field_validator

from pipelines.contracts.arrays import Bools, Int64
from pipelines.contracts.configuration import Section
from pipelines.contracts.conversion import convert, convert_cell, expected, plain_array
from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted

# Inputs of the query tower that are not features: no feature may take their names.
HISTORY_INPUTS = ("history", "history_mask", "history_age_days", "history_action")
# Keys of a raw user record that are not features.
RECORD_KEYS = ("history", "history_time", "history_action", "time", "user_id")

Array = npt.NDArray[Any]
# Writes one record's value into the feature's input ``[1, ...]``: target, record, moment in microseconds UTC.
Writer = Callable[[Array, Mapping[str, Any], int], None]
# Rejects rows (``[rows] bool``) for breaking a rule, given by its name.
Reject = Callable[[Bools, str], None]
# What Arrow raises for a column that cannot be cast or computed with.
ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


@dataclass(frozen=True)
class TrainRows:
    """Rows of one side that occur in the train window.

    ``table`` has their raw columns, ``ids`` their own ids, ``frequency`` (``[rows] int64``, 1 and up) their train
    events; ``as_of_us`` is the moment, microseconds UTC, from which ``time_since`` counts.
    """

    table: pa.Table
    ids: pa.Array
    frequency: Int64
    as_of_us: int

    def column(self, name: str) -> pa.Array:
        """A raw column as one plain array; nulls where the table does not have it."""
        return plain_array(self.table[name]) if name in self.table.column_names else pa.nulls(len(self.table))


class FeatureKind(Section, abc.ABC):
    """A feature of one kind: its keys in the schema, and everything the pipelines do with it.

    Each kind declares the key ``kind`` as a literal; it selects the class when the schema is read.
    """

    name: str = Field(
        description="Name of the feature and of the tower's input: letters, digits and _ only, unique on its side."
    )
    column: str | None = Field(default=None, description="Table column that the feature reads; by default its name.")

    # The column types the kind reads, as an error names them.
    expects: ClassVar[str]
    # The type that the kind implies for its column in every format; None: that of the Parquet file.
    implied_type: ClassVar[ColumnType | None] = None
    # The type of its column in text formats, which do not declare one, where neither TOML nor kind does.
    text_type: ClassVar[ColumnType] = STRING
    # Type of the encoded array: int32 for codes, float32 for numbers.
    input_dtype: ClassVar[type[np.int32] | type[np.float32]] = np.float32
    # Whether the feature needs its side's own table; an id is known from the events as well.
    needs_table: ClassVar[bool] = True
    # Whether the job counts the feature from the events instead of reading a column.
    made_of_events: ClassVar[bool] = False
    # Whether ``fit`` needs summaries of the train window.
    summarised: ClassVar[bool] = True

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"a feature name has letters, digits and _ only, got {name!r}")
        if name in HISTORY_INPUTS or (name in RECORD_KEYS and name != "user_id"):
            raise ValueError(f"{name!r} is a reserved name; choose another name and give column = {name!r}")
        return name

    @property
    def source(self) -> str:
        """The table column the feature reads: ``column``, or the feature's own name."""
        return self.name if self.column is None else self.column

    @property
    def title(self) -> str:
        """The feature as an error names it, with its kind."""
        return f"feature {self.name!r} of kind {vars(self)['kind']!r}"

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """The raw columns the feature is encoded from."""
        return (self.source,)

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row of the encoded array."""

    @abc.abstractmethod
    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Whether the feature can read a converted column of this type (no dictionary, no null)."""

    def check(self, column: pa.Array, reject: Reject) -> None:
        """Rejects the rows that break a rule of the kind.

        Args:
            column: one plain array, converted.
            reject: called with the rows of each broken rule and its name.
        """

    @abc.abstractmethod
    def summarise(self, rows: TrainRows) -> Summary:
        """Summarises the feature over these rows; summaries of any partition of the rows merge to the same result."""

    @abc.abstractmethod
    def fit(self, parts: Sequence[Summary]) -> Fitted | None:
        """Merges the partitions' summaries into the vocabulary's entry; None if the kind needs none."""

    @abc.abstractmethod
    def is_known(self, encoded: Array) -> bool:
        """Whether the input of one record, ``[1, ...]``, holds a value that the towers have learned from."""

    def encode(self, fitted: Fitted | None, table: pa.Table, as_of_us: int) -> Array:
        """Encodes every row of a raw table.

        Args:
            fitted: the vocabulary's entry.
            table: raw columns, which are converted where they are not of the kind's implied type; an absent one counts
                as null.
            as_of_us: the moment, microseconds UTC, from which ``time_since`` counts.

        Returns:
            ``[rows, *input_shape]`` of ``input_dtype``.

        Raises:
            SchemaError: the column's type or a value does not fit the kind, or the vocabulary's entry is of another.
        """
        column = pa.nulls(len(table)) if self.source not in table.column_names else plain_array(table[self.source])
        try:
            return self.encode_column(fitted, self._implied(column), as_of_us)
        except ARROW_ERRORS as err:
            raise SchemaError(
                f"{self.title} cannot be read from column {self.source!r} of type {column.type}: {err}. Change the "
                "feature's kind or the column."
            ) from err

    def _implied(self, column: pa.Array) -> pa.Array:
        """The column in the type that the kind implies."""
        kind = self.implied_type
        if kind is None or column.type == kind.arrow or pa.types.is_null(column.type):
            return column
        converted = convert(column, kind)
        if converted.wrong.any():
            row = int(np.flatnonzero(converted.wrong)[0])
            raise pa.ArrowInvalid(f"row {row}: expected {expected(kind, self.source)}, got {column[row].as_py()!r:.80}")
        return converted.values

    @abc.abstractmethod
    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Array:
        """``encode`` for the feature's one column; ``encode`` translates Arrow's errors."""

    def value_type(self, fitted: Fitted | None) -> ColumnType:
        """The type of values in records where none is declared for the column."""
        return STRING if self.implied_type is None else self.implied_type

    def encode_record(
        self, fitted: Fitted | None, record: Mapping[str, Any], as_of_us: int, kind: ColumnType | None = None
    ) -> Array:
        """Encodes one raw record, ``[1, *input_shape]``: what ``encode`` returns for a table of that one row.

        Args:
            fitted: the vocabulary's entry.
            record: raw values by column; an absent one counts as null.
            as_of_us: the moment, microseconds UTC, from which ``time_since`` counts.
            kind: the column's type; by default what the kind implies, or the type of the fitted values.

        Raises:
            SchemaError: a value does not fit the column's type; the message names feature, value and type.
        """
        kind = self.value_type(fitted) if kind is None else kind
        what = f"feature {self.name!r}"
        table = pa.table({name: convert_cell(record.get(name), kind, what, name) for name in self.raw_columns})
        return self.encode(fitted, table, as_of_us)

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Prepares ``encode_record`` for a server: plain values take a direct path, any other goes through it."""

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            target[...] = self.encode_record(fitted, record, as_of_us, kind)

        return write
