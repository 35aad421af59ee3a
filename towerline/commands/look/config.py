"""``towerline config``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import tomli_w
import typer

from towerline.commands.look.keys import Meaning, explain
from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline config --config ads.toml",
    "towerline config --explain index.ann_recall_at_100",
    "towerline config --config ads.toml --set towers.protocol=windows --json",
)


def verb(
    call: Call,
    key: Annotated[
        str | None,
        typer.Option("--explain", metavar="KEY", help="type, default and meaning of one key or section: index.shards"),
    ] = None,
) -> Answer:
    """The resolved configuration, defaults included, as TOML; or what one key means."""
    if key is not None:
        meanings = explain(key)
        facts = {"key": key, "meanings": [dataclasses.asdict(meaning) for meaning in meanings]}
        return Answer(lines=list(_lines(key, meanings)), facts=facts)
    values = call.project.config.model_dump(mode="json")
    return Answer(lines=[tomli_w.dumps(_present(values)).rstrip()], facts=values)


def _lines(key: str, meanings: list[Meaning]) -> Iterator[str]:
    for number, meaning in enumerate(meanings):
        if number:
            yield ""
        tag = f" with {meaning.only_with}" if meaning.only_with else ""
        yield f"{key}{tag}: {meaning.type}; default: {meaning.default}"
        if meaning.description:
            yield meaning.description
        if meaning.keys:
            yield f"keys: {', '.join(meaning.keys)}"


def _present(value: Any) -> Any:
    """The value without keys that are None, which TOML does not have."""
    if isinstance(value, dict):
        return {key: _present(one) for key, one in value.items() if one is not None}
    return [_present(one) for one in value] if isinstance(value, list) else value
