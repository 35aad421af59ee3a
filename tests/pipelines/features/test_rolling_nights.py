"""Rolling windows: each night's incremental run equals a full run, and both equal a count by hand."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema.window import Window
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features import job as features
from pipelines.features.reporting.unknown import read_unknown
from pipelines.sequences.reader import Sequences, load_items
from pipelines.tables.erasure.forget_list import ForgetList
from tests.pipelines.conftest import at, raw_schema, schema_of, write_rows
from tests.pipelines.features.test_job import content

Row = dict[str, Any]
VALID_DAYS, TEST_DAYS, HISTORY_DAYS = 2, 3, 12
DAY = 86_400_000_000
FIRST, NIGHTS = 14, 20
COLORS = ("red", "blue", "green")


def micros(time: datetime.datetime) -> int:
    return (time - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


class Shop:
    """A random shop whose tables grow from night to night; ``events`` has what each file holds."""

    def __init__(self, folder: Path, seed: int, duplicates: str) -> None:
        self.folder = folder
        self._rng = random.Random(seed)
        self.items = [self._item(10 * number) for number in range(1, 9)]
        self.users = [{"user": number, "country": "DE"} for number in (5001, 5002, 5003, 5090)]
        self.events: list[Row] = []
        raw = raw_schema(folder)
        raw["split"] = {"valid_days": VALID_DAYS, "test_days": TEST_DAYS, "history_days": HISTORY_DAYS}
        raw["validation"] = {"max_reject_rate": 1.0, "min_joined": 0.0, "duplicates": duplicates, "drift": "off"}
        self.schema = schema_of(raw)

    def _item(self, number: int) -> Row:
        color, price = self._rng.choice(COLORS), self._rng.uniform(1, 9)
        return {"item": number, "color": color, "title": f"thing {number}", "price": price, "since": at(-number)}

    def event(self, first: float, last: float) -> Row:
        """An event between two days; of a few users who come and go, and now and then one that repeats another."""
        rng = self._rng
        if self.events and rng.random() < 0.1:
            return rng.choice(self.events)
        time = at(round(rng.uniform(first, last), 2))
        # Users of a day of their own leave when it becomes too old.
        user = rng.choice([5001, 5002, 5003, 5004, 5005, 6000 + int(first), 7000 + int(last)])
        item = rng.choice([*(one["item"] for one in self.items), 15, 999])
        action = rng.choice(["click", "click", "purchase", "returned"])
        return {"user": user, "item": item, "time": time, "action": action, "price": float(rng.randrange(4))}

    def add_file(self, name: str, rows: list[Row]) -> None:
        """One more file of events."""
        self.events += rows
        write_rows(self.folder, **{f"events-{name}": rows})

    def before(self, days: int) -> None:
        """The events of the days before the first night."""
        self.add_file("000", [self.event(0, days) for _ in range(150)])

    def day(self, day: int) -> None:
        """A day's file: its events, late ones (some too late), and some of a wrong clock. Also new items and users."""
        rng = self._rng
        rows = [self.event(day, day + 1) for _ in range(rng.choice([0, 3, 12]))]
        if day % 7:  # No event of the day at all, or one that is sure to be accepted.
            rows.append({"user": 5004, "item": 10, "time": at(day + 0.5), "action": "click", "price": 0.0})
        else:
            rows.clear()
        rows += [self.event(max(day - 20, 0), day) for _ in range(rng.randrange(3))]
        rows += [self.event(day + 1, day + 4) for _ in range(rng.randrange(3))]
        if day % 5 == 0:
            rows.append({**self.event(day, day + 1), "time": at(20_000)})
        self.add_file(f"{day:03d}", rows)
        if rng.random() < 0.3:
            self.items.append(self._item(rng.choice([15, 7, 95]) + 100 * day))
        if rng.random() < 0.3:
            self.users = [*self.users[1:], {"user": 6000 + day, "country": rng.choice(["FR", None])}]
        self.write_tables()

    def write_tables(self) -> None:
        """The items and the users."""
        write_rows(self.folder, items=self.items, users=self.users)


def expected(shop: Shop, end: int, forgotten: set[int], *, reject: bool, whole: bool) -> dict[str, Any]:
    """What a night may know, written as loops over all rows."""
    rows = {one["item"]: row for row, one in enumerate(sorted(shop.items, key=lambda one: one["item"]))}
    sequences: dict[int, list[tuple[int, int, int, float]]] = {one["user"]: [] for one in shop.users}
    for event in shop.events:
        time, known = micros(event["time"]), event["item"] in rows and event["action"] != "returned"
        if known and end - HISTORY_DAYS * DAY <= time < end and event["time"] < at(19_000):
            code = ("click", "purchase").index(event["action"])
            sequences.setdefault(event["user"], []).append((time, rows[event["item"]], code, event["price"]))
    bounds = (end, end) if whole else (end - (VALID_DAYS + TEST_DAYS) * DAY, end - TEST_DAYS * DAY)
    found: dict[str, Any] = {"ids": [], "events": [], "splits": [], "trained": Counter()}
    for user, events in sorted(sequences.items()):
        if user in forgotten:
            continue
        kept = sorted(set(events) if reject else events)
        splits = [sum(time >= bound for bound in bounds) for time, *_ in kept]
        found["ids"].append(user)
        found["events"].append(kept)
        found["splits"].append(splits)
        found["trained"].update(row for (_, row, *_), split in zip(kept, splits, strict=True) if split == 0)
    return found


