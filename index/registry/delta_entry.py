"""An entry of the registry's log of changes, and its bytes: a Parquet table with a checksum before it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipelines.contracts.errors import ArtifactError

FORMAT_VERSION = 2
CHANGES = ("upsert", "remove", "pause", "resume")
# Columns of an entry's rows that are not the ad's own.
ID_COLUMN, CHANGE_COLUMN, SAID_COLUMN = "__item_id__", "__change__", "__said__"
# Files of the log: an entry, and the pauses that removed entries left in force. Those are nowhere else: two copies.
ENTRY_SUFFIX, PAUSED_SUFFIXES = ".delta", (".paused", ".paused-copy")
LOG_SUFFIXES = (ENTRY_SUFFIX, *PAUSED_SUFFIXES)
_METADATA = b"towerline"
# Rows of several entries that are applied at once.
_MERGED_ROWS = 4_096


@dataclass(frozen=True)
class Entry:
    """One change feed as it was applied.

    sequence: its number, counted from 1 for the whole life of the registry. moment_us: when it was written,
    microseconds UTC. rows: ``__item_id__``, ``__change__`` (one of ``CHANGES``), ``__said__`` (for an upsert the names
    of the columns that it sets, nulls included; what it does not set stays as it was) and the ads' own columns in the
    types of the items table. Each item occurs once.
    """

    sequence: int
    moment_us: int
    rows: pa.Table

    def ids(self, change: str) -> pa.Array:
        """Items with this change."""
        return self.rows.filter(pc.equal(self.rows[CHANGE_COLUMN], change))[ID_COLUMN].combine_chunks()

    def count(self, change: str) -> int:
        """Number of items with this change."""
        return len(self.ids(change))


def merged(entries: Sequence[Entry], border: int) -> list[Entry]:
    """Consecutive entries as fewer larger ones that add up to the same: an item occurs once in each.

    Args:
        entries: in their order.
        border: entries up to this number are not merged with later ones.

    Returns:
        Entries with the number of the last one in each.
    """
    found: list[Entry] = []
    group: list[Entry] = []
    seen: set[Any] = set()
    for entry in entries:
        ids = entry.rows[ID_COLUMN].to_pylist()
        joins = group and len(seen) + len(ids) <= _MERGED_ROWS and seen.isdisjoint(ids)
        apart = group and group[-1].sequence <= border < entry.sequence
        if joins and not apart and _fit(group[-1].rows.schema, entry.rows.schema):
            rows = pa.concat_tables([group[-1].rows, entry.rows], promote_options="default")
            group = [Entry(entry.sequence, entry.moment_us, rows)]
            seen.update(ids)
            continue
        found += group
        group, seen = [entry], set(ids)
    return found + group


def _fit(first: pa.Schema, second: pa.Schema) -> bool:
    return all(first.field(name).type == second.field(name).type for name in first.names if name in second.names)


@dataclass(frozen=True)
class Pauses:
    """The ads paused after entry ``sequence``: what the removed entries up to there add up to."""

    sequence: int
    item_ids: pa.Array


def packed(table: pa.Table, facts: dict[str, Any]) -> bytes:
    """A table and facts with a checksum before them."""
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA: json.dumps(facts)}), out, compression="zstd")
    body = out.getvalue()
    return xxhash.xxh3_128_hexdigest(body).encode() + b"\n" + body


def unpacked(content: bytes) -> tuple[pa.Table, dict[str, Any]]:
    """What ``packed`` made.

    Raises:
        ArtifactError: the checksum is not that of the content, or a later version of towerline wrote it.
    """
    digest, _, body = content.partition(b"\n")
    if xxhash.xxh3_128_hexdigest(body).encode() != digest:
        raise ArtifactError("its checksum is not that of its content")
    try:
        # Most entries are small: threads would cost more than they save.
        table = pq.ParquetFile(pa.BufferReader(body)).read(use_threads=False)
        facts: dict[str, Any] = json.loads(table.schema.metadata[_METADATA])
        version = int(facts["format_version"])
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as err:
        raise ArtifactError(f"it is not what towerline writes ({err!r})") from err
    if version > FORMAT_VERSION:
        raise ArtifactError(f"format version {version} is newer than {FORMAT_VERSION}")
    return table, facts
