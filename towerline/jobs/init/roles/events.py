"""The other roles of the events' columns: time or order, action and its weights, value, and a column that splits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.contracts.conversion import LATEST_US
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.schema import SPLITS
from towerline.jobs.init.questions import Question, Questions
from towerline.jobs.init.tables.profile import Profile
from towerline.jobs.init.tables.types import Typed, range_us, time_unit

MOST_ACTIONS = 50
_BY_RARITY, _ALL_EQUAL = "rarer actions count more", "all count 1"
_LATER_WORDS = re.compile(
    r"updat|modif|expir|birth|until|deliver|ship|end|load|ingest|process|valid|insert", re.IGNORECASE
)
_EVENT_TIME_WORDS = re.compile(
    r"time|stamp|^ts$|_ts$|^at$|event|happened|occurred|clicked|purchased|ordered|invoicedate", re.IGNORECASE
)
_ACTION_NAMES = re.compile(
    r"action|event|behaviou?r|verb|interaction|activity|feedback|operation|^type$", re.IGNORECASE
)
_CONTEXT = re.compile(
    r"impress|expos|shown|served|display|^seen$|^skip|dislike|return|refund|cancel|remove|unlike|hide", re.IGNORECASE
)
_ACTION_WORDS = re.compile(
    r"impress|expos|view|click|cart|purchas|buy|bought|order|checkout|like|watch|rat(e|ing)|tag|share|save|fav|wish|"
    r"play|download|install|redem|transaction|listen|read|visit|open|follow|subscri|book|remove|return|add",
    re.IGNORECASE,
)
_VALUE_NAMES = (
    re.compile(r"value|amount|revenue|spen[dt]|sales|total|turnover", re.IGNORECASE),
    re.compile(r"price|paid|cost", re.IGNORECASE),
    re.compile(r"quantity|qty|units", re.IGNORECASE),
)


@dataclass(frozen=True)
class Actions:
    """The action's column and a weight for each of its values, with the evidence for it."""

    column: Typed
    weights: Mapping[str, float]
    counts: Mapping[str, int]


def time_column(events: Profile, taken: set[str | None], questions: Questions) -> Typed | None:
    """The column that says when an event happened; None where none does."""
    found = [
        typed
        for name, typed in events.typed.items()
        if name not in taken and typed.type.type == "timestamp" and typed.missing_share <= 0.5 and typed.distinct > 1
    ]
    if not found:
        return _integers_as_time(events, taken, questions)
    found = sorted(found, key=_time_rank, reverse=True)
    rivals = [one for one in found[1:] if _time_rank(one)[:2] == _time_rank(found[0])[:2]]
    best = found[0]
    if rivals:
        labels = {one.name: one for one in [best, *rivals]}
        answer = questions.choose(
            Question(
                "tables.events.time",
                "Which column says when an event happened?",
                "; ".join(f"{name}: {one.distinct:,} distinct" for name, one in labels.items()),
                tuple(labels),
                best.name,
            )
        )
        best = labels[answer]
    return best


def _time_rank(typed: Typed) -> tuple[int, bool, int]:
    named = int(_EVENT_TIME_WORDS.search(typed.name) is not None) - int(_LATER_WORDS.search(typed.name) is not None)
    return named, typed.missing_share <= 0.005, typed.distinct


def _integers_as_time(events: Profile, taken: set[str | None], questions: Questions) -> Typed | None:
    """Integers that are moments in one unit only, whatever the column is called."""
    for name, typed in events.typed.items():
        unit = None if name in taken or typed.type.type != "int64" else time_unit(typed.evidence)
        if unit is None or typed.distinct < 2:
            continue
        as_time = Typed(typed.evidence, ColumnType(type="timestamp", unit=unit), "int64")
        if range_us(as_time)[1] > 0.7 * LATEST_US:  # 2061: numbers that fill the whole range are no moments.
            continue
        answer = questions.choose(
            Question(
                "tables.events.time",
                f"Is {name} the time of an event, in {unit} since 1970?",
                f"all its integers lie between 1990 and 2100 in {unit}",
                ("yes", "no"),
                "yes",
            )
        )
        if answer == "yes":
            return as_time
    return None


def action_column(events: Profile, taken: set[str | None], questions: Questions) -> Actions | None:
    """The column that says what a user did, with weights: rarer actions weigh more, by the decimal logarithm."""
    best: tuple[float, Typed] | None = None
    for name, typed in events.typed.items():
        counts = typed.evidence.counts
        plain = typed.type.type in ("string", "int64") and counts is not None and 1 <= len(counts) <= MOST_ACTIONS
        if name in taken or not plain or typed.missing_share > 0.05 or set(counts or ()) <= set(SPLITS):
            continue
        known = sum(_ACTION_WORDS.search(value) is not None for value in counts or ()) / len(counts or (1,))
        score = known + 0.6 * (_ACTION_NAMES.search(name) is not None and len(counts or ()) <= 12)
        if score >= 0.5 and (best is None or score > best[0]):
            best = score, typed
    if best is None:
        return None
    counts = dict(sorted((best[1].evidence.counts or {}).items(), key=lambda pair: (-pair[1], pair[0])))
    unsure = [value for value in counts if _ACTION_WORDS.search(value) is None]
    if not unsure or len(counts) == 1:
        return Actions(best[1], _weights(counts), counts)
    question = Question(
        "actions",
        f"How much does each action count as a positive? The names do not say what {', '.join(unsure[:5])} mean.",
        ", ".join(f"{value}: {count:,} events" for value, count in list(counts.items())[:10]),
        (_BY_RARITY, _ALL_EQUAL),
        _BY_RARITY,
    )
    equal = questions.choose(question) == _ALL_EQUAL
    return Actions(best[1], dict.fromkeys(counts, 1.0) if equal else _weights(counts), counts)


def _weights(counts: Mapping[str, int]) -> dict[str, float]:
    positive = [count for value, count in counts.items() if not _CONTEXT.search(value)]
    most = max(positive, default=0)
    if not positive:
        return dict.fromkeys(counts, 1.0)
    return {
        value: 0.0 if _CONTEXT.search(value) else min(5.0, round(2 * (1.0 + math.log10(most / count))) / 2)
        for value, count in counts.items()
    }


def value_column(events: Profile, taken: set[str | None]) -> Typed | None:
    """The column that says what an event was worth, by its name; numbers only."""
    numbers = [
        typed
        for name, typed in events.typed.items()
        if name not in taken and typed.is_number and typed.distinct > 1 and typed.missing_share <= 0.5
    ]
    for names in _VALUE_NAMES:
        named = [typed for typed in numbers if names.search(typed.name)]
        if named:
            return min(named, key=lambda typed: typed.missing_share)
    return None


def split_column(events: Profile, taken: set[str | None]) -> Typed | None:
    """A column with the words train, valid and test."""
    for name, typed in events.typed.items():
        words = set(typed.evidence.counts or ())
        if name not in taken and typed.type.type == "string" and {"train", "test"} <= words <= set(SPLITS):
            return typed
    return None


def order_candidates(events: Profile, taken: set[str | None]) -> list[Typed]:
    """Columns of integers that may order a user's events."""
    return [
        typed
        for name, typed in events.typed.items()
        if name not in taken and typed.type.type == "int64" and typed.distinct > 1 and typed.missing_share <= 0.005
    ]
