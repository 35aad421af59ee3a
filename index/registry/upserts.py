"""Upserts of an entry in the terms of one version: what they say, laid over what the version knows of the ads.

What a row does not say stays as it was; for an ad that the version does not know it is null. Cells come in the types of
the version that was live when the entry was written, and are converted to this version's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.inference.item_features import feature_columns
from index.inference.item_rows import taken
from index.inference.item_types import ItemTypes
from index.registry.bundle import Bundle
from index.registry.delta_entry import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, Entry
from pipelines.contracts.arrays import Bools, Int64
from pipelines.contracts.conversion import is_list, plain_array


@dataclass(frozen=True)
class KnownAds:
    """What a version keeps of ads, row by row.

    items: the columns of the bundle's items table, ``item_id`` first. features: the raw columns that item features
    read, without the id column.
    """

    items: pa.Table
    features: pa.Table

    def joined(self, later: KnownAds) -> KnownAds:
        """With more rows at the end."""
        items = pa.concat_tables([self.items, later.items]).combine_chunks()
        return KnownAds(items, pa.concat_tables([self.features, later.features]).combine_chunks())

    def rows(self, places: Int64) -> KnownAds:
        """``[n]`` rows, in their order."""
        return KnownAds(taken(self.items, places), taken(self.features, places))

    def column(self, name: str) -> pa.Array | None:
        """One column of either table; None if neither has it."""
        for table in (self.features, self.items):
            if name in table.column_names:
                return plain_array(table[name])
        return None


def known_of(bundle: Bundle, rows: Int64) -> KnownAds:
    """What a bundle knows of the ads in ``[n]`` of its rows. In format version 1 that is its items table alone."""
    columns = AdColumns.of(bundle)
    if len(rows) == 0:
        return KnownAds(columns.items.empty_table(), columns.features.empty_table())
    items = bundle.some_items(rows)
    if bundle.item_features is not None:
        return KnownAds(items, bundle.item_features.take(rows))
    return columns.ads(
        items["item_id"].combine_chunks(), {name: items[name].combine_chunks() for name in items.column_names}
    )


@dataclass(frozen=True)
class AdColumns:
    """The columns that a version keeps of its ads, and how the id column is called in the tables."""

    items: pa.Schema
    features: pa.Schema
    id_column: str

    @classmethod
    def of(cls, bundle: Bundle) -> AdColumns:
        """A bundle's. In format version 1 it keeps those of its items table; features have the types of the schema."""
        stored = bundle.item_features
        if stored is not None:
            return cls(bundle.items_schema, stored.schema, bundle.schema.id_column("item"))
        fields = [pa.field(name, bundle.item_types.arrow(name)) for name in feature_columns(bundle.schema)]
        return cls(bundle.items_schema, pa.schema(fields), bundle.schema.id_column("item"))

    def names(self) -> tuple[str, ...]:
        """All columns but the id, each once."""
        names = dict.fromkeys([*self.items.names, *self.features.names])
        return tuple(name for name in names if name not in ("item_id", self.id_column))

    def ads(self, item_ids: pa.Array, columns: Mapping[str, pa.Array]) -> KnownAds:
        """Rows of these ids; a column that is not given is null."""

        def table(schema: pa.Schema) -> pa.Table:
            ids = {"item_id": item_ids, self.id_column: item_ids}
            arrays = [_as(ids.get(field.name, columns.get(field.name)), field.type, len(item_ids)) for field in schema]
            return pa.Table.from_arrays(arrays, schema=schema)

        return KnownAds(table(self.items), table(self.features))

    def raw(self, ads: KnownAds) -> pa.Table:
        """What ads are embedded from: their features' raw columns and their ids."""
        features = {name: ads.features[name] for name in ads.features.column_names}
        return pa.table({self.id_column: ads.items["item_id"], **features})


def _as(array: pa.Array | None, wanted: pa.DataType, rows: int) -> pa.Array:
    if array is None:
        return pa.nulls(rows, wanted)
    return array if array.type == wanted else array.cast(wanted)


