"""What a replay must find, by loops over the raw events: records, truth, recall. Versions answer by ``Retriever``."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from index.retrieval.retriever import Retriever
from tests.towerline.jobs.replay.world import Event, midnight, profile

K, HISTORY = 100, 12


def record_of(user: str, before: list[Event], moment: datetime.datetime) -> dict[str, Any]:
    """The user as of midnight."""
    own = sorted((one for one in before if one.user == user), key=lambda one: one.time)[-HISTORY:]
    known = {name: value for name, value in profile(int(user[1:])).items() if value is not None}
    record = {"user_id": user, "time": moment, **known}
    if own:
        record["history"] = [one.item for one in own]
        record["history_time"] = [one.time for one in own]
        record["history_action"] = [one.action for one in own]
    return record


def users_of(events: Iterable[Event], night: int) -> list[str]:
    """Users with an event on the day that counts."""
    return sorted({one.user for one in events if one.time.date() == midnight(night).date() and one.action != "view"})


def recalls(events: list[Event], night: int, bundle: Path) -> dict[str, dict[str, float | None]]:
    """Recall@100 by user and part; None where there is no truth."""
    moment = midnight(night)
    before = [one for one in events if one.time < moment]
    had_by_anyone = {one.item for one in before if one.action != "view"}
    found = {}
    with Retriever.open(bundle) as retriever:
        for user in users_of(events, night):
            record = record_of(user, before, moment)
            seen = {one.item for one in before if one.user == user and one.action != "view"}
            truth = {
                one.item
                for one in events
                if one.user == user and one.time.date() == moment.date() and one.action != "view"
            }
            served = retriever.retrieve(record, K).item_ids.tolist()
            novel = retriever.retrieve(record, K, exclude=sorted(seen)).item_ids.tolist()
            found[user] = {
                "all": _recall(served, truth),
                "novel": _recall(novel, truth - seen),
                "new": _recall(served, truth - had_by_anyone),
            }
    return found


def answers(events: list[Event], night: int, bundle: Path) -> dict[str, list[int]]:
    """The top 100 of each user of the day."""
    before = [one for one in events if one.time < midnight(night)]
    with Retriever.open(bundle) as retriever:
        return {
            user: retriever.retrieve(record_of(user, before, midnight(night)), K).item_ids.tolist()
            for user in users_of(events, night)
        }


def _recall(served: list[int], truth: set[int]) -> float | None:
    return len(truth & set(served)) / min(K, len(truth)) if truth else None
