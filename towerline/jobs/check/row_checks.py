"""Checks of the rows: what the features job would refuse of them, and what a person should know."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from index.rules.attributes import Attributes
from index.rules.where import mask_of
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import TowerlineError
from pipelines.contracts.schema import DatasetSchema
from pipelines.features.reporting.joins import WARN_BELOW, Joins
from pipelines.features.totals import Ingested, require_split
from towerline.config import Config
from towerline.jobs.check.finding import Finding, Verdict
from towerline.jobs.check.rows import Rows
from towerline.jobs.check.summary import joins_of, share_read, splits_of

_SHOWN_DAYS = 5


def of_rows(rows: Rows, config: Config) -> Iterator[Finding]:
    """Everything that the rows show: errors of the features job first."""
    schema = config.schema_only()
    if not rows.sample.is_whole:
        bounds = "Figures with ~ are estimates, new users and new items are upper bounds."
        yield Finding("sample", "ok", f"sampled {share_read(rows)}. {bounds}")
    yield from _rejects(rows, schema)
    yield from _joins(joins_of(rows), schema)
    yield from _splits(rows, schema)
    yield from _actions(rows, schema)
    yield from _empty_days(rows, schema)


def _refusal(check: str, run: Callable[[], object]) -> Iterator[Finding]:
    try:
        run()
    except TowerlineError as err:
        yield Finding.of(check, err)


def _ingested(rows: Rows) -> Ingested:
    times = rows.grouped.times
    first, last = (int(times.min()), int(times.max())) if len(times) else (None, None)
    numbers, counts = np.unique(times // US_PER_DAY, return_counts=True)
    days = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return Ingested(rows.counts, nulls={}, days=days, dropped=rows.dropped, multi_line=[], first=first, last=last)


def _rejects(rows: Rows, schema: DatasetSchema) -> Iterator[Finding]:
    examples = {
        (table, reason): place for table, count in rows.counts.items() for reason, place in count.examples.items()
    }
    refused = list(_refusal("tables", lambda: _ingested(rows).require_fit(schema, examples)))
    yield from refused or [Finding("tables", "ok", _shares(rows))]


def _shares(rows: Rows) -> str:
    parts = [f"{count.rejected:,} of {count.rows:,} rows of {table}" for table, count in rows.counts.items()]
    return f"rejected {', '.join(parts)}"


def _joins(joins: Joins, schema: DatasetSchema) -> Iterator[Finding]:
    share = joins.share
    if share is None:
        return
    if share < schema.validation.min_joined:
        yield from _refusal("tables.events", lambda: joins.require(schema))
        return
    found = f"{share:.2%} of {joins.events:,} events have a user and an item that are in their tables."
    if share >= WARN_BELOW:
        yield Finding("tables.events", "ok", found)
        return
    examples = [
        f"{one.events:,} events of unknown {side}s, such as {one.example!r}"
        + ("" if one.known is None else f" (tables.{side}s has {one.known!r})")
        for side, one in joins.unknown.items()
        if one.events
    ]
    remedy = "Give both tables the same ids, or complete the table."
    yield Finding("tables.events", "warning", f"{found} {'; '.join(examples)}.", remedy)


def _splits(rows: Rows, schema: DatasetSchema) -> Iterator[Finding]:
    counts = splits_of(rows)
    shown = f"{', '.join(f'{name} {number:,}' for name, number in counts.items())} events; {_range(rows, schema)}"
    if rows.window is not None:
        shown = f"{'' if rows.sample.is_whole else 'of the sample: '}{rows.window}: {shown}"
    refused = list(_refusal("[split]", lambda: require_split(list(counts.values()), _ingested(rows), rows.window)))
    if refused and not rows.sample.is_whole:
        yield Finding("split", "warning", f"the sample has {shown}.", "Move the bounds, or take a larger --sample.")
    elif refused and rows.window is not None:
        yield refused[0]
    elif refused:
        yield dataclasses.replace(refused[0], remedy=f"Here: {_range(rows, schema)}.")
    elif counts["valid"] == 0 and len(rows.grouped.rows):
        verdict: Verdict = "error" if schema.split.valid_from is not None and rows.sample.is_whole else "warning"
        found = f"expected events in valid, found none: {shown}."
        yield Finding("split", verdict, found, "Move valid_from and test_from.", "SchemaError")
    else:
        yield Finding("split", "ok", f"{shown}.")
    yield from _unused(rows)


def _unused(rows: Rows) -> Iterator[Finding]:
    """Events before and after what is used."""
    if rows.window is None:
        if rows.dropped:
            yield Finding("split.test_until", "ok", f"{rows.dropped:,} events from then on are not used.")
        return
    if rows.older:
        yield Finding("split.history_days", "ok", f"{rows.older:,} events before then are not used.")
    if rows.dropped:
        found = f"events later than today: {rows.dropped:,}. They are not used before their day."
        remedy = "Correct their times, or set validation.latest to reject them."
        yield Finding("tables.events.time", "warning", found, remedy)


def _range(rows: Rows, schema: DatasetSchema) -> str:
    times = rows.grouped.times
    if not len(times):
        return "there are no events"
    if schema.tables.events.time is None:
        return f"they run from {int(times.min())} to {int(times.max())}"
    return f"they run from {_moment(int(times.min()))} to {_moment(int(times.max()))} UTC"


def _moment(time_us: int) -> str:
    epoch = datetime.datetime(1970, 1, 1)
    with contextlib.suppress(OverflowError):
        return f"{epoch + datetime.timedelta(microseconds=time_us):%Y-%m-%d %H:%M}"
    return str(time_us)


def _actions(rows: Rows, schema: DatasetSchema) -> Iterator[Finding]:
    if not schema.actions:
        return
    counts = np.bincount(rows.grouped.actions, minlength=len(schema.action_names))
    seen = {name: int(counts[code]) for code, name in enumerate(schema.action_names)}
    absent = [name for name, number in seen.items() if number == 0]
    if absent and len(rows.grouped.rows):
        found = f"no event has the action {', '.join(map(repr, absent))}."
        yield Finding("actions", "warning", found, "Correct its name, or leave it out.")
    else:
        yield Finding("actions", "ok", ", ".join(f"{name} {number:,}" for name, number in seen.items()))


def _empty_days(rows: Rows, schema: DatasetSchema) -> Iterator[Finding]:
    """Days without an event between the first and the last one: an export of a day may be missing."""
    if schema.tables.events.time is None or not rows.sample.is_whole or not len(rows.grouped.times):
        return
    days = np.unique(rows.grouped.times // US_PER_DAY)
    gaps = np.flatnonzero(np.diff(days) > 1)
    missing = [day for gap in gaps[:_SHOWN_DAYS].tolist() for day in range(int(days[gap]) + 1, int(days[gap + 1]))]
    number = int(days[-1] - days[0] + 1 - len(days))
    if number and number < len(days):
        shown = ", ".join(_moment(day * US_PER_DAY)[:10] for day in missing[:_SHOWN_DAYS])
        more = f" and {number - _SHOWN_DAYS:,} more" if number > _SHOWN_DAYS else ""
        yield Finding("tables.events.time", "warning", f"no event on {shown}{more}.", "Is the export complete?")


def of_catalogue(rows: Rows, config: Config) -> Iterator[Finding]:
    """What the index and the report would refuse of the items: types of columns, and rules."""
    from index.building.sharding_job import check_shards
    from index.search.value_tree import log_values_of

    table, index, evaluation = rows.items.table, config.index, config.evaluation
    if index.shards > 1:
        yield from _refusal("index.shards", lambda: check_shards(len(table), index.shards, index.tree))
    value = index.value
    if value is not None and value in table.column_names:
        yield from _refusal("index.value", lambda: log_values_of(table[value], value))
    yield from _typed(config, rows)
    rule = evaluation.eligible
    if rule is not None:
        named = [name for name in config.index.attributes if name in table.column_names]
        attributes = Attributes(table.select(named).append_column("item_id", rows.items.ids))
        try:
            passing = int(mask_of(rule, attributes).sum())
        except TowerlineError as err:
            yield Finding("evaluation.eligible", "error", str(err), kind="SchemaError")
        else:
            verdict: Verdict = "ok" if passing else "warning"
            yield Finding("evaluation.eligible", verdict, f"{passing:,} of {len(table):,} items pass.")


def _typed(config: Config, rows: Rows) -> Iterator[Finding]:
    wanted = {
        "price": ("numbers", lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind)),
        "first_seen": ("times", pa.types.is_temporal),
    }
    for key, (what, fits) in wanted.items():
        column = getattr(config.evaluation, key)
        if column is None or column not in rows.items.table.column_names:
            continue
        kind = rows.items.table[column].type
        if not fits(kind):
            found = f"expected a column of {what}, got {column!r} of type {kind}."
            remedy = (
                f'Declare its type: [tables.items.types] {column} = "{"float64" if key == "price" else "timestamp"}".'
            )
            yield Finding(f"evaluation.{key}", "error", found, remedy)
