"""Increment: what of a previous run can be kept, so that a nightly run reads only the new files of events.

Reads a previous features artifact; decides, and says why not where it cannot be built upon. The result of a run that
builds upon it equals that of a full run row for row: sequences are merged, everything fitted is fitted anew.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import ArtifactError
from pipelines.events import Catalogue
from pipelines.manifest import open_artifact
from pipelines.schema import DatasetSchema
from pipelines.tables import SourceFile
from pipelines.validation import REJECTS
from pipelines.vocabulary import Vocabulary

# Partitions may outgrow the size a fresh run would choose by so much before a full run cuts them anew.
MAX_GROWTH = 2.0
# Parts of the configuration that decide which events there are and what is stored of them.
_BINDING = ("actions", "seed")
_SPLIT_BINDING = ("column", "valid_fraction", "leave_last_out", "test_until")


@dataclass(frozen=True)
class Previous:
    """A previous run to build upon.

    ``facts`` are its manifest's; ``vocabulary`` holds its catalogue; ``new_files`` are the files it has not read;
    ``bounds_moved`` says that splits must be coded anew.
    """

    dir: Path
    facts: dict[str, Any]
    vocabulary: Vocabulary
    new_files: tuple[SourceFile, ...]
    bounds_moved: bool

    @property
    def partitions(self) -> int:
        """Number of its partitions."""
        return int(self.facts["partitions"])

    def late_before(self, schema: DatasetSchema) -> int | None:
        """The moment before which a new event is late: the configured days before the newest event known."""
        days, last = schema.validation.late_days, self.facts["last_time"]
        return None if days is None or last is None else int(last - days * 86_400_000_000)


@dataclass(frozen=True)
class Decision:
    """Either a previous run to build upon, or the reason why a full run is needed."""

    previous: Previous | None
    reason: str


def decide(directory: Path | None, schema: DatasetSchema, files: Sequence[SourceFile], item_ids: pa.Array) -> Decision:
    """Decides whether a run can build upon the artifact at ``directory``.

    Args:
        directory: the previous run's artifact; None where there is none.
        schema: of this run.
        files: all files of the events table.
        item_ids: this run's catalogue, in row order.
    """
    if directory is None:
        return Decision(None, "no previous run given")
    try:
        artifact = open_artifact(directory, kind="features", verify=False)
        vocabulary = Vocabulary.load(directory / "vocabulary")
    except ArtifactError as err:
        return Decision(None, f"the previous run cannot be read: {err}")
    facts, before = artifact.manifest.facts, artifact.manifest.config
    known = Counter(facts.get("event_files", []))
    found = Counter(file.fingerprint for file in files)
    gone = known - found
    new = tuple(file for file in files if file.fingerprint not in known)
    now = schema.model_dump(mode="json")
    if "event_files" not in facts:
        reason = "the previous run does not list its files"
    elif gone:
        reason = f"{gone.total()} of the files it read have changed or are gone"
    elif any(found[name] > count for name, count in known.items()):
        reason = "a new file has the content of one already read"
    elif any(before.get(name) != now[name] for name in _BINDING) or _roles(before) != _roles(now):
        reason = "tables or actions are configured differently"
    elif any(before["split"][name] != now["split"][name] for name in _SPLIT_BINDING):
        reason = "the split is configured differently"
    elif before["validation"]["columns"].get("events") != now["validation"]["columns"].get("events") or any(
        before["validation"][name] != now["validation"][name] for name in ("earliest", "latest")
    ):
        reason = "the events are validated by other rules"
    elif item_ids.type != vocabulary.item_ids.type:
        reason = "the item ids have another type"
    elif len(vocabulary.item_ids) and (Catalogue(item_ids).rows(vocabulary.item_ids) < 0).any():
        reason = "items were taken out of the catalogue"
    elif len(item_ids) > len(vocabulary.item_ids) and _unknown_items(facts):
        reason = "events rejected for an unknown item may have become acceptable"
    else:
        moved = before["split"] != now["split"]
        return Decision(Previous(directory, facts, vocabulary, new, moved), f"built upon {directory.name}")
    return Decision(None, reason)


def _roles(config: dict[str, Any]) -> dict[str, Any]:
    events = config["tables"]["events"]
    return {name: value for name, value in events.items() if name not in ("path", "format")}


def _unknown_items(facts: dict[str, Any]) -> bool:
    return any(reason.startswith("unknown:") for reason in facts["tables"]["events"]["rejects"])


def remap(previous: pa.Array, item_ids: pa.Array) -> pa.Array | None:
    """``[previous items] int32``: each old row's new row; None where the catalogue is the same."""
    if previous.equals(item_ids):
        return None
    return pa.array(Catalogue(item_ids).rows(previous), pa.int32())


def kept_rejects(directory: Path, forgotten: pa.Array | None, user_column: str) -> pa.Table:
    """The events' rejects of a previous run, without those of users to be forgotten."""
    folder = directory / "rejects"
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("events-*.parquet"))]
    rejects = pa.concat_tables([REJECTS.empty_table(), *tables])
    if forgotten is None or len(rejects) == 0:
        return rejects
    named = pa.array([_user_of(record, user_column) for record in rejects["record"].to_pylist()], pa.string())
    bad = np.asarray(pc.is_in(named, value_set=forgotten.cast(pa.string())), dtype=bool)
    return rejects.filter(pa.array(~bad))


def _user_of(record: str | None, column: str) -> str | None:
    """The user a reject's record names, as text; a record cut short is searched for its column."""

    if record is None:
        return None
    try:
        value = json.loads(record)
        value = value.get(column) if isinstance(value, dict) else value
    except ValueError:
        found = re.search(rf'"{re.escape(column)}": "?([^",}}]*)', record)
        value = found.group(1) if found else record
    return None if value is None else str(value)
