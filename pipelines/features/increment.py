"""Increment: decides what can be kept of a previous run, so that a nightly run reads only new files of events.

Reads a previous features artifact, and gives the reason if it cannot be used. The result of an incremental run equals
that of a full run row for row: new events are appended to the sequences, counts are added up, everything is fitted
again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import FileEntry, open_artifact
from pipelines.contracts.schema import DatasetSchema, Split, Window
from pipelines.contracts.schema.window import date_of
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features.reporting.unknown import read_unknown
from pipelines.features.task import Roll
from pipelines.sequences.segments import joined
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.erasure.reject_traces import without_users
from pipelines.tables.event_checks import ItemLookup
from pipelines.tables.files import SourceFile
from pipelines.tables.rejects.checks import REJECTS

# Partitions may grow to this many times the size that a fresh run would choose before a full run cuts them again.
MAX_GROWTH = 2.0
# Parts of the configuration that decide which events there are and what is stored of them.
_BINDING = ("actions", "seed")
_RULES = ("earliest", "latest", "duplicates")
_SPLIT_BINDING = ("column", "valid_fraction", "leave_last_out", "test_until")


@dataclass(frozen=True)
class Previous:
    """A previous run to append to.

    ``facts`` are its manifest's and ``files`` that one's entries; ``vocabulary`` holds its catalogue; ``new_files`` are
    the files it has not read; ``bounds_moved`` says that splits must be coded again, ``same_features`` that what it
    counted still serves.
    """

    dir: Path
    facts: dict[str, Any]
    files: dict[str, FileEntry]
    vocabulary: Vocabulary
    new_files: tuple[SourceFile, ...]
    bounds_moved: bool
    same_features: bool

    @property
    def window(self) -> Window | None:
        """Its rolling windows; None where they did not roll."""
        return Window.of(self.facts)

    @property
    def split(self) -> Split:
        """Its split."""
        return Split.model_validate(self.facts["split"])

    @property
    def partitions(self) -> int:
        """Number of its partitions."""
        return int(self.facts["partitions"])

    def late_before(self, schema: DatasetSchema) -> int | None:
        """The moment before which a new event is late: the configured days before the newest event known."""
        days, last = schema.validation.late_days, self.facts["last_time"]
        if days is None or last is None:
            return None
        return int((last if self.window is None else min(last, self.window.end)) - days * US_PER_DAY)


@dataclass(frozen=True)
class Decision:
    """Either a previous run to build upon, or the reason why a full run is needed."""

    previous: Previous | None
    reason: str


def decide(
    directory: Path | None, schema: DatasetSchema, files: Sequence[SourceFile], roll: Roll | None = None
) -> Decision:
    """Decides whether a run can build upon the artifact at ``directory``; ``unfit`` then compares what was read.

    Args:
        directory: the previous run's artifact; None where there is none.
        schema: of this run.
        files: all files of the events table.
        roll: where rolling windows end; None where they do not roll.
    """
    if directory is None:
        return Decision(None, "no previous run given")
    try:
        artifact = open_artifact(directory, kind="features", verify=False)
        vocabulary = Vocabulary.load(directory / "vocabulary")
    except ArtifactError as err:
        return Decision(None, f"the previous run cannot be read: {err}")
    facts, before, now = artifact.manifest.facts, artifact.manifest.config, schema.model_dump(mode="json")
    reason = _changed_files(facts, files) or _changed_config(before, now) or _gone_back(facts, before, now, roll)
    if reason is not None:
        return Decision(None, reason)
    known = set(facts["event_files"])
    previous = Previous(
        dir=directory,
        facts=facts,
        files=artifact.manifest.files,
        vocabulary=vocabulary,
        new_files=tuple(file for file in files if file.fingerprint not in known),
        bounds_moved=before["split"] != now["split"],
        same_features=before["features"] == now["features"],
    )
    return Decision(previous, f"built upon {directory.name}")


def _changed_files(facts: dict[str, Any], files: Sequence[SourceFile]) -> str | None:
    """Why the files already read rule out an incremental run; None if they do not."""
    if not {"event_files", "duplicates", "unknown", "new_in_test"} <= facts.keys():
        return "the previous run was written by an older version"
    known = Counter(facts["event_files"])
    found = Counter(file.fingerprint for file in files)
    gone = known - found
    if gone:
        return f"{gone.total()} of the files it read have changed or are gone"
    if any(found[name] > count for name, count in known.items()):
        return "a new file has the content of one already read"
    return None


def _changed_config(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Why the configuration rules out an incremental run; None if it does not."""
    if any(before.get(name) != now[name] for name in _BINDING) or _roles(before) != _roles(now):
        return "tables or actions are configured differently"
    if any(before["split"][name] != now["split"][name] for name in _SPLIT_BINDING):
        return "the split is configured differently"
    if (before["split"].get("test_days") is None) != (now["split"]["test_days"] is None):
        return "the split is configured differently"
    rules = [config["validation"]["columns"].get("events") for config in (before, now)]
    if rules[0] != rules[1] or any(before["validation"].get(name) != now["validation"][name] for name in _RULES):
        return "the events are validated by other rules"
    return None


