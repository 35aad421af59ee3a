"""Which columns are ids: a column of events whose values are those of another table's unique column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipelines.contracts.errors import SchemaError
from towerline.jobs.init.questions import Question, Questions
from towerline.jobs.init.tables.profile import Joined, Joins, Profile
from towerline.jobs.init.tables.types import Typed

# Below this share of joined events no column counts as the id.
LEAST_JOINED = 0.5
_USER_WORDS = re.compile(
    r"user|customer|client|household|viewer|visitor|member|person|shopper|buyer|account|cust|uid|subscriber|guest|"
    r"cookie|device|player|reader|listener|patient|student",
    re.IGNORECASE,
)
_EVENT_WORDS = re.compile(
    r"invoice|order|basket|session|transaction|receipt|event|row|line|index|request", re.IGNORECASE
)


@dataclass(frozen=True)
class IdPair:
    """The id's column in events and in its own table, and how far they join; ``key`` is empty without a table."""

    column: str
    key: str
    joined: Joined | None


def joined_ids(
    side: str, events: Profile, other: Profile, joins: Joins, questions: Questions, taken: str | None = None
) -> IdPair:
    """The id columns of events and of a side's own table.

    Args:
        side: user or item.
        events: the events.
        other: the side's table.
        joins: counted while the events were read.
        questions: asked where two columns join about as well.
        taken: a column of events that is another side's id.

    Raises:
        SchemaError: no column joins, or the one that does repeats values.
    """
    found = [
        one
        for key in other.id_columns()
        for one in joins.of((other.table.name, key))
        if one.column != taken and one.column in events.typed
    ]
    found = sorted(found, key=_rank, reverse=True)
    if not found or found[0].share < LEAST_JOINED:
        raise SchemaError(_no_join(side, events, other, found))
    best = found[0]
    rivals = [one for one in found[1:] if one.share > 0.9 * best.share and _rank(one) > _rank(best) - 0.25]
    if rivals:
        best = _chosen(side, [best, *rivals[:2]], questions)
    _require_unique(side, other, best)
    if best.share < 0.99:
        questions.note(
            f"tables.events.{side}_id",
            f"only {best.share:.1%} of the events have a value of {best.key} of {side}s.",
            "Do ids lack leading zeros in one of the tables?" if _lost_zeros(events, other, best) else "",
        )
    return IdPair(best.column, best.key, best)


def _rank(one: Joined) -> float:
    named = one.column.lower().replace("_", "") == one.key.lower().replace("_", "")
    return (
        one.share + one.covered + 0.3 * named + 0.05 * (re.search(r"id$|_id|sku|ean|gtin", one.key.lower()) is not None)
    )


def _chosen(side: str, candidates: list[Joined], questions: Questions) -> Joined:
    labels = {f"{one.column} = {one.key}": one for one in candidates}
    answer = questions.choose(
        Question(
            f"tables.events.{side}_id",
            f"Which column of events is the {side}'s id, and which column of {side}s has it?",
            "; ".join(
                f"{label}: {one.share:.1%} of events, {one.covered:.1%} of {side}s" for label, one in labels.items()
            ),
            tuple(labels),
            next(iter(labels)),
        )
    )
    return labels[answer]


def _require_unique(side: str, other: Profile, best: Joined) -> None:
    key = other.typed[best.key]
    if key.evidence.distinct.exact and key.distinct < key.evidence.present:
        raise SchemaError(
            f"{side}s: expected each {best.key} once, found {key.evidence.present:,} rows with {key.distinct:,} "
            f"different values (events join it by {best.column}). Remove the duplicates."
        )


def _no_join(side: str, events: Profile, other: Profile, found: list[Joined]) -> str:
    keys = ", ".join(other.id_columns()) or "none"
    best = found[0] if found else None
    said = "" if best is None or best.rows == 0 else f"; best is {best.column} with {best.share:.1%} in {best.key}"
    zeros = " One of them lacks the leading zeros of the other." if best and _lost_zeros(events, other, best) else ""
    return (
        f"no column of events has the values of a unique column of {side}s (unique columns: {keys}){said}.{zeros} Give "
        f"the table that lists the {side}s of these events."
    )


def _lost_zeros(events: Profile, other: Profile, best: Joined) -> bool:
    zeros = [profile.columns[name].leading_zeros for profile, name in ((events, best.column), (other, best.key))]
    return (zeros[0] > 0) != (zeros[1] > 0)


def user_candidates(events: Profile, taken: set[str | None]) -> list[Typed]:
    """Columns of events that could be the user's id where no users table says which, the likeliest by name first."""
    fit = [
        typed
        for name, typed in events.typed.items()
        if name not in taken
        and typed.type.type in ("int64", "string")
        and typed.evidence.nulls <= 0.05 * events.rows
        and typed.distinct > 1
        and typed.evidence.mean_words < 3
    ]
    return sorted(fit, key=lambda typed: (name_score(typed.name), typed.distinct), reverse=True)


def name_score(name: str) -> int:
    """What a name says: 1 for a user, -1 for something that a user does, 0 for nothing."""
    return int(_USER_WORDS.search(name) is not None) - int(_EVENT_WORDS.search(name) is not None)


def id_type(columns: list[Typed]) -> Literal["string", "int64"]:
    """int64 if every cell of all these columns is a plain integer, else string."""
    whole = all(one.evidence.fits("int64") and not one.evidence.leading_zeros for one in columns)
    return "int64" if whole else "string"
