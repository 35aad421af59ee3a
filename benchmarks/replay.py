"""Measures what freshness is worth on Complete Journey: 28 nights with warm nights, by ``towerline replay-nights``.

Reads ``configs/complete_journey_nights.toml``; writes ``benchmarks/results/replay.json``. It goes on where it was
stopped; the minutes are those of all its runs.

    python -m pipelines.complete_journey runs/demo/tables
    python -m benchmarks.replay
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import towerline
from benchmarks.index_frontier import machine
from towerline.jobs.replay.summary import Replay

CONFIG = Path("configs/complete_journey_nights.toml")
RESULTS = Path(__file__).parent / "results" / "replay.json"
FIRST = datetime.date(2017, 11, 6)


def result_of(replay: Replay) -> dict[str, Any]:
    """The figures of the replay that are compared from one commit to the next."""
    worth = {one.other: one for one in replay.worth if one.part == "all"}
    nights = [row for row in replay.nights if row.outcome != "failed"]
    return {
        "nights": len(replay.nights),
        "minutes": round(replay.seconds / 60.0, 1),
        **{f"recall_{arm}": parts["all"].recall for arm, parts in replay.recall.items() if arm != "refused"},
        **{f"interval_fresh_minus_{other}": list(one.interval) for other, one in worth.items()},
        "recall_by_part": {
            arm: {part: one.recall for part, one in parts.items()} for arm, parts in replay.recall.items()
        },
        "user_days": worth["frozen"].user_days if "frozen" in worth else 0,
        "refused": replay.refused,
        "failed": replay.failed,
        "false_alarms": replay.false_alarms,
        "night_minutes": [round(row.seconds / 60.0, 2) for row in nights],
        "asking_minutes": round(sum(row.asking_seconds for row in nights) / 60.0, 1),
        "stage_seconds": [row.stages for row in nights],
        "churn": [row.churn for row in nights],
    }


def main() -> None:
    """Runs the nights and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=28)
    parser.add_argument("--work", type=Path, default=Path("runs/replay"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    progress = towerline.Progress(sys.stderr)
    project = towerline.open(CONFIG, work=arguments.work, overrides=arguments.overrides, progress=progress)
    replay = project.replay_nights(FIRST, arguments.nights)
    result = {**result_of(replay), "overrides": arguments.overrides, **machine()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
