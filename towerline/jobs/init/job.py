"""The job ``init``: reads events, items and users whole and proposes a TOML for them.

Reads the tables; writes nothing. ``propose`` returns the TOML's text with what it rests on.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.contracts.errors import SchemaError
from pipelines.progress import SILENT, Progress
from towerline.config import Config
from towerline.jobs.init.questions import Answers, Question, Questions
from towerline.jobs.init.roles import events as event_roles
from towerline.jobs.init.roles.events import Actions
from towerline.jobs.init.roles.features import SideChoice, choose_side
from towerline.jobs.init.roles.ids import IdPair, id_type, joined_ids, name_score, user_candidates
from towerline.jobs.init.roles.leaks import leaks
from towerline.jobs.init.roles.split import SplitChoice, choose_split, history_length
from towerline.jobs.init.tables.profile import Joins, Profile, profile
from towerline.jobs.init.tables.sample import Sample, ordered_by, read_sample, times_per_value
from towerline.jobs.init.tables.sources import look_at
from towerline.jobs.init.tables.types import Typed
from towerline.jobs.init.write import write

Paths = str | Path | Sequence[str | Path]
# Share of events that one column's order must tell apart from the user's other events.
_ORDERED = 0.99


@dataclass(frozen=True)
class Findings:
    """What the tables are taken for."""

    name: str
    profiles: dict[str, Profile]
    user: IdPair
    item: IdPair
    user_type: str
    item_type: str
    time: Typed | None
    order: str | None
    actions: Actions | None
    value: Typed | None
    split: SplitChoice
    history: tuple[int, str]
    sides: dict[str, SideChoice]
    rejected_share: float
    questions: Questions


@dataclass(frozen=True)
class Draft:
    """A proposed TOML: its text, what was found, and the questions that are open (``# check:`` in the text)."""

    toml: str
    findings: Findings
    open: tuple[Question, ...]


def propose(
    events: Paths,
    items: Paths,
    users: Paths | None = None,
    *,
    name: str | None = None,
    folder: str | Path = ".",
    ask: Answers | None = None,
    progress: Progress = SILENT,
) -> Draft:
    """Reads the tables whole and proposes a TOML that trains without an edit.

    Args:
        events, items, users: a file, a folder, a glob, an fsspec URL, or a list of these. Parquet, CSV, TSV or JSONL.
        name: the data set's name; None takes the folder of the events.
        folder: where the TOML will be: paths in it start there.
        ask: answers a question, or returns None to leave it open; None leaves all open.
        progress: where progress is shown; silent by default.

    Raises:
        SchemaError: a table is not there or cannot be read, or no column joins it with the events.
    """
    paths = {"events": events, "items": items, **({} if users is None else {"users": users})}
    findings = find(paths, name=name or _name_of(events), ask=ask, progress=progress)
    text = write(findings, {table: _relative(path, Path(folder)) for table, path in paths.items()})
    Config.model_validate(tomllib.loads(text))
    return Draft(text, findings, tuple(findings.questions.open))


def find(paths: dict[str, Paths], *, name: str, ask: Answers | None, progress: Progress) -> Findings:
    """Reads the tables and decides what each column is for.

    Raises:
        SchemaError: see ``propose``.
    """
    questions = Questions(ask)
    tables = {table: look_at(table, _as_given(path)) for table, path in paths.items()}
    own = {table: profile(tables[table], questions, progress) for table in tables if table != "events"}
    joins = Joins({(table, key): one.columns[key].distinct for table, one in own.items() for key in one.id_columns()})
    events = profile(tables["events"], questions, progress, joins)
    item = joined_ids("item", events, own["items"], joins, questions)
    time = event_roles.time_column(events, {item.column}, questions)
    if "users" in own:
        user = joined_ids("user", events, own["users"], joins, questions, taken=item.column)
    else:
        user = _user_without_table(events, item, time, questions)
    return _with_roles(name, {"events": events, **own}, user, item, time, questions, progress)


def _with_roles(
    name: str,
    profiles: dict[str, Profile],
    user: IdPair,
    item: IdPair,
    time: Typed | None,
    questions: Questions,
    progress: Progress,
) -> Findings:
    events = profiles["events"]
    taken = {user.column, item.column, None if time is None else time.name}
    split = event_roles.split_column(events, taken)
    taken.add(None if split is None else split.name)
    if time is not None and split is not None and time.missing_share > 0.01:
        questions.note("tables.events", f"{time.name} is missing in {time.missing_share:.1%} of the events: left out.")
        time = None
    actions = event_roles.action_column(events, taken, questions)
    taken.add(None if actions is None else actions.column.name)
    orders = [] if time is not None else event_roles.order_candidates(events, taken)
    sample = read_sample(
        events, user.column, item.column, time, orders, None if split is None else split.name, progress
    )
    order = _order(sample)
    if time is None and order is None and split is None:
        raise SchemaError(
            "events: expected a column that says when an event happened, or in which order, or a column with the words "
            f"train, valid and test; found none among {', '.join(events.columns)}. Add one."
        )
    value = event_roles.value_column(events, taken | {order})
    words = set() if split is None else set(split.evidence.counts or ())
    chosen = choose_split(sample, has_time=time is not None, column=None if split is None else split.name, words=words)
    has_moments = time is not None and "leave_last_out" not in chosen.keys
    sides = {}
    for side, pair, ids in (("item", item, sample.item), ("user", user, sample.user)):
        if f"{side}s" in profiles:
            leaking = leaks(profiles[f"{side}s"], pair.key, ids, sample, has_time=time is not None)
            table = profiles[f"{side}s"]
            sides[side] = choose_side(side, table, pair.key, leaking, has_moments=has_moments)  # type: ignore[arg-type]
    return Findings(
        name=name,
        profiles=profiles,
        user=user,
        item=item,
        user_type=id_type(_id_columns(profiles, "users", user)),
        item_type=id_type(_id_columns(profiles, "items", item)),
        time=time,
        order=order,
        actions=actions,
        value=value,
        split=chosen,
        history=history_length(sample, by_time="valid_from" in chosen.keys),
        sides=sides,
        rejected_share=_rejected_share(events, [user.column, item.column], time, actions, value),
        questions=questions,
    )


def _id_columns(profiles: dict[str, Profile], table: str, pair: IdPair) -> list[Typed]:
    own = [profiles[table].typed[pair.key]] if table in profiles else []
    return [profiles["events"].typed[pair.column], *own]


def _rejected_share(
    events: Profile, ids: list[str], time: Typed | None, actions: Actions | None, value: Typed | None
) -> float:
    """Most events that a run could reject: those without id, time or action, and those with cells of a wrong type."""
    rejected = events.malformed + sum(events.columns[name].nulls + events.columns[name].empty for name in ids)
    for typed in (time, None if actions is None else actions.column):
        rejected += 0 if typed is None else typed.evidence.missing(typed.kind) + typed.wrong
    rejected += 0 if value is None else value.wrong
    return rejected / (events.rows + events.malformed)


def _user_without_table(events: Profile, item: IdPair, time: Typed | None, questions: Questions) -> IdPair:
    """The user's id by its name, and by how often its values come again at another time."""
    found = user_candidates(events, {item.column, None if time is None else time.name})
    if not found:
        raise SchemaError(
            f"events: expected a column with the users' ids, found none among {', '.join(events.columns)}. Give the "
            "users' table, or add the column."
        )
    named = [typed for typed in found if name_score(typed.name) > 0]
    if len(named) == 1:
        return IdPair(named[0].name, "", None)
    rivals = (named or found)[:6]
    times = times_per_value(events, rivals, time)
    ranked = sorted(
        rivals, key=lambda typed: (name_score(typed.name), times[typed.name] >= 1.5, typed.distinct), reverse=True
    )
    answer = questions.choose(
        Question(
            "tables.events.user_id",
            "Which column is the user's id?",
            "; ".join(f"{one.name}: {one.distinct:,} distinct, at {times[one.name]:.1f} times each" for one in ranked),
            tuple(one.name for one in ranked),
            ranked[0].name,
        )
    )
    return IdPair(answer, "", None)


def _order(sample: Sample) -> str | None:
    """The column of integers that orders each user's events best, if one tells nearly all of them apart."""
    shares = {name: ordered_by(sample, name) for name in sample.orders}
    best = max(shares, key=lambda name: shares[name], default=None)
    return best if best is not None and shares[best] >= _ORDERED else None


def _as_given(path: Paths) -> str | tuple[str, ...]:
    return str(path) if isinstance(path, str | Path) else tuple(str(one) for one in path)


def _relative(path: Paths, folder: Path) -> str | list[str]:
    """A path as the TOML has it: absolute paths and URLs as given, others from the TOML's folder on."""
    if not isinstance(path, str | Path):
        return [str(_relative(one, folder)) for one in path]
    text = str(path)
    if "://" in text or Path(text).is_absolute():
        return text
    return Path(os.path.relpath(text, folder)).as_posix()


def _name_of(events: Paths) -> str:
    first = events if isinstance(events, str | Path) else next(iter(events), "data")
    text = str(first)
    parts = Path(text if "://" in text else os.path.abspath(text)).parts
    plain = [part for part in parts[:-1] if not any(mark in part for mark in "*?[=:/")]
    return plain[-1] if plain else "data"
