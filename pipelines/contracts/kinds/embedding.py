"""The kind ``embedding``: a vector made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.contracts.arrays import Float32
from pipelines.contracts.conversion import is_list, is_number
from pipelines.contracts.conversion.column_type import EMBEDDING, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.feature import Array, FeatureKind, Reject, TrainRows, Writer
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted


class EmbeddingFeature(FeatureKind):
    """A vector made elsewhere (visual, text, behavioural) of ``dim`` numbers; null where there is none."""

    kind: Literal["embedding"]
    dim: int = Field(ge=1, description="Numbers in each vector, 1 or more.")

    expects: ClassVar[str] = "lists of numbers"
    implied_type: ClassVar[ColumnType | None] = EMBEDDING
    summarised: ClassVar[bool] = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The vector."""
        return (self.dim,)

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Lists of numbers, of fixed length or not."""
        return is_list(arrow_type) and is_number(arrow_type.value_type)

    def check(self, column: pa.Array, reject: Reject) -> None:
        """Rejects a wrong length (``dimension``), a NaN, infinity or null inside (``nan``), and all 0 (``zero``)."""
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), self.dim), np.int64)
        reject(lengths != self.dim, "dimension")
        values = np.asarray(pc.list_flatten(column).fill_null(np.nan), np.float32)
        owners = np.repeat(np.arange(len(column)), np.asarray(pc.list_value_length(column).fill_null(0), np.int64))
        reject(np.bincount(owners, ~np.isfinite(values), len(column)) > 0, "nan")
        zero = (np.bincount(owners, values != 0, len(column)) == 0) & (lengths > 0)
        reject(zero & np.asarray(column.is_valid(), dtype=bool), "zero")

    def summarise(self, rows: TrainRows) -> Summary:
        """Nothing is summarised."""
        return Summary()

    def fit(self, parts: Sequence[Summary]) -> None:
        """Nothing is fitted: the vectors stay as they are."""

    def is_known(self, encoded: Array) -> bool:
        """Whether there is a vector."""
        return bool(encoded.any())

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Float32:
        """``[n, dim] float32``, zeros where missing.

        Raises:
            SchemaError: a vector has another length than ``dim``, or a NaN or infinite number.
        """
        encoded = np.zeros((len(column), self.dim), np.float32)
        if pa.types.is_null(column.type):
            return encoded
        present = np.asarray(pc.is_valid(column), dtype=bool)
        lengths = np.asarray(pc.fill_null(pc.list_value_length(column), self.dim), np.int64)
        wrong = np.flatnonzero(lengths != self.dim)
        if len(wrong):
            raise SchemaError(
                f"feature {self.name!r}: expected vectors of {self.dim} numbers, row {wrong[0]} of column "
                f"{self.source!r} has {lengths[wrong[0]]}. Correct dim or the column."
            )
        values = np.asarray(pc.list_flatten(column).fill_null(np.nan), np.float32)
        if not np.isfinite(values).all():
            row = np.flatnonzero(present)[np.flatnonzero(~np.isfinite(values))[0] // self.dim]
            raise SchemaError(
                f"feature {self.name!r}: row {row} of column {self.source!r} has a NaN or infinite number. Correct the "
                "vector, or leave it empty."
            )
        encoded[present] = values.reshape(-1, self.dim)
        return encoded

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for float32 arrays of finite numbers."""
        through_encode = super().writer(fitted, kind)
        source, dim = self.source, self.dim

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            value = record.get(source)
            fits = type(value) is np.ndarray and value.dtype == np.float32 and value.shape == (dim,)
            if fits and np.isfinite(np.asarray(value)).all():
                target[0] = value
            else:
                through_encode(target, record, as_of_us)

        return write