def _gone_back(facts: dict[str, Any], before: dict[str, Any], now: dict[str, Any], roll: Roll | None) -> str | None:
    """Why the windows rule out an incremental run: they reach back to what the last run had no use for."""
    window = Window.of(facts)
    if window is None or roll is None:
        return None
    days, asked = before["split"]["history_days"], now["split"]["history_days"]
    if days is not None and (asked is None or asked > days):
        return f"history_days was {days}: older events are no longer kept"
    end = roll.end_after(int(day) for day in facts["days"])
    if end is not None and end >= window.end:
        return None
    if roll.end_us is not None:
        return (
            f"the windows are to end on {date_of(roll.end_us)}, those of the previous run end on {date_of(window.end)}"
        )
    return f"the previous run's windows end on {date_of(window.end)}, later than the newest event it has read"


def unfit(previous: Previous, item_ids: pa.Array, user_type: str, partitions: int, asked: int | None) -> str | None:
    """Why the previous run's data do not fit this run's; None where they do.

    Args:
        previous: the previous run.
        item_ids: this run's catalogue, in row order.
        user_type: type of this run's user ids.
        partitions: number that a full run would have.
        asked: number that the caller asked for.
    """
    if item_ids.type != previous.vocabulary.item_ids.type:
        return "the item ids have another type"
    if len(previous.vocabulary.item_ids) and (ItemLookup(item_ids).rows(previous.vocabulary.item_ids) < 0).any():
        return "items were taken out of the catalogue"
    if len(item_ids) > len(previous.vocabulary.item_ids) and _has_come(previous.dir, item_ids):
        return "items that were unknown are in the catalogue now"
    if asked is not None and asked != previous.partitions:
        return f"{asked} partitions are asked for, it has {previous.partitions}"
    if partitions > MAX_GROWTH * previous.partitions:
        return f"its {previous.partitions} partitions have become too large"
    if user_type != previous.facts["user_type"]:
        return "the user ids have another type"
    return None


def _roles(config: dict[str, Any]) -> dict[str, Any]:
    events = config["tables"]["events"]
    return {name: value for name, value in events.items() if name != "path"}


def _has_come(directory: Path, item_ids: pa.Array) -> bool:
    """Whether an item that was unknown to the previous run is in this catalogue."""
    unknown = read_unknown(directory)
    return unknown is not None and bool((ItemLookup(item_ids).rows(joined(unknown["item_id"])) >= 0).any())


def remap(previous: pa.Array, item_ids: pa.Array) -> pa.Array | None:
    """``[previous items] int32``: each old row's new row; None where the catalogue is the same."""
    if previous.equals(item_ids):
        return None
    return pa.array(ItemLookup(item_ids).rows(previous), pa.int32())


def kept_rejects(directory: Path, forgotten: Forgotten, user_column: str, id_type: pa.DataType) -> pa.Table:
    """The events' rejects of a previous run, without those of forgotten users and texts that name one."""
    folder = directory / "rejects"
    tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("events-*.parquet"))]
    rejects = pa.concat_tables([REJECTS.empty_table(), *tables])
    return without_users(rejects, forgotten, user_column, id_type)
