"""Writes the findings as a TOML: each line with its evidence, what is unsure with a ``# check:`` comment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.contracts.conversion.column_type import ColumnType
from towerline.jobs.init.document import Document
from towerline.jobs.init.questions import Questions
from towerline.jobs.init.roles.features import SideChoice, range_of
from towerline.jobs.init.tables.profile import Profile
from towerline.jobs.init.tables.types import Typed, moment_of, range_us

if TYPE_CHECKING:
    from towerline.jobs.init.job import Findings

_HEAD = (
    "Written by `towerline init` from the tables, read whole. Each line says what it rests on; lines with `check:` are "
    "worth a look. All keys: docs/settings.md."
)


def write(findings: Findings, paths: dict[str, str | list[str]]) -> str:
    """The TOML's text.

    Args:
        findings: what the tables are taken for.
        paths: of each table, as the TOML has them.
    """
    out = Document()
    out.comment(_HEAD)
    out.section("dataset")
    out.key("name", findings.name)
    _write_ids(out, findings)
    _write_events(out, findings, paths["events"])
    for side in ("item", "user"):
        if side in findings.sides:
            _write_side_table(out, findings, side, paths[f"{side}s"])
    _write_actions(out, findings)
    for side in ("item", "user"):
        if side in findings.sides:
            _write_features(out, findings.sides[side], side)
    _write_rest(out, findings)
    return out.text


def _write_ids(out: Document, findings: Findings) -> None:
    out.section("ids")
    for side, found in (("user", findings.user_type), ("item", findings.item_type)):
        out.key(side, found, "every id is a plain integer" if found == "int64" else "not every id is a plain integer")


def _write_source(out: Document, profile: Profile, path: str | list[str], questions: Questions) -> None:
    out.key(
        "path", path, f"{profile.rows:,} rows in {len(profile.table.files):,} file{'s'[: len(profile.table.files) > 1]}"
    )
    source = profile.table.source
    if source.delimiter is not None:
        out.key("delimiter", source.delimiter)
    if source.encoding != "utf-8":
        out.key("encoding", source.encoding, "not all bytes are UTF-8")
    checks = questions.checks(f"tables.{profile.table.name}.decimal")
    if profile.decimal != "." or checks:
        out.key("decimal", profile.decimal, "", checks)


def _write_events(out: Document, findings: Findings, path: str | list[str]) -> None:
    questions, events = findings.questions, findings.profiles["events"]
    doubts = questions.checks("tables.events")
    out.section("tables.events", checks=doubts)
    _write_source(out, events, path, questions)
    for key, pair in (("user_id", findings.user), ("item_id", findings.item)):
        typed = events.typed[pair.column]
        joined = "" if pair.joined is None else f", {pair.joined.share:.1%} of the events are in {key[:-3]}s.{pair.key}"
        out.key(key, pair.column, f"{typed.distinct:,} distinct{joined}", questions.checks(f"tables.events.{key}"))
    if findings.time is not None:
        out.key("time", findings.time.name, _time_note(findings.time), questions.checks("tables.events.time"))
    elif findings.order is not None:
        out.key("order", findings.order, "integers that tell the events of a user apart")
    else:
        out.key("unordered", True, "no column has times or an order")
    if findings.actions is not None:
        out.key("action", findings.actions.column.name, f"{len(findings.actions.counts)} distinct")
    if findings.value is not None:
        out.key("value", findings.value.name, range_of(findings.value.numbers))
    if findings.time is not None and findings.time.type.unit is not None:
        _write_types(out, "events", {findings.time.name: findings.time.type})


def _time_note(typed: Typed) -> str:
    first, last = range_us(typed)
    wrong = f"; check: {typed.wrong:,} cells are no times" if typed.wrong else ""
    return f"{moment_of(first):%Y-%m-%d} to {moment_of(last):%Y-%m-%d}{wrong}"


def _write_side_table(out: Document, findings: Findings, side: str, path: str | list[str]) -> None:
    profile, choice = findings.profiles[f"{side}s"], findings.sides[side]
    key = (findings.item if side == "item" else findings.user).key
    out.section(f"tables.{side}s", checks=findings.questions.checks(f"tables.{side}s"))
    _write_source(out, profile, path, findings.questions)
    out.key(f"{side}_id", key, f"{profile.typed[key].distinct:,} distinct, each once")
    if choice.advertiser is not None:
        out.key("advertiser_id", choice.advertiser.name, f"{choice.advertiser.distinct:,} distinct")
    if choice.title is not None:
        out.key("title", choice.title.name, f"{choice.title.evidence.mean_words:.1f} words each")
    for column, reason in choice.left_out.items():
        out.comment(f"{column} is left out: {reason}.")
    _write_types(out, f"{side}s", choice.types)


def _write_types(out: Document, table: str, types: dict[str, ColumnType]) -> None:
    if not types:
        return
    out.section(f"tables.{table}.types")
    for name, kind in types.items():
        keys = kind.model_dump(exclude_none=True, exclude_defaults=True)
        out.key(name, keys["type"] if len(keys) == 1 else keys)


def _write_actions(out: Document, findings: Findings) -> None:
    if findings.actions is None:
        return
    out.section("actions", checks=findings.questions.checks("actions"))
    out.comment("Weights as training positives: rarer actions weigh more. 0 is context, never a positive.")
    for value, weight in findings.actions.weights.items():
        out.key(value, weight, f"{findings.actions.counts[value]:,} events")


def _write_features(out: Document, choice: SideChoice, side: str) -> None:
    for feature in choice.features:
        out.section(f"features.{side}", array=True)
        keys = dict(feature.keys)
        name, kind = keys.pop("name"), keys.pop("kind")
        out.key("name", name)
        if "column" in keys:
            out.key("column", keys.pop("column"))
        out.key("kind", kind, feature.note)
        for key, value in keys.items():
            out.key(key, value)


def _write_rest(out: Document, findings: Findings) -> None:
    length, note = findings.history
    out.section("history")
    out.key("max_length", length, note)
    out.section("split")
    for key, value in findings.split.keys.items():
        out.key(key, value, findings.split.notes.get(key, ""))
    if findings.split.days is not None:
        out.comment(
            f"For a nightly job, windows that follow the newest event: valid_days = {findings.split.days}, "
            f"test_days = {findings.split.days} in place of the dates, and history_days to bound what is used."
        )
    if findings.rejected_share > 0.009:
        out.section("validation")
        most = min(1.0, round(1.1 * findings.rejected_share + 0.01, 3))
        out.key(
            "max_reject_rate",
            most,
            "",
            [f"up to {findings.rejected_share:.1%} of the events have no id, time or action, or a wrong one."],
        )
    item = findings.sides["item"]
    if item.attributes:
        out.section("index")
        out.key("attributes", item.attributes, "columns that rules (`where`, `max_per`) may use")
    _write_evaluation(out, item, findings.sides.get("user"))


def _write_evaluation(out: Document, item: SideChoice, user: SideChoice | None) -> None:
    keys: dict[str, Any] = {"category": item.category, "price": item.price, "first_seen": item.first_seen}
    slices = [*item.slices[:4], *(user.slices[:4] if user is not None else [])]
    keys["slices"] = list(dict.fromkeys(slices)) or None
    given = {key: value for key, value in keys.items() if value is not None}
    if given:
        out.section("evaluation")
        for key, value in given.items():
            out.key(key, value)
