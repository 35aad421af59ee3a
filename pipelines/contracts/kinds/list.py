"""The kind ``list``: several values out of a set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.contracts.arrays import Int32
from pipelines.contracts.conversion import is_list
from pipelines.contracts.conversion.column_type import LIST, ColumnType
from pipelines.contracts.kinds.coded import INT64_RANGE, Coded, encode_lists
from pipelines.contracts.kinds.feature import Array, TrainRows, Writer
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import OUT_OF_VOCABULARY, Fitted, FittedCodes

_PYTHON = {"string": str, "int64": int}


class ListFeature(Coded):
    """Several values out of a set, at most ``max_length`` of them (the first ones)."""

    kind: Literal["list"]
    max_length: int = Field(default=16, ge=1, description="Values or words read per row, 1 or more; the rest is cut.")

    expects: ClassVar[str] = "lists of text or numbers"
    text_type: ClassVar[ColumnType] = LIST

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``max_length`` codes."""
        return (self.max_length,)

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Lists of plain values."""
        return is_list(arrow_type) and not pa.types.is_nested(arrow_type.value_type)

    def summarise(self, rows: TrainRows) -> Summary:
        """Counts of the values, each as often as its row has train events."""
        return self.counted_lists(rows.column(self.source), rows.frequency)

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Int32:
        """``[n, max_length] int32`` codes, left aligned."""
        return encode_lists(self.codes_of(fitted), column, self.max_length)

    def value_type(self, fitted: Fitted | None) -> ColumnType:
        """A list of the vocabulary's own type."""
        is_integers = isinstance(fitted, FittedCodes) and fitted.python_type is int
        return ColumnType(type="list", of="int64") if is_integers else LIST

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for lists of values of the vocabulary's own type."""
        through_encode = super().writer(fitted, kind)
        kind = self.value_type(fitted) if kind is None else kind
        if not isinstance(fitted, FittedCodes) or fitted.hash_buckets is not None:
            return through_encode
        if kind.type != "list" or _PYTHON[kind.of] is not fitted.python_type:
            return through_encode
        source, max_length = self.source, self.max_length
        get, plain = fitted.value_to_code.get, fitted.python_type

        def fits(value: object) -> bool:
            return type(value) is plain and (plain is str or value in INT64_RANGE)

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            values = record.get(source)
            if values is not None and (type(values) is not list or not all(map(fits, values))):
                through_encode(target, record, as_of_us)
                return
            line = target[0]
            line[:] = 0
            if values:
                codes = [get(value, OUT_OF_VOCABULARY) for value in values[:max_length]]
                line[: len(codes)] = codes

        return write
