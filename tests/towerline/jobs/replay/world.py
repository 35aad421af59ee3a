"""A small shop with ten days of events, and nights that cost little: real features, a real registry, bundles by hand.

Every night's bundle has vectors of its own, so that the versions answer differently. One night is refused by a gate,
one fails, one day has no events.
"""

from __future__ import annotations

import datetime
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.publishing.verdict import Verdict
from index.registry.registry import Registry
from pipelines.contracts.errors import GateError, SchemaError
from pipelines.contracts.manifest import read_manifest
from pipelines.features import job as features
from tests.index.serving_bundles import CATEGORIES, COUNTRIES, SCHEMA, nest, write_bundle
from towerline.config import Config
from towerline.jobs.refresh import Refreshed, StageOutcome

ITEMS, USERS, NIGHTS = 260, 24, 9
FIRST = datetime.date(2025, 3, 10)
EMPTY, REFUSED, FAILED = 4, 3, 5
ACTIONS = {"click": 1.0, "purchase": 3.0, "view": 0.0}
GATES = (
    Verdict("items", "passed", 260.0, 1.0, "features", "items in the catalogue"),
    Verdict("churn", "failed", 0.97, 0.95, "train", "too much"),
)


@dataclass(frozen=True)
class Event:
    """One row of the events table."""

    user: str
    item: int
    time: datetime.datetime
    action: str


def date(night: int) -> datetime.date:
    return FIRST + datetime.timedelta(days=night)


def midnight(night: int) -> datetime.datetime:
    day = date(night)
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)


def events(seed: int = 3) -> list[Event]:
    """Events of thirty days before the first night and of each day after, none on one of them.

    User u23 comes on the third day; items from place 250 on are chosen for the first time after the first night.
    """
    rng = np.random.default_rng(seed)
    made = []
    for day in range(-30, NIGHTS):
        if day == EMPTY:
            continue
        for place in range(40 if day < 0 else 24):
            user = int(rng.integers(0, USERS - 1 if day < 2 else USERS))
            item = int(rng.zipf(1.3) * 7 % (250 if day < 1 else ITEMS))
            seconds = 600 * place + int(rng.integers(0, 600))
            moment = midnight(day) + datetime.timedelta(seconds=seconds)
            action = ("click", "click", "purchase", "view")[int(rng.integers(0, 4))]
            made.append(Event(f"u{user:02d}", 1000 + 3 * item, moment, action))
    return made


def profile(user: int) -> dict[str, Any]:
    age = None if user % 5 == 0 else 20 + user
    return {"country": COUNTRIES[user % 3], "age": age, "interests": [CATEGORIES[user % 5]]}


def write_tables(folder: Path, made: list[Event]) -> None:
    """The three tables as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "user_id": [one.user for one in made],
        "item_id": [one.item for one in made],
        "t": pa.array([one.time for one in made], pa.timestamp("us", tz="UTC")),
        "action": [one.action for one in made],
    }
    pq.write_table(pa.table(columns), folder / "e.parquet")
    ids = [1000 + 3 * item for item in range(ITEMS)]
    items = {"item_id": ids, "advertiser_id": [f"a{item % 9}" for item in ids], "title": [f"ad {item}" for item in ids]}
    pq.write_table(pa.table(items), folder / "i.parquet")
    users = pa.table({"user_id": [f"u{user:02d}" for user in range(USERS)]})
    for name in ("country", "age", "interests"):
        users = users.append_column(name, pa.array([profile(user)[name] for user in range(USERS)]))
    pq.write_table(users, folder / "u.parquet")


def config(folder: Path, **sections: Any) -> Config:
    """The configuration of the shop, whose run is below ``folder``."""
    tables = {name: {**table, "path": str(folder / table["path"])} for name, table in SCHEMA["tables"].items()}
    split = {"valid_days": 3, "test_days": 3}
    made = {**SCHEMA, "tables": tables, "actions": ACTIONS, "split": split}
    return Config.model_validate({**made, "paths": {"work": str(folder / "run")}, **sections})


class Stopped(BaseException):
    """Ends a replay wherever it is raised, as a kill does."""


@dataclass
class Nights:
    """Stands in for ``refresh.run``: features as the job makes them, then a bundle of the night's own.

    bundles: what each night built. seen: the last moment in the tables of each night. stop_at: raises ``Stopped`` at
    (night, "begin", "features" or "publish"), once. healthy: no night is refused or fails.
    """

    stored: Path
    bundles: dict[int, Path] = field(default_factory=dict)
    seen: dict[int, datetime.datetime] = field(default_factory=dict)
    ran: list[int] = field(default_factory=list)
    stop_at: tuple[int, str] | None = None
    healthy: bool = False

    def run(self, made: Config, *, as_of: datetime.datetime, **_: Any) -> Refreshed:
        night = (as_of - midnight(0)).days
        self.ran.append(night)
        self._stop(night, "begin")
        if night == FAILED and not self.healthy:
            raise SchemaError("expected a disk with room, got a full one")
        self._features(made, night, as_of)
        self._stop(night, "features")
        bundle = self._bundle(night)
        if night == REFUSED and not self.healthy:
            shutil.copytree(bundle, made.work / "night" / "bundle", dirs_exist_ok=True)
            raise GateError("1 gate(s) failed, at fault: train.", [verdict.as_fact() for verdict in GATES])
        registry = Registry(made.registry)
        known = [one for one in registry.versions() if one.fingerprint == read_manifest(bundle).fingerprint]
        version = known[0].name if known else registry.publish(bundle, facts={"gates": [GATES[0].as_fact()]}, keep=2)
        self._stop(night, "publish")
        stages = (StageOutcome("features", "ran", 0.2, "x"), StageOutcome("night/bundle", "ran", 0.1, "y"))
        return Refreshed(version, not known, stages, () if known else (GATES[0],), made.work / "refresh.json")

    def _features(self, made: Config, night: int, as_of: datetime.datetime) -> None:
        files = sorted(Path(made.tables.events.paths[0]).glob("*.parquet"))
        self.seen[night] = max(pq.read_table(file)["t"].to_pylist()[-1] for file in files)
        backtest = made.work / "features"
        schema, previous = made.schema_only(), backtest if backtest.exists() else None
        features.run(schema, backtest, previous=previous, as_of=as_of)
        features.run(schema, made.work / "night" / "features", previous=backtest, whole=True)

    def _bundle(self, night: int) -> Path:
        """The night's bundle, with that of its backtest inside."""
        bundle = self.bundles[night] = self.stored / f"bundle-{night}"
        if not bundle.exists():
            with mock.patch.dict(SCHEMA, actions=ACTIONS):
                parts = [
                    write_bundle(self.stored / f"{name}-{night}", items=ITEMS, seed=seed, users=False)
                    for name, seed in (("plain", night), ("backtest", 100 + night))
                ]
            nest(*parts, bundle)
        return bundle

    def _stop(self, night: int, place: str) -> None:
        if self.stop_at == (night, place):
            self.stop_at = None
            raise Stopped
