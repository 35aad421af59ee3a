"""The page of a replay: what freshness is worth, what the nights cost, what the gates said."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from index.evaluation.pages.rendering import Table, render
from towerline.jobs.replay.plots import NAMES, pictures
from towerline.jobs.replay.rows import ARMS, PARTS, Arm, Measured, NightRow
from towerline.jobs.replay.summary import GateRecord, Replay, Worth

_PART_NAMES = {"all": "all ads", "novel": "ads new to the user", "new": "ads that nobody had before"}
_CHARACTERS = 160


def replay_page(replay: Replay) -> str:
    """The whole page as HTML."""
    return render(
        "replay.html.j2",
        title=f"{replay.dataset}: {len(replay.nights)} nights from {replay.first} on",
        findings=list(findings(replay)),
        notes=list(notes(replay)),
        pictures=pictures(replay),
        tables=[
            one
            for one in (recall_table(replay), worth_table(replay), gates_table(replay), nights_table(replay))
            if one.lines
        ],
    )


def headline(replay: Replay) -> str:
    """What freshness is worth, in a sentence."""
    fresh, frozen, worth = _recall(replay, "fresh"), _recall(replay, "frozen"), replay.worth_of("frozen")
    if fresh is None or frozen is None or worth is None or worth.difference is None:
        return "No day could be measured: no version was live, or no user had an event."
    relative = f", {100 * worth.difference / frozen:+.1f} %" if frozen else ""
    return (
        f"Fresh versions find {fresh:.4f} of what users choose on the next day (recall@100), the version of the first "
        f"night {frozen:.4f}: freshness is worth {_interval(worth)}{relative}: {_verdict(worth)}."
    )


def findings(replay: Replay) -> Iterator[str]:
    """The page in a few sentences."""
    yield headline(replay)
    weekly, backtest = replay.worth_of("weekly"), replay.worth_of("backtest")
    if weekly is not None and weekly.difference is not None:
        yield f"Against a weekly rebuild, fresh nights are worth {_interval(weekly)}: {_verdict(weekly)}."
    if backtest is not None and backtest.difference is not None:
        yield (
            "Towers that have learned from everything, in place of those the gates measured, are worth "
            f"{_interval(backtest)}: {_verdict(backtest)}."
        )
    yield _gates_said(replay)
    seconds = [row.seconds for row in replay.nights if not row.resumed]
    if seconds:
        yield (
            f"A night takes {np.median(seconds) / 60:.1f} minutes at the median, {max(seconds) / 60:.1f} at most; the "
            f"whole replay, measurements included, took {replay.seconds / 60:.0f} minutes."
        )


def _gates_said(replay: Replay) -> str:
    failed = f" {replay.failed} failed." if replay.failed else ""
    if not replay.refused:
        return f"The gates refused no night of {len(replay.nights)}.{failed}"
    return (
        f"The gates refused {replay.refused} of {len(replay.nights)} nights; {replay.false_alarms} of these were false "
        f"alarms: on the next day the refused version was not certainly worse than the one that stayed.{failed}"
    )


def notes(replay: Replay) -> Iterator[str]:
    """What a reader must know to judge the figures."""
    tables = [name for name, there in (("items", replay.has_items), ("users", replay.has_users)) if there]
    if tables:
        have = "tables have" if len(tables) > 1 else "table has"
        yield (
            f"Not of the day: the {' and '.join(tables)} {have} no history. Every night sees the rows of today, so "
            "that ads (and their prices, texts and attributes) are known before they were. What the job counts of "
            "events is of the night."
        )
    if replay.max_users is not None:
        yield f"At most {replay.max_users:,} users were asked per day, by a hash of their ids (replay.max_users)."
    if replay.rows_left_out:
        yield f"{replay.rows_left_out:,} rows of the events are on no day: they have no sound id or time."
    stale = [row.date for row in replay.nights if row.stale_records]
    if stale:
        yield f"On {', '.join(stale)} the users were described by older features, because those of the night failed."
    if any(row.resumed for row in replay.nights):
        yield "The replay was stopped and resumed: the seconds of the night it was stopped in are not whole."
    yield f"Warm nights after a full training: {replay.warm_nights} (refresh.warm_nights)."
    yield "Intervals over all days draw users with all their days (95 %, bootstrap)."


def recall_table(replay: Replay) -> Table:
    """Recall over all days, by arm and part."""
    arms = [arm for arm in ARMS if arm in replay.recall]
    return Table(
        title="Recall@100 of the next day, over all days",
        header=("version", *(_PART_NAMES[part] for part in PARTS)),
        lines=tuple((NAMES[arm], *(_with_interval(replay.recall[arm].get(part)) for part in PARTS)) for arm in arms),
        note="Mean over user-days, with its interval. Ads new to the user: without the user's earlier ads, in truth "
        "and answer. Ads that nobody had before: of these alone in the truth.",
        own=0,
    )


def worth_table(replay: Replay) -> Table:
    """Fresh versions against the others."""
    return Table(
        title="Fresh against the others",
        header=("fresh minus", "on", "difference", "95 % interval", "verdict", "users", "user-days"),
        lines=tuple(
            (
                NAMES[one.other],
                _PART_NAMES[one.part],
                _signed(one.difference),
                _bounds(one),
                _verdict(one),
                f"{one.users:,}",
                f"{one.user_days:,}",
            )
            for one in replay.worth
        ),
    )


def gates_table(replay: Replay) -> Table:
    """What each gate said."""
    return Table(
        title="The gates",
        header=("gate", "passed", "failed", "skipped", "least", "most", "threshold"),
        lines=tuple(_gate_line(one) for one in replay.gates),
        note="A failed gate refuses the night; the version before stays live.",
    )


def _gate_line(one: GateRecord) -> tuple[str, ...]:
    counts = (f"{count}" for count in (one.passed, one.failed, one.skipped))
    return (one.gate, *counts, *(_figure(figure) for figure in (one.least, one.most, one.threshold)))


def nights_table(replay: Replay) -> Table:
    """Every night."""
    return Table(
        title="Night by night",
        header=("date", "outcome", "minutes", "users", "fresh", "frozen", "weekly", "churn", "version", ""),
        lines=tuple(_night_line(row) for row in replay.nights),
    )


def _night_line(row: NightRow) -> tuple[str, ...]:
    arms: tuple[Arm, ...] = ("fresh", "frozen", "weekly")
    return (
        row.date,
        row.outcome,
        f"{row.seconds / 60:.1f}",
        f"{row.users:,}",
        *(_share(row.recall(arm)) for arm in arms),
        _share(row.churn),
        row.version or "–",
        (row.error or "").replace("\n", " ")[:_CHARACTERS],
    )


def _recall(replay: Replay, arm: Arm) -> float | None:
    found = replay.recall.get(arm, {}).get("all")
    return None if found is None else found.recall


def _with_interval(one: Measured | None) -> str:
    if one is None or one.recall is None:
        return "–"
    low, high = one.interval
    return f"{one.recall:.4f} [{_share(low)}, {_share(high)}]"


def _interval(one: Worth) -> str:
    return f"{_signed(one.difference)} {_bounds(one)}"


def _bounds(one: Worth) -> str:
    return f"[{_signed(one.interval[0])}, {_signed(one.interval[1])}]"


def _verdict(one: Worth) -> str:
    low, high = one.interval
    if low is None or high is None:
        return "not measured"
    return "better" if low > 0 else "worse" if high < 0 else "no certain difference"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.4g}"
