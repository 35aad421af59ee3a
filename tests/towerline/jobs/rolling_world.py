"""A small shop whose nights roll: the marketplace's events by day, of which a night sees those before it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.progress import SILENT, Progress
from tests.worlds import write_marketplace
from towerline.project import Project, open_project

VALID_DAYS = TEST_DAYS = 7
SMALL = (
    "towers.epochs=2",
    "towers.min_steps=2",
    "towers.embedding_dim=8",
    "index.tuning_queries=10",
    "gates.churn=1.0",
    "gates.panel=60",
    "gates.agreement=0.0",
)


@dataclass(frozen=True)
class Shop:
    """``root``: the tables. ``all_events``: of all sixty days."""

    root: Path
    all_events: pa.Table

    @classmethod
    def write(cls, root: Path, *, users: int = 150, items: int = 200, events: int = 6000) -> Shop:
        """Writes the tables, without events yet."""
        toml = write_marketplace(root, users=users, items=items, events=events)
        text = toml.read_text().replace('path = "events.parquet"', 'path = "events"')
        split = f"valid_days = {VALID_DAYS}\ntest_days = {TEST_DAYS}"
        toml.write_text(text.replace("valid_from = 2025-02-16\ntest_from = 2025-02-23", split))
        (root / "events").mkdir()
        return cls(root, pq.read_table(root / "events.parquet"))

    def reach(self, day: datetime.date) -> None:
        """Adds the events of the days before ``day`` that are not there yet, in one file."""
        there = [datetime.date.fromisoformat(file.stem) for file in (self.root / "events").glob("*.parquet")]
        events = self.before(day)
        if there:
            events = events.filter(pc.greater_equal(events["time"], _midnight(max(there))))
        pq.write_table(events, self.root / "events" / f"{day}.parquet")

    def before(self, day: datetime.date) -> pa.Table:
        """All events before a day."""
        return self.all_events.filter(pc.less(self.all_events["time"], _midnight(day)))

    def project(self, work: Path, *more: str, progress: Progress = SILENT) -> Project:
        """The shop's project, with tiny towers and gates that let a night pass."""
        return open_project(self.root / "marketplace.toml", overrides=(*SMALL, *more), work=work, progress=progress)


def _midnight(day: datetime.date) -> Any:
    moment = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    return pa.scalar(moment, pa.timestamp("us", tz="UTC"))


def microseconds(day: datetime.date) -> int:
    """A midnight as the features' facts have it."""
    return int(_midnight(day).cast(pa.int64()).as_py())
