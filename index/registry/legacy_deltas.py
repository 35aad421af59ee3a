"""Changes of ads in registries of the old format, which kept a log for each version.

    deltas/<version>/00000003/      one entry: an artifact of kind delta

Only the entries of the live version count: publishing and rolling back copied what was in force. They are the first
entries of the registry's log, under the same numbers, until they are written into it.
"""

from __future__ import annotations

import datetime
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.registry.delta_entry import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, Entry
from index.registry.storage.store import Store
from index.registry.storage.version_name import can_be_name
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact

_CURRENT, _DELTAS, _KIND = "CURRENT", "deltas", "delta"
_RAW_FILE, _ROWS_FILE, _IDS_FILE = "raw.parquet", "rows.parquet", "ids.parquet"
_SAID = pa.list_(pa.string())
_LOG = logging.getLogger("towerline.registry")


class LegacyDeltas:
    """The live version's own log in a registry of the old format; empty in any other. It is only read."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def last(self) -> int:
        """Number of the last entry; 0 if there is none."""
        return max((int(name) for name in self._names()), default=0)

    def entries(self) -> list[Entry]:
        """All entries, 1 to ``last``, in order. One that is damaged or missing is logged, and changes nothing."""
        there = {int(name): name for name in self._names()}
        return [self._entry(number, there.get(number)) for number in range(1, max(there, default=0) + 1)]

    def _folder(self) -> str | None:
        live = (self._store.read_bytes(_CURRENT) or b"").decode(errors="replace").strip()
        return f"{_DELTAS}/{live}" if can_be_name(live) else None

    def _names(self) -> list[str]:
        folder = self._folder()
        return [] if folder is None else [name for name in self._store.artifacts(folder) if name.isdecimal()]

    def _entry(self, number: int, name: str | None) -> Entry:
        folder = self._folder()
        try:
            if name is None:
                raise ArtifactError("missing")
            artifact = open_artifact(self._store.fetch(f"{folder}/{name}"), kind=_KIND)
            rows = pa.concat_tables(
                [
                    _upserts(pq.read_table(artifact.dir / _RAW_FILE), pq.read_table(artifact.dir / _ROWS_FILE)),
                    _others(pq.read_table(artifact.dir / _IDS_FILE)),
                ],
                promote_options="default",
            )
            moment = datetime.datetime.fromisoformat(artifact.manifest.created_at)
            return Entry(number, round(moment.timestamp() * 1_000_000), rows.combine_chunks())
        except (ArtifactError, OSError, pa.ArrowException) as err:
            _LOG.error(
                "%s/%s: entry %d is left out: %s. Apply its changes again.", self._store.url, folder, number, err
            )
            return Entry(number, 0, _others(pa.table({"item_id": pa.array([], pa.string()), "change": pa.array([])})))


def _upserts(raw: pa.Table, rows: pa.Table) -> pa.Table:
    """The ads. The old format filled up the columns that a feed did not have with nulls: a column without any value
    counts as not said."""
    said = [name for name in raw.column_names if raw[name].null_count < len(raw)]
    return pa.table(
        {
            ID_COLUMN: rows["item_id"],
            CHANGE_COLUMN: pa.repeat("upsert", len(raw)),
            SAID_COLUMN: pa.array([said], _SAID).take(pa.array(np.zeros(len(raw), np.int64))),
            **{name: raw[name] for name in said},
        }
    )


def _others(ids: pa.Table) -> pa.Table:
    return pa.table(
        {
            ID_COLUMN: ids["item_id"],
            CHANGE_COLUMN: ids["change"].cast(pa.string()),
            SAID_COLUMN: pa.nulls(len(ids), _SAID),
        }
    )
