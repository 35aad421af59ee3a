"""Encoding: a raw record, or a table of them, to the arrays a tower takes.

The batch job encodes tables (``encode_table``), the retriever single records (``RecordEncoder``, a few microseconds
per record); ``encode_record`` is the plain definition for one record, and property tests hold the three equal. The
class of a kind of feature defines its array: see ``pipelines.contracts.kinds`` for the shapes. Imports neither Beam,
TensorFlow nor ScaNN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.feature import Array, Writer
from pipelines.contracts.vocabulary import Fitted

Encoded = dict[str, Array]


def encode_table(
    features: Sequence[Feature], fitted: Mapping[str, Fitted], table: pa.Table, *, as_of_us: int
) -> Encoded:
    """Encodes every row of a raw table.

    Args:
        features: what to encode.
        fitted: the vocabulary's entries, by feature name.
        table: raw columns, those of each feature's ``raw_columns``; an absent one counts as all null.
        as_of_us: the moment, microseconds UTC since the epoch, from which ``time_since`` counts.

    Returns:
        ``[rows, *input_shape]`` arrays by feature name.

    Raises:
        SchemaError: a column's type does not fit the feature's kind, or a vector has another length than ``dim``.
    """
    return {feature.name: feature.encode(fitted.get(feature.name), table, as_of_us) for feature in features}


def encode_record(
    features: Sequence[Feature],
    fitted: Mapping[str, Fitted],
    record: Mapping[str, Any],
    *,
    as_of_us: int,
    types: Mapping[str, ColumnType] = MappingProxyType({}),
) -> Encoded:
    """Encodes one raw record: what ``encode_table`` returns for a table of that one row.

    Args:
        features: what to encode.
        fitted: the vocabulary's entries, by feature name.
        record: raw values by column; an absent one counts as null.
        as_of_us: the moment of the request, microseconds UTC since the epoch.
        types: the columns' types, as far as they are declared (``DatasetSchema.column_types``).

    Raises:
        SchemaError: a value does not fit its column's type; the message names feature, value and type.
    """
    return {
        feature.name: feature.encode_record(fitted.get(feature.name), record, as_of_us, types.get(feature.source))
        for feature in features
    }


class RecordEncoder:
    """``encode_record`` at the rate of a server, prepared once for a set of features.

    Writes the features of one record into arrays that are given. Immutable, safe to use from many threads.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        fitted: Mapping[str, Fitted],
        types: Mapping[str, ColumnType] = MappingProxyType({}),
    ) -> None:
        """Prepares the features; their order is that of ``writers``. Arguments as in ``encode_record``."""
        self.features = tuple(features)
        self.writers: tuple[Writer, ...] = tuple(
            feature.writer(fitted.get(feature.name), types.get(feature.source)) for feature in features
        )
