"""``towerline config``."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import tomli_w
import typer

from towerline.commands.verb import Answer, Call
from towerline.settings_reference import describe_key, find

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
        return Answer(lines=describe_key(key).splitlines(), facts=dataclasses.asdict(find(key)))
    values = call.project.config.model_dump(mode="json")
    return Answer(lines=[tomli_w.dumps(_present(values)).rstrip()], facts=values)


def _present(value: Any) -> Any:
    """The value without keys that are None, which TOML does not have."""
    if isinstance(value, dict):
        return {key: _present(one) for key, one in value.items() if one is not None}
    return [_present(one) for one in value] if isinstance(value, list) else value
