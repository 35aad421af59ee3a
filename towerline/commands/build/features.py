"""``towerline features``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline features --config ads.toml",
    "towerline features --config ads.toml --previous runs/ads/features",
    "towerline features --config ads.toml --forget forget.txt",
    "towerline features --config ads.toml --as-of 2026-10-01",
    "towerline features --config ads.toml -- --direct_num_workers=4",
)

Forget = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="file of user ids to erase, one per line; kept as digests for later runs"),
]
Remember = Annotated[
    Path | None, typer.Option(metavar="FILE", help="file of user ids to take off the list of those to erase")
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="DATE",
        help="rolling windows end where this day begins (UTC), to reproduce a past night; also a time with its zone; "
        "not given: after the newest event's day",
    ),
]


def verb(
    call: Call,
    previous: Annotated[
        Path | None, typer.Option(metavar="DIR", help="an earlier features folder; only new events are read")
    ] = None,
    forget: Forget = None,
    remember: Remember = None,
    as_of: AsOf = None,
) -> Answer:
    """Raw tables to features (Beam)."""
    from pipelines.features.reporting.data_summary import lines

    written = call.project.features(previous=previous, forget=forget, remember=remember, as_of=as_of)
    summary = call.project.data_summary()
    done = None if forget is None else call.project.forget_outcome(forget)
    return Answer(
        lines=[*lines(summary), *([] if done is None else [done.line])],
        facts={
            "stage": "features",
            "data": summary.as_facts(),
            **({} if done is None else {"forgotten": done.as_fact()}),
        },
        written=written,
    )
