"""Partition facts: what the partitions of the features job say to the process that puts the whole together.

Written by workers as small Arrow and JSON files; read back by the process that submitted the job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pyarrow as pa

from pipelines.contracts.files import read_arrow, write_arrow, write_json
from pipelines.features.fitting import Moments, SideSummary, Summary

_PLAIN = ("users", "events", "duplicates", "profiles", "nulls", "rewritten")


@dataclass(frozen=True)
class PartitionFacts:
    """What a partition adds to the whole.

    ``users`` are all that stand in it; ``events`` (by split), ``duplicates`` and the tables count what was counted: all
    its events, or only the new ones of a run that appends. Tables are sparse: rows that it saw. ``profiles`` is the
    number of its rows of the users table, ``nulls`` how many of them lack each column. ``rewritten`` says that its
    base of sequences is a file of this run.
    """

    users: int
    events: list[int]
    item_frequency: pa.Table
    item_counts: pa.Table
    summary: SideSummary
    duplicates: int
    profiles: int
    nulls: dict[str, int]
    rewritten: bool

    def write(self, folder: Path) -> None:
        """Writes Arrow and JSON files below ``folder``."""
        write_arrow(self.item_frequency, folder / "item_frequency.arrow")
        write_arrow(self.item_counts, folder / "item_counts.arrow")
        moments = {}
        for name, summary in self.summary.features.items():
            if summary.counts is not None:
                write_arrow(summary.counts, folder / f"counts.{name}.arrow")
            elif summary.sample is not None:
                write_arrow(summary.sample, folder / f"sample.{name}.arrow")
            elif summary.moments is not None:
                exact = summary.moments
                moments[name] = [exact.count, str(exact.total), str(exact.squares)]
        plain = {name: getattr(self, name) for name in _PLAIN}
        write_json({**plain, "moments": moments}, folder / "facts.json")

    @classmethod
    def read(cls, folder: Path) -> PartitionFacts:
        """Reads what ``write`` wrote."""
        facts = json.loads((folder / "facts.json").read_text())
        features = {
            name: Summary(moments=Moments(count, Fraction(total), Fraction(squares)))
            for name, (count, total, squares) in facts["moments"].items()
        }
        for kind in ("counts", "sample"):
            for path in folder.glob(f"{kind}.*.arrow"):
                features[path.name.split(".")[1]] = Summary(**{kind: read_arrow(path)})
        frequency, counts = (read_arrow(folder / f"{name}.arrow") for name in ("item_frequency", "item_counts"))
        plain = {name: facts[name] for name in _PLAIN}
        return cls(item_frequency=frequency, item_counts=counts, summary=SideSummary(features), **plain)
