"""The vocabulary: what was fitted on the train window and is needed to encode records.

Values and their frequencies for coded features, moments or quantiles for numbers, the catalogue's item ids in row
order with their train frequencies. Written once by ``pipelines.features.job``, copied into every model and bundle.
Reads and writes a directory of JSON and Arrow files. Imports neither Beam, TensorFlow nor ScaNN.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipelines.contracts.arrays import Float64, Int32
from pipelines.contracts.conversion import convert, convert_value
from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.errors import ArtifactError, SchemaError

MISSING = 0
OUT_OF_VOCABULARY = 1
RESERVED_CODES = 2
# Values up to here are looked up by scans: over a million ids a scan takes about a millisecond, and the mapping half a
# second.
_SCANNED = 64


def plain_values(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Ids or categories as int64 or string, null where they are neither: true reads ``true``, 3.0 reads ``3``."""
    return convert(values, ColumnType.for_ids(values.type)).values


class ValueTable:
    """Maps values to their places: one hash lookup per value, vectorised for arrays and direct for single values.

    A value is found in any form that converts to the table's type: numbers from text, texts from numbers.

    Args:
        values: int64 or string, unique, no nulls; the place of a value is its position.
    """

    def __init__(self, values: pa.Array) -> None:
        self.values = plain_values(values)
        if self.values.null_count:
            raise SchemaError(f"expected values without nulls, got {self.values.null_count} nulls")

    def __len__(self) -> int:
        return len(self.values)

    def places(self, values: pa.Array) -> Int32:
        """``[n] int32`` place of each value, -1 where it is unknown, null or of a type that no value has."""
        if len(values) == 0 or len(self.values) == 0:
            return np.full(len(values), -1, np.int32)
        wanted = convert(values, ColumnType.for_ids(self.values.type)).values
        # Arrow hashes all values at each call: for few, the kept mapping is faster, and for a few dozen a scan is
        # faster than making the mapping.
        if len(wanted) <= _SCANNED and "value_to_place" not in vars(self):
            return np.array([pc.index(self.values, value).as_py() for value in wanted], np.int32)
        if len(wanted) < len(self.values) // 16:
            return np.fromiter(
                (self.value_to_place.get(value, -1) for value in wanted.to_pylist()), np.int32, len(wanted)
            )
        found = pc.index_in(wanted, value_set=self.values, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1), dtype=np.int32)

    @functools.cached_property
    def value_to_place(self) -> dict[Hashable, int]:
        """The same mapping for single values, made at its first use."""
        return {value: place for place, value in enumerate(self.values.to_pylist())}

    def place(self, value: object) -> int:
        """Place of one value, -1 where it is unknown, null or of a type that no value has."""
        if type(value) is self.python_type:
            return self.value_to_place.get(value, -1)
        try:
            found = convert_value(value, ColumnType.for_ids(self.values.type), "value")
        except SchemaError:
            return -1
        return self.value_to_place.get(found, -1)

    @functools.cached_property
    def python_type(self) -> type:
        """The type of single values: int or str."""
        return int if pa.types.is_integer(self.values.type) else str


def as_array(values: Sequence[Any]) -> pa.Array:
    """Makes an Arrow array of Python values.

    Raises:
        SchemaError: the values are of several types, or of a type that Arrow does not have.
    """
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as err:
        raise SchemaError(f"expected values of one plain type, got {values!r:.80}: {err}") from err


def hash_codes(values: pa.Array, buckets: int) -> Int32:
    """``[n] int32`` code 2 + XXH3-64(text) mod ``buckets``; 0 where null. The same on every machine."""
    encoded = convert(values, STRING).values.dictionary_encode()
    codes = [RESERVED_CODES + xxhash.xxh3_64_intdigest(text) % buckets for text in encoded.dictionary.to_pylist()]
    if not codes:
        return np.zeros(len(values), np.int32)
    places = np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int64)
    return np.where(places < 0, MISSING, np.asarray(codes, np.int32)[places]).astype(np.int32)