def known(out: Path) -> dict[str, Any]:
    """The same, read from an artifact."""
    opened = Sequences.open(out)
    events = opened.events
    found: dict[str, Any] = {"ids": opened.user_ids.to_pylist(), "events": [], "splits": []}
    for first, last in zip(events.offsets[:-1], events.offsets[1:], strict=True):
        assert events.values is not None
        columns = (events.times, events.rows, events.actions, events.values)
        found["events"].append(list(zip(*(column[first:last].tolist() for column in columns), strict=True)))
        found["splits"].append(events.splits[first:last].tolist())
    frequency = Vocabulary.load(out / "vocabulary").item_frequency
    found["trained"] = Counter({row: number for row, number in enumerate(frequency.tolist()) if number})
    return found


def facts_of(out: Path) -> dict[str, Any]:
    facts = dict(open_artifact(out, kind="features").manifest.facts)
    # The first and last moments that were ever read may be of users who have been forgotten since.
    for name in ("increment", "shards", "drift", "source_files", "forgotten", "first_time", "last_time"):
        del facts[name]
    # Of days that have left the disk nobody knows any more which users' events they were.
    history = facts["window"]["history_from"]
    facts["days"] = {day: count for day, count in facts["days"].items() if int(day) * DAY >= history}
    return facts


def everything(out: Path) -> dict[str, Any]:
    """All tables of an artifact, as readers see them."""
    window = Window.of(open_artifact(out, kind="features").manifest.facts)
    unknown = read_unknown(out, window)
    strange = [] if unknown is None else unknown.select(["user_id", "item_id", "time"]).to_pylist()
    return {
        **content(out),
        "items": load_items(out).to_pylist(),
        "held out": (out / "item_held_out.arrow").read_bytes(),
        "unknown": Counter(map(str, strange)),
    }


def used(out: Path) -> bool:
    return bool(open_artifact(out, kind="features").manifest.facts["increment"]["used"])


@pytest.mark.parametrize(("seed", "duplicates"), [(1, "keep"), (2, "reject")])
def test_twenty_nights_by_the_clock_equal_full_runs_and_a_count_by_hand(
    tmp_path: Path, seed: int, duplicates: str
) -> None:
    """A file each night: late events, events of a wrong clock, duplicates, new items and users, users to forget."""
    shop = Shop(tmp_path, seed, duplicates)
    shop.before(FIRST)
    last, forgotten, incremental = None, set[int](), 0
    for day in range(FIRST, FIRST + NIGHTS):
        shop.day(day)
        if day in (FIRST + 6, FIRST + 13):
            forgotten |= {5001, 6000 + day - 3} if day == FIRST + 6 else {5003}
        lists, now = ForgetList.of(tuple(sorted(forgotten))), at(day + 0.6)
        night = features.run(shop.schema, tmp_path / "night", previous=last, forget=lists, now=now, partitions=2)
        full = features.run(shop.schema, tmp_path / "full", forget=lists, now=now, partitions=2)
        incremental += used(night)
        assert everything(night) == everything(full)
        assert facts_of(night) == facts_of(full)
        newest = max(
            (micros(event["time"]) for event in accepted(shop, forgotten) if event["time"] < at(day + 1)), default=0
        )
        end = newest // DAY * DAY + DAY
        by_hand = expected(shop, end, forgotten, reject=duplicates == "reject", whole=False)
        assert known(night) == by_hand
        last = night
    # Some nights forget the user of the newest event, or find an item that was unknown.
    assert incremental >= NIGHTS // 2


def accepted(shop: Shop, forgotten: set[int]) -> list[Row]:
    names = {one["item"] for one in shop.items}
    return [
        event
        for event in shop.events
        if event["item"] in names and event["action"] != "returned" and event["user"] not in forgotten
    ]


@pytest.mark.parametrize("duplicates", ["keep", "reject"])
def test_past_nights_from_one_file_equal_full_runs_and_a_count_by_hand(tmp_path: Path, duplicates: str) -> None:
    """The file has all events from the start; each night takes one more day of it, and no row is read again."""
    shop = Shop(tmp_path, 5, duplicates)
    shop.add_file("all", [shop.event(0, FIRST + NIGHTS) for _ in range(400)])
    shop.write_tables()
    last = None
    for day in range(FIRST, FIRST + NIGHTS, 2):
        night = features.run(shop.schema, tmp_path / "night", previous=last, as_of=at(day), partitions=2)
        full = features.run(shop.schema, tmp_path / "full", as_of=at(day + 0.9), partitions=2)
        assert used(night) == (last is not None)
        assert everything(night) == everything(full)
        assert facts_of(night) == facts_of(full)
        assert known(night) == expected(shop, micros(at(day)), set(), reject=duplicates == "reject", whole=False)
        whole = features.run(shop.schema, tmp_path / "whole", previous=night, whole=True)
        fresh = features.run(shop.schema, tmp_path / "fresh", as_of=at(day), whole=True, partitions=2)
        assert used(whole)
        assert everything(whole) == everything(fresh)
        assert facts_of(whole) == facts_of(fresh)
        assert known(whole) == expected(shop, micros(at(day)), set(), reject=duplicates == "reject", whole=True)
        last = night
