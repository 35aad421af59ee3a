"""``towerline init``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.contracts.errors import ConfigError
from towerline.commands.verb import DEFAULT_CONFIG, Answer, Call

if TYPE_CHECKING:
    from towerline.jobs.init.job import Draft
    from towerline.jobs.init.questions import Question

EXAMPLES = (
    "towerline init --events events.parquet --items ads.parquet",
    "towerline init --events 'events/*.csv.gz' --items ads.csv --users users.csv --out shop.toml",
    "towerline init --events s3://bucket/events/ --items s3://bucket/ads/ --name shop --yes",
)
_PATHS = "a file, a folder, a glob or a URL of Parquet, CSV, TSV or JSONL files; may be repeated"


def verb(
    call: Call,
    events: Annotated[
        list[str], typer.Option("--events", metavar="PATH", help=f"who did what with which item: {_PATHS}")
    ],
    items: Annotated[list[str], typer.Option("--items", metavar="PATH", help="one row per item, that is, per ad")],
    users: Annotated[
        list[str] | None, typer.Option("--users", metavar="PATH", help="one row per user, if there is such a table")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.toml", help="the TOML to write")] = DEFAULT_CONFIG,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="the data set's name; default: the folder of the events"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="ask nothing: what is unsure becomes a `# check:` comment")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="replace the TOML if it is there")] = False,
) -> Answer:
    """Writes a TOML for your tables: reads them whole, finds ids, types, features and the split.

    Each line says what it rests on. What the tables leave open is a question in a terminal,
    and a `# check:` comment elsewhere. Next: `towerline check`, then `towerline refresh`.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} is there already. Give another file with --out, or replace it with --force.")
    from towerline.jobs.init.job import propose

    draft = propose(
        _paths(events),
        _paths(items),
        _paths(users) if users else None,
        name=name,
        folder=out.parent,
        ask=_answer if _asks(call, yes=yes) else None,
        progress=call.progress,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(draft.toml, encoding="utf-8")
    return Answer(lines=_lines(draft, out), facts=_facts(draft), written=out)


def _paths(given: list[str]) -> str | list[str]:
    return given[0] if len(given) == 1 else given


def _asks(call: Call, *, yes: bool) -> bool:
    """Whether a person can read and answer questions."""
    return not yes and not call.as_json and sys.stdin.isatty() and sys.stdout.isatty()


def _answer(question: Question) -> str:
    typer.echo(f"\n{question.text}\n  {question.evidence}")
    for number, choice in enumerate(question.choices, 1):
        typer.echo(f"  {number}. {choice}")
    default = question.choices.index(question.default) + 1
    while True:
        answer: int = typer.prompt("number", default=default, type=int)
        if 1 <= answer <= len(question.choices):
            return question.choices[answer - 1]
        typer.echo(f"expected 1 to {len(question.choices)}, got {answer}")


def _lines(draft: Draft, out: Path) -> list[str]:
    found = draft.findings
    rows = ", ".join(f"{profile.rows:,} {table}" for table, profile in found.profiles.items())
    lines = [f"{found.name}: {rows}; {sum(len(side.features) for side in found.sides.values())} features"]
    lines += [f"check {one.key}: {' '.join(part for part in (one.text, one.evidence) if part)}" for one in draft.open]
    return [*lines, f"next: towerline check --config {out}"]


def _facts(draft: Draft) -> dict[str, object]:
    return {
        "name": draft.findings.name,
        "rows": {table: profile.rows for table, profile in draft.findings.profiles.items()},
        "checks": [{"key": one.key, "text": one.text, "evidence": one.evidence} for one in draft.open],
    }
