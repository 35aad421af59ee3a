"""Everything that changes what is served, in any order, next to a model that says what must be served.

After each step every retriever answers several kinds of calls, and each answer equals the model's own recomputation:
the ads that may be shown, their scores and order, by value, by popularity and within rules, and their sources.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from index.building import compaction
from index.publishing import publish as publishing
from index.registry import delta_writer
from index.registry.delta_log import DELTAS, DeltaLog
from index.registry.registry import Registry
from index.retrieval.answer import answer_record
from index.retrieval.candidates import NEW_ITEMS, Candidates
from index.retrieval.live.version import settings_of
from index.retrieval.retriever import Retriever
from tests.forks import forked, killed_after
from tests.index.lifecycle.model import Change, Model, Published, Row
from tests.index.lifecycle.world import CATEGORIES, COLUMNS, GATES, LEARNED, TOWERS, write_night

# A cheap ad says that several moments in a row could be anything: ids from here on are unknown to the towers.
FIRST_NEW = 500
FEWEST = 20
_SETTLE_SECONDS = 20.0
_TOLERANCE = 2e-4

prices = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 2.5, 7.0, 40.0]))
said_columns = st.fixed_dictionaries(
    {},
    optional={
        "category": st.sampled_from([*CATEGORIES, "unheard of", None]),
        "price": prices,
        "stock": st.sampled_from([0, 1, 5, None]),
        "advertiser_id": st.sampled_from(["a0", "a1", "a2", None]),
    },
)


class Lifecycle(RuleBasedStateMachine):
    """A registry in a folder, with the shop's own database, several retrievers, and the model."""

    def __init__(self) -> None:
        super().__init__()
        # In memory where possible: every write is made durable, which a disk takes its time for.
        self.root = Path(tempfile.mkdtemp(prefix="lifecycle-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self.url = self.registry_url()
        self.model = Model()
        self.database: dict[int, Row] = {
            item: {
                "category": CATEGORIES[item % 4],
                "price": None if item % 9 == 0 else 1.0 + item % 7,
                "stock": item % 3,
                "advertiser_id": f"a{item % 3}",
                "frequency": item % 4,
                "sales_7d": item % 5,
            }
            for item in (*LEARNED, FIRST_NEW, FIRST_NEW + 1)
        }
        self.nights = itertools.count()
        self.new_ids = itertools.count(FIRST_NEW + 2)
        self.started: tuple[int, int, dict[int, Row]] | None = None
        self.following: list[Retriever] = []
        self.fixed: list[Retriever] = []
        self.damaged = 0

    def registry_url(self) -> str:
        """Where the registry is."""
        return str(self.root / "registry")

    def teardown(self) -> None:
        """Closes the retrievers and removes all files."""
        for retriever in self.following + self.fixed:
            retriever.close()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def registry(self) -> Registry:
        """The registry, opened as another process would."""
        return Registry(self.url)

    @property
    def log(self) -> DeltaLog:
        """Its log."""
        return DeltaLog(self.registry.store)

    @property
    def live(self) -> str:
        """The live version."""
        assert self.model.live is not None
        return self.model.live

    # Nights.

    @initialize(engine=st.sampled_from(["exact", "scann"]))
    def first_night(self, engine: str) -> None:
        self.begin_night()
        self.publish_night(engine, 0.0, None)
        self.open_following()

    @precondition(lambda self: self.started is None)
    @rule()
    def begin_night(self) -> None:
        """The moment before the tables are read, and the tables as they are then."""
        for item, row in self.database.items():
            row["frequency"] += item % 2
        tables = {item: dict(row) for item, row in self.database.items()}
        self.started = (self.log.last(), len(self.model.changes), tables)

    @precondition(lambda self: self.started is not None)
    @rule(
        engine=st.sampled_from(["exact", "scann"]),
        new_items_share=st.sampled_from([0.0, 0.3]),
        keep=st.sampled_from([None, 2, 4]),
    )
    def publish_night(self, engine: str, new_items_share: float, keep: int | None) -> None:
        """The rest of the night: a bundle of what was read, judged and published."""
        bundle, published = self._night(engine, new_items_share)
        options = publishing.Options(keep=keep)
        version = publishing.run(bundle, bundle.parent / "features", self.url, GATES, options).version
        assert version is not None
        self.model.versions[version] = published
        self.model.live = version
        self._forget_pruned()

    def _night(self, engine: str, new_items_share: float) -> tuple[Path, Published]:
        assert self.started is not None
        (sequence, changes, tables), self.started = self.started, None
        number = next(self.nights)
        bundle = write_night(
            self.root / f"night-{number}",
            tables,
            delta_sequence=sequence,
            engine=engine,
            new_items_share=new_items_share,
            night=number,
        )
        return bundle, Published(tables, changes)

    @rule(choice=st.integers(0, 9))
    def roll_back(self, choice: int) -> None:
        names = self.registry.version_names()
        self.model.live = publishing.rollback(self.url, names[choice % len(names)])

    @rule()
    def compact(self) -> None:
        published = Published(self.model.catalogue(self.live), len(self.model.changes))
        if len(published.tables) < FEWEST:
            return
        version = compaction.run(self.url, self.root / "compacted")
        self.model.versions[version] = published
        self.model.live = version

    def _forget_pruned(self) -> None:
        left = set(self.registry.version_names())
        served = {retriever.version for retriever in self.following + self.fixed}
        for name in set(self.model.versions) - left - served:
            del self.model.versions[name]

    # Changes.

    def _some(self, choice: int) -> int:
        known = sorted(self.model.catalogue(self.live))
        return known[choice % len(known)]

    def _apply(self, changes: list[Change]) -> None:
        delta_writer.apply(self.url, feed(changes))
        self._happened(changes)

    def _happened(self, changes: list[Change]) -> None:
        """The model and the shop's database after a change feed."""
        self.model.changes += changes
        for kind, item, said in changes:
            if kind == "upsert":
                self.database[item] = {"frequency": 0, **self.database.get(item, {}), **said}
            if kind == "remove" and len(self.database) > FEWEST:
                self.database.pop(item, None)

    @rule(choice=st.integers(0, 60))
    def pause(self, choice: int) -> None:
        self._apply([("pause", self._some(choice), {})])

    @rule(choice=st.integers(0, 60))
    def resume(self, choice: int) -> None:
        paused = sorted(self.model.paused() & set(self.model.catalogue(self.live)))
        self._apply([("resume", paused[choice % len(paused)] if paused else self._some(choice), {})])

    @rule(choice=st.integers(0, 60), said=said_columns)
    def change_ad(self, choice: int, said: Row) -> None:
        self._apply([("upsert", self._some(choice), said)])

    @rule(choice=st.integers(0, 60))
    def say_again_what_is_known(self, choice: int) -> None:
        item = self._some(choice)
        row = self.model.catalogue(self.live)[item]
        self._apply([("upsert", item, {name: row.get(name) for name in COLUMNS.names if name != "item_id"})])

    @rule(said=said_columns)
    def add_ad(self, said: Row) -> None:
        self._apply([("upsert", next(self.new_ids), said)])

    @precondition(lambda self: len(self.model.eligible(self.live)) > FEWEST)
    @rule(choice=st.integers(0, 60))
    def remove(self, choice: int) -> None:
        self._apply([("remove", self._some(choice), {})])

    @rule(choices=st.lists(st.integers(0, 60), min_size=2, max_size=4, unique=True), said=said_columns)
    def change_several(self, choices: list[int], said: Row) -> None:
        items = list(dict.fromkeys(self._some(choice) for choice in choices))
        kinds = ("upsert", "pause", "resume", "upsert")
        self._apply([(kind, item, said if kind == "upsert" else {}) for kind, item in zip(kinds, items, strict=False)])

    # Retrievers.

    @rule()
    def open_following(self) -> None:
        """One that follows CURRENT; looked after by hand, so that every moment can be chosen."""
        retriever = Retriever.open(self.url)
        retriever.watch(3600.0)
        self.following.append(retriever)
        if len(self.following) > 2:
            self.following.pop(0).close()
        self._forget_pruned()

    @rule(choice=st.integers(0, 9))
    def open_fixed(self, choice: int) -> None:
        """One on a version by name, which need not be live."""
        names = self.registry.version_names()
        self.fixed.append(Retriever.open(self.url, names[choice % len(names)]))
        if len(self.fixed) > 2:
            self.fixed.pop(0).close()
        self._forget_pruned()

    @rule()
    def look(self) -> None:
        """The watcher's turn: whoever follows is on the live version afterwards."""
        for retriever in self.following:
            retriever.watch(3600.0).check()
            assert retriever.version == self.live, retriever.last_error

    @rule(choice=st.integers(0, 60))
    def change_before_the_last_one_is_laid_out(self, choice: int) -> None:
        """A new ad, which takes a moment to join, and a pause while it joins."""
        self._apply([("upsert", next(self.new_ids), {"category": "shoes"})])
        for retriever in self.following:
            retriever.retrieve({}, 1)
        self._apply([("pause", self._some(choice), {})])
        for retriever in self.following:
            retriever.retrieve({}, 1)

    @rule()
    def a_call_goes_on_while_its_version_leaves(self) -> None:
        """Calls that began before a swap end on their version."""
        begun = [(retriever._serving(), retriever.version) for retriever in self.following]
        self.look()
        for live, version in begun:
            answer = answer_record(live, {"history": [LEARNED[0]]}, 10)
            assert answer.version == version
            assert len(answer) == 10

    @precondition(lambda self: self.damaged < 2)
    @rule()
    def damage_an_entry(self) -> None:
        """An entry that nobody can read: nothing of it is known, and nobody waits for it."""
        self.damaged += 1
        name = f"{DELTAS}/{self.log.last() + 1:08d}.delta"
        assert self.registry.store.create(name, b"neither a checksum nor a table")

    # Kills.

    @rule(choice=st.integers(0, 60), milliseconds=st.integers(0, 60), kind=st.sampled_from(["pause", "upsert"]))
    def crash_in_a_change(self, choice: int, milliseconds: int, kind: str) -> None:
        changes = [(kind, self._some(choice), {"stock": 9} if kind == "upsert" else {})]
        before = self.log.last()
        killed_after(forked(lambda: delta_writer.apply(self.url, feed(changes))), milliseconds / 1000)
        if self.log.last() > before:
            self._happened(changes)

    @precondition(lambda self: self.started is not None)
    @rule(milliseconds=st.integers(0, 80))
    def crash_in_a_publish(self, milliseconds: int) -> None:
        bundle, published = self._night("exact", 0.0)
        before = set(self.registry.version_names())
        work = functools.partial(publishing.run, bundle, bundle.parent / "features", self.url, GATES)
        killed_after(forked(work), milliseconds / 1000)
        for name in set(self.registry.version_names()) - before:
            self.model.versions[name] = published
        self.model.live = self.registry.current()

    @rule(choice=st.integers(0, 9), milliseconds=st.integers(0, 40))
    def crash_in_a_rollback(self, choice: int, milliseconds: int) -> None:
        names = self.registry.version_names()
        work = functools.partial(publishing.rollback, self.url, names[choice % len(names)])
        killed_after(forked(work), milliseconds / 1000)
        self.model.live = self.registry.current()

    # What must hold.

    @invariant()
    def all_serve_what_the_model_says(self) -> None:
        if self.model.live is None:
            return
        assert self.registry.current() == self.live
        for retriever in self.following + self.fixed:
            self.before_a_check(retriever)
            shown = set(retriever.retrieve({"history": [LEARNED[0]]}, 1000).item_ids.tolist())
            forbidden = shown & self.model.paused()
            assert not forbidden, f"paused, and shown in the next call: {forbidden}"
            self._settle(retriever)
            check(retriever, self.model)

    def before_a_check(self, retriever: Retriever) -> None:
        """On a folder nothing is to be done: every call sees the log."""

    def _settle(self, retriever: Retriever) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        readable = max((entry.sequence for entry in self.log.after(0)), default=0)
        while retriever.delta_sequence < readable:
            assert time.monotonic() < deadline, "the changes did not join"
            time.sleep(0.001)


class LifecycleInABucket(Lifecycle):
    """The same in an object store, whose log is read at intervals: here before each check, by hand.

    Nothing is forked: the client of the store does not survive that.
    """

    endpoint = ""
    buckets = itertools.count()

    def registry_url(self) -> str:
        """A new bucket."""
        import fsspec.config
        import s3fs

        options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": self.endpoint}}
        fsspec.config.conf["s3"] = options
        os.environ["TOWERLINE_CACHE"] = str(self.root / "cache")
        bucket = f"lifecycle-{next(self.buckets)}"
        s3fs.S3FileSystem(**options).mkdir(bucket)
        return f"s3://{bucket}/registry"

    def before_a_check(self, retriever: Retriever) -> None:
        """What a watcher does at its interval."""
        retriever._look()

    def crash_in_a_change(self) -> None:  # type: ignore[override]
        """No rule here."""

    def crash_in_a_publish(self) -> None:  # type: ignore[override]
        """No rule here."""

    def crash_in_a_rollback(self) -> None:  # type: ignore[override]
        """No rule here."""


def feed(changes: list[Change]) -> pa.Table:
    """A change feed that sets exactly the columns that its upserts say."""
    said = next((row for kind, _, row in changes if kind == "upsert"), {})
    columns: dict[str, Any] = {
        "item_id": pa.array([item for _, item, _ in changes], pa.int64()),
        "change": pa.array([kind for kind, _, _ in changes]),
    }
    for name in said:
        columns[name] = pa.array([row.get(name) for _, _, row in changes], COLUMNS.field(name).type)
    return pa.table(columns)


def check(retriever: Retriever, model: Model) -> None:
    """Compares answers of several kinds with the model's."""
    tuned, serving = retriever.bundle.searcher, retriever._serving().searcher
    assert serving.effort == tuned.effort
    assert serving.indexes_value == tuned.indexes_value
    rows = model.eligible(retriever.version)
    catalogue = model.catalogue(retriever.version)
    history = [item for item in (LEARNED[0], LEARNED[3], FIRST_NEW) if item in catalogue]
    record = {"history": history}
    known = {item: TOWERS.item(item, row) for item, row in catalogue.items()}
    user = TOWERS.user([known[item] for item in history]) if history else None
    if user is not None:
        scores = {item: float(user @ known[item]) for item in rows}
        blends = retriever.retrieve(record, 10)
        compare(retriever, record, scores, rows)
        shoes = {item: score for item, score in scores.items() if rows[item].get("category") == "shoes"}
        compare(retriever, record, shoes, rows, where="category == 'shoes'")
        cheap = {item: score for item, score in scores.items() if (rows[item].get("price") or math.inf) < 3}
        compare(retriever, record, cheap, rows, where="price < 3 and price > 0")
        by_value = {item: score + 0.3 * rows[item]["log_value"] for item, score in scores.items()}
        compare(retriever, record, by_value, rows, value_weight=0.3)
        new = {item for item, row in rows.items() if not row.get("frequency")}
        labelled = set(blends.item_ids[blends.sources == NEW_ITEMS].tolist())
        assert labelled <= new
        if settings_of(retriever.bundle).new_items_share:  # Under another label where the towers have it first.
            assert new.isdisjoint(blends.item_ids.tolist()) == (not new)
    popular = {item: math.log1p(row.get("frequency") or 0) for item, row in rows.items()}
    compare(retriever, {}, popular, rows)


def compare(retriever: Retriever, record: Row, scores: dict[int, float], rows: dict[int, Row], **rules: Any) -> None:
    """The whole ranking: the same ads, each with its score, and in the order of the scores."""
    found: Candidates = retriever.retrieve(record, 1000, **rules)
    ids = found.item_ids.tolist()
    assert sorted(ids) == sorted(scores), f"{rules}: {set(ids) ^ set(scores)} in one of both only"
    wanted = np.array([scores[item] for item in ids])
    np.testing.assert_allclose(found.scores, wanted, atol=_TOLERANCE, err_msg=str(rules))
    if not (found.sources == NEW_ITEMS).any():
        assert (np.diff(wanted) <= 2 * _TOLERANCE).all(), f"{rules}: not in the order of the scores"
