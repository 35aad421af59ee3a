"""``towerline retrieve``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.contracts.errors import ConfigError
from towerline.commands.measure.evaluate import Version
from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline retrieve --config ads.toml --user 1 --k 20",
    """towerline retrieve --config ads.toml --record '{"history": [1095275, 9878513]}' --json""",
    "towerline retrieve --config ads.toml --user 1 --where 'coupon_live and price < 10' --max-per advertiser_id=2",
)

_START = {None: "", "profile": ", cold start from the profile", "popularity": ", cold start from popularity"}


def verb(
    call: Call,
    user: Annotated[str | None, typer.Option(metavar="ID", help="a user of the tables")] = None,
    record: Annotated[
        str | None, typer.Option(metavar="JSON", help='a raw record, {"history": [..], ..}, or @FILE')
    ] = None,
    k: Annotated[int, typer.Option(help="number of candidates")] = 10,
    version: Version = None,
    where: Annotated[str | None, typer.Option(metavar="RULE", help="for example: 'coupon_live and price < 10'")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="ITEM_ID", help="an item not to show; may be repeated")
    ] = None,
    max_per: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTRIBUTE=N", help="at most N items with the same value; may be repeated"),
    ] = None,
    value_weight: Annotated[float, typer.Option(metavar="LAMBDA", help="rank by score + LAMBDA * log(value)")] = 0.0,
    diversity: Annotated[float, typer.Option(help="0 ranks by score alone, 1 by diversity alone")] = 0.0,
) -> Answer:
    """Candidates for one user, on the terminal."""
    if (user is None) == (record is None):
        raise ConfigError("expected either --user ID or --record JSON. Give one of the two.")
    rules: dict[str, Any] = {
        "where": where,
        "exclude": exclude or [],
        "max_per": dict(map(_limit, max_per or ())) or None,
        "value_weight": value_weight,
        "diversity": diversity,
    }
    retriever = call.project.retriever(version)
    if record is not None:
        candidates = retriever.retrieve(_record(record), k, **rules)
    else:
        candidates = retriever.retrieve_by_id(user, k, **rules)
    items = retriever.describe(candidates).to_pylist()
    found = zip(
        candidates.item_ids.tolist(), candidates.scores.tolist(), candidates.sources.tolist(), items, strict=True
    )
    facts = [
        {"rank": rank, "score": score, "source": source, **item, "item_id": item_id}
        for rank, (item_id, score, source, item) in enumerate(found, start=1)
    ]
    plan = candidates.plan
    unknown = [f"user {user} is in no table; answered as a new user"] if candidates.known_user is False else []
    summary = f"version {candidates.version}, plan {plan.method}, {len(candidates)} of {k}"
    return Answer(
        lines=[*unknown, *_lines(facts), summary + _START[candidates.cold_start]],
        facts={
            "version": candidates.version,
            "plan": dataclasses.asdict(plan),
            "fill": candidates.fill,
            "known": candidates.known_user,
            "cold_start": candidates.cold_start,
            "candidates": facts,
        },
    )


def _lines(candidates: Sequence[dict[str, Any]]) -> list[str]:
    """The candidates as a table: rank, score, source, id, and what the bundle knows of the item."""
    if not candidates:
        return ["no item may be shown"]
    names = [name for name, value in candidates[0].items() if not isinstance(value, list | dict | bytes)]
    rows = [[_cell(candidate[name]) for name in names] for candidate in candidates]
    return list(table_lines(names, rows))


def _cell(value: object) -> str:
    """One value as a person reads it."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _limit(text: str) -> tuple[str, int]:
    """``attribute=n`` of ``--max-per``."""
    name, _, number = text.partition("=")
    if not name or not number.isdigit():
        raise ConfigError(f"--max-per {text!r}: expected attribute=number, for example advertiser_id=2")
    return name, int(number)


def _record(text: str) -> dict[str, Any]:
    """A raw user record: JSON, or ``@FILE`` that holds it.

    Raises:
        ConfigError: the file cannot be read, or it is no JSON object.
    """
    try:
        record = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (OSError, ValueError) as err:
        raise ConfigError(f"--record {text!r:.80}: expected a JSON object or @FILE: {err}") from err
    if not isinstance(record, dict):
        raise ConfigError(f'--record: expected a JSON object such as {{"history": [1, 2]}}, got {text!r:.80}')
    return record
