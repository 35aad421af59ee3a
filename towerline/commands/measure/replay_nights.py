"""``towerline replay-nights``."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from towerline.commands.verb import Answer, Call

if TYPE_CHECKING:
    from towerline.jobs.replay.summary import Replay

EXAMPLES = (
    "towerline replay-nights --config ads.toml --from 2026-10-01 --nights 28",
    "towerline replay-nights --config ads.toml --from 2026-10-01 --nights 28 --set refresh.warm_nights=6",
)


def verb(
    call: Call,
    first: Annotated[
        datetime.datetime,
        typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="the first night: it sees the days before"),
    ],
    nights: Annotated[int, typer.Option(help="number of nights")] = 28,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="go on after a night that failed; a refused one never ends the replay")
    ] = False,
) -> Answer:
    """The nightly job run through the past: what fresh versions find of the next day, and what the nights cost.

    Goes on where it was stopped. Writes replay.json and replay.html below the run's folder, and touches neither the
    run's own nights nor its registry.
    """
    replay = call.project.replay_nights(first.date(), nights, keep_going=keep_going)
    from towerline.jobs.replay.page import headline

    return Answer(
        lines=[*_lines(replay), headline(replay)],
        facts=replay.as_json(),
        written=call.project.work / "replay" / "replay.html",
    )


def _lines(replay: Replay) -> list[str]:
    from towerline.commands.terminal import table_lines

    rows = [
        [
            arm,
            *(
                "" if (one := parts.get(part)) is None or one.recall is None else f"{one.recall:.4f}"
                for part in ("all", "novel", "new")
            ),
        ]
        for arm, parts in replay.recall.items()
    ]
    return list(table_lines(["recall@100", "all", "novel", "new ads"], rows))
