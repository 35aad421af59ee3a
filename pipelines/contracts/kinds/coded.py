"""Coded kinds: values become codes, 0 missing, 1 out of vocabulary, 2 and up the values fitted on the train window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.contracts.arrays import Int32, Int64
from pipelines.contracts.conversion import is_list, is_number
from pipelines.contracts.conversion.column_type import INT64, STRING, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.feature import Array, FeatureKind, TrainRows, Writer
from pipelines.contracts.kinds.summary import Summary, merged_counts
from pipelines.contracts.vocabulary import OUT_OF_VOCABULARY, Fitted, FittedCodes

INT64_RANGE = range(-(2**63), 2**63)


class Coded(FeatureKind):
    """A feature of values that become codes."""

    min_frequency: int = Field(
        default=1,
        ge=1,
        description="Train events a value needs for a code of its own, 1 or more; rarer values share one code.",
    )
    hash_buckets: int | None = Field(
        default=None,
        ge=1,
        description="Number of codes that values are hashed into, 1 or more, in place of a fitted vocabulary.",
    )

    input_dtype: ClassVar[type[np.int32] | type[np.float32]] = np.int32

    def fit(self, parts: Sequence[Summary]) -> FittedCodes:
        """Keeps the values seen at least ``min_frequency`` times; none where values are hashed."""
        if self.hash_buckets is not None:
            return FittedCodes(pa.array([], pa.string()), np.zeros(0, np.int64), self.hash_buckets)
        return self.fit_counts(merged_counts(parts))

    def fit_counts(self, counts: pa.Table) -> FittedCodes:
        """The fitted codes of (value, count) over the train window, each value once."""
        return FittedCodes.most_frequent(counts["value"], counts["count"], min_frequency=self.min_frequency)

    def is_known(self, encoded: Array) -> bool:
        """Whether any code belongs to a fitted value."""
        return bool((encoded > OUT_OF_VOCABULARY).any())

    def counted(self, values: pa.Array, weights: Int64) -> Summary:
        """Counts of ``[n]`` values, each ``weights`` (``[n] int64``) times; nothing is counted of hashed ones."""
        return Summary.of_values(values, weights) if self.hash_buckets is None else Summary.of_no_values()

    def counted_lists(self, lists: pa.Array, weights: Int64) -> Summary:
        """Counts of the values of ``[n]`` lists, each ``weights`` (``[n] int64``) times."""
        if pa.types.is_null(lists.type):
            return Summary.of_no_values()
        owners = np.asarray(pc.list_parent_indices(lists), np.int64)
        return self.counted(pc.list_flatten(lists), weights[owners])

    def codes_of(self, fitted: Fitted | None) -> FittedCodes:
        """The vocabulary's entry as codes.

        Raises:
            SchemaError: it is none.
        """
        if not isinstance(fitted, FittedCodes):
            raise SchemaError(f"{self.title} has no values in this vocabulary")
        return fitted


class OneCode(Coded):
    """A coded feature of one value per row."""

    expects: ClassVar[str] = "text or numbers"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One code."""
        return ()

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Text, numbers, booleans, decimals and times."""
        types = pa.types
        is_text = types.is_string(arrow_type) or types.is_decimal(arrow_type)
        return bool(is_text or is_number(arrow_type) or types.is_temporal(arrow_type))

    def summarise(self, rows: TrainRows) -> Summary:
        """Counts of the values, each as often as its row has train events."""
        return self.counted(rows.column(self.source), rows.frequency)

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Int32:
        """``[n] int32`` codes."""
        return self.codes_of(fitted).codes(column)

    def value_type(self, fitted: Fitted | None) -> ColumnType:
        """The vocabulary's own type."""
        return INT64 if isinstance(fitted, FittedCodes) and fitted.python_type is int else STRING

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for values of the vocabulary's own type."""
        through_encode = super().writer(fitted, kind)
        kind = self.value_type(fitted) if kind is None else kind
        if not isinstance(fitted, FittedCodes) or fitted.hash_buckets is not None:
            return through_encode
        if kind != self.value_type(fitted):
            return through_encode
        source, get, plain = self.source, fitted.value_to_code.get, fitted.python_type

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            value = record.get(source)
            if value is None:
                target[0] = 0
            elif type(value) is plain and (plain is str or value in INT64_RANGE):
                target[0] = get(value, OUT_OF_VOCABULARY)
            else:
                through_encode(target, record, as_of_us)

        return write


def encode_lists(fitted: FittedCodes, lists: pa.Array, max_length: int) -> Int32:
    """``[n]`` lists of values -> ``[n, max_length] int32`` codes, left aligned; nulls inside a list are skipped.

    Raises:
        pa.ArrowTypeError: the column has no lists.
    """
    encoded = np.zeros((len(lists), max_length), np.int32)
    if pa.types.is_null(lists.type):
        return encoded
    if not is_list(lists.type):
        raise pa.ArrowTypeError(f"expected lists, got {lists.type}")
    codes = fitted.codes(pc.list_flatten(lists))
    owners = np.asarray(pc.list_parent_indices(lists), np.int64)
    owners, codes = owners[codes != 0], codes[codes != 0]
    starts = np.searchsorted(owners, np.arange(len(lists)))
    places = np.arange(len(owners)) - starts[owners]
    kept = places < max_length
    encoded[owners[kept], places[kept]] = codes[kept]
    return encoded