@dataclass(frozen=True)
class Said:
    """The upserts of one entry in the types of one version.

    item_ids: those that the version's ids can be. columns: ``[n]`` values by column; said: ``[n] bool`` which rows set
    it. unfit: ``[n] bool`` rows with a cell that the version's types cannot hold.
    """

    item_ids: pa.Array
    columns: Mapping[str, pa.Array]
    said: Mapping[str, Bools]
    unfit: Bools

    @classmethod
    def of(cls, entry: Entry, names: tuple[str, ...], types: ItemTypes) -> Said:
        """Reads the columns ``names`` of an entry's upserts."""
        rows = entry.rows.filter(pc.equal(entry.rows[CHANGE_COLUMN], "upsert"))
        ids = types.ids(rows[ID_COLUMN])
        possible = pa.array(np.asarray(pc.is_valid(ids), dtype=bool))
        rows, ids = rows.filter(possible), ids.filter(possible)
        columns: dict[str, pa.Array] = {}
        said: dict[str, Bools] = {}
        unfit = np.zeros(len(rows), bool)
        mentioned = plain_array(rows[SAID_COLUMN])
        owner, names_said = np.asarray(pc.list_parent_indices(mentioned)), pc.list_flatten(mentioned)
        for name in names:
            if name not in rows.column_names:
                continue
            own = np.zeros(len(rows), bool)
            own[owner[np.asarray(pc.equal(names_said, name), dtype=bool)]] = True
            if own.any():
                columns[name], wrong = types.column(rows[name], name)
                said[name] = own
                unfit |= wrong & own
        return cls(ids, columns, said, unfit)

    def over(self, known: KnownAds, is_known: Bools) -> Overlaid:
        """What the ads are now.

        Args:
            known: the rows of the known ads, in their order.
            is_known: ``[n] bool`` which of the ads they are.
        """
        n = len(self.item_ids)
        place = np.full(n, -1)
        place[is_known] = np.arange(int(is_known.sum()))
        before = pa.array(place, mask=place < 0)
        columns: dict[str, pa.Array] = {}
        changed = ~is_known
        differing: dict[str, Bools] = {}
        for name in dict.fromkeys([*known.items.column_names, *known.features.column_names, *self.columns]):
            old = known.column(name)
            old = None if old is None else old.take(before)
            if name not in self.columns:
                columns[name] = old
                continue
            new, said = self.columns[name], self.said[name]
            differs = said if old is None else said & ~same(old, new)
            differing[name] = differs
            changed = changed | differs
            columns[name] = new if old is None else _where(said, new, old)
        return Overlaid(columns, changed, differing)


@dataclass(frozen=True)
class Overlaid:
    """Ads after their upserts.

    columns: ``[n]`` values by column. changed: ``[n] bool``, those that are new or differ from what was known.
    differing: the same by column, for the columns that the entry sets.
    """

    columns: Mapping[str, pa.Array]
    changed: Bools
    differing: Mapping[str, Bools]

    def ads(self, item_ids: pa.Array, places: Int64, kept: AdColumns) -> KnownAds:
        """The ads at ``[n]`` places, in the columns that a version keeps."""
        at = pa.array(places, pa.int64())
        return kept.ads(item_ids.take(at), {name: column.take(at) for name, column in self.columns.items()})


def _where(condition: Bools, then: pa.Array, other: pa.Array) -> pa.Array:
    """Of any type; ``other`` in that of ``then``."""
    other = other if other.type == then.type else other.cast(then.type)
    places = np.arange(len(condition))
    return pa.concat_arrays([then, other]).take(pa.array(np.where(condition, places, places + len(condition))))


def same(first: pa.Array, second: pa.Array) -> Bools:
    """``[n] bool``: equal values, or none in both."""
    if first.type != second.type:
        first = first.cast(second.type)
    if is_list(first.type) and not pa.types.is_nested(first.type.value_type):
        return _same_lists(first, second)
    if pa.types.is_nested(first.type):
        pairs = zip(first.to_pylist(), second.to_pylist(), strict=True)
        return np.fromiter((one == other for one, other in pairs), bool, len(first))
    equal = pc.fill_null(pc.equal(first, second), False)
    none = pc.and_(pc.is_null(first), pc.is_null(second))
    return np.asarray(pc.or_(equal, none), dtype=bool)


def _same_lists(first: pa.Array, second: pa.Array) -> Bools:
    """``[n] bool``: lists of the same values in the same order, or none in both."""
    lengths, others = (np.asarray(pc.fill_null(pc.list_value_length(one), -1), np.int64) for one in (first, second))
    equal: Bools = lengths == others
    rows = np.flatnonzero(equal & (lengths > 0))
    if len(rows):
        places = pa.array(rows)
        values = same(first.take(places).flatten(), second.take(places).flatten())
        starts = np.cumsum([0, *lengths[rows][:-1]])
        equal[rows] = np.logical_and.reduceat(values, starts)
    return equal
