"""The plots of a replay's page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

from index.evaluation.pages.drawing import OTHERS, OWN, as_picture, new_axes, new_figure
from index.evaluation.pages.rendering import Picture
from towerline.jobs.replay.rows import Arm, NightRow
from towerline.jobs.replay.summary import Replay

NAMES: dict[Arm, str] = {
    "fresh": "fresh every night",
    "frozen": "frozen at the start",
    "weekly": "rebuilt weekly",
    "backtest": "fresh, without the held-out days",
    "refused": "refused by a gate",
}
_COLORS: dict[Arm, str] = {
    "fresh": OWN,
    "frozen": OTHERS[5],
    "weekly": OTHERS[0],
    "backtest": OTHERS[1],
    "refused": OTHERS[6],
}
_WIDTH = 9.5


def pictures(replay: Replay) -> list[Picture]:
    """All plots for which there is something to draw."""
    if not any(row.measured for row in replay.nights):
        return [costs(replay)]
    return [recall_by_day(replay), worth_by_day(replay), costs(replay), churn_by_day(replay)]


def recall_by_day(replay: Replay) -> Picture:
    """Recall of the next day, night by night."""
    figure = new_figure(_WIDTH, 3.8)
    axes = new_axes(figure)
    for arm in ("backtest", "weekly", "frozen", "fresh"):
        rows = [row for row in replay.nights if row.recall(arm) is not None]
        if rows:
            _line(axes, arm, rows)
    for row in replay.nights:
        if (value := row.recall("refused")) is not None:
            label = NAMES["refused"] if row is _first_refused(replay) else None
            axes.plot(row.night, value, "x", color=_COLORS["refused"], markersize=7, label=label)
    axes.set_ylabel("recall@100 of the next day")
    _dates(axes, replay)
    axes.legend(fontsize=8, frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0))
    return as_picture(
        figure,
        "What each version finds of the next day",
        "Mean over the users with an event on the day, of |top 100 ∩ chosen| / min(100, |chosen|); the band is the "
        "fresh version's bootstrap interval over users. All versions are asked with the same users' records, as of "
        "the night before.",
    )


def _line(axes: Axes, arm: Arm, rows: Sequence[NightRow]) -> None:
    nights = [row.night for row in rows]
    values = [row.recall(arm) or 0.0 for row in rows]
    wide = 2.2 if arm == "fresh" else 1.4
    axes.plot(nights, values, color=_COLORS[arm], label=NAMES[arm], linewidth=wide, marker="o", markersize=3)
    if arm == "fresh":
        bounds = [row.measured[arm]["all"].interval for row in rows]
        low, high = ([bound[side] or 0.0 for bound in bounds] for side in (0, 1))
        axes.fill_between(nights, low, high, color=_COLORS[arm], alpha=0.12, linewidth=0)


def _first_refused(replay: Replay) -> NightRow | None:
    return next((row for row in replay.nights if row.recall("refused") is not None), None)


def worth_by_day(replay: Replay) -> Picture:
    """Fresh minus frozen and fresh minus weekly, night by night, with intervals."""
    figure = new_figure(_WIDTH, 3.6)
    axes = new_axes(figure)
    shown: tuple[Arm, ...] = ("frozen", "weekly")
    for place, other in enumerate(shown):
        found = [one for one in replay.by_day if one.other == other and one.difference is not None]
        nights = np.array([one.night for one in found]) + 0.24 * (place - 0.5)
        middle = np.array([one.difference for one in found], np.float64)
        low, high = (np.array([one.interval[side] for one in found], np.float64) for side in (0, 1))
        axes.errorbar(
            nights,
            middle,
            yerr=[middle - low, high - middle],
            fmt="o",
            markersize=4,
            linewidth=1.2,
            color=_COLORS[other],
            label=f"fresh minus {NAMES[other]}",
        )
    axes.axhline(0.0, color="#1b1f24", linewidth=0.8)
    axes.set_ylabel("difference of recall@100")
    _dates(axes, replay)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    return as_picture(
        figure,
        "What freshness is worth, by age",
        "Paired over the same users, with bootstrap intervals. Above 0: the fresh version finds more. The frozen "
        "version is as old as the night's number in days, the weekly one at most six days.",
    )


def costs(replay: Replay) -> Picture:
    """Minutes of each night, stacked by stage."""
    figure = new_figure(_WIDTH, 3.6)
    axes = new_axes(figure)
    stages = list(dict.fromkeys(stage for row in replay.nights for stage in row.stages))
    bottom = np.zeros(len(replay.nights))
    nights = [row.night for row in replay.nights]
    for color, stage in zip([OWN, *OTHERS] * 2, stages, strict=False):
        minutes = np.array([row.stages.get(stage, 0.0) / 60.0 for row in replay.nights])
        axes.bar(nights, minutes, bottom=bottom, color=color, width=0.75, label=stage)
        bottom += minutes
    other = np.array([max(row.seconds / 60.0, 0.0) for row in replay.nights]) - bottom
    if (other > 0.01).any():
        axes.bar(nights, np.maximum(other, 0.0), bottom=bottom, color="#d8dee4", width=0.75, label="refused or failed")
    axes.set_ylabel("minutes")
    _dates(axes, replay)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return as_picture(
        figure,
        "What a night costs",
        "Wall time on the machine of the replay. `publish` has the gates in it. The measurement of the next day is no "
        "part of a night and is not shown.",
    )


def churn_by_day(replay: Replay) -> Picture:
    """Share of the fresh top 100 that is new since the night before."""
    figure = new_figure(_WIDTH, 2.8)
    axes = new_axes(figure)
    rows = [row for row in replay.nights if row.churn is not None]
    axes.bar([row.night for row in rows], [row.churn or 0.0 for row in rows], color=OWN, width=0.75)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("new in the top 100")
    _dates(axes, replay)
    return as_picture(
        figure,
        "Churn",
        "Mean share of a user's top 100 that the version of the night before does not show. Both are asked with the "
        "same records, so that new events of the user are no part of it.",
    )


def _dates(axes: Axes, replay: Replay) -> None:
    """Dates below the nights, at most ten of them."""
    first = datetime.date.fromisoformat(replay.first)
    count = max(len(replay.nights), 1)
    step = next(step for step in (1, 2, 7, 14, 28, 91, 364, count) if count / step <= 14)
    nights = list(range(0, count, step))
    axes.xaxis.set_major_locator(FixedLocator(nights))
    axes.set_xticklabels([f"{first + datetime.timedelta(days=night):%d %b}" for night in nights], fontsize=8)
    axes.set_xlim(-0.7, count - 0.3)