@dataclass(frozen=True)
class FittedCodes:
    """Values of a coded feature (id, categorical, list, text), the most frequent first.

    ``frequencies`` counts each value in the train window (``[values] int64``). With ``hash_buckets`` there are no
    values: a code is a hash.
    """

    values: pa.Array
    frequencies: npt.NDArray[np.int64]
    hash_buckets: int | None = None

    @classmethod
    def most_frequent(
        cls, values: pa.Array, counts: pa.Array, *, min_frequency: int = 1, limit: int | None = None
    ) -> FittedCodes:
        """Keeps the values seen at least ``min_frequency`` times, by falling count, then by value; at most ``limit``.

        Args:
            values: unique values of the train window (nulls are dropped).
            counts: int64, how often each was seen.
        """
        table = pa.table({"value": plain_values(values), "count": counts})
        table = table.filter(pc.and_(pc.is_valid(table["value"]), pc.greater_equal(table["count"], min_frequency)))
        table = table.sort_by([("count", "descending"), ("value", "ascending")]).slice(0, limit)
        return cls(table["value"].combine_chunks(), np.asarray(table["count"], np.int64))

    @classmethod
    def pinned(cls, values: Sequence[str], seen: pa.Array, counts: pa.Array) -> FittedCodes:
        """Keeps exactly ``values``, in their order, with the counts of those ``seen``; arguments as above."""
        table = pa.table({"value": plain_values(seen).cast(pa.string()), "count": counts})
        known = pa.table({"value": pa.array(values, pa.string()), "place": np.arange(len(values))})
        joined = known.join(table, "value").sort_by("place")
        return cls(pa.array(values, pa.string()), np.asarray(pc.fill_null(joined["count"], 0), np.int64))

    @property
    def size(self) -> int:
        """Number of codes, including the two reserved ones."""
        return RESERVED_CODES + (len(self.values) if self.hash_buckets is None else self.hash_buckets)

    @functools.cached_property
    def _table(self) -> ValueTable:
        return ValueTable(self.values)

    @functools.cached_property
    def value_to_code(self) -> dict[Hashable, int]:
        """Codes of single values of ``python_type``; empty where values are hashed."""
        return {value: place + RESERVED_CODES for place, value in enumerate(self._table.values.to_pylist())}

    @property
    def python_type(self) -> type:
        """The type of the values in ``value_to_code``: int or str."""
        return self._table.python_type

    def codes(self, values: pa.Array) -> Int32:
        """``[n] int32`` code of each value: 0 where null, 1 where unknown, else 2 and up."""
        if self.hash_buckets is not None:
            return hash_codes(values, self.hash_buckets)
        converted = convert(values, ColumnType.for_ids(self._table.values.type))
        places = self._table.places(converted.values)
        return np.where(
            converted.null, MISSING, np.where(places < 0, OUT_OF_VOCABULARY, places + RESERVED_CODES)
        ).astype(np.int32)


@dataclass(frozen=True)
class FittedNumbers:
    """Center and spread of a numeric feature after its scale, or its quantiles.

    ``scale``: standard (x - center) / spread; log the same after sign(x)·log1p(|x|); quantile maps x to its place
    in ``quantiles`` (``[q] float64``, ascending), from -1 to 1. A spread of 0 (a constant feature) counts as 1.
    """

    scale: str
    center: float = 0.0
    spread: float = 1.0
    quantiles: Float64 | None = None

    def scaled(self, values: Float64) -> Float64:
        """``[n] float64`` values -> ``[n] float64`` about 0 with unit spread; NaN stays NaN."""
        if self.scale == "quantile":
            if self.quantiles is None or len(self.quantiles) < 2 or self.quantiles[0] == self.quantiles[-1]:
                return np.where(np.isnan(values), np.nan, 0.0)
            places = np.linspace(-1.0, 1.0, len(self.quantiles))
            # Ties in the quantiles: the mean of the first and the last place of the value.
            left = np.interp(values, self.quantiles, places)
            right = -np.interp(-values, -self.quantiles[::-1], places)
            return np.asarray((left + right) / 2)
        transformed = self.transform(self.scale, values)
        return (transformed - self.center) / (self.spread if self.spread > 0 else 1.0)

    def restored(self, scaled: Float64) -> Float64:
        """The inverse of ``scaled``, for scales that have one (standard and log)."""
        transformed = scaled * (self.spread if self.spread > 0 else 1.0) + self.center
        return transformed if self.scale == "standard" else np.sign(transformed) * np.expm1(np.abs(transformed))

    @staticmethod
    def transform(scale: str, values: Float64) -> Float64:
        """The values before standardising: themselves, or sign(x)·log1p(|x|)."""
        return values if scale == "standard" else np.sign(values) * np.log1p(np.abs(values))


Fitted = FittedCodes | FittedNumbers


@dataclass(frozen=True)
class Vocabulary:
    """Everything that was fitted.

    ``user`` and ``item`` have a fitted entry for each feature except embeddings, which need none. ``item_ids`` is the
    catalogue in row order, ``item_frequency`` (``[items] int64``) each row's events in the train window.
    """

    user: dict[str, Fitted]
    item: dict[str, Fitted]
    item_ids: pa.Array
    item_frequency: npt.NDArray[np.int64]

    def side(self, side: Literal["user", "item"]) -> dict[str, Fitted]:
        """The fitted features of one side."""
        return self.user if side == "user" else self.item

    @functools.cached_property
    def items(self) -> ValueTable:
        """Item ids to rows."""
        return ValueTable(self.item_ids)

    def item_rows(self, item_ids: pa.Array | Sequence[Any]) -> Int32:
        """``[n] int32`` row of each item id, -1 if it is not in the catalogue."""
        array = item_ids if isinstance(item_ids, pa.Array | pa.ChunkedArray) else as_array(item_ids)
        return self.items.places(array)

    def save(self, directory: Path) -> None:
        """Creates ``directory`` and writes the vocabulary there."""
        directory.mkdir(parents=True, exist_ok=True)
        index: dict[str, dict[str, Any]] = {}
        for side, fitted in (("user", self.user), ("item", self.item)):
            index[side] = {
                name: _save_fitted(entry, directory / f"{side}.{name}.arrow") for name, entry in fitted.items()
            }
        (directory / "vocabulary.json").write_text(json.dumps(index, indent=1, sort_keys=True))
        table = pa.table({"item_id": self.item_ids, "frequency": self.item_frequency})
        _write_arrow(table, directory / "items.arrow")

    @classmethod
    def load(cls, directory: Path) -> Vocabulary:
        """Reads what ``save`` wrote.

        Raises:
            ArtifactError: a file is missing or cannot be read.
        """
        try:
            index = json.loads((directory / "vocabulary.json").read_text())
            sides = {
                side: {
                    name: _load_fitted(entry, directory / f"{side}.{name}.arrow") for name, entry in index[side].items()
                }
                for side in ("user", "item")
            }
            items = _read_arrow(directory / "items.arrow")
        except (OSError, KeyError, ValueError, pa.ArrowException) as err:
            raise ArtifactError(
                f"{directory}: the vocabulary cannot be read ({err}). Write the artifact again."
            ) from err
        return cls(
            user=sides["user"],
            item=sides["item"],
            item_ids=items["item_id"].combine_chunks(),
            item_frequency=np.asarray(items["frequency"], np.int64),
        )


def _save_fitted(fitted: Fitted, path: Path) -> dict[str, Any]:
    if isinstance(fitted, FittedCodes):
        _write_arrow(pa.table({"value": fitted.values, "frequency": fitted.frequencies}), path)
        return {"type": "codes", "hash_buckets": fitted.hash_buckets}
    quantiles = None if fitted.quantiles is None else fitted.quantiles.tolist()
    return {
        "type": "numbers",
        "scale": fitted.scale,
        "center": fitted.center,
        "spread": fitted.spread,
        "quantiles": quantiles,
    }


def _load_fitted(entry: dict[str, Any], path: Path) -> Fitted:
    if entry["type"] == "codes":
        table = _read_arrow(path)
        frequencies = np.asarray(table["frequency"], np.int64)
        return FittedCodes(table["value"].combine_chunks(), frequencies, entry["hash_buckets"])
    quantiles = None if entry["quantiles"] is None else np.asarray(entry["quantiles"], np.float64)
    return FittedNumbers(entry["scale"], entry["center"], entry["spread"], quantiles)


def _write_arrow(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_arrow(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
